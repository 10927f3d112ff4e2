package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"perch/bench"
)

// benchOutput are the flags that say where the report goes.
type benchOutput struct {
	json, csv, html string
	quiet           bool
}

func (b *benchOutput) flags(f *pflag.FlagSet) {
	f.StringVar(&b.json, "json", "", "write the report as JSON to this file (- for the output, instead of the summary)")
	f.StringVar(&b.csv, "csv", "", "write the results as CSV to this file (- for the output, instead of the summary)")
	f.StringVar(&b.html, "html", "", "write one page with plots to this file")
	f.BoolVarP(&b.quiet, "quiet", "q", false, "no progress")
}

func (b *benchOutput) progress(w io.Writer) *bench.Progress {
	f, ok := w.(*os.File)
	terminal := false
	if ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		terminal = err == nil
	}
	return bench.NewProgress(w, terminal, b.quiet)
}

func (b *benchOutput) write(rep *bench.Report, out io.Writer) error {
	summary := true
	for _, f := range []struct {
		name  string
		write func(io.Writer) error
	}{{b.json, rep.WriteJSON}, {b.csv, rep.WriteCSV}, {b.html, rep.WriteHTML}} {
		switch f.name {
		case "":
		case "-":
			summary = false
			if err := f.write(out); err != nil {
				return err
			}
		default:
			if err := saveReport(f.name, f.write); err != nil {
				return err
			}
		}
	}
	if !summary {
		return nil
	}
	return rep.WriteText(out)
}

func saveReport(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// repeats is the command line that repeats a run. Secrets are left out.
func repeats(cmd *cobra.Command, args []string) string {
	line := append([]string{cmd.CommandPath()}, args...)
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "secret", "token", "api-key", "header":
			line = append(line, "--"+f.Name, "…")
		case "json", "csv", "html", "markdown", "quiet":
		default:
			value := f.Value.String()
			s, several := f.Value.(pflag.SliceValue)
			switch {
			case f.Value.Type() == "bool":
				line = append(line, "--"+f.Name+map[string]string{"false": "=false"}[value])
			case f.Value.Type() == "stringArray":
				// Commas are part of a value here: each has a flag of its own.
				for _, value := range s.GetSlice() {
					line = append(line, "--"+f.Name, shellWord(value))
				}
			case f.Value.Type() == "stringToInt":
				pairs := strings.Split(strings.Trim(value, "[]"), ",")
				slices.Sort(pairs) // a map's order is another each time
				line = append(line, "--"+f.Name, strings.Join(pairs, ","))
			case several:
				line = append(line, "--"+f.Name, strings.Join(s.GetSlice(), ","))
			default:
				line = append(line, "--"+f.Name, shellWord(value))
			}
		}
	})
	return strings.Join(line, " ")
}

// shellWord quotes what a shell would take apart.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:,=+@%", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func thisVersion() string {
	info, _ := debug.ReadBuildInfo()
	return strings.TrimPrefix(versionLine(version, info), "perch ")
}

func benchCommand() *cobra.Command {
	var (
		o   bench.Options
		out benchOutput
	)
	cmd := &cobra.Command{
		Use:   "bench SCENARIO",
		Short: "Load a server and report what that costs it",
		Long: "Load a WebSocket server and report latency, throughput and, where its process is\n" +
			"known, its memory and CPU. Without --url a Perch is started for it, on loopback.\n\n" +
			"Scenarios:\n" +
			"  idle       sessions that are held: memory by count, CPU of heartbeats\n" +
			"  connect    sessions that are opened: a storm, or with --rate a ramp\n" +
			"  echo       messages that come back (an endpoint that echoes)\n" +
			"  fanout     publications to all subscribers of one topic (--burst at once)\n" +
			"  push       publications to single sessions by the server API\n" +
			"  churn      sessions that come and go, beside others\n" +
			"  reconnect  all sessions lost at once, and back with the SDKs' backoff\n" +
			"  mixed      pushes, churn and publications to all together\n" +
			"  hostile    what sessions feel of hostile peers beside them, as a ratio\n\n" +
			"With --rate the load is an open loop: messages leave when they are due, and\n" +
			"latency counts from then. Without, connections wait for their answer (closed).",
		Example: "  perch bench echo --connections 1000\n" +
			"  perch bench connect --connections 10000 --html report.html\n" +
			"  perch bench idle --url ws://127.0.0.1:8000/connection/websocket --secret S --pid 4711",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("bench takes one scenario of %s, or compare", strings.Join(bench.Scenarios(), ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Scenario = args[0]
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			line := repeats(cmd, args)
			if o.URL == "" {
				s, err := startOwn(ctx)
				if err != nil {
					return err
				}
				defer s.Stop()
				o = s.Options(o)
			}
			watch := bench.NewWatch(out.progress(cmd.ErrOrStderr()), o.Scenario)
			r, err := runBench(ctx, o, watch)
			watch.Close()
			if err != nil {
				return err
			}
			return out.write(bench.NewReport(thisVersion(), line, r), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.URL, "url", "", "where the sockets go, as ws://host:port/path (default: a Perch started for it)")
	f.StringVar(&o.Protocol, "protocol", "", "echo, centrifuge or first (default: by the URL's path)")
	f.StringArrayVar(&o.Header, "header", nil, "a line to add to the request, as 'Name: value'")
	f.StringVar(&o.First, "first", "", "the first frame to send, of the protocol first; {i} is the connection's number")
	f.StringVar(&o.Secret, "secret", "", "sign a token for each session with this secret (HS256)")
	f.StringVar(&o.Token, "token", "", "one token for all sessions")
	f.StringVar(&o.Topic, "topic", "", "what to subscribe; {i} is the connection's number, - for nothing (default: bench, or one each)")
	f.IntVarP(&o.Connections, "connections", "n", 1000, "connections to hold")
	f.IntSliceVar(&o.Steps, "steps", nil, "idle: counts at which memory is read (default: five even steps)")
	f.Float64VarP(&o.Rate, "rate", "r", 0, "per second, of an open loop (default: a closed one, or what the scenario takes)")
	f.IntVar(&o.Window, "window", 64, "connects under way at once in a storm")
	f.IntVar(&o.Depth, "depth", 1, "echo: messages that a connection sends at once")
	f.IntVar(&o.Burst, "burst", 1, "fanout: publications that leave at once")
	f.IntVarP(&o.Size, "size", "s", 128, "bytes of a message")
	f.DurationVarP(&o.Duration, "duration", "d", 10*time.Second, "of the measured part")
	f.DurationVar(&o.Warmup, "warmup", 2*time.Second, "before it, not counted; below 0: none")
	f.DurationVar(&o.Settle, "settle", 3*time.Second, "from the last connect to a reading of the memory")
	f.StringToIntVar(&o.Hostile, "hostile", nil, "hostile: how many peers of a kind, as kind=n, of "+strings.Join(bench.HostileKinds(), ", ")+" or all (default: 100 of each)")
	f.IntVar(&o.Flood, "flood", 0, "hostile: frames or commands of a burst, of which each flooder sends one a second (default 512)")
	f.IntVar(&o.Rounds, "rounds", 0, "hostile: turns without the hostile peers and beside them, which share the duration (default 5)")
	f.IntVar(&o.Sources, "sources", 0, "source addresses of 127.0.0.0/8 (default: as many as are needed)")
	f.IntVar(&o.Processes, "processes", 1, "generator processes that share the load")
	f.IntVar(&o.PID, "pid", 0, "the server's process, to read its memory and CPU")
	f.StringVar(&o.Admin, "admin", "", "the server's admin URL, to read its metrics and to push")
	f.StringVar(&o.APIKey, "api-key", "", "the server API's key, to push")
	out.flags(f)
	cmd.AddCommand(benchCompareCommand(), benchWorkerCommand())
	return cmd
}

// startOwn starts the running binary as the server to measure.
func startOwn(ctx context.Context) (*bench.Server, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	return bench.StartPerch(ctx, path)
}

func runBench(ctx context.Context, o bench.Options, see bench.Observer) (bench.Result, error) {
	self, err := bench.Self("bench", "worker")
	if err != nil {
		return bench.Result{}, err
	}
	return bench.Run(ctx, o, self, see)
}

// benchWorkerCommand is one of several generator processes.
func benchWorkerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "worker",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.Worker(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}
