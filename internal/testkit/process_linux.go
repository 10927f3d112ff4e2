package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"perch/internal/proc"
)

// FreeAddr is an address of 127.0.0.1 whose port was free a moment ago.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// ModuleRoot is the folder of the go.mod that the working directory is under.
func ModuleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("testkit: go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("testkit: not in a module")
	}
	return filepath.Dir(mod), nil
}

// Build makes a binary of pkg, a path below the module in dir, as it ships:
// static, without race detector and symbol table.
func Build(ctx context.Context, dir, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("testkit: build %s: %w\n%s", pkg, err, msg)
	}
	return nil
}

var built struct {
	sync.Mutex
	dir  string
	bins map[string]string
}

// Perch is Executable of the server as it ships; root is the module's directory.
func Perch(ctx context.Context) (root, bin string, err error) {
	if root, err = ModuleRoot(); err != nil {
		return "", "", err
	}
	bin, err = Executable(ctx, root, "./cmd/perch")
	return root, bin, err
}

// Executable builds pkg of the module in dir once a process and returns its path.
// RemoveExecutables deletes what was built.
func Executable(ctx context.Context, dir, pkg string) (string, error) {
	built.Lock()
	defer built.Unlock()
	if bin, ok := built.bins[dir+pkg]; ok {
		return bin, nil
	}
	if built.dir == "" {
		tmp, err := os.MkdirTemp("", "perch-testkit-")
		if err != nil {
			return "", err
		}
		built.dir, built.bins = tmp, map[string]string{}
	}
	bin := filepath.Join(built.dir, fmt.Sprintf("%d-%s", len(built.bins), filepath.Base(pkg)))
	if err := Build(ctx, dir, pkg, bin); err != nil {
		return "", err
	}
	built.bins[dir+pkg] = bin
	return bin, nil
}

// RemoveExecutables deletes what Executable built.
func RemoveExecutables() error {
	built.Lock()
	defer built.Unlock()
	dir := built.dir
	built.dir, built.bins = "", nil
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}

// Process is a server that runs as a process of its own, the only way to know
// what it costs. Its methods are safe from any goroutine.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of Wait; set before exited is closed
	out    tail
}

// StartProcess runs bin. Of this process's environment it gets what has
// nothing to do with the Go runtime or with Perch, and env, as KEY=value.
// descriptors, where not 0, is its limit of open files.
func StartProcess(bin string, args, env []string, descriptors int) (*Process, error) {
	if descriptors > 0 {
		args = append([]string{"-c", fmt.Sprintf("ulimit -n %d; exec \"$@\"", descriptors), "sh", bin}, args...)
		bin = "/bin/sh"
	}
	p := &Process{cmd: exec.Command(bin, args...), exited: make(chan struct{})}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case name == "GOGC", name == "GOMEMLIMIT", name == "GODEBUG", name == "GOMAXPROCS", name == "GOTRACEBACK",
			strings.HasPrefix(name, "PERCH_"):
		default:
			p.cmd.Env = append(p.cmd.Env, kv)
		}
	}
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	// The server must not outlive a test binary that is killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is the end of what the process wrote, at most 64 KiB.
func (p *Process) Output() string { return p.out.String() }

// Signal sends sig.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Stop asks the process to end, and kills it when it has not after d. The
// error is that of its exit status.
func (p *Process) Stop(d time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.exited:
		return p.err
	case <-t.C:
		_ = p.cmd.Process.Kill()
		<-p.exited
		return fmt.Errorf("testkit: process did not stop within %s", d)
	}
}

// WaitHTTP polls url until it answers 200.
func (p *Process) WaitHTTP(ctx context.Context, url string) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		resp, err := client.Get(url)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if err := p.pause(ctx); err != nil {
			return fmt.Errorf("testkit: %s: %w\n%s", url, err, p.Output())
		}
	}
}

// WaitTCP polls addr until it takes a connection.
func (p *Process) WaitTCP(ctx context.Context, addr string) error {
	for {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			return c.Close()
		}
		if err := p.pause(ctx); err != nil {
			return fmt.Errorf("testkit: %s: %w\n%s", addr, err, p.Output())
		}
	}
}

func (p *Process) pause(ctx context.Context) error {
	select {
	case <-p.exited:
		return fmt.Errorf("process ended: %v", p.err)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}

// RssAnon is the process's own memory in RAM, in bytes.
func (p *Process) RssAnon() (int64, error) { return proc.RssAnon(p.PID()) }

// CPU is the time that the process's threads ran, user and system.
func (p *Process) CPU() (time.Duration, error) { return proc.CPU(p.PID()) }

// tail keeps the last bytes written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
