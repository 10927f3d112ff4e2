package perch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"perch"
	"perch/handler"
	"perch/internal/testkit"
)

// stuckMethods registers n methods that never return of themselves, whatever
// their context says. They return when the test ends, before its server.
func stuckMethods(t *testing.T, s *server, n int) (entered chan string) {
	t.Helper()
	entered = make(chan string, 1024)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for i := range n {
		name := fmt.Sprint("stuck", i)
		s.HandleRPC(name, func(context.Context, handler.RPCRequest) ([]byte, error) {
			entered <- name
			<-release
			return []byte("1"), nil
		})
	}
	return entered
}

func rpcCommand(id int, method, data string) string {
	return fmt.Sprintf(`{"id":%d,"rpc":{"method":%q,"data":%s}}`, id, method, data)
}

// codeOf is the code of the error that answers the command; 0: a result.
// Pings on the way are answered.
func (p *peer) codeOf(id int) float64 {
	p.t.Helper()
	for {
		for _, r := range p.lines() {
			if len(r) == 0 {
				p.send("{}")
			}
			if r["id"] != float64(id) {
				continue
			}
			if e, ok := r["error"].(map[string]any); ok {
				return e["code"].(float64)
			}
			return 0
		}
	}
}

// attentive is a peer whose pings are answered at once, and whose messages are
// kept.
type attentive struct {
	*peer
	mu    sync.Mutex
	pings int
	order []float64       // the ids of what was answered
	codes map[float64]any // of errors, by id
	pub   int
	ended error
}

func (a *attentive) listen() {
	for {
		msg, err := a.Message()
		a.mu.Lock()
		if err != nil {
			a.ended = err
			a.mu.Unlock()
			return
		}
		pings := 0
		for line := range strings.Lines(string(msg)) {
			var r map[string]any
			_ = json.Unmarshal([]byte(line), &r)
			if len(r) == 0 {
				pings++
			}
			if id, ok := r["id"].(float64); ok {
				a.order = append(a.order, id)
				if e, ok := r["error"].(map[string]any); ok {
					a.codes[id] = e["code"]
				}
			}
			if r["push"] != nil {
				a.pub++
			}
		}
		a.pings += pings
		a.mu.Unlock()
		for range pings {
			_ = a.SendFrames(testkit.Text("{}"))
		}
	}
}

// see looks at what has come so far.
func (a *attentive) see(f func() bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return f()
}

// TestPoolStuck: with every worker that methods can have stuck for good, and
// more calls waiting than there are workers, all else goes on: pings, pushes,
// subscribes, publications, connections with tokens that are verified on the
// loop and in the pool. Commands keep their order, and what is stuck is timed
// out and counted.
func TestPoolStuck(t *testing.T) {
	t.Parallel()
	keys := t.TempDir()
	if _, err := perch.IssueToken(perch.Options{DataDir: keys}, perch.TokenRequest{Subject: "x"}); err != nil {
		t.Fatal(err)
	}
	const workers, methods, callers = 8, 10, 40
	var opts perch.Options
	s := start(t, func(o *perch.Options) {
		o.Pool.Workers, o.Pool.CallTimeout = workers, 6*time.Second
		o.Auth.Keys = []perch.KeyOptions{{File: filepath.Join(keys, "signing-key.pem")}}
		o.Heartbeat.Interval, o.Heartbeat.Timeout = 400*time.Millisecond, 300*time.Millisecond
		opts = *o
	})
	entered := stuckMethods(t, s, methods)
	var stuck []*attentive
	var listening sync.WaitGroup
	t.Cleanup(listening.Wait)
	for i := range callers {
		p := s.session(t, fmt.Sprint("caller", i))
		p.send(testkit.SubscribeCommand(2, "news"))
		if code := p.codeOf(2); code != 0 {
			t.Fatalf("subscribe: %v", code)
		}
		// What follows the call waits for it.
		p.send(rpcCommand(3, fmt.Sprint("stuck", i%methods), "1"), testkit.PublishCommand(4, "order", fmt.Sprint(i)))
		a := &attentive{peer: p, codes: map[float64]any{}}
		listening.Go(a.listen)
		stuck = append(stuck, a)
	}
	t.Cleanup(func() {
		for _, a := range stuck {
			a.Reset()
		}
	})
	for range workers - 1 { // one is kept for the server's own work
		await(t, "a stuck method", entered)
	}
	eventually(t, "the others wait", func() bool {
		_, m := get(t, "http://"+s.admin+"/metrics")
		return strings.Contains(m, fmt.Sprintf("\nperch_pool_queue_jobs %d\n", callers-(workers-1))) &&
			strings.Contains(m, fmt.Sprintf("\nperch_pool_busy_workers %d\n", workers-1))
	})

	// Connections: HMAC on the loop, Ed25519 in the pool.
	signed, err := perch.IssueToken(opts, perch.TokenRequest{Subject: "signed"})
	if err != nil {
		t.Fatal(err)
	}
	for name, tok := range map[string]string{"hmac": token("bob", time.Hour), "ed25519": signed} {
		p := s.dial(t, "/connection/websocket")
		p.send(testkit.ConnectCommand(tok), testkit.SubscribeCommand(2, "news"), testkit.PublishCommand(3, "other", "1"))
		for id := 1; id <= 3; id++ {
			if code := p.codeOf(id); code != 0 {
				t.Errorf("%s: command %d: error %v", name, id, code)
			}
		}
		w, err := testkit.Open(s.public, "/connection/websocket", "Authorization: Bearer "+tok)
		if err != nil {
			t.Errorf("%s in the handshake: %v", name, err)
			continue
		}
		w.Reset()
	}
	// Tokens over HTTP, the server API, and pushes to those that are stuck.
	if status, _ := get(t, "http://"+s.public+"/.well-known/jwks.json"); status != http.StatusOK {
		t.Errorf("jwks: %d", status)
	}
	s.api(t, "publish", `{"channel":"news","data":"pushed"}`)
	for i, a := range stuck {
		// Their heartbeat goes on: a pong does not wait behind the call.
		eventually(t, fmt.Sprintf("a push and two pings at caller %d", i), func() bool {
			return a.see(func() bool { return a.pub > 0 && a.pings > 1 })
		})
	}
	// In the end each call is timed out, and what waited behind it is done then.
	for i, a := range stuck {
		eventually(t, fmt.Sprintf("the answers of caller %d", i), func() bool {
			return a.see(func() bool { return len(a.order) == 2 || a.ended != nil })
		})
		a.see(func() bool {
			if fmt.Sprint(a.order) != "[3 4]" || a.codes[3] != float64(100) || a.codes[4] != nil || a.ended != nil {
				t.Errorf("caller %d: answered %v with errors %v, %v", i, a.order, a.codes, a.ended)
			}
			return true
		})
	}
	if _, m := get(t, "http://"+s.admin+"/metrics"); !strings.Contains(m, fmt.Sprintf("\nperch_rpc_timeouts_total %d\n", callers)) {
		t.Errorf("perch_rpc_timeouts_total is not %d", callers)
	}
}

// TestPoolOverflow: a call that there is no room for gets error 111, or its
// session is closed, as pool.overflow says; others notice nothing.
func TestPoolOverflow(t *testing.T) {
	for _, policy := range []string{"reply", "close"} {
		t.Run(policy, func(t *testing.T) {
			s := start(t, func(o *perch.Options) {
				o.Pool.Workers, o.Pool.QueueBytes, o.Pool.Overflow, o.Pool.CallTimeout = 2, 64<<10, policy, time.Minute
			})
			entered := stuckMethods(t, s, 1)
			holder := s.session(t, "holder")
			holder.send(rpcCommand(2, "stuck0", "1"))
			await(t, "a stuck method", entered)
			// A quarter of the queue is a method's: 16 KiB.
			blob := testkit.Blob(7 << 10)
			var waiting []*peer
			for i := range 2 {
				p := s.session(t, fmt.Sprint("waiting", i))
				p.send(rpcCommand(2, "stuck0", blob))
				waiting = append(waiting, p)
			}
			eventually(t, "two calls wait", func() bool {
				_, m := get(t, "http://"+s.admin+"/metrics")
				return strings.Contains(m, "\nperch_pool_queue_jobs 2\n")
			})
			over := s.session(t, "over")
			over.send(rpcCommand(2, "stuck0", blob), testkit.SubscribeCommand(3, "news"))
			if policy == "close" {
				over.closes(3013)
			} else {
				if code := over.codeOf(2); code != 111 {
					t.Errorf("the call too many: error %v", code)
				}
				if code := over.codeOf(3); code != 0 {
					t.Errorf("what follows it: error %v", code)
				}
			}
			other := s.session(t, "other")
			other.send(testkit.SubscribeCommand(2, "news"), testkit.PublishCommand(3, "news", "1"))
			for id := 2; id <= 3; id++ {
				if code := other.codeOf(id); code != 0 {
					t.Errorf("another session's command %d: error %v", id, code)
				}
			}
			if _, m := get(t, "http://"+s.admin+"/metrics"); !strings.Contains(m, "\nperch_pool_rejected_total 1\n") {
				t.Error("the call too many is not counted")
			}
			for _, p := range waiting {
				if err := p.Quiet(10 * time.Millisecond); err != nil {
					t.Errorf("a call that waits: %v", err)
				}
			}
		})
	}
}
