package stats

import (
	"sync/atomic"
	"time"
)

// histogramBounds are the upper bounds of the buckets, in seconds.
var histogramBounds = [...]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Histogram counts durations. It is for what happens at the pace of requests. Its
// zero value is ready to use; it must not be copied. All methods are safe from
// any goroutine.
type Histogram struct {
	counts [len(histogramBounds) + 1]atomic.Uint64
	nanos  atomic.Uint64
}

// Observe counts one.
func (h *Histogram) Observe(d time.Duration) {
	i, s := 0, d.Seconds()
	for i < len(histogramBounds) && s > histogramBounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.nanos.Add(uint64(max(0, d)))
}

// Snapshot is the histogram so far.
func (h *Histogram) Snapshot() HistogramSnapshot {
	s := HistogramSnapshot{Buckets: make(map[float64]uint64, len(histogramBounds)), Sum: time.Duration(h.nanos.Load()).Seconds()}
	for i := range h.counts {
		s.Count += h.counts[i].Load()
		if i < len(histogramBounds) {
			s.Buckets[histogramBounds[i]] = s.Count
		}
	}
	return s
}

// HistogramSnapshot is a Histogram at one moment: how many were at most so many
// seconds, by bound, and all of them.
type HistogramSnapshot struct {
	Buckets map[float64]uint64
	Count   uint64
	Sum     float64 // seconds
}
