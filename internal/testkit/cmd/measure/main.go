// Command measure builds the server as it ships and prints what an idle
// session costs it, and what a connect storm costs it beside a bare
// gnet+gobwas server. The working directory is the module's.
//
//	go run ./internal/testkit/cmd/measure
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"perch/internal/testkit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if rm := testkit.RemoveExecutables(); err == nil {
		err = rm
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("measure", flag.ContinueOnError)
	var (
		n      = flags.Int("n", 10000, "sessions of a memory measurement")
		storm  = flags.Int("storm", 5000, "connections of a round of the storm")
		rounds = flags.Int("rounds", 5, "rounds of the storm; 0: none")
		cool   = flags.Duration("cool", time.Minute, "from the burst to its measurement")
		bin    = flags.String("perch", "", "a perch binary to measure; empty: built here")
		skip   = flags.Bool("storm-only", false, "leave the memory out")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	root, err := testkit.ModuleRoot()
	if err != nil {
		return err
	}
	if *bin == "" {
		if *bin, err = testkit.Executable(ctx, root, "./cmd/perch"); err != nil {
			return err
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "measurement\tresult\ttarget\t")
	if !*skip {
		if err := memory(ctx, w, *bin, *n, *cool); err != nil {
			return err
		}
	}
	if *rounds > 0 {
		return storms(ctx, w, root, *bin, *storm, *rounds)
	}
	return nil
}

func logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func memory(ctx context.Context, w io.Writer, bin string, n int, cool time.Duration) error {
	for _, c := range []struct {
		name     string
		topic    func(int) string
		target   int
		messages int
	}{
		{"shared topic", testkit.SharedTopic, 1000, 0},
		{"own topic", testkit.OwnTopic, 1300, 20},
	} {
		s, err := testkit.StartServer(ctx, bin, 0)
		if err != nil {
			return err
		}
		logf("%s:", c.name)
		r, err := testkit.Memory(ctx, s, testkit.MemoryOptions{
			Sessions: n, Topic: c.topic, Messages: c.messages, Size: 4 << 10, Cool: cool, Log: logf,
		})
		if stop := s.Stop(30 * time.Second); err == nil {
			err = stop
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintf(w, "idle session, %s (n=%d, RssAnon)\t%.0f B\t<= %d B\t\n", c.name, n, r.PerSession, c.target)
		fmt.Fprintf(w, "goroutines without and with them\t%d, %d\tequal\t\n", r.Goroutines[0], r.Goroutines[1])
		if c.messages > 0 {
			fmt.Fprintf(w, "as a burst of %d x 4 KiB each ends\t%.0f B\t\t\n", c.messages, r.Peak)
			fmt.Fprintf(w, "%s later\t%.0f B (%+.0f%%)\t<= +20%%\t\n", cool, r.AfterBurst, (r.AfterBurst/r.PerSession-1)*100)
		}
	}
	return nil
}

func storms(ctx context.Context, w io.Writer, root, bin string, n, rounds int) error {
	peer, err := testkit.Executable(ctx, filepath.Join(root, "bench", "peers"), "./bare")
	if err != nil {
		return err
	}
	s, err := testkit.StartServer(ctx, bin, 0)
	if err != nil {
		return err
	}
	defer s.Stop(30 * time.Second)
	bare, addr, err := testkit.StartBare(ctx, peer)
	if err != nil {
		return err
	}
	defer bare.Stop(5 * time.Second)
	r, err := testkit.Storm(ctx, s, bare, addr, n, rounds)
	if err != nil {
		return err
	}
	micros := func(v []time.Duration) string {
		s := ""
		for _, d := range v {
			s += fmt.Sprintf(" %.1f", float64(d.Nanoseconds())/1e3)
		}
		return s[1:]
	}
	fmt.Fprintf(w, "storm, CPU us per session, median of %d x %d\t%.1f (%s)\t\t\n", rounds, n,
		float64(testkit.Median(r.Perch).Nanoseconds())/1e3, micros(r.Perch))
	fmt.Fprintf(w, "bare gnet+gobwas upgrade, the same\t%.1f (%s)\t\t\n",
		float64(testkit.Median(r.Bare).Nanoseconds())/1e3, micros(r.Bare))
	fmt.Fprintf(w, "ratio\t%.2f\t<= 1.5\t\n", r.Ratio)
	return nil
}
