package netpoll

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"perch/session"
)

// message is one that is worth deflating, told from others by its number.
func message(i int) string { return fmt.Sprintf("%03d ", i) + strings.Repeat("deflate ", 25) }

func TestDeflated(t *testing.T) {
	d := newDeflateRig(t, nil)
	d.echoes()
	p := d.deflating()
	long := strings.Repeat("x", testThreshold)
	binary := strings.Repeat("\x00\xff", 1000)
	for _, tt := range []struct {
		name string
		do   func()
		want string
	}{
		{"at the threshold", func() { p.sess().Write([]byte(long)) }, "1*" + long},
		{"below it", func() { p.sess().Write([]byte(long[1:])) }, "1:" + long[1:]},
		{"empty", func() { p.sess().Write(nil) }, "1:"},
		{"binary", func() { p.sess().WriteKind([]byte(binary), true) }, "2*" + binary},
		{"what would grow", func() { p.sess().Write([]byte(noise(testThreshold, 1))) }, "1:" + noise(testThreshold, 1)},
		{"over 64 KiB", func() { p.sess().Write([]byte(words(100_000, 1))) }, "1*" + words(100_000, 1)},
		{"a megabyte", func() { p.sess().Write([]byte(words(1<<20, 1))) }, "1*" + words(1<<20, 1)},
		{"shared", func() { p.sess().WriteFrame(served(long)) }, "1*" + long},
		{"shared, below", func() { p.sess().WriteFrame(served(long[1:])) }, "1:" + long[1:]},
		{"a ping", func() { p.sess().WriteFrame(pingFrame) }, "9:"},
		{"nothing", func() { p.sess().WriteFrame(nil) }, ""},
		// Several in one slice, as a row of publications comes.
		{"a row", func() {
			p.sess().WriteFrame(stream(served("a"), served(long), pingFrame, served(noise(100, 2)), served(long)))
		}, "1:a 1*" + long + " 9: 1:" + noise(100, 2) + " 1*" + long},
		{"an echo", func() { p.c.readFrames(masked(ws.OpText, true, long)) }, "1*" + long},
		{"a long pong", func() { p.c.readFrames(masked(ws.OpPing, true, long[:125])) }, "10:" + long[:125]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d.post(tt.do)
			d.settle()
			if got := strings.Join(reads(t, p.readAll(d)), " "); got != tt.want {
				t.Errorf("read %.200q, want %.200q", got, tt.want)
			}
			d.held(p.c)
			d.idle()
			if len(p.c.loop.press.orders) != 0 {
				t.Error("an order is kept")
			}
		})
	}
	for range recentTicks {
		d.loop.press.tick(d.loop.present() + recentTicks)
	}
}

// A session without the extension gets the frames as they are, from the same
// fan-out.
func TestDeflateOncePerLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeflateRig(t, nil)
		var peers, plain, narrow []*peer
		for range 3 * deflateSlice {
			peers = append(peers, d.deflating())
		}
		for range 10 {
			plain = append(plain, d.upgraded())
			narrow = append(narrow, d.deflating("server_max_window_bits=9"))
		}
		all := slices.Concat(peers, plain, narrow)
		for _, tt := range []struct {
			name string
			text string
			want uint64 // deflations
		}{
			{"small: all windows take the same", words(500, 1), 1},
			{"large", words(5000, 1), 2},
		} {
			before := d.server.Stats().Deflate
			frame := served(tt.text)
			// In slices, as a fan-out comes, the work done between two of them.
			for slice := range slices.Chunk(all, 50) {
				d.post(func() {
					for _, p := range slice {
						p.sess().WriteFrame(frame)
					}
				})
				if len(slice) == 50 {
					d.workers.work()
				}
			}
			d.settle()
			want := map[*peer]string{}
			for i, p := range all {
				want[p] = "1*" + tt.text
				if i >= len(peers) && i < len(peers)+len(plain) {
					want[p] = "1:" + tt.text
				}
				if got := reads(t, p.take()); len(got) != 1 || got[0] != want[p] {
					t.Fatalf("%s: peer %d read %.100q", tt.name, i, got)
				}
				if p.c.out != nil {
					t.Fatalf("%s: peer %d holds an outbound", tt.name, i)
				}
			}
			st := d.server.Stats().Deflate
			if n := st.Deflated - before.Deflated; n != tt.want {
				t.Errorf("%s: %d deflations for %d sessions, want %d", tt.name, n, len(all), tt.want)
			}
			if from, to := st.DeflatedFrom-before.DeflatedFrom, st.DeflatedTo-before.DeflatedTo; from != tt.want*uint64(len(tt.text)) || to == 0 || to >= from {
				t.Errorf("%s: %d bytes became %d", tt.name, from, to)
			}
			if n := len(d.loop.press.shared); n == 0 {
				t.Errorf("%s: a fan-out that comes back finds nothing", tt.name)
			}
			d.pass(3*tick, func() {})
			if p := &d.loop.press; p.shared != nil || p.recent != nil || p.held != 0 {
				t.Errorf("%s: the loop keeps %+v", tt.name, p)
			}
		}
	})
}

// What is remembered of deflations is bounded, and is let go of with the last conn.
func TestDeflateRecent(t *testing.T) {
	d := newDeflateRig(t, nil)
	p := d.deflating()
	for i := range 3 * recentMost {
		d.post(func() { p.sess().WriteFrame(served(message(i))) })
		d.settle()
		if n := len(d.loop.press.recent); n > recentMost || len(d.loop.press.shared) > recentMost {
			t.Fatalf("%d deflations are remembered", n)
		}
	}
	for i := range 20 {
		d.post(func() { p.sess().WriteFrame(served(words(200_000+i, 1))) })
		d.settle()
		if n := d.loop.press.held; n > recentBytes {
			t.Fatalf("%d bytes are remembered", n)
		}
		p.take()
	}
	// One is under way when the last conn goes.
	d.post(func() { p.sess().WriteFrame(served(message(1))) })
	p.end()
	d.settle()
	if d.loop.press.shared != nil {
		t.Error("deflations are remembered for nobody")
	}
}

// Whatever window was agreed on, no reference goes further back (section 7.1.2.1).
func TestDeflateWindow(t *testing.T) {
	d := newDeflateRig(t, nil)
	for bits := 8; bits <= fullWindow; bits++ {
		p := d.deflating(fmt.Sprintf("server_max_window_bits=%d", bits))
		most := 0
		for i, n := range []int{1000, 1<<bits - 1, 1 << bits, 1<<bits + 1, 3000, 40_000, 300_000} {
			text := words(n, uint64(bits*100+i))
			if i%2 == 0 {
				d.post(func() { p.sess().Write([]byte(text)) })
			} else {
				d.post(func() { p.sess().WriteFrame(served(text)) })
			}
			d.settle()
			fs, rest := framesRSV(t, p.take())
			if len(fs) != 1 || len(rest) != 0 || fs[0].Header.Rsv == 0 {
				t.Fatalf("%d bits, %d bytes: %d frames", bits, n, len(fs))
			}
			far, got := furthest(t, fs[0].Payload)
			if got != text {
				t.Fatalf("%d bits, %d bytes: another text", bits, n)
			}
			if far > 1<<bits {
				t.Errorf("%d bits, %d bytes: a reference goes %d back", bits, n, far)
			}
			most = max(most, far)
		}
		// The test would be none if nobody wanted to refer so far.
		if most < 3<<bits/4 {
			t.Errorf("%d bits: the furthest reference is %d", bits, most)
		}
		p.end()
	}
}

// framesRSV is frames, RSV1 allowed.
func framesRSV(t *testing.T, b []byte) (out []ws.Frame, rest []byte) {
	t.Helper()
	for len(b) > 0 {
		r := bytes.NewReader(b)
		f, err := readFrame(r)
		if err != nil {
			return out, b
		}
		out = append(out, f)
		b = b[len(b)-r.Len():]
	}
	return out, nil
}

// Nothing overtakes a message that is with the pool, and with a pool that is stuck
// all of it leaves as it is after a while.
func TestDeflateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeflateRig(t, nil)
		p, q := d.deflating(), d.deflating()
		shared := served(message(2))
		say := func() {
			p.sess().Write([]byte("first"))
			p.sess().Write([]byte(message(1)))
			p.sess().Write([]byte("small"))
			p.sess().Write([]byte("small too"))
			p.c.readFrames(masked(ws.OpPing, true, "p"))
			p.sess().WriteFrame(shared)
			p.sess().WriteFrame(pingFrame)
			p.sess().Write([]byte(noise(200, 1)))
			p.sess().WriteFrame(served("last"))
			q.sess().WriteFrame(shared)
		}
		want := func(kind string) []string {
			return []string{"1:first", "1" + kind + message(1), "1:small", "1:small too", "10:p", "1" + kind + message(2), "9:",
				"1:" + noise(200, 1), "1:last"}
		}
		for range 3 {
			d.post(say)
			if got := reads(t, p.take()); !slices.Equal(got, []string{"1:first"}) {
				t.Fatalf("read %q before the work", got)
			}
			if n, m := p.c.Pending(), len(message(1)); n < m {
				t.Errorf("%d bytes are pending", n)
			}
			d.settle()
			got := append([]string{"1:first"}, reads(t, p.take())...)
			if !slices.Equal(got, want("*")) {
				t.Fatalf("read %q", got)
			}
			if got := reads(t, q.take()); len(got) != 1 || got[0] != "1*"+message(2) {
				t.Fatalf("the other read %q", got)
			}
			d.pass(3*tick, func() {})
		}

		// Stuck.
		d.post(say)
		d.pass((deflatePatience-1)*tick, func() {})
		if got := reads(t, p.take()); !slices.Equal(got, []string{"1:first"}) {
			t.Fatalf("read %q before the patience was over", got)
		}
		before := d.server.Stats().Deflate
		d.pass(2*tick, func() {})
		got := append([]string{"1:first"}, reads(t, p.take())...)
		if !slices.Equal(got, want(":")) {
			t.Fatalf("with a stuck pool: read %q", got)
		}
		if got := reads(t, q.take()); len(got) != 1 || got[0] != "1:"+message(2) {
			t.Fatalf("the other read %q", got)
		}
		if n := d.server.Stats().Deflate.DeflateRefused - before.DeflateRefused; n != 3 {
			t.Errorf("%d refused, want 3", n)
		}
		if d.server.deflater.queued() == 0 {
			t.Error("the pool was not stuck")
		}
	})
}

// With a full pool messages leave at once as they are, in one write.
func TestDeflateFullPool(t *testing.T) {
	d := newDeflateRig(t, nil)
	d.workers.full = true
	p := d.deflating()
	frame := served(message(1))
	n := d.writes(func() {
		d.post(func() {
			p.sess().Write([]byte("a"))
			p.sess().Write([]byte(message(0)))
			p.sess().WriteFrame(frame)
			p.sess().WriteFrame(frame)
		})
	})
	want := []string{"1:a", "1:" + message(0), "1:" + message(1), "1:" + message(1)}
	if got := reads(t, p.take()); !slices.Equal(got, want) || n != 1 {
		t.Errorf("%d writes, read %q", n, got)
	}
	if n := d.server.Stats().Deflate.DeflateRefused; n != 2 {
		t.Errorf("%d refused, want 2: what is shared counts once", n)
	}
	d.workers.full = false
	d.post(func() { p.sess().Write([]byte(message(3))) })
	d.settle()
	if got := reads(t, p.take()); len(got) != 1 || got[0] != "1*"+message(3) {
		t.Errorf("with room again: %q", got)
	}
}

// The inbox, too, may have no room for a result.
func TestDeflateFullInbox(t *testing.T) {
	d := newDeflateRig(t, func(o *Options) { o.InboxBytes = 1000 })
	p := d.deflating()
	d.loop.Reserve(900)
	d.post(func() { p.sess().Write([]byte(message(0))) })
	if got := reads(t, p.take()); len(got) != 1 || got[0] != "1:"+message(0) {
		t.Errorf("read %q", got)
	}
	d.loop.Release(900)
}

// The queue is bounded in bytes, and what goes to peers leaves half of it to what
// comes from them.
func TestDeflateQueueBound(t *testing.T) {
	d := newDeflateRig(t, func(o *Options) { o.Listeners[0].Endpoints[0].MessageSize = 1 << 20 })
	p := make([]*peer, 100)
	for i := range p {
		p[i] = d.deflating()
	}
	big := words(200_000, 1)
	for i := range p {
		d.post(func() { p[i].sess().Write([]byte(big[i:])) })
		if n := d.server.deflater.queued(); n > deflateQueue/2 {
			t.Fatalf("%d bytes are queued", n)
		}
	}
	if d.server.Stats().Deflate.DeflateRefused == 0 {
		t.Fatal("everything was queued")
	}
	ended := 0
	for i := range 100 {
		q := d.deflating()
		q.feed(compressed(ws.OpBinary, true, noise(100_000, uint64(i))))
		if n := d.server.deflater.queued(); n > deflateQueue {
			t.Fatalf("%d bytes are queued", n)
		}
		if q.c.mode != modeWebSocket {
			ended++
		}
		q.end()
	}
	if ended < 40 || ended > 70 {
		t.Errorf("%d of 100 messages found no room", ended)
	}
	got := make([][]byte, len(p))
	settled := false
	for i := 0; i < 1000 && !settled; i++ {
		settled = true
		d.settle()
		for i := range p {
			got[i] = append(got[i], p[i].take()...)
			if p[i].c.out != nil {
				settled = false
				d.post(p[i].c.writable)
			}
		}
	}
	for i := range p {
		if r := reads(t, got[i]); len(r) != 1 || r[0][2:] != big[i:] {
			t.Fatalf("peer %d read %d messages", i, len(r))
		}
	}
}

// What stands in line is bounded: more leaves as it is.
func TestDeflateLineBound(t *testing.T) {
	d := newDeflateRig(t, nil)
	p := d.deflating()
	_ = unix.SetsockoptInt(p.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	var want []string
	var got []byte
	for i := 0; len(got) == 0; i++ {
		if i > 1000 {
			t.Fatal("the line has no bound")
		}
		text := words(10_000, uint64(i))
		want = append(want, "1:"+text)
		d.post(func() { p.sess().Write([]byte(text)) })
		got = p.take()
	}
	if n := len(want) * 10_000; n < lineBytes || n > lineBytes+20_000 {
		t.Errorf("%d bytes stood in line", n)
	}
	got = append(got, p.readAll(d)...)
	if r := reads(t, got); !slices.Equal(r, want) {
		t.Errorf("read %d messages, want %d", len(r), len(want))
	}
}

// readAll reads until all has been sent.
func (p *peer) readAll(d *deflateRig) (got []byte) {
	for range 10_000 {
		got = append(got, p.take()...)
		if p.c.out == nil || p.gone() {
			break
		}
		d.post(p.c.writable)
		d.settle()
	}
	return append(got, p.take()...)
}

// A close leaves at once, behind all that came before it.
func TestDeflateClose(t *testing.T) {
	d := newDeflateRig(t, nil)
	p := d.deflating()
	d.post(func() {
		p.sess().Write([]byte(message(1)))
		p.sess().Write([]byte("a"))
		p.sess().WriteFrame(served(message(2)))
		p.sess().Close(session.ReasonForced)
	})
	want := []string{"1:" + message(1), "1:a", "1:" + message(2), "8:3503"}
	if got := reads(t, p.take()); !slices.Equal(got, want) || !p.eof {
		t.Errorf("read %q, then the end: %v", got, p.eof)
	}
	d.settle()
	if n := d.server.Stats().Deflate.Deflated; n != 1 {
		t.Errorf("%d deflations: only what others may want is still done", n)
	}
}

// A peer that goes leaves nothing behind.
func TestDeflateGone(t *testing.T) {
	d := newDeflateRig(t, nil)
	for _, end := range []func(*peer){
		func(p *peer) { p.end() },
		func(p *peer) { d.post(p.c.drop) },
		func(p *peer) { p.hangUp(); d.post(func() { p.c.closed() }) },
	} {
		p := d.deflating()
		d.post(func() {
			p.sess().Write([]byte(message(1)))
			p.sess().WriteFrame(served(message(2)))
			p.sess().Write([]byte("a"))
		})
		end(p)
		// The slot goes to another, who gets none of it.
		q := d.deflating()
		d.settle()
		if got := q.take(); len(got) > 0 {
			t.Errorf("another read %q", got)
		}
		p.end()
		q.end()
	}
}

// A peer that reads nothing is closed as slow, what stands in line included.
func TestDeflateSlow(t *testing.T) {
	for name, work := range map[string]bool{"the pool works": true, "the pool is stuck": false} {
		t.Run(name, func(t *testing.T) {
			d := newDeflateRig(t, func(o *Options) {
				o.PendingBytes = 100_000
				o.Listeners[0].Endpoints[0].MessageSize = 1000
			})
			p := d.deflating()
			_ = unix.SetsockoptInt(p.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
			sent, peak := 0, 0
			for ; p.c.mode == modeWebSocket && sent < 100_000; sent++ {
				d.post(func() {
					if sent%2 == 0 {
						p.sess().Write([]byte(noise(1000, uint64(sent))))
					} else {
						p.sess().WriteFrame(served(noise(1000, uint64(sent))))
					}
				})
				if work || p.c.out == nil || !p.c.out.blocked {
					d.settle()
				}
				if p.c.mode == modeWebSocket {
					peak = max(peak, p.c.Pending())
				}
			}
			if p.c.mode == modeWebSocket || p.c.reason != session.ReasonSlowConsumerPlain {
				t.Fatalf("after %d messages: %v", sent, p.c.reason)
			}
			if peak < 50_000 || peak > 103_000 {
				t.Errorf("at most %d bytes were pending", peak)
			}
			got := reads(t, p.drain())
			for i, m := range got[:len(got)-1] {
				if want := noise(1000, uint64(i)); m != "1*"+want && m != "1:"+want {
					t.Fatalf("message %d is another", i)
				}
			}
			if got[len(got)-1] != "8:1008" {
				t.Errorf("the last frame is %.100q", got[len(got)-1])
			}
		})
	}
}

// Whatever is written in whatever turns, to a peer that reads now and then, and
// however the pool works: all of it arrives, whole and in order.
func TestDeflateRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seeds := uint64(40)
		if raceEnabled {
			seeds = 6
		}
		for seed := range seeds {
			d := newDeflateRig(t, func(o *Options) { o.PendingBytes = 64 << 20 })
			rnd := rand.New(rand.NewPCG(seed, 1))
			type side struct {
				*peer
				want []string
				got  []byte
			}
			var sides []*side
			for i := range 3 {
				s := &side{peer: d.deflating(fmt.Sprintf("server_max_window_bits=%d", 9+3*i))}
				if i == 2 {
					_ = unix.SetsockoptInt(s.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
				}
				sides = append(sides, s)
			}
			n := 0
			next := func() string {
				n++
				switch rnd.IntN(4) {
				case 0:
					return fmt.Sprint(n)
				case 1:
					return fmt.Sprint(n, noise(rnd.IntN(3000), uint64(n)))
				}
				return fmt.Sprint(n, words(rnd.IntN(20_000), uint64(n)))
			}
			for range 300 {
				switch rnd.IntN(8) {
				case 0, 1:
					m := next()
					frame := served(m)
					d.post(func() {
						for _, s := range sides {
							s.want = append(s.want, m)
							s.sess().WriteFrame(frame)
						}
					})
				case 2, 3:
					s, m := sides[rnd.IntN(3)], next()
					s.want = append(s.want, m)
					d.post(func() { s.sess().Write([]byte(m)) })
				case 4:
					d.workers.full = rnd.IntN(4) == 0
				case 5:
					if len(d.workers.jobs) > 0 {
						run := d.workers.jobs[0]
						d.workers.jobs = d.workers.jobs[1:]
						run()
					}
					d.turn()
				case 6:
					d.pass(time.Duration(rnd.IntN(7))*tick, func() {})
				case 7:
					s := sides[rnd.IntN(3)]
					s.got = append(s.got, s.take()...)
					d.post(s.c.writable)
				}
			}
			d.workers.full = false
			d.settle()
			for i, s := range sides {
				s.got = append(s.got, s.readAll(d)...)
				got := reads(t, s.got)
				for j := range got {
					got[j] = got[j][2:]
				}
				if !slices.Equal(got, s.want) {
					t.Fatalf("seed %d: peer %d read %d messages, want %d", seed, i, len(got), len(s.want))
				}
				d.held(s.c)
				s.end()
			}
		}
	})
}

// Tools are used again and again; at some time the deflater's offsets turn over.
func TestToolsLast(t *testing.T) {
	var tl tools
	text := []byte(message(1) + words(300, 1))
	rounds := 70_000
	if raceEnabled {
		rounds = 5000
	}
	for i := range rounds {
		b := tl.pack(text, fullWindow)
		if i%1000 != 0 && i < 65_000 {
			continue
		}
		if got, err := unsqueezed(b); err != nil || got != string(text) {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

// With every worker stuck, what has been given up takes no room of the inbox.
func TestDeflateLeavesTheInbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newDeflateRig(t, func(o *Options) { o.InboxBytes = 1 << 20 })
		p := r.deflating()
		frame := served(strings.Repeat("deflate me ", 100))
		for range 2000 {
			p.sess().WriteFrame(bytes.Clone(frame))
			r.loop.flushDirty()
			p.take()
		}
		r.pass(2*deflatePatience*tick, func() { p.take() })
		if n := r.loop.inbox.bytes.Load(); n != 0 {
			t.Errorf("%d bytes of the inbox are taken", n)
		}
	})
}
