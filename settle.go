package perch

import (
	"context"
	"os"
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
	// A quiet server allocates less than this in a period.
	settleQuiet = 512 << 10
	// A wave is what has allocated this much, and an eighth of the live heap,
	// since the last collection made here.
	settleWave = 4 << 20
	settleRest = 2 * time.Second
	// smallHeap may be garbage before a collection begins, however little lives:
	// a storm on a small server would else be spent on collections.
	smallHeap = 32 << 20
)

// relax sets the collector's pace for a heap of live bytes: a small one may
// grow by smallHeap, a larger one doubles as by default. What GOGC says in the
// environment stands. It returns the pace before.
func relax(live uint64) int {
	percent := 100
	if live < smallHeap {
		percent = int(min(smallHeap*100/max(live, 4<<20), 800))
	}
	return debug.SetGCPercent(percent)
}

// settle runs until ctx ends.
func settle(ctx context.Context) {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	t := time.NewTicker(settleEvery)
	defer t.Stop()
	var before, settled uint64
	last := time.Now()
	if os.Getenv("GOGC") == "" {
		metrics.Read(sample)
		defer debug.SetGCPercent(relax(sample[1].Value.Uint64()))
	}
	for quiet := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(sample)
		now, live := sample[0].Value.Uint64(), sample[1].Value.Uint64()
		if now-before < settleQuiet {
			quiet++
		} else {
			quiet = 0
		}
		before = now
		if quiet < 2 || now-settled < settleWave+live/8 || time.Since(last) < settleRest {
			continue
		}
		// What stands in a sync.Pool outlives the first collection.
		runtime.GC()
		debug.FreeOSMemory()
		metrics.Read(sample)
		before, settled = sample[0].Value.Uint64(), sample[0].Value.Uint64()
		if os.Getenv("GOGC") == "" {
			relax(sample[1].Value.Uint64())
		}
		last = time.Now()
	}
}
