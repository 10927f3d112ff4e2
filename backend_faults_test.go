package perch_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch"
	"perch/handler"
	"perch/internal/testkit"
)

// scraped is the value of a metric, with its labels as the page writes them; 0
// where it is not on the page.
func (s *server) scraped(t testing.TB, name string) string {
	t.Helper()
	_, page := get(t, "http://"+s.admin+"/metrics")
	for line := range strings.Lines(page) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "0"
}

func (s *server) wantMetric(t testing.TB, name, want string) {
	t.Helper()
	if got := s.scraped(t, name); got != want {
		t.Errorf("%s is %s, want %s", name, got, want)
	}
}

// broken are the ways in which a backend can fail at once.
var broken = map[string]func(http.ResponseWriter, *http.Request, map[string]any){
	"status": func(w http.ResponseWriter, _ *http.Request, _ map[string]any) { w.WriteHeader(500) },
	"malformed": func(w http.ResponseWriter, _ *http.Request, _ map[string]any) {
		_, _ = io.WriteString(w, "<html>")
	},
	"too_large": says(`{"result":{"data":"` + strings.Repeat("x", 4000) + `"}}`),
	"unreachable": func(w http.ResponseWriter, _ *http.Request, _ map[string]any) {
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = c.Close()
		}
	},
	"timeout": silent,
}

// TestBackendBroken: every command that a broken backend should decide gets an
// answer that tells its client to try again, and every client that comes is told
// to come back.
func TestBackendBroken(t *testing.T) {
	for outcome, answer := range broken {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			b := newService(t)
			s := start(t, func(o *perch.Options) {
				b.serve(o, "connect", "subscribe", "publish", "rpc")
				o.Backend.ResponseSize, o.Backend.Retries = 1<<10, -1
				if outcome == "timeout" {
					o.Backend.Timeout = 100 * time.Millisecond
				}
			})
			methods := []string{"connect", "subscribe", "publish", "rpc"}
			for _, m := range methods {
				b.on(m, answer)
			}
			p := s.session(t, "alice")
			p.send(`{"id":2,"subscribe":{"channel":"a"}}`, `{"id":3,"publish":{"channel":"a","data":1}}`,
				`{"id":4,"rpc":{"method":"m"}}`, `{"id":5,"unsubscribe":{"channel":"a"}}`)
			wantFailed(t, p, 2, 3, 4)
			p.reply(5)

			c := s.dial(t, "/connection/websocket")
			c.send(`{"id":1,"connect":{}}`)
			wantFailed(t, c, 1)
			_, events := s.stream(t, "")
			if p := events.want(t); p.Disconnect == nil || p.Disconnect.Code != 1011 {
				t.Errorf("told %+v", p)
			}
			u, err := testkit.Open(s.public, "/connection/uni_websocket?cf_connect=%7B%7D")
			if err != nil {
				t.Fatal(err)
			}
			defer u.Reset()
			if code, _, err := u.Closed(); err != nil || code != 1011 {
				t.Errorf("closed with %d, %v", code, err)
			}

			// The SDK comes back by itself, and gets in when the backend is well.
			k := newSDK(t, centrifuge.NewJsonClient(s.url(), centrifuge.Config{}))
			seen := len(b.questions("connect"))
			_ = k.Connect()
			eventually(t, "the SDK has tried", func() bool { return len(b.questions("connect")) > seen })
			b.on("connect", says(`{"result":{"user":"u"}}`))
			await(t, "connected", k.connected)

			for _, m := range methods[1:] {
				s.wantMetric(t, fmt.Sprintf(`perch_backend_calls_total{method=%q,outcome=%q}`, m, outcome), "1")
				s.wantMetric(t, fmt.Sprintf(`perch_backend_call_seconds_count{method=%q}`, m), "1")
			}
			s.wantMetric(t, fmt.Sprintf(`perch_backend_connections{backend=%q,state="in_use"}`, strings.TrimPrefix(b.URL, "http://")), "0")
			if n := strings.Count(s.log.String(), "backend call failed"); n != 4 {
				t.Errorf("%d failures logged, want one a method", n)
			}
		})
	}
}

// wantFailed takes the replies to ids, in this order, which must be error 100.
func wantFailed(t testing.TB, p *peer, ids ...float64) {
	t.Helper()
	for len(ids) > 0 {
		for _, r := range p.lines() {
			if r["id"] == nil {
				continue
			}
			e, _ := r["error"].(map[string]any)
			if len(ids) == 0 || r["id"] != ids[0] || e["code"] != 100.0 || e["temporary"] != true {
				t.Fatalf("answered %v, want error 100 for %v", r, ids)
			}
			ids = ids[1:]
		}
	}
}

// TestBackendDead: a backend that is not there is not waited for.
func TestBackendDead(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + ln.Addr().String()
	_ = ln.Close()
	s := start(t, func(o *perch.Options) {
		o.Backend.RPC, o.Backend.BreakerFailures, o.Backend.BreakerOpen = url, 2, time.Hour
	})
	p := s.session(t, "alice")
	for i := range 5 {
		p.send(fmt.Sprintf(`{"id":%d,"rpc":{"method":"m"}}`, i+2))
		wantFailed(t, p, float64(i+2))
	}
	s.wantMetric(t, `perch_backend_calls_total{method="rpc",outcome="unreachable"}`, "2")
	s.wantMetric(t, `perch_backend_calls_total{method="rpc",outcome="breaker_open"}`, "3")
	s.wantMetric(t, `perch_backend_retries_total{method="rpc"}`, "2")
	s.wantMetric(t, `perch_backend_breaker{method="rpc"}`, "2")
}

// TestBackendFlaps: a backend that comes and goes is asked when it is there.
func TestBackendFlaps(t *testing.T) {
	b := newService(t)
	s := start(t, func(o *perch.Options) {
		b.serve(o, "rpc")
		o.Backend.BreakerFailures, o.Backend.BreakerOpen = 3, 20*time.Millisecond
	})
	k := newSDK(t, centrifuge.NewProtobufClient(s.url(), centrifuge.Config{Token: token("alice", time.Hour)}))
	k.connect(t)
	good := says(`{"result":{"data":1}}`)
	for range 3 {
		b.on("rpc", broken["status"])
		eventually(t, "the breaker is open", func() bool {
			_, err := k.RPC(bounded(t), "m", nil)
			if err == nil {
				t.Error("answered")
			}
			return s.scraped(t, `perch_backend_breaker{method="rpc"}`) != "0"
		})
		b.on("rpc", good)
		eventually(t, "calls are answered again", func() bool {
			_, err := k.RPC(bounded(t), "m", nil)
			return err == nil
		})
		s.wantMetric(t, `perch_backend_breaker{method="rpc"}`, "0")
	}
}

// TestBackendStuck: while calls of one method wait for a backend that never
// answers, as many as there are and more, everything else goes on: pings, pushes,
// subscriptions that are asked about, new clients that are, methods in the process.
func TestBackendStuck(t *testing.T) {
	b := newService(t)
	s := start(t, func(o *perch.Options) {
		b.serve(o, "connect", "subscribe", "publish", "rpc")
		o.Pool.Workers = 16
		o.Heartbeat.Interval, o.Heartbeat.Timeout = 200*time.Millisecond, 190*time.Millisecond
		o.Backend.Timeout, o.Backend.BreakerFailures = 7*time.Second, -1
	})
	b.on("connect", says(`{"result":{"user":"u"}}`))
	b.on("rpc", silent)
	s.HandleRPC("own", func(context.Context, handler.RPCRequest) ([]byte, error) { return []byte("1"), nil })
	var failed atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 20 {
		k := newSDK(t, centrifuge.NewJsonClient(s.url(), centrifuge.Config{}))
		k.connect(t)
		go func() {
			if _, err := k.RPC(ctx, "stuck", nil); err != nil {
				failed.Add(1)
			}
		}()
	}
	// Sixteen workers, two of them the server's own: a fifth of the rest.
	eventually(t, "calls are stuck", func() bool { return len(b.questions("rpc")) == 2 })
	for i := range 3 {
		k := newSDK(t, centrifuge.NewProtobufClient(s.url(), centrifuge.Config{}))
		k.connect(t)
		sub := k.subscribe(t, "news", centrifuge.SubscriptionConfig{})
		await(t, "subscribed", sub.subscribed)
		if _, err := k.Publish(bounded(t), "news", fmt.Append(nil, i)); err != nil {
			t.Error(err)
		}
		if e := await(t, "publication", sub.published); string(e.Data) != fmt.Sprint(i) {
			t.Errorf("got %s", e.Data)
		}
		if _, err := k.RPC(bounded(t), "own", nil); err != nil {
			t.Error(err)
		}
		newSDK(t, centrifuge.NewJsonClient(s.url(), centrifuge.Config{Token: token("bob", time.Hour)})).connect(t)
	}
	// The stuck sessions themselves are pinged, and answer.
	p := s.session(t, "carol")
	p.send(`{"id":2,"rpc":{"method":"stuck"}}`)
	for pings := 0; pings < 3; {
		for _, r := range p.lines() {
			if len(r) == 0 {
				pings++
				p.send(`{}`)
			} else if r["id"] != nil {
				t.Fatalf("answered with %v", r)
			}
		}
	}
	if n := failed.Load(); n != 0 {
		t.Errorf("%d calls have ended", n)
	}
	if n := s.scraped(t, `perch_closes_total{reason="no_pong"}`); n != "0" {
		t.Errorf("%s sessions were lost", n)
	}
	// A stop waits for none of them.
	cancel()
	s.stop(t)
}

// TestBackendLongestTimeout: a call may have all the time that a client waits, and
// still be begun.
func TestBackendLongestTimeout(t *testing.T) {
	b := newService(t)
	s := start(t, func(o *perch.Options) {
		b.serve(o, "rpc")
		o.Backend.Timeout = 7500 * time.Millisecond
	})
	b.on("rpc", says(`{"result":{"data":1}}`))
	p := s.session(t, "alice")
	p.send(`{"id":2,"rpc":{"method":"m"}}`)
	if r := p.reply(2); r["error"] != nil {
		t.Errorf("answered %v", r)
	}
	s.wantMetric(t, `perch_backend_calls_total{method="rpc",outcome="ok"}`, "1")
}

// TestBackendOrder: what a session sends behind a slow call is done behind it.
func TestBackendOrder(t *testing.T) {
	b := newService(t)
	s := start(t, func(o *perch.Options) { b.serve(o, "rpc", "subscribe", "publish") })
	release := make(chan struct{})
	b.on("rpc", func(w http.ResponseWriter, r *http.Request, q map[string]any) {
		<-release
		says(`{"result":{}}`)(w, r, q)
	})
	p := s.session(t, "alice")
	p.send(`{"id":2,"rpc":{"method":"slow"}}`, `{"id":3,"subscribe":{"channel":"a"}}`, `{"id":4,"publish":{"channel":"a","data":1}}`,
		`{"id":5,"rpc":{"method":"slow"}}`)
	eventually(t, "the first call", func() bool { return len(b.questions("rpc")) == 1 })
	if n := len(b.questions("subscribe")); n != 0 {
		t.Errorf("%d subscriptions were asked about before the call's end", n)
	}
	close(release)
	var seen []string
	for len(seen) < 5 {
		for _, r := range p.lines() {
			switch {
			case r["error"] != nil:
				t.Fatalf("%v", r)
			case r["id"] != nil:
				seen = append(seen, fmt.Sprint(r["id"]))
			case r["push"] != nil:
				seen = append(seen, "push")
			}
		}
	}
	got := strings.Replace(fmt.Sprint(seen), " push", "", 1) // it may come before its answer or behind
	if got != "[2 3 4 5]" {
		t.Errorf("in the order %s", got)
	}
}

// TestBackendRefreshes: a session of the backend's lives as long as that says.
func TestBackendRefreshes(t *testing.T) {
	b := newService(t)
	s := start(t, func(o *perch.Options) { b.serve(o, "connect", "refresh") })
	soon := func(format string) func(http.ResponseWriter, *http.Request, map[string]any) {
		return func(w http.ResponseWriter, r *http.Request, q map[string]any) {
			says(fmt.Sprintf(format, time.Now().Unix()+1))(w, r, q)
		}
	}
	b.on("connect", soon(`{"result":{"user":"u1","expire_at":%d,"channels":["news"]}}`))
	b.on("refresh", soon(`{"result":{"expire_at":%d}}`))
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		before := len(b.questions("refresh"))
		k := dial(t, s.url(), centrifuge.Config{}) // it could not refresh anything
		k.connect(t)
		await(t, "subscribed", k.subscribed)
		eventually(t, "two refreshes", func() bool { return len(b.questions("refresh")) >= before+2 })
		s.api(t, "publish", `{"channel":"news","data":1}`)
		await(t, "a publication", k.published)
		select {
		case e := <-k.connecting:
			if e.Code != 0 {
				t.Errorf("lost the connection: %+v", e)
			}
		default:
		}
		_ = k.Disconnect()
	})
	// One that only listens is told, too.
	_, events := s.stream(t, "")
	if p := events.want(t); p.Connect == nil {
		t.Fatalf("told %+v", p)
	}
	if p := events.want(t); p.Refresh == nil || p.Refresh.TTL < 0 || p.Refresh.TTL > 1 {
		t.Errorf("told %+v", p)
	}
	b.on("refresh", says(`{"result":{"expired":true}}`))
	for {
		if p := events.want(t); p.Disconnect != nil {
			if p.Disconnect.Code != 3005 {
				t.Errorf("told %+v", p)
			}
			break
		}
	}
}
