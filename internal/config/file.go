package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fileReader turns a YAML document into a map of checked values. The library's
// own decoding into a map would lose lines and duplicates, and stop early.
type fileReader struct {
	name    string
	root    *key
	errs    []error
	secrets bool
}

func (r *fileReader) fail(line int, path, problem string) {
	r.errs = append(r.errs, &Error{Source: r.name + ":" + strconv.Itoa(line), Key: path, Problem: problem})
}

// read returns the values of data, keyed as koanf wants them.
func (r *fileReader) read(data []byte) map[string]any {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			r.errs = append(r.errs, &Error{Source: r.name, Problem: syntaxProblem(err)})
		}
		return nil
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case err == nil:
		r.fail(second.Line, "", "a second document: keep everything in one")
	case !errors.Is(err, io.EOF):
		r.errs = append(r.errs, &Error{Source: r.name, Problem: syntaxProblem(err)})
	}
	if len(doc.Content) == 0 {
		return nil
	}
	return r.section(doc.Content[0], r.root, "")
}

// syntaxProblem takes the library's prefix off: the file's name says it all.
func syntaxProblem(err error) string {
	return "not YAML: " + strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", " "), "yaml: ")
}

// section reads a mapping. A section without anything under it sets nothing,
// so that every key in it can be commented out.
func (r *fileReader) section(n *yaml.Node, k *key, path string) map[string]any {
	n = resolve(n)
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n.Line, path, "must be a section of keys, such as "+k.keys[0].name+": …")
		return nil
	}
	out := map[string]any{}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		nameNode, value := n.Content[i], n.Content[i+1]
		name := nameNode.Value
		if nameNode.Kind != yaml.ScalarNode {
			r.fail(nameNode.Line, path, "a key must be a plain word")
			continue
		}
		keyPath := join(path, printable(name))
		if line, ok := lines[name]; ok {
			r.fail(nameNode.Line, keyPath, fmt.Sprintf("given twice (first in line %d)", line))
			continue
		}
		lines[name] = nameNode.Line
		child := k.child(name)
		if child == nil {
			r.fail(nameNode.Line, keyPath, unknownKey(r.root, k, name))
			continue
		}
		if v, ok := r.value(value, child, keyPath); ok {
			out[name] = v
		}
	}
	return out
}

// value reads what stands behind a key; ok is false where nothing is set.
func (r *fileReader) value(n *yaml.Node, k *key, path string) (v any, ok bool) {
	n = resolve(n)
	switch k.kind {
	case kindSection:
		m := r.section(n, k, path)
		return m, m != nil
	case kindList, kindStrings:
		return r.list(n, k, path)
	}
	if n.Kind != yaml.ScalarNode {
		r.fail(n.Line, path, k.mustBe("").Error())
		return nil, false
	}
	if isNull(n) {
		r.fail(n.Line, path, "has no value: it must be "+wants[k.kind]+`, or left out`)
		return nil, false
	}
	v, err := scalar(n, k)
	if err != nil {
		r.fail(n.Line, path, err.Error())
		return nil, false
	}
	r.secrets = r.secrets || k.holdsSecret(n.Value)
	return v, true
}

func (r *fileReader) list(n *yaml.Node, k *key, path string) (any, bool) {
	if isNull(n) {
		return nil, false
	}
	if n.Kind != yaml.SequenceNode {
		problem := k.mustBe("").Error() + ", each behind a dash"
		r.fail(n.Line, path, problem)
		return nil, false
	}
	out := make([]any, 0, len(n.Content))
	for i, item := range n.Content {
		itemPath := path + "[" + strconv.Itoa(i) + "]"
		item = resolve(item)
		switch {
		case k.kind == kindList:
			if isNull(item) {
				r.fail(item.Line, itemPath, "is empty")
				continue
			}
			if m := r.section(item, k, itemPath); m != nil {
				out = append(out, m)
			}
		case item.Kind != yaml.ScalarNode || item.ShortTag() != "!!str":
			r.fail(item.Line, itemPath, "must be text"+quoteHint(item))
		default:
			r.secrets = r.secrets || k.holdsSecret(item.Value)
			out = append(out, item.Value)
		}
	}
	return out, true
}

// scalar reads one value. YAML's own type has to fit: "yes" in quotes is a
// text, 5 without them is none.
func scalar(n *yaml.Node, k *key) (any, error) {
	tag := n.ShortTag()
	switch k.kind {
	case kindString:
		if tag != "!!str" {
			return nil, errors.New("must be text" + quoteHint(n))
		}
	case kindBool:
		if tag != "!!bool" {
			return nil, k.mustBe(n.Value)
		}
		var v bool
		if err := n.Decode(&v); err != nil {
			return nil, k.mustBe(n.Value)
		}
		return v, nil
	case kindInt, kindSize:
		if tag == "!!int" {
			var v int64
			if err := n.Decode(&v); err != nil {
				return nil, fmt.Errorf("%s is too large", n.Value)
			}
			return k.integer(v)
		}
		if k.kind == kindInt || tag != "!!str" {
			return nil, k.mustBe(n.Value)
		}
	case kindFloat:
		if tag != "!!float" && tag != "!!int" {
			return nil, k.mustBe(n.Value)
		}
	}
	return k.parse(n.Value)
}

// printable keeps an error on its one line whatever a key is called.
func printable(name string) string {
	if strings.ContainsFunc(name, func(c rune) bool { return !strconv.IsPrint(c) }) {
		return strconv.Quote(name)
	}
	return name
}

func quoteHint(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && !isNull(n) {
		return ": put it in quotes"
	}
	return ""
}

// resolve follows an alias to what it names. Endless ones end where the schema
// does: each step of the walk goes one key deeper.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}
