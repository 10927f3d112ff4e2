package bench

import (
	"testing"
	"time"
)

// TestTenths: what holds up one tenth of a second in ten, of any server, is in
// the p99 of the whole and not in that of a tenth; what comes in each is in both.
func TestTenths(t *testing.T) {
	for name, c := range map[string]struct {
		slow     func(tenth, n int) bool
		tail     float64
		wholeP99 time.Duration
	}{
		"never":            {func(int, int) bool { return false }, 1, time.Millisecond},
		"in one of ten":    {func(tenth, _ int) bool { return tenth%10 == 3 }, 1, 20 * time.Millisecond},
		"in each":          {func(_, n int) bool { return n%50 == 0 }, 20, 20 * time.Millisecond},
		"in most of them":  {func(tenth, n int) bool { return tenth%10 < 6 && n%50 == 0 }, 20, 20 * time.Millisecond},
		"in few, and rare": {func(tenth, n int) bool { return tenth%10 < 4 && n%50 == 0 }, 1, time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMeter()
			m.start(1)
			const each = 2 * tenthLeast
			for k := range 20 {
				from := 1 + int64(k)*tenthLasts
				for n := range each {
					d := int64(time.Millisecond)
					if c.slow(k, n) {
						d *= 20
					}
					m.observe(from, from+d)
				}
				m.tick(from+tenthLasts, 1)
			}
			share, err := m.result()
			if err != nil {
				t.Fatal(err)
			}
			var r Result
			if err := r.merge([]shareResult{share}); err != nil {
				t.Fatal(err)
			}
			if r.Tenths == nil || r.Tenths.Count != 20 {
				t.Fatalf("%+v", r.Tenths)
			}
			if got := tail(r); got < 0.98*c.tail || got > 1.02*c.tail {
				t.Errorf("p99/p50 of a tenth %g, want %g", got, c.tail)
			}
			if p50 := r.Tenths.P50; p50 < 990*time.Microsecond || p50 > 1010*time.Microsecond {
				t.Errorf("p50 of a tenth %s", p50)
			}
			if want := time.Duration(c.tail * float64(time.Millisecond)); r.Tenths.P99 < 98*want/100 || r.Tenths.P99 > 102*want/100 {
				t.Errorf("p99 of a tenth %s, want %s", r.Tenths.P99, want)
			}
			if p99, _ := r.Latency.at(99); p99 < 98*c.wholeP99/100 || p99 > 102*c.wholeP99/100 {
				t.Errorf("p99 of the whole %s, want %s", p99, c.wholeP99)
			}
		})
	}
}

// TestTenthsOfLittle: few latencies make no p99.
func TestTenthsOfLittle(t *testing.T) {
	m := newMeter()
	m.start(1)
	for range tenthLeast - 1 {
		m.observe(1, 1000)
	}
	m.tick(1+tenthLasts, 1)
	if m.tick(1+5*tenthLasts, 1); len(m.tenths.all) != 0 {
		t.Fatalf("%+v", m.tenths.all)
	}
	if tenthsOf(nil) != nil || tail(Result{}) != 0 {
		t.Error("of nothing")
	}
	// An even number has its median between the middle two.
	if got := tenthsOf([]tenth{{100, 300}, {200, 1000}}); *got != (Tenths{2, 150, 650, 4}) {
		t.Errorf("%+v", got)
	}
}
