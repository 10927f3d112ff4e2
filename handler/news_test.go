package handler

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

var newsNamespaces = namespaces(
	topic.NamespaceOptions{Name: "quiet", AllowSubscribeForClient: true, AllowPresenceForClient: true},
	topic.NamespaceOptions{Name: "asked", AllowSubscribeForClient: true, JoinLeave: true, AllowPresenceForSubscriber: true},
	topic.NamespaceOptions{Name: "barred", AllowSubscribeForClient: true, JoinLeave: true},
	topic.NamespaceOptions{Name: "forced", AllowSubscribeForClient: true, JoinLeave: true, ForcePushJoinLeave: true},
	kept("kept", func(o *topic.NamespaceOptions) { o.ForceRecovery, o.JoinLeave, o.ForcePushJoinLeave = true, true, true }),
)

func newsRig(t testing.TB) *rig {
	return newRig(t, newsNamespaces, func(o *rigOptions) { o.Topics.JoinLeaveInterval = time.Millisecond })
}

// quiescent lets all news that wait go out. It is for synctest's clock: by another
// one a timer may be late.
func (r *rig) quiescent() {
	for range 3 {
		r.loop.turn()
		time.Sleep(3 * time.Millisecond)
		synctest.Wait()
	}
	r.loop.turn()
}

// inBubble is a subtest with synctest's clock.
func inBubble(t *testing.T, name string, f func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func bothInBubbles(t *testing.T, f func(t *testing.T, e session.Encoding)) {
	both(t, func(t *testing.T, e session.Encoding) {
		synctest.Test(t, func(t *testing.T) { f(t, e) })
	})
}

func TestJoinAndLeave(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		for _, tt := range []struct {
			name, topic, ask string
			override         auth.Override // of the one who hears
			others           auth.Override // of the one who comes and goes
			hears            bool
		}{
			{name: "not in the namespace", topic: "quiet:a", ask: `,"join_leave":true`},
			{name: "asked for", topic: "asked:a", ask: `,"join_leave":true`, hears: true},
			{name: "not asked for", topic: "asked:a"},
			{name: "asked for without presence", topic: "barred:a", ask: `,"join_leave":true`},
			{name: "forced", topic: "forced:a", hears: true},
			{name: "forced, with positions", topic: "kept:a", hears: true},
			{name: "override forces it", topic: "barred:a", override: auth.Override{ForcePushJoinLeave: new(true)}, hears: true},
			{name: "override takes it away", topic: "forced:a", override: auth.Override{ForcePushJoinLeave: new(false)}},
			{name: "another is not told of", topic: "forced:a", others: auth.Override{JoinLeave: new(false)}},
			{name: "who is not told of hears", topic: "forced:a", override: auth.Override{JoinLeave: new(false)}, hears: true},
			{name: "override in a quiet namespace", topic: "quiet:a", override: auth.Override{ForcePushJoinLeave: new(true)},
				others: auth.Override{JoinLeave: new(true)}, hears: true},
		} {
			inBubble(t, tt.name, func(t *testing.T) {
				r := newsRig(t)
				r.verifier.claims["info"] = &auth.Claims{Subject: "bob", Info: []byte(`{"c":1}`)}
				r.verifier.subs["one"] = &auth.SubscriptionClaims{Topic: tt.topic, Subject: "ann", Override: tt.override}
				r.verifier.subs["two"] = &auth.SubscriptionClaims{Topic: tt.topic, Subject: "bob", Override: tt.others, Info: []byte(`{"s":1}`)}
				p := r.user(e, "ann")
				p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":%q,"token":"one"%s}}`, tt.topic, tt.ask))
				r.quiescent()
				p.replies() // it may hear of itself
				other := r.open(session.EncodingJSON, nil)
				other.connect("info")
				other.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":%q,"token":"two"}}`, tt.topic))
				r.quiescent()
				info := fmt.Sprintf(`{"info":{"user":"bob","client":%q,"conn_info":{"c":1},"chan_info":{"s":1}}}`, r.c.clientID(&other.s))
				push := func(what string) string {
					if !tt.hears {
						return ""
					}
					return fmt.Sprintf(`{"push":{"channel":%q,%q:%s}}`, tt.topic, what, info)
				}
				if got := p.said(); got != push("join") {
					t.Errorf("heard %q, want %q", got, push("join"))
				}
				other.send(fmt.Sprintf(`{"id":3,"unsubscribe":{"channel":%q}}`, tt.topic))
				r.quiescent()
				if got := p.said(); got != push("leave") {
					t.Errorf("heard %q, want %q", got, push("leave"))
				}
				// A session that ends leaves as well.
				other.send(fmt.Sprintf(`{"id":4,"subscribe":{"channel":%q,"token":"two"}}`, tt.topic))
				r.quiescent()
				p.replies()
				other.CloseWith(session.ReasonPeerGone, 0, "")
				r.quiescent()
				if got := p.said(); got != push("leave") {
					t.Errorf("heard %q, want %q", got, push("leave"))
				}
				p.idle()
			})
		}
	})
}

// Nobody is told of a subscription before its own client is.
func TestJoinComesAfterTheAnswer(t *testing.T) {
	synctest.Test(t, testJoinComesAfterTheAnswer)
}

func testJoinComesAfterTheAnswer(t *testing.T) {
	r := newsRig(t)
	r.verifier.claims["t"] = &auth.Claims{Subject: "bob", Channels: []string{"kept:a", "forced:a"}}
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"subscribe":{"channel":"kept:a"}}`, `{"id":3,"subscribe":{"channel":"forced:a"}}`)
	r.quiescent()
	p.replies()
	r.broker.slow = true
	other := r.open(session.EncodingJSON, nil)
	other.send(`{"id":1,"connect":{"token":"t"}}`)
	r.quiescent()
	p.wants()
	r.broker.answer()
	r.quiescent()
	if got := p.replies(); len(got) != 2 || got[0].Push.GetJoin() == nil || got[1].Push.GetJoin() == nil {
		t.Errorf("heard %v", got)
	}
	got := other.replies()
	if len(got) != 3 || got[0].Connect == nil || got[1].Push.GetJoin() == nil {
		t.Errorf("heard %v", got)
	}
	// One that was never told of does not leave.
	r.broker.slow = true
	last := r.user(session.EncodingJSON, "eve")
	last.send(`{"id":2,"subscribe":{"channel":"kept:a"}}`)
	last.CloseWith(session.ReasonPeerGone, 0, "")
	reject := r.user(session.EncodingJSON, "max")
	reject.send(`{"id":2,"subscribe":{"channel":"kept:a","recover":true,"epoch":"xx","flag":2}}`)
	r.broker.answer()
	r.quiescent()
	reject.wants(answer(2, errUnrecoverable))
	p.wants()
}

// Many come at once: their news leave together, in one message that each format
// can take apart, and each is told of once.
func TestJoinsOfManyTogether(t *testing.T) {
	bothInBubbles(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, newsNamespaces, func(o *rigOptions) { o.Topics.JoinLeaveInterval = 50 * time.Millisecond })
		p := r.user(e, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"forced:a"}}`)
		r.loop.turn()
		p.replies()
		for range 100 {
			o := r.user(session.EncodingJSON, "bob")
			o.send(`{"id":2,"subscribe":{"channel":"forced:a"}}`)
		}
		seen := map[string]bool{}
		messages := 0
		r.loop.until(t, "all of them", func() bool {
			messages += len(p.out)
			for _, reply := range p.replies() {
				c := reply.Push.GetJoin().GetInfo().GetClient()
				if c == "" || seen[c] {
					t.Fatalf("told %v", reply)
				}
				seen[c] = true
			}
			return len(seen) == 100
		})
		if messages > 3 {
			t.Errorf("%d messages", messages)
		}
	})
}

func TestJoinEncoders(t *testing.T) {
	news := []topic.News{
		{Client: topic.ClientInfo{User: "ann", Client: "1", ConnInfo: []byte("\xff")}},
		{Left: true, Client: topic.ClientInfo{Client: "2", ChanInfo: []byte(`[1]`)}},
	}
	both(t, func(t *testing.T, e session.Encoding) {
		frame, err := JoinEncoders()[e]("a", news)
		if err != nil {
			t.Fatal(err)
		}
		p := newRig(t).open(e, nil)
		p.WriteFrame(frame)
		if len(p.out) != 1 || p.kinds[0] != (e == session.EncodingProtobuf) {
			t.Fatalf("%q", p.out)
		}
		got := p.replies()
		if len(got) != 2 || got[0].Push.Channel != "a" || got[0].Push.Join.Info.User != "ann" || got[1].Push.Leave.Info.Client != "2" || string(got[1].Push.Leave.Info.ChanInfo) != "[1]" {
			t.Errorf("%v", got)
		}
		if bin := string(got[0].Push.Join.Info.ConnInfo); bin != "" && e == session.EncodingJSON || bin != "\xff" && e == session.EncodingProtobuf {
			t.Errorf("%q", bin)
		}
	})
	if strings.Contains(fmt.Sprint(JoinEncoders()[session.EncodingNone] != nil), "true") {
		t.Error("an encoder for none")
	}
}
