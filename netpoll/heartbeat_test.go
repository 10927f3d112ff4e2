package netpoll

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"perch/session"
)

// pass lets time go by, a tick at a time, and calls f after each.
func (r *rig) pass(d time.Duration, f func()) {
	for range d / tick {
		time.Sleep(tick)
		r.tick()
		f()
	}
}

// until lets time go by until ok, and calls f after each tick; what has not
// come about within a minute never will.
func (r *rig) until(ok func() bool, f func()) {
	r.t.Helper()
	for range time.Minute / tick {
		if ok() {
			return
		}
		r.pass(tick, f)
	}
	r.t.Fatal("it does not come about")
}

// pinged tells how many pings p has got.
func (p *peer) pinged() int { return bytes.Count(p.take(), []byte{0x89, 0}) }

var pong = masked(ws.OpPong, true, "")

// The first pings of sessions that began together are spread over the
// interval; from then on each comes an interval behind the last.
func TestFirstPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 500
		r := newRig(t, nil)
		began := time.Now()
		first, last := make(map[*peer]time.Duration), make(map[*peer]time.Time)
		peers := make([]*peer, n)
		for i := range peers {
			peers[i] = r.upgraded()
		}
		pings := 0
		r.pass(80*time.Second, func() {
			for _, p := range peers {
				if p.pinged() == 0 {
					continue
				}
				pings++
				now := time.Now()
				if at, ok := last[p]; !ok {
					first[p] = now.Sub(began)
				} else if d := now.Sub(at); d < 25*time.Second-tick || d > 25*time.Second+2*tick {
					t.Fatalf("a ping %v behind the last", d)
				}
				last[p] = now
				p.feed(pong)
			}
		})
		var fifths [5]int
		for p, at := range first {
			if at > 25*time.Second+2*tick {
				t.Fatalf("the first ping of %v came after %v", p.c.slot, at)
			}
			fifths[min(4, int(at/(5*time.Second)))]++
		}
		for i, got := range fifths {
			if got < n/10 || got > n*3/10 {
				t.Errorf("%d of %d first pings in fifth %d of the interval", got, n, i)
			}
		}
		if len(first) != n || pings < 3*n {
			t.Errorf("%d sessions had %d pings", len(first), pings)
		}
		if st := r.server.Stats(); int(st.Pings) != pings || int(st.Pongs) != pings || st.Open != n {
			t.Errorf("stats: %d pings, %d pongs, %d open", st.Pings, st.Pongs, st.Open)
		}
	})
}

func TestMisses(t *testing.T) {
	for _, misses := range []int{1, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.PingMisses = misses })
			p := r.upgraded()
			var times []time.Time
			var got []byte
			r.pass(25*time.Second*2, func() {
				if b := p.take(); bytes.Equal(b, pingFrame) {
					times = append(times, time.Now())
				} else {
					got = append(got, b...)
				}
				if p.eof && len(times) == misses {
					times = append(times, time.Now())
				}
			})
			if len(times) != misses+1 {
				t.Fatalf("%d misses: %d pings, then the end", misses, len(times)-1)
			}
			// A miss is retried with a ping at once, the last one ends it.
			for i := range misses {
				if d := times[i+1].Sub(times[i]); d < 8*time.Second-tick || d > 8*time.Second+2*tick {
					t.Errorf("%v to miss %d", d, i+1)
				}
			}
			f, rest := frames(t, got)
			if code, text := closeOf(f[0]); code != 1002 || text != "no pong" || len(rest) > 0 || len(f) > 1 {
				t.Errorf("close %d %q", code, text)
			}
			if log := r.handler.log; log[len(log)-1] != "closed:pong_timeout" {
				t.Errorf("told %q", log)
			}
		})
	}
}

// A pong behind a miss that was borne sets things right again.
func TestLatePong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.PingMisses = 2 })
		p := r.upgraded()
		pings := 0
		wait := func(n int) {
			for i := 0; pings < n; i++ {
				if i > 400 {
					t.Fatalf("no ping %d", n)
				}
				r.pass(tick, func() { pings += p.pinged() })
			}
		}
		for range 3 { // never two misses in a row
			before := pings
			wait(before + 1)
			time.Sleep(time.Second)
			wait(before + 2) // the retry
			r.pass(time.Second, func() {})
			p.feed(pong)
			if p.c.misses != 0 || p.c.awaiting {
				t.Error("a late pong does not count")
			}
		}
		if p.eof || p.c.mode != modeWebSocket {
			t.Fatal("closed although every other ping was answered")
		}
		// Behind the end it changes nothing.
		r.until(func() bool { return p.eof }, func() { p.take() })
		before := r.loop.stats.Pongs.Load()
		p.feed(pong)
		if r.loop.stats.Pongs.Load() != before {
			t.Error("a pong behind the end counts")
		}
	})
}

// Who sends pongs unasked, or messages all the time, is pinged all the same;
// only an answer counts.
func TestUnaskedPong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.upgraded()
		if p.sess().Pong() {
			t.Error("a pong that answers nothing")
		}
		pings := 0
		r.pass(40*time.Second, func() {
			if pings += p.pinged(); pings == 0 {
				p.feed(pong)
			}
			p.feed(hello)
		})
		if pings != 1 || !p.gone() {
			t.Errorf("%d pings, closed: %v", pings, p.gone())
		}
		if n := r.loop.stats.Pongs.Load(); n != 0 {
			t.Errorf("%d pongs counted", n)
		}
	})
}

// Each kind of session has its ping, its pong and its reason.
func TestPingKinds(t *testing.T) {
	own := ws.MustCompileFrame(ws.NewTextFrame([]byte("{}")))
	for _, tt := range []struct {
		name     string
		encoding session.Encoding
		frames   bool
		ping     []byte
		pong     []byte // of RFC 6455; answers only where the ping is one
		answers  bool
		code     int
	}{
		{"none", session.EncodingNone, false, pingFrame, pong, true, 1002},
		{"JSON", session.EncodingJSON, false, own, pong, false, 3012},
		{"JSON with frames", session.EncodingJSON, true, pingFrame, pong, true, 3012},
		{"no ping of its own", session.EncodingProtobuf, false, pingFrame, pong, false, 3012},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) {
					e := o.Listeners[0].Endpoints[0]
					e.Pings[session.EncodingJSON] = own
					e.ConnectTimeout = 10 * time.Second
					e.Check = func(*Request) (Decision, bool) {
						return Decision{Encoding: tt.encoding, FramePings: tt.frames}, true
					}
				})
				r.handler.opened = func(s *session.Session) {
					s.State = session.StateConnected
					s.StartHeartbeat()
				}
				p := r.upgraded()
				var got []byte
				r.pass(26*time.Second, func() {
					if len(got) == 0 {
						got = p.take()
						if len(got) > 0 {
							p.feed(tt.pong)
						}
					}
				})
				if !bytes.Equal(got, tt.ping) {
					t.Errorf("the ping is %q", got)
				}
				if got := r.loop.stats.Pongs.Load() == 1; got != tt.answers {
					t.Errorf("a pong of RFC 6455 answers: %v", got)
				}
				for range 1000 {
					r.pass(tick, func() { got = append(got, p.take()...) })
					if p.eof {
						break
					}
				}
				f, _ := frames(t, got)
				if code, _ := closeOf(f[len(f)-1]); code != tt.code {
					t.Errorf("close %d", code)
				}
			})
		})
	}
}

// A session that does not connect in time is stale, one that does is not.
func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			e := o.Listeners[0].Endpoints[0]
			e.ConnectTimeout = 10 * time.Second
			e.Check = func(*Request) (Decision, bool) {
				return Decision{Encoding: session.EncodingJSON}, true
			}
		})
		p, q := r.upgraded(), r.upgraded()
		q.sess().State = session.StateConnected
		began := time.Now()
		r.until(func() bool { return p.eof }, func() { p.take() })
		if took := time.Since(began); took < 10*time.Second || took > 10*time.Second+2*tick {
			t.Errorf("stale after %v", took)
		}
		r.pass(20*time.Second, func() {})
		if q.c.mode != modeWebSocket || len(q.take()) > 0 {
			t.Error("a session that connected in time is stale")
		}
		if r.server.Stats().Closes["stale"] != 1 {
			t.Errorf("closes: %v", r.server.Stats().Closes)
		}
	})
}

// What is written when the end comes has a moment to leave, and no more.
func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		p := r.upgraded()
		began := time.Now()
		r.post(func() { p.sess().Close(session.ReasonForced) })
		r.until(p.gone, func() { p.feed(hello) })
		if took := time.Since(began); took < lingerFor || took > lingerFor+2*tick {
			t.Errorf("lingered for %v", took)
		}
		if n := len(r.handler.log); n != 2 {
			t.Errorf("told %q", r.handler.log)
		}
		// Also with a peer that takes nothing.
		q, _ := r.blocked()
		r.post(func() { q.sess().Close(session.ReasonForced) })
		r.pass(lingerFor+2*tick, func() {})
		if !q.gone() {
			t.Error("a peer that takes nothing is waited for")
		}
		r.idle()
	})
}
