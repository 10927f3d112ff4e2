package handler

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"perch/auth"
	"perch/backend"
	"perch/session"
	"perch/topic"
)

// fakeService is the user's own service.
type fakeService struct {
	*httptest.Server
	hold    chan struct{} // where set, before the server is used: answers to refreshes wait for it
	mu      sync.Mutex
	answers map[string]string // by method; "hang" until the caller goes, "500"
	asked   map[string]int
	last    map[string]string
	gone    chan struct{} // a caller that hung has gone
}

func (b *fakeService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	method := strings.TrimPrefix(r.URL.Path, "/")
	b.mu.Lock()
	b.asked[method]++
	b.last[method] = string(body) + " " + r.Header.Get("Cookie")
	answer := b.answers[method]
	b.mu.Unlock()
	if b.hold != nil && strings.HasSuffix(method, "refresh") {
		<-b.hold
	}
	switch answer {
	case "hang":
		<-r.Context().Done()
		b.gone <- struct{}{}
	case "500":
		w.WriteHeader(500)
	case "":
		_, _ = io.WriteString(w, `{"result":{}}`)
	default:
		_, _ = io.WriteString(w, answer)
	}
}

func (b *fakeService) say(method, answer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers[method] = answer
}

func (b *fakeService) count(method string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[method]
}

func (b *fakeService) heard(method string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last[method]
}

// newBackend is a rig that asks a service about methods, in the namespace "asked"
// about its topics too.
func newBackend(t *testing.T, methods []backend.Method, change ...func(*rigOptions)) (*rig, *fakeService) {
	t.Helper()
	b := &fakeService{answers: map[string]string{}, asked: map[string]int{}, last: map[string]string{}, gone: make(chan struct{}, 100)}
	b.Server = httptest.NewServer(b)
	var o backend.Options
	o.Timeout, o.Least, o.Retries, o.BreakerFailures = 10*time.Second, time.Millisecond, -1, -1
	for _, m := range methods {
		o.URLs[m] = b.URL + "/" + m.String()
	}
	client, err := backend.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		b.CloseClientConnections()
		b.Close()
	})
	change = append([]func(*rigOptions){func(o *rigOptions) { o.Backend.Client = client }, namespaces(topic.NamespaceOptions{
		Name: "asked", SubscribeProxyEnabled: true, PublishProxyEnabled: true, SubRefreshProxyEnabled: true,
	})}, change...)
	return newRig(t, change...), b
}

const everyMethod = backend.MethodCount

func methods(all ...backend.Method) []backend.Method {
	if len(all) == 1 && all[0] == everyMethod {
		all = nil
		for m := range backend.MethodCount {
			all = append(all, m)
		}
	}
	return all
}

// pass lets d go by, and ends what ends then.
func (p *fakePeer) pass(d time.Duration) {
	p.rig.now = p.rig.now.Add(d)
	if p.expiry != 0 && p.expiry <= p.rig.now.Unix() && !p.s.Closed() {
		p.expiry = 0
		p.rig.c.Expire(&p.s)
	}
}

// until runs the loop till ok.
func (p *fakePeer) until(what string, ok func() bool) {
	p.t.Helper()
	p.rig.loop.until(p.t, what, ok)
}

// TestBackendRefresh: the backend says at its end whether a session goes on; its
// commands don't wait for that, and a backend that can't be asked ends nothing.
func TestBackendRefresh(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r, b := newBackend(t, methods(backend.Connect, backend.Refresh))
		start := r.now.Unix()
		b.say("connect", fmt.Sprintf(`{"result":{"user":"ann","expire_at":%d,"meta":{"m":1}}}`, start+60))
		p := r.open(e, nil)
		p.send(`{"id":1,"connect":{}}`)
		p.heard(1)
		p.wants(`{"id":1,"connect":{"client":"` + r.c.clientID(&p.s) + `","version":"v","ping":25,"pong":true}}`)
		if p.expiry != start+60 {
			t.Fatalf("expires at %d, want %d: nobody else will refresh it", p.expiry, start+60)
		}
		b.say("refresh", fmt.Sprintf(`{"result":{"expire_at":%d,"info":{"i":2},"meta":{"m":2}}}`, start+160))
		p.pass(60 * time.Second)
		p.heard(1)
		p.wants(`{"push":{"refresh":{"expires":true,"ttl":100}}}`)
		if p.expiry != start+160 || string(p.s.Extra.Info) != `{"i":2}` || string(p.s.Extra.Meta) != `{"m":2}` {
			t.Errorf("expires at %d with %s and %s", p.expiry, p.s.Extra.Info, p.s.Extra.Meta)
		}
		var q struct {
			User string
			Meta json.RawMessage
		}
		if err := json.Unmarshal([]byte(strings.TrimSpace(b.heard("refresh"))), &q); err != nil || q.User != "ann" || string(q.Meta) != `{"m":1}` {
			t.Errorf("asked with %s: %v", b.heard("refresh"), err)
		}

		// While the question is open, the session works, and asks once.
		b.say("refresh", "hang")
		p.pass(100 * time.Second)
		p.until("the question", func() bool { return b.count("refresh") == 2 })
		if p.s.Work != nil || p.expiry != 0 {
			t.Errorf("work %+v, expires at %d", p.s.Work, p.expiry)
		}
		p.send(`{"id":2,"subscribe":{"channel":"a"}}`)
		p.wants(`{"id":2,"subscribe":{}}`)
		p.pass(time.Hour)
		r.c.setSubscriptionExpiry(&p.s, "a", r.now.Unix()+5)
		if p.expiry != r.now.Unix()+30 {
			t.Errorf("expires at %d", p.expiry)
		}
		r.c.setSubscriptionExpiry(&p.s, "a", 0)
		b.CloseClientConnections()
		<-b.gone
		p.until("the answer that never came", func() bool { return p.expiry != 0 })
		if again := p.expiry - r.now.Unix(); again < askAgain || again > 2*askAgain {
			t.Errorf("asks again in %d s", again)
		}
		p.wantsOpen()

		b.say("refresh", `{"error":{"code":1000,"message":"later","temporary":true}}`)
		p.pass(2 * askAgain * time.Second)
		p.until("a temporary refusal", func() bool { return p.expiry > r.now.Unix() })
		p.wantsOpen()
		b.say("refresh", `{"result":{"expire_at":0}}`)
		p.pass(2 * askAgain * time.Second)
		p.heard(1)
		p.wants(`{"push":{"refresh":{}}}`)
		if p.expiry != 0 {
			t.Errorf("expires at %d", p.expiry)
		}
		p.idle()
		if len(r.c.at(&p.s).refreshing) != 0 {
			t.Errorf("still asks about %v", r.c.at(&p.s).refreshing)
		}
	})
	for _, tt := range []struct {
		answer string
		reason session.Reason
	}{
		{`{"result":{"expired":true}}`, session.ReasonExpired},
		{`{"result":{"expire_at":1}}`, session.ReasonExpired},
		{`{"error":{"code":1000,"message":"no"}}`, session.ReasonExpired},
		{`{"disconnect":{"code":4500,"reason":"out"}}`, session.ReasonCustom},
	} {
		// A token's session is asked about as well.
		r, b := newBackend(t, methods(backend.Refresh))
		r.verifier.claims["t"] = &auth.Claims{Subject: "ann", ExpiresAt: r.now.Unix() + 60}
		p := r.user(session.EncodingJSON, "t")
		b.say("refresh", tt.answer)
		p.pass(time.Minute)
		p.until(tt.answer, p.s.Closed)
		if p.reason != tt.reason {
			t.Errorf("%s: closed for %v", tt.answer, p.reason)
		}
		if n := len(r.c.loops[3].refreshing); n != 0 {
			t.Errorf("%s: %d sessions are still asked about", tt.answer, n)
		}
	}
}

// TestBackendRefreshOfNone: who goes while it is asked about is forgotten.
func TestBackendRefreshOfNone(t *testing.T) {
	r, b := newBackend(t, methods(backend.Refresh, backend.SubRefresh))
	r.verifier.claims["t"] = &auth.Claims{Subject: "ann", ExpiresAt: r.now.Unix() + 60}
	p := r.user(session.EncodingJSON, "t")
	b.say("refresh", "hang")
	b.say("sub_refresh", "hang")
	if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "asked:a", ExpireAt: r.now.Unix() + 60}); err != nil {
		t.Fatal(err)
	}
	p.pass(time.Minute)
	p.until("both questions", func() bool { return b.count("refresh") == 1 && b.count("sub_refresh") == 1 })
	if n := len(r.c.loops[3].refreshing); n != 2 {
		t.Errorf("%d are asked about", n)
	}
	p.CloseWith(session.ReasonPeerGone, 0, "")
	if st := r.c.loops[3]; len(st.refreshing) != 0 || len(st.expiries) != 0 {
		t.Errorf("%v and %v are kept", st.refreshing, st.expiries)
	}
	b.CloseClientConnections()
	r.loop.until(t, "the room in the inbox", func() bool { return r.loop.inUse() == 0 })
}

// TestBackendRefreshWithoutRoom: a refresh that finds no room comes later.
func TestBackendRefreshWithoutRoom(t *testing.T) {
	r, b := newBackend(t, methods(backend.Refresh))
	r.verifier.claims["t"] = &auth.Claims{Subject: "ann", ExpiresAt: r.now.Unix() + 60}
	p := r.user(session.EncodingJSON, "t")
	again := func(what string) {
		t.Helper()
		p.pass(time.Minute)
		if in := p.expiry - r.now.Unix(); in < soonAgain || in > 2*soonAgain {
			t.Errorf("%s: asks again in %d s", what, in)
		}
		if b.count("refresh") != 0 || len(r.c.at(&p.s).refreshing) != 0 {
			t.Errorf("%s: asked %d times, of %v", what, b.count("refresh"), r.c.at(&p.s).refreshing)
		}
	}
	room := r.loop.room
	r.loop.room = 0
	again("a full inbox")
	r.loop.room = room
	r.c.asking[backend.Refresh].bytes = 0
	again("a full queue")
	if n := r.c.Counters().PoolFull.Load(); n != 2 || r.loop.inUse() != 0 {
		t.Errorf("%d refused, %d bytes taken", n, r.loop.inUse())
	}
	r.c.asking[backend.Refresh].bytes = 1 << 20
	p.pass(2 * soonAgain * time.Second)
	p.heard(1)
	p.wants(`{"push":{"refresh":{}}}`)
}

// TestBackendSubRefresh: the same for subscriptions.
func TestBackendSubRefresh(t *testing.T) {
	r, b := newBackend(t, methods(backend.Subscribe, backend.SubRefresh))
	start := r.now.Unix()
	p := r.user(session.EncodingJSON, "ann")
	b.say("subscribe", fmt.Sprintf(`{"result":{"expire_at":%d,"data":{"d":1}}}`, start+60))
	p.send(`{"id":2,"subscribe":{"channel":"asked:a"}}`)
	p.heard(1)
	p.wants(`{"id":2,"subscribe":{"data":{"d":1}}}`)
	if p.expiry != start+60 {
		t.Errorf("expires at %d", p.expiry)
	}
	b.say("sub_refresh", fmt.Sprintf(`{"result":{"expire_at":%d}}`, start+200))
	p.pass(time.Minute)
	p.until("a longer life", func() bool { return p.expiry == start+200 })
	b.say("sub_refresh", "500")
	p.pass(140 * time.Second)
	p.until("another question", func() bool { return p.expiry > start+200 })
	b.say("sub_refresh", `{"result":{"expired":true}}`)
	p.pass(2 * askAgain * time.Second)
	p.heard(1)
	p.wants(`{"push":{"channel":"asked:a","unsubscribe":{"code":2501,"reason":"subscription expired"}}}`)
	p.idle()

	// Who unsubscribes meanwhile stays away.
	p.send(`{"id":3,"subscribe":{"channel":"asked:a"}}`)
	p.heard(1)
	p.replies()
	n := b.count("sub_refresh")
	b.say("subscribe", fmt.Sprintf(`{"result":{"expire_at":%d}}`, r.now.Unix()+60))
	p.send(`{"id":4,"unsubscribe":{"channel":"asked:a"}}`, `{"id":5,"subscribe":{"channel":"asked:a"}}`)
	p.heard(2)
	p.replies()
	b.say("sub_refresh", "hang")
	p.pass(time.Minute)
	p.until("the question", func() bool { return b.count("sub_refresh") == n+1 })
	p.send(`{"id":6,"unsubscribe":{"channel":"asked:a"}}`)
	p.wants(`{"id":6,"unsubscribe":{}}`)
	b.CloseClientConnections()
	p.until("the room in the inbox", func() bool { return r.loop.inUse() == 0 })
	if p.expiry != 0 || len(r.c.at(&p.s).refreshing) != 0 {
		t.Errorf("expires at %d, asks about %v", p.expiry, r.c.at(&p.s).refreshing)
	}
}

// TestBackendRefreshTooLate: an answer about an end that is none any more, as there
// is another one or another subscription, changes nothing and keeps nothing.
func TestBackendRefreshTooLate(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		commands     []string // while the question is open
		topic        bool     // that is asked about
		expiry       int64    // afterwards, from then on
		answers      int      // to the commands
	}{
		{name: "subscribed again", topic: true, answer: `{"result":{"expired":true}}`, expiry: 3600, answers: 2,
			commands: []string{`{"id":6,"unsubscribe":{"channel":"asked:a"}}`, `{"id":7,"subscribe":{"channel":"asked:a"}}`}},
		{name: "refreshed by a token", topic: true, answer: `{"error":{"code":1000,"message":"no"}}`, expiry: 7200 + 3600, answers: 1,
			commands: []string{`{"id":6,"sub_refresh":{"channel":"asked:a","token":"st"}}`}},
		{name: "a token's session", answer: `{"disconnect":{"code":4500,"reason":"out"}}`, expiry: 7200, answers: 1,
			commands: []string{`{"id":6,"refresh":{"token":"later"}}`}},
		{name: "a shorter life", answer: `{"result":{"expire_at":1700000100}}`, expiry: 7200, answers: 1,
			commands: []string{`{"id":6,"refresh":{"token":"later"}}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, b := newBackend(t, methods(backend.Subscribe, backend.SubRefresh, backend.Refresh))
			b.hold = make(chan struct{})
			start := r.now.Unix()
			r.verifier.claims["later"] = &auth.Claims{Subject: "ann", ExpiresAt: start + 60 + 7200}
			r.verifier.subs["st"] = &auth.SubscriptionClaims{Subject: "ann", Topic: "asked:a", ExpiresAt: start + 60 + 7200 + 3600}
			method := "refresh"
			if tt.topic {
				method = "sub_refresh"
				b.say("subscribe", fmt.Sprintf(`{"result":{"expire_at":%d}}`, start+60))
			} else {
				r.verifier.claims["ann"] = &auth.Claims{Subject: "ann", ExpiresAt: start + 60}
			}
			p := r.user(session.EncodingJSON, "ann")
			p.send(`{"id":2,"subscribe":{"channel":"asked:a"}}`)
			p.heard(1)
			p.replies()
			b.say(method, tt.answer)
			p.pass(time.Minute)
			p.until("the question", func() bool { return b.count(method) == 1 })
			b.say("subscribe", fmt.Sprintf(`{"result":{"expire_at":%d}}`, r.now.Unix()+3600))
			p.send(tt.commands...)
			p.heard(tt.answers)
			p.replies()
			if p.expiry != r.now.Unix()+tt.expiry {
				t.Errorf("expires in %d s", p.expiry-r.now.Unix())
			}
			close(b.hold)
			p.until("the answer", func() bool { return r.loop.inUse() == 0 })
			p.wantsOpen()
			if got := p.said(); got != "" || p.expiry != r.now.Unix()+tt.expiry || !r.c.topics.Subscribed(&p.s, "asked:a") {
				t.Errorf("told %q, expires in %d s, subscribed: %t", got, p.expiry-r.now.Unix(), r.c.topics.Subscribed(&p.s, "asked:a"))
			}
			if n := len(r.c.at(&p.s).refreshing); n != 0 {
				t.Errorf("still asks %d questions", n)
			}
			p.pass(time.Duration(tt.expiry) * time.Second)
			p.until("it is asked again", func() bool { return b.count(method) == 2 })
		})
	}
	// Who ends its subscription, and then its session, is forgotten.
	r, b := newBackend(t, methods(backend.Subscribe, backend.SubRefresh))
	p := r.user(session.EncodingJSON, "ann")
	b.say("subscribe", fmt.Sprintf(`{"result":{"expire_at":%d}}`, r.now.Unix()+60))
	p.send(`{"id":2,"subscribe":{"channel":"asked:a"}}`)
	p.heard(1)
	b.say("sub_refresh", "hang")
	p.pass(time.Minute)
	p.until("the question", func() bool { return b.count("sub_refresh") == 1 })
	p.send(`{"id":6,"unsubscribe":{"channel":"asked:a"}}`)
	if n := len(r.c.at(&p.s).refreshing); n != 0 {
		t.Errorf("still asks %d questions", n)
	}
	p.CloseWith(session.ReasonPeerGone, 0, "")
	b.CloseClientConnections()
	r.loop.until(t, "the room in the inbox", func() bool { return r.loop.inUse() == 0 })
	if st := r.c.loops[3]; len(st.refreshing) != 0 || len(st.expiries) != 0 {
		t.Errorf("%v and %v are kept", st.refreshing, st.expiries)
	}
}

// TestBackendConnects: the answer to a connect, in each form it can take.
func TestBackendConnects(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		for _, tt := range []struct {
			name, answer, want string
			reason             session.Reason
		}{
			{name: "anonymous", answer: `{"result":{}}`, want: `{"id":1,"connect":{"client":"CLIENT","version":"v","ping":25,"pong":true}}`},
			{name: "data", answer: `{"result":{"user":"u","data":{"a":1}}}`, want: `{"id":1,"connect":{"client":"CLIENT","version":"v","data":{"a":1},"ping":25,"pong":true}}`},
			{name: "a client's end", answer: `{"result":{"user":"u","expire_at":1700000060}}`,
				want: `{"id":1,"connect":{"client":"CLIENT","version":"v","expires":true,"ttl":60,"ping":25,"pong":true}}`},
			{name: "over", answer: `{"result":{"user":"u","expire_at":1}}`, want: answer(1, errTokenOld)},
			{name: "refused", answer: `{"error":{"code":1000,"message":"banned"}}`, want: answer(1, `"error":{"code":1000,"message":"banned"}`)},
			{name: "unknown topic", answer: `{"result":{"channels":["no:where"]}}`, want: answer(1, `"error":{"code":102,"message":"unknown channel"}`)},
			{name: "too many topics", answer: `{"result":{"channels":["a","b","c","d","e"]}}`, reason: session.ReasonTopicLimit},
			{name: "sent away", answer: `{"disconnect":{"code":4000,"reason":"x"}}`, reason: session.ReasonCustom},
			{name: "broken", answer: "500", want: answer(1, errInternal)},
			{name: "garbage", answer: "?", want: answer(1, errInternal)},
		} {
			t.Run(tt.name, func(t *testing.T) {
				r, b := newBackend(t, methods(backend.Connect))
				b.say("connect", tt.answer)
				p := r.open(e, Identity{Headers: "Cookie: c=1\r\n"})
				p.send(`{"id":1,"connect":{"data":{"d":1}}}`, `{"id":2,"subscribe":{"channel":"open:a"}}`)
				if tt.reason != session.ReasonNone {
					p.until("the close", p.s.Closed)
					if p.reason != tt.reason {
						t.Errorf("closed for %v", p.reason)
					}
					return
				}
				want := []string{strings.Replace(tt.want, "CLIENT", r.c.clientID(&p.s), 1)}
				if !strings.Contains(tt.want, "error") {
					// What came with the connect is done behind it.
					want = append(want, `{"id":2,"subscribe":{}}`)
				}
				p.heard(len(want))
				p.wants(want...)
				if heard := b.heard("connect"); !strings.HasSuffix(heard, " c=1") {
					t.Errorf("asked with %s", heard)
				}
				if p.s.Extra != nil && p.s.Extra.Headers != "" {
					t.Error("keeps headers that no call needs")
				}
				if p.s.State == session.StateConnected {
					p.idle()
				} else if p.s.State != session.StateOpened || !workOf(&p.s).refused {
					t.Errorf("state %v", p.s.State)
				}
			})
		}
	})
}

// TestBackendKeepsHeaders: calls after the connect have the handshake's headers
// as well, also when the session has gone to another server.
func TestBackendKeepsHeaders(t *testing.T) {
	r, b := newBackend(t, methods(everyMethod))
	b.say("connect", `{"result":{"user":"ann"}}`)
	p := r.open(session.EncodingJSON, Identity{Headers: "Cookie: c=1\r\n"})
	p.send(`{"id":1,"connect":{}}`)
	p.heard(1)
	p.replies()
	p.send(`{"id":2,"rpc":{"method":"m"}}`, `{"id":3,"subscribe":{"channel":"asked:a"}}`, `{"id":4,"publish":{"channel":"asked:a","data":1}}`)
	p.until("all answers", func() bool { return b.count("publish") == 1 && p.s.Work == nil })
	for _, m := range []string{"connect", "rpc", "subscribe", "publish"} {
		if heard := b.heard(m); !strings.HasSuffix(heard, " c=1") {
			t.Errorf("%s: asked with %s", m, heard)
		}
	}
	state, err := r.c.Export(&p.s)
	if err != nil {
		t.Fatal(err)
	}
	q := r.open(session.EncodingJSON, nil)
	if err := r.c.Import(&q.s, state); err != nil {
		t.Fatal(err)
	}
	if q.s.Extra.Headers != "Cookie: c=1\r\n" {
		t.Errorf("came with %+v", q.s.Extra)
	}
}

// TestBackendGone: a session that ends ends its call at the backend, and a call
// that never got a worker is answered in its time.
func TestBackendGone(t *testing.T) {
	r, b := newBackend(t, methods(backend.RPC, backend.Connect), func(o *rigOptions) { o.Backend.Timeout = 200 * time.Millisecond })
	b.say("rpc", "hang")
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"rpc":{"method":"m"}}`)
	p.until("the call", func() bool { return b.count("rpc") == 1 })
	p.CloseWith(session.ReasonPeerGone, 0, "")
	<-b.gone
	// Four workers, of which three may be guests: one for each method.
	var callers []*fakePeer
	for range 5 {
		p := r.user(session.EncodingJSON, "bob")
		p.send(`{"id":2,"rpc":{"method":"m"}}`)
		callers = append(callers, p)
	}
	for _, p := range callers {
		p.heard(1)
		p.wants(answer(2, errInternal))
	}
	// Who gets a worker in the last moment is late, and not asked about.
	timeouts, late := r.c.Counters().RPCTimeouts.Load(), uint64(0)
	for _, m := range r.c.opts.Backend.Client.Stats().Methods {
		late += m.Calls["late"]
	}
	if timeouts > 5 || timeouts+late < 5 {
		t.Errorf("%d timeouts, %d were late", timeouts, late)
	}
	if n := b.count("rpc"); n > 4 {
		t.Errorf("asked %d times: what waited too long is not worth asking", n)
	}
	r.loop.until(t, "the workers", func() bool { return r.pool.Stats().Depth == 0 })
	for _, p := range callers {
		p.idle()
	}
}

// TestBackendOverflow: what finds the queue of its method full is told so, or
// closed; a connect too.
func TestBackendOverflow(t *testing.T) {
	for _, overflow := range []Overflow{OverflowReply, OverflowClose} {
		r, b := newBackend(t, methods(backend.RPC, backend.Connect), func(o *rigOptions) { o.Overflow = overflow })
		r.c.asking[backend.RPC].bytes, r.c.asking[backend.Connect].bytes = 0, 0
		p := r.user(session.EncodingJSON, "ann")
		p.send(`{"id":2,"rpc":{"method":"m"}}`)
		q := r.open(session.EncodingJSON, nil)
		q.send(`{"id":1,"connect":{}}`)
		u := r.open(session.EncodingUniJSON, nil)
		u.s.Encoding = session.EncodingUniJSON
		unidirectional{r.c}.Message(&u.s, []byte(`{}`), false)
		u.wantsClose(session.ReasonTooManyRequests)
		if overflow == OverflowClose {
			p.wantsClose(session.ReasonTooManyRequests)
			q.wantsClose(session.ReasonTooManyRequests)
		} else {
			p.wants(answer(2, `"error":{"code":111,"message":"too many requests","temporary":true}`))
			q.wants(answer(1, `"error":{"code":111,"message":"too many requests","temporary":true}`))
			p.idle()
			if q.s.State != session.StateOpened || !workOf(&q.s).refused {
				t.Errorf("state %v", q.s.State)
			}
		}
		if b.count("rpc")+b.count("connect") != 0 {
			t.Error("asked")
		}
	}
}

// TestBackendLanes: were all methods stuck, workers would be left for methods in
// the process and for the server's own.
func TestBackendLanes(t *testing.T) {
	r, b := newBackend(t, methods(everyMethod), func(o *rigOptions) { o.Pool.Workers = 16 })
	for _, m := range []string{"rpc", "connect", "subscribe", "publish"} {
		b.say(m, "hang")
	}
	r.c.RegisterExamples()
	for i := range 20 {
		p := r.user(session.EncodingJSON, "ann")
		switch i % 3 {
		case 0:
			p.send(`{"id":2,"rpc":{"method":"m"}}`)
		case 1:
			p.send(`{"id":2,"subscribe":{"channel":"asked:a"}}`)
		case 2:
			p.send(`{"id":2,"publish":{"channel":"asked:a","data":1}}`)
		}
		r.open(session.EncodingJSON, nil).send(`{"id":1,"connect":{}}`)
	}
	r.loop.until(t, "stuck calls of each kind", func() bool {
		return b.count("rpc") == 2 && b.count("subscribe") == 2 && b.count("publish") == 2 && b.count("connect") == 2
	})
	p := r.user(session.EncodingJSON, "slow-token")
	p.send(`{"id":2,"rpc":{"method":"echo","data":1}}`)
	p.heard(1)
	p.wants(`{"id":2,"rpc":{"data":1}}`)
	if n := b.count("rpc"); n != 2 {
		t.Errorf("%d calls at once", n)
	}
}

// TestBackendRules: what a name says of its users goes before the backend.
func TestBackendRules(t *testing.T) {
	r, b := newBackend(t, methods(backend.Subscribe), namespaces(topic.NamespaceOptions{
		Name: "mine", SubscribeProxyEnabled: true, AllowUserLimitedChannels: true,
	}))
	p := r.user(session.EncodingJSON, "ann")
	for i, tt := range []struct {
		name, want string
		asked      int
	}{
		{"asked:a", `"subscribe":{}`, 1},
		{"asked:b#ann,bob", `"subscribe":{}`, 1},
		{"asked:c#bob", errDenied, 0},
		{"mine:a#ann", `"subscribe":{}`, 0},
		{"mine:a#bob", errDenied, 0},
		{"$asked:a", errDenied, 0},
		{"closed:a", errDenied, 0},
		{"a", `"subscribe":{}`, 0},
	} {
		before := b.count("subscribe")
		p.send(fmt.Sprintf(`{"id":%d,"subscribe":{"channel":%q}}`, i+2, tt.name))
		p.heard(1)
		p.wants(answer(i+2, tt.want))
		if n := b.count("subscribe") - before; n != tt.asked {
			t.Errorf("%s: asked %d times", tt.name, n)
		}
		p.send(fmt.Sprintf(`{"id":100,"unsubscribe":{"channel":%q}}`, tt.name))
		p.replies()
	}
}
