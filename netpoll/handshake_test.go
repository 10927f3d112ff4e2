package netpoll

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"perch/session"
)

// asked is a Check that decides when the test says so.
type asked struct {
	requests []Request
	later    []func(Decision)
}

func (a *asked) check(r *Request) (Decision, bool) {
	c := *r
	c.Path, c.Query, c.Host = strings.Clone(r.Path), strings.Clone(r.Query), strings.Clone(r.Host)
	a.requests = append(a.requests, c)
	a.later = append(a.later, r.Later())
	return Decision{}, false
}

func laterRig(t testing.TB) (*rig, *asked) {
	a := &asked{}
	r := newRig(t, func(o *Options) { o.Listeners[0].Endpoints[0].Check = a.check })
	r.handler.message = func(s *session.Session, data []byte, binary bool) { s.WriteKind(data, binary) }
	return r, a
}

// elsewhere runs f on another goroutine, as a pool's worker would, and lets the
// loop have its turn.
func (r *rig) elsewhere(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
	r.turn()
}

// What comes behind the head while it is checked is kept for the session,
// however it is cut.
func TestCheckLater(t *testing.T) {
	r, a := laterRig(t)
	sent := stream([]byte(upgradeHead), hello, masked(ws.OpText, false, "a"), masked(ws.OpContinuation, true, "b"))
	want := switching + string(stream(served("hello"), served("ab")))
	cuts(sent, func(how string, pieces [][]byte) {
		p := r.accept()
		defer p.end()
		a.later = nil
		if b := p.feedAll(pieces); len(b) > 0 || len(a.later) != 1 || p.c.mode != modeChecking {
			t.Fatalf("%s: answered %q before the decision", how, b)
		}
		r.elsewhere(func() { a.later[0](Decision{Protocol: ""}) })
		if got := string(p.take()); got != want {
			t.Fatalf("%s: answered %q, want %q", how, got, want)
		}
		r.held(p.c)
		// A second decision is nobody's.
		r.elsewhere(func() { a.later[0](Decision{Status: 401}) })
		if p.feed(hello); string(p.take()) != string(served("hello")) {
			t.Fatalf("%s: a second decision counts", how)
		}
	})
}

// The decision comes behind a part of a frame, the rest behind the decision.
func TestCheckLaterWithinFrame(t *testing.T) {
	r, a := laterRig(t)
	for i := range hello {
		p := r.accept()
		a.later = nil
		p.feed([]byte(upgradeHead))
		p.feed(hello[:i])
		r.elsewhere(func() { a.later[0](Decision{Protocol: "x"}) })
		p.feed(hello[i:])
		want := strings.Replace(switching, "\r\n\r\n", "\r\nSec-WebSocket-Protocol: x\r\n\r\n", 1) + string(served("hello"))
		if got := string(p.take()); got != want {
			t.Fatalf("cut at %d: %q, want %q", i, got, want)
		}
		p.end()
	}
}

// A decision about a peer that has gone reaches nobody, least of all the next
// one in its slot.
func TestCheckLaterPeerGone(t *testing.T) {
	r, a := laterRig(t)
	p := r.accept()
	slot := p.c.slot
	p.feed([]byte(upgradeHead))
	p.end()
	q := r.accept()
	q.feed([]byte(upgradeHead))
	if q.c.slot != slot || q.c.mode != modeChecking {
		t.Fatal("the slot is not used again")
	}
	r.elsewhere(func() { a.later[0](Decision{}) })
	if b := q.take(); len(b) > 0 || q.c.mode != modeChecking || len(r.handler.log) > 0 {
		t.Errorf("a decision about another peer: %q, told %q", b, r.handler.log)
	}
	r.elsewhere(func() { a.later[1](Decision{}) })
	if string(q.take()) != switching {
		t.Error("the peer's own decision does not reach it")
	}
	if n := r.server.Stats().Handshakes["aborted"]; n != 1 {
		t.Errorf("%d aborted", n)
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, tt := range []struct {
		status         int
		header, metric string
	}{
		{http.StatusUnauthorized, "WWW-Authenticate: Bearer\r\n", "unauthorized"},
		{http.StatusForbidden, "", "bad_origin"},
		{http.StatusTooManyRequests, "", "refused"},
		{http.StatusServiceUnavailable, "", "refused"},
	} {
		r, a := laterRig(t)
		p := r.accept()
		p.feed(append([]byte(upgradeHead), hello...))
		r.elsewhere(func() { a.later[0](Decision{Status: tt.status, Text: "because"}) })
		got := string(p.take())
		if !strings.HasPrefix(got, "HTTP/1.1 "+http.StatusText(tt.status)) &&
			!strings.Contains(got, tt.header) || !strings.HasSuffix(got, "\r\n\r\nbecause\n") || !p.eof {
			t.Errorf("%d: answered %q", tt.status, got)
		}
		if st := r.server.Stats(); st.Handshakes[tt.metric] != 1 || st.Handshakes["aborted"] != 0 || len(r.handler.log) > 0 {
			t.Errorf("%d: %v, told %q", tt.status, st.Handshakes, r.handler.log)
		}
	}
}

// Before it is let in, a peer is listened to for so long and no longer.
func TestTooMuchBeforeUpgrade(t *testing.T) {
	r, a := laterRig(t)
	p := r.accept()
	p.feed([]byte(upgradeHead))
	var got []byte
	for range 40 {
		p.feed(make([]byte, 2<<10))
		if p.c.in != nil && len(p.c.in.raw.B) > pooledMax {
			t.Fatalf("%d bytes are held", len(p.c.in.raw.B))
		}
		got = append(got, p.take()...)
	}
	if !strings.HasPrefix(string(got), "HTTP/1.1 413 ") || !p.eof || p.c.in != nil {
		t.Errorf("answered %q", got)
	}
	r.elsewhere(func() { a.later[0](Decision{}) })
	if len(p.take()) > 0 || len(r.handler.log) > 0 {
		t.Error("the decision counts behind the refusal")
	}
}

// The handshake's time runs from accept to upgrade, whatever comes meanwhile.
func TestHandshakeTimeout(t *testing.T) {
	for name, each := range map[string]func(p *peer, i int){
		"silent": func(*peer, int) {},
		"drip":   func(p *peer, i int) { p.feed([]byte(upgradeHead[i : i+1])) },
		"empty lines": func(p *peer, _ int) {
			p.feed([]byte("\r\n"))
		},
		"undecided": func(p *peer, i int) {
			if i == 0 {
				p.feed([]byte(upgradeHead))
			} else {
				p.feed(hello)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, a := laterRig(t)
				p := r.accept()
				began := time.Now()
				each(p, 0)
				i := 0
				r.until(p.gone, func() { i++; each(p, i) })
				if took := time.Since(began); took < 5*time.Second || took > 5*time.Second+2*tick {
					t.Errorf("closed after %v", took)
				}
				if len(a.later) > 0 {
					r.elsewhere(func() { a.later[0](Decision{}) })
				}
				st := r.server.Stats()
				if st.Handshakes["timeout"] != 1 || st.Handshakes["aborted"] != 0 || st.Closes["handshake_timeout"] != 1 {
					t.Errorf("%v, %v", st.Handshakes, st.Closes)
				}
			})
		})
	}
}

// A Check or an Open that panics, or an Open that closes, ends one connection.
func TestHandshakeEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		check  func(*Request) (Decision, bool)
		opened func(*session.Session)
		panics uint64
		last   int // the close code; -1: nothing is answered
	}{
		"check panics": {func(*Request) (Decision, bool) { panic("asked for") }, nil, 1, -1},
		"open panics":  {accept, func(*session.Session) { panic("asked for") }, 1, 1011},
		"open closes":  {accept, func(s *session.Session) { s.Close(session.ReasonForced) }, 0, 3503},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Listeners[0].Endpoints[0].Check = tt.check })
			r.handler.opened = tt.opened
			p := r.accept()
			p.feed(append([]byte(upgradeHead), hello...))
			got := p.take()
			if n := r.loop.stats.Panics.Load(); n != tt.panics {
				t.Errorf("%d panics", n)
			}
			if tt.last < 0 {
				if len(got) > 0 || !p.gone() {
					t.Errorf("answered %q", got)
				}
				return
			}
			f, _ := frames(t, bytes.TrimPrefix(got, []byte(switching)))
			if code, _ := closeOf(f[len(f)-1]); len(f) != 1 || code != tt.last || !p.eof {
				t.Errorf("answered %q", got)
			}
			if n := len(r.handler.log); n != 2 {
				t.Errorf("told %q", r.handler.log)
			}
		})
	}
}

// What Check is given is the request's, and its strings live as long as it
// runs.
func TestCheckRequest(t *testing.T) {
	var got Request
	r := newRig(t, func(o *Options) {
		o.Listeners[0].Endpoints[0].Check = func(r *Request) (Decision, bool) {
			got = Request{
				Path: strings.Clone(r.Path), Query: strings.Clone(r.Query), Host: strings.Clone(r.Host),
				Origin: strings.Clone(r.Origin), Authorization: strings.Clone(r.Authorization),
				Protocols: strings.Clone(r.Protocols), UserAgent: r.Remote(),
			}
			return Decision{}, true
		}
	})
	r.accept().feed([]byte(asking("GET /echo?a=b HTTP/1.1", "Origin: o", "Authorization: Bearer t", "Sec-WebSocket-Protocol: p")))
	want := Request{Path: "/echo", Query: "a=b", Host: "x", Origin: "o", Authorization: "Bearer t", Protocols: "p", UserAgent: "192.0.2.1:7"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if r.loop.request != (Request{}) {
		t.Error("the loop's request keeps a head")
	}
}

// Decisions come from a pool while peers come and go: each session that opens
// is closed, and every decision finds its peer or nobody.
func TestCheckLaterStorm(t *testing.T) {
	t.Parallel()
	const n = 200
	h := &counting{}
	var pool sync.WaitGroup
	s, addr := start(t, func(o *Options) {
		o.Listeners[0].Endpoints[0].Handler = h
		o.Listeners[0].Endpoints[0].Check = func(r *Request) (Decision, bool) {
			later := r.Later()
			d := Decision{Protocol: strings.Clone(r.Protocols)}
			pool.Go(func() {
				time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
				later(d)
			})
			return Decision{}, false
		}
	})
	var clients sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range n {
		slots <- struct{}{}
		clients.Go(func() {
			defer func() { <-slots }()
			c := raw(t, addr)
			defer func() { _ = c.Close() }()
			name := fmt.Sprint("peer", i)
			_, _ = c.Write(append([]byte(asking(get, "Sec-WebSocket-Protocol: "+name)), hello...))
			if i%3 == 0 {
				time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
				return // without waiting for the answer
			}
			br := bufio.NewReader(c)
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.Header.Get("Sec-WebSocket-Protocol") != name {
				t.Errorf("%s: %v, %v", name, resp, err)
				return
			}
			if f, err := readFrame(br); err != nil || string(f.Payload) != "hello" {
				t.Errorf("%s: %q, %v", name, f.Payload, err)
			}
		})
	}
	clients.Wait()
	// Who has left without waiting may still be met.
	eventually(t, "connections are left", func() bool {
		st := s.Stats()
		return st.Open == 0 && st.Handshakes["upgraded"]+st.Handshakes["aborted"] == n
	})
	pool.Wait()
	if b, e := h.begun.Load(), h.ended.Load(); b != e || b < n*2/3 {
		t.Errorf("%d sessions opened, %d closed", b, e)
	}
	if st := s.Stats(); st.Panics != 0 || st.Handshakes["upgraded"]+st.Handshakes["aborted"] != n {
		t.Errorf("%v", st.Handshakes)
	}
}
