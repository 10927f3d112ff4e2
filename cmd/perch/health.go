package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

// healthReply bounds what is read of an answer.
const healthReply = 1 << 10

func healthCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a running server whether it is ready: exit code 0, else 1",
		Long: "Asks /readyz on the admin port of a server on this machine, where the configuration\n" +
			"says that it listens. Prints ready, or in one line what is not, and exits with 1.\n" +
			"For health checks of containers: the image has no shell and no curl.",
		Args: noArgs,
	}
	c := newConfigFlags(cmd, environ)
	c.text(cmd, "admin", "admin `address` of the server (default 127.0.0.1:8001)")
	live := cmd.Flags().Bool("live", false, "ask /healthz instead: whether the process answers, also while it starts or drains")
	timeout := cmd.Flags().Duration("timeout", 3*time.Second, "how long the answer may take")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *timeout <= 0 {
			return usagef("--timeout: %s must be above zero", *timeout)
		}
		opts, err := c.load(cmd)
		if err != nil {
			return err
		}
		path, good := "/readyz", "ready"
		if *live {
			path, good = "/healthz", "alive"
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), *timeout)
		defer cancel()
		if err := askHealth(ctx, reach(opts.Admin), path); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), good)
		return err
	}
	return cmd
}

// askHealth returns nil where the server at addr answers with 200.
func askHealth(ctx context.Context, addr, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	// The server is on this machine: no proxy of the environment is asked.
	client := http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{}).DialContext, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return fmt.Errorf("no answer on %s: %w", addr, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	var reply struct {
		State string `json:"state"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, healthReply)).Decode(&reply) == nil && reply.State != "" {
		return fmt.Errorf("not ready: %s", reply.State)
	}
	return fmt.Errorf("not ready: %s answers with %s", addr, resp.Status)
}
