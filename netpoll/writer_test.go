package netpoll

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"perch/session"
)

// served is a text frame of the server's.
func served(payload string) []byte { return ws.MustCompileFrame(ws.NewTextFrame([]byte(payload))) }

// writes is how many system calls f's writing costs.
func (r *rig) writes(f func()) uint64 {
	before := r.loop.stats.Writes.Load()
	f()
	return r.loop.stats.Writes.Load() - before
}

// post runs f on the loop, in a turn of its own.
func (r *rig) post(f func()) {
	r.loop.Post(0, 0, func(*session.Session) { f() })
	r.turn()
}

func TestTurnLeavesInOneWrite(t *testing.T) {
	r := newRig(t, nil)
	p, q := r.upgraded(), r.upgraded()
	big := strings.Repeat("b", joinBytes)
	for _, tt := range []struct {
		name   string
		do     func()
		want   []byte
		writes uint64
	}{
		{"nothing", func() {}, nil, 0},
		{"one of its own", func() { p.sess().Write([]byte("a")) }, served("a"), 1},
		{"one shared", func() { p.sess().WriteFrame(served("a")) }, served("a"), 1},
		{"three of its own", func() {
			for _, x := range []string{"a", "", "c"} {
				p.sess().Write([]byte(x))
			}
		}, stream(served("a"), served(""), served("c")), 1},
		{"shared and own in turns", func() {
			for i := range 20 {
				p.sess().Write(fmt.Append(nil, "own", i))
				p.sess().WriteFrame(served(fmt.Sprint("shared", i)))
				if i%3 == 0 {
					p.sess().WriteFrame(nil) // nothing at all is in order too
				}
			}
		}, func() (b []byte) {
			for i := range 20 {
				b = append(append(b, served(fmt.Sprint("own", i))...), served(fmt.Sprint("shared", i))...)
			}
			return b
		}(), 1},
		{"with a pong in between", func() {
			p.sess().WriteFrame(served("a"))
			p.c.readFrames(masked(ws.OpPing, true, "p"))
			p.sess().Write([]byte("b"))
		}, stream(served("a"), ws.MustCompileFrame(ws.NewPongFrame([]byte("p"))), served("b")), 1},
		{"larger than the join buffer", func() { p.sess().Write([]byte("a")); p.sess().Write([]byte(big)) },
			stream(served("a"), served(big)), 1}, // adjacent in one buffer
		{"larger than the join buffer, shared", func() { p.sess().Write([]byte("a")); p.sess().WriteFrame(served(big)) },
			stream(served("a"), served(big)), 2},
		{"two peers", func() { p.sess().Write([]byte("a")); q.sess().Write([]byte("b")); p.sess().Write([]byte("c")) },
			stream(served("a"), served("c")), 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if n := r.writes(func() { r.post(tt.do) }); n != tt.writes {
				t.Errorf("%d writes, want %d", n, tt.writes)
			}
			if got := p.take(); !bytes.Equal(got, tt.want) {
				t.Errorf("the peer read %.100q, want %.100q", got, tt.want)
			}
			r.held(p.c)
			r.idle()
			q.take()
		})
	}
}

func TestCloseLeavesWithTheTurn(t *testing.T) {
	r := newRig(t, nil)
	p := r.upgraded()
	n := r.writes(func() {
		r.post(func() {
			p.sess().Write([]byte("bye"))
			p.sess().Close(session.ReasonForced)
		})
	})
	got, _ := frames(t, p.take())
	if n != 1 || len(got) != 2 || !p.eof {
		t.Fatalf("%d writes, %v, then the end: %v", n, got, p.eof)
	}
	if code, text := closeOf(got[1]); code != 3503 || text != "force disconnect" {
		t.Errorf("close %d %q", code, text)
	}
}

// The frames of one turn are told apart from the answer to the handshake only
// by the order in which they leave: all are in one write.
func TestHandshakeAndFirstFrames(t *testing.T) {
	r := newRig(t, nil)
	r.handler.opened = func(s *session.Session) { s.Write([]byte("hi")) }
	r.handler.message = func(s *session.Session, data []byte, _ bool) { s.Write(data) }
	p := r.accept()
	n := r.writes(func() { p.feed(append([]byte(upgradeHead), hello...)) })
	want := switching + string(served("hi")) + string(served("hello"))
	if got := string(p.take()); got != want || n != 1 {
		t.Errorf("%d writes, the peer read %q, want %q", n, got, want)
	}
}

// A write may take any part of what is there. A pipe with k bytes of room takes
// just k of 4096 + k, so every cut can be had.
func TestPartialWrites(t *testing.T) {
	const page = 4096
	var head []byte // small frames, shared and own in turns, then a large one
	for i := range 12 {
		head = append(head, served(strings.Repeat("x", i*i))...)
	}
	for room := 1; room <= len(head)+20; room++ {
		r := newRig(t, nil)
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, page); err != nil {
			t.Fatal(err)
		}
		p := r.acceptOn(fds[1], fds[0])
		p.upgrade()
		fill := make([]byte, page-room)
		if n, err := unix.Write(fds[1], fill); n != len(fill) || err != nil {
			t.Fatal(n, err)
		}
		size := page + room - len(head)
		last := strings.Repeat("l", size-4)
		want := append(bytes.Clone(head), served(last)...)
		r.post(func() {
			for i := range 12 {
				if x := strings.Repeat("x", i*i); i%3 == 0 {
					p.sess().WriteFrame(served(x))
				} else {
					p.sess().Write([]byte(x))
				}
			}
			p.sess().Write([]byte(last))
		})
		if p.c.out == nil || !p.c.out.blocked {
			t.Fatalf("%d bytes of room: not blocked", room)
		}
		got := p.take()[len(fill):]
		if len(got) != room {
			t.Errorf("%d bytes of room took %d", room, len(got))
		}
		if n := p.sess().Pending(); n != len(want)-len(got) || int(r.loop.stats.PendingBytes.Load()) != n {
			t.Errorf("%d of %d sent: %d pending, %d counted", len(got), len(want), n, r.loop.stats.PendingBytes.Load())
		}
		if room%50 == 0 { // more comes while it is blocked
			more := served("more")
			r.post(func() { p.sess().WriteFrame(more) })
			want = append(want, more...)
			if n := p.sess().Pending(); n != len(want)-len(got) || int(r.loop.stats.PendingBytes.Load()) != n {
				t.Errorf("with more: %d pending, %d counted, want %d", n, r.loop.stats.PendingBytes.Load(), len(want)-len(got))
			}
		}
		for range 4 {
			r.post(p.c.writable)
			got = append(got, p.take()...)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of room: the peer read %d bytes, want %d", room, len(got), len(want))
		}
		r.held(p.c)
		r.idle()
		r.end()
	}
}

// A peer that reads at last gets every byte in order, by the watcher's word.
func TestWatcher(t *testing.T) {
	r := newRig(t, nil)
	r.watch()
	const peers, rounds = 3, 200
	var all [peers]*peer
	var want, got [peers][]byte
	for i := range all {
		all[i] = r.upgraded()
		_ = unix.SetsockoptInt(all[i].socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
	}
	for round := range rounds {
		r.post(func() {
			for i, p := range all {
				b := served(strings.Repeat(string(rune('a'+i)), 1+round*7%900))
				if round%2 == 0 {
					p.sess().WriteFrame(b)
				} else {
					f, _ := readFrame(bytes.NewReader(b))
					p.sess().Write(f.Payload)
				}
				want[i] = append(want[i], b...)
			}
		})
	}
	for i, p := range all {
		if p.c.out == nil || !p.c.out.blocked {
			t.Fatalf("peer %d is not blocked", i)
		}
	}
	deadline := time.After(10 * time.Second)
	for left := peers; left > 0; {
		left = 0
		for i, p := range all {
			got[i] = append(got[i], p.take()...)
			if len(got[i]) < len(want[i]) {
				left++
			}
		}
		if left == 0 {
			break
		}
		select {
		case <-r.events.wakes:
			r.loop.turn(true)
		case <-deadline:
			t.Fatal("the watcher says nothing")
		}
	}
	for i, p := range all {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("peer %d read %d bytes, want %d", i, len(got[i]), len(want[i]))
		}
		r.held(p.c)
	}
	r.idle()
	// It says nothing of peers that are not slow.
	select {
	case <-r.events.wakes:
		t.Error("a wake-up without need")
	case <-time.After(20 * time.Millisecond):
	}
}

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
		o.PendingBytes = 10_000
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
	// One that takes none of it is over the bound with that turn.
	q := r.upgraded()
	_ = unix.SetsockoptInt(q.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
	r.post(func() {
		for range 40 {
			q.sess().Write([]byte(strings.Repeat("a", 1000)))
		}
	})
	got, rest := frames(t, q.drain())
	if code, _ := closeOf(got[len(got)-1]); code != 1008 || len(rest) > 0 || len(got) > 30 {
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
		c.writeRaw([]byte(switching))
		all = append(all, switching...)
		for i := range 20 {
			if x := strings.Repeat("x", i*2); i%4 < 2 {
				c.WriteMessage([]byte(x), false)
				all = append(all, served(x)...)
			} else {
				c.WriteFrame(served(x))
				all = append(all, served(x)...)
			}
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
		whole := all[:sent+len(left)]
		if sent < len(switching) {
			if len(whole) != len(switching) {
				t.Fatalf("%d sent: the handshake's answer is cut at %d", sent, len(whole))
			}
		} else if _, rest := frames(t, whole[len(switching):]); len(rest) > 0 {
			t.Fatalf("%d sent: a frame is cut", sent)
		}
		r.end()
	}
}

func TestAppendHeader(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1<<32 + 5} {
		got := appendHeader(nil, ws.OpBinary, n)
		var want bytes.Buffer
		if err := ws.WriteHeader(&want, ws.Header{Fin: true, OpCode: ws.OpBinary, Length: int64(n)}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want.Bytes()) || len(got) > maxServerHeader {
			t.Errorf("%d: %x, want %x", n, got, want.Bytes())
		}
	}
}

// A close frame's text is cut where a control frame ends.
func TestWriteClose(t *testing.T) {
	r := newRig(t, nil)
	for _, tt := range []struct {
		code uint16
		text string
	}{{0, ""}, {1000, ""}, {3500, "why"}, {4000, strings.Repeat("t", 123)}, {4000, strings.Repeat("t", 200)}} {
		p := r.upgraded()
		r.post(func() { p.sess().CloseCustom(tt.code, tt.text) })
		got := p.take()
		if tt.code != 0 {
			if code := binary.BigEndian.Uint16(got[2:]); code != tt.code || string(got[4:]) != tt.text[:min(len(tt.text), 123)] {
				t.Errorf("got %d %q", code, got[4:])
			}
		} else if !bytes.Equal(got, []byte{0x88, 0}) {
			t.Errorf("got %x", got)
		}
		if !p.eof {
			t.Error("our side is not shut")
		}
		p.end()
	}
}

// Sessions write to others whenever they are told something.
func TestWriteFromWithin(t *testing.T) {
	r := newRig(t, nil)
	a, b, c := r.upgraded(), r.upgraded(), r.upgraded()
	tell := func(p *peer, s string) { p.sess().WriteFrame(served(s)) }
	r.handler.message = func(s *session.Session, _ []byte, _ bool) {
		tell(b, "of a message")
		tell(a, "an answer")
	}
	r.handler.closed = func(s *session.Session, _ session.Reason) {
		for _, p := range []*peer{a, b, c} {
			if p.sess().ID() != s.ID() {
				tell(p, "of an end")
			}
			s.Write([]byte("to the dead"))
		}
	}
	a.feed(hello)
	if string(a.take()) != string(served("an answer")) || string(b.take()) != string(served("of a message")) {
		t.Error("a message's frames did not leave with its turn")
	}
	// The peer has gone: the write fails, and within the flush the others hear of
	// it in the same turn.
	c.hangUp()
	r.post(func() { tell(c, "too late"); tell(a, "first") })
	if !c.gone() {
		t.Error("a failed write does not close")
	}
	if got := string(a.take()); got != string(served("of an end"))+string(served("first")) &&
		got != string(served("first"))+string(served("of an end")) {
		t.Errorf("a read %q", got)
	}
	if got := string(b.take()); got != string(served("of an end")) {
		t.Errorf("b read %q", got)
	}
	r.handler.closed = nil
	// The slot is given to another at once; nothing of the old one reaches it.
	d := r.upgraded()
	r.post(func() { tell(a, "x") })
	if got := d.take(); len(got) > 0 {
		t.Errorf("the next one of the slot read %q", got)
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

func TestAllocations(t *testing.T) {
	r := newRig(t, nil)
	r.handler.quiet = true
	r.handler.message = func(s *session.Session, data []byte, binary bool) { s.WriteKind(data, binary) }
	p := r.upgraded()
	sent := masked(ws.OpText, true, strings.Repeat("m", 128))
	shared := served(strings.Repeat("s", 128))
	buf, in := make([]byte, 4096), make([]byte, len(sent))
	read := func() {
		if n, err := unix.Read(p.fd, buf); n <= 0 {
			t.Fatal(n, err)
		}
	}
	deliver := func(*session.Session) {
		p.sess().WriteFrame(shared)
		p.sess().WriteFrame(shared)
	}
	for name, f := range map[string]func(){
		"a message echoed": func() {
			p.feedInPlace(append(in[:0], sent...)) // it is unmasked in place
			read()
		},
		"two of three pieces echoed": func() {
			b := append(in[:0], sent...)
			p.feedInPlace(b[:1])
			p.feedInPlace(b[1:10])
			p.feedInPlace(b[10:])
			read()
		},
		"a ping answered": func() {
			p.feedInPlace(append(in[:0], "\x89\x80\x00\x00\x00\x00"...))
			read()
		},
		"two deliveries of a post": func() {
			r.loop.Post(0, 0, deliver)
			<-r.events.wakes
			r.loop.turn(true)
			read()
		},
	} {
		limit := 0.0
		if name == "two of three pieces echoed" {
			limit = 1 // the inbound
		}
		if raceEnabled {
			limit += 3 // sync.Pool drops at random
		}
		for range 10 {
			f()
		}
		if n := testing.AllocsPerRun(200, f); n > limit {
			t.Errorf("%s: %v allocations, want %v", name, n, limit)
		}
	}
}
