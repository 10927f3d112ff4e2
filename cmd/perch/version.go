package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by -ldflags "-X main.version=v1.2.3"; else the build knows.
var version string

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, _ := debug.ReadBuildInfo()
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionLine(version, info))
			return err
		},
	}
}

// versionLine is as "perch v1.2.3 (0123456789ab, go1.26.0, linux/amd64)".
func versionLine(version string, info *debug.BuildInfo) string {
	commit, modified := "", ""
	if info != nil {
		if version == "" {
			version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = "+changes"
			}
		}
	}
	if version == "" || version == "(devel)" {
		version = "dev"
	}
	detail := ""
	if commit != "" {
		detail = commit[:min(12, len(commit))] + modified + ", "
	}
	return fmt.Sprintf("perch %s (%s%s, %s/%s)", version, detail, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
