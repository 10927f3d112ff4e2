package netpoll

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"perch/session"
)

// Who is refused takes nothing from anybody else: no place, no turn, and nothing
// of its neighbours' counts, however long it leaves its head unfinished.
func TestRefusedKeepNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Connections, o.HardConnections = 4, 8
			o.PerAddress.Connections, o.PerSubnet.Connections = 2, 4
			o.ConnectionRate, o.ConnectionWait = 5, 0
		})
		closed := 0
		r.from("192.0.2.1")
		for range 30 {
			if p := r.accept(); p == nil {
				closed++
			} else {
				p.feed([]byte("G"))
			}
		}
		if closed != 30-2-4 {
			t.Errorf("%d closed at once: the two that may stay, and a place for each of four refusals, are for 6", closed)
		}
		r.wantStatus("192.0.2.2", "101")
		r.wantStatus("198.51.100.7", "101")
		if n := r.server.refusing.Load(); n != 4 {
			t.Errorf("%d wait for their refusal", n)
		}
		// They are not waited for as long as others.
		r.pass(lingerFor+3*tick, func() {})
		if n := r.server.refusing.Load(); n != 0 {
			t.Errorf("%d wait for their refusal after a second", n)
		}
		r.wantStatus("192.0.2.1", "429").end()
	})
}

// A head that has waited for its turn has a time of its own afterwards.
func TestWaitedHeadHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.ConnectionRate, o.ConnectionWait = 1, 2*time.Second
			o.Listeners[0].Endpoints[0].Check = func(q *Request) (Decision, bool) { q.Later(); return Decision{}, false }
		})
		r.accept()
		p := r.accept()
		p.feed([]byte(upgradeHead))
		r.until(p.gone, func() {})
	})
}

// A drain does not let those wait who wait for their turn.
func TestRefuseTellsWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.ConnectionRate, o.ConnectionWait = 1, time.Minute })
		r.accept()
		p := r.accept()
		p.feed([]byte(upgradeHead))
		r.server.Refuse()
		r.turn()
		if got := p.take(); !bytes.HasPrefix(got, []byte("HTTP/1.1 503 ")) {
			t.Errorf("answered %q", got)
		}
		if n := r.loop.stats.Refusals[overDrain].Load(); n != 1 {
			t.Errorf("counted %d times", n)
		}
	})
}

// A connection that comes with the address of its client goes with it.
func TestAdoptedCounts(t *testing.T) {
	r := newRig(t, func(o *Options) { o.PerAddress.Connections = 5 })
	count := func(ip string) int {
		a := netip.MustParseAddr(ip)
		return r.server.admission.scopes[0].shard(a).count[a]
	}
	r.wantStatus("203.0.113.5", "101")
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fds[1]) }()
	k := &fakeSocket{
		events: r.events, fd: fds[0], remote: &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 3},
		ctx: &adopted{port: r.server.only, from: netip.MustParseAddrPort("203.0.113.5:9"), prefix: []byte(upgradeHead)},
	}
	r.server.handler.OnOpen(k)
	if count("192.0.2.1") != 0 || count("203.0.113.5") != 2 {
		t.Errorf("the proxy has %d, the client %d", count("192.0.2.1"), count("203.0.113.5"))
	}
	_ = r.events.Close(k)
	if count("192.0.2.1") != 0 || count("203.0.113.5") != 1 {
		t.Errorf("afterwards the proxy has %d, the client %d", count("192.0.2.1"), count("203.0.113.5"))
	}
}

// A rate that is taken away leaves nothing behind.
func TestRateTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.PerAddress.Rate, o.MessageRate = 5, 100 })
		for i := range 200 {
			r.from(net.IPv4(10, 0, byte(i), 1).String())
			r.accept().end()
		}
		r.remote = nil
		r.upgraded().feed(hello)
		l := *r.server.limits.Load()
		l.PerAddress.Rate, l.MessageRate = 0, 0
		r.server.SetLimits(l)
		r.pass(time.Second, func() {})
		n := r.loop.paces.Len()
		for i := range r.server.admission.scopes[0].shards {
			n += r.server.admission.scopes[0].shards[i].rates.Len()
		}
		if n > 0 {
			t.Errorf("%d keys are remembered", n)
		}
	})
}

// The time of a message is one, however its first frame came.
func TestMessageTimeoutGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.MessageTimeout, o.PingInterval = 2*time.Second, 0 })
		p := r.upgraded()
		began := time.Now()
		f := masked(ws.OpText, false, strings.Repeat("x", 10))
		p.feed(f[:5])
		r.pass(1800*time.Millisecond, func() {})
		p.feed(f[5:])
		r.until(func() bool { return p.c.mode != modeWebSocket }, func() {})
		if d := time.Since(began); d > 2*time.Second+3*tick {
			t.Errorf("closed after %v", d)
		}
	})
}

// A pong that is there, behind what is put off, counts.
func TestPongIsPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.PingInterval, o.PongTimeout = 2*time.Second, time.Second })
		p := r.upgraded()
		r.until(func() bool { return p.c.owed > 0 }, func() {})
		p.feed(append(bytes.Repeat(masked(ws.OpText, true, ""), turnShare), pong...))
		// Others' shares come first: the wheel gets round to the pong's deadline before
		// the inbox does to this peer.
		for range 5 {
			r.loop.start = r.loop.start.Add(-3 * tick) // less than a stall
			for (turnWheel{r.loop}).Run() {
			}
		}
		if p.c.mode != modeWebSocket {
			t.Error("closed although the pong has come")
		}
		r.turn()
	})
}

// What a peer sends before it is let in, and beyond its share, knows the brake as
// well, and who goes already keeps its close frame.
func TestBrakeOnWhatIsHeld(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Listeners[0].Endpoints = append(o.Listeners[0].Endpoints, &Endpoint{
			Path: "/later", Handler: o.Listeners[0].Endpoints[0].Handler, MessageSize: 1 << 10,
			Check: func(q *Request) (Decision, bool) { q.Later(); return Decision{}, false },
		})
	})
	flooder, there := r.upgraded(), r.upgraded()
	later := r.accept()
	later.feed([]byte(strings.Replace(upgradeHead, "/echo", "/later", 1)))
	r.server.SetRoom(0)
	later.feed(make([]byte, 60<<10))
	if !later.gone() {
		t.Error("a head's rest is held")
	}
	r.server.SetRoom(0)
	flooder.feed(bytes.Repeat(masked(ws.OpText, true, ""), 10000))
	if flooder.c.mode == modeWebSocket {
		t.Error("input is put off")
	}
	there.feed(hello)
	if there.c.mode != modeWebSocket {
		t.Error("who holds nothing has gone")
	}
	p, _ := r.blocked()
	p.c.fail(session.ReasonGoingAway)
	waits := p.c.Pending()
	if p.c.giveUp(); p.c.Pending() != waits {
		t.Error("the close frame is gone")
	}
}
