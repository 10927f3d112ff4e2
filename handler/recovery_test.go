package handler

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

const errUnrecoverable = `"error":{"code":112,"message":"unrecoverable position"}`

// recoveryNamespaces are one for each way to recovery.
var recoveryNamespaces = namespaces(
	kept("plain"),
	kept("allow", func(o *topic.NamespaceOptions) { o.AllowRecovery = true }),
	kept("allowpos", func(o *topic.NamespaceOptions) { o.AllowPositioning = true }),
	kept("force", func(o *topic.NamespaceOptions) { o.ForceRecovery = true }),
	kept("forcepos", func(o *topic.NamespaceOptions) { o.ForcePositioning = true }),
	kept("reader", func(o *topic.NamespaceOptions) { o.AllowHistoryForSubscriber = true }),
	kept("cache", func(o *topic.NamespaceOptions) { o.AllowRecovery, o.ForceRecoveryMode = true, topic.RecoverCache }),
	kept("auto", func(o *topic.NamespaceOptions) {
		o.ForceRecovery, o.ForceRecoveryMode, o.AutoCacheRecover = true, topic.RecoverCache, true
	}),
)

// Each topic has seven publications, 1 to 7, of which 3 to 7 are kept.
func TestSubscribeRecovery(t *testing.T) {
	yes, no := new(true), new(false)
	// What a result says, spelled as it is on the wire. EE is the topic's epoch.
	const (
		none   = `"subscribe":{}`
		pos    = `"subscribe":{"epoch":"EE","offset":7,"positioned":true}`
		fresh  = `"subscribe":{"recoverable":true,"epoch":"EE","offset":7,"positioned":true}`
		failed = `"subscribe":{"recoverable":true,"epoch":"EE","offset":7,"positioned":true,"was_recovering":true}`
		same   = `"subscribe":{"recoverable":true,"epoch":"EE","recovered":true,"offset":7,"positioned":true,"was_recovering":true}`
	)
	found := func(since int, offsets ...int) string {
		var pubs []string
		for _, o := range offsets {
			pubs = append(pubs, fmt.Sprintf(`{"data":{"n":%d},"offset":%d}`, o, o))
		}
		offset := ""
		if since > 0 {
			offset = fmt.Sprintf(`"offset":%d,`, since)
		}
		return `"subscribe":{"recoverable":true,"epoch":"EE","publications":[` + strings.Join(pubs, ",") +
			`],"recovered":true,` + offset + `"positioned":true,"was_recovering":true}`
	}
	const since4 = `,"recover":true,"offset":4,"epoch":"EE"`
	tests := []struct {
		name, ns, ask string
		override      auth.Override
		want          string
	}{
		{name: "nothing asked, nothing allowed", ns: "plain", want: none},
		{name: "all asked, nothing allowed", ns: "plain", ask: since4 + `,"recoverable":true,"positioned":true`, want: none},
		{name: "no history", ns: "open", ask: since4 + `,"recoverable":true,"positioned":true`, want: none},
		{name: "no history, overridden", ns: "open", ask: since4, override: auth.Override{ForceRecovery: yes, ForcePositioning: yes}, want: none},
		{name: "allowed, not asked", ns: "allow", want: none},
		{name: "allowed, asked", ns: "allow", ask: `,"recoverable":true`, want: fresh},
		{name: "allowed, positioned asked alone", ns: "allow", ask: `,"positioned":true`, want: none},
		{name: "allowed, recovers", ns: "allow", ask: since4, want: found(4, 5, 6, 7)},
		{name: "allowed, recovers and asks", ns: "allow", ask: since4 + `,"recoverable":true`, want: found(4, 5, 6, 7)},
		{name: "positioning allowed, not asked", ns: "allowpos", want: none},
		{name: "positioning allowed, asked", ns: "allowpos", ask: `,"positioned":true`, want: pos},
		{name: "positioning allowed, recovery asked", ns: "allowpos", ask: since4 + `,"recoverable":true`, want: none},
		{name: "forced", ns: "force", want: fresh},
		{name: "forced, recovers", ns: "force", ask: since4, want: found(4, 5, 6, 7)},
		{name: "positioning forced", ns: "forcepos", ask: since4, want: pos},
		{name: "history may be read, not asked", ns: "reader", want: none},
		{name: "history may be read, positioned", ns: "reader", ask: `,"positioned":true`, want: pos},
		{name: "history may be read, recovers", ns: "reader", ask: since4, want: found(4, 5, 6, 7)},

		{name: "override forces recovery", ns: "plain", ask: since4, override: auth.Override{ForceRecovery: yes}, want: found(4, 5, 6, 7)},
		{name: "override forces positioning", ns: "plain", ask: since4, override: auth.Override{ForcePositioning: yes}, want: pos},
		{name: "override takes recovery away", ns: "force", ask: since4, override: auth.Override{ForceRecovery: no}, want: none},
		{name: "override takes positioning away", ns: "forcepos", override: auth.Override{ForcePositioning: no}, want: none},
		{name: "recovery needs positions", ns: "force", override: auth.Override{ForcePositioning: no}, want: fresh},
		{name: "override of what is allowed", ns: "allow", ask: since4, override: auth.Override{ForceRecovery: no}, want: found(4, 5, 6, 7)},

		{name: "nothing missed", ns: "force", ask: `,"recover":true,"offset":7,"epoch":"EE"`, want: same},
		{name: "all that is kept", ns: "force", ask: `,"recover":true,"offset":2,"epoch":"EE"`, want: found(2, 3, 4, 5, 6, 7)},
		{name: "one too many", ns: "force", ask: `,"recover":true,"offset":1,"epoch":"EE"`, want: failed},
		{name: "from the beginning", ns: "force", ask: `,"recover":true,"epoch":"EE"`, want: failed},
		{name: "beyond the top", ns: "force", ask: `,"recover":true,"offset":8,"epoch":"EE"`, want: failed},
		{name: "another epoch", ns: "force", ask: `,"recover":true,"offset":4,"epoch":"xx"`, want: failed},
		{name: "no epoch", ns: "force", ask: `,"recover":true,"offset":5`, want: found(5, 6, 7)},

		{name: "reject, recovered", ns: "force", ask: since4 + `,"flag":2`, want: found(4, 5, 6, 7)},
		{name: "reject, too many", ns: "force", ask: `,"recover":true,"offset":1,"epoch":"EE","flag":2`, want: errUnrecoverable},
		{name: "reject, another epoch", ns: "force", ask: `,"recover":true,"offset":7,"epoch":"xx","flag":3`, want: errUnrecoverable},
		{name: "another flag", ns: "force", ask: `,"recover":true,"offset":1,"epoch":"EE","flag":1`, want: failed},
		{name: "reject, not recovering", ns: "force", ask: `,"flag":2`, want: fresh},
		{name: "reject, not recoverable", ns: "plain", ask: `,"recover":true,"offset":1,"epoch":"EE","flag":2`, want: none},

		{name: "cache, not asked", ns: "cache", want: none},
		{name: "cache, recoverable", ns: "cache", ask: `,"recoverable":true`, want: fresh},
		{name: "cache, from nothing", ns: "cache", ask: `,"recover":true`, want: found(0, 7)},
		{name: "cache, from afar", ns: "cache", ask: `,"recover":true,"offset":1,"epoch":"EE"`, want: found(1, 7)},
		{name: "cache, another epoch", ns: "cache", ask: `,"recover":true,"offset":7,"epoch":"xx"`, want: found(7, 7)},
		{name: "cache, the same", ns: "cache", ask: `,"recover":true,"offset":7,"epoch":"EE"`, want: same},
		{name: "auto, not asked", ns: "auto", want: found(0, 7)},
		{name: "auto, asked", ns: "auto", ask: `,"recover":true,"offset":3,"epoch":"EE"`, want: found(3, 7)},
		{name: "auto, the same", ns: "auto", ask: `,"recover":true,"offset":7,"epoch":"EE"`, want: same},
		{name: "auto, taken away", ns: "auto", override: auth.Override{ForceRecovery: no}, want: none},
	}
	both(t, func(t *testing.T, e session.Encoding) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				r := newRig(t, recoveryNamespaces)
				name := tt.ns + ":a"
				var at topic.Position
				for i := range 7 {
					at = r.publish(name, fmt.Sprintf(`{"n":%d}`, i+1))
				}
				p := r.user(e, "ann")
				ask := tt.ask
				if tt.override != (auth.Override{}) {
					r.verifier.subs["t"] = &auth.SubscriptionClaims{Topic: name, Subject: "ann", Override: tt.override}
					ask += `,"token":"t"`
				}
				p.send(strings.ReplaceAll(fmt.Sprintf(`{"id":2,"subscribe":{"channel":%q%s}}`, name, ask), "EE", at.Epoch))
				p.wants(strings.ReplaceAll(answer(2, tt.want), "EE", at.Epoch))
				p.wantsOpen()
				if in := r.topics.Subscribed(&p.s, name); in != strings.HasPrefix(tt.want, `"subscribe"`) {
					t.Errorf("subscribed: %v", in)
				}
				// What follows comes once, and goes on from there.
				r.publish(name, `{"n":8}`)
				offset := `,"offset":8`
				if tt.ns == "open" {
					offset = ""
				}
				if tt.want == errUnrecoverable {
					p.wants()
				} else {
					p.wants(fmt.Sprintf(`{"push":{"channel":%q,"pub":{"data":{"n":8}%s}}}`, name, offset))
				}
				p.idle()
			})
		}
	})
}

// An anonymous peer has no way around the permission that names it.
func TestRecoveryOfAnonymous(t *testing.T) {
	r := newRig(t, func(o *rigOptions) { o.Options.Require = RequireNone }, namespaces(
		kept("no", func(o *topic.NamespaceOptions) {
			o.AllowSubscribeForAnonymous, o.AllowHistoryForSubscriber = true, true
		}),
		kept("yes", func(o *topic.NamespaceOptions) {
			o.AllowSubscribeForAnonymous, o.AllowHistoryForSubscriber, o.AllowHistoryForAnonymous = true, true, true
		})))
	at := r.publish("yes:a", "1")
	p := r.user(session.EncodingJSON, "")
	p.send(`{"id":2,"subscribe":{"channel":"no:a","positioned":true}}`, `{"id":3,"subscribe":{"channel":"yes:a","positioned":true}}`)
	p.wants(`{"id":2,"subscribe":{}}`, fmt.Sprintf(`{"id":3,"subscribe":{"epoch":%q,"offset":1,"positioned":true}}`, at.Epoch))
}

func TestRecoveryOfUnknownFuture(t *testing.T) {
	// A topic that nobody has published to has a position all the same.
	r := newRig(t, recoveryNamespaces)
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"subscribe":{"channel":"force:new"}}`)
	first := p.replies()[0].Subscribe
	if first.Epoch == "" || first.Offset != 0 || !first.Recoverable {
		t.Fatalf("%v", first)
	}
	p.send(`{"id":3,"unsubscribe":{"channel":"force:new"}}`)
	r.publish("force:new", "1")
	p.replies()
	p.send(fmt.Sprintf(`{"id":4,"subscribe":{"channel":"force:new","recover":true,"epoch":%q}}`, first.Epoch))
	p.wants(fmt.Sprintf(`{"id":4,"subscribe":{"recoverable":true,"epoch":%q,"publications":[{"data":1,"offset":1}],"recovered":true,"positioned":true,"was_recovering":true}}`, first.Epoch))
}

// What JSON can't carry is left out of what a JSON client recovers, which goes
// on behind it all the same; Protobuf gets it.
func TestRecoveryLeavesOutWhatIsNoJSON(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, recoveryNamespaces)
		r.publish("force:a", "1")
		r.publish("force:a", "\xff\x00")
		at := r.publish("force:a", "3")
		p := r.user(e, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"force:a","recover":true}}`)
		res := p.replies()[0].Subscribe
		var got []string
		for _, pub := range res.Publications {
			got = append(got, fmt.Sprintf("%d:%s", pub.Offset, pub.Data))
		}
		want := "[1:1 3:3]"
		if e == session.EncodingProtobuf {
			want = "[1:1 2:\xff\x00 3:3]"
		}
		if fmt.Sprint(got) != want || !res.Recovered || res.Epoch != at.Epoch {
			t.Errorf("recovered %q, %v", got, res)
		}
		r.publish("force:a", "\xff")
		r.publish("force:a", "5")
		n := 0
		for _, reply := range p.replies() {
			n++
			if reply.Push == nil || reply.Push.Pub == nil {
				t.Errorf("told %v", reply)
			}
		}
		if n != 1 && e == session.EncodingJSON || n != 2 && e == session.EncodingProtobuf {
			t.Errorf("%d publications", n)
		}
		if !r.topics.Subscribed(&p.s, "force:a") {
			t.Error("a publication left out is taken for a loss")
		}
	})
}

// While a broker reads the history, later commands wait and so does what is
// published; then all comes once and in order.
func TestRecoveryAsync(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, recoveryNamespaces)
		at := r.publish("force:a", "1")
		r.publish("force:a", "2")
		p := r.user(e, "ann")
		r.broker.slow = true
		p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":"force:a","recover":true,"offset":1,"epoch":%q}}`, at.Epoch), `{"id":3,"unsubscribe":{"channel":"zz"}}`)
		p.send(`{"id":4,"publish":{"channel":"a","data":1}}`)
		r.publish("force:a", "3")
		r.publish("force:a", "4")
		p.pinged = true
		p.send(`{}`)
		p.wants()
		if p.pinged {
			t.Error("a pong waits")
		}
		if n := r.broker.answer(); n != 1 {
			t.Fatalf("%d reads", n)
		}
		p.wants() // not from another goroutine
		r.loop.turn()
		p.wants(fmt.Sprintf(`{"id":2,"subscribe":{"recoverable":true,"epoch":%q,"publications":[{"data":2,"offset":2}],"recovered":true,"offset":1,"positioned":true,"was_recovering":true}}`, at.Epoch),
			`{"push":{"channel":"force:a","pub":{"data":3,"offset":3}}}`, `{"push":{"channel":"force:a","pub":{"data":4,"offset":4}}}`,
			`{"id":3,"unsubscribe":{}}`, `{"id":4,"publish":{}}`)
		p.idle()

		// The session ends meanwhile.
		r.broker.slow = true
		p.send(`{"id":5,"unsubscribe":{"channel":"force:a"}}`, `{"id":6,"subscribe":{"channel":"force:a"}}`)
		p.replies()
		p.CloseWith(session.ReasonPeerGone, 0, "")
		r.broker.answer()
		r.loop.turn()
		p.wants()
		p.idle()

		// The server ends the subscription meanwhile: its client hears of that, and
		// its command is answered.
		p = r.user(e, "bob")
		r.broker.slow = true
		p.send(`{"id":2,"subscribe":{"channel":"force:a"}}`)
		if err := r.c.UnsubscribeSession(&p.s, "force:a"); err != nil {
			t.Fatal(err)
		}
		r.broker.answer()
		r.loop.turn()
		p.wants(`{"push":{"channel":"force:a","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}`, answer(2, errUnavailable))
		p.idle()

		// The flag is looked at when the answer is there.
		r.broker.slow = true
		p.send(`{"id":3,"subscribe":{"channel":"force:a","recover":true,"offset":1,"epoch":"xx","flag":2}}`)
		r.publish("force:a", "5")
		r.broker.answer()
		r.loop.turn()
		p.wants(answer(3, errUnrecoverable))
		if r.topics.Subscribed(&p.s, "force:a") {
			t.Error("subscribed")
		}
		p.idle()
	})
}

func TestRecoveryThatFails(t *testing.T) {
	for err, want := range map[error]string{
		errors.New("broker: the other side is gone"): errInternal,
		topic.ErrFull: errTooMany,
	} {
		for _, slow := range []bool{false, true} {
			r := newRig(t, recoveryNamespaces)
			r.broker.fail, r.broker.slow = err, slow
			p := r.user(session.EncodingJSON, "ann")
			p.send(`{"id":2,"subscribe":{"channel":"force:a"}}`, `{"id":3,"unsubscribe":{"channel":"b"}}`)
			r.broker.answer()
			r.loop.turn()
			p.wants(answer(2, want), `{"id":3,"unsubscribe":{}}`)
			if r.topics.Subscribed(&p.s, "force:a") || r.topics.Counts().Topics != 0 {
				t.Error("a subscription stays")
			}
			p.idle()
			if logged := strings.Contains(r.log.String(), "subscribe failed"); logged != (want == errInternal) {
				t.Errorf("%v: logged %q", err, r.log.String())
			}
		}
	}
	r := newRig(t, recoveryNamespaces)
	p := r.user(session.EncodingJSON, "ann")
	r.loop.room = session.PostOverhead - 1
	p.send(`{"id":2,"subscribe":{"channel":"force:a"}}`)
	p.wants(answer(2, errTooMany))
	p.idle()
}

// More than may wait for a peer is not recovered at once: it would end as slow
// each time that it came back.
func TestRecoveryIsBounded(t *testing.T) {
	r := newRig(t, recoveryNamespaces, func(o *rigOptions) { o.ReplyBytes = 3000 })
	big := `"` + strings.Repeat("x", 900) + `"`
	for range 4 {
		r.publish("force:a", big)
	}
	p := r.user(session.EncodingJSON, "ann")
	recovered := func(offset int) bool {
		t.Helper()
		p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":"force:a","recover":true,"offset":%d}}`, offset))
		res := p.replies()[0].Subscribe
		if res.Recovered != (len(res.Publications) == 4-offset) || !res.Recovered && res.Offset != 4 {
			t.Errorf("%v", res)
		}
		r.publish("force:a", "0", func(q *topic.PublishRequest) { q.SkipHistory = true })
		if len(p.replies()) != 1 {
			t.Error("not subscribed")
		}
		p.send(`{"id":3,"unsubscribe":{"channel":"force:a"}}`)
		p.replies()
		return res.Recovered
	}
	if !recovered(1) || recovered(0) {
		t.Error("the bound is elsewhere")
	}
	p.pending = 1500
	if recovered(1) || !recovered(3) {
		t.Error("what waits already does not count")
	}
}

func TestLoseSubscription(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, recoveryNamespaces)
		p := r.user(e, "ann")
		r.verifier.subs["t"] = &auth.SubscriptionClaims{Topic: "force:a", Subject: "ann", ExpiresAt: epoch + 30}
		p.send(`{"id":2,"subscribe":{"channel":"force:a","token":"t"}}`)
		p.replies()
		// A gap, as a broker that has lost a publication would leave it.
		if err := r.topics.Deliver("force:a", topic.Delivery{Publication: &topic.Publication{Data: []byte("1"), Offset: 9, Previous: 8}, Epoch: "x"}); err != nil {
			t.Fatal(err)
		}
		r.loop.turn()
		p.wants(`{"push":{"channel":"force:a","unsubscribe":{"code":2500,"reason":"insufficient state"}}}`)
		p.wantsOpen()
		if r.topics.Subscribed(&p.s, "force:a") || p.expiry != 0 {
			t.Errorf("the subscription stays, or its end at %d", p.expiry)
		}
		r.c.LoseSubscription(&p.s, "force:a", false) // there is none any more
		p.wants()

		if err := r.c.SubscribeSession(&p.s, APISubscription{Topic: "forcepos:a"}); err != nil {
			t.Fatal(err)
		}
		p.replies()
		if err := r.topics.Deliver("forcepos:a", topic.Delivery{Publication: &topic.Publication{Data: []byte("1"), Offset: 9, Previous: 8}, Epoch: "x"}); err != nil {
			t.Fatal(err)
		}
		r.loop.turn()
		p.wants()
		p.wantsClose(session.ReasonInsufficientState)
	})
}

func TestUserLimitedTopics(t *testing.T) {
	limited := namespaces(
		topic.NamespaceOptions{Name: "own", AllowUserLimitedChannels: true},
		topic.NamespaceOptions{Name: "all", AllowUserLimitedChannels: true, AllowSubscribeForClient: true},
	)
	for _, tt := range []struct{ user, topic, want string }{
		{"ann", "own:#ann", `"subscribe":{}`},
		{"ann", "own:x#bob,ann", `"subscribe":{}`},
		{"ann", "own:#bob", errDenied},
		{"ann", "own:#an", errDenied},
		{"ann", "own:a", errDenied},
		{"ann", "own:ann", errDenied},
		{"ann", "$own:#ann", errDenied},
		{"", "own:#", errDenied},
		{"", "own:#,", errDenied},
		{"ann", "all:#bob", errDenied},
		{"ann", "all:a", `"subscribe":{}`},
		{"ann", "closed:#ann", errDenied},
	} {
		r := newRig(t, limited, func(o *rigOptions) { o.Options.Require = RequireNone })
		p := r.user(session.EncodingJSON, tt.user)
		p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":%q}}`, tt.topic))
		if got := p.said(); got != answer(2, tt.want) {
			t.Errorf("%q to %s: %s", tt.user, tt.topic, got)
		}
	}
}

// The info of a subscription token is what others see of the subscriber.
func TestSubscriptionInfo(t *testing.T) {
	r := newRig(t)
	r.verifier.subs["t"] = &auth.SubscriptionClaims{Topic: "a", Subject: "ann", Info: []byte(`{"s":1}`)}
	p, other := r.user(session.EncodingJSON, "ann"), r.user(session.EncodingProtobuf, "bob")
	p.send(`{"id":2,"subscribe":{"channel":"a","token":"t"}}`)
	other.send(`{"id":2,"subscribe":{"channel":"a"}}`)
	other.replies()
	p.send(`{"id":3,"publish":{"channel":"a","data":1}}`)
	r.loop.turn()
	other.wants(fmt.Sprintf(`{"push":{"channel":"a","pub":{"data":1,"info":{"user":"ann","client":%q,"chan_info":{"s":1}}}}}`, r.c.clientID(&p.s)))
}

func TestServerSubscriptionRecovers(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, recoveryNamespaces)
		var at topic.Position
		for i := range 3 {
			at = r.publish("plain:a", fmt.Sprint(i+1))
		}
		p := r.user(e, "ann")
		sub := APISubscription{Topic: "plain:a", Since: &topic.Position{Offset: 1, Epoch: at.Epoch}, Override: auth.Override{ForceRecovery: new(true)}}
		if err := r.c.SubscribeSession(&p.s, sub); err != nil {
			t.Fatal(err)
		}
		push := func(what string) string { return `{"push":{"channel":"plain:a",` + what + `}}` }
		p.wants(push(fmt.Sprintf(`"subscribe":{"recoverable":true,"epoch":%q,"offset":1,"positioned":true}`, at.Epoch)),
			push(`"pub":{"data":2,"offset":2}`), push(`"pub":{"data":3,"offset":3}`))
		if err := r.c.SubscribeSession(&p.s, sub); !errors.Is(err, topic.ErrAlreadySubscribed) {
			t.Error(err)
		}
		r.publish("plain:a", "4")
		p.wants(push(`"pub":{"data":4,"offset":4}`))

		// What can't be recovered is not: the position says so.
		if err := r.c.UnsubscribeSession(&p.s, "plain:a"); err != nil {
			t.Fatal(err)
		}
		p.replies()
		sub.Since = &topic.Position{Offset: 1, Epoch: "xx"}
		if err := r.c.SubscribeSession(&p.s, sub); err != nil {
			t.Fatal(err)
		}
		p.wants(push(fmt.Sprintf(`"subscribe":{"recoverable":true,"epoch":%q,"offset":4,"positioned":true}`, at.Epoch)))

		// Without the override the topic has no positions.
		other := r.user(e, "bob")
		if err := r.c.SubscribeSession(&other.s, APISubscription{Topic: "plain:a", Since: &topic.Position{Offset: 1, Epoch: at.Epoch}}); err != nil {
			t.Fatal(err)
		}
		other.wants(push(`"subscribe":{}`))

		// A broker that answers later: the push is the first that the client hears.
		late := r.user(e, "eve")
		r.broker.slow = true
		sub.Since = &topic.Position{Offset: 3, Epoch: at.Epoch}
		sub.ExpireAt = epoch + 10
		if err := r.c.SubscribeSession(&late.s, sub); err != nil {
			t.Fatal(err)
		}
		r.publish("plain:a", "5")
		late.wants()
		r.broker.answer()
		r.loop.turn()
		late.wants(push(fmt.Sprintf(`"subscribe":{"recoverable":true,"epoch":%q,"offset":3,"positioned":true}`, at.Epoch)),
			push(`"pub":{"data":4,"offset":4}`), push(`"pub":{"data":5,"offset":5}`))
		if late.expiry != epoch+35 {
			t.Errorf("ends at %d", late.expiry)
		}
		late.idle()

		// One that can't read says so to the backend, where it knows at once.
		r.broker.fail = errors.New("broker: gone")
		last := r.user(e, "max")
		if err := r.c.SubscribeSession(&last.s, sub); !errors.Is(err, r.broker.fail) {
			t.Errorf("%v", err)
		}
		r.broker.slow = true
		if err := r.c.SubscribeSession(&last.s, sub); err != nil {
			t.Error(err)
		}
		r.broker.answer()
		r.loop.turn()
		last.wants()
		if r.topics.Count(&last.s) != 0 || last.expiry != 0 {
			t.Error("something of it stays")
		}
	})
}

func TestPublicationsOfHistory(t *testing.T) {
	info := &topic.ClientInfo{User: "ann", Client: "c", ConnInfo: []byte(`{"n":1}`), ChanInfo: []byte("no json")}
	all := []*topic.Publication{{Data: []byte(`{"a":1}`), Offset: 4, Tags: map[string]string{"k": "v"}, Info: info}, {Data: []byte("\xff"), Offset: 5}}
	got, last := publications(protocol.JSON, all, false)
	want := &pb.Publication{Data: all[0].Data, Offset: 4, Tags: all[0].Tags, Info: &pb.ClientInfo{User: "ann", Client: "c", ConnInfo: info.ConnInfo}}
	if len(got) != 1 || last != all[0] || got[0].String() != want.String() {
		t.Errorf("%v", got)
	}
	if got, last := publications(protocol.Protobuf, all, false); len(got) != 2 || last != all[1] || string(got[0].Info.ChanInfo) != "no json" {
		t.Errorf("%v", got)
	}
	if got, last := publications(protocol.JSON, nil, true); got != nil || last != nil {
		t.Errorf("%v", got)
	}
	// Patches of a long history would hold the loop.
	var long []*topic.Publication
	for i := range 100 {
		long = append(long, &topic.Publication{Data: fmt.Appendf(nil, `{"n":%d,"x":%q}`, i, strings.Repeat("x", 4000)), Offset: uint64(i + 1)})
	}
	got, _ = publications(protocol.Protobuf, long, true)
	if got[0].Delta || !got[1].Delta || got[99].Delta {
		t.Error("not the first ones have patches")
	}
}
