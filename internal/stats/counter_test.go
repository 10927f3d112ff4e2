package stats

import (
	"maps"
	"sync"
	"testing"
	"unsafe"
)

func TestCountersFromManyGoroutines(t *testing.T) {
	const workers, rounds = 8, 1000
	var (
		c  Counter
		g  Gauge
		v  Vec[string]
		wg sync.WaitGroup
	)
	for i := range workers {
		wg.Go(func() {
			label := []string{"a", "b"}[i%2]
			for range rounds {
				c.Inc()
				c.Add(2)
				g.Add(3)
				g.Add(-2)
				v.Inc(label)
				_ = v.Map()
			}
		})
	}
	wg.Wait()
	if got := c.Load(); got != 3*workers*rounds {
		t.Errorf("counter = %d, want %d", got, 3*workers*rounds)
	}
	if got := g.Load(); got != workers*rounds {
		t.Errorf("gauge = %d, want %d", got, workers*rounds)
	}
	want := map[string]uint64{"a": workers / 2 * rounds, "b": workers / 2 * rounds}
	if got := v.Map(); !maps.Equal(got, want) {
		t.Errorf("vec = %v, want %v", got, want)
	}
	if got := v.Load("a"); got != want["a"] {
		t.Errorf("vec a = %d, want %d", got, want["a"])
	}
	if got := v.Load("none"); got != 0 {
		t.Errorf("a label nobody counted = %d, want 0", got)
	}
	g.Set(-5)
	if got := g.Load(); got != -5 {
		t.Errorf("gauge = %d, want -5", got)
	}
}

func TestVecMapIsACopy(t *testing.T) {
	var v Vec[string]
	v.Inc("a")
	m := v.Map()
	m["a"], m["b"] = 100, 100
	if v.Load("a") != 1 || v.Load("b") != 0 {
		t.Errorf("writing to the map changed the counts: %v", v.Map())
	}
}

// Counters of two loops must not share a cache line, nor the pair of lines that
// is fetched with it.
func TestPadKeepsLoopsApart(t *testing.T) {
	type loop struct {
		_ Pad
		n Counter
		_ Pad
	}
	var loops [2]loop
	gap := uintptr(unsafe.Pointer(&loops[1].n)) - uintptr(unsafe.Pointer(&loops[0].n))
	if gap < 256 {
		t.Errorf("counters of neighbours are %d bytes apart, want 256 at least", gap)
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	var c Counter
	var v Vec[string]
	v.Inc("a")
	if n := testing.AllocsPerRun(100, func() { c.Inc() }); n != 0 {
		t.Errorf("Counter.Inc allocates %v times", n)
	}
	// The label becomes an interface value.
	if n := testing.AllocsPerRun(100, func() { v.Inc("a") }); n > 1 {
		t.Errorf("Vec.Inc allocates %v times, want 1 at most", n)
	}
}

func BenchmarkCounter(b *testing.B) {
	var c Counter
	b.ReportAllocs()
	for b.Loop() {
		c.Inc()
	}
}

func BenchmarkVec(b *testing.B) {
	var v Vec[string]
	b.ReportAllocs()
	for b.Loop() {
		v.Inc("publish")
	}
}
