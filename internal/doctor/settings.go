package doctor

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// setting is a line of a sysctl.d file.
type setting struct {
	line    string  // key and value as they stand there
	numbers []int64 // nil: the value is something else
}

// parseSettings reads a sysctl.d file: its keys, the last line of each. Keys
// may be written with slashes, and with a "-" in front that ignores errors.
func parseSettings(text string) map[string]setting {
	out := make(map[string]setting)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "-"), "=")
		key = strings.ReplaceAll(strings.TrimSpace(key), "/", ".")
		if !ok || key == "" {
			continue
		}
		out[key] = setting{line: line, numbers: numbers(value)}
	}
	return out
}

// numbers are the words of a value; nil where one is no whole number.
func numbers(value string) []int64 {
	var out []int64
	for w := range strings.FieldsSeq(value) {
		v, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			return nil
		}
		out = append(out, v)
	}
	return out
}

func sortedKeys(m map[string]setting) []string { return slices.Sorted(maps.Keys(m)) }
