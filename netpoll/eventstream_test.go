package netpoll

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"perch/session"
)

const streamRequest = "GET /events?a=1 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nLast-Event-ID: seven\r\nConnection: keep-alive\r\n\r\n"

// event is one as a handler makes it.
func event(payload string) []byte { return []byte("data: " + payload + "\n\n") }

func lastEvent(code uint16, text string) []byte { return event(fmt.Sprintf("last %d %s", code, text)) }

func eventsEndpoint(h session.Handler) *Endpoint {
	return &Endpoint{
		Path: "/events", Handler: h, MessageSize: 1000, Events: true, Last: lastEvent, ConnectTimeout: 10 * time.Second,
		Check: func(*Request) (Decision, bool) { return Decision{Encoding: session.EncodingEvents}, true },
	}
}

var retryLine = regexp.MustCompile(`(?s)^(HTTP/1\.1 200 .*?\r\n\r\n)retry: ([1-4]\d\d\d)\n\n`)

// answered is what a peer has read, without the time of its return, which no two
// peers share.
func answered(b []byte) string { return retryLine.ReplaceAllString(string(b), "$1") }

// eventsRig serves event streams whose sessions are connected from the start.
func eventsRig(t testing.TB, change func(*Options, *Endpoint)) *rig {
	r := newRig(t, func(o *Options) {
		e := eventsEndpoint(o.Listeners[0].Endpoints[0].Handler)
		o.Listeners[0].Endpoints = append(o.Listeners[0].Endpoints, e)
		if change != nil {
			change(o, e)
		}
	})
	r.handler.opened = func(s *session.Session) {
		s.State = session.StateConnected
		s.StartHeartbeat()
	}
	return r
}

// streamed opens an event stream.
func (r *rig) streamed() *peer {
	r.t.Helper()
	p := r.accept()
	p.feed([]byte(streamRequest))
	if got := answered(p.take()); got != eventsHead+"\r\n" {
		r.t.Fatalf("the answer is %q", got)
	}
	return p
}

// The request may be cut anywhere; the answer is the same, and the handler's
// events follow it.
func TestEventStream(t *testing.T) {
	var seen Request
	r := eventsRig(t, func(_ *Options, e *Endpoint) {
		e.Check = func(q *Request) (Decision, bool) {
			seen = Request{Path: strings.Clone(q.Path), Query: strings.Clone(q.Query), LastEventID: strings.Clone(q.LastEventID)}
			return Decision{Encoding: session.EncodingEvents, Header: "Vary: Origin\r\n", Identity: 7}, true
		}
	})
	opened := r.handler.opened
	r.handler.opened = func(s *session.Session) {
		opened(s)
		s.Write(event("own"))
		s.WriteFrame(event("shared"))
	}
	want := eventsHead + "Vary: Origin\r\n\r\n" + string(event("own")) + string(event("shared"))
	cuts([]byte(streamRequest), func(how string, pieces [][]byte) {
		r.handler.log = nil
		p := r.accept()
		defer p.end()
		if got := answered(p.feedAll(pieces)); got != want {
			t.Fatalf("%s: answered %q", how, got)
		}
		if seen != (Request{Path: "/events", Query: "a=1", LastEventID: "seven"}) {
			t.Fatalf("%s: asked for %+v", how, seen)
		}
		if !slices.Equal(r.handler.log, []string{"open"}) || p.sess().Encoding != session.EncodingEvents {
			t.Fatalf("%s: told %q", how, r.handler.log)
		}
		r.post(func() { p.sess().Write([]byte("id: 1\ndata: later\n\n")) })
		if got := string(p.take()); got != "id: 1\ndata: later\n\n" {
			t.Fatalf("%s: then came %q", how, got)
		}
	})
	st := r.server.Stats()
	if n := uint64(len(streamRequest) + 1); st.Handshakes["streamed"] != n || st.Handshakes["upgraded"] != 0 || st.MessagesOut != 3*n {
		t.Errorf("handshakes %v, %d messages", st.Handshakes, st.MessagesOut)
	}
	if len(want) > joinBytes {
		t.Fatal("the test is of no use")
	}
}

func TestEventStreamRequests(t *testing.T) {
	ok := "GET /events HTTP/1.1\r\nHost: x\r\n"
	for _, tt := range []struct {
		name, head string
		status     int // 0: it is net/http's
	}{
		{"plain", ok, 200},
		{"of a proxy", "GET /events HTTP/1.0\r\nConnection: close\r\n", 200},
		{"of a proxy, with Host", "GET /events HTTP/1.0\r\nHost: x\r\n", 200},
		{"absolute", "GET http://x/events HTTP/1.1\r\nHost: x\r\n", 200},
		{"another upgrade", ok + "Connection: Upgrade\r\nUpgrade: h2c\r\n", 200},
		{"empty body", ok + "Content-Length: 0\r\n", 200},
		{"HTTP/2", "GET /events HTTP/2.0\r\nHost: x\r\n", 0},
		{"POST", "POST /events HTTP/1.1\r\nHost: x\r\n", 0},
		{"HEAD", "HEAD /events HTTP/1.1\r\nHost: x\r\n", 0},
		{"OPTIONS", "OPTIONS /events HTTP/1.1\r\nHost: x\r\n", 0},
		{"another path", "GET /events/ HTTP/1.1\r\nHost: x\r\n", 0},
		{"no Host", "GET /events HTTP/1.1\r\n", 400},
		{"two Hosts", ok + "Host: y\r\n", 400},
		{"two Hosts of a proxy", "GET /events HTTP/1.0\r\nHost: x\r\nHost: y\r\n", 400},
		{"bad Host", "GET /events HTTP/1.1\r\nHost: a b\r\n", 400},
		{"WebSocket", ok + "Connection: Upgrade\r\nUpgrade: websocket\r\n", 400},
		{"body", ok + "Content-Length: 1\r\n", 400},
		{"coding", ok + "Transfer-Encoding: chunked\r\n", 400},
		{"two Origins", ok + "Origin: http://x\r\nOrigin: http://y\r\n", 400},
		{"two Authorizations", ok + "Authorization: a\r\nAuthorization: b\r\n", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := eventsRig(t, nil)
			p := r.accept()
			p.feed([]byte(tt.head + "\r\n"))
			got := string(p.take())
			switch {
			case tt.status == 0:
				if h := r.handed(); h == nil || string(h.prefix) != tt.head+"\r\n" || got != "" {
					t.Errorf("answered %q, handed off %v", got, h)
				}
			case !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d ", tt.status)):
				t.Errorf("answered %q", got)
			case tt.status == 200:
				if !strings.HasSuffix(answered([]byte(got)), "\r\n\r\n") || p.c.mode != modeEvents {
					t.Errorf("answered %q", got)
				}
			default:
				checkProblem(t, got, "bad_request", "")
				if !p.eof || len(r.handler.log) > 0 {
					t.Errorf("told %q, ended %v", r.handler.log, p.eof)
				}
			}
		})
	}
}

// checkProblem looks at a refusal: a JSON body of the length announced.
func checkProblem(t *testing.T, answer, code, description string) {
	t.Helper()
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	if !strings.Contains(head, "Content-Type: application/json\r\n") ||
		!strings.Contains(head, fmt.Sprintf("\r\nContent-Length: %d", len(body))) {
		t.Errorf("the head is %q with a body of %d", head, len(body))
	}
	var p struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Error != code ||
		p.Description == "" || description != "" && p.Description != description {
		t.Errorf("the body is %q: %v", body, err)
	}
}

func TestEventStreamRefused(t *testing.T) {
	for _, tt := range []struct {
		status       int
		code, metric string
	}{
		{http.StatusBadRequest, "bad_request", "refused"},
		{http.StatusUnauthorized, "unauthorized", "unauthorized"},
		{http.StatusForbidden, "forbidden", "bad_origin"},
		{http.StatusServiceUnavailable, "service_unavailable", "refused"},
	} {
		a := &asked{}
		r := eventsRig(t, func(_ *Options, e *Endpoint) { e.Check = a.check })
		p := r.accept()
		p.feed([]byte(streamRequest))
		if got := p.take(); len(got) > 0 || p.c.mode != modeChecking {
			t.Fatalf("answered %q before the decision", got)
		}
		r.elsewhere(func() {
			a.later[0](Decision{Status: tt.status, Text: `the "reason"`, Header: "Access-Control-Allow-Origin: http://y\r\n"})
		})
		got := string(p.take())
		checkProblem(t, got, tt.code, `the "reason"`)
		if !strings.Contains(got, "\r\nAccess-Control-Allow-Origin: http://y\r\n") || !p.eof {
			t.Errorf("%d: answered %q", tt.status, got)
		}
		if (tt.status == http.StatusUnauthorized) != strings.Contains(got, "\r\nWWW-Authenticate: Bearer\r\n") {
			t.Errorf("%d: answered %q", tt.status, got)
		}
		if st := r.server.Stats(); st.Handshakes[tt.metric] != 1 || len(r.handler.log) > 0 {
			t.Errorf("%d: %v, told %q", tt.status, st.Handshakes, r.handler.log)
		}
	}
}

// Who says more than the request has taken the path for something else, whether
// it came with the request, while that was checked, or later.
func TestEventStreamSilence(t *testing.T) {
	for _, when := range []string{"with the head", "while checked", "later"} {
		t.Run(when, func(t *testing.T) {
			a := &asked{}
			r := eventsRig(t, func(_ *Options, e *Endpoint) { e.Check = a.check })
			p := r.accept()
			switch when {
			case "with the head":
				p.feed([]byte(streamRequest + "x"))
			case "while checked":
				p.feed([]byte(streamRequest))
				p.feed([]byte("x"))
			default:
				p.feed([]byte(streamRequest))
			}
			r.elsewhere(func() { a.later[0](Decision{Encoding: session.EncodingEvents}) })
			if when == "later" {
				if got := answered(p.take()); got != eventsHead+"\r\n" {
					t.Fatalf("answered %q", got)
				}
				p.feed([]byte("x"))
			}
			got := string(p.take())
			if !strings.HasSuffix(got, string(lastEvent(3501, "bad request"))) || !p.eof {
				t.Errorf("answered %q, ended %v", got, p.eof)
			}
			if want := []string{"open", "closed:bad_request"}; !slices.Equal(r.handler.log, want) {
				t.Errorf("told %q", r.handler.log)
			}
			p.feed(bytes.Repeat([]byte("x"), 100_000)) // thrown away
			if p.c.in != nil {
				t.Error("it is kept")
			}
		})
	}
}

// The last event says why, then comes the end; nothing is written behind it.
func TestEventStreamEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(s *session.Session)
		want string
		told string
	}{
		{"of the table", func(s *session.Session) { s.Close(session.ReasonForced) },
			string(lastEvent(3503, "force disconnect")), "closed:forced"},
		{"custom", func(s *session.Session) { s.CloseCustom(4000, "go") }, string(lastEvent(4000, "go")), "closed:custom"},
		{"without a code", func(s *session.Session) { s.Close(session.ReasonPeerGone) }, "", "closed:peer_gone"},
		{"twice", func(s *session.Session) {
			s.Close(session.ReasonShutdown)
			s.Close(session.ReasonForced)
		}, string(lastEvent(3001, "shutdown")), "closed:shutdown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := eventsRig(t, nil)
			p := r.streamed()
			r.post(func() {
				p.sess().Write(event("a"))
				tt.end(p.sess())
				p.sess().Write(event("b"))
				p.sess().WriteFrame(event("c"))
			})
			if got := string(p.take()); got != string(event("a"))+tt.want || !p.eof {
				t.Errorf("read %q, ended %v", got, p.eof)
			}
			if got := r.handler.log[len(r.handler.log)-1]; got != tt.told || len(r.handler.log) != 2 {
				t.Errorf("told %q", r.handler.log)
			}
		})
	}
	r := eventsRig(t, func(_ *Options, e *Endpoint) { e.Last = nil })
	p := r.streamed()
	r.post(func() { p.sess().Close(session.ReasonForced) })
	if got := p.take(); len(got) > 0 || !p.eof {
		t.Errorf("read %q, ended %v", got, p.eof)
	}
}

// A comment comes each interval, and no answer is waited for.
func TestEventStreamHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := eventsRig(t, nil)
		p := r.streamed()
		pings, apart := 0, time.Time{}
		r.pass(10*time.Minute, func() {
			b := p.take()
			if len(b) == 0 {
				return
			}
			if string(b) != ":\n\n" {
				t.Fatalf("read %q", b)
			}
			pings++
			if d := time.Since(apart); !apart.IsZero() && (d < 25*time.Second || d > 25*time.Second+2*tick) {
				t.Fatalf("%v between two pings", d)
			}
			apart = time.Now()
		})
		if pings < 22 || pings > 24 || p.gone() || r.loop.stats.Pings.Load() != uint64(pings) {
			t.Errorf("%d pings in ten minutes, %d counted, gone: %v", pings, r.loop.stats.Pings.Load(), p.gone())
		}
	})
}

func TestEventStreamConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := eventsRig(t, nil)
		r.handler.opened = nil
		p := r.streamed()
		var got []byte
		began := time.Now()
		r.until(func() bool { return p.eof }, func() { got = append(got, p.take()...) })
		if took := time.Since(began); took < 10*time.Second || took > 10*time.Second+2*tick {
			t.Errorf("stale after %v", took)
		}
		if string(got) != string(lastEvent(3502, "stale")) {
			t.Errorf("read %q", got)
		}
	})
}

// The session's end in time is the handler's, as for a WebSocket.
func TestEventStreamExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := eventsRig(t, nil)
		r.handler.expire = func(s *session.Session) { s.Close(session.ReasonExpired) }
		p := r.streamed()
		r.post(func() { p.sess().SetExpiry(time.Now().Unix() - 1) })
		var got []byte
		r.until(func() bool { return p.eof }, func() { got = append(got, p.take()...) })
		if string(got) != string(lastEvent(3005, "connection expired")) {
			t.Errorf("read %q", got)
		}
	})
}

// Peers that come together are told to come back apart.
func TestEventStreamRetry(t *testing.T) {
	r := eventsRig(t, nil)
	seen := map[string]int{}
	for range 200 {
		p := r.accept()
		p.feed([]byte(streamRequest))
		m := retryLine.FindSubmatch(p.take())
		if m == nil {
			t.Fatal("no time to come back")
		}
		seen[string(m[2])]++
		p.end()
	}
	if len(seen) < 150 {
		t.Errorf("%d times for 200 peers", len(seen))
	}
}

// Of a slow reader's stream whole events are left, and it reads why it ends.
func TestEventStreamSlow(t *testing.T) {
	for name, write := range map[string]func(s *session.Session, i int){
		"shared": func(s *session.Session, i int) {
			s.WriteFrame(event(fmt.Sprintf("%d%s", i, strings.Repeat("s", 1000))))
		},
		"own": func(s *session.Session, i int) {
			s.Write([]byte(fmt.Sprintf("id: %d\ndata: %d%s\n\n", i, i, strings.Repeat("o", 1000))))
		},
		"both": func(s *session.Session, i int) {
			s.Write([]byte(fmt.Sprintf("id: %d\n%s", i, event(fmt.Sprint(i)))))
			s.WriteFrame(event("shared"))
			s.WriteFrame(eventPing)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := eventsRig(t, func(o *Options, _ *Endpoint) { o.PendingBytes = 50_000 })
			p := r.streamed()
			_ = unix.SetsockoptInt(p.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
			var sent []byte
			for i := 0; p.c.mode == modeEvents && i < 100_000; i++ {
				r.post(func() {
					n := p.c.Pending()
					write(p.sess(), i)
					if p.c.mode == modeEvents && p.c.out != nil && p.c.out.blocked && p.c.Pending() < n {
						t.Fatal("fewer bytes wait")
					}
				})
				e := &recorderTransport{}
				write(e.session(), i)
				sent = append(sent, e.b...)
			}
			if r.loop.stats.Slow.Load() != 1 || p.c.mode != modeLinger {
				t.Fatalf("%d slow, mode %d", r.loop.stats.Slow.Load(), p.c.mode)
			}
			got := p.drain()
			last := lastEvent(3008, "slow")
			if !bytes.HasSuffix(got, last) || !p.eof {
				t.Fatalf("read %d bytes, ended %v: %q", len(got), p.eof, got[max(0, len(got)-100):])
			}
			rest := got[:len(got)-len(last)]
			if !bytes.HasPrefix(sent, rest) || !bytes.HasSuffix(rest, []byte("\n\n")) {
				t.Errorf("%d of %d bytes, the last of them %q", len(rest), len(sent), rest[max(0, len(rest)-100):])
			}
		})
	}
}

// recorderTransport keeps what is written.
type recorderTransport struct {
	session.Transport
	s session.Session
	b []byte
}

func (r *recorderTransport) WriteMessage(p []byte, _ bool) { r.b = append(r.b, p...) }
func (r *recorderTransport) WriteFrame(p []byte)           { r.b = append(r.b, p...) }
func (r *recorderTransport) session() *session.Session {
	r.s.Open(r, nil, 1)
	return &r.s
}

// Whatever has been sent, what is left after shedding ends an event.
func TestEventStreamShed(t *testing.T) {
	for sent, total := 0, 1; sent < total; sent++ {
		r := eventsRig(t, nil)
		p := r.accept()
		c := p.c
		c.mode, c.endpoint = modeEvents, r.server.only.endpoints["/events"]
		all := []byte(eventsHead + "\r\n")
		c.writeRaw(all)
		ends := []int{len(all)} // the answer's head goes whole or not at all
		for i := range 12 {
			e := event(strings.Repeat("x", i*3))
			if i%4 < 2 {
				e = append([]byte("id: 1\n"), e...)
				c.WriteMessage(e, false)
			} else {
				c.WriteFrame(e)
			}
			all = append(all, e...)
			ends = append(ends, len(all))
		}
		o := c.out
		o.seal()
		total = len(all)
		o.advance(sent)
		c.shed()
		left := slices.Clone(bytes.Join(o.parts, nil)[o.off:])
		if len(left) != o.bytes || !bytes.HasPrefix(all[sent:], left) {
			t.Fatalf("%d sent: %d bytes left, %d noted", sent, len(left), o.bytes)
		}
		if at, _ := slices.BinarySearch(ends, sent); sent+len(left) != ends[at] {
			t.Fatalf("%d sent: %d left, want %d", sent, len(left), ends[at]-sent)
		}
		r.end()
	}
}

func TestEventLength(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want int
	}{
		{":\n\n", 3}, {":\n\ndata: x\n\n", 3}, {"data: x\n\n", 9}, {"id: 1\ndata: x\ndata: y\n\nid", 23}, {"data: x\n", 8}, {"", 0},
	} {
		if got := eventLength([]byte(tt.in)); got != tt.want {
			t.Errorf("%q: %d, want %d", tt.in, got, tt.want)
		}
	}
}

// An idle event stream holds what an idle WebSocket does: a slot, and nothing of
// its own; and a message to it allocates nothing.
func TestEventStreamCostsNothing(t *testing.T) {
	r := eventsRig(t, nil)
	r.handler.quiet = true
	p := r.streamed()
	r.post(func() { p.sess().Write(event("a")) })
	p.take()
	if p.c.in != nil || p.c.out != nil {
		t.Error("an idle stream holds buffers")
	}
	if raceEnabled {
		return
	}
	own, shared := event(strings.Repeat("o", 100)), event(strings.Repeat("s", 100))
	turn := func() {
		p.sess().Write(own)
		p.sess().WriteFrame(shared)
		r.loop.flushDirty()
		if n, err := unix.Read(p.fd, r.buf[:]); n != len(own)+len(shared) || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	if n := testing.AllocsPerRun(1000, turn); n > 0 {
		t.Errorf("%v allocations for two events", n)
	}
}

// movingEvents is a handler of event streams that can move.
type movingEvents struct{ movingEcho }

func (e movingEvents) Open(s *session.Session, id any) {
	s.State = session.StateConnected
	e.movingEcho.Open(s, id)
}

// openStream asks for an event stream on a real socket.
func openStream(t *testing.T, addr string) net.Conn {
	t.Helper()
	c := raw(t, addr)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, streamRequest); err != nil {
		t.Fatal(err)
	}
	expectStream(t, c)
	return c
}

// expectStream reads the answer and the time of return.
func expectStream(t *testing.T, c io.Reader) {
	t.Helper()
	expect(t, c, eventsHead+"\r\nretry: ")
	b := make([]byte, 6)
	if _, err := io.ReadFull(c, b); err != nil || b[0] < '1' || b[0] > '4' || string(b[4:]) != "\n\n" {
		t.Fatalf("read %q, %v", b, err)
	}
}

func expect(t *testing.T, c io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %.300q, %v; want %.300q", b[:n], err, want)
	}
}

// A stream moves with what its peer has not read yet, and goes on; where the
// other server has no streams at the path it ends.
func TestMoveEventStream(t *testing.T) {
	h := movingEvents{movingEcho{opened: make(chan session.ID, 1)}}
	with := func(events bool) func(*Options) {
		return func(o *Options) {
			o.PendingBytes = 64 << 20
			e := eventsEndpoint(h)
			e.Events = events
			o.Listeners[0].Endpoints = append(o.Listeners[0].Endpoints, e)
		}
	}
	a, addr := start(t, with(true))
	b, _ := start(t, with(true))
	other, _ := start(t, with(false))
	bare, _ := start(t, nil)

	c := openStream(t, addr)
	id := <-h.opened
	big := event(strings.Repeat("p", 8<<20))
	a.Loop(id.Loop()).Post(0, id, func(s *session.Session) {
		s.WriteFrame(big)
		s.Write(event("behind"))
	})
	eventually(t, "nothing is pending", func() bool { return a.Stats().PendingBytes > 0 })
	m := export(t, a, id)
	if m.err != nil || len(m.state.Pending) == 0 {
		t.Fatalf("pending %d, %v", len(m.state.Pending), m.err)
	}
	if err := b.Import(m.state, m.file); err != nil {
		t.Fatal(err)
	}
	expect(t, c, string(big)+string(event("behind")))
	<-b.EachSession(func(s *session.Session) { s.Write(event("from the other")) })
	expect(t, c, string(event("from the other")))
	<-b.EachSession(func(s *session.Session) { s.Close(session.ReasonShutdown) })
	if rest, err := io.ReadAll(c); err != nil || string(rest) != string(lastEvent(3001, "shutdown")) {
		t.Errorf("read %q, %v", rest, err)
	}

	c = openStream(t, addr)
	if m = export(t, a, <-h.opened); m.err != nil {
		t.Fatal(m.err)
	}
	if err := other.Import(m.state, m.file); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read %q, %v", rest, err)
	}
	_ = openStream(t, addr)
	if m = export(t, a, <-h.opened); m.err != nil {
		t.Fatal(m.err)
	}
	if err := bare.Import(m.state, m.file); err == nil {
		t.Error("a server without the path takes it")
	}
	if n := a.Stats().Sessions + other.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// The kernel ends a connection whose peer acknowledges nothing: nobody else would
// notice.
func TestEventStreamBoundsSilence(t *testing.T) {
	for _, tt := range []struct {
		interval time.Duration
		want     int
	}{{25 * time.Second, 61_500}, {0, 0}} {
		s, addr := start(t, func(o *Options) {
			o.PingInterval, o.PingMisses = tt.interval, 2
			o.Listeners[0].Endpoints = append(o.Listeners[0].Endpoints, eventsEndpoint(&recorder{quiet: true}))
		})
		openStream(t, addr)
		got := make(chan int, 1)
		<-s.EachSession(func(p *session.Session) {
			c := s.loop(p.ID().Loop()).find(p.ID())
			n, err := unix.GetsockoptInt(int(c.fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			if err != nil {
				t.Error(err)
			}
			got <- n
		})
		if n := <-got; n != tt.want {
			t.Errorf("%d ms, want %d", n, tt.want)
		}
	}
}

// A request that net/http has read is adopted.
func TestEventStreamAdopted(t *testing.T) {
	s, addr := start(t, func(o *Options) {
		o.Listeners[0].Endpoints = append(o.Listeners[0].Endpoints, eventsEndpoint(&recorder{quiet: true}))
	})
	c := raw(t, addr)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	handed, err := s.Listener().Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(handed, []byte(streamRequest)); err != nil {
		t.Fatal(err)
	}
	expectStream(t, c)
	// What is none of the loop's would only go round.
	c = raw(t, addr)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if handed, err = s.Listener().Accept(); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(handed, []byte(strings.Replace(streamRequest, "GET", "POST", 1))); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "HTTP/1.1 404 ")
}
