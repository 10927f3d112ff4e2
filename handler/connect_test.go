package handler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

const epoch = 1_700_000_000 // the rig's time

func TestConnectTokens(t *testing.T) {
	claims := func(user string) *Identity { return &Identity{Claims: &auth.Claims{Subject: user}} }
	tests := []struct {
		name     string
		require  Require
		insecure bool
		identity any
		token    string
		user     string
		answer   string // of an error
		reason   session.Reason
	}{
		{name: "token", token: "ann", user: "ann"},
		{name: "slow token", token: "slow-ann", user: "ann"},
		{name: "no token", reason: session.ReasonBadRequest},
		{name: "no token, none required", require: RequireNone},
		{name: "token, none required", require: RequireNone, token: "ann", user: "ann"},
		{name: "bad token, none required", require: RequireNone, token: "bad", reason: session.ReasonInvalidToken},
		{name: "no token, insecure", insecure: true},
		{name: "bad token", token: "bad", reason: session.ReasonInvalidToken},
		{name: "slow bad token", token: "slow-bad", reason: session.ReasonInvalidToken},
		{name: "expired token", token: "expired", answer: errTokenOld},
		{name: "slow expired token", token: "slow-expired", answer: errTokenOld},
		{name: "keys out of reach", token: "slow-keys", answer: errInternal},
		{name: "verifier panics", token: "slow-panic", answer: errInternal},
		{name: "handshake", identity: claims("ann"), user: "ann"},
		{name: "handshake by value", identity: Identity{Claims: &auth.Claims{Subject: "ann"}}, user: "ann"},
		{name: "handshake required", require: RequireHandshake, identity: claims("ann"), user: "ann"},
		{name: "handshake required, none there", require: RequireHandshake, token: "ann", reason: session.ReasonInvalidToken},
		{name: "handshake and the same user", identity: claims("ann"), token: "slow-ann", user: "ann"},
		{name: "handshake and another user", identity: claims("ann"), token: "bob", reason: session.ReasonInvalidToken},
		{name: "handshake over", identity: &Identity{Claims: &auth.Claims{Subject: "ann", ExpiresAt: epoch}}, answer: errTokenOld},
		{name: "no identity", identity: (*Identity)(nil), token: "ann", user: "ann"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			both(t, func(t *testing.T, e session.Encoding) {
				r := newRig(t, func(o *rigOptions) { o.Require, o.Insecure = tt.require, tt.insecure })
				p := r.open(e, tt.identity)
				p.send(fmt.Sprintf(`{"id":1,"connect":{"token":%q}}`, tt.token), `{"id":2,"unsubscribe":{"channel":"a"}}`)
				r.loop.until(t, "an answer", func() bool { return len(p.out) > 0 || p.s.Closed() })
				r.loop.turn()
				switch {
				case tt.reason != session.ReasonNone:
					p.wantsClose(tt.reason)
					p.wants()
				case tt.answer != "":
					// What came behind the connect is neither done nor a reason to close: the
					// client decides what to do about the error.
					p.wants(answer(1, tt.answer))
					p.wantsOpen()
					p.send(`{"id":3,"subscribe":{"channel":"a"}}`)
					p.wants()
					p.wantsOpen()
					if p.s.State >= session.StateConnected || p.beating {
						t.Error("connected")
					}
				default:
					p.wantsOpen()
					if got := p.said(); !strings.HasPrefix(got, `{"id":1,"connect":{`) || !strings.HasSuffix(got, "\n"+`{"id":2,"unsubscribe":{}}`) {
						t.Errorf("told %s", got)
					}
					if p.s.User() != tt.user || p.s.Anonymous != (tt.user == "") || p.s.State != session.StateConnected || !p.beating {
						t.Errorf("%+v", p.s)
					}
					p.idle()
				}
			})
		})
	}
}

func TestConnectReply(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, func(o *rigOptions) { o.UserPersonal, o.PersonalNamespace = true, "closed" })
		r.verifier.claims["full"] = &auth.Claims{
			Subject: "ann", ExpiresAt: epoch + 60, Family: "f", ID: "j", Info: []byte(`{"n":1}`), Meta: []byte(`{"m":1}`),
			Channels: []string{"a", "closed:b"},
			Subs:     []auth.Sub{{Topic: "a", Data: []byte(`{"d":1}`)}},
		}
		p := r.open(e, &Identity{FramePings: true})
		p.send(`{"id":5,"connect":{"token":"full"}}`)
		replies := p.replies()
		if len(replies) != 1 || replies[0].Id != 5 {
			t.Fatalf("%v", replies)
		}
		c := replies[0].Connect
		if !c.Expires || c.Ttl != 60 || c.Ping != 0 || c.Pong || c.Version != "v" {
			t.Errorf("%v", c)
		}
		if len(c.Subs) != 3 || c.Subs["closed:b"] == nil || c.Subs["closed:#ann"] == nil || string(c.Subs["a"].GetData()) != `{"d":1}` {
			t.Errorf("subscriptions %v", c.Subs)
		}
		if id, ok := r.c.opts.Node.Session(c.Client); !ok || id != p.s.ID() {
			t.Errorf("client %q", c.Client)
		}
		if string(p.s.Extra.Info) != `{"n":1}` || string(p.s.Extra.Meta) != `{"m":1}` || p.s.Family != TokenHash("f") || p.s.Token != TokenHash("j") {
			t.Errorf("%+v", p.s)
		}
		if p.expiry != epoch+60+25 || !p.beating {
			t.Errorf("expires at %d", p.expiry)
		}
		n := 0
		r.topics.Each(&p.s, func(sub topic.Subscription) {
			if sub.Server {
				n++
			}
		})
		if n != 3 {
			t.Errorf("%d subscriptions of the server's", n)
		}
		p.idle()
	})
}

func TestHandshakeTokenIsKnownBeforeConnect(t *testing.T) {
	p := newRig(t).open(session.EncodingJSON, &Identity{Claims: &auth.Claims{Subject: "ann", Family: "f", ID: "j"}})
	if p.s.Family != TokenHash("f") || p.s.Token != TokenHash("j") {
		t.Error("a revocation would not find it")
	}
	p.CloseWith(session.ReasonPeerGone, 0, "")
	if p.s.Work != nil {
		t.Error("a closed session holds its identity")
	}
}

func TestConnectSubscriptionsThatFail(t *testing.T) {
	r := newRig(t)
	r.verifier.claims["many"] = &auth.Claims{Subject: "ann", Channels: []string{"a", "b", "c", "d", "e"}}
	r.verifier.claims["unknown"] = &auth.Claims{Subject: "ann", Channels: []string{"a", "nope:b"}}
	p := r.open(session.EncodingJSON, nil)
	p.send(`{"id":1,"connect":{"token":"many"}}`)
	p.wantsClose(session.ReasonTopicLimit)
	p = r.open(session.EncodingJSON, nil)
	p.send(`{"id":1,"connect":{"token":"unknown"}}`)
	p.wants(answer(1, errUnknown))
	p.wantsOpen()
	if n := r.topics.Counts().Subscriptions; n != 0 {
		t.Errorf("%d subscriptions stay", n)
	}
	if r.registry.Count() != 0 {
		t.Error("listed")
	}
}

func TestInsecureSessionsDoNotEnd(t *testing.T) {
	r := newRig(t, func(o *rigOptions) { o.Insecure = true })
	r.verifier.claims["t"] = &auth.Claims{Subject: "ann", ExpiresAt: epoch - 5}
	p := r.open(session.EncodingJSON, nil)
	p.connect("t")
	if p.expiry != 0 {
		t.Errorf("ends at %d", p.expiry)
	}
	p.send(`{"id":2,"refresh":{"token":"t"}}`)
	p.wants(`{"id":2,"refresh":{}}`)
}

func TestRefresh(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		tests := []struct {
			token  string
			want   string
			expiry int64
			reason session.Reason
		}{
			{"longer", `"refresh":{"expires":true,"ttl":300}`, epoch + 325, 0},
			{"slow-longer", `"refresh":{"expires":true,"ttl":300}`, epoch + 325, 0},
			{"forever", `"refresh":{}`, 0, 0},
			{"century", `"refresh":{"expires":true,"ttl":31536000}`, epoch + 2_000_000_025, 0},
			{"expired", errTokenOld, epoch + 85, 0},
			{"slow-expired", errTokenOld, epoch + 85, 0},
			{"slow-keys", errInternal, epoch + 85, 0},
			{"bad", "", 0, session.ReasonInvalidToken},
			{"slow-bad", "", 0, session.ReasonInvalidToken},
			{"bob", "", 0, session.ReasonInvalidToken},
		}
		for _, tt := range tests {
			t.Run(tt.token, func(t *testing.T) {
				r := newRig(t)
				r.verifier.claims["first"] = &auth.Claims{Subject: "ann", ExpiresAt: epoch + 60, Family: "f"}
				r.verifier.claims["forever"] = &auth.Claims{Subject: "ann"}
				r.verifier.claims["century"] = &auth.Claims{Subject: "ann", ExpiresAt: epoch + 2_000_000_000}
				longer := &auth.Claims{Subject: "ann", ExpiresAt: epoch + 300, Family: "g", Info: []byte(`{"n":2}`)}
				r.verifier.claims["longer"], r.verifier.claims["slow-longer"] = longer, longer
				p := r.open(e, nil)
				p.connect("first")
				p.send(fmt.Sprintf(`{"id":2,"refresh":{"token":%q}}`, tt.token), `{"id":3,"unsubscribe":{"channel":"a"}}`)
				r.loop.until(t, "an answer", func() bool { return len(p.out) == 2 || p.s.Closed() })
				if tt.reason != 0 {
					p.wantsClose(tt.reason)
					p.wants()
					return
				}
				p.wants(answer(2, tt.want), `{"id":3,"unsubscribe":{}}`)
				if p.expiry != tt.expiry {
					t.Errorf("ends at %d, want %d", p.expiry, tt.expiry)
				}
				if strings.HasSuffix(tt.token, "longer") && (p.s.Family != TokenHash("g") || string(p.s.Extra.Info) != `{"n":2}`) {
					t.Errorf("%+v", p.s)
				}
				p.idle()
			})
		}
	})
}

func TestExpiry(t *testing.T) {
	r := newRig(t)
	r.verifier.claims["first"] = &auth.Claims{Subject: "ann", ExpiresAt: epoch + 60}
	p := r.open(session.EncodingJSON, nil)
	p.connect("first")
	// Come up early, it asks again.
	p.expiry = 0
	r.now = time.Unix(epoch+84, 0)
	r.c.Expire(&p.s)
	p.wantsOpen()
	if p.expiry != epoch+85 {
		t.Fatalf("ends at %d", p.expiry)
	}
	r.now = time.Unix(epoch+85, 0)
	r.c.Expire(&p.s)
	p.wantsClose(session.ReasonExpired)
	p.wants()
}

func TestRefreshSession(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		p := r.open(e, nil)
		if err := r.c.RefreshSession(&p.s, APIRefresh{}); err == nil {
			t.Error("refreshed before connect")
		}
		p.connect("ann")
		if err := r.c.RefreshSession(&p.s, APIRefresh{ExpireAt: epoch + 10, Info: []byte(`{"n":3}`)}); err != nil {
			t.Fatal(err)
		}
		p.wants(`{"push":{"refresh":{"expires":true,"ttl":10}}}`)
		if p.expiry != epoch+35 || string(p.s.Extra.Info) != `{"n":3}` {
			t.Errorf("ends at %d, %s", p.expiry, p.s.Extra.Info)
		}
		if err := r.c.RefreshSession(&p.s, APIRefresh{}); err != nil || p.expiry != 0 {
			t.Errorf("%v, ends at %d", err, p.expiry)
		}
		p.wants(`{"push":{"refresh":{}}}`)
		if err := r.c.RefreshSession(&p.s, APIRefresh{ExpireAt: epoch}); err != nil {
			t.Fatal(err)
		}
		p.wantsClose(session.ReasonExpired)
		if err := r.c.RefreshSession(&p.s, APIRefresh{}); err == nil {
			t.Error("refreshed after the close")
		}
	})
}

func TestTokenHash(t *testing.T) {
	// Known values of FNV-1a: what one process stores, another must find.
	if TokenHash("") != 0 || TokenHash("a") != 0xaf63dc4c8601ec8c || TokenHash("foobar") != 0x85944171f73967e8 {
		t.Errorf("%x %x", TokenHash("a"), TokenHash("foobar"))
	}
}
