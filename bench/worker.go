package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// What a worker reads first, and what it writes: one JSON object a line.
type (
	assignment struct {
		Options Options `json:"options"`
		Index   int     `json:"index"`
	}
	report struct {
		Phase       string       `json:"phase,omitempty"`
		Connections int          `json:"connections,omitempty"`
		Result      *shareResult `json:"result,omitempty"`
		Error       string       `json:"error,omitempty"`
	}
)

// raiseLimit takes the descriptors that the hard limit allows.
func raiseLimit() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("bench: descriptor limit: %w", err)
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("bench: descriptor limit: %w", err)
	}
	return nil
}

// Worker is one of several generator processes: it reads its part from in and
// says on out how far it is. It waits at each phase for a line on in.
func Worker(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	write := json.NewEncoder(out)
	err := func() error {
		first, err := lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("bench: worker: %w", err)
		}
		var a assignment
		if err := json.Unmarshal(first, &a); err != nil {
			return fmt.Errorf("bench: worker: %w", err)
		}
		if err := raiseLimit(); err != nil {
			return err
		}
		g, err := newGenerator(ctx, a.Options, a.Index, func(name string, connections int) error {
			if err := write.Encode(report{Phase: name, Connections: connections}); err != nil {
				return err
			}
			_, err := lines.ReadBytes('\n')
			return err
		})
		if err != nil {
			return err
		}
		r, err := g.run()
		if err != nil {
			return err
		}
		return write.Encode(report{Result: &r})
	}()
	if err != nil {
		return errors.Join(err, write.Encode(report{Error: err.Error()}))
	}
	return nil
}

type worker struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *json.Decoder
}

// processes runs the shares, each in a process of its own.
func (r *run) processes(ctx context.Context, command Command) ([]shareResult, error) {
	if command.Path == "" {
		return nil, errors.New("bench: several processes, and no command to start them with")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := r.o.target(); err != nil { // it sets the sources
		return nil, err
	}
	// The processes end with the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	workers := make([]worker, 0, r.o.Processes)
	defer func() {
		cancel()
		for _, w := range workers {
			w.in.Close()
			_ = w.cmd.Wait() // killed, or done: its report has been read
		}
	}()
	for k := range r.o.Processes {
		cmd := exec.CommandContext(ctx, command.Path, command.Args...)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = apart()
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, fmt.Errorf("bench: %w", err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, fmt.Errorf("bench: %w", err)
		}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("bench: %w", err)
		}
		workers = append(workers, worker{cmd, in, json.NewDecoder(out)})
		if err := json.NewEncoder(in).Encode(assignment{r.o, k}); err != nil {
			return nil, fmt.Errorf("bench: worker: %w", err)
		}
	}
	for {
		// All stand at the same phase, or are done.
		var shares []shareResult
		name, connections := "", 0
		for k, w := range workers {
			var rep report
			if err := w.lines.Decode(&rep); err != nil {
				if ctx.Err() != nil { // it was killed
					return nil, context.Cause(ctx)
				}
				return nil, fmt.Errorf("bench: process %d ended: %w", k, err)
			}
			if rep.Error != "" {
				return nil, errors.New(rep.Error)
			}
			if rep.Result != nil {
				shares = append(shares, *rep.Result)
			}
			name = rep.Phase
			connections += rep.Connections
		}
		if len(shares) == len(workers) {
			return shares, nil
		}
		if len(shares) > 0 {
			return nil, errors.New("bench: worker: the processes are not at the same phase")
		}
		if err := r.phase(name, connections); err != nil {
			return nil, err
		}
		for _, w := range workers {
			if _, err := io.WriteString(w.in, "\n"); err != nil {
				return nil, fmt.Errorf("bench: worker: %w", err)
			}
		}
	}
}
