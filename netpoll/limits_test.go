package netpoll

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"golang.org/x/sys/unix"

	"perch/session"
)

// Every connection costs a conn, idle or not. What makes it larger stands in
// docs/memory.md too; what not all connections have stands behind a pointer.
func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(conn{}); n != 232 {
		t.Errorf("a conn has %d bytes", n)
	}
}

// raw opens a TCP connection to addr, with a deadline for the test's sake.
func raw(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn)
}

// serveHTTP answers what is handed off with the path asked for.
func serveHTTP(t testing.TB, s *Server) {
	t.Helper()
	hs := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, r.URL.Path)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = hs.Serve(s.Listener()) })
	t.Cleanup(func() {
		_ = hs.Close()
		wg.Wait()
	})
}

// eventually waits for what a loop does in its own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// At the hard cap connections are closed without a word, and there is room
// again when others have gone.
func TestHardCap(t *testing.T) {
	t.Parallel()
	s, addr := start(t, func(o *Options) { o.Connections, o.HardConnections, o.Loops = 2, 3, 1 })
	a := dial(t, addr, "/echo")
	dial(t, addr, "/echo")
	over := raw(t, addr) // gets a 503 once it asks
	eventually(t, "the third is not accepted", func() bool { return s.Stats().Open == 3 })
	for range 3 {
		c := raw(t, addr)
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("read %q, %v", b, err)
		}
	}
	if st := s.Stats(); st.Refused != 3 || st.Open != 3 || s.open.Load() != 3 {
		t.Errorf("%d refused, %d open, %d counted", st.Refused, st.Open, s.open.Load())
	}
	_, _ = over.Write([]byte(upgradeHead))
	resp, err := http.ReadResponse(bufio.NewReader(over), nil)
	if err != nil || resp.StatusCode != 503 {
		t.Fatalf("got %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	_ = over.Close()
	_ = a.Close()
	eventually(t, "who is gone is counted", func() bool { return s.Stats().Open == 1 })
	dial(t, addr, "/echo")
}

// Above the soft cap the answer is a 503 that arrives, also when the peer has
// sent much more than its head and goes on sending.
func TestSoftCap(t *testing.T) {
	t.Parallel()
	s, addr := start(t, func(o *Options) { o.Connections = 1 })
	dial(t, addr, "/echo")
	after := make(map[string]bool)
	for i := range 24 {
		c := raw(t, addr)
		sent := append([]byte(upgradeHead), bytes.Repeat([]byte("more"), i%4*64<<10)...)
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			_, _ = c.Write(sent)
		}()
		if i%2 == 0 {
			<-wrote // the answer is read when all has been sent
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("with %d bytes sent: %v", len(sent), err)
		}
		body, err := io.ReadAll(resp.Body)
		if resp.StatusCode != 503 || string(body) != "too many connections\n" || err != nil || !resp.Close {
			t.Errorf("got %d %q, %v", resp.StatusCode, body, err)
		}
		n, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || n < 1 || n > 10 {
			t.Errorf("Retry-After: %q", resp.Header.Get("Retry-After"))
		}
		after[resp.Header.Get("Retry-After")] = true
		<-wrote
		_ = c.Close()
	}
	if len(after) < 4 {
		t.Errorf("those who are refused together come back together: %v", after)
	}
	if st := s.Stats(); st.Handshakes["overload"] != 24 || st.Sessions != 1 {
		t.Errorf("%v", st.Handshakes)
	}
}

// A drain refuses who comes, and keeps who is there.
func TestRefuse(t *testing.T) {
	t.Parallel()
	s, addr := start(t, nil)
	a := dial(t, addr, "/echo")
	s.Refuse()
	c := raw(t, addr)
	_, _ = c.Write([]byte(upgradeHead))
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 503 {
		t.Fatalf("got %v, %v", resp, err)
	}
	if err := wsutil.WriteClientText(a, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got, _, err := wsutil.ReadServerData(a); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
}

// The connections with net/http are bounded, and their places come back.
func TestHTTPConnections(t *testing.T) {
	t.Parallel()
	s, addr := start(t, func(o *Options) { o.HTTPConnections = 2 })
	serveHTTP(t, s)
	ask := func(c net.Conn) (int, string) {
		t.Helper()
		_, _ = io.WriteString(c, "GET /path HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for range 3 {
		a, b := raw(t, addr), raw(t, addr)
		for range 2 { // they are kept alive
			for _, c := range []net.Conn{a, b} {
				if code, body := ask(c); code != 200 || body != "/path" {
					t.Fatalf("got %d %q", code, body)
				}
			}
		}
		before := s.Stats().HTTPRefused
		if code, body := ask(raw(t, addr)); code != 503 || body != "too many connections\n" {
			t.Errorf("a third: %d %q", code, body)
		}
		if st := s.Stats(); st.HTTP != 2 || st.HTTPRefused != before+1 {
			t.Errorf("%d with net/http, %d refused", st.HTTP, st.HTTPRefused-before)
		}
		_ = a.Close()
		_ = b.Close()
		eventually(t, "a place does not come back", func() bool { return s.Stats().HTTP == 0 })
	}
}

// When net/http has ended, or takes nothing, a request is answered all the
// same.
func TestHandOffWithoutHTTP(t *testing.T) {
	r := newRig(t, func(o *Options) { o.HTTPConnections = 1 << 20 })
	request := [][]byte{[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")}
	n := 0
	for ; n < 1<<12; n++ {
		p := r.accept()
		p.feed(request[0])
		if b := p.take(); len(b) > 0 {
			if !bytes.HasPrefix(b, []byte("HTTP/1.1 503 ")) {
				t.Errorf("answered %q", b)
			}
			break
		}
		p.end()
	}
	if n != cap(r.server.front.conns) || int(r.server.handed.Load()) != n {
		t.Errorf("%d wait for net/http, %d are counted", n, r.server.handed.Load())
	}
	// The end closes what waits.
	_ = r.server.front.Close()
	if _, err := r.server.front.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	for range n {
		if _, err := r.server.front.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("Accept: %v", err)
		}
	}
	if h := r.server.handed.Load(); h != 0 {
		t.Errorf("%d counted at the end", h)
	}
	// Nobody will take it any more.
	if got := r.outcome(request); got != "503" {
		t.Errorf("behind the end of net/http: %s", got)
	}
}

// The same path on another port is another endpoint, or none.
func TestTwoListeners(t *testing.T) {
	t.Parallel()
	second := freeAddr(t)
	named := func(path, name string) *Endpoint {
		return &Endpoint{Path: path, MessageSize: 1024, Check: accept,
			Handler: &recorder{quiet: true, opened: func(s *session.Session) { s.Write([]byte(name)) }}}
	}
	s, first := start(t, func(o *Options) {
		o.Listeners[0].Endpoints = []*Endpoint{named("/a", "first a"), named("/both", "first both")}
		o.Listeners = append(o.Listeners, Listener{Addr: second, Endpoints: []*Endpoint{named("/b", "second b"), named("/both", "second both")}})
	})
	serveHTTP(t, s)
	for _, tt := range []struct{ addr, path, want string }{
		{first, "/a", "first a"}, {first, "/both", "first both"}, {second, "/b", "second b"}, {second, "/both", "second both"},
		{first, "/b", ""}, {second, "/a", ""},
	} {
		for range 6 { // on either loop
			c := raw(t, tt.addr)
			_, _ = io.WriteString(c, asking("GET "+tt.path+" HTTP/1.1"))
			br := bufio.NewReader(c)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != tt.path {
					t.Errorf("%s on the other port: %d %q", tt.path, resp.StatusCode, b)
				}
				continue
			}
			f, err := readFrame(br)
			if err != nil || string(f.Payload) != tt.want {
				t.Errorf("%s: got %q, %v, want %q", tt.path, f.Payload, err, tt.want)
			}
			_ = c.Close()
		}
	}
}

func TestAdoptForeign(t *testing.T) {
	t.Parallel()
	s, _ := start(t, nil)
	a, b := net.Pipe()
	if err := s.Adopt(a, []byte(upgradeHead)); err == nil {
		t.Error("a foreign connection is adopted")
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("it stays open: %v", err)
	}
}

// Adopt takes a connection once, and on an engine that has ended it fails.
func TestAdoptTwice(t *testing.T) {
	t.Parallel()
	s, addr := start(t, nil)
	conns := make(chan net.Conn, 1)
	go func() {
		for {
			c, err := s.Listener().Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	c := raw(t, addr)
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	h := <-conns
	if err := s.Adopt(h, []byte(upgradeHead)); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(h, []byte(upgradeHead)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second time: %v", err)
	}
	got := make([]byte, len(switching))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != switching {
		t.Errorf("got %q, %v", got, err)
	}
	if n := s.Stats().HTTP; n != 0 {
		t.Errorf("%d with net/http", n)
	}
}

// counting is a Handler that counts its calls on all loops.
type counting struct {
	recorder
	begun, ended atomic.Int64
}

func (h *counting) Open(s *session.Session, _ any) {
	s.State = session.StateConnected
	h.begun.Add(1)
}
func (h *counting) Message(s *session.Session, data []byte, binary bool) {
	s.WriteKind(data, binary)
}
func (h *counting) Closed(*session.Session, session.Reason) { h.ended.Add(1) }

// Whatever state its connections are in, Stop ends them, each session once.
func TestStopInAllStates(t *testing.T) {
	t.Parallel()
	h := &counting{}
	var later []func(Decision)
	var mu sync.Mutex
	var s *Server
	var loops []*loop
	var held []net.Conn
	t.Run("server", func(t *testing.T) { // it is stopped at the end of this
		var addr string
		s, addr = start(t, func(o *Options) {
			o.PendingBytes = 1 << 30
			o.Listeners[0].Endpoints = []*Endpoint{
				{Path: "/echo", Handler: h, MessageSize: 1 << 20, Check: accept},
				{Path: "/later", Handler: h, MessageSize: 1 << 20, Check: func(r *Request) (Decision, bool) {
					mu.Lock()
					defer mu.Unlock()
					later = append(later, r.Later())
					return Decision{}, false
				}},
			}
		})
		for range 4 {
			open := func(parts ...string) {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, c)
				for _, p := range parts {
					_, _ = io.WriteString(c, p)
				}
			}
			open()                                                  // nothing sent
			open(upgradeHead[:40])                                  // half a head
			open(asking("GET /later HTTP/1.1"), string(hello))      // undecided
			open(upgradeHead)                                       // idle
			open(upgradeHead, string(hello[:5]))                    // within a frame
			open(upgradeHead, string(masked(ws.OpText, false, ""))) // within a message
			open(upgradeHead, string(closing(1000, "")))            // lingering
			open("nonsense\r\n\r\n")                                // refused, lingering
			open("GET / HTTP/1.1\r\nHost: x\r\n\r\n")               // waits for net/http
			big := string(masked(ws.OpBinary, true, strings.Repeat("x", 1<<20)))
			open(upgradeHead)
			c := held[len(held)-1]
			_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
			for range 8 { // echoes that are not read: blocked
				_, _ = io.WriteString(c, big)
			}
		}
		eventually(t, "not all have come as far as they should", func() bool {
			st := s.Stats()
			loops = *s.loops.Load()
			return h.begun.Load() == 4*5 && st.Handshakes["handed_off"] == 4 && st.PendingBytes > 4<<20 && st.Handshakes["bad_request"] == 4
		})
	})
	if h.begun.Load() != h.ended.Load() {
		t.Errorf("%d sessions opened, %d closed", h.begun.Load(), h.ended.Load())
	}
	for _, l := range loops {
		if st := &l.stats; st.Open.Load() != 0 || st.Sessions.Load() != 0 || st.PendingBytes.Load() != 0 {
			t.Errorf("at the end %d open, %d sessions, %d bytes", st.Open.Load(), st.Sessions.Load(), st.PendingBytes.Load())
		}
	}
	if s.open.Load() != 0 || s.handed.Load() != 0 {
		t.Errorf("at the end %d open, %d with net/http", s.open.Load(), s.handed.Load())
	}
	for _, c := range held { // every peer sees the end
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a peer is left alone: %v", err)
		}
		_ = c.Close()
	}
	// Who still holds on to a loop comes to no harm.
	for _, f := range later {
		f(Decision{})
	}
	loops[0].Post(0, session.MakeID(0, 1, 0), func(*session.Session) { t.Error("a post runs on a loop that has ended") })
	if s.Loop(0) != nil || s.Loop(99) != nil {
		t.Error("a loop runs")
	}
	within(t, "a sweep of nothing does not end", s.EachSession(nil))
	if err := s.Stop(context.Background()); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
}

// A sweep meets every session that is there all the while once, on all loops.
func TestEachSession(t *testing.T) {
	t.Parallel()
	s, addr := start(t, nil)
	for range 40 {
		dial(t, addr, "/echo")
	}
	raw(t, addr) // no session
	var mu sync.Mutex
	seen := make(map[session.ID]int)
	within(t, "the sweep does not end", s.EachSession(func(p *session.Session) {
		mu.Lock()
		defer mu.Unlock()
		seen[p.ID()]++
	}))
	if len(seen) != 40 {
		t.Errorf("%d sessions seen", len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%x seen %d times", uint64(id), n)
		}
	}
}

// Without loops there is nothing to wait for; a long sweep goes in slices, and
// one that panics ends all the same.
func TestEachSessionSlices(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Connections, o.HardConnections = 1<<20, 1<<20 })
	const n = sweepSlice + 300
	for range n {
		r.upgraded().hangUp() // the descriptors are worth more elsewhere
	}
	seen, panics := 0, 0
	done := r.server.EachSession(func(s *session.Session) {
		if seen++; seen%100 == 0 {
			panics++
			panic("asked for")
		}
		if seen == 50 {
			s.Close(session.ReasonForced)
		}
	})
	select {
	case <-done:
		t.Fatal("done before it has begun")
	default:
	}
	r.turn()
	select {
	case <-done:
	default:
		t.Fatal("the sweep does not end")
	}
	if seen != n || int(r.loop.stats.Panics.Load()) != panics {
		t.Errorf("%d of %d sessions seen, %d panics counted of %d", seen, n, r.loop.stats.Panics.Load(), panics)
	}
	var empty Server
	empty.loops.Store(&[]*loop{})
	within(t, "a server without loops", empty.EachSession(nil))
}
