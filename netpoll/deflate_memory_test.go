package netpoll

import (
	"runtime"
	"testing"

	"github.com/gobwas/ws"
)

// heap is what lives. Twice collected: what stands in a sync.Pool outlives the first.
func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// A session with permessage-deflate that is idle again costs what one without it
// costs.
func TestDeflateIdle(t *testing.T) {
	if raceEnabled {
		return // its heap is another
	}
	const n = 2000
	var cost [2]int
	for i, deflate := range []bool{false, true} {
		d := newDeflateRig(t, func(o *Options) { o.Connections, o.HardConnections = 2*n, 2*n })
		d.handler.quiet = true
		d.echoes()
		one := d.deflating()
		exchange := func(p *peer, frame []byte) {
			p.feed(frame)
			d.settle()
			if len(p.take()) == 0 {
				t.Fatal("no answer")
			}
		}
		frame, packed := masked(ws.OpText, true, message(1)), packedText(message(1))
		exchange(one, packed) // the tools
		before := heap()
		for range n {
			if deflate {
				exchange(d.deflating(), packed)
			} else {
				exchange(d.upgraded(), frame)
			}
		}
		d.loop.press.tick(d.loop.present() + recentTicks)
		cost[i] = (heap() - before) / n
		for p := range d.peers {
			p.end()
		}
	}
	t.Logf("%d bytes without, %d with it", cost[0], cost[1])
	if cost[1] > cost[0]+2 {
		t.Errorf("%d bytes without, %d with it", cost[0], cost[1])
	}
}

// What docs/memory.md says of a worker's tools.
func TestToolsMemory(t *testing.T) {
	if raceEnabled {
		return
	}
	const most, mostNarrow = 1_500_000, 1_100_000
	before := heap()
	tl := &tools{}
	text := []byte(words(60_000, 1))
	in := append(tl.pack(text, fullWindow), tail...)
	if _, bad := tl.unpack(in, len(text)); bad != 0 {
		t.Fatal(bad)
	}
	all := heap() - before
	for bits := byte(8); bits < fullWindow; bits++ {
		tl.pack(text, bits)
	}
	narrow := (heap() - before - all) / 7
	runtime.KeepAlive(tl)
	t.Logf("%d bytes, %d for each narrow window", all, narrow)
	if all > most || narrow > mostNarrow {
		t.Errorf("%d bytes, more than %d; %d for each narrow window, more than %d", all, most, narrow, mostNarrow)
	}
}
