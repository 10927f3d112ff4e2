package handler

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"perch/session"
	"perch/topic"
)

const apiUnansweredJSON = `{"error":{"code":100,"message":"a node has not answered, try again"}}`

// apiFakePeers are nodes that answer as NewPeerAnswers does, from sessions of
// their own.
type apiFakePeers struct {
	t     *testing.T
	nodes map[session.Node]func(context.Context, string, []byte) ([]byte, error)
	names map[session.Node]string

	mu    sync.Mutex
	asked []string // "<node, 0 for all> <method>"
	fail  error    // of Ask
	mute  session.Node
}

func (p *apiFakePeers) Alone() bool { return p.fail == nil && len(p.nodes) == 0 }

func (p *apiFakePeers) Ask(q PeerQuestion, done func([]PeerAnswer, error)) {
	p.mu.Lock()
	p.asked = append(p.asked, fmt.Sprintf("%d %s", q.Node, q.Method))
	p.mu.Unlock()
	if p.fail != nil {
		done(nil, p.fail)
		return
	}
	go func() {
		var all []PeerAnswer
		for node, answer := range p.nodes {
			if q.Node != 0 && !q.Node.Is(node) {
				continue
			}
			a := PeerAnswer{Node: node, Name: p.names[node], Err: ErrPeersSilent}
			if node != p.mute {
				a.Data, a.Err = answer(p.t.Context(), q.Method, q.Params)
			}
			all = append(all, a)
		}
		done(all, nil)
	}()
}

func (p *apiFakePeers) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	asked := p.asked
	p.asked = nil
	return asked
}

// newAPIPeers is a node with the sessions of newAPITest, and another with the same
// users.
func newAPIPeers(t *testing.T) (here, there *apiTest, p *apiFakePeers) {
	t.Helper()
	p = &apiFakePeers{t: t, nodes: make(map[session.Node]func(context.Context, string, []byte) ([]byte, error)), names: map[session.Node]string{9: "there"}}
	there = newAPITest(t, func(o *APIOptions) {
		o.Node, o.Name = 9, "there"
		p.nodes[9] = NewPeerAnswers(*o)
	})
	there.node = 9
	here = newAPITest(t, func(o *APIOptions) { o.Peers = p })
	return here, there, p
}

func (x *apiTest) acted(want ...int) {
	x.t.Helper()
	if got := slots(x.sessions.take()); !slices.Equal(got, append([]int{}, want...)) {
		x.t.Errorf("acted on %v, want %v", got, want)
	}
}

func TestPeersAct(t *testing.T) {
	here, there, p := newAPIPeers(t)
	wants := func(want ...string) {
		t.Helper()
		if got := p.take(); !slices.Equal(got, want) {
			t.Errorf("asked %q, want %q", got, want)
		}
	}
	for _, method := range []string{"subscribe", "unsubscribe", "refresh"} {
		here.call(method, `{"user":"alice","channel":"a"}`, `{"result":{}}`)
		here.acted(1, 2)
		there.acted(1, 2)
		wants("0 " + method)
		// A session of this node needs nobody else.
		here.call(method, `{"client":"`+here.clientOf(3)+`","channel":"a"}`, `{"result":{}}`)
		here.acted(3)
		wants()
		// One of the other node is asked for there, and once.
		here.call(method, `{"client":"`+there.clientOf(3)+`","channel":"a"}`, `{"result":{}}`)
		there.acted(3)
		here.acted()
		wants("9 " + method)
	}
	// One that has ended there, or here, may go on elsewhere.
	gone := session.Node(9).ClientID(session.MakeID(0, 1, 1))
	for client, want := range map[string][]string{
		gone: {"9 unsubscribe", "0 unsubscribe"},
		here.node.ClientID(session.MakeID(0, 1, 1)): {"0 unsubscribe"},
		session.Node(77).ClientID(here.id(1)):       {"77 unsubscribe", "0 unsubscribe"},
		"x":                                         {"0 unsubscribe"},
	} {
		here.call("unsubscribe", `{"client":"`+client+`","channel":"a"}`, `{"result":{}}`)
		wants(want...)
	}
	// What is wrong with a request is found here.
	here.fails("subscribe", `{"user":"alice"}`, 107)
	here.fails("subscribe", `{"user":"alice","channel":"what:a"}`, 102)
	here.fails("subscribe", `{"user":"alice","channel":"a","expire_at":1}`, 110)
	here.fails("disconnect", `{"user":"alice","disconnect":{"code":1}}`, 107)
	wants()
	here.acted()
	there.acted()
}

func TestPeersDisconnect(t *testing.T) {
	here, there, p := newAPIPeers(t)
	for _, c := range []struct {
		body        string
		here, there []int
	}{
		{`{"user":"alice"}`, []int{1, 2}, []int{1, 2}},
		{fmt.Sprintf(`{"user":"alice","whitelist":[%q,%q]}`, here.clientOf(1), there.clientOf(2)), []int{2}, []int{1}},
		{fmt.Sprintf(`{"client":%q}`, there.clientOf(1)), nil, []int{1}},
		{fmt.Sprintf(`{"client":%q}`, here.clientOf(1)), []int{1}, nil},
	} {
		for _, method := range []string{"disconnect", "refresh"} {
			body := c.body
			if method == "refresh" {
				if strings.Contains(body, "whitelist") {
					continue
				}
				body = strings.Replace(body, "}", `,"expired":true}`, 1)
			}
			here.call(method, body, `{"result":{}}`)
			for _, n := range []struct {
				x    *apiTest
				want []int
			}{{here, c.here}, {there, c.there}} {
				got := []int{}
				for _, closed := range n.x.loops.takeCloses() {
					got = append(got, int(closed.id.Slot()))
				}
				slices.Sort(got)
				if !slices.Equal(got, append([]int{}, n.want...)) {
					t.Errorf("%s %s: closed %v, want %v", method, body, got, n.want)
				}
			}
		}
	}
	p.take()
	// One that has ended where its id was made may go on elsewhere.
	for _, client := range []string{session.Node(9).ClientID(session.MakeID(0, 1, 1)), here.node.ClientID(session.MakeID(0, 1, 1))} {
		for _, body := range []string{`{"client":%q}`, `{"client":%q,"expired":true}`} {
			method := "disconnect"
			if strings.Contains(body, "expired") {
				method = "refresh"
			}
			here.call(method, fmt.Sprintf(body, client), `{"result":{}}`)
			if got := p.take(); !slices.Contains(got, "0 "+method) {
				t.Errorf("%s: asked %q", method, got)
			}
		}
	}
}

// TestPeersFail: an error of another node is the caller's, and one that does not
// answer is no success.
func TestPeersFail(t *testing.T) {
	here, there, p := newAPIPeers(t)
	there.sessions.fail = func(*session.Session) error { return topic.ErrTooMany }
	here.fails("subscribe", `{"user":"bob","channel":"a"}`, 106)
	here.fails("subscribe", `{"client":"`+there.clientOf(3)+`","channel":"a"}`, 106)
	there.sessions.fail = func(*session.Session) error { return errors.New("broken") }
	here.fails("subscribe", `{"user":"bob","channel":"a"}`, 100)
	there.sessions.fail = nil
	for _, l := range there.loops {
		l.mu.Lock()
		l.room = 10
		l.mu.Unlock()
	}
	here.fails("subscribe", `{"user":"bob","channel":"a"}`, 111)
	all := map[string]string{
		"subscribe": `{"user":"bob","channel":"a"}`, "unsubscribe": `{"user":"bob","channel":"a"}`, "disconnect": `{"user":"bob"}`,
		"refresh": `{"user":"bob"}`, "channels": `{}`, "presence": `{"channel":"news:a"}`, "presence_stats": `{"channel":"news:a"}`,
	}
	p.mute = 9
	for method, body := range all {
		here.call(method, body, apiUnansweredJSON)
	}
	if status, _, _ := here.send("disconnect", `{"user":"bob"}`, "X-API-Key", apiTestKey, apiErrorMode, "transport"); status != http.StatusServiceUnavailable {
		t.Errorf("status %d", status)
	}
	for err, want := range map[error]string{
		ErrPeersAway: apiUnansweredJSON, ErrPeersBusy: apiErrorJSON(111), ErrPeersTooLarge: apiErrorJSON(106),
	} {
		p.fail = err
		for method, body := range all {
			here.call(method, body, want)
		}
	}
	// None of it is a fault of ours but what is broken.
	if n := strings.Count(here.log.String(), "level=ERROR"); n != 0 {
		t.Errorf("%d errors logged", n)
	}
}

func TestPeersRead(t *testing.T) {
	here, there, p := newAPIPeers(t)
	here.topics.present = []topic.ClientInfo{{User: "u", Client: "1"}, {User: "v", Client: "2"}}
	there.topics.present = []topic.ClientInfo{{User: "v", Client: "2"}, {User: "w", Client: "3", ConnInfo: []byte(`{"a":1}`)}}
	here.call("presence", `{"channel":"news:a"}`, `{"result":{"presence":{"1":{"user":"u","client":"1"},"2":{"user":"v","client":"2"},
		"3":{"user":"w","client":"3","conn_info":{"a":1}}}}}`)
	here.call("presence_stats", `{"channel":"news:a"}`, `{"result":{"num_clients":3,"num_users":3}}`)
	here.call("channels", `{"pattern":"b"}`, `{"result":{"channels":{"news:b":{"num_clients":6},"a":{"num_clients":2}}}}`)
	here.fails("channels", `{"pattern":"["}`, 107)
	_, _, info := here.send("info", `{}`)
	if strings.Count(info, `"uid"`) != 2 || !strings.Contains(info, `"uid":"0000000000000009","name":"there"`) || strings.Contains(info, "unanswered") {
		t.Error(info)
	}
	p.mute = 9
	_, _, info = here.send("info", `{}`)
	if strings.Count(info, `"uid"`) != 2 || !strings.Contains(info, `"unanswered":[{"uid":"0000000000000009","name":"there"}]`) {
		t.Error(info)
	}
	if _, err := p.nodes[9](t.Context(), "what", nil); err == nil {
		t.Error("a method that there is not")
	}
	if _, err := p.nodes[9](t.Context(), "disconnect", []byte("{")); err == nil {
		t.Error("parameters that are none")
	}
}

// TestPresenceOfAll: a client that asks who is there on all nodes keeps neither its
// loop nor a worker while others are asked, and its later commands wait for the
// answer.
func TestPresenceOfAll(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		far := []topic.ClientInfo{{User: "far", Client: "far-1", ConnInfo: []byte(`{"f":1}`)}, {User: "far", Client: "far-2"}}
		p := &fakePeers{say: answering(t, far), hold: true}
		r := newRig(t, readNamespaces, func(o *rigOptions) { o.Peers = p })
		r.crowd(3, "all:a")
		asks, other := r.user(e, "ann"), r.user(e, "bob")
		asks.send(`{"id":2,"presence":{"channel":"all:a"}}`, `{"id":3,"subscribe":{"channel":"all:b"}}`)
		r.loop.turn()
		other.send(`{"id":2,"subscribe":{"channel":"all:b"}}`)
		other.wants(`{"id":2,"subscribe":{}}`)
		asks.wants()
		if s := r.pool.Stats(); s.Workers != s.Idle {
			t.Errorf("%+v", s)
		}
		release := func() {
			held := p.held
			p.held = nil
			for _, f := range held {
				f()
			}
		}
		release()
		r.loop.until(t, "the answers", func() bool { return len(asks.out) >= 2 })
		replies := asks.replies()
		if len(replies) != 2 || replies[1].Id != 3 || len(replies[0].Presence.GetPresence()) != 5 || replies[0].Presence.Presence["far-1"].User != "far" {
			t.Fatalf("%v", replies)
		}
		asks.send(`{"id":4,"presence_stats":{"channel":"all:a"}}`)
		r.loop.turn()
		release()
		r.loop.until(t, "the answer", func() bool { return len(asks.out) == 1 })
		if got := asks.replies()[0].PresenceStats; got.NumClients != 5 || got.NumUsers != 4 {
			t.Errorf("%v", got)
		}
		asks.idle()
	})
}

func TestPresenceOfAllFails(t *testing.T) {
	big := crowd(0, 2000)
	for name, c := range map[string]struct {
		say  func(PeerQuestion) ([]PeerAnswer, error)
		want string
	}{
		"silent":    {func(PeerQuestion) ([]PeerAnswer, error) { return []PeerAnswer{{Err: ErrPeersSilent}}, nil }, errInternal},
		"away":      {func(PeerQuestion) ([]PeerAnswer, error) { return nil, ErrPeersAway }, errInternal},
		"busy":      {func(PeerQuestion) ([]PeerAnswer, error) { return nil, ErrPeersBusy }, errTooMany},
		"too large": {func(PeerQuestion) ([]PeerAnswer, error) { return nil, ErrPeersTooLarge }, errLimit},
		"garbage":   {func(PeerQuestion) ([]PeerAnswer, error) { return []PeerAnswer{{Data: []byte{0xff}}}, nil }, errInternal},
		"too many":  {answering(t, big), errLimit},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, readNamespaces, func(o *rigOptions) { o.Peers, o.ReplyBytes = &fakePeers{say: c.say}, 2000 })
			p := r.user(session.EncodingJSON, "ann")
			p.send(`{"id":2,"presence":{"channel":"all:a"}}`)
			r.loop.until(t, "the answer", func() bool { return len(p.out) == 1 })
			p.wants(answer(2, c.want))
			p.idle()
			// What is too much is not put together first.
			if n := r.pool.Stats().Done; n != 0 && name != "garbage" {
				t.Errorf("%d jobs of the pool", n)
			}
		})
	}
}
