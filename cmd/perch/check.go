package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func checkCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Check the configuration: print ok, or every error with its key",
		Long: "Reads the file and the environment as perch serve would. Prints ok, or each error\n" +
			"on a line of its own with the key's path, and exits with 1. Nothing is bound,\n" +
			"made or changed.",
		Args: noArgs,
	}
	c := newConfigFlags(cmd, environ)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := c.loadChecked(cmd); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "ok")
		return err
	}
	return cmd
}
