package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"perch/bench"
)

func benchCompareCommand() *cobra.Command {
	var (
		o        bench.CompareOptions
		out      benchOutput
		markdown string
	)
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Load Perch and other servers in turns, and print the ratios",
		Long: "Build the servers of bench/peers with the Go toolchain, load them and this Perch\n" +
			"in turns, and print what Perch costs over what each of them costs. It is run\n" +
			"inside a clone of Perch, on a machine that does nothing else.\n\n" +
			"Cases: " + strings.Join(bench.Cases(), "; ") + ".",
		Example: "  go run ./cmd/perch bench compare --quick\n" +
			"  go run ./cmd/perch bench compare --html report.html --json report.json\n" +
			"  go run ./cmd/perch bench compare --markdown docs",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			module, err := bench.FindModule(".")
			if err != nil {
				return err
			}
			if o.Perch, err = os.Executable(); err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			if o.Worker, err = bench.Self("bench", "worker"); err != nil {
				return err
			}
			if o.Peers, err = os.MkdirTemp("", "perch-peers-"); err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			defer os.RemoveAll(o.Peers)
			progress := out.progress(cmd.ErrOrStderr())
			progress.Start("building "+strings.Join(bench.PeerNames(), ", "), 0)
			err = bench.BuildPeers(ctx, module, o.Peers, bench.PeerNames())
			progress.Done()
			if err != nil {
				return err
			}
			o.Watch = func(title string) (bench.Observer, func()) {
				w := bench.NewWatch(progress, title)
				return w, w.Close
			}
			rep, err := bench.Compare(ctx, o)
			if err != nil {
				return err
			}
			rep.Version, rep.Command = thisVersion(), repeats(cmd, args)
			// The summary comes whether or not the page could be written: the run was long.
			err = out.write(rep, cmd.OutOrStdout())
			if markdown != "" {
				err = errors.Join(err, rep.WriteMarkdown(markdown))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Quick, "quick", false, "everything small, within two minutes: the ratios are rough")
	f.IntVar(&o.Rounds, "rounds", 0, "how often each server's turn comes (default 7, quick 2)")
	f.StringArrayVar(&o.Only, "only", nil, "a case to run, more than once for several (default: all)")
	f.StringVar(&markdown, "markdown", "", "write benchmarks.md with its plots into this `directory`")
	out.flags(f)
	return cmd
}
