package handler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"perch/auth"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// listener is a peer that only listens. It takes an event stream apart as the
// HTML standard says, save for the events' names.
type listener struct {
	*fakePeer
	stream []byte // of events
	lastID string
}

// WriteMessage keeps the bytes of an event stream together.
func (l *listener) WriteMessage(payload []byte, binary bool) {
	if l.s.Encoding != session.EncodingEvents {
		l.fakePeer.WriteMessage(payload, binary)
		return
	}
	l.event(payload)
}

func (l *listener) WriteFrame(frame []byte) {
	if l.s.Encoding != session.EncodingEvents {
		l.fakePeer.WriteFrame(frame)
		return
	}
	l.event(frame)
}

func (l *listener) event(b []byte) {
	if l.s.Closed() {
		l.t.Error("written after the close")
	}
	if !bytes.HasSuffix(b, []byte("\n\n")) {
		l.t.Errorf("not whole events: %q", b)
	}
	l.stream = append(l.stream, b...)
}

// heard is what came, one message a line; before an event with an id stands that,
// as positions.
func (l *listener) heard() string {
	l.t.Helper()
	var lines []string
	for _, m := range l.out {
		lines = append(lines, string(m))
	}
	l.out, l.kinds = nil, nil
	for block := range strings.SplitSeq(strings.TrimSuffix(string(l.stream), "\n\n"), "\n\n") {
		if block == "" {
			continue
		}
		id, data := "", []string(nil)
		for line := range strings.SplitSeq(block, "\n") {
			switch name, value, _ := strings.Cut(line, ": "); name {
			case "id":
				l.lastID = value
				id = l.positions(value) + " "
			case "data":
				data = append(data, value)
			default:
				l.t.Errorf("a line %q", line)
			}
		}
		lines = append(lines, id+strings.Join(data, "\n"))
	}
	l.stream = nil
	return strings.Join(lines, "\n")
}

// positions spells an id out, by the names of topics that the tests use.
func (l *listener) positions(id string) string {
	l.t.Helper()
	if id == "" {
		return "[]"
	}
	at, err := parseEventID(id)
	if err != nil {
		l.t.Fatalf("id %q: %v", id, err)
	}
	var out []string
	for _, name := range []string{"kept:a", "kept:b", "kept:c", "plain", "cache:x", "forced:a"} {
		if p, ok := at[TokenHash(name)]; ok {
			out = append(out, fmt.Sprintf("%s=%d", name, p.Offset))
			delete(at, TokenHash(name))
		}
	}
	if len(at) > 0 {
		l.t.Errorf("the id %q names others", id)
	}
	return "[" + strings.Join(out, " ") + "]"
}

func (l *listener) hears(want ...string) {
	l.t.Helper()
	got := l.heard()
	for _, name := range []string{"kept:a", "kept:b", "kept:c", "cache:x", "forced:a"} {
		if e := l.rig.epoch(name); e != "" {
			got = strings.ReplaceAll(got, `"`+e+`"`, `"E"`)
		}
	}
	got = sortedSubs(l.t, strings.ReplaceAll(got, l.s.ClientID(77), "C"))
	if want := sortedSubs(l.t, strings.Join(want, "\n")); got != want {
		l.t.Fatalf("the peer heard\n%s\nwant\n%s", got, want)
	}
}

// sortedSubs writes the connect pushes among lines with their fields in order: the
// subscriptions come in any.
func sortedSubs(t testing.TB, text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		at := strings.Index(line, `{"connect":`)
		if at < 0 {
			continue
		}
		var v any
		if err := json.Unmarshal([]byte(line[at:]), &v); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		b, _ := json.Marshal(v)
		lines[i] = line[:at] + string(b)
	}
	return strings.Join(lines, "\n")
}

// epoch is that of a topic with history.
func (r *rig) epoch(name string) (epoch string) {
	ns, err := r.topics.Namespace(name)
	if err != nil || !ns.History() {
		return ""
	}
	r.broker.Memory.History(name, topic.Filter{Meta: time.Hour}, func(_ []*topic.Publication, at topic.Position, _ error) { epoch = at.Epoch })
	return epoch
}

// uniRig has topics with history and without.
func uniRig(t testing.TB, change ...func(*rigOptions)) *rig {
	var r *rig
	r = newRig(t, append([]func(*rigOptions){func(o *rigOptions) {
		o.Topics.Namespaces = append(o.Topics.Namespaces,
			topic.NamespaceOptions{Name: "kept", HistorySize: 5, HistoryTTL: time.Hour, AllowRecovery: true, AllowedDeltaTypes: []string{"fossil"}, DeltaPublish: true},
			topic.NamespaceOptions{Name: "forced", HistorySize: 5, HistoryTTL: time.Hour, ForceRecovery: true},
			topic.NamespaceOptions{Name: "cache", HistorySize: 1, HistoryTTL: time.Hour, ForceRecovery: true, ForceRecoveryMode: "cache", AutoCacheRecover: true},
			topic.NamespaceOptions{Name: "news", JoinLeave: true, ForcePushJoinLeave: true})
		o.Topics.JoinLeaveInterval = time.Millisecond
		o.Topics.Writers[session.EncodingEvents] = func(s *session.Session, name string, at topic.Position, event []byte) {
			r.c.WriteEvent(s, name, at, event)
		}
	}}, change...)...)
	return r
}

// listen is a peer whose handshake found identity.
func (r *rig) listen(e session.Encoding, identity *Identity) *listener {
	r.t.Helper()
	r.slot++
	l := &listener{fakePeer: &fakePeer{t: r.t, rig: r}}
	id := session.MakeID(3, r.slot, r.slot)
	l.s.Open(l, r.loop, id)
	l.s.Encoding = e
	r.loop.sessions[id] = l.fakePeer
	if identity == nil {
		r.c.Unidirectional().Open(&l.s, nil)
	} else {
		r.c.Unidirectional().Open(&l.s, identity)
	}
	r.loop.turn()
	return l
}

func (l *listener) sends(text string) {
	data := []byte(text)
	l.rig.c.Unidirectional().Message(&l.s, data, false)
	clear(data)
	l.rig.loop.turn()
}

// uniRequest is what a handshake with these said.
func (r *rig) uniRequest(connect, lastEventID string) *UniRequest {
	r.t.Helper()
	u, token, err := r.c.UniRequest(connect, lastEventID)
	if err != nil || token != "" {
		r.t.Fatalf("%q: token %q, %v", connect, token, err)
	}
	return u
}

// stream is an event stream of a user with topics.
func (r *rig) stream(lastEventID string, topics ...string) *listener {
	r.t.Helper()
	return r.listen(session.EncodingEvents, &Identity{
		Claims: &auth.Claims{Subject: "u", Channels: topics}, Uni: r.uniRequest("", lastEventID),
	})
}

func (r *rig) emit(name, data string, change ...func(*topic.PublishRequest)) {
	r.t.Helper()
	ns, err := r.topics.Namespace(name)
	if err != nil {
		r.t.Fatal(err)
	}
	var req topic.PublishRequest
	for _, f := range change {
		f(&req)
	}
	r.topics.Publish(ns, name, &topic.Publication{Data: []byte(data)}, req, func(_ topic.Position, err error) {
		if err != nil {
			r.t.Error(err)
		}
	})
	r.loop.turn()
}

func TestUniConnect(t *testing.T) {
	const hello = `{"connect":{"client":"C","version":"v"}}`
	claims := func(c auth.Claims) *Identity { return &Identity{Claims: &c} }
	for _, tt := range []struct {
		name     string
		options  Options
		identity func(r *rig) *Identity
		sends    []string
		hears    []string
		close    session.Reason
	}{
		{name: "token in the first message", sends: []string{`{"token":"u"}`}, hears: []string{hello}},
		{name: "with white space", sends: []string{" {\"token\":\"u\"}\n"}, hears: []string{hello}},
		{name: "verified in the pool", sends: []string{`{"token":"slow-u"}`}, hears: []string{hello}},
		{name: "bad", sends: []string{`{"token":"bad"}`}, close: session.ReasonInvalidToken},
		{name: "bad, in the pool", sends: []string{`{"token":"slow-bad"}`}, close: session.ReasonInvalidToken},
		{name: "expired", sends: []string{`{"token":"expired"}`}, close: session.ReasonExpired},
		{name: "expired, in the pool", sends: []string{`{"token":"slow-expired"}`}, close: session.ReasonExpired},
		{name: "keys unavailable", sends: []string{`{"token":"keys"}`}, close: session.ReasonServerError},
		{name: "a panic in the pool", sends: []string{`{"token":"slow-panic"}`}, close: session.ReasonServerError},
		{name: "no token", sends: []string{`{}`}, close: session.ReasonBadRequest},
		{name: "not JSON", sends: []string{`connect`}, close: session.ReasonBadRequest},
		{name: "a list", sends: []string{`[]`}, close: session.ReasonBadRequest},
		{name: "nothing yet"},
		{name: "at the handshake only", options: Options{Require: RequireHandshake}, sends: []string{`{"token":"u"}`}, close: session.ReasonInvalidToken},
		{name: "asked again", sends: []string{`{"token":"u"}`, `{}`, `{"subs":{"x":{}}}`}, hears: []string{hello}},
		{name: "asked again while it is verified", sends: []string{`{"token":"slow-u"}`, `{}`}, hears: []string{hello}},
		{name: "another token later", sends: []string{`{"token":"u"}`, `{"token":"v"}`}, hears: []string{hello}, close: session.ReasonBadRequest},
		{name: "nonsense later", sends: []string{`{"token":"u"}`, `x`}, hears: []string{hello}, close: session.ReasonBadRequest},

		{name: "handshake", identity: func(*rig) *Identity { return claims(auth.Claims{Subject: "u"}) }, hears: []string{hello}},
		{name: "handshake, expired since", identity: func(*rig) *Identity { return claims(auth.Claims{ExpiresAt: 1_600_000_000}) },
			close: session.ReasonExpired},
		{name: "handshake, expires", identity: func(*rig) *Identity { return claims(auth.Claims{ExpiresAt: 1_700_000_060}) },
			hears: []string{`{"connect":{"client":"C","version":"v","expires":true,"ttl":60}}`}},
		{name: "query", identity: func(r *rig) *Identity {
			return &Identity{Claims: &auth.Claims{Subject: "u"}, Uni: r.uniRequest(`{"name":"x"}`, "")}
		}, hears: []string{hello}},
		{name: "query without a token", identity: func(r *rig) *Identity { return &Identity{Uni: r.uniRequest(`{}`, "")} },
			close: session.ReasonBadRequest},
		{name: "insecure", options: Options{Insecure: true}, hears: []string{hello}},
		{name: "insecure, and it asks", options: Options{Insecure: true}, sends: []string{`{}`}, hears: []string{hello}},
		{name: "anonymous", options: Options{Require: RequireNone}, hears: []string{hello}},
		{name: "anonymous, a token comes late", options: Options{Require: RequireNone}, sends: []string{`{"token":"u"}`},
			hears: []string{hello}, close: session.ReasonBadRequest},

		{name: "a topic", identity: func(*rig) *Identity { return claims(auth.Claims{Channels: []string{"plain"}}) },
			hears: []string{`{"connect":{"client":"C","version":"v","subs":{"plain":{}}}}`}},
		{name: "of an unknown namespace", identity: func(*rig) *Identity { return claims(auth.Claims{Channels: []string{"none:x"}}) },
			close: session.ReasonBadRequest},
		{name: "too many", identity: func(*rig) *Identity { return claims(auth.Claims{Channels: strings.Split("a,b,c,d,e", ",")}) },
			close: session.ReasonTopicLimit},
	} {
		for _, e := range []session.Encoding{session.EncodingUniJSON, session.EncodingEvents} {
			if e == session.EncodingEvents && tt.identity == nil && !tt.options.Insecure && tt.options.Require != RequireNone {
				continue // an event stream says nothing
			}
			t.Run(fmt.Sprint(tt.name, " ", e), func(t *testing.T) {
				r := uniRig(t, func(o *rigOptions) {
					o.Require, o.Insecure = tt.options.Require, tt.options.Insecure
				})
				var id *Identity
				if tt.identity != nil {
					id = tt.identity(r)
				}
				l := r.listen(e, id)
				if e != session.EncodingEvents {
					for _, m := range tt.sends {
						l.sends(m)
					}
				}
				r.loop.until(t, "an answer", func() bool {
					return l.s.State == session.StateConnected || l.s.Closed() || len(tt.hears) == 0 && tt.close == 0
				})
				l.hears(tt.hears...)
				if e == session.EncodingEvents && len(tt.sends) > 0 {
					return
				}
				if tt.close != session.ReasonNone {
					l.wantsClose(tt.close)
				} else {
					l.wantsOpen()
					if len(tt.hears) > 0 && !l.beating {
						t.Error("no heartbeat")
					}
					l.idle()
				}
			})
		}
	}
}

func TestUniBinary(t *testing.T) {
	r := uniRig(t)
	l := r.listen(session.EncodingUniJSON, nil)
	r.c.Unidirectional().Message(&l.s, []byte(`{"token":"u"}`), true)
	l.wantsClose(session.ReasonUnsupportedData)
}

// Both formats hear the same; the event stream besides where it stands.
func TestUniPushes(t *testing.T) {
	for _, e := range []session.Encoding{session.EncodingUniJSON, session.EncodingEvents} {
		t.Run(fmt.Sprint(e), func(t *testing.T) {
			r := uniRig(t)
			l := r.listen(e, &Identity{Claims: &auth.Claims{
				Subject: "u", Info: []byte(`{"a":1}`), Subs: []auth.Sub{{Topic: "plain", Data: []byte(`[1]`)}},
			}})
			id := func(positions, push string) string {
				if e == session.EncodingEvents {
					return positions + " " + push
				}
				return push
			}
			l.hears(`{"connect":{"client":"C","version":"v","subs":{"plain":{"data":[1]}}}}`)
			r.emit("plain", "{\r\n \"x\": [1,\r2]\n}")
			if e == session.EncodingEvents {
				l.hears(`{"channel":"plain","pub":{"data":{ "x": [1,2]}}}`)
			} else {
				l.hears("{\"channel\":\"plain\",\"pub\":{\"data\":{\r \"x\": [1,\r2]}}}")
			}
			r.emit("plain", "no JSON")
			l.hears()
			r.emit("plain", `1`)
			r.emit("plain", `2`)
			l.hears(`{"channel":"plain","pub":{"data":1}}`, `{"channel":"plain","pub":{"data":2}}`)

			do := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				r.loop.turn()
			}
			r.emit("forced:a", `"before"`)
			do(r.c.SubscribeSession(&l.s, APISubscription{Topic: "forced:a", Data: []byte(`{}`)}))
			l.hears(id("[forced:a=1]", `{"channel":"forced:a","subscribe":{"recoverable":true,"epoch":"E","offset":1,"positioned":true,"data":{}}}`))
			r.emit("forced:a", `"now"`)
			l.hears(id("[forced:a=2]", `{"channel":"forced:a","pub":{"data":"now","offset":2}}`))
			r.emit("plain", `3`)
			l.hears(`{"channel":"plain","pub":{"data":3}}`)
			r.emit("forced:a", `"skipped"`, func(q *topic.PublishRequest) { q.SkipHistory = true })
			l.hears(id("[forced:a=2]", `{"channel":"forced:a","pub":{"data":"skipped"}}`))
			do(r.c.UnsubscribeSession(&l.s, "plain"))
			l.hears(id("[forced:a=2]", `{"channel":"plain","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}`))
			do(r.c.UnsubscribeSession(&l.s, "forced:a"))
			l.hears(id("[]", `{"channel":"forced:a","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}`))
			do(r.c.RefreshSession(&l.s, APIRefresh{ExpireAt: r.now.Unix() + 9}))
			l.hears(`{"refresh":{"expires":true,"ttl":9}}`)

			do(r.c.SubscribeSession(&l.s, APISubscription{Topic: "news:x"}))
			l.hears(`{"channel":"news:x","subscribe":{}}`, `{"channel":"news:x","join":{"info":{"user":"u","client":"C","conn_info":{"a":1}}}}`)
			do(r.c.RefreshSession(&l.s, APIRefresh{ExpireAt: r.now.Unix() - 1}))
			l.wantsClose(session.ReasonExpired)
		})
	}
}

// Several who come and go are told of apart: a message holds one push.
func TestUniNews(t *testing.T) {
	info := []topic.News{{Client: topic.ClientInfo{User: "u", Client: "1"}}, {Left: true, Client: topic.ClientInfo{User: "v", Client: "2"}}}
	enc := JoinEncoders()
	join, leave := `{"channel":"n","join":{"info":{"user":"u","client":"1"}}}`, `{"channel":"n","leave":{"info":{"user":"v","client":"2"}}}`
	events, err := enc[session.EncodingEvents]("n", info)
	if err != nil || string(events) != "data: "+join+"\n\ndata: "+leave+"\n\n" {
		t.Errorf("%q, %v", events, err)
	}
	frames, err := enc[session.EncodingUniJSON]("n", info)
	want := string([]byte{0x81, byte(len(join))}) + join + string([]byte{0x81, byte(len(leave))}) + leave
	if err != nil || string(frames) != want {
		t.Errorf("%q, %v", frames, err)
	}
}

// What a connection that broke had missed comes with the next one, whatever else
// is published meanwhile; each event's id is enough to go on from.
func TestStreamResumes(t *testing.T) {
	r := uniRig(t)
	l := r.stream("", "kept:a", "kept:b", "plain")
	l.hears(`[kept:a=0 kept:b=0] {"connect":{"client":"C","version":"v","subs":` + subsOf(
		`"kept:a":{"recoverable":true,"epoch":"E","positioned":true}`,
		`"kept:b":{"recoverable":true,"epoch":"E","positioned":true}`, `"plain":{}`) + `}}`)
	var ids []string
	published := []string{"kept:a", "kept:b", "kept:a", "plain", "kept:b", "kept:a"}
	ids = append(ids, l.lastID)
	for i, name := range published {
		r.emit(name, fmt.Sprint(i))
		l.heard()
		ids = append(ids, l.lastID)
	}
	l.CloseWith(session.ReasonPeerGone, 0, "")
	for from, id := range ids {
		m := r.stream(id, "kept:a", "kept:b", "plain")
		missed := map[string][]string{}
		offset := map[string]int{}
		for i, name := range published {
			if i < from {
				offset[name]++
			} else if name != "plain" {
				missed[name] = append(missed[name], fmt.Sprintf(`{"data":%d,"offset":%d}`, i, offset[name]+len(missed[name])+1))
			}
		}
		sub := func(name string) string {
			s := `"` + name + `":{"recoverable":true,"epoch":"E"`
			if len(missed[name]) > 0 {
				s += `,"publications":[` + strings.Join(missed[name], ",") + `]`
			}
			s += `,"recovered":true`
			if offset[name] > 0 {
				s += fmt.Sprintf(`,"offset":%d`, offset[name])
			}
			return s + `,"positioned":true,"was_recovering":true}`
		}
		m.hears(`[kept:a=3 kept:b=2] {"connect":{"client":"C","version":"v","subs":` +
			subsOf(sub("kept:a"), sub("kept:b"), `"plain":{}`) + `}}`)
		m.CloseWith(session.ReasonPeerGone, 0, "")
	}
}

func subsOf(subs ...string) string { return "{" + strings.Join(subs, ",") + "}" }

func TestStreamCannotResume(t *testing.T) {
	r := uniRig(t)
	id := func(offset uint64, epoch string) string {
		raw := appendEventPosition([]byte{eventIDVersion}, "kept:a", topic.Position{Offset: offset, Epoch: epoch})
		return eventIDText.EncodeToString(raw)
	}
	for i := range 8 { // the history holds 5
		r.emit("kept:a", fmt.Sprint(i))
	}
	epoch := r.epoch("kept:a")
	fresh := `"kept:a":{"recoverable":true,"epoch":"E","offset":8,"positioned":true}`
	lost := `"kept:a":{"recoverable":true,"epoch":"E","offset":8,"positioned":true,"was_recovering":true}`
	whole := `"kept:a":{"recoverable":true,"epoch":"E","publications":[{"data":6,"offset":7},{"data":7,"offset":8}],"recovered":true,"offset":6,"positioned":true,"was_recovering":true}`
	asks := fmt.Sprintf(`{"subs":{"kept:a":{"recover":true,"offset":6,"epoch":%q}}}`, epoch)
	for _, tt := range []struct {
		name, connect, id string
		want              string
		bad               uint64
	}{
		{"no id", "", "", fresh, 0},
		{"an id", "", id(6, epoch), whole, 0},
		{"too old", "", id(2, epoch), lost, 0},
		{"of another epoch", "", id(6, "other"), lost, 0},
		{"from beyond", "", id(9, epoch), lost, 0},
		{"garbage", "", "x y", fresh, 1},
		{"of another topic", "", eventIDText.EncodeToString(appendEventPosition([]byte{1}, "kept:b", topic.Position{Offset: 6, Epoch: epoch})), fresh, 0},
		{"the request alone", asks, "", whole, 0},
		{"an id above the request", asks, id(2, epoch), lost, 0},
		{"an id without the topic above the request", asks, eventIDText.EncodeToString([]byte{1}), fresh, 0},
		{"garbage beside the request", asks, "x", whole, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := r.c.Counters().EventIDs.Load()
			l := r.listen(session.EncodingEvents, &Identity{
				Claims: &auth.Claims{Subject: "u", Channels: []string{"kept:a"}}, Uni: r.uniRequest(tt.connect, tt.id),
			})
			l.hears(`[kept:a=8] {"connect":{"client":"C","version":"v","subs":{` + tt.want + `}}}`)
			if n := r.c.Counters().EventIDs.Load() - before; n != tt.bad {
				t.Errorf("%d ids counted, want %d", n, tt.bad)
			}
			l.CloseWith(session.ReasonPeerGone, 0, "")
		})
	}
}

// The unidirectional WebSocket recovers by its request, and only what it asks for.
func TestUniWebSocketResumes(t *testing.T) {
	r := uniRig(t)
	for i := range 3 {
		r.emit("kept:a", fmt.Sprint(i))
	}
	claims := &auth.Claims{Subject: "u", Channels: []string{"kept:a"}}
	r.verifier.claims["t"] = claims
	l := r.listen(session.EncodingUniJSON, nil)
	l.sends(`{"token":"t","subs":{"kept:a":{"recover":true,"offset":2,"epoch":"` + r.epoch("kept:a") + `","delta":"fossil"}}}`)
	l.hears(`{"connect":{"client":"C","version":"v","subs":{"kept:a":{"recoverable":true,"epoch":"E",` +
		`"publications":[{"data":2,"offset":3}],"recovered":true,"offset":2,"positioned":true,"was_recovering":true}}}}`)
	r.emit("kept:a", `"a long payload, of which a delta would be shorter"`)
	r.emit("kept:a", `"a long payload, of which a delta would be shorter"`)
	l.hears(`{"channel":"kept:a","pub":{"data":"a long payload, of which a delta would be shorter","offset":4}}`,
		`{"channel":"kept:a","pub":{"data":"a long payload, of which a delta would be shorter","offset":5}}`)
}

// A state is handed to whoever comes, and not again to who has it.
func TestStreamOfState(t *testing.T) {
	r := uniRig(t)
	r.emit("cache:x", `1`)
	r.emit("cache:x", `2`)
	l := r.stream("", "cache:x")
	if got := l.heard(); !strings.HasPrefix(got, "[cache:x=2] ") || !strings.Contains(got, `"publications":[{"data":2,"offset":2}]`) {
		t.Fatalf("heard %s", got)
	}
	id := l.lastID
	l.CloseWith(session.ReasonPeerGone, 0, "")
	if got := r.stream(id, "cache:x").heard(); strings.Contains(got, "publications") || !strings.Contains(got, `"recovered":true`) {
		t.Errorf("heard %s", got)
	}
}

// With a broker that answers late, what is published meanwhile follows the
// connect event, once and in order, each with its own id.
func TestStreamResumesLate(t *testing.T) {
	r := uniRig(t)
	for i := range 3 {
		r.emit("kept:a", fmt.Sprint(i))
	}
	id := eventIDText.EncodeToString(appendEventPosition([]byte{1}, "kept:a", topic.Position{Offset: 1, Epoch: r.epoch("kept:a")}))
	r.broker.mu.Lock()
	r.broker.slow = true
	r.broker.mu.Unlock()
	l := r.stream(id, "kept:a", "kept:b", "plain")
	for _, name := range []string{"kept:a", "plain", "kept:b", "kept:a"} {
		r.emit(name, `"live"`)
	}
	l.hears()
	r.broker.answer()
	r.loop.turn()
	got := strings.Split(l.heard(), "\n")
	want := []string{
		"[kept:a=3 kept:b=0] ", `[kept:a=4 kept:b=0] {"channel":"kept:a","pub":{"data":"live","offset":4}}`,
		`[kept:a=5 kept:b=0] {"channel":"kept:a","pub":{"data":"live","offset":5}}`,
		`[kept:a=5 kept:b=1] {"channel":"kept:b","pub":{"data":"live","offset":1}}`,
	}
	if strings.HasPrefix(got[1], "[kept:a=3 kept:b=1]") { // which goes live first is not said
		want[1], want[2], want[3] = strings.Replace(want[3], "a=5", "a=3", 1), strings.Replace(want[1], "b=0", "b=1", 1), strings.Replace(want[2], "b=0", "b=1", 1)
	}
	if len(got) != 4 || !strings.HasPrefix(got[0], want[0]) || !strings.Contains(got[0], `"publications":[{"data":1,"offset":2},{"data":2,"offset":3}]`) {
		t.Fatalf("heard\n%s", strings.Join(got, "\n"))
	}
	for i, w := range want[1:] {
		if got[i+1] != w {
			t.Errorf("heard %s, want %s", got[i+1], w)
		}
	}
}

// A subscription that the API makes from a position: each event's id stands where
// the client has come to, not where the topic is.
func TestStreamSubscribedSince(t *testing.T) {
	r := uniRig(t)
	for i := range 3 {
		r.emit("forced:x", fmt.Sprint(i))
	}
	l := r.stream("", "plain")
	l.heard()
	var epoch string
	r.broker.Memory.History("forced:x", topic.Filter{Meta: time.Hour}, func(_ []*topic.Publication, at topic.Position, _ error) { epoch = at.Epoch })
	err := r.c.SubscribeSession(&l.s, APISubscription{Topic: "forced:x", Since: &topic.Position{Epoch: epoch}})
	if err != nil {
		t.Fatal(err)
	}
	r.loop.turn()
	var offsets []uint64
	for line := range strings.SplitSeq(string(l.stream), "\n") {
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			at, err := parseEventID(id)
			if err != nil {
				t.Fatal(err)
			}
			offsets = append(offsets, at[TokenHash("forced:x")].Offset)
		}
	}
	if fmt.Sprint(offsets) != "[0 1 2 3]" {
		t.Errorf("offsets %v in\n%s", offsets, l.stream)
	}
}

// A subscription whose history is being read is in no id: nobody knows where it
// stands.
func TestStreamSubscribesLate(t *testing.T) {
	r := uniRig(t)
	r.emit("forced:a", "1")
	l := r.stream("", "kept:b")
	l.heard()
	r.broker.mu.Lock()
	r.broker.slow = true
	r.broker.mu.Unlock()
	if err := r.c.SubscribeSession(&l.s, APISubscription{Topic: "forced:a"}); err != nil {
		t.Fatal(err)
	}
	r.emit("kept:b", "1")
	r.emit("forced:a", "2")
	l.hears(`[kept:b=1] {"channel":"kept:b","pub":{"data":1,"offset":1}}`)
	r.broker.answer()
	r.loop.turn()
	l.hears(`[kept:b=1 forced:a=1] {"channel":"forced:a","subscribe":{"recoverable":true,"epoch":"E","offset":1,"positioned":true}}`,
		`[kept:b=1 forced:a=2] {"channel":"forced:a","pub":{"data":2,"offset":2}}`)
}

// Too much to say in an id: the client forgets the last one.
func TestStreamTooManyPositions(t *testing.T) {
	r := uniRig(t, func(o *rigOptions) { o.Topics.MaxSubscriptions = 1000 })
	var names []string
	for i := range 400 {
		names = append(names, fmt.Sprintf("forced:%d", i))
	}
	few := r.stream("", names[:120]...)
	if few.eventIDs() != 1 || few.lastID == "" || len(few.lastID) > maxEventID {
		t.Errorf("%d bytes of id for 120 topics", len(few.lastID))
	}
	if got, err := parseEventID(few.lastID); err != nil || len(got) != 120 {
		t.Errorf("%d positions, %v", len(got), err)
	}
	many := r.stream(few.lastID, names...)
	if many.lastID = "x"; many.eventIDs() != 1 || many.lastID != "" {
		t.Errorf("the id is %q", many.lastID)
	}
	r.emit(names[0], "1")
	if many.lastID = "x"; many.eventIDs() != 1 || many.lastID != "" {
		t.Errorf("the id is %q", many.lastID)
	}
}

// eventIDs notes the last id of what has come, and counts them.
func (l *listener) eventIDs() (n int) {
	for line := range strings.SplitSeq(string(l.stream), "\n") {
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			l.lastID = id
			n++
		}
	}
	l.stream = nil
	return n
}

// A stream that moves to another server goes on where it stood, with exact ids.
func TestStreamMoves(t *testing.T) {
	a := uniRig(t)
	l := a.stream("", "kept:a", "plain")
	a.emit("kept:a", "1")
	l.heard()
	mover := a.c.Unidirectional().(session.Mover)
	state, err := mover.Export(&l.s)
	if err != nil {
		t.Fatal(err)
	}
	client := l.s.ClientID(77)
	l.CloseWith(session.ReasonHandedOff, 0, "")
	a.emit("kept:a", "2")
	a.emit("kept:a", "3")
	a.slot++
	m := &listener{fakePeer: &fakePeer{t: t, rig: a}}
	id := session.MakeID(3, a.slot, a.slot)
	m.s.Open(m, a.loop, id)
	m.s.Encoding = session.EncodingEvents
	a.loop.sessions[id] = m.fakePeer
	if err := mover.Import(&m.s, state); err != nil {
		t.Fatal(err)
	}
	a.loop.turn()
	m.hears(`[kept:a=2] {"channel":"kept:a","pub":{"data":2,"offset":2}}`, `[kept:a=3] {"channel":"kept:a","pub":{"data":3,"offset":3}}`)
	a.emit("plain", "4")
	m.hears(`{"channel":"plain","pub":{"data":4}}`)
	if m.s.ClientID(77) != client {
		t.Error("another client id")
	}
}

func TestUniRequest(t *testing.T) {
	r := uniRig(t)
	for _, tt := range []struct {
		connect, token string
		ok             bool
	}{
		{"", "", true}, {`{}`, "", true}, {`{"token":"t"}`, "t", true}, {`{"token":"t","subs":{"a":{"recover":true}}}`, "t", true},
		{`{`, "", false}, {`[]`, "", false}, {`{"token":1}`, "", false},
	} {
		u, token, err := r.c.UniRequest(tt.connect, "")
		if token != tt.token || (err == nil) != tt.ok || tt.connect == "" && u != nil {
			t.Errorf("%s: %v, %q, %v", tt.connect, u, token, err)
		}
		if u != nil && u.connect.Token != "" {
			t.Errorf("%s: the token stays", tt.connect)
		}
	}
}

func TestEventID(t *testing.T) {
	raw := []byte{eventIDVersion}
	want := map[uint64]topic.Position{}
	for i, p := range []topic.Position{{Offset: 0, Epoch: "abcdefgh"}, {Offset: 1<<64 - 1, Epoch: "x"}, {Offset: 300, Epoch: strings.Repeat("e", 200)}} {
		name := fmt.Sprint("topic", i)
		raw = appendEventPosition(raw, name, p)
		want[TokenHash(name)] = p
	}
	id := eventIDText.EncodeToString(raw)
	got, err := parseEventID(id)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v", got, err)
	}
	one := appendEventPosition([]byte{eventIDVersion}, "a", topic.Position{Offset: 5, Epoch: "e"})
	for name, bad := range map[string]string{
		"no text": "", "not base64": "A!", "padded": id + "=", "another alphabet": "+///",
		"another version": eventIDText.EncodeToString(append([]byte{2}, one[1:]...)),
		"cut":             eventIDText.EncodeToString(raw[:len(raw)-1]),
		"longer":          eventIDText.EncodeToString(append(bytes.Clone(raw), 0)),
		"twice":           eventIDText.EncodeToString(append(bytes.Clone(one), one[1:]...)),
		"no epoch":        eventIDText.EncodeToString(appendEventPosition([]byte{1}, "a", topic.Position{Offset: 5})),
		"epoch beyond":    eventIDText.EncodeToString(append(append([]byte{1}, one[1:9]...), 200, 1, 'e', 5)),
		"too long":        strings.Repeat("A", maxEventID+1),
		"an offset too large": eventIDText.EncodeToString(append(append([]byte{1}, one[1:9]...),
			1, 'e', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)),
		"trailing bits": "AR",
	} {
		if got, err := parseEventID(bad); err == nil {
			t.Errorf("%s: %q is taken for %v", name, bad, got)
		}
	}
}

func FuzzEventID(f *testing.F) {
	f.Add("")
	f.Add("AQ")
	f.Add(eventIDText.EncodeToString(appendEventPosition([]byte{1}, "a", topic.Position{Offset: 5, Epoch: "epoch"})))
	f.Add("AfQpgoPpvrkdCHFHTWhLUUtQAQ")
	f.Fuzz(func(t *testing.T, id string) {
		got, err := parseEventID(id)
		if err != nil {
			return
		}
		if len(id) > maxEventID || len(got)*10 > len(id) {
			t.Fatalf("%d positions of %d characters", len(got), len(id))
		}
		for _, p := range got {
			if p.Epoch == "" || len(p.Epoch) > len(id) {
				t.Fatalf("%+v", p)
			}
		}
	})
}

// FuzzEvent: whatever a payload is, one event comes of it, with one line of data
// that is the push; or nothing.
func FuzzEvent(f *testing.F) {
	for _, s := range []string{`1`, "{\r\n}", "\"\u2028\"", `"\r\n"`, "[1,\r\n2]\n", "x", "", "\r", "\n\n", `"a` + "\n" + `b"`} {
		f.Add("topic", []byte(s))
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		b, err := protocol.PublicationEvent(name, &protocol.Publication{Data: data})
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, []byte("data: {")) || !bytes.HasSuffix(b, []byte("}\n\n")) || bytes.ContainsAny(b[:len(b)-2], "\r\n") {
			t.Fatalf("%q made %q", data, b)
		}
	})
}

// An event of its own for each subscriber allocates nothing.
func TestWriteEventAllocates(t *testing.T) {
	r := uniRig(t)
	l := r.stream("", "kept:a", "kept:b")
	l.heard()
	sink := &discard{Transport: l}
	st := l.s
	var s session.Session
	s.Open(sink, r.loop, l.s.ID())
	s.State, s.Encoding, s.Topics = st.State, st.Encoding, st.Topics
	event := []byte("data: x\n\n")
	at := topic.Position{Offset: 3, Epoch: "e"}
	r.c.WriteEvent(&s, "kept:a", at, event)
	if n := testing.AllocsPerRun(1000, func() { r.c.WriteEvent(&s, "kept:a", at, event) }); n > 0 {
		t.Errorf("%v allocations an event", n)
	}
	if sink.n < 1000 {
		t.Errorf("%d events", sink.n)
	}
}

type discard struct {
	session.Transport
	n int
}

func (d *discard) WriteMessage([]byte, bool) { d.n++ }
