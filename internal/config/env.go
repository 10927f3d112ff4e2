package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// overlay reads the environment and the flags into flat maps of key paths.
type overlay struct {
	root   *key
	prefix string
	errs   []error
}

// envTable has a key for each variable. Keys contain the underscores that also
// part them, so names are made from paths, never taken apart.
func envTable(root *key, prefix string) (map[string]*key, error) {
	table := map[string]*key{}
	var err error
	root.values(func(k *key) {
		name := EnvName(prefix, k.path)
		if other := table[name]; other != nil && err == nil {
			err = fmt.Errorf("config: %s and %s share the variable %s", other.path, k.path, name)
		}
		table[name] = k
	})
	return table, err
}

// environ reads the variables that begin with the prefix. An empty one counts
// as not set: that is what deployment tools leave of a variable that nobody
// filled, and it must not undo what the file says.
func (o *overlay) environ(table map[string]*key, environ, known []string) map[string]any {
	out := map[string]any{}
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, o.prefix) || slices.Contains(known, name) {
			continue
		}
		k := table[name]
		if k == nil {
			if !serviceLink(o.prefix, name, text) {
				o.errs = append(o.errs, &Error{Source: name, Problem: o.unknownVariable(table, name, known)})
			}
			continue
		}
		if text == "" {
			continue
		}
		v, err := k.parse(text)
		if err != nil {
			o.errs = append(o.errs, &Error{Source: name, Key: k.path, Problem: err.Error()})
			continue
		}
		out[k.path] = v
	}
	return out
}

func (o *overlay) unknownVariable(table map[string]*key, name string, known []string) string {
	problem := ""
	o.root.walk(func(k *key) {
		if (k.kind == kindList || k.kind == kindSection) && EnvName(o.prefix, k.path) == name {
			problem = "unknown variable (" + k.path + " has keys of its own: set them in the file)"
			if k.kind == kindSection {
				problem = "unknown variable (" + k.path + " is a section: add a key's name, as in " + name + "_" + strings.ToUpper(k.keys[0].name) + ")"
			}
		}
	})
	if problem != "" {
		return problem
	}
	candidates := slices.Concat(slices.Sorted(maps.Keys(table)), known)
	for i := range candidates {
		candidates[i] = strings.TrimPrefix(candidates[i], o.prefix)
	}
	if meant := closest(strings.TrimPrefix(name, o.prefix), candidates); meant != "" {
		return "unknown variable (did you mean " + o.prefix + meant + "?)"
	}
	return "unknown variable"
}

var (
	linkSuffix = regexp.MustCompile(`(^|_)(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)
	linkURL    = regexp.MustCompile(`^(tcp|udp|sctp)://`)
)

// serviceLink tells whether Kubernetes made the variable: it gives each pod
// PERCH_SERVICE_HOST, PERCH_PORT=tcp://… and more for a service called perch,
// and for one called perch-admin the same behind PERCH_ADMIN_. Refusing them
// would keep a pod from starting because of its own service.
func serviceLink(prefix, name, text string) bool {
	rest := strings.TrimPrefix(name, prefix)
	if linkSuffix.MatchString(rest) {
		return true
	}
	return (rest == "PORT" || strings.HasSuffix(rest, "_PORT")) && linkURL.MatchString(text)
}

// flags checks the values that were given on the command line, by key path.
func (o *overlay) flags(flags map[string]any) map[string]any {
	table := map[string]*key{}
	o.root.values(func(k *key) { table[k.path] = k })
	out := map[string]any{}
	for _, path := range slices.Sorted(maps.Keys(flags)) {
		source := "--" + FlagName(path)
		k := table[path]
		if k == nil {
			o.errs = append(o.errs, &Error{Source: source, Key: path, Problem: "unknown key"})
			continue
		}
		v, err := k.typed(flags[path])
		if err != nil {
			o.errs = append(o.errs, &Error{Source: source, Key: path, Problem: err.Error()})
			continue
		}
		out[path] = v
	}
	return out
}
