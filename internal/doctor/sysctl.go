package doctor

import (
	"fmt"
	"strconv"
	"strings"
)

// sysctl is a key with the values that the load needs.
type sysctl struct {
	key  string
	have []int64 // nil: the system does not show it
	want []int64
	why  string
	// wider: the first number is a lower end, so that less is more.
	wider bool
}

func (s sysctl) line() string { return s.key + " = " + join(s.want) }

func join(v []int64) string {
	words := make([]string, len(v))
	for i, n := range v {
		words[i] = strconv.FormatInt(n, 10)
	}
	return strings.Join(words, " ")
}

// above is s with what is more than it needs, from what somebody has set.
func (s sysctl) above(set []int64) sysctl {
	out := s
	out.want = append([]int64(nil), s.want...)
	for i := range min(len(set), len(out.want)) {
		if s.wider && i == 0 {
			out.want[i] = min(out.want[i], set[i])
		} else {
			out.want[i] = max(out.want[i], set[i])
		}
	}
	return out
}

// satisfied tells whether what somebody has set is enough.
func (s sysctl) satisfied(set []int64) bool {
	return len(set) == len(s.want) && join(s.above(set).want) == join(set)
}

// need begins a finding about a key, and notes for Write what it has to be.
func (e *exam) need(key, why string, want ...int64) Finding {
	have, err := e.sysctl(key, len(want))
	if err != nil {
		have = nil
	}
	e.note(sysctl{key: key, have: have, want: want, why: why})
	return Finding{
		Name: key, Want: ">= " + join(want), Why: why,
		Set: fmt.Sprintf("sysctl -w %s=%s", key, quoteMany(want)),
	}
}

func (e *exam) note(s sysctl) { e.report.sysctls = append(e.report.sysctls, s) }

// quoteMany is a value for a shell.
func quoteMany(v []int64) string {
	if len(v) == 1 {
		return join(v)
	}
	return `"` + join(v) + `"`
}
