package bench

import (
	"bufio"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func phaseless(string, int) error { return nil }

func newTestGenerator(t *testing.T, o Options) *generator {
	t.Helper()
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGenerator(t.Context(), o, 0, phaseless)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// Two error replies in one message are one failure of one connection.
func TestRefusedOnce(t *testing.T) {
	addr := scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		if upgrade(c, r) != nil {
			return
		}
		_, _ = c.Write(textFrame(`{"id":1,"error":{"code":101,"message":"no"}}` + "\n" + `{"id":2,"error":{"code":101,"message":"no"}}`))
		_, _ = r.ReadByte()
	})
	g := newTestGenerator(t, Options{Scenario: Connect, URL: "ws://" + addr.String() + "/connection/websocket", Connections: 3})
	defer g.c.close()
	lost := 0
	g.onLost = func(int, string) { lost++ }
	err := g.open(3)
	if err == nil || !strings.Contains(err.Error(), "none of 3") {
		t.Fatalf("%v", err)
	}
	if g.m.failed != 3 || lost != 3 || !strings.Contains(g.m.first, `"code":101`) {
		t.Fatalf("%d failed, %d lost, %q", g.m.failed, lost, g.m.first)
	}
}

// The next batch leaves when the whole of the one before is answered, however
// long it is.
func TestDepth(t *testing.T) {
	const depth = 300
	release := make(chan struct{})
	var read atomic.Int64
	addr := scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		if upgrade(c, r) != nil {
			return
		}
		for range depth - 1 {
			_, p, err := readClientFrame(r)
			if err != nil {
				return
			}
			read.Add(1)
			if _, err := c.Write(serverFrame(finBit|opText, p)); err != nil {
				return
			}
		}
		if _, _, err := readClientFrame(r); err != nil {
			return
		}
		read.Add(1)
		// One is not answered: whatever comes now came too early.
		if _, _, err := readClientFrame(r); err == nil {
			read.Add(1)
		}
		close(release)
	})
	g := newTestGenerator(t, Options{Scenario: Echo, URL: "ws://" + addr.String() + "/", Connections: 1, Depth: depth, Duration: 200 * time.Millisecond, Warmup: -1})
	if _, err := g.run(); err != nil {
		t.Fatal(err)
	}
	<-release
	if n := read.Load(); n != depth {
		t.Fatalf("%d messages came, want %d", n, depth)
	}
}

// A server that falls silent must not hide it by what it does not answer.
func TestSilenceIsFailure(t *testing.T) {
	for _, ends := range []bool{false, true} {
		addr := scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
			if upgrade(c, r) != nil {
				return
			}
			for range 10 {
				_, p, err := readClientFrame(r)
				if err != nil {
					return
				}
				if _, err := c.Write(serverFrame(finBit|opText, p)); err != nil {
					return
				}
			}
			for !ends {
				if _, _, err := readClientFrame(r); err != nil {
					return
				}
			}
		})
		g := newTestGenerator(t, Options{Scenario: Echo, URL: "ws://" + addr.String() + "/", Connections: 1, Rate: 200, Duration: 300 * time.Millisecond, Warmup: -1})
		if !ends {
			// It would be waited for; the end of the run says so too.
			g.answerLimit = 50 * time.Millisecond
		}
		r, err := g.run()
		if err != nil {
			t.Fatal(err)
		}
		if r.Count < 9 || r.Count > 10 || r.Count+r.Failed < 55 {
			t.Fatalf("ends %v: %d answered, %d failed, first %q", ends, r.Count, r.Failed, r.FirstError)
		}
	}
}

func TestInterrupted(t *testing.T) {
	s := newEchoServer(t)
	o, err := Options{Scenario: Echo, URL: s.url(), Connections: 2, Rate: 1e9, Duration: time.Hour}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	// Also a generator that can't keep up hears of it.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g, err := newGenerator(ctx, o, 0, phaseless)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := g.run(); err != context.Canceled {
		t.Fatal(err)
	}
}

func TestPeerQueue(t *testing.T) {
	var p peer
	for round := range 3 {
		for due := range int64(5) {
			p.push(due + 1)
		}
		for want := int64(1); want <= 5; want++ {
			if due, ok := p.take(); !ok || due != want {
				t.Fatalf("round %d: %d, %v, want %d", round, due, ok, want)
			}
		}
		if _, ok := p.take(); ok || p.more != nil {
			t.Fatal("an empty queue holds something")
		}
	}
}
