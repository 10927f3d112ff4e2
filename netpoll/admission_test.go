package netpoll

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestScopes(t *testing.T) {
	a := newAdmission(&Limits{})
	for _, tt := range []struct{ in, address, subnet string }{
		{"192.0.2.1", "192.0.2.1", "192.0.2.0"},
		{"::ffff:192.0.2.1", "192.0.2.1", "192.0.2.0"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::", "2001:db8:1::"},
		{"fe80::1%eth0", "fe80::", "fe80::"},
	} {
		ip := netip.MustParseAddr(tt.in)
		addr := addrOf(&net.TCPAddr{IP: ip.AsSlice(), Zone: ip.Zone()}).Addr()
		if got := a.scopes[0].key(addr).String(); got != tt.address {
			t.Errorf("%s: address %s, want %s", tt.in, got, tt.address)
		}
		if got := a.scopes[1].key(addr).String(); got != tt.subnet {
			t.Errorf("%s: subnet %s, want %s", tt.in, got, tt.subnet)
		}
	}
}

// from makes who comes next come from ip.
func (r *rig) from(ip string) { r.remote = &net.TCPAddr{IP: net.ParseIP(ip), Port: 99} }

// enters opens a connection from ip and returns the status of its handshake.
func (r *rig) enters(ip string) (p *peer, status string) {
	r.from(ip)
	defer func() { r.remote = nil }()
	p = r.accept()
	p.feed([]byte(upgradeHead))
	b := string(p.take())
	status, _, _ = strings.Cut(strings.TrimPrefix(b, "HTTP/1.1 "), " ")
	if status == "429" || status == "503" {
		if i := strings.Index(b, "Retry-After: "); i < 0 || b[i+13] < '1' || b[i+13] > '9' {
			r.t.Errorf("no Retry-After: %q", b)
		}
	}
	return p, status
}

func (r *rig) wantStatus(ip, want string) *peer {
	r.t.Helper()
	p, got := r.enters(ip)
	if got != want {
		r.t.Errorf("from %s: %s, want %s", ip, got, want)
	}
	return p
}

func TestCapPerAddressAndSubnet(t *testing.T) {
	r := newRig(t, func(o *Options) { o.PerAddress.Connections, o.PerSubnet.Connections = 2, 3 })
	first := r.wantStatus("192.0.2.1", "101")
	r.wantStatus("192.0.2.1", "101")
	r.wantStatus("192.0.2.1", "429").end()
	r.wantStatus("192.0.2.2", "101")
	r.wantStatus("192.0.2.3", "429").end() // its subnet is full
	r.wantStatus("192.0.3.1", "101")
	r.wantStatus("2001:db8::1", "101")
	r.wantStatus("2001:db8::ffff", "101")
	r.wantStatus("2001:db8::2", "429").end() // the same /64
	r.wantStatus("2001:db8:0:1::", "101")
	r.wantStatus("2001:db8:0:2::", "429").end() // the same /48
	r.wantStatus("2001:db8:1::", "101")
	first.end()
	r.wantStatus("192.0.2.3", "101")
}

func TestRatePerAddressAndSubnet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.PerAddress.Rate, o.PerSubnet.Rate = 2, 3 })
		for range 2 {
			r.wantStatus("192.0.2.1", "101").end() // that it has gone again does not help
		}
		r.wantStatus("192.0.2.1", "429").end()
		r.wantStatus("192.0.2.2", "101").end()
		r.wantStatus("192.0.2.3", "429").end()
		r.wantStatus("192.0.3.1", "101").end()
		r.pass(500*time.Millisecond, func() {})
		r.wantStatus("192.0.2.1", "101").end()
		r.wantStatus("192.0.2.1", "429").end()
	})
}

// Over the rate of all, new connections wait for their turn, in their order; who
// would wait too long is refused.
func TestConnectionsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.ConnectionRate, o.ConnectionWait = 5, time.Second })
		for range 5 {
			r.wantStatus("192.0.2.1", "101")
		}
		began := time.Now()
		var waiting []*peer
		for range 5 {
			p := r.accept()
			p.feed([]byte(upgradeHead)[:20]) // in pieces
			p.feed([]byte(upgradeHead)[20:])
			p.feed(hello) // a client that does not wait for the answer
			if got := p.take(); len(got) > 0 {
				t.Fatalf("answered at once: %q", got)
			}
			waiting = append(waiting, p)
		}
		r.wantStatus("192.0.2.1", "503").end()
		r.handler.log = nil
		for i, p := range waiting {
			var got []byte
			r.until(func() bool { got = append(got, p.take()...); return len(got) > 0 }, func() {})
			if string(got) != switching {
				t.Errorf("%d: %q", i, got)
			}
			due := time.Duration(i+1) * 200 * time.Millisecond
			if d := time.Since(began); d < due || d > due+2*tick {
				t.Errorf("%d waited %v, want %v", i, d, due)
			}
		}
		if got := strings.Count(strings.Join(r.handler.log, ","), "text:hello"); got != len(waiting) {
			t.Errorf("%d of %d first messages arrived", got, len(waiting))
		}
	})
}

// A drain, and an end, find who waits.
func TestWaitingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.ConnectionRate, o.ConnectionWait = 1, time.Minute })
		r.wantStatus("192.0.2.1", "101")
		wait := func() *peer {
			p := r.accept()
			p.feed([]byte(upgradeHead))
			if p.c.mode != modeWaiting {
				t.Fatalf("mode %d", p.c.mode)
			}
			return p
		}
		wait().end()
		greedy := wait()
		for range 20 {
			greedy.feed(make([]byte, 4<<10))
		}
		if got := greedy.take(); !bytes.HasPrefix(got, []byte("HTTP/1.1 413 ")) {
			t.Errorf("who sends on meanwhile: %q", got)
		}
		p := wait()
		r.server.Refuse()
		var got []byte
		r.until(func() bool { got = append(got, p.take()...); return len(got) > 0 }, func() {})
		if !bytes.HasPrefix(got, []byte("HTTP/1.1 503 ")) {
			t.Errorf("at a drain: %q", got)
		}
	})
}

// Where memory is short nobody is let in, and who is there stays.
func TestTight(t *testing.T) {
	r := newRig(t, nil)
	there := r.upgraded()
	r.server.SetTight(true)
	r.wantStatus("192.0.2.1", "503").end()
	r.server.SetTight(false)
	r.wantStatus("192.0.2.1", "101")
	there.feed(hello)
	if there.gone() {
		t.Error("who was there is gone")
	}
}

// answer sends a head and returns the answer's status, after a look at its
// Retry-After.
func answer(t *testing.T, addr string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = fmt.Fprint(c, upgradeHead)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || n < 1 {
			t.Errorf("%d with Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
		}
	}
	return resp.StatusCode
}

func TestAddressCap(t *testing.T) {
	s, addr := start(t, func(o *Options) { o.PerAddress.Connections = 2 })
	a, b := dial(t, addr, "/echo"), dial(t, addr, "/echo")
	if got := answer(t, addr); got != http.StatusTooManyRequests {
		t.Errorf("third connection: %d", got)
	}
	_ = a.Close()
	_ = b.Close()
	eventually(t, "the others don't go", func() bool { return s.Stats().Open == 0 })
	if got := answer(t, addr); got != http.StatusSwitchingProtocols {
		t.Errorf("after the others have gone: %d", got)
	}
}

// A connection that net/http serves is still one of its address.
func TestAddressCapOverHTTP(t *testing.T) {
	s, addr := start(t, func(o *Options) { o.PerAddress.Connections = 1 })
	serveHTTP(t, s)
	c := raw(t, addr)
	_, _ = fmt.Fprint(c, "GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if got := answer(t, addr); got != http.StatusTooManyRequests {
		t.Errorf("a second connection: %d", got)
	}
	_ = c.Close()
	eventually(t, "the connection is not given back", func() bool { return s.handed.Load() == 0 && s.Stats().Open == 0 })
	if got := answer(t, addr); got != http.StatusSwitchingProtocols {
		t.Errorf("after it has gone: %d", got)
	}
}

// However many are refused, the log says so once in a while.
func TestRefusalsAreTold(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	_, addr := start(t, func(o *Options) {
		o.ConnectionRate = 1
		o.Logger = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), nil))
	})
	for range 6 {
		answer(t, addr)
	}
	mu.Lock()
	defer mu.Unlock()
	if n := bytes.Count(log.Bytes(), []byte("connections are refused")); n != 1 {
		t.Errorf("told %d times: %s", n, log.Bytes())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
