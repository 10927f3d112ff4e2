package handler

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

var moveNamespaces = namespaces(
	kept("force", func(o *topic.NamespaceOptions) { o.ForceRecovery = true }),
	kept("delta", func(o *topic.NamespaceOptions) {
		o.ForceRecovery, o.AllowedDeltaTypes, o.DeltaPublish = true, []string{topic.DeltaFossil}, true
	}),
	topic.NamespaceOptions{Name: "news", AllowSubscribeForClient: true, JoinLeave: true, ForcePushJoinLeave: true, Presence: true},
)

// export takes the state of p, whose connection goes.
func (p *fakePeer) export() []byte {
	p.t.Helper()
	state, err := p.rig.c.Export(&p.s)
	if err != nil {
		p.t.Fatal(err)
	}
	p.CloseWith(session.ReasonHandedOff, 0, "")
	return state
}

// adopt is a peer that goes on from a state.
func (r *rig) adopt(e session.Encoding, state []byte) *fakePeer {
	r.t.Helper()
	p := r.open(e, nil)
	if err := r.c.Import(&p.s, state); err != nil {
		r.t.Fatal(err)
	}
	return p
}

func TestMove(t *testing.T) {
	bothInBubbles(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, moveNamespaces, func(o *rigOptions) { o.Topics.JoinLeaveInterval = time.Millisecond })
		r.verifier.claims["t"] = &auth.Claims{Subject: "ann", ExpiresAt: epoch + 600, Family: "f", ID: "j", Info: []byte(`{"c":1}`), Meta: []byte(`{}`), Channels: []string{"force:s"}}
		r.verifier.subs["sub"] = &auth.SubscriptionClaims{Topic: "news:a", Subject: "ann", ExpiresAt: epoch + 60, Info: []byte(`{"s":1}`), Override: auth.Override{Presence: new(false)}}
		at := r.publish("force:a", "1")
		p := r.open(e, nil)
		p.connect("t")
		p.send(`{"id":2,"subscribe":{"channel":"force:a"}}`, `{"id":3,"subscribe":{"channel":"delta:a","delta":"fossil"}}`, `{"id":4,"subscribe":{"channel":"news:a","token":"sub"}}`)
		r.publish("delta:a", long(1))
		p.replies()
		r.quiescent()
		p.replies()
		client := r.c.clientID(&p.s)
		state := p.export()
		if strings.Contains(string(state), `"topics"`) {
			t.Error("the state of the version before has a part in it")
		}
		for i := range 3 {
			r.publish("force:a", fmt.Sprint(i+2))
			r.publish("delta:a", long(2+i))
		}
		r.publish("news:a", "0")

		q := r.adopt(e, state)
		got := map[string]string{}
		c := &deltaClient{t: t, json: e == session.EncodingJSON}
		for _, reply := range q.replies() {
			push := reply.Push
			switch {
			case push.GetPub() == nil:
				t.Fatalf("told %v", reply)
			case push.Channel == "delta:a":
				got[push.Channel] += c.take(push.Pub)
			default:
				got[push.Channel] += fmt.Sprint(string(push.Pub.Data), "@", push.Pub.Offset, " ")
			}
		}
		if got["force:a"] != `2@2 3@3 4@4 ` || got["delta:a"] != long(2)+long(3)+long(4) || len(got) != 2 {
			t.Errorf("heard %v", got)
		}
		if q.s.User() != "ann" || q.s.Anonymous || r.c.clientID(&q.s) != client || q.s.Family != TokenHash("f") || q.s.Token != TokenHash("j") || q.expiry != epoch+85 {
			t.Errorf("%+v, ends at %d", q.s, q.expiry)
		}
		subs := map[string]topic.Subscription{}
		r.topics.Each(&q.s, func(s topic.Subscription) { subs[s.Topic] = s })
		if s := subs["force:s"]; !s.Server || !s.Position || s.At.Epoch == "" {
			t.Errorf("%+v", s)
		}
		if s := subs["force:a"]; s.Server || !s.Position || s.At != (topic.Position{Offset: 4, Epoch: at.Epoch}) {
			t.Errorf("%+v", s)
		}
		if s := subs["delta:a"]; !s.Delta || s.At.Offset != 4 {
			t.Errorf("%+v", s)
		}
		if s := subs["news:a"]; !s.News || !s.Told || !s.Joined || !s.Hidden || s.Position || string(s.Info) != `{"s":1}` {
			t.Errorf("%+v", s)
		}
		if len(subs) != 4 {
			t.Errorf("%d subscriptions", len(subs))
		}
		// It goes on: live, with deltas from what it has.
		r.publish("force:a", "5")
		r.publish("force:s", "1")
		q.wants(`{"push":{"channel":"force:a","pub":{"data":5,"offset":5}}}`, `{"push":{"channel":"force:s","pub":{"data":1,"offset":1}}}`)
		patches := c.patches
		for i := range 2 {
			r.publish("delta:a", long(5+i))
			c.hears(q, long(5+i))
		}
		if c.patches == patches {
			t.Error("no patches any more")
		}
		q.idle()

		// And once more, from where it is now.
		q = r.adopt(e, q.export())
		q.wants()
		r.publish("force:a", "6")
		q.wants(`{"push":{"channel":"force:a","pub":{"data":6,"offset":6}}}`)
	})
}

func TestMoveThatLoses(t *testing.T) {
	const lost = `{"push":{"channel":"force:a","unsubscribe":{"code":2500,"reason":"insufficient state"}}}`
	both(t, func(t *testing.T, e session.Encoding) {
		for _, tt := range []struct {
			name   string
			change func(r *rig, state []byte) []byte
		}{
			{"too many missed", func(r *rig, state []byte) []byte {
				for range 6 {
					r.publish("force:a", "1")
				}
				return state
			}},
			{"too much missed", func(r *rig, state []byte) []byte {
				r.c.opts.ReplyBytes = 100
				r.publish("force:a", `"`+strings.Repeat("x", 100)+`"`)
				return state
			}},
			{"another epoch", func(r *rig, state []byte) []byte {
				_, rest, _ := strings.Cut(string(state), `"epoch":"`)
				ep, _, _ := strings.Cut(rest, `"`)
				return []byte(strings.Replace(string(state), ep, "xx", 1))
			}},
			{"the broker fails", func(r *rig, state []byte) []byte {
				r.broker.fail = errors.New("broker: gone")
				return state
			}},
			{"no room", func(r *rig, state []byte) []byte {
				r.loop.room = session.PostOverhead - 1
				return state
			}},
		} {
			for _, server := range []bool{false, true} {
				r := newRig(t, moveNamespaces)
				r.publish("force:a", "1")
				p := r.user(e, "ann")
				if server {
					if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "force:a", ExpireAt: epoch + 9}); err != nil {
						t.Fatal(err)
					}
				} else {
					p.send(`{"id":2,"subscribe":{"channel":"force:a"}}`)
				}
				p.send(`{"id":3,"subscribe":{"channel":"b"}}`)
				p.replies()
				q := r.adopt(e, tt.change(r, p.export()))
				if server {
					q.wants()
					q.wantsClose(session.ReasonInsufficientState)
					if r.registry.Count() != 0 || r.topics.Counts().Topics != 0 {
						t.Errorf("%s: something of the session stays", tt.name)
					}
					continue
				}
				if got := q.said(); got != lost {
					t.Errorf("%s: told %q", tt.name, got)
				}
				q.wantsOpen()
				if r.topics.Subscribed(&q.s, "force:a") || !r.topics.Subscribed(&q.s, "b") || q.expiry != 0 {
					t.Errorf("%s: the wrong subscription went", tt.name)
				}
				q.idle()
			}
		}
	})
}

// What JSON can't carry is no base for what follows a move either.
func TestMovePastWhatIsNoJSON(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, moveNamespaces)
		c := &deltaClient{t: t, json: e == session.EncodingJSON}
		r.user(session.EncodingProtobuf, "there").send(`{"id":2,"subscribe":{"channel":"delta:a"}}`)
		p := r.user(e, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil"}}`)
		p.replies()
		r.publish("delta:a", long(1))
		c.hears(p, long(1))
		state := p.export()
		bin := "\xff" + long(0)
		r.publish("delta:a", long(2))
		r.publish("delta:a", bin)
		q := r.adopt(e, state)
		if c.json {
			c.hears(q, long(2))
		} else {
			c.hears(q, long(2), bin)
		}
		for i := range 2 {
			r.publish("delta:a", long(3+i))
			c.hears(q, long(3+i))
		}
	})
}

// What the broker has still to answer holds a session where it is, and an
// answer that comes later reaches the session that was taken over.
func TestMoveAsync(t *testing.T) {
	r := newRig(t, moveNamespaces)
	r.publish("force:a", "1")
	p := r.user(session.EncodingJSON, "ann")
	r.broker.slow = true
	if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "force:a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Export(&p.s); !errors.Is(err, errBusy) {
		t.Errorf("exported: %v", err)
	}
	r.broker.answer()
	r.loop.turn()
	p.replies()
	state := p.export()
	r.publish("force:a", "2")
	r.broker.slow = true
	q := r.adopt(session.EncodingJSON, state)
	r.publish("force:a", "3")
	q.wants()
	r.broker.answer()
	r.loop.turn()
	q.wants(`{"push":{"channel":"force:a","pub":{"data":2,"offset":2}}}`, `{"push":{"channel":"force:a","pub":{"data":3,"offset":3}}}`)
	q.idle()

	state = q.export()
	r.broker.slow = true
	q = r.adopt(session.EncodingJSON, state)
	q.CloseWith(session.ReasonPeerGone, 0, "")
	r.broker.answer()
	r.loop.turn()
	q.wants()
	q.idle()
}

// To the others a session that moves was never gone.
func TestMoveIsNoNews(t *testing.T) {
	synctest.Test(t, testMoveIsNoNews)
}

func testMoveIsNoNews(t *testing.T) {
	r := newRig(t, moveNamespaces, func(o *rigOptions) { o.Topics.JoinLeaveInterval = time.Millisecond })
	other := r.user(session.EncodingJSON, "bob")
	other.send(`{"id":2,"subscribe":{"channel":"news:a"}}`)
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"subscribe":{"channel":"news:a"}}`)
	r.quiescent()
	other.replies()
	client := r.c.clientID(&p.s)
	q := r.adopt(session.EncodingJSON, p.export())
	r.quiescent()
	other.wants()
	q.CloseWith(session.ReasonPeerGone, 0, "")
	r.quiescent()
	other.wants(fmt.Sprintf(`{"push":{"channel":"news:a","leave":{"info":{"user":"ann","client":%q}}}}`, client))
}

func TestImportOfVersions(t *testing.T) {
	// As the version before wrote it.
	const v1 = `{"v":1,"client":"00000000-0000-8000-8000-000000000001","connected":true,"user":"ann","family":7,"token":8,"expires":1700000600,` +
		`"info":"eyJjIjoxfQ==","topics":{"force:a":false,"b":true},"ends":{"b":1700000060}}`
	r := newRig(t, moveNamespaces)
	r.publish("force:a", "1")
	p := r.adopt(session.EncodingJSON, []byte(v1))
	if p.s.User() != "ann" || p.s.Family != 7 || p.s.Token != 8 || string(p.s.Extra.Info) != `{"c":1}` || p.expiry != epoch+85 || p.s.State != session.StateConnected {
		t.Errorf("%+v, ends at %d", p.s, p.expiry)
	}
	n := 0
	r.topics.Each(&p.s, func(s topic.Subscription) {
		n++
		if s.Server != (s.Topic == "b") || s.Position {
			t.Errorf("%+v", s)
		}
	})
	if n != 2 {
		t.Errorf("%d subscriptions", n)
	}
	p.wants()
	r.publish("force:a", "2")
	p.wants(`{"push":{"channel":"force:a","pub":{"data":2,"offset":2}}}`)
	p.idle()
	// It goes on as this version.
	if state := string(p.export()); !strings.Contains(state, `"v":2`) {
		t.Errorf("state %s", state)
	}
	for _, state := range []string{`{"v":0,"connected":true}`, `{"v":3,"connected":true}`, `{`, ``, `[]`} {
		p := r.open(session.EncodingJSON, nil)
		if err := r.c.Import(&p.s, []byte(state)); err == nil {
			t.Errorf("%s: no error", state)
		}
	}
	p = r.open(session.EncodingJSON, nil)
	if err := r.c.Import(&p.s, []byte(`{"v":2,"client":"x","connected":true,"subs":[{"topic":"nope:a"}]}`)); !errors.Is(err, topic.ErrUnknownTopic) {
		t.Errorf("unknown topic: %v", err)
	}
	p = r.adopt(session.EncodingJSON, []byte(`{"v":2}`))
	if p.s.State != session.StateOpened {
		t.Errorf("not connected: %+v", p.s)
	}
}
