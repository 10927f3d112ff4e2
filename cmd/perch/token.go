package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"perch"
)

func tokenCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token --sub USER",
		Short: "Print a token, signed with the keys that the server uses",
		Long: "Prints a connect token on standard output, and nothing else. It is signed as the\n" +
			"server with the same configuration or data directory signs, which need not run.",
		Args: noArgs,
	}
	c := newConfigFlags(cmd, environ)
	c.text(cmd, "data_dir", "`directory` of the keys (default perch-data)")
	var (
		req  perch.TokenRequest
		ttl  time.Duration
		info string
	)
	flags := cmd.Flags()
	flags.StringVar(&req.Subject, "sub", "", "the `user` that the token is for")
	flags.DurationVar(&ttl, "ttl", 0, "how long it is good for, such as 1h (default auth.token_ttl)")
	flags.StringSliceVar(&req.Channels, "channels", nil, "`topics` that its sessions are subscribed to, with commas between")
	flags.StringVar(&info, "info", "", "`JSON` that others see of the user")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if req.Subject == "" {
			return usagef("--sub is missing: the user that the token is for")
		}
		if flags.Changed("ttl") && ttl < time.Second {
			return usagef("--ttl: %s must be at least 1s", ttl)
		}
		if info != "" && !json.Valid([]byte(info)) {
			return usagef(`--info: must be JSON, such as '{"name":"Alice"}'`)
		}
		opts, err := c.loadChecked(cmd)
		if err != nil {
			return err
		}
		req.TTL, req.Info = ttl, []byte(info)
		_, err = os.Stat(opts.DataDir)
		fresh := errors.Is(err, fs.ErrNotExist)
		token, err := perch.IssueToken(opts, req)
		if err != nil {
			return err
		}
		if _, err := os.Stat(opts.DataDir); fresh && err == nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "perch: %s was made, with a signing key: only a server with that data_dir takes the token\n", opts.DataDir)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
		return err
	}
	return cmd
}
