package handler

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

// readNamespaces are one for each permission.
var readNamespaces = namespaces(
	kept("none", func(o *topic.NamespaceOptions) { o.Presence, o.AllowSubscribeForAnonymous = true, true }),
	kept("subs", func(o *topic.NamespaceOptions) {
		o.Presence, o.AllowHistoryForSubscriber, o.AllowPresenceForSubscriber, o.AllowSubscribeForAnonymous = true, true, true, true
	}),
	kept("all", func(o *topic.NamespaceOptions) {
		o.Presence, o.AllowHistoryForClient, o.AllowPresenceForClient, o.AllowSubscribeForAnonymous = true, true, true, true
	}),
	kept("every", func(o *topic.NamespaceOptions) {
		o.Presence, o.AllowHistoryForClient, o.AllowPresenceForClient = true, true, true
		o.AllowHistoryForAnonymous, o.AllowPresenceForAnonymous, o.AllowSubscribeForAnonymous = true, true, true
	}),
	topic.NamespaceOptions{Name: "bare", AllowHistoryForClient: true, AllowPresenceForClient: true, AllowSubscribeForClient: true, AllowSubscribeForAnonymous: true},
)

func TestReadPermissions(t *testing.T) {
	const ok = ""
	for _, tt := range []struct {
		topic, user string
		subscribed  bool
		want        string
	}{
		{"none:a", "ann", true, errDenied},
		{"subs:a", "ann", false, errDenied},
		{"subs:a", "ann", true, ok},
		{"subs:a", "", true, errDenied},
		{"all:a", "ann", false, ok},
		{"all:a", "", true, errDenied},
		{"every:a", "", false, ok},
		{"every:#bob", "ann", false, errDenied},
		{"every:#bob", "bob", false, ok},
		{"bare:a", "ann", true, errUnavailable},
		{"bare:a", "", true, errUnavailable},
		{"nope:a", "ann", false, errUnknown},
		{strings.Repeat("x", 41), "ann", false, errRequest},
	} {
		for _, insecure := range []bool{false, true} {
			r := newRig(t, readNamespaces, func(o *rigOptions) { o.Options.Require, o.Insecure = RequireNone, insecure })
			p := r.user(session.EncodingJSON, tt.user)
			if tt.subscribed {
				p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":%q}}`, tt.topic))
				p.replies()
			}
			want := tt.want
			if insecure && want == errDenied {
				want = ok
			}
			for _, method := range []string{"history", "presence", "presence_stats"} {
				p.send(fmt.Sprintf(`{"id":3,%q:{"channel":%q}}`, method, tt.topic))
				r.loop.turn()
				got := p.said()
				if want != ok && got != answer(3, want) || want == ok && !strings.HasPrefix(got, `{"id":3,"`+method+`":{`) {
					t.Errorf("%s of %s by %q, subscribed %v, insecure %v: %s", method, tt.topic, tt.user, tt.subscribed, insecure, got)
				}
				p.wantsOpen()
			}
			p.idle()
		}
	}
	p := newRig(t).user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"history":{}}`)
	p.wantsClose(session.ReasonBadRequest)
	for _, method := range []string{"presence", "presence_stats"} {
		p := newRig(t).user(session.EncodingJSON, "ann")
		p.send(fmt.Sprintf(`{"id":2,%q:{}}`, method))
		p.wantsClose(session.ReasonBadRequest)
	}
}

// A topic has the publications 3 to 7 of seven.
func TestHistoryCommand(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		for _, slow := range []bool{false, true} {
			r := newRig(t, readNamespaces, func(o *rigOptions) { o.Topics.HistoryLimit = 4 })
			var at topic.Position
			for i := range 7 {
				at = r.publish("all:a", fmt.Sprint(i+1))
			}
			p := r.user(e, "ann")
			found := func(offsets ...int) string {
				pubs := ""
				for i, o := range offsets {
					if i > 0 {
						pubs += ","
					}
					pubs += fmt.Sprintf(`{"data":%d,"offset":%d}`, o, o)
				}
				pubs = "[" + pubs + "]"
				if pubs == "[]" && e == session.EncodingProtobuf {
					pubs = "null" // that an SDK's decoder makes of none
				}
				return fmt.Sprintf(`"history":{"publications":%s,"epoch":%q,"offset":7}`, pubs, at.Epoch)
			}
			for _, tt := range []struct{ ask, want string }{
				{``, found()},
				{`,"limit":0`, found()},
				{`,"limit":2`, found(3, 4)},
				{`,"limit":4`, found(3, 4, 5, 6)},
				{`,"limit":5`, found(3, 4, 5, 6)}, // the server's limit
				{`,"limit":-1`, found(3, 4, 5, 6)},
				{`,"limit":2147483647`, found(3, 4, 5, 6)},
				{`,"limit":2,"reverse":true`, found(7, 6)},
				{`,"limit":-1,"reverse":true`, found(7, 6, 5, 4)},
				{`,"limit":-1,"since":{"offset":5,"epoch":"EE"}`, found(6, 7)},
				{`,"limit":1,"since":{"offset":5}`, found(6)},
				{`,"limit":-1,"since":{"offset":7,"epoch":"EE"}`, found()},
				{`,"limit":-1,"since":{"offset":70,"epoch":"EE"}`, found()},
				{`,"limit":2,"since":{"offset":1,"epoch":"EE"}`, found(3, 4)},
				{`,"limit":2,"since":{}`, found(3, 4)},
				{`,"limit":3,"reverse":true,"since":{"offset":5,"epoch":"EE"}`, found(4, 3)},
				{`,"limit":1,"reverse":true,"since":{"offset":8,"epoch":"EE"}`, found(7)},
				{`,"limit":-1,"reverse":true,"since":{"offset":3,"epoch":"EE"}`, found()},
				{`,"limit":-1,"reverse":true,"since":{"offset":0,"epoch":"EE"}`, errRequest},
				{`,"limit":-1,"since":{"offset":5,"epoch":"xx"}`, errUnrecoverable},
				{`,"limit":0,"since":{"offset":5,"epoch":"xx"}`, errUnrecoverable},
				{`,"limit":-1,"reverse":true,"since":{"offset":5,"epoch":"xx"}`, errUnrecoverable},
			} {
				r.broker.slow = slow
				p.send(strings.ReplaceAll(fmt.Sprintf(`{"id":2,"history":{"channel":"all:a"%s}}`, tt.ask), "EE", at.Epoch), `{"id":3,"unsubscribe":{"channel":"x"}}`)
				r.loop.turn()
				if slow && tt.want != errRequest {
					p.wants()
				}
				r.broker.answer()
				r.loop.turn()
				if got, want := p.said(), answer(2, tt.want)+"\n"+`{"id":3,"unsubscribe":{}}`; got != want {
					t.Errorf("%s: %s, want %s", tt.ask, got, want)
				}
				p.idle()
			}
		}
	})
}

func TestHistoryOfWhatIsNoJSON(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, readNamespaces)
		r.publish("all:a", "\xff")
		r.publish("all:a", "2")
		p := r.user(e, "ann")
		p.send(`{"id":2,"history":{"channel":"all:a","limit":-1}}`)
		r.loop.turn()
		got := p.replies()[0].History
		if n := len(got.Publications); n != 1 && e == session.EncodingJSON || n != 2 && e == session.EncodingProtobuf || got.Offset != 2 {
			t.Errorf("%v", got)
		}
	})
}

// A history is cut to what may wait for a peer, as its limit would: its client
// reads on. A long one is written in the pool.
func TestHistoryIsBounded(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, readNamespaces, func(o *rigOptions) { o.ReplyBytes = 200_000 })
		big := `"` + strings.Repeat("x", 60_000) + `"`
		for range 5 {
			r.publish("all:a", big)
		}
		p := r.user(e, "ann")
		read := func(since int) (got []uint64) {
			t.Helper()
			jobs := r.pool.Stats().Done
			p.send(fmt.Sprintf(`{"id":2,"history":{"channel":"all:a","limit":-1,"since":{"offset":%d}}}`, since), `{"id":3,"unsubscribe":{"channel":"x"}}`)
			r.loop.until(t, "the history", func() bool { return len(p.out) == 2 })
			replies := p.replies()
			for _, pub := range replies[0].History.Publications {
				got = append(got, pub.Offset)
			}
			if replies[1].Id != 3 {
				t.Error("overtaken")
			}
			r.loop.until(t, "the pool", func() bool { return r.pool.Stats().Done > jobs || len(got) < 2 })
			p.idle()
			return got
		}
		if got := fmt.Sprint(read(0)); got != "[1 2 3]" {
			t.Errorf("read %s", got)
		}
		if got := fmt.Sprint(read(3)); got != "[4 5]" {
			t.Errorf("read on %s", got)
		}
		// One that is longer than all that may wait comes alone.
		r.publish("all:b", `"`+strings.Repeat("x", 300_000)+`"`)
		r.publish("all:b", `2`)
		p.send(`{"id":2,"history":{"channel":"all:b","limit":-1}}`)
		r.loop.until(t, "the history", func() bool { return len(p.out) == 1 })
		if got := p.replies()[0].History; got == nil || len(got.Publications) != 1 {
			t.Errorf("%v", got)
		}
		// Behind what waits it would make a slow consumer of the peer.
		p.pending = 1
		p.send(`{"id":2,"history":{"channel":"all:b","limit":-1}}`)
		r.loop.until(t, "the answer", func() bool { return len(p.out) == 1 })
		p.wants(answer(2, errTooMany))
		p.idle()
	})
}

func TestHistoryThatFails(t *testing.T) {
	for err, want := range map[error]string{
		errors.New("broker: gone"):                  errInternal,
		topic.ErrFull:                               errTooMany,
		topic.ErrNotAvailable:                       errUnavailable,
		fmt.Errorf("x: %w", topic.ErrUnrecoverable): errUnrecoverable,
	} {
		r := newRig(t, readNamespaces)
		r.broker.fail = err
		p := r.user(session.EncodingJSON, "ann")
		p.send(`{"id":2,"history":{"channel":"all:a"}}`)
		r.loop.turn()
		p.wants(answer(2, want))
		p.idle()
		if logged := strings.Contains(r.log.String(), "topic not read"); logged != (want == errInternal) {
			t.Errorf("%v: logged %q", err, r.log.String())
		}
	}
	r := newRig(t, readNamespaces)
	p := r.user(session.EncodingJSON, "ann")
	r.loop.room = session.PostOverhead - 1
	for i, method := range []string{"history", "presence", "presence_stats"} {
		p.send(fmt.Sprintf(`{"id":2,%q:{"channel":"all:a"}}`, method))
		p.wants(answer(2, errTooMany))
		p.idle()
		if n := r.c.Counters().Snapshot().PoolFull; n != uint64(i+1) {
			t.Errorf("%d counted", n)
		}
	}
}

// The peer goes while the broker reads.
func TestHistoryOfWhoIsGone(t *testing.T) {
	r := newRig(t, readNamespaces)
	p := r.user(session.EncodingJSON, "ann")
	r.broker.slow = true
	p.send(`{"id":2,"history":{"channel":"all:a"}}`)
	p.CloseWith(session.ReasonPeerGone, 0, "")
	r.broker.answer()
	r.loop.turn()
	p.wants()
	p.idle()
}

func TestPresenceCommands(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, readNamespaces, func(o *rigOptions) { o.Options.Require = RequireNone })
		r.verifier.claims["ann"] = &auth.Claims{Subject: "ann", Info: []byte(`{"c":1}`)}
		r.verifier.claims["bin"] = &auth.Claims{Subject: "bob", Info: []byte("\xff")}
		r.verifier.subs["info"] = &auth.SubscriptionClaims{Topic: "all:a", Subject: "ann", Info: []byte(`{"s":1}`)}
		r.verifier.subs["hidden"] = &auth.SubscriptionClaims{Topic: "all:a", Subject: "eve", Override: auth.Override{Presence: new(false)}}
		asks := r.user(e, "ann")
		asks.send(`{"id":2,"presence":{"channel":"all:a"}}`, `{"id":3,"presence_stats":{"channel":"all:a"}}`)
		r.loop.turn()
		nobody := `{"id":2,"presence":{"presence":{}}}`
		if e == session.EncodingProtobuf {
			nobody = `{"id":2,"presence":{"presence":null}}` // that an SDK's decoder makes of none
		}
		asks.wants(nobody, `{"id":3,"presence_stats":{"num_clients":0,"num_users":0}}`)
		want := map[string]string{}
		for _, x := range []struct{ token, sub, shown string }{
			{"ann", `,"token":"info"`, `{"user":"ann","client":"CC","conn_info":{"c":1},"chan_info":{"s":1}}`},
			{"ann", "", `{"user":"ann","client":"CC","conn_info":{"c":1}}`},
			{"bin", "", `{"user":"bob","client":"CC","conn_info":BIN}`},
			{"", "", `{"user":"","client":"CC"}`},
			{"", "", `{"user":"","client":"CC"}`},
			{"eve", `,"token":"hidden"`, ""},
		} {
			p := r.user(session.EncodingJSON, x.token)
			p.send(`{"id":2,"subscribe":{"channel":"all:a"` + x.sub + `}}`)
			p.wants(`{"id":2,"subscribe":{}}`)
			if x.shown != "" {
				c := r.c.clientID(&p.s)
				want[c] = strings.ReplaceAll(x.shown, "CC", c)
			}
		}
		asks.send(`{"id":2,"presence":{"channel":"all:a"}}`, `{"id":3,"presence_stats":{"channel":"all:a"}}`)
		asks.wants() // a census is not done in the turn that asks
		r.loop.turn()
		replies := asks.replies()
		if len(replies) != 2 || replies[1].Id != 3 || replies[1].PresenceStats.NumClients != 5 || replies[1].PresenceStats.NumUsers != 3 {
			t.Fatalf("%v", replies)
		}
		got := replies[0].Presence.Presence
		if len(got) != len(want) {
			t.Errorf("%d clients, want %d", len(got), len(want))
		}
		for c, w := range want {
			// Info that JSON can't say is left out there.
			if strings.Contains(w, "BIN") {
				if bin := string(got[c].ConnInfo); bin != "\xff" && e == session.EncodingProtobuf || bin != "" && e == session.EncodingJSON {
					t.Errorf("%q", bin)
				}
				continue
			}
			if s := string(got[c].AppendJSON(nil)); s != w {
				t.Errorf("%s, want %s", s, w)
			}
		}
		asks.idle()
	})
}

// crowd subscribes n peers to a topic.
func (r *rig) crowd(n int, name string) {
	for i := range n {
		p := r.user(session.EncodingJSON, fmt.Sprint("u", i%7))
		p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":%q}}`, name))
		p.out, p.kinds = nil, nil
	}
}

// With many, the answer is written in the pool.
func TestPresenceOfMany(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, readNamespaces)
		asks := r.user(e, "ann")
		for _, n := range []int{presenceOnLoop, presenceOnLoop + 1, 2000} {
			name := fmt.Sprint("all:", n)
			r.crowd(n, name)
			jobs := r.pool.Stats().Done
			asks.send(fmt.Sprintf(`{"id":2,"presence":{"channel":%q}}`, name), fmt.Sprintf(`{"id":3,"presence_stats":{"channel":%q}}`, name), `{"id":4,"unsubscribe":{"channel":"x"}}`)
			r.loop.until(t, "the answers", func() bool { return len(asks.out) == 3 })
			got := asks.replies()
			if len(got) != 3 || len(got[0].Presence.GetPresence()) != n || got[1].PresenceStats.GetNumClients() != uint32(n) || got[1].PresenceStats.NumUsers != 7 || got[2].Id != 4 {
				t.Fatalf("%d: %d answers, %v", n, len(got), got[1:])
			}
			asks.idle()
			want := uint64(2)
			if n == presenceOnLoop {
				want = 0
			}
			r.loop.until(t, "the pool", func() bool { return r.pool.Stats().Done >= jobs+want })
			if ran := r.pool.Stats().Done - jobs; ran != want {
				t.Errorf("%d: %d jobs, want %d", n, ran, want)
			}
		}
	})
}

func TestPresencePoolFull(t *testing.T) {
	r := newRig(t, readNamespaces, func(o *rigOptions) { o.Pool.Workers, o.Pool.QueueBytes = 1, 256<<10 })
	r.crowd(presenceOnLoop+1, "all:a")
	gate, running := make(chan struct{}), make(chan struct{})
	defer close(gate)
	if !r.pool.Submit(1, func() { close(running); <-gate }) {
		t.Fatal("refused")
	}
	<-running
	if !r.pool.Submit(240<<10, func() {}) {
		t.Fatal("refused")
	}
	p := r.user(session.EncodingJSON, "ann")
	for i, method := range []string{"presence", "presence_stats"} {
		p.send(fmt.Sprintf(`{"id":2,%q:{"channel":"all:a"}}`, method))
		r.loop.turn()
		p.wants(answer(2, errTooMany))
		p.idle()
		if n := r.c.Counters().Snapshot().PoolFull; n != uint64(i+1) {
			t.Errorf("%d counted", n)
		}
	}
	r.c.opts.Overflow = OverflowClose
	p.send(`{"id":2,"presence":{"channel":"all:a"}}`)
	r.loop.turn()
	p.wantsClose(session.ReasonTooManyRequests)
}

// An answer of any size has its bound, and there is a time when it finds room.
func TestPresenceIsBounded(t *testing.T) {
	const n = 1000 // each about 100 bytes
	for _, tt := range []struct {
		reply, pending int
		queue          int
		want           string
	}{
		{reply: 0, want: ""},
		{reply: 150_000, want: ""},
		{reply: 50_000, want: ""},
		{reply: 50_000, pending: 1, want: errTooMany},
		{reply: 9_000, want: errLimit},  // as guessed
		{reply: 12_500, want: errLimit}, // as written
		{reply: 0, queue: 40_000, want: ""},
	} {
		r := newRig(t, readNamespaces, func(o *rigOptions) { o.ReplyBytes, o.Pool.QueueBytes = tt.reply, tt.queue })
		r.crowd(n, "all:a")
		p := r.user(session.EncodingJSON, "ann")
		p.pending = tt.pending
		p.send(`{"id":2,"presence":{"channel":"all:a"}}`)
		r.loop.until(t, "the answer", func() bool { return len(p.out) == 1 })
		size := len(p.out[0])
		if got := p.replies()[0]; tt.want == "" && len(got.Presence.GetPresence()) != n || tt.want != "" && string(got.AppendJSON(nil)) != answer(2, tt.want) {
			t.Errorf("%+v: %d bytes", tt, size)
		}
		p.send(`{"id":3,"presence_stats":{"channel":"all:a"}}`)
		r.loop.until(t, "the answer", func() bool { return len(p.out) == 1 })
		p.wants(fmt.Sprintf(`{"id":3,"presence_stats":{"num_clients":%d,"num_users":7}}`, n))
		p.idle()
	}
}

// Few clients with much to say go through the pool as well.
func TestPresenceOfTheTalkative(t *testing.T) {
	r := newRig(t, readNamespaces)
	info, _ := json.Marshal(strings.Repeat("x", 30_000))
	r.verifier.claims["big"] = &auth.Claims{Subject: "ann", Info: info}
	for range 3 {
		p := r.open(session.EncodingJSON, nil)
		p.connect("big")
		p.send(`{"id":2,"subscribe":{"channel":"all:a"}}`)
	}
	asks := r.user(session.EncodingJSON, "bob")
	asks.send(`{"id":2,"presence":{"channel":"all:a"}}`)
	r.loop.until(t, "the answer", func() bool { return len(asks.out) == 1 })
	if got := asks.replies()[0].Presence.GetPresence(); len(got) != 3 {
		t.Errorf("%d clients", len(got))
	}
	r.loop.until(t, "the pool", func() bool { return r.pool.Stats().Done == 1 })
}
