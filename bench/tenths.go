package bench

import (
	"math"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	tenthLasts = int64(100 * time.Millisecond)
	// tenthLeast is how many latencies make a p99.
	tenthLeast = 200
)

// Tenths are the latencies of a tenth of a second as most of them are, where
// enough was answered in each. What comes a few times in a second and stays
// shorter than a tenth, such as a processor that the hypervisor takes away, is
// in Latency and not in these; what a server does at each turn is in both.
type Tenths struct {
	Count int `json:"count"` // tenths
	// P50 and P99 are the medians of the tenths', and so is Tail, of P99 over P50.
	P50  time.Duration `json:"p50_ns"`
	P99  time.Duration `json:"p99_ns"`
	Tail float64       `json:"tail"`
}

// tenth is what one of them brought to one generator, in nanoseconds.
type tenth struct {
	P50 int64 `json:"p50"`
	P99 int64 `json:"p99"`
}

// tenths keeps the latencies of one tenth of a second, and what was of those
// before.
type tenths struct {
	current *hdrhistogram.Histogram
	next    int64 // when the current one ends
	all     []tenth
}

func (s *tenths) start(t int64) {
	*s = tenths{current: newHistogram(digitsWhole), next: t + tenthLasts}
}

// tick closes the tenth that is over. One that is closed late is a longer one.
func (s *tenths) tick(t int64) {
	if t < s.next {
		return
	}
	if h := s.current; h.TotalCount() >= tenthLeast {
		s.all = append(s.all, tenth{h.ValueAtPercentile(50), h.ValueAtPercentile(99)})
	}
	s.current.Reset()
	s.next = t + tenthLasts
}

// tenthsOf is nil of none.
func tenthsOf(all []tenth) *Tenths {
	if len(all) == 0 {
		return nil
	}
	median := func(of func(tenth) float64) float64 {
		values := make([]float64, len(all))
		for i, t := range all {
			values[i] = of(t)
		}
		slices.Sort(values)
		return quantile(values, 0.5)
	}
	return &Tenths{Count: len(all),
		P50:  time.Duration(math.Round(median(func(t tenth) float64 { return float64(t.P50) }))),
		P99:  time.Duration(math.Round(median(func(t tenth) float64 { return float64(t.P99) }))),
		Tail: median(func(t tenth) float64 { return float64(t.P99) / float64(t.P50) })}
}
