package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
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

func serveCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server until SIGINT or SIGTERM, then drain; a second signal ends it at once",
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
		return serve(cmd, srv, func() { greet(cmd.OutOrStdout(), opts, srv, c.path()) })
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
}

// serve runs srv until it ends by itself or a signal drains it.
func serve(cmd *cobra.Command, srv server, greet func()) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()

	ready := srv.Ready()
	draining := false
	for {
		select {
		case err := <-done:
			return err
		case <-ready:
			ready = nil
			greet()
		case <-signals:
			if draining {
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
			draining = true
			fmt.Fprintln(cmd.ErrOrStderr(), "perch: draining; once more to stop at once")
			cancel()
		}
	}
}
