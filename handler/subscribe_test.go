package handler

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

func TestSubscribePermissions(t *testing.T) {
	tests := []struct {
		name, user, topic string
		insecure          bool
		want              string
	}{
		{name: "allowed", user: "ann", topic: "a", want: `"subscribe":{}`},
		{name: "namespace", user: "ann", topic: "open:a", want: `"subscribe":{}`},
		{name: "closed namespace", user: "ann", topic: "closed:a", want: errDenied},
		{name: "unknown namespace", user: "ann", topic: "nope:a", want: errUnknown},
		{name: "anonymous", topic: "a", want: errDenied},
		{name: "anonymous allowed", topic: "open:a", want: `"subscribe":{}`},
		{name: "private", user: "ann", topic: "$a", want: errDenied},
		{name: "private in a namespace", user: "ann", topic: "$open:a", want: errDenied},
		{name: "own", user: "ann", topic: "#ann", want: `"subscribe":{}`},
		{name: "one of some", user: "ann", topic: "open:chat#bob,ann", want: `"subscribe":{}`},
		{name: "another's", user: "ann", topic: "#bob", want: errDenied},
		{name: "another's by a prefix", user: "ann", topic: "open:#anna", want: errDenied},
		{name: "anonymous and nobody's", topic: "open:#", want: errDenied},
		{name: "too long", user: "ann", topic: strings.Repeat("x", 41), want: errRequest},
		{name: "insecure closed", insecure: true, topic: "closed:a", want: `"subscribe":{}`},
		{name: "insecure private", insecure: true, topic: "$a", want: `"subscribe":{}`},
		{name: "insecure another's", insecure: true, topic: "#bob", want: `"subscribe":{}`},
		{name: "insecure unknown", insecure: true, topic: "nope:a", want: errUnknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(o *rigOptions) { o.Insecure, o.Require = tt.insecure, RequireNone })
			p := r.user(session.EncodingJSON, tt.user)
			p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":%q}}`, tt.topic))
			p.wants(answer(2, tt.want))
			if r.topics.Subscribed(&p.s, tt.topic) != strings.HasPrefix(tt.want, `"sub`) {
				t.Error("the answer is not what was done")
			}
			p.idle()
		})
	}
}

func TestSubscribeTwiceAndTooOften(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		p := newRig(t).user(e, "ann")
		for i, name := range []string{"a", "b", "c", "d"} {
			p.send(fmt.Sprintf(`{"id":%d,"subscribe":{"channel":%q}}`, i+2, name))
		}
		p.replies()
		p.send(`{"id":7,"subscribe":{"channel":"e"}}`, `{"id":8,"subscribe":{"channel":"b"}}`, `{"id":9,"unsubscribe":{"channel":"b"}}`,
			`{"id":10,"subscribe":{"channel":"e"}}`, `{"id":11,"unsubscribe":{"channel":"zz"}}`)
		p.wants(answer(7, errLimit), answer(8, errAlready), `{"id":9,"unsubscribe":{}}`, `{"id":10,"subscribe":{}}`, `{"id":11,"unsubscribe":{}}`)
		p.idle()
	})
}

func TestSubscriptionTokens(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		good := func(topic, user string) *auth.SubscriptionClaims {
			return &auth.SubscriptionClaims{Topic: topic, Subject: user}
		}
		r.verifier.subs["good"] = good("closed:a", "ann")
		r.verifier.subs["slow-good"] = good("closed:a", "ann")
		r.verifier.subs["other-topic"] = good("closed:b", "ann")
		r.verifier.subs["slow-other-topic"] = good("closed:b", "ann")
		r.verifier.subs["other-user"] = good("closed:a", "bob")
		r.verifier.subs["other-client"] = &auth.SubscriptionClaims{Topic: "closed:a", Subject: "ann", Client: "x"}
		r.verifier.subs["ends"] = &auth.SubscriptionClaims{Topic: "closed:a", Subject: "ann", ExpiresAt: epoch + 30}
		r.verifier.subs["over"] = &auth.SubscriptionClaims{Topic: "closed:a", Subject: "ann", ExpiresAt: epoch}
		tests := []struct {
			token, want string
			reason      session.Reason
		}{
			{"good", `"subscribe":{}`, 0},
			{"slow-good", `"subscribe":{}`, 0},
			{"ends", `"subscribe":{"expires":true,"ttl":30}`, 0},
			{"over", errTokenOld, 0},
			{"bad", errDenied, 0},
			{"slow-bad", errDenied, 0},
			{"expired", errTokenOld, 0},
			{"slow-expired", errTokenOld, 0},
			{"slow-keys", errInternal, 0},
			{"slow-panic", errInternal, 0},
			{"other-topic", "", session.ReasonInvalidToken},
			{"slow-other-topic", "", session.ReasonInvalidToken},
			{"other-user", "", session.ReasonInvalidToken},
			{"other-client", "", session.ReasonInvalidToken},
		}
		for _, tt := range tests {
			p := r.user(e, "ann")
			p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":"closed:a","token":%q}}`, tt.token))
			r.loop.until(t, tt.token, func() bool { return len(p.out) > 0 || p.s.Closed() })
			if tt.reason != 0 {
				p.wantsClose(tt.reason)
				continue
			}
			p.wants(answer(2, tt.want))
			p.wantsOpen()
			p.idle()
		}
		p := r.user(e, "ann")
		r.verifier.subs["mine"] = &auth.SubscriptionClaims{Topic: "$p", Subject: "ann", Client: r.c.clientID(&p.s)}
		p.send(`{"id":2,"subscribe":{"channel":"$p","token":"mine"}}`)
		p.wants(`{"id":2,"subscribe":{}}`)
	})
}

func TestSubscriptionExpiry(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		r.verifier.claims["first"] = &auth.Claims{Subject: "ann", ExpiresAt: epoch + 200}
		for name, at := range map[string]int64{"a30": 30, "a90": 90, "b60": 60, "b0": 0} {
			c := &auth.SubscriptionClaims{Topic: "closed:" + name[:1], Subject: "ann"}
			if at != 0 {
				c.ExpiresAt = epoch + at
			}
			r.verifier.subs[name] = c
		}
		p := r.open(e, nil)
		p.connect("first")
		ends := func(at int64) {
			t.Helper()
			if p.expiry != epoch+at {
				t.Fatalf("asks for %d, want %d", p.expiry-epoch, at)
			}
		}
		ends(225)
		p.send(`{"id":2,"subscribe":{"channel":"closed:a","token":"a30"}}`, `{"id":3,"subscribe":{"channel":"closed:b","token":"b60"}}`)
		p.wants(`{"id":2,"subscribe":{"expires":true,"ttl":30}}`, `{"id":3,"subscribe":{"expires":true,"ttl":60}}`)
		ends(55)
		r.now = time.Unix(epoch+50, 0)
		p.send(`{"id":4,"sub_refresh":{"channel":"closed:a","token":"a90"}}`)
		p.wants(`{"id":4,"sub_refresh":{"expires":true,"ttl":40}}`)
		ends(85)
		r.now = time.Unix(epoch+85, 0)
		r.c.Expire(&p.s)
		p.wants(`{"push":{"channel":"closed:b","unsubscribe":{"code":2501,"reason":"subscription expired"}}}`)
		if r.topics.Subscribed(&p.s, "closed:b") || !r.topics.Subscribed(&p.s, "closed:a") {
			t.Fatal("the wrong one ended")
		}
		ends(115)
		p.send(`{"id":5,"unsubscribe":{"channel":"closed:a"}}`)
		ends(225)
		if n := len(r.c.at(&p.s).expiries); n != 0 {
			t.Errorf("%d sessions have ends of subscriptions", n)
		}
		p.replies()
		p.send(`{"id":6,"subscribe":{"channel":"closed:b","token":"b0"}}`)
		p.wants(`{"id":6,"subscribe":{}}`)
		ends(225)
		r.verifier.subs["b60"].ExpiresAt = epoch + 100
		p.send(`{"id":7,"sub_refresh":{"channel":"closed:b","token":"b60"}}`)
		ends(125)
		p.send(`{"id":8,"sub_refresh":{"channel":"closed:b","token":"b0"}}`)
		p.wants(`{"id":7,"sub_refresh":{"expires":true,"ttl":15}}`, `{"id":8,"sub_refresh":{}}`)
		ends(225)
		p.send(`{"id":9,"sub_refresh":{"channel":"closed:b","token":"b60"}}`)
		p.CloseWith(session.ReasonPeerClosed, 0, "")
		if n := len(r.c.at(&p.s).expiries); n != 0 {
			t.Errorf("%d closed sessions have ends of subscriptions", n)
		}
	})
}

func TestSubRefreshErrors(t *testing.T) {
	r := newRig(t)
	r.verifier.subs["good"] = &auth.SubscriptionClaims{Topic: "a", Subject: "ann"}
	r.verifier.subs["slow-good"] = r.verifier.subs["good"]
	r.verifier.subs["other"] = &auth.SubscriptionClaims{Topic: "b", Subject: "ann"}
	tests := []struct {
		topic, token, want string
		reason             session.Reason
	}{
		{"b", "good", errDenied, 0},
		{"a", "", errRequest, 0},
		{"a", "expired", errTokenOld, 0},
		{"a", "slow-good", `"sub_refresh":{}`, 0},
		{"a", "bad", "", session.ReasonInvalidToken},
		{"a", "slow-bad", "", session.ReasonInvalidToken},
		{"a", "other", "", session.ReasonInvalidToken},
	}
	for _, tt := range tests {
		p := r.user(session.EncodingJSON, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"a"}}`)
		p.replies()
		p.send(fmt.Sprintf(`{"id":3,"sub_refresh":{"channel":%q,"token":%q}}`, tt.topic, tt.token))
		r.loop.until(t, tt.token, func() bool { return len(p.out) > 0 || p.s.Closed() })
		if tt.reason != 0 {
			p.wantsClose(tt.reason)
			continue
		}
		p.wants(answer(3, tt.want))
		p.idle()
	}
	// The subscription ends while the pool has the token.
	r.verifier.gate = make(chan struct{})
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"subscribe":{"channel":"a"}}`, `{"id":3,"sub_refresh":{"channel":"a","token":"slow-good"}}`)
	if err := r.c.UnsubscribeSession(&p.s, "a"); err != nil {
		t.Fatal(err)
	}
	close(r.verifier.gate)
	r.loop.until(t, "the refresh", func() bool { return len(p.out) == 3 })
	p.wants(`{"id":2,"subscribe":{}}`, `{"push":{"channel":"a","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}`, answer(3, errDenied))
}

func TestServerSideSubscriptions(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		p := r.open(e, nil)
		if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "a"}); !errors.Is(err, topic.ErrNotAvailable) {
			t.Errorf("before connect: %v", err)
		}
		if err := r.c.UnsubscribeSession(&p.s, "a"); !errors.Is(err, topic.ErrNotAvailable) {
			t.Errorf("before connect: %v", err)
		}
		p.connect("ann")
		if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "closed:a", Data: []byte(`{"d":1}`), ExpireAt: epoch + 10}); err != nil {
			t.Fatal(err)
		}
		if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "b", Data: []byte("no json")}); err != nil {
			t.Fatal(err)
		}
		replies := p.replies()
		if len(replies) != 2 || replies[0].Push.Channel != "closed:a" || string(replies[0].Push.Subscribe.Data) != `{"d":1}` || replies[1].Push.Subscribe == nil {
			t.Fatalf("%v", replies)
		}
		if len(replies[1].Push.Subscribe.Data) != 0 && e == session.EncodingJSON {
			t.Errorf("JSON carries %q", replies[1].Push.Subscribe.Data)
		}
		if p.expiry != epoch+35 {
			t.Errorf("asks for %d", p.expiry)
		}
		if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "b"}); !errors.Is(err, topic.ErrAlreadySubscribed) {
			t.Error(err)
		}
		if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "nope:b"}); !errors.Is(err, topic.ErrUnknownTopic) {
			t.Error(err)
		}
		if err := r.c.UnsubscribeSession(&p.s, "closed:a"); err != nil {
			t.Fatal(err)
		}
		if err := r.c.UnsubscribeSession(&p.s, "closed:a"); err != nil {
			t.Fatal(err)
		}
		p.wants(`{"push":{"channel":"closed:a","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}`)
		if p.expiry != 0 {
			t.Errorf("asks for %d", p.expiry)
		}
	})
}
