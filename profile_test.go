package perch

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// heapSite is where memory was allocated: a stack, innermost frame first.
type heapSite struct{ stack [32]uintptr }

// heapUse is what a site has allocated and not freed, and how often it has
// allocated at all.
type heapUse struct{ bytes, objects int64 }

// profileAll makes the heap profile exact until the test ends: what has been
// allocated before stays sampled, so it comes before the server.
func profileAll(t *testing.T) {
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	t.Cleanup(func() { runtime.MemProfileRate = rate })
}

// heapProfile is what lives on the heap, by site; what it allocates itself is
// left out.
func heapProfile() map[heapSite]heapUse {
	collect()
	records := make([]runtime.MemProfileRecord, 1<<12)
	for {
		n, ok := runtime.MemProfile(records, true)
		if ok {
			records = records[:n]
			break
		}
		records = make([]runtime.MemProfileRecord, 2*n)
	}
	out := make(map[heapSite]heapUse, len(records))
	for _, r := range records {
		s := heapSite{r.Stack0}
		u := out[s]
		out[s] = heapUse{u.bytes + r.InUseBytes(), u.objects + r.AllocObjects}
	}
	maps.DeleteFunc(out, func(s heapSite, _ heapUse) bool {
		return slices.Contains(s.functions(), "perch.heapProfile")
	})
	return out
}

// functions are those of the stack, save the runtime's.
func (s heapSite) functions() []string {
	n := slices.Index(s.stack[:], 0)
	if n < 0 {
		n = len(s.stack)
	}
	var out []string
	for frames := runtime.CallersFrames(s.stack[:n]); ; {
		f, more := frames.Next()
		if f.Function != "" && !strings.HasPrefix(f.Function, "runtime.") && !strings.HasPrefix(f.Function, "internal/runtime/") {
			out = append(out, f.Function)
		}
		if !more {
			return out
		}
	}
}

func (s heapSite) String() string {
	f := s.functions()
	return strings.Join(f[:min(len(f), 6)], " < ")
}

// heapSites logs where f allocates most often.
func heapSites(t *testing.T, f func()) {
	t.Helper()
	profileAll(t)
	f()
	before := heapProfile()
	f()
	var lines []string
	after := heapProfile()
	sites := slices.Collect(maps.Keys(after))
	grown := func(s heapSite) int64 { return after[s].objects - before[s].objects }
	slices.SortFunc(sites, func(a, b heapSite) int { return cmp.Compare(grown(b), grown(a)) })
	for _, s := range sites[:min(len(sites), 8)] {
		lines = append(lines, fmt.Sprintf("%8d %s", grown(s), s))
	}
	t.Logf("allocations by site:\n%s", strings.Join(lines, "\n"))
}
