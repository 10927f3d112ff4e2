package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"perch"
	"perch/internal/config"
)

const (
	envPrefix = "PERCH_"
	envConfig = "PERCH_CONFIG"
)

// configFlags are the flags of a command that stand for keys.
type configFlags struct {
	file    string
	environ []string
	keys    map[string]string // flag → key path
}

func newConfigFlags(cmd *cobra.Command, environ []string) *configFlags {
	c := &configFlags{environ: environ, keys: map[string]string{}}
	cmd.Flags().StringVarP(&c.file, "config", "c", "", "YAML `file` to read (PERCH_CONFIG); none is read unless named")
	return c
}

func (c *configFlags) text(cmd *cobra.Command, path, usage string) {
	c.keys[config.FlagName(path)] = path
	cmd.Flags().String(config.FlagName(path), "", usage)
}

func (c *configFlags) toggle(cmd *cobra.Command, path, usage string) {
	c.keys[config.FlagName(path)] = path
	cmd.Flags().Bool(config.FlagName(path), false, usage)
}

// load makes the options: default < file < environment < flag, then dev mode.
// What should not stay as it is goes to stderr as a warning. It does not check
// what the values mean: Options.Check does.
func (c *configFlags) load(cmd *cobra.Command) (perch.Options, error) {
	flags := map[string]any{}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if path, ok := c.keys[f.Name]; ok {
			flags[path] = f.Value.String()
		}
	})
	opts := perch.DefaultOptions()
	warnings, err := config.Load(&opts, config.Source{
		File: c.path(), Environ: c.environ, Prefix: envPrefix, Known: []string{envConfig}, Flags: flags,
	})
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "perch: warning: "+w)
	}
	if err != nil {
		return perch.Options{}, err
	}
	if opts.Dev {
		opts = opts.WithDev()
	}
	return opts, nil
}

// loadChecked is load with everything checked.
func (c *configFlags) loadChecked(cmd *cobra.Command) (perch.Options, error) {
	opts, err := c.load(cmd)
	if err != nil {
		return perch.Options{}, err
	}
	return opts, errors.Join(opts.Check()...)
}

// path is the configuration file; empty: none. A perch.yaml that happens to
// lie where the command is run is never read: whoever runs it says so.
func (c *configFlags) path() string {
	if c.file != "" {
		return c.file
	}
	file := ""
	for _, entry := range c.environ {
		if v, ok := strings.CutPrefix(entry, envConfig+"="); ok {
			file = v
		}
	}
	return file
}
