package perch

import (
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"
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

// TestSettler gives the settler periods of half a second, as they come.
func TestSettler(t *testing.T) {
	const mib = 1 << 20
	type period struct {
		times int
		in    uint64 // allocated
		open  int
		look  bool // at the last of them
	}
	for _, c := range []struct {
		name    string
		live    uint64
		periods []period
	}{
		{"a wave is over after two quiet periods", mib, []period{
			{8, 4 * mib, 1000, false}, {1, 1000, 1000, false}, {1, 1000, 1000, true}, {20, 1000, 1000, false},
		}},
		{"what trickles in is looked after when nothing goes on", mib, []period{
			{11, 100 << 10, 500, true}, {40, 100 << 10, 500, false}, {1, 0, 500, false}, {1, 0, 500, true},
		}},
		{"little garbage is not worth it", 64 * mib, []period{{6, 600 << 10, 1000, false}, {20, 0, 1000, false}}},
		{"no rest between two", mib, []period{
			{6, 4 * mib, 0, false}, {2, 0, 0, true}, {1, 4 * mib, 0, false}, {1, 0, 0, false}, {1, 0, 0, false}, {1, 0, 0, true},
		}},
		{"a crowd that has left may be back", mib, []period{
			{6, 4 * mib, 5000, false}, {1, 4 * mib, 0, false}, {19, 0, 0, false}, {1, 0, 0, true},
		}},
		{"a crowd that is back", mib, []period{
			{6, 4 * mib, 5000, false}, {1, 4 * mib, 0, false}, {2, 0, 0, false}, {2, 4 * mib, 5000, false},
			{15, 0, 5000, false}, {1, 0, 5000, true},
		}},
		{"a few that have left are no crowd", mib, []period{
			{6, 4 * mib, 50_000, false}, {1, 4 * mib, 45_000, false}, {1, 0, 45_000, false}, {1, 0, 45_000, true},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Now()
			w := settler{wave: true, last: now}
			allocated := uint64(0)
			for i, p := range c.periods {
				for k := range p.times {
					now = now.Add(settleEvery)
					allocated += p.in
					look := w.step(now, allocated, c.live, p.open)
					if want := p.look && k == p.times-1; look != want {
						t.Fatalf("period %d of part %d: %t", k, i, look)
					}
					if look {
						w.done(now, allocated)
					}
				}
			}
		})
	}
}
