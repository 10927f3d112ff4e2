package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"syscall"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
)

// Error is one thing that is wrong with the configuration. Its text is one
// line.
type Error struct {
	// Source is the file with the line, the variable or the flag.
	Source string
	// Key is the path of the key; empty where no key is known.
	Key string
	// Problem says what is wrong and, where it can, what to do.
	Problem string
}

func (e *Error) Error() string {
	if e.Key == "" {
		return e.Source + ": " + e.Problem
	}
	return e.Source + ": " + e.Key + ": " + e.Problem
}

// Source is where values come from, besides the defaults.
type Source struct {
	// File is the path of a YAML file; empty for none.
	File string
	// Environ is as of os.Environ. Only what begins with Prefix is looked at.
	Environ []string
	// Prefix is that of the variables, such as "PERCH_".
	Prefix string
	// Known are variables with the prefix that are not keys.
	Known []string
	// Flags are the values given on the command line, by key path: text, or the
	// type of the field.
	Flags map[string]any
}

// Load lays the file, the environment and the flags over what dst, a pointer
// to a struct, holds. Every error found is in err, joined, each an *Error of one
// line; dst is changed only where there is none. warnings are lines for the
// operator about what works and should not stay.
//
// Empty lists become nil, so that a written default equals the default.
func Load(dst any, src Source) (warnings []string, err error) {
	ptr := reflect.ValueOf(dst)
	if ptr.Kind() != reflect.Pointer || ptr.IsNil() {
		return nil, fmt.Errorf("config: destination is %T, want a pointer to a struct", dst)
	}
	root, err := schemaOf(ptr.Type().Elem())
	if err != nil {
		return nil, err
	}
	table, err := envTable(root, src.Prefix)
	if err != nil {
		return nil, err
	}

	k := koanf.New(".")
	var errs []error
	if src.File != "" {
		values, warns, fileErrs := readFile(src.File, root)
		warnings = append(warnings, warns...)
		errs = append(errs, fileErrs...)
		errs = append(errs, load(k, values, ""))
	}
	over := &overlay{root: root, prefix: src.Prefix}
	errs = append(errs, load(k, over.environ(table, src.Environ, src.Known), "."))
	errs = append(errs, load(k, over.flags(src.Flags), "."))
	errs = append(errs, over.errs...)
	if err := errors.Join(errs...); err != nil {
		return warnings, err
	}

	// Lists have to replace those of the defaults, not to be laid over them entry
	// by entry: ZeroFields. The copy keeps dst as it is should decoding fail.
	out := reflect.New(ptr.Type().Elem())
	out.Elem().Set(ptr.Elem())
	err = k.UnmarshalWithConf("", out.Interface(), koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		ZeroFields: true,
		MatchName:  func(mapKey, field string) bool { return mapKey == field },
	}})
	if err != nil {
		return warnings, fmt.Errorf("config: decoding: %w", err)
	}
	dropEmptyLists(out.Elem(), root)
	ptr.Elem().Set(out.Elem())
	return warnings, nil
}

func load(k *koanf.Koanf, values map[string]any, delim string) error {
	if len(values) == 0 {
		return nil
	}
	if err := k.Load(confmap.Provider(values, delim), nil); err != nil {
		return fmt.Errorf("config: merging: %w", err)
	}
	return nil
}

func readFile(name string, root *key) (values map[string]any, warnings []string, errs []error) {
	data, err := os.ReadFile(name)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return nil, nil, []error{&Error{Source: name, Problem: "can't be read: " + err.Error()}}
	}
	r := &fileReader{name: name, root: root}
	values = r.read(data)
	if info, err := os.Stat(name); err == nil && r.secrets && readableByOthers(info, os.Geteuid()) {
		warnings = append(warnings, fmt.Sprintf("%s holds secrets and can be read by others (mode %04o): chmod 600 %s",
			name, info.Mode().Perm(), name))
	}
	return values, warnings, r.errs
}

// readableByOthers tells whether a file is open to more than the user euid. One of
// somebody else's that only its group may read is not: the group is how it is read
// here, as secrets of Kubernetes are with an fsGroup.
func readableByOthers(info fs.FileInfo, euid int) bool {
	others := fs.FileMode(0o077)
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != euid && euid != 0 {
		others = 0o027
	}
	return info.Mode().Perm()&others != 0
}

// dropEmptyLists makes every empty list below v nil.
func dropEmptyLists(v reflect.Value, k *key) {
	for _, c := range k.keys {
		field := v.Field(c.index)
		switch c.kind {
		case kindSection:
			dropEmptyLists(field, c)
		case kindStrings, kindList:
			if field.Len() == 0 {
				field.SetZero()
				continue
			}
			for j := 0; c.kind == kindList && j < field.Len(); j++ {
				dropEmptyLists(field.Index(j), c)
			}
		}
	}
}
