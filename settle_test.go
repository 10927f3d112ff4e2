package perch

import (
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
)

// TestRelease wants the free memory of the heap with the kernel after each of
// many bursts. Without the filling of release about one in fifteen leaves half
// a MiB to several behind.
func TestRelease(t *testing.T) {
	sample := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	live := make([][]byte, 90000)
	for i := range live {
		live[i] = make([]byte, 32+rand.N(100))
	}
	for round := range 40 {
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				var held [512][]byte
				for i := range 40000 {
					held[i%len(held)] = make([]byte, 1024+rand.N(8192))
				}
			})
		}
		wg.Wait()
		release()
		metrics.Read(sample)
		free, live, released := sample[0].Value.Uint64(), sample[1].Value.Uint64(), sample[2].Value.Uint64()
		if released > releaseFill {
			continue // a starved collector let the heap grow beyond what is filled
		}
		if most := releaseLeft + live/32; free > most {
			t.Errorf("burst %d: %d KiB free and not released, at most %d allowed", round, free>>10, most>>10)
		}
	}
	runtime.KeepAlive(live)
}
