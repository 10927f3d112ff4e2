package handler

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

// connected is the connect reply, which must be the one thing that p was told.
func (p *fakePeer) connected() *pb.ConnectResult {
	p.t.Helper()
	replies := p.replies()
	if len(replies) != 1 || replies[0].Connect == nil {
		p.t.Fatalf("told %v", replies)
	}
	return replies[0].Connect
}

func offsets(r *pb.SubscribeResult) string {
	var out []string
	for _, p := range r.GetPublications() {
		out = append(out, fmt.Sprint(p.Offset))
	}
	return strings.Join(out, " ")
}

func TestConnectRecoversSubscriptions(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, recoveryNamespaces)
		r.verifier.claims["t"] = &auth.Claims{
			Subject: "ann", Channels: []string{"force:a", "plain:a"},
			Subs: []auth.Sub{
				{Topic: "plain:b", Data: []byte(`{"d":1}`), Override: auth.Override{ForceRecovery: new(true)}},
				{Topic: "auto:a", Info: []byte(`{"i":1}`)},
			},
		}
		var at topic.Position
		where := map[string]topic.Position{}
		for _, name := range []string{"force:a", "plain:a", "plain:b", "auto:a"} {
			for i := range 7 {
				at = r.publish(name, fmt.Sprint(i+1))
			}
			where[name] = at
		}
		subs := func(offset int, change string) string {
			var all []string
			for name, at := range where {
				ep := at.Epoch
				if name == change {
					ep = "xx"
				}
				all = append(all, fmt.Sprintf(`%q:{"recover":true,"offset":%d,"epoch":%q}`, name, offset, ep))
			}
			return `{"id":1,"connect":{"token":"t","subs":{` + strings.Join(all, ",") + `,"nope:a":{"recover":true},"force:zz":{"recover":true}}}}`
		}
		for _, tt := range []struct {
			name, message string
			force, b      string // the offsets recovered; "-": not recovered
		}{
			{"first", `{"id":1,"connect":{"token":"t"}}`, "", ""},
			{"back", subs(5, ""), "6 7", "6 7"},
			{"back at once", subs(7, ""), "", ""},
			{"too late", subs(1, ""), "-", "-"},
			{"one of another epoch", subs(5, "plain:b"), "6 7", "-"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				p := r.open(e, nil)
				p.send(tt.message)
				c := p.connected()
				if len(c.Subs) != 4 {
					t.Fatalf("%v", c.Subs)
				}
				asked := strings.Contains(tt.message, "subs")
				for name, want := range map[string]string{"force:a": tt.force, "plain:b": tt.b} {
					s := c.Subs[name]
					ok := want != "-"
					if !ok {
						want = ""
					}
					if !s.Recoverable || !s.Positioned || s.Epoch != where[name].Epoch || s.WasRecovering != asked || s.Recovered != (asked && ok) || offsets(s) != want {
						t.Errorf("%s: %v, want %q", name, s, want)
					}
					// The client's position is right behind what it gets, or that of the topic.
					if n := uint64(len(s.Publications)); s.Offset+n != 7 {
						t.Errorf("%s: offset %d and %d publications", name, s.Offset, n)
					}
				}
				if string(c.Subs["plain:b"].Data) != `{"d":1}` {
					t.Errorf("%v", c.Subs["plain:b"])
				}
				if s := c.Subs["plain:a"]; s.Recoverable || s.Positioned || s.WasRecovering || s.Epoch != "" {
					t.Errorf("no recovery there: %v", s)
				}
				if s := c.Subs["auto:a"]; !s.Recovered || strings.Contains(tt.message, `"offset":7`) != (offsets(s) == "") {
					t.Errorf("state: %v", s)
				}
				// All of them are live, from there on.
				for name := range where {
					r.publish(name, "8", func(q *topic.PublishRequest) { q.SkipHistory = true })
					p.wants(fmt.Sprintf(`{"push":{"channel":%q,"pub":{"data":8}}}`, name))
				}
				if got := r.topics.Info(&p.s, "auto:a").ChanInfo; string(got) != `{"i":1}` {
					t.Errorf("info %q", got)
				}
				p.idle()
				p.CloseWith(session.ReasonPeerGone, 0, "")
			})
		}
	})
}

// While the broker reads, nothing goes to the client: not of the topics that it
// waits for, nor of the others. Then the reply is first.
func TestConnectAsync(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, recoveryNamespaces, func(o *rigOptions) { o.UserPersonal, o.PersonalNamespace = true, "forcepos" })
		r.verifier.claims["many"] = &auth.Claims{Subject: "ann", Channels: []string{"a", "force:a", "allow:a", "force:b"}}
		r.verifier.claims["t"] = &auth.Claims{Subject: "ann", Channels: []string{"a", "force:a", "force:b"}}
		a := r.publish("force:a", "1")
		r.publish("force:a", "2")
		r.broker.slow = true
		p := r.open(e, nil)
		p.send(`{"id":1,"connect":{"token":"many"}}`, `{"id":2,"subscribe":{"channel":"b"}}`)
		p.wantsClose(session.ReasonTopicLimit) // five with the personal topic
		p = r.open(e, nil)
		p.send(fmt.Sprintf(`{"id":1,"connect":{"token":"t","subs":{"force:a":{"recover":true,"epoch":%q}}}}`, a.Epoch), `{"id":2,"unsubscribe":{"channel":"b"}}`)
		r.publish("a", "1")
		r.publish("force:a", "3")
		r.publish("force:b", "1")
		p.send(`{"id":3,"publish":{"channel":"b","data":1}}`)
		p.wants()
		if p.s.State == session.StateConnected || p.beating {
			t.Error("connected")
		}
		if err := r.c.RefreshSession(&p.s, APIRefresh{}); err == nil {
			t.Error("refreshed")
		}
		if _, err := r.c.Export(&p.s); !errors.Is(err, errBusy) {
			t.Errorf("exported: %v", err)
		}
		if n := r.broker.answer(); n != 3 {
			t.Fatalf("%d reads", n)
		}
		p.wants()
		r.loop.turn()
		replies := p.replies()
		if len(replies) != 5 || replies[0].Connect == nil || replies[3].Id != 2 || replies[4].Id != 3 {
			t.Fatalf("%v", replies)
		}
		c := replies[0].Connect
		if len(c.Subs) != 4 || offsets(c.Subs["force:a"]) != "1 2" || c.Subs["force:b"].Offset != 0 || c.Subs["forcepos:#ann"] == nil || c.Subs["a"] == nil {
			t.Errorf("%v", c.Subs)
		}
		got := map[string]uint64{}
		for _, push := range replies[1:3] {
			got[push.Push.GetChannel()] = push.Push.GetPub().GetOffset()
		}
		if got["force:a"] != 3 || got["force:b"] != 1 {
			t.Errorf("live: %v", got)
		}
		p.idle()
		p.CloseWith(session.ReasonPeerGone, 0, "")
		if r.registry.Count() != 0 || r.topics.Counts().Topics != 0 {
			t.Error("something of the session stays")
		}
	})
}

// With a token that the pool looks at, the same.
func TestConnectAsyncAfterPool(t *testing.T) {
	r := newRig(t, recoveryNamespaces)
	r.verifier.claims["slow-t"] = &auth.Claims{Subject: "ann", Channels: []string{"force:a"}}
	p := r.open(session.EncodingJSON, nil)
	r.broker.slow = true
	p.send(`{"id":1,"connect":{"token":"slow-t"}}`, `{"id":2,"unsubscribe":{"channel":"b"}}`)
	r.loop.until(t, "the read", func() bool {
		r.broker.mu.Lock()
		defer r.broker.mu.Unlock()
		return len(r.broker.reads) == 1
	})
	p.wants()
	r.broker.answer()
	r.loop.turn()
	if got := p.replies(); len(got) != 2 || got[0].Connect == nil || got[1].Id != 2 {
		t.Errorf("%v", got)
	}
	p.idle()

	// The peer goes while the broker reads.
	p = r.open(session.EncodingJSON, nil)
	r.verifier.claims["t"] = r.verifier.claims["slow-t"]
	r.broker.slow = true
	p.send(`{"id":1,"connect":{"token":"t"}}`)
	p.CloseWith(session.ReasonPeerGone, 0, "")
	r.broker.answer()
	r.loop.turn()
	p.wants()
	p.idle()
	if r.registry.Count() != 1 {
		t.Errorf("%d sessions are listed", r.registry.Count())
	}
}

func TestConnectWhoseRecoveryFails(t *testing.T) {
	for _, slow := range []bool{false, true} {
		r := newRig(t, recoveryNamespaces)
		r.verifier.claims["t"] = &auth.Claims{Subject: "ann", Channels: []string{"a", "force:a", "force:b"}}
		r.broker.fail, r.broker.slow = errors.New("broker: gone"), slow
		p := r.open(session.EncodingJSON, nil)
		p.send(`{"id":1,"connect":{"token":"t"}}`, `{"id":2,"subscribe":{"channel":"b"}}`)
		r.broker.answer()
		r.loop.turn()
		p.wants(answer(1, errInternal))
		p.wantsOpen()
		if p.beating || p.s.State >= session.StateConnected || r.registry.Count() != 0 || len(r.registry.ByUser("ann", nil)) != 0 || r.topics.Counts().Subscriptions != 0 {
			t.Errorf("slow %v: something of the session is there", slow)
		}
		p.send(`{"id":3,"subscribe":{"channel":"b"}}`)
		p.wants()
		if n := r.loop.inUse(); n != 0 {
			t.Errorf("%d bytes stay taken", n)
		}
		p.CloseWith(session.ReasonStale, 0, "")
	}
	// No room in the loop's inbox.
	r := newRig(t, recoveryNamespaces)
	r.verifier.claims["t"] = &auth.Claims{Subject: "ann", Channels: []string{"force:a", "force:b"}}
	r.loop.room = session.PostOverhead
	r.broker.slow = true // the second does not find a place while the first waits
	p := r.open(session.EncodingJSON, nil)
	p.send(`{"id":1,"connect":{"token":"t"}}`)
	p.wants()
	r.broker.answer()
	r.loop.turn()
	p.wants(answer(1, errTooMany))
	if r.topics.Counts().Subscriptions != 0 {
		t.Error("subscriptions stay")
	}
}

// All that a connect reply recovers has to fit, together.
func TestConnectRecoveryIsBounded(t *testing.T) {
	r := newRig(t, recoveryNamespaces, func(o *rigOptions) { o.ReplyBytes = 3000 })
	r.verifier.claims["t"] = &auth.Claims{Subject: "ann", Channels: []string{"force:a", "force:b", "force:c"}}
	for _, name := range []string{"force:a", "force:b", "force:c"} {
		r.publish(name, `"`+strings.Repeat("x", 1300)+`"`)
	}
	p := r.open(session.EncodingJSON, nil)
	p.send(`{"id":1,"connect":{"token":"t","subs":{"force:a":{"recover":true},"force:b":{"recover":true},"force:c":{"recover":true}}}}`)
	n := 0
	for name, s := range p.connected().Subs {
		if s.Recovered {
			n++
		}
		if s.Recovered != (len(s.Publications) == 1) || s.Recovered == (s.Offset == 1) {
			t.Errorf("%s: %v", name, s)
		}
	}
	if n != 2 {
		t.Errorf("%d of 3 are recovered", n)
	}
}

// Names of a token are one subscription each, and what the client says of a
// topic opens none.
func TestConnectSubscriptionsAreTheTokens(t *testing.T) {
	r := newRig(t, recoveryNamespaces)
	r.verifier.claims["t"] = &auth.Claims{Subject: "ann", Channels: []string{"force:a", "force:a"}, Subs: []auth.Sub{{Topic: "force:a", Override: auth.Override{ForceRecovery: new(false)}}}}
	p := r.open(session.EncodingJSON, nil)
	p.send(`{"id":1,"connect":{"token":"t","subs":{"force:b":{"recover":true},"force:a":null}}}`)
	if c := p.connected(); len(c.Subs) != 1 || c.Subs["force:a"].Positioned {
		t.Errorf("%v", c.Subs)
	}
	if n := r.topics.Count(&p.s); n != 1 {
		t.Errorf("%d subscriptions", n)
	}
}
