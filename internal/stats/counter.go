package stats

import (
	"sync"
	"sync/atomic"
)

// Pad keeps what stands before it and what stands after it on different cache
// lines. Counters that one loop writes stand together between two Pads, so that
// loops do not take each other's lines away. It is two lines wide because
// processors of today fetch lines in pairs.
type Pad [128]byte

// Counter is a number that only grows. Its zero value is ready to use; it must
// not be copied. All methods are safe from any goroutine.
//
// An owner's separate load and store would save nothing over the add: Go's
// atomic store is a locked exchange on amd64 and costs the same (2.1 ns either
// way). What costs is a line shared between loops: see Pad.
type Counter struct{ n atomic.Uint64 }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Load is the count so far.
func (c *Counter) Load() uint64 { return c.n.Load() }

// Gauge is a number that goes up and down. Its zero value is ready to use; it
// must not be copied. All methods are safe from any goroutine.
type Gauge struct{ n atomic.Int64 }

// Add adds n, which may be negative, and returns the new value.
func (g *Gauge) Add(n int64) int64 { return g.n.Add(n) }

// Set puts n in the place of the value.
func (g *Gauge) Set(n int64) { g.n.Store(n) }

// Load is the value now.
func (g *Gauge) Load() int64 { return g.n.Load() }

// Vec counts by a label that is known only at run time. It is for what happens
// at the pace of requests, not of frames: each Inc looks the label up. Labels
// stay for good, so they must come from a small fixed set and never from a
// peer. The zero value is ready to use. All methods are safe from any
// goroutine.
type Vec[L comparable] struct{ counters sync.Map }

// Inc adds one to the count of label.
func (v *Vec[L]) Inc(label L) {
	c, ok := v.counters.Load(label)
	if !ok {
		c, _ = v.counters.LoadOrStore(label, new(Counter))
	}
	c.(*Counter).Inc()
}

// Load is the count of label so far.
func (v *Vec[L]) Load(label L) uint64 {
	if c, ok := v.counters.Load(label); ok {
		return c.(*Counter).Load()
	}
	return 0
}

// Map is a copy of all counts.
func (v *Vec[L]) Map() map[L]uint64 {
	m := make(map[L]uint64)
	v.counters.Range(func(label, c any) bool {
		m[label.(L)] = c.(*Counter).Load()
		return true
	})
	return m
}
