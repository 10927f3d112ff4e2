package netpoll

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkDeflateFanout is the loop's and the pool's work for a publication of a
// kilobyte that goes to many sessions, each with a write of its own, together with
// the reading of it: with permessage-deflate and without, and to as many sessions
// each with a message of its own.
func BenchmarkDeflateFanout(b *testing.B) {
	text := ""
	for i := 0; len(text) < 1000; i++ {
		text += fmt.Sprintf(`{"id":%d,"name":"sensor-%d","value":%d.%d,"unit":"celsius"},`, i*7919, i, i*31%97, i*17%10)
	}
	frame := served(text)
	for _, n := range []int{10, 1000} {
		for _, tt := range []struct {
			name    string
			deflate bool
			write   func(*peer)
		}{
			{"plain", false, func(p *peer) { p.sess().WriteFrame(frame) }},
			{"deflated", true, func(p *peer) { p.sess().WriteFrame(frame) }},
			{"own plain", false, func(p *peer) { p.sess().Write([]byte(text)) }},
			{"own deflated", true, func(p *peer) { p.sess().Write([]byte(text)) }},
		} {
			b.Run(fmt.Sprintf("%s/%d", tt.name, n), func(b *testing.B) {
				d := newDeflateRig(b, nil)
				peers := make([]*peer, n)
				for i := range peers {
					if tt.deflate {
						peers[i] = d.deflating()
					} else {
						peers[i] = d.upgraded()
					}
				}
				before := d.loop.stats.BytesOut.Load()
				b.ReportAllocs()
				rounds := 0
				for b.Loop() {
					d.post(func() {
						for _, p := range peers {
							tt.write(p)
						}
					})
					d.settle()
					for _, p := range peers {
						p.discard()
					}
					d.loop.press.forget(len(d.loop.press.recent)) // each round is a publication of its own
					rounds++
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rounds*n), "ns/delivery")
				b.ReportMetric(float64(d.loop.stats.BytesOut.Load()-before)/float64(rounds*n), "B/delivery")
			})
		}
	}
}

// BenchmarkInflate is a message of a kilobyte from the frame to the handler, the pool
// on the same goroutine.
func BenchmarkInflate(b *testing.B) {
	d := newDeflateRig(b, nil)
	d.handler.quiet = true
	p := d.deflating()
	frame := packedText(words(1000, 1))
	b.ReportAllocs()
	for b.Loop() {
		p.feed(frame)
		d.settle()
	}
}

// discard reads what has come, for nobody.
func (p *peer) discard() {
	for {
		if n, err := unix.Read(p.fd, p.r.buf[:]); n < len(p.r.buf) || err != nil {
			return
		}
	}
}
