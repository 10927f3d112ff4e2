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
)

// settle runs until ctx ends.
func settle(ctx context.Context) {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	t := time.NewTicker(settleEvery)
	defer t.Stop()
	var before, settled uint64
	last := time.Now()
	wave := true // the start of the process is one
	for quiet, still := 0, 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(sample)
		now, live := sample[0].Value.Uint64(), sample[1].Value.Uint64()
		quiet, still = quiet+1, still+1
		if now-before >= settleWave {
			wave, quiet = true, 0
		}
		if now-before >= settleStill {
			still = 0
		}
		before = now
		over := wave && quiet >= 2 || still >= 2
		if !over || now-settled < settleLeast+live/16 || time.Since(last) < settleRest {
			continue
		}
		wave = false
		// What stands in a sync.Pool outlives the first collection.
		runtime.GC()
		debug.FreeOSMemory()
		metrics.Read(sample)
		before, settled = sample[0].Value.Uint64(), sample[0].Value.Uint64()
		last = time.Now()
	}
}
