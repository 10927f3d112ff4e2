package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"perch/internal/doctor"
)

// maxSessions is more than one machine's ports and memory are good for: a
// larger number is a slip of the hand.
const maxSessions = 100_000_000

func doctorCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor --connections N",
		Short: "Check what this machine needs to hold N sessions, and say how to set it",
		Long: "Looks at descriptors, queues, kernel tables, memory and clock, and says of each what\n" +
			"is there, what N sessions want, why, and how to set it. Nothing is changed, save what\n" +
			"--write DIR makes below DIR: " + doctor.SysctlFile + " and\n" +
			doctor.LimitsFile + ".\n\n" +
			"Limits are those of this shell. --pid looks at a running server's instead.\n\n" +
			"Exit codes: 0 where N sessions can be held, also with warnings; 1 where they can't\n" +
			"or something went wrong; 2 for a command line that can't be understood.",
		Args: noArgs,
	}
	c := newConfigFlags(cmd, environ)
	c.text(cmd, "listen", "the server's public `address` (default 127.0.0.1:8000)")
	var (
		load   doctor.Load
		system doctor.System
		asJSON bool
		dir    string
	)
	flags := cmd.Flags()
	flags.IntVarP(&load.Connections, "connections", "n", 0, "how many `sessions` (default limits.connections)")
	flags.BoolVar(&load.Generator, "generator", false, "this machine opens the sessions, as perch bench does, instead of holding them")
	flags.IntVar(&load.Sources, "sources", 1, "source `addresses` of the generator")
	flags.IntVar(&system.PID, "pid", 0, "the `process` whose limits, cgroup and listeners count (default: as this one)")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.StringVar(&dir, "write", "", "write the values for sysctl and systemd below this `directory`, such as /etc")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		opts, err := c.load(cmd)
		if err != nil {
			return err
		}
		if !flags.Changed("connections") {
			load.Connections = opts.Limits.Connections
		}
		switch {
		case load.Connections == 0:
			return usagef("--connections is missing: how many sessions the machine should hold")
		case load.Connections < 1 || load.Connections > maxSessions:
			return usagef("--connections: %d must be between 1 and %d", load.Connections, maxSessions)
		case load.Sources < 1:
			return usagef("--sources: %d must be at least 1", load.Sources)
		case load.Sources > 1 && !load.Generator:
			return usagef("--sources is for a load generator: add --generator")
		case system.PID < 0:
			return usagef("--pid: %d is no process", system.PID)
		case system.PID > 0 && !isProcess(system.PID):
			return fmt.Errorf("--pid: there is no process %d", system.PID)
		case flags.Changed("write") && dir == "":
			return usagef("--write: the directory is missing, such as /etc")
		}
		load.Listen, load.Loops = opts.Listen, opts.Loops
		load.HTTPConnections = opts.Limits.HTTPConnections

		report := doctor.Examine(system, load)
		out := cmd.OutOrStdout()
		if asJSON {
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			err = enc.Encode(report)
		} else {
			err = report.Print(out)
		}
		if err != nil {
			return err
		}
		if dir != "" {
			// Beside the JSON, which stays one document.
			notes := out
			if asJSON {
				notes = cmd.ErrOrStderr()
			} else {
				fmt.Fprintln(out)
			}
			said, err := report.Write(dir)
			for _, line := range said {
				fmt.Fprintln(notes, line)
			}
			if err != nil {
				return err
			}
		}
		if report.Status == doctor.Fail {
			return fmt.Errorf("%d sessions: not with these: %s", report.Connections, strings.Join(report.Failed(), ", "))
		}
		return nil
	}
	return cmd
}

func isProcess(pid int) bool {
	_, err := os.Stat("/proc/" + strconv.Itoa(pid))
	return err == nil
}
