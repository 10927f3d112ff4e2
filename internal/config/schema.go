package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

type kind uint8

const (
	kindString kind = iota
	kindBool
	kindInt
	kindSize // an integer of bytes
	kindFloat
	kindDuration
	kindStrings // list of strings
	kindSection // struct
	kindList    // list of structs
)

// key is one key of the configuration: a section, a list or a value.
type key struct {
	name   string
	path   string // from the root, with dots
	kind   kind
	typ    reflect.Type
	index  int // of the field in its struct
	secret bool
	// inURL: only a value with an '@' holds a secret.
	inURL bool
	keys  []*key // of a section, or of one entry of a list
}

var durationType = reflect.TypeFor[time.Duration]()

// schemaOf reads the keys of a struct type. An error is the programmer's: a
// field that no configuration can hold.
func schemaOf(t reflect.Type) (*key, error) {
	root := &key{kind: kindSection, typ: t}
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("config: destination is %s, want a struct", t)
	}
	if err := root.addFields(t); err != nil {
		return nil, err
	}
	return root, nil
}

func (k *key) addFields(t reflect.Type) error {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("koanf"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			return fmt.Errorf("config: field %s.%s has no koanf tag", t, f.Name)
		}
		if strings.Contains(name, ".") || k.child(name) != nil {
			return fmt.Errorf("config: field %s.%s: key %q is taken or has a dot", t, f.Name, name)
		}
		child := &key{name: name, path: join(k.path, name), typ: f.Type, index: i, secret: f.Tag.Get("secret") != "", inURL: f.Tag.Get("secret") == "url"}
		if err := child.setKind(f); err != nil {
			return err
		}
		k.keys = append(k.keys, child)
	}
	return nil
}

// holdsSecret tells whether a file with this value should be its owner's alone.
func (k *key) holdsSecret(value string) bool {
	return k.secret && value != "" && (!k.inURL || strings.Contains(value, "@"))
}

func (k *key) setKind(f reflect.StructField) error {
	switch t := f.Type; {
	case t == durationType:
		k.kind = kindDuration
	case t.Kind() == reflect.String:
		k.kind = kindString
	case t.Kind() == reflect.Bool:
		k.kind = kindBool
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64:
		k.kind = kindInt
		if f.Tag.Get("unit") == "bytes" {
			k.kind = kindSize
		}
	case t.Kind() == reflect.Float64:
		k.kind = kindFloat
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String:
		k.kind = kindStrings
	case t.Kind() == reflect.Struct:
		k.kind = kindSection
		return k.addFields(t)
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		k.kind = kindList
		return k.addFields(t.Elem())
	default:
		return fmt.Errorf("config: field %s (%s): type %s can't be configured", f.Name, k.path, t)
	}
	return nil
}

func (k *key) child(name string) *key {
	for _, c := range k.keys {
		if c.name == name {
			return c
		}
	}
	return nil
}

// walk calls f with every key below k, parents first. Keys inside the entries
// of a list have the list's path before theirs.
func (k *key) walk(f func(*key)) {
	for _, c := range k.keys {
		f(c)
		c.walk(f)
	}
}

// values calls f with the keys that hold one value or a list of strings: those
// that a variable or a flag can set.
func (k *key) values(f func(*key)) {
	for _, c := range k.keys {
		switch c.kind {
		case kindSection:
			c.values(f)
		case kindList:
		default:
			f(c)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// EnvName is the variable that sets the key of a path: EnvName("PERCH_",
// "auth.hmac_secret") is PERCH_AUTH_HMAC_SECRET.
func EnvName(prefix, path string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

// FlagName is how a key of a path is called on the command line: log.level is
// log-level.
func FlagName(path string) string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(path)
}

// Key describes one key for those who document or test the configuration.
type Key struct {
	// Path is the key's path; the keys of a list's entries have the list's path
	// before theirs, without an index.
	Path string
	// Env is the variable that sets the key; empty where only the file can.
	Env string
	// Section is set where the key holds other keys.
	Section bool
}

// Keys lists every key that v, a struct or a pointer to one, can be configured
// by, parents before their children.
func Keys(v any, prefix string) ([]Key, error) {
	t := reflect.TypeOf(v)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	root, err := schemaOf(t)
	if err != nil {
		return nil, err
	}
	env := map[*key]string{}
	root.values(func(k *key) { env[k] = EnvName(prefix, k.path) })
	var out []Key
	root.walk(func(k *key) {
		out = append(out, Key{
			Path: k.path, Env: env[k],
			Section: k.kind == kindSection || k.kind == kindList,
		})
	})
	return out, nil
}
