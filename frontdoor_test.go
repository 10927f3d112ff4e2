package perch_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
)

// dialogue is what a client sends over one connection that is no WebSocket's,
// and the methods of the requests in it.
type dialogue struct {
	name    string
	send    string
	methods []string
	// half: the client shuts its side behind what it sends.
	half bool
	// statusOnly: net/http refuses it before any handler, and so may we, in words
	// of our own.
	statusOnly bool
	// broken: the handler finds its body unreadable, which the reference can't ask
	// it about; status and end are compared.
	broken bool
}

func dialogues(host string) []dialogue {
	req := func(line string, lines ...string) string {
		return testkit.HeadOf(append([]string{line, "Host: " + host}, lines...)...)
	}
	post := func(path, body string, lines ...string) string {
		return req("POST "+path+" HTTP/1.1", append(lines, fmt.Sprintf("Content-Length: %d", len(body)))...) + body
	}
	const form = "Content-Type: application/x-www-form-urlencoded"
	grant := "grant_type=nonsense&x=" + strings.Repeat("y", 500)
	chunked := req("POST /v1/token HTTP/1.1", form, "Transfer-Encoding: chunked") +
		"5\r\ngrant\r\n9;ext=1\r\n_type=non\r\n5\r\nsense\r\n0\r\nTrailer: x\r\n\r\n"
	page := req("GET /demo HTTP/1.1")
	missing := req("GET /nowhere HTTP/1.1")
	keys := req("GET /.well-known/jwks.json HTTP/1.1")
	return []dialogue{
		{name: "one page", send: page, methods: []string{"GET"}},
		{name: "pipelined", send: page + missing + keys + page, methods: []string{"GET", "GET", "GET", "GET"}},
		{name: "HEAD between", send: page + req("HEAD /demo HTTP/1.1") + missing, methods: []string{"GET", "HEAD", "GET"}},
		{name: "close asked for", send: req("GET /demo HTTP/1.1", "Connection: close") + missing, methods: []string{"GET"}},
		{name: "HTTP/1.0", send: req("GET /demo HTTP/1.0"), methods: []string{"GET"}},
		{name: "HTTP/1.0 without Host", send: "GET /demo HTTP/1.0\r\n\r\n", methods: []string{"GET"}},
		{name: "HTTP/1.0 kept alive", send: req("GET /demo HTTP/1.0", "Connection: keep-alive") + req("GET /nowhere HTTP/1.0"), methods: []string{"GET", "GET"}},
		{name: "another method", send: req("DELETE /demo HTTP/1.1") + page, methods: []string{"DELETE", "GET"}},
		{name: "options for all", send: req("OPTIONS * HTTP/1.1"), methods: []string{"OPTIONS"}},
		{name: "absolute target", send: req("GET http://" + host + "/demo HTTP/1.1"), methods: []string{"GET"}},
		{name: "a form", send: post("/v1/token", grant, form) + page, methods: []string{"POST", "GET"}},
		{name: "a form, shut behind it", send: post("/v1/token", grant, form), methods: []string{"POST"}, half: true},
		{name: "chunked", send: chunked + page, methods: []string{"POST", "GET"}},
		{name: "body that nobody reads", send: post("/nowhere", strings.Repeat("b", 100<<10)) + page, methods: []string{"POST", "GET"}},
		{name: "body too large to be skipped", send: post("/nowhere", strings.Repeat("b", 1<<20)), methods: []string{"POST"}},
		{name: "expect, body at once", send: post("/v1/token", grant, form, "Expect: 100-continue") + page, methods: []string{"POST", "GET"}},
		{name: "expect, body not wanted", send: req("POST /nowhere HTTP/1.1", "Expect: 100-continue", "Content-Length: 10"), methods: []string{"POST"}},
		{name: "expect something else", send: req("GET /demo HTTP/1.1", "Expect: miracles"), methods: []string{"GET"}},
		{name: "shut behind two requests", send: page + missing, methods: []string{"GET", "GET"}, half: true},
		{name: "shut in the body", send: req("POST /v1/token HTTP/1.1", form, "Content-Length: 100") + "grant", methods: []string{"POST"}, half: true, broken: true},
		{name: "upgrade to something else", send: req("GET /demo HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c"), methods: []string{"GET"}},
		{name: "upgrade of another path", send: testkit.Head(host, "/nowhere"), methods: []string{"GET"}},
		{name: "many header lines", send: req("GET /demo HTTP/1.1", slices.Repeat([]string{"X-A: 1"}, 99)...) + page, methods: []string{"GET", "GET"}},
		{name: "no Host", send: "GET /demo HTTP/1.1\r\n\r\n", methods: []string{"GET"}, statusOnly: true},
		{name: "two Hosts", send: req("GET /demo HTTP/1.1", "Host: b"), methods: []string{"GET"}, statusOnly: true},
		{name: "bad escape", send: req("GET /%zz HTTP/1.1"), methods: []string{"GET"}, statusOnly: true},
		{name: "no request", send: "BOGUS\r\n\r\n", methods: []string{"GET"}, statusOnly: true},
		{name: "bad content length", send: req("POST /v1/token HTTP/1.1", "Content-Length: 1x"), methods: []string{"POST"}, statusOnly: true},
		{name: "two content lengths", send: req("POST /v1/token HTTP/1.1", "Content-Length: 1", "Content-Length: 2") + "ab", methods: []string{"POST"}, statusOnly: true},
		{name: "bad chunk", send: req("POST /v1/token HTTP/1.1", form, "Transfer-Encoding: chunked") + "zz\r\n", methods: []string{"POST"}, broken: true},
		{name: "unknown transfer coding", send: req("POST /v1/token HTTP/1.1", "Transfer-Encoding: rot13"), methods: []string{"POST"}, statusOnly: true},
		{name: "space before the colon", send: req("GET /demo HTTP/1.1", "X-A : b"), methods: []string{"GET"}, statusOnly: true},
	}
}

// transcript is what came back, response by response, and how it ended.
type transcript []string

func (d dialogue) hold(t *testing.T, addr, how string, send func(*testkit.Conn, []byte) error) transcript {
	t.Helper()
	w, err := testkit.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		// A server may answer and end before it has read all.
		if send(w, []byte(d.send)) == nil && d.half {
			_ = w.CloseWrite()
		}
	}()
	var tr transcript
	for i := 0; i < len(d.methods); {
		resp, err := w.Response(d.methods[i])
		if err != nil {
			tr = append(tr, "no response: "+kind(err))
			break
		}
		if resp.StatusCode >= 200 {
			i++
		}
		tr = append(tr, d.describe(resp))
	}
	if d.statusOnly {
		return tr
	}
	switch err := w.Quiet(100 * time.Millisecond); {
	case err == nil:
		tr = append(tr, "open")
	case errors.Is(err, io.EOF) || strings.Contains(err.Error(), "reset"):
		tr = append(tr, "closed")
	default:
		tr = append(tr, "more: "+err.Error())
	}
	w.Reset()
	<-sent
	return tr
}

func kind(err error) string {
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), strings.Contains(err.Error(), "reset"):
		return "ended"
	}
	return err.Error()
}

func (d dialogue) describe(resp *http.Response) string {
	body, err := io.ReadAll(resp.Body)
	if d.statusOnly || d.broken {
		return fmt.Sprint(resp.StatusCode)
	}
	resp.Header.Del("Date")
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s length %d coding %v close %t err %v\n", resp.Proto, resp.Status, resp.ContentLength, resp.TransferEncoding, resp.Close, err)
	for _, k := range slices.Sorted(maps.Keys(resp.Header)) {
		fmt.Fprintf(&b, "%s: %q\n", k, resp.Header[k])
	}
	fmt.Fprintf(&b, "%d bytes: %.60q", len(body), body)
	return b.String()
}

// reference is a plain net/http server with the same handler: it fetches each
// answer from the server under test, over a connection of its own, in the
// simplest way. So only how the connection is handled can differ.
func reference(t *testing.T, addr string) string {
	t.Helper()
	client := &http.Client{
		Timeout: testkit.Timeout, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ref := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader
		if r.URL.Path == "/v1/token" {
			// The one path whose handler reads its body. A bad escape is as bad to it as
			// a body that breaks off.
			b, err := io.ReadAll(r.Body)
			if err != nil {
				b = []byte("%zz")
			}
			body = bytes.NewReader(b)
		}
		out, err := http.NewRequest(r.Method, "http://"+addr+r.URL.RequestURI(), body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		if ct := r.Header.Get("Content-Type"); ct != "" {
			out.Header.Set("Content-Type", ct)
		}
		resp, err := client.Do(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			if k != "Date" && k != "Connection" {
				w.Header()[k] = v
			}
		}
		if len(r.TransferEncoding) > 0 {
			w.Header().Set("Connection", "close") // on purpose: see handler.bounded
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	t.Cleanup(ref.Close)
	return ref.Listener.Addr().String()
}

// TestFrontDoor: what is no WebSocket's is served as by any net/http server,
// however its bytes arrive.
func TestFrontDoor(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Demo = true })
	ref := reference(t, s.public)
	for _, d := range dialogues(s.public) {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			want := d.hold(t, ref, "reference", (*testkit.Conn).Send)
			check := func(how string, send func(*testkit.Conn, []byte) error) {
				t.Helper()
				if t.Failed() {
					return
				}
				if got := d.hold(t, s.public, how, send); !slices.Equal(got, want) {
					t.Errorf("%s:\n--- got\n%s\n--- net/http\n%s", how, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
			check("whole", (*testkit.Conn).Send)
			if len(d.send) <= 400 {
				check("byte by byte", (*testkit.Conn).SendEach)
			}
			for seed := range uint64(6) {
				r := rand.New(rand.NewPCG(seed, 1))
				at := make([]int, 1+r.IntN(6))
				for i := range at {
					at[i] = 1 + r.IntN(len(d.send)-1)
				}
				slices.Sort(at)
				check(fmt.Sprintf("cut at %v", at), func(w *testkit.Conn, p []byte) error { return w.SendCut(p, at...) })
			}
		})
	}
}

// TestFrontDoorContinue: the client that waits for 100 before it sends.
func TestFrontDoorContinue(t *testing.T) {
	s := start(t, nil)
	w, err := testkit.Dial(s.public)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	const body = "grant_type=nonsense"
	head := testkit.HeadOf("POST /v1/token HTTP/1.1", "Host: "+s.public, "Expect: 100-continue",
		"Content-Type: application/x-www-form-urlencoded", fmt.Sprintf("Content-Length: %d", len(body)))
	for range 3 {
		if err := w.Send([]byte(head)); err != nil {
			t.Fatal(err)
		}
		if resp, err := w.Response("POST"); err != nil || resp.StatusCode != http.StatusContinue {
			t.Fatalf("want 100: %v, %v", resp, err)
		}
		if err := w.Send([]byte(body)); err != nil {
			t.Fatal(err)
		}
		resp, err := w.Response("POST")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode/100 != 4 {
			t.Fatalf("%s %q, %v", resp.Status, b, err)
		}
	}
}

// TestFrontDoorAdopts: an upgrade that is not the first request of its
// connection comes back to the loop, with what was read behind it.
func TestFrontDoorAdopts(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Demo, o.Echo = true, true
		o.Limits.HTTPConnections = 2
	})
	page := testkit.HeadOf("GET /demo HTTP/1.1", "Host: "+s.public)
	head := testkit.Head(s.public, "/echo")
	for _, c := range []struct {
		name  string
		parts []string // sent one behind the other; each but the first once the page has come
	}{
		{"one after the other", []string{page, head}},
		{"pipelined", []string{page + head}},
		{"pipelined, with a frame", []string{page + head + string(frames(testkit.Text("early")))}},
		{"behind two pages, with half a frame", []string{page, page, head + string(frames(testkit.Text("early")))[:4], string(frames(testkit.Text("early")))[4:]}},
	} {
		// More of them than the bound on connections with net/http: an adopted one
		// gives its place back.
		for i := range 3 {
			t.Run(fmt.Sprintf("%s/%d", c.name, i), func(t *testing.T) {
				w, err := testkit.Dial(s.public)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { w.Reset() })
				all := strings.Join(c.parts, "")
				pages := strings.Count(all, page)
				for _, p := range c.parts {
					if err := w.Send([]byte(p)); err != nil {
						t.Fatal(err)
					}
					if pages > 0 && strings.HasPrefix(p, page) {
						pages--
						readPage(t, w)
					}
				}
				if _, err := w.Upgraded(); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(all, string(frames(testkit.Text("early")))) {
					if err := gotText("early").check(w); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.SendFrames(testkit.Text("x"), testkit.Ping("p")); err != nil {
					t.Fatal(err)
				}
				for _, r := range replies(gotText("x"), gotPong("p")) {
					if err := r.check(w); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.SendFrames(testkit.Close(1000, "")); err != nil {
					t.Fatal(err)
				}
				if code, _, err := w.Closed(); err != nil || code != 1000 {
					t.Fatalf("close %d, %v", code, err)
				}
			})
		}
	}
}

func readPage(t *testing.T, w *testkit.Conn) {
	t.Helper()
	resp, err := w.Response("GET")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", resp.Status, err)
	}
}

// TestFrontDoorBound: the connections with net/http are counted; the next one
// is told to come back, and a place that is given back is used again.
func TestFrontDoorBound(t *testing.T) {
	const bound = 3
	s := start(t, func(o *perch.Options) {
		o.Demo, o.Echo = true, true
		o.Limits.HTTPConnections = bound
	})
	page := testkit.HeadOf("GET /demo HTTP/1.1", "Host: "+s.public)
	dial := func() *testkit.Conn {
		w, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Reset() })
		if err := w.Send([]byte(page)); err != nil {
			t.Fatal(err)
		}
		return w
	}
	var held []*testkit.Conn
	for range bound {
		w := dial()
		readPage(t, w)
		held = append(held, w)
	}
	for range 5 {
		w := dial()
		resp, err := w.Response("GET")
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Fatalf("above the bound: %s %v, want 503 with Retry-After", resp.Status, resp.Header)
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	}
	// WebSockets are not counted.
	w, err := testkit.Open(s.public, "/echo")
	if err != nil {
		t.Fatal(err)
	}
	w.Reset()
	// Those within the bound go on.
	if err := held[0].Send([]byte(page)); err != nil {
		t.Fatal(err)
	}
	readPage(t, held[0])
	for _, end := range []func(*testkit.Conn) error{(*testkit.Conn).CloseWrite, (*testkit.Conn).Reset, (*testkit.Conn).Close} {
		if err := end(held[0]); err != nil {
			t.Fatal(err)
		}
		held = held[1:]
		eventually(t, "a place is free again", func() bool {
			w := dial()
			resp, err := w.Response("GET")
			if err != nil {
				return false
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != http.StatusOK {
				w.Reset()
				return false
			}
			held = append(held, w)
			return true
		})
	}
}

// TestFrontDoorBody: a body larger than any buffer on the way arrives whole or
// is refused in words, never by silence.
func TestFrontDoorBody(t *testing.T) {
	s := start(t, nil)
	for _, n := range []int{1 << 10, 60 << 10, 1 << 20, 8 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Reset()
			body := "grant_type=nonsense&pad=" + strings.Repeat("x", n)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				_ = w.Send([]byte(testkit.HeadOf("POST /v1/token HTTP/1.1", "Host: "+s.public,
					"Content-Type: application/x-www-form-urlencoded", fmt.Sprintf("Content-Length: %d", len(body))) + body))
			}()
			resp, err := w.Response("POST")
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode/100 != 4 {
				t.Errorf("got %s", resp.Status)
			}
			w.Reset()
			<-sent
		})
	}
}
