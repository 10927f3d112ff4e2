package perch_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"perch"
	"perch/handler"
	"perch/internal/testkit"
	"perch/topic"
)

// TestPanics: code that panics, in the pool or on a loop, ends its own session
// at the most, is counted, and logged in one line of level Error.
func TestPanics(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		perch.SetBroker(o, func(m topic.MemoryOptions) topic.Broker { return panickyBroker{topic.NewMemory(m)} })
	})
	s.HandleRPC("panic", func(context.Context, handler.RPCRequest) ([]byte, error) { panic("on purpose") })
	s.HandleSend(func(context.Context, handler.SendRequest) error { panic("on purpose") })
	good := s.session(t, "good")
	good.send(testkit.SubscribeCommand(2, "news"))
	good.reply(2)
	errors := func() int { return strings.Count(s.log.String(), "level=ERROR") }
	metric := func(line string) bool {
		_, m := get(t, "http://"+s.admin+"/metrics")
		return strings.Contains(m, "\n"+line+"\n")
	}

	p := s.session(t, "caller")
	p.send(rpcCommand(2, "panic", "1"), testkit.SubscribeCommand(3, "news"))
	if code := p.codeOf(2); code != 100 {
		t.Errorf("a call that panics: error %v", code)
	}
	if code := p.codeOf(3); code != 0 {
		t.Errorf("what follows: error %v", code)
	}
	if errors() != 1 || !metric("perch_rpc_panics_total 1") {
		t.Errorf("a call that panics: %d lines of errors, or not counted", errors())
	}
	p.send(`{"send":{"data":1}}`, testkit.SubscribeCommand(4, "more"))
	if code := p.codeOf(4); code != 0 {
		t.Errorf("after a message whose handler panics: error %v", code)
	}
	if errors() != 2 {
		t.Errorf("a message whose handler panics: %d lines of errors", errors())
	}
	// On the loop: the session is told that it is our fault, and may come back.
	p.send(testkit.PublishCommand(5, "panic", "1"))
	if code, _, err := p.Closed(); err != nil || code != 1011 {
		t.Errorf("a command that panics on the loop: close %d, %v", code, err)
	}
	eventually(t, "it is counted", func() bool {
		return metric(`perch_loop_panics_total{loop="0"} 1`) || metric(`perch_loop_panics_total{loop="1"} 1`)
	})
	if errors() != 3 {
		t.Errorf("a command that panics on the loop: %d lines of errors", errors())
	}
	good.send(testkit.PublishCommand(3, "news", "1"))
	good.reply(3)
}

// panickyBroker panics, on the loop of who publishes, at topics named panic.
type panickyBroker struct{ topic.Broker }

func (b panickyBroker) Publish(name string, p *topic.Publication, o topic.PublishOptions, done func(topic.Position, error)) {
	if name == "panic" {
		panic("on purpose")
	}
	b.Broker.Publish(name, p, o, done)
}

// TestRemoteKeysLie: a key set that is down, slow, garbage, huge, or without
// the keys that it had: sessions live on, other tokens are good, and those that
// can't be decided about are told to come again.
func TestRemoteKeysLie(t *testing.T) {
	t.Parallel()
	keys := t.TempDir()
	mine := perch.Options{DataDir: keys}
	signed, err := perch.IssueToken(mine, perch.TokenRequest{Subject: "remote"})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := perch.IssueToken(perch.Options{DataDir: t.TempDir()}, perch.TokenRequest{Subject: "stranger"})
	if err != nil {
		t.Fatal(err)
	}
	// The right answer is that of a server with the key.
	var good string
	{
		s := start(t, func(o *perch.Options) { o.Auth.HMACSecret, o.DataDir = "", keys })
		_, good = get(t, "http://"+s.public+"/.well-known/jwks.json")
		s.stop(t)
	}
	var answer atomic.Pointer[http.HandlerFunc]
	var asked atomic.Int64
	set := func(f http.HandlerFunc) { answer.Store(&f) }
	text := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
	}
	set(text(good))
	remote := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := *answer.Load()
		f(w, r)
		asked.Add(1)
	}))
	defer remote.Close()
	s := start(t, func(o *perch.Options) { o.Auth.JWKSURL, o.Auth.JWKSRefresh = remote.URL, time.Second })
	live := s.dial(t, "/connection/websocket", "Authorization: Bearer "+signed)
	live.send(testkit.ConnectCommand(""))
	live.reply(1)
	release := make(chan struct{})
	defer close(release)

	handshake := func(tok string) string {
		return testkit.Head(s.public, "/connection/websocket", "Authorization: Bearer "+tok)
	}
	for i, tt := range []struct {
		name   string
		answer http.HandlerFunc
	}{
		{"down", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusBadGateway) }},
		{"garbage", text("<html>")},
		{"cut short", text(good[:len(good)/2])},
		{"no keys", text(`{"keys":[]}`)},
		{"only what verifies nothing", text(`{"keys":[{"kty":"oct","k":"c2VjcmV0"},{"kty":"RSA"},7,null]}`)},
		{"huge", text(`{"keys":[` + strings.Repeat(`{"kty":"RSA","kid":"x"},`, 100_000) + `{}]}`)},
		{"a redirect to itself", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }},
		{"slow", func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}},
	} {
		set(tt.answer)
		from := asked.Load()
		eventually(t, tt.name+" is asked for", func() bool { return asked.Load() > from })
		// What was known is good, what is another's is not decided about or refused.
		w, err := testkit.Open(s.public, "/connection/websocket", "Authorization: Bearer "+signed)
		if err != nil {
			t.Errorf("%s: a token of a key that was known: %v", tt.name, err)
		} else {
			w.Reset()
		}
		if code := s.connects(t, token("local", time.Hour)); code != 0 {
			t.Errorf("%s: a token of another key: %d", tt.name, code)
		}
		if tt.name != "slow" { // where it waits for the answer
			f, err := testkit.Open(s.public, "/connection/websocket", "Authorization: Bearer "+foreign)
			if err == nil {
				f.Reset()
				t.Errorf("%s: a token of nobody's key is good", tt.name)
			}
		}
		live.send(testkit.SubscribeCommand(10+i, "topic-"+strings.ReplaceAll(tt.name, " ", "-")))
		live.reply(10 + i)
	}
	// The key is taken out: the next refresh ends its tokens, not its sessions.
	other := start(t, func(o *perch.Options) { o.Auth.HMACSecret = "" })
	_, without := get(t, "http://"+other.public+"/.well-known/jwks.json")
	set(text(without))
	eventually(t, "a key that is gone is not good any more", func() bool {
		c, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Reset()
		if err := c.Send([]byte(handshake(signed))); err != nil {
			t.Fatal(err)
		}
		resp, err := c.Response(http.MethodGet)
		return err == nil && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusServiceUnavailable)
	})
	live.send(testkit.SubscribeCommand(30, "last"))
	live.reply(30)
	if n := strings.Count(s.log.String(), "level=ERROR"); n != 0 {
		t.Errorf("%d lines of errors about what is another's fault", n)
	}
}
