package perch

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The heap after a storm. A wave of connects or messages leaves the heap at up
// to twice what lives in it, and a server that then falls idle allocates
// nothing, so that no collection comes to shrink it. When a wave is over, two
// collections are made and the free pages go back to the kernel.
const (
	settleEvery = 500 * time.Millisecond
	// A wave allocates this much in a period and more; it is over after two
	// periods with less.
	settleWave = 512 << 10
	// What has come in slowly is looked after when nothing at all goes on: two
	// periods with less than this.
	settleStill = 64 << 10
	// No collection is worth its cost for less than this, and a sixteenth of the
	// live heap, allocated since the last one made here.
	settleLeast = 1 << 20
	settleRest  = 2 * time.Second
	// Who leaves in numbers, an eighth of all connections and settleCrowd at the
	// least in a period, is soon back: pages given to the kernel meanwhile would
	// cost the storm a fault each. What they leave behind is looked after later.
	settleCrowd  = 1000
	settleReturn = 10 * time.Second
)

// settler finds the moments at which the heap is looked after.
type settler struct {
	allocated  uint64    // in all, at the last step
	settled    uint64    // in all, when the heap was looked after last
	open       int       // connections at the last step
	wave       bool      // one has begun and not ended
	quiet      int       // periods since a wave's
	still      int       // periods in which nothing at all went on
	last, left time.Time // when the heap was looked after, and when a crowd left
}

// step takes what has been allocated in all, the live heap and the number of
// connections at the end of a period, and tells whether now is the moment.
func (w *settler) step(now time.Time, allocated, live uint64, open int) bool {
	in := allocated - w.allocated
	w.quiet, w.still = w.quiet+1, w.still+1
	if in >= settleWave {
		w.wave, w.quiet = true, 0
	}
	if in >= settleStill {
		w.still = 0
	}
	if w.open-open >= max(settleCrowd, w.open/8) {
		w.left = now
	}
	w.allocated, w.open = allocated, open
	over := w.wave && w.quiet >= 2 || w.still >= 2
	return over && allocated-w.settled >= settleLeast+live/16 &&
		now.Sub(w.last) >= settleRest && now.Sub(w.left) >= settleReturn
}

// done notes that the heap has been looked after.
func (w *settler) done(now time.Time, allocated uint64) {
	w.wave = false
	w.allocated, w.settled, w.last = allocated, allocated, now
}

// settle runs until ctx ends. open is the number of connections.
func settle(ctx context.Context, open func() int) {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	t := time.NewTicker(settleEvery)
	defer t.Stop()
	w := settler{wave: true, last: time.Now()} // the start of the process is a wave
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(sample)
		if !w.step(time.Now(), sample[0].Value.Uint64(), sample[1].Value.Uint64(), open()) {
			continue
		}
		release()
		metrics.Read(sample)
		w.done(time.Now(), sample[0].Value.Uint64())
	}
}

const (
	// releaseLeft is how much free memory the runtime may keep, besides a
	// 32nd of the live heap.
	releaseLeft = 256 << 10
	// releaseFill bounds what is allocated to get at it: the memory that comes
	// back for the moment, 0.2 ms a MiB. releaseLive is the live heap from which on
	// what the runtime overlooks weighs little.
	releaseFill = 256 << 20
	releaseLive = 128 << 20
	// The runtime hands out memory by the page and keeps up to 64 of them for
	// each P.
	releasePage  = 8 << 10
	releasePages = 64
)

// release gives the free pages of the heap back to the kernel.
//
// The runtime has at times marked a chunk of 4 MiB as searched while there are
// free pages in it that it did not come by, and gives nothing of it back until
// a page is freed in there: the background scavenger searches downwards from
// where it was last, and marks the chunk for all (runtime.scavengeIndex). So
// where much is left, those pages are taken and freed again, while the
// background scavenger has no reason to wake.
func release() {
	sample := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
	// What stands in a sync.Pool outlives the first collection.
	runtime.GC()
	debug.FreeOSMemory()
	metrics.Read(sample)
	free, released, live := sample[0].Value.Uint64(), sample[1].Value.Uint64(), sample[2].Value.Uint64()
	if free < releaseLeft+live/32 || live > releaseLive {
		return
	}
	// No collection may come while the heap is filled. It is not turned off for
	// that: a goal of above 1 GiB makes the runtime put its own tables on huge
	// pages, for good.
	n := min(free+released, releaseFill)
	percent := debug.SetGCPercent(100 + int(200*n/max(live, 1<<20)))
	fill(sample[:1], n)
	debug.FreeOSMemory()
	debug.SetGCPercent(percent)
}

// fill takes all free pages that are resident, and lets go of them. The lowest
// addresses are given out first, so released ones may go along: n bytes at the
// most.
func fill(free []metrics.Sample, n uint64) {
	type page [releasePage]byte
	// Each P may keep some pages to itself.
	kept := uint64(runtime.GOMAXPROCS(0)-1) * releasePages * releasePage
	taken := make([]*[releasePages]*page, 0, n/(releasePages*releasePage))
	for len(taken) < cap(taken) {
		metrics.Read(free)
		if free[0].Value.Uint64() <= kept {
			break
		}
		pages := new([releasePages]*page)
		for i := range pages {
			pages[i] = new(page)
		}
		taken = append(taken, pages)
	}
	runtime.KeepAlive(taken)
}
