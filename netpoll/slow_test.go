package netpoll

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"perch/session"
)

// blocked is a peer whose socket takes no more, and what it has to read first.
func (r *rig) blocked() (p *peer, full []byte) {
	r.t.Helper()
	p = r.upgraded()
	_ = unix.SetsockoptInt(p.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
	frame := served(strings.Repeat("f", 3000))
	for range 1000 {
		if p.c.out != nil {
			return p, full
		}
		r.post(func() { p.sess().WriteFrame(frame) })
		full = append(full, frame...)
	}
	r.t.Fatal("the socket takes everything")
	return nil, nil
}

// drain reads until the end, as a peer that has woken up.
func (p *peer) drain() (got []byte) {
	for range 1000 {
		b := p.take()
		got = append(got, b...)
		if p.gone() || p.eof {
			break
		}
		p.r.post(p.c.writable)
	}
	return got
}

// While one pong waits for a blocked peer, its next pings need none.
func TestPongsToABlockedPeer(t *testing.T) {
	r := newRig(t, nil)
	p, _ := r.blocked()
	before := p.c.Pending()
	for range 1000 {
		r.post(func() { p.c.readFrames(masked(ws.OpPing, true, strings.Repeat("s", 125))) })
	}
	if got := p.c.Pending() - before; got != 2+125 {
		t.Errorf("%d bytes of pongs wait", got)
	}
}

// A peer that nobody knows yet may let little wait.
func TestStrangerBound(t *testing.T) {
	r := newRig(t, func(o *Options) { o.PendingBytes = 1 << 20 })
	p, _ := r.blocked()
	p.sess().Encoding = session.EncodingJSON
	peak := 0
	for n := 0; p.c.mode == modeWebSocket && n < 1000; n++ {
		r.post(func() { p.sess().Write([]byte(strings.Repeat("s", 1000))) })
		if p.c.mode == modeWebSocket {
			peak = max(peak, p.c.out.behind())
		}
	}
	if peak > strangerBytes || peak < strangerBytes-2000 {
		t.Errorf("the bound of %d was met at %d", strangerBytes, peak)
	}
}

func TestSlowConsumerBound(t *testing.T) {
	for name, write := range map[string]func(p *peer){
		"shared": func(p *peer) { p.sess().WriteFrame(served(strings.Repeat("s", 1000))) },
		"own":    func(p *peer) { p.sess().Write([]byte(strings.Repeat("s", 1000))) },
		"both": func(p *peer) {
			p.sess().Write([]byte("own"))
			p.sess().WriteFrame(served("shared"))
		},
	} {
		for _, encoding := range []session.Encoding{session.EncodingNone, session.EncodingJSON} {
			t.Run(fmt.Sprint(name, encoding), func(t *testing.T) {
				r := newRig(t, func(o *Options) {
					o.PendingBytes = 50_000
					o.Listeners[0].Endpoints[0].MessageSize = 1000
				})
				p, _ := r.blocked()
				p.sess().Encoding = encoding
				p.sess().State = session.StateConnected
				peak := 0
				for n := 0; p.c.mode == modeWebSocket && n < 10_000; n++ {
					r.post(func() { write(p) })
					if p.c.mode == modeWebSocket {
						peak = max(peak, p.c.out.behind())
					}
				}
				if peak > 50_000 || peak < 48_000 {
					t.Errorf("the bound of 50000 was met at %d", peak)
				}
				if n := p.sess().Pending(); n > 3100+10+2+len("slow consumer") {
					t.Errorf("%d bytes wait behind the close", n)
				}
				want, code := session.ReasonSlowConsumerPlain, 1008
				if encoding != session.EncodingNone {
					want, code = session.ReasonSlow, 3008
				}
				if got := r.handler.log[len(r.handler.log)-1]; got != fmt.Sprintf("closed:%v", want) {
					t.Errorf("%s", got)
				}
				if r.loop.stats.Slow.Load() != 1 {
					t.Errorf("%d slow counted", r.loop.stats.Slow.Load())
				}
				// Afterwards nothing is written any more.
				pending := p.c.Pending()
				r.post(func() {
					p.sess().Write([]byte("late"))
					p.c.WriteFrame(served("late"))
					p.c.WriteMessage([]byte("late"), true)
					p.c.CloseWith(session.ReasonForced, 3503, "late")
				})
				if p.c.Pending() != pending {
					t.Error("a write after the close is not a no-op")
				}
				// What was under way ends whole, then comes the close frame, then the end.
				got, rest := frames(t, p.drain())
				if len(rest) > 0 || !p.eof {
					t.Fatalf("%d bytes of a frame, then the end: %v", len(rest), p.eof)
				}
				if c, text := closeOf(got[len(got)-1]); c != code || text != want.Info().Text {
					t.Errorf("close %d %q, want %d", c, text, code)
				}
				for _, f := range got[:len(got)-1] {
					if f.Header.OpCode != ws.OpText || len(f.Payload) != 3000 {
						t.Errorf("a frame of %d bytes", len(f.Payload))
					}
				}
			})
		}
	}
}

// One turn may bring more than the bound to a peer that reads: it is slow only
// when it does not take it.
func TestBoundIsForTheSlow(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.PendingBytes = 3000
		o.Listeners[0].Endpoints[0].MessageSize = 1000
	})
	p := r.upgraded()
	r.post(func() {
		for range 20 {
			p.sess().Write([]byte(strings.Repeat("a", 1000)))
		}
	})
	if got, _ := frames(t, p.take()); len(got) != 20 || p.c.mode != modeWebSocket {
		t.Errorf("%d frames came, mode %d", len(got), p.c.mode)
	}
	// One that takes little of it is over the bound with that turn, although all
	// of the turn's frames stand in one buffer.
	q := r.upgraded()
	_ = unix.SetsockoptInt(q.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
	r.post(func() {
		for range 15 {
			q.sess().Write([]byte(strings.Repeat("a", 1000)))
		}
	})
	got, rest := frames(t, q.drain())
	if code, _ := closeOf(got[len(got)-1]); code != 1008 || len(rest) > 0 || len(got) > 12 {
		t.Errorf("%d frames, the last of code %d, %d bytes behind", len(got), code, len(rest))
	}
}

func TestFrameEnd(t *testing.T) {
	a, b, c := served("abc"), served(strings.Repeat("b", 200)), served(strings.Repeat("c", 70_000))
	all := stream(a, b, c)
	ends := []int{0, len(a), len(a) + len(b), len(all)}
	for off := range all {
		o := outbound{parts: [][]byte{all}, off: off}
		want := 0
		for _, e := range ends {
			if want = e; e >= off {
				break
			}
		}
		if got := o.frameEnd(); got != want {
			t.Fatalf("at %d: %d, want %d", off, got, want)
		}
	}
	o := outbound{parts: [][]byte{[]byte(switching)}, raw: true}
	for o.off = range len(switching) {
		if got := o.frameEnd(); got != len(switching) {
			t.Fatalf("at %d of what is not frames: %d", o.off, got)
		}
	}
}

// Whatever has been sent, what is left after shedding ends a frame.
func TestShed(t *testing.T) {
	for sent, total := 0, 1; sent < total; sent++ {
		r := newRig(t, nil)
		p := r.accept()
		c := p.c
		c.mode = modeWebSocket
		c.endpoint = r.server.only.endpoints["/echo"]
		var all []byte
		var ends []int // of the handshake's answer and of each frame
		c.writeRaw([]byte(switching))
		all = append(all, switching...)
		ends = append(ends, len(all)) // the answer goes whole or not at all
		for i := range 20 {
			if x := strings.Repeat("x", i*2); i%4 < 2 {
				c.WriteMessage([]byte(x), false)
				all = append(all, served(x)...)
			} else {
				c.WriteFrame(served(x))
				all = append(all, served(x)...)
			}
			ends = append(ends, len(all))
		}
		o := c.out
		o.seal()
		if o.bytes != len(all) {
			t.Fatalf("%d bytes, want %d", o.bytes, len(all))
		}
		total = len(all)
		o.advance(sent)
		if want := len(all) - sent; o.bytes != want {
			t.Fatalf("%d bytes left of %d, want %d", o.bytes, len(all), want)
		}
		left := bytes.Join(o.parts, nil)[o.off:]
		if !bytes.Equal(left, all[sent:]) {
			t.Fatalf("%d sent: other bytes are left", sent)
		}
		c.shed()
		if r.loop.stats.PendingBytes.Load() != int64(o.bytes) {
			t.Fatalf("%d sent: %d bytes, %d counted", sent, o.bytes, r.loop.stats.PendingBytes.Load())
		}
		left = append([]byte(nil), bytes.Join(o.parts, nil)[o.off:]...)
		if len(left) != o.bytes || !bytes.HasPrefix(all[sent:], left) {
			t.Fatalf("%d sent: %d bytes left, %d noted", sent, len(left), o.bytes)
		}
		// No more and no less is left than the rest of what is under way.
		if at, _ := slices.BinarySearch(ends, sent); sent+len(left) != ends[at] {
			t.Fatalf("%d sent: %d left, want %d", sent, len(left), ends[at]-sent)
		}
		r.end()
	}
}

// What is idle or gone holds nothing, and no buffer is counted twice.
func TestReleaseOut(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Listeners[0].Endpoints[0].MessageSize = 64 << 10 })
	p, _ := r.blocked()
	r.post(func() {
		for range 100 {
			p.sess().Write([]byte(strings.Repeat("x", 1000)))
		}
	})
	if n := int(r.loop.stats.PendingBytes.Load()); n != p.sess().Pending() || n < 100_000 {
		t.Errorf("%d bytes counted, %d wait", n, p.sess().Pending())
	}
	_ = r.events.Close(p.socket)
	r.idle()
	for _, o := range r.loop.spare {
		if o.own != nil || o.bytes != 0 || o.counted != 0 || o.off != 0 || o.blocked || o.watched || o.raw || o.listed {
			t.Errorf("a spare outbound is not empty: %+v", o)
		}
		for _, part := range o.parts[:cap(o.parts)] {
			if part != nil {
				t.Error("a spare outbound holds a frame")
			}
		}
	}
	// Many at once leave no more than the spare ones behind.
	all := make([]*peer, 300)
	for i := range all {
		all[i] = r.upgraded()
	}
	r.post(func() {
		for _, p := range all {
			p.sess().Write([]byte("x"))
		}
	})
	for _, p := range all {
		if len(p.take()) == 0 {
			t.Fatal("a frame is missing")
		}
	}
	if n := len(r.loop.spare); n > spareOutbounds {
		t.Errorf("%d outbounds kept", n)
	}
}
