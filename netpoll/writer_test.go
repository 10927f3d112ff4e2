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

func TestAllocations(t *testing.T) {
	r := newRig(t, nil)
	r.handler.quiet = true
	r.handler.message = func(s *session.Session, data []byte, binary bool) { s.WriteKind(data, binary) }
	p := r.upgraded()
	sent := masked(ws.OpText, true, strings.Repeat("m", 128))
	many := bytes.Repeat(sent, 16)
	shared := served(strings.Repeat("s", 128))
	buf, in := make([]byte, 4096), make([]byte, len(many))
	// Where most turns are small, those of many messages need their buffers too.
	for range 50_000 {
		b := getWriteBuffer()
		b.B = append(b.B, shared...)
		putWriteBuffer(b)
	}
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
		"16 messages echoed together": func() {
			p.feedInPlace(append(in[:0], many...))
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
