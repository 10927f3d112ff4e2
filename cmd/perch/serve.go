package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"perch"
)

// errAborted is the end by a second signal.
var errAborted = errors.New("stopped by a second signal before the drain was done")

// abortGrace is what Run gets to return after Abort. Then the process goes all
// the same: a second signal means now.
const abortGrace = time.Second

// stopGrace is what a process takes at the most to end after its drain.
const stopGrace = 10 * time.Second

func serveCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server until SIGINT or SIGTERM, then drain; SIGHUP reads the configuration again",
		Args:  noArgs,
	}
	c := newConfigFlags(cmd, environ)
	c.text(cmd, "listen", "public `address`: WebSockets, tokens (default 127.0.0.1:8000)")
	c.text(cmd, "admin", "admin `address`: server API, metrics, health (default 127.0.0.1:8001)")
	c.text(cmd, "data_dir", "`directory` of keys and revocations (default perch-data)")
	c.text(cmd, "log.level", "debug, info, warn or error (default info)")
	c.text(cmd, "log.format", "text or json (default text)")
	c.toggle(cmd, "insecure", "no token needed, every topic operation allowed; never in production")
	c.toggle(cmd, "dev", "demo page, echo, example client and permissive topics, on loopback only")
	c.toggle(cmd, "echo", "serve /echo, which sends every message back")
	c.toggle(cmd, "demo", "serve the page at /demo")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		opts, err := c.loadChecked(cmd)
		if err != nil {
			return err
		}
		srv, err := perch.New(opts)
		if err != nil {
			return err
		}
		limitMemory(srv.MemoryLimit())
		return serve(cmd, srv, hooks{
			greet:  func() { greet(cmd.OutOrStdout(), opts, srv, c.path()) },
			reload: func() (perch.Options, error) { return c.loadChecked(cmd) },
		})
	}
	return cmd
}

// limitMemory gives Go's runtime its part of the memory budget, unless GOMEMLIMIT
// has given it one.
func limitMemory(n int64) {
	if n > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(n)
	}
}

// server is what serve needs of a *perch.Server.
type server interface {
	Run(ctx context.Context) error
	Ready() <-chan struct{}
	Abort()
	Reload(perch.Options) error
	ReloadFailed()
	Lag() time.Duration
	DrainTime() time.Duration
}

// hooks are what serve calls.
type hooks struct {
	greet  func()
	reload func() (perch.Options, error) // reads the configuration again
}

// serve runs srv until it ends by itself or a signal drains it.
func serve(cmd *cobra.Command, srv server, h hooks) error {
	// No reload, and no crowd of them, stands in the way of an end. Two signals are
	// all that an end listens to; of those that come during a reload, one is as good
	// as many.
	stops, hups := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(stops, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(stops)
	signal.Notify(hups, syscall.SIGHUP)
	defer signal.Stop(hups)

	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()

	n := notifier{cmd.ErrOrStderr()}
	watched, ended := make(chan struct{}), make(chan struct{})
	go func() { n.watch(srv.Lag, ended); close(watched) }()
	defer func() { close(ended); <-watched }()

	ready := srv.Ready()
	draining := false
	asked := (<-chan os.Signal)(hups) // nil: nothing is reloaded now
	reloaded := make(chan bool, 1)
	for {
		select {
		case err := <-done:
			return err
		case <-ready:
			ready = nil
			h.greet()
			n.ready("serving")
		case <-asked:
			asked = nil // until this one is done: never two at once
			told := ready == nil
			if told {
				n.reloading()
			}
			go func() {
				reload(cmd, srv, h)
				reloaded <- told
			}()
		case told := <-reloaded:
			if draining {
				continue
			}
			asked = hups
			if told {
				n.ready("serving")
			}
		case <-stops:
			if draining {
				return abort(srv, done)
			}
			draining = true
			asked = nil // there is nothing left to change
			fmt.Fprintln(cmd.ErrOrStderr(), "perch: draining; once more to stop at once")
			n.stopping(srv.DrainTime() + stopGrace)
			cancel()
		}
	}
}

// reload has srv take over the configuration as it is now. What is wrong with
// it is said in one line, and then nothing has changed.
func reload(cmd *cobra.Command, srv server, h hooks) {
	opts, err := h.reload()
	if err == nil {
		err = srv.Reload(opts)
	} else {
		srv.ReloadFailed()
	}
	if err != nil {
		text := strings.ReplaceAll(err.Error(), "\n", "; ")
		fmt.Fprintln(cmd.ErrOrStderr(), "perch: configuration not reloaded: "+text)
	}
}

// abort ends srv at once.
func abort(srv server, done <-chan error) error {
	srv.Abort()
	select {
	case err := <-done:
		// The drain may have been done, and the signal come too late.
		if errors.Is(err, perch.ErrAborted) {
			return errAborted
		}
		return err
	case <-time.After(abortGrace):
		return errAborted
	}
}
