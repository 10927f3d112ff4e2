package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestFailures: whatever a backend answers, the call ends with an error that its
// metric names, and its connection comes back (newClient looks).
func TestFailures(t *testing.T) {
	drop := func(w http.ResponseWriter, text string) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(c, text)
		_ = c.Close()
	}
	for _, tt := range []struct {
		name, outcome string
		answer        http.HandlerFunc
	}{
		{"500", outcomeStatus, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "boom", 500) }},
		{"500 without end", outcomeStatus, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}},
		{"404", outcomeStatus, http.NotFound},
		{"201", outcomeStatus, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201) }},
		{"redirect", outcomeStatus, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}},
		{"no answer", outcomeTimeout, silent},
		{"half an answer", outcomeTimeout, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"result":`)
			_ = http.NewResponseController(w).Flush()
			silent(w, r)
		}},
		{"empty", outcomeMalformed, says("")},
		{"a page", outcomeMalformed, says("<!doctype html><title>Log in</title>")},
		{"cut JSON", outcomeMalformed, says(`{"result":{`)},
		{"two values", outcomeMalformed, says(`{"result":{}}{}`)},
		{"nothing", outcomeMalformed, says(`{}`)},
		{"null", outcomeMalformed, says(`null`)},
		{"status of another kind", outcomeMalformed, says(`{"status":"ok"}`)},
		{"wrong type", outcomeMalformed, says(`{"result":{"data":1,"b64data":7}}`)},
		{"bad base64", outcomeMalformed, says(`{"result":{"b64data":"*"}}`)},
		{"error without a code", outcomeMalformed, says(`{"error":{"message":"?"}}`)},
		{"disconnect with a wrong code", outcomeMalformed, says(`{"disconnect":{"code":1000}}`)},
		{"disconnect with a huge code", outcomeMalformed, says(`{"disconnect":{"code":70000}}`)},
		{"compressed", outcomeMalformed, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(w, "\x1f\x8b\x08\x00")
		}},
		{"too large", outcomeTooLarge, says(`{"result":{"data":"` + strings.Repeat("a", 2000) + `"}}`)},
		{"without end", outcomeTooLarge, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, `{"result":{}}     `); err != nil {
					return
				}
			}
		}},
		{"closed", outcomeUnreachable, func(w http.ResponseWriter, _ *http.Request) { drop(w, "") }},
		{"not HTTP", outcomeUnreachable, func(w http.ResponseWriter, _ *http.Request) { drop(w, "SSH-2.0-x\r\n") }},
		{"shorter than it says", outcomeUnreachable, func(w http.ResponseWriter, _ *http.Request) {
			drop(w, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"result\":{}}")
		}},
		{"a huge head", outcomeUnreachable, func(w http.ResponseWriter, _ *http.Request) {
			drop(w, "HTTP/1.1 200 OK\r\nA: "+strings.Repeat("a", 200<<10)+"\r\nContent-Length: 13\r\n\r\n{\"result\":{}}")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newService(t, tt.answer)
			o := Options{Timeout: 100 * time.Millisecond, ResponseSize: 1 << 10, Retries: -1}
			if tt.outcome != outcomeTimeout {
				o.Timeout = patience
			}
			c, log := newClient(t, b.URL, o, RPC)
			err := c.rpc(t.Context())
			if !errors.Is(err, ErrFailed) {
				t.Fatalf("got %v", err)
			}
			if got := c.outcomes(RPC); len(got) != 1 || got[tt.outcome] != 1 {
				t.Errorf("counted as %v", got)
			}
			if b.asked.Load() != 1 {
				t.Errorf("asked %d times", b.asked.Load())
			}
			if n := strings.Count(log.String(), "backend call failed"); n != 1 || !strings.Contains(log.String(), "reason="+tt.outcome) {
				t.Errorf("logged %d times: %s", n, log)
			}
		})
	}
}

// TestLargestAnswer: an answer of just the bound is taken.
func TestLargestAnswer(t *testing.T) {
	const size = 1 << 10
	body := `{"result":{}}`
	body += strings.Repeat(" ", size-len(body))
	for name, answer := range map[string]http.HandlerFunc{
		"with its length": says(body),
		"in chunks": func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			says(body)(w, r)
		},
	} {
		c, _ := newClient(t, newService(t, answer).URL, Options{ResponseSize: size}, RPC)
		if err := c.rpc(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRetries: what can be asked twice is; a publication or a call is not, once
// it has been sent. All of it is counted at the backend.
func TestRetries(t *testing.T) {
	closed := func(w http.ResponseWriter, _ *http.Request) {
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = c.Close()
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for _, tt := range []struct {
		name   string
		first  http.HandlerFunc
		method Method
		asked  int64
		ok     bool
	}{
		{"connect after 502", status(502), Connect, 2, true},
		{"connect after 503", status(503), Connect, 2, true},
		{"connect after 504", status(504), Connect, 2, true},
		{"connect after 429", status(429), Connect, 2, true},
		{"connect after a close", closed, Connect, 2, true},
		{"subscribe after 503", status(503), Subscribe, 2, true},
		{"refresh after 503", status(503), Refresh, 2, true},
		{"sub_refresh after 503", status(503), SubRefresh, 2, true},
		{"connect after 500", status(500), Connect, 1, false},
		{"connect after 404", status(404), Connect, 1, false},
		{"connect after garbage", says("?"), Connect, 1, false},
		{"connect after a refusal", says(`{"error":{"code":1,"temporary":true}}`), Connect, 1, false},
		{"rpc after 503", status(503), RPC, 1, false},
		{"rpc after a close", closed, RPC, 1, false},
		{"publish after 503", status(503), Publish, 1, false},
		{"publish after a close", closed, Publish, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n atomic.Int32
			b := newService(t, func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) == 1 {
					tt.first(w, r)
					return
				}
				says(`{"result":{}}`)(w, r)
			})
			c, _ := newClient(t, b.URL, Options{}, tt.method)
			// A call before on the same connection: net/http would repeat by itself what
			// breaks there, were it allowed to.
			n.Store(1)
			if err := ask(c, t.Context(), tt.method); err != nil {
				t.Fatal(err)
			}
			n.Store(0)
			b.asked.Store(0)
			err := ask(c, t.Context(), tt.method)
			if (err == nil) != tt.ok || b.asked.Load() != tt.asked {
				t.Errorf("asked %d times: %v", b.asked.Load(), err)
			}
			if got := int64(c.endpoints[tt.method].retries.Load()); got != tt.asked-1 {
				t.Errorf("%d retries counted", got)
			}
		})
	}
	// Where no connection could be made nothing has been asked.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + ln.Addr().String()
	_ = ln.Close()
	for m := range MethodCount {
		c, _ := newClient(t, url, Options{Retries: 2}, m)
		if err := ask(c, t.Context(), m); !errors.Is(err, ErrFailed) {
			t.Error(err)
		}
		if n := c.endpoints[m].retries.Load(); n != 2 || c.outcomes(m)[outcomeUnreachable] != 1 {
			t.Errorf("%s: %d retries, %v", m, n, c.outcomes(m))
		}
	}
}

// ask asks about a method with nothing in particular.
func ask(c *Client, ctx context.Context, m Method) (err error) {
	p := &Peer{Client: "c"}
	switch m {
	case Connect:
		_, err = c.Connect(ctx, p, &ConnectRequest{})
	case Refresh:
		_, err = c.Refresh(ctx, p)
	case Subscribe:
		_, err = c.Subscribe(ctx, p, &SubscribeRequest{Channel: "t"})
	case SubRefresh:
		_, err = c.SubRefresh(ctx, p, "t")
	case Publish:
		_, err = c.Publish(ctx, p, &PublishRequest{Channel: "t"})
	case RPC:
		_, err = c.RPC(ctx, p, &RPCRequest{})
	}
	return err
}

// TestConnections: the backend never sees more connections than the bound,
// although far more ask at once, and connections are used again.
func TestConnections(t *testing.T) {
	var atOnce, most atomic.Int64
	b := newService(t, func(w http.ResponseWriter, r *http.Request) {
		n := atOnce.Add(1)
		defer atOnce.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		says(`{"result":{}}`)(w, r)
	})
	c, _ := newClient(t, b.URL, Options{Connections: 4, Wait: patience, Timeout: patience}, RPC)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 20 {
				if err := c.rpc(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// A connection that net/http closes for good measure may be replaced.
	if held, ever := b.connections(); held > 4 || ever > 12 || most.Load() > 4 {
		t.Errorf("%d connections at once, %d calls, %d connections made for 640 calls", held, most.Load(), ever)
	}
	if n := c.endpoints[RPC].waits.Load(); n == 0 {
		t.Error("no waits counted")
	}
	st := c.Stats()
	if n := st.Connections[0]; n.InUse != 0 || n.Idle < 1 || n.Limit != 4 || n.Backend != strings.TrimPrefix(b.URL, "http://") {
		t.Errorf("%+v", n)
	}
}

// TestShare: one method that is stuck leaves the others of its backend half of
// the connections, and what finds none ends after the wait and does not speak
// against the backend.
func TestShare(t *testing.T) {
	entered := make(chan struct{}, 10)
	b := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/rpc" {
			entered <- struct{}{}
			silent(w, r)
			return
		}
		says(`{"result":{"user":"u"}}`)(w, r)
	})
	c, log := newClient(t, b.URL, Options{Connections: 4, Wait: time.Millisecond, Timeout: patience, BreakerFailures: 1}, RPC, Connect)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 2 {
		wg.Go(func() {
			if err := c.rpc(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
		await(t, "a stuck call", entered)
	}
	for range 3 {
		if err := c.rpc(t.Context()); !errors.Is(err, errBusy) {
			t.Errorf("got %v", err)
		}
	}
	if got := c.outcomes(RPC); got[outcomeBusy] != 3 {
		t.Errorf("counted as %v", got)
	}
	if st := c.Stats(); st.Connections[0].InUse != 2 || st.Methods[1].Breaker != 0 {
		t.Errorf("%+v", st)
	}
	if err := c.connect(t.Context()); err != nil {
		t.Errorf("beside stuck calls: %v", err)
	}
	cancel()
	wg.Wait()
	if got := c.outcomes(RPC); got[outcomeCancelled] != 2 {
		t.Errorf("counted as %v", got)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("logged %s", log)
	}
}

// TestIdle: a connection that nobody uses is closed.
func TestIdle(t *testing.T) {
	b := newService(t, says(`{"result":{}}`))
	c, _ := newClient(t, b.URL, Options{IdleTimeout: 10 * time.Millisecond}, RPC)
	if err := c.rpc(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no connection is open", func() bool { return c.origins[0].open.Load() == 0 })
}

// TestBackends: methods at one place share its connections, others have theirs.
func TestBackends(t *testing.T) {
	c, err := New(Options{URLs: [MethodCount]string{
		Connect: "http://a:1/x", RPC: "HTTP://A:1/y", Publish: "https://a:1/z", Refresh: "http://b:1",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.origins); n != 3 || c.endpoints[Connect].origin != c.endpoints[RPC].origin {
		t.Errorf("%d backends", n)
	}
	for m, want := range map[Method]int{Connect: 32, RPC: 32, Publish: 64, Refresh: 64} {
		if n := cap(c.endpoints[m].share); n != want {
			t.Errorf("%s: %d connections, want %d", m, n, want)
		}
	}
	if !c.Serves(RPC) || c.Serves(Subscribe) || (*Client)(nil).Serves(RPC) {
		t.Error("serves the wrong methods")
	}
	for _, o := range []Options{{URLs: [MethodCount]string{Connect: "x"}}, {Static: []string{"no"}}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

func TestHeaders(t *testing.T) {
	seen := make(chan http.Header, 1)
	b := newService(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header
		says(`{"result":{}}`)(w, r)
	})
	c, _ := newClient(t, b.URL, Options{Secret: "s", Static: []string{"X-A: static", "x-a:  twice ", "Y: 1"}}, RPC)
	for _, tt := range []struct{ headers, agent string }{
		{"", "perch"},
		{"Cookie: a=1\r\nX-A: client\r\ncookie: b=2\r\nUser-Agent: phone\r\n", "phone"},
	} {
		if _, err := c.RPC(t.Context(), &Peer{Headers: tt.headers}, &RPCRequest{}); err != nil {
			t.Fatal(err)
		}
		h := await(t, "a call", seen)
		want := map[string][]string{
			"User-Agent": {tt.agent}, "X-A": {"static", "twice"}, "Y": {"1"}, "X-Api-Key": {"s"},
			"Content-Type": {"application/json"}, "Accept": {"application/json"}, "Content-Length": h["Content-Length"],
		}
		if tt.headers != "" {
			want["Cookie"] = []string{"a=1", "b=2"}
		}
		if !maps.EqualFunc(h, want, func(a, b []string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
			t.Errorf("got %v, want %v", h, want)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	srv := httptest.NewServer(says(`{"result":{"data":{"sum":3}}}`))
	defer srv.Close()
	var o Options
	o.URLs[RPC] = srv.URL
	c, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := c.rpc(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
