package netpoll

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"perch/session"
)

// closedWith is the code of the close frame that p has got; 0: none.
func (p *peer) closedWith() int {
	out, _ := frames(p.r.t, p.take())
	for _, f := range out {
		if code, _ := closeOf(f); code >= 0 {
			return code
		}
	}
	return 0
}

// A message that has begun has MessageTimeout to be whole, however it arrives
// and whatever comes between its fragments; the next one has the whole time
// again.
func TestMessageTimeout(t *testing.T) {
	long := masked(ws.OpText, true, strings.Repeat("m", 60))
	fragment := masked(ws.OpText, false, "a")
	for _, tt := range []struct {
		name  string
		sent  func(second int) []byte // once a second
		ended bool
	}{
		{"a byte a second", func(i int) []byte { return long[i%len(long) : i%len(long)+1] }, true},
		{"a header that announces much", func(i int) []byte {
			if i == 0 {
				return []byte{0x82, 0xfe, 0xff, 0xff}
			}
			return nil
		}, true},
		{"half a header", func(i int) []byte {
			if i == 0 {
				return []byte{0x82}
			}
			return nil
		}, true},
		{"fragments without end, with pings between", func(i int) []byte {
			if i == 0 {
				return fragment
			}
			return append(masked(ws.OpPing, true, ""), masked(ws.OpContinuation, false, "b")...)
		}, true},
		{"half a ping", func(i int) []byte {
			if i == 0 {
				return masked(ws.OpPing, true, "x")[:4]
			}
			return nil
		}, true},
		{"each in time, and nine seconds long", func(i int) []byte {
			n := (len(long) + 8) / 9
			pieces := slices.Collect(slices.Chunk(long, n))
			return pieces[i%len(pieces)]
		}, false},
		{"whole ones", func(int) []byte { return long }, false},
		{"nothing", func(int) []byte { return nil }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) { o.MessageTimeout, o.PingInterval = 10*time.Second, 0 })
				p := r.upgraded()
				code, after := 0, 0
				for i := 0; i < 40 && code == 0; i++ {
					if b := tt.sent(i); b != nil {
						p.feed(b)
					}
					r.pass(time.Second, func() {})
					code, after = p.closedWith(), i+1
				}
				switch {
				case tt.ended && (code != 1008 || after < 10 || after > 11):
					t.Errorf("closed with %d after %d s", code, after)
				case !tt.ended && code != 0:
					t.Errorf("closed with %d after %d s", code, after)
				}
				if n := r.loop.stats.Closes[session.ReasonMessageTimeout].Load(); tt.ended {
					p.end()
					if n = r.loop.stats.Closes[session.ReasonMessageTimeout].Load(); n != 1 {
						t.Errorf("counted %d times", n)
					}
				} else if n != 0 {
					t.Errorf("counted %d times", n)
				}
			})
		})
	}
}

// Frames of whatever kind are bounded in a second; one session's flood is its
// own matter.
func TestMessageRate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame []byte
		code  int
		plain bool
	}{
		{"messages", hello, 3013, false},
		{"pings", masked(ws.OpPing, true, ""), 3013, false},
		{"pongs", masked(ws.OpPong, true, ""), 3013, false},
		{"without a protocol", hello, 1008, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, func(o *Options) {
					o.MessageRate, o.PingInterval = 10, 0
					if !tt.plain {
						o.Listeners[0].Endpoints[0].Check = func(*Request) (Decision, bool) {
							return Decision{Encoding: session.EncodingJSON, FramePings: true}, true
						}
					}
				})
				p, other := r.upgraded(), r.upgraded()
				for range 3 {
					p.feed(bytes.Repeat(tt.frame, 10))
					if code := p.closedWith(); code != 0 {
						t.Fatalf("closed with %d within its rate", code)
					}
					r.pass(time.Second, func() {})
				}
				p.feed(bytes.Repeat(tt.frame, 11))
				if code := p.closedWith(); code != tt.code {
					t.Errorf("closed with %d, want %d", code, tt.code)
				}
				other.feed(bytes.Repeat(tt.frame, 10))
				if code := other.closedWith(); code != 0 {
					t.Errorf("the other is closed with %d", code)
				}
				// Who has the place next begins anew.
				p.end()
				q := r.upgraded()
				if q.feed(bytes.Repeat(tt.frame, 10)); q.closedWith() != 0 {
					t.Error("a new session has the old one's rate")
				}
			})
		})
	}
}

// The kernel ends what does not acknowledge: connections have it from their
// listener.
func TestUserTimeout(t *testing.T) {
	s, addr := start(t, func(o *Options) {
		o.PingInterval, o.PongTimeout, o.PingMisses = 7*time.Second, 2*time.Second, 2
	})
	dial(t, addr, "/echo")
	got := make(chan string, 1)
	<-s.eachConn(func(_ *loop, c *conn) {
		ms, err := unix.GetsockoptInt(int(c.fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		got <- fmt.Sprint(ms, err)
	})
	if v := <-got; v != "16500 <nil>" {
		t.Errorf("TCP_USER_TIMEOUT: %s", v)
	}
}

// shed is Server.Shed, with the test's goroutine as the loop's.
func (r *rig) shed(want int64) (closed int, bytes int64) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		closed, bytes = r.server.Shed(want)
	}()
	for {
		select {
		case <-done:
			r.turn()
			return closed, bytes
		case <-r.events.wakes:
			r.loop.turn(true)
		}
	}
}

// For whom the most is held goes first, and no more than needed.
func TestShedLargestFirst(t *testing.T) {
	r := newRig(t, nil)
	hoard := func(n int) *peer {
		p, _ := r.blocked()
		r.post(func() { p.sess().WriteFrame(served(strings.Repeat("h", n))) })
		return p
	}
	idle := r.upgraded()
	small, large, middle := hoard(20<<10), hoard(300<<10), hoard(100<<10)
	partial := r.upgraded()
	r.post(func() { partial.c.readFrames(masked(ws.OpBinary, true, strings.Repeat("p", 200<<10))[:150<<10]) })

	closed, freed := r.shed(350 << 10)
	if closed != 2 || freed < 350<<10 {
		t.Errorf("closed %d, freed %d", closed, freed)
	}
	for _, tt := range []struct {
		name string
		p    *peer
		open bool
	}{{"idle", idle, true}, {"small", small, true}, {"middle", middle, true}, {"large", large, false}, {"partial", partial, false}} {
		if open := tt.p.c.mode == modeWebSocket; open != tt.open {
			t.Errorf("%s: open %v", tt.name, open)
		}
	}
	if partial.closedWith() != 1013 {
		t.Error("who goes is not told to come back")
	}
	if closed, _ = r.shed(1 << 40); closed != 2 {
		t.Errorf("%d closed where all have to go", closed)
	}
	if idle.c.mode != modeWebSocket {
		t.Error("who holds nothing has gone")
	}
	for _, p := range []*peer{small, large, middle, partial} {
		p.end()
	}
	if n := r.loop.stats.Closes[session.ReasonMemoryPlain].Load(); n != 4 {
		t.Errorf("counted %d times", n)
	}
}

// Between two looks at the memory, who would hold more than there is room for
// goes, and who holds no more stays.
func TestBrake(t *testing.T) {
	big := masked(ws.OpBinary, true, strings.Repeat("p", 200<<10))
	for _, tt := range []struct {
		name string
		grow func(r *rig) *peer
	}{
		{"a frame", func(r *rig) *peer {
			p := r.upgraded()
			for _, b := range slices.Collect(slices.Chunk(big, 8<<10)) {
				p.feed(b)
			}
			return p
		}},
		{"fragments", func(r *rig) *peer {
			p := r.upgraded()
			p.feed(masked(ws.OpBinary, false, "a"))
			for range 30 {
				p.feed(masked(ws.OpContinuation, false, strings.Repeat("p", 8<<10)))
			}
			return p
		}},
		{"replies that are not read", func(r *rig) *peer {
			p, _ := r.blocked()
			for range 30 {
				r.post(func() { p.sess().Write(make([]byte, 8<<10)) })
			}
			return p
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, room := range []int64{100 << 10, 1 << 20} {
				r := newRig(t, nil)
				idle := r.upgraded()
				r.server.SetRoom(room)
				p := tt.grow(r)
				gone := p.gone() || p.c.mode == modeLinger || r.loop.stats.Closes[session.ReasonMemoryPlain].Load() > 0
				if want := room < 200<<10; gone != want {
					t.Errorf("with room for %d: gone %v", room, gone)
				}
				idle.feed(hello)
				if idle.c.mode != modeWebSocket {
					t.Errorf("with room for %d: who holds nothing has gone", room)
				}
			}
		})
	}
}
