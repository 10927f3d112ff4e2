// Command perch runs the edge server and helps to operate it. It turns flags,
// file and environment into perch.Options, and prints; it decides nothing.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// The exit codes.
const (
	exitError = 1
	exitUsage = 2
)

// usageError is a command line that can't be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

func main() {
	os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(args, environ []string, stdout, stderr io.Writer) int {
	root := newRoot(environ)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteC()
	if err == nil {
		return 0
	}
	printError(stderr, err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "See '%s --help'.\n", cmd.CommandPath())
		return exitUsage
	}
	return exitError
}

// printError writes each error of err on a line of its own.
func printError(w io.Writer, err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line = strings.TrimPrefix(strings.TrimSpace(line), "perch: "); line != "" {
			fmt.Fprintln(w, "perch: "+line)
		}
	}
}

func newRoot(environ []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "perch",
		Short: "Edge server for very many idle WebSockets and pushes to them",
		Long: "Perch is an edge server: devices and apps get a token over HTTP, open one\n" +
			"WebSocket and sit idle; a backend pushes to a device, a user, a topic or all.\n\n" +
			"Values come from defaults, then the file (--config or PERCH_CONFIG), then the\n" +
			"environment (PERCH_LISTEN, PERCH_AUTH_HMAC_SECRET, …), then flags.",
		SilenceErrors: true,
		SilenceUsage:  true,
		// A word that is no command ends up here as an argument of the root.
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("a command is missing, such as perch serve")
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usagef("unknown command %q (did you mean %s?)", args[0], strings.Join(near, ", "))
			}
			return usagef("unknown command %q", args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(serveCommand(environ), tokenCommand(environ), checkCommand(environ), healthCommand(environ), doctorCommand(environ), benchCommand(), clientsCommand(environ), versionCommand())
	return root
}

// noArgs is cobra.NoArgs as a usage error.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q", args[0])
	}
	return nil
}
