package stats

import (
	"math"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, 30 * time.Millisecond, 10 * time.Second, time.Minute} {
		h.Observe(d)
	}
	s := h.Snapshot()
	if s.Count != 6 || math.Abs(s.Sum-70.032) > 1e-6 || len(s.Buckets) != len(histogramBounds) {
		t.Errorf("%+v", s)
	}
	for bound, want := range map[float64]uint64{.001: 2, .0025: 3, .025: 3, .05: 4, 5: 4, 10: 5} {
		if s.Buckets[bound] != want {
			t.Errorf("at most %v s: %d, want %d", bound, s.Buckets[bound], want)
		}
	}
}
