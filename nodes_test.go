package perch_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"perch"
	"perch/internal/testkit"
	"perch/topic"
)

// natsForNodes is a NATS server outside, for the time of the test.
func natsForNodes(t testing.TB) string {
	t.Helper()
	s, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), MaxPayload: 8 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(testkit.Timeout) {
		t.Fatal("the nats server does not start")
	}
	return s.ClientURL()
}

// nodesRig is three servers that are one.
type nodesRig struct {
	url string
	all []*clusterNode
	a   *clusterNode
	b   *clusterNode
	c   *clusterNode
}

type clusterNode struct{ *server }

// node starts a server of the cluster. A node is taken for gone after a second.
func (r *nodesRig) node(t testing.TB, name string, change func(*perch.Options)) *clusterNode {
	return &clusterNode{start(t, func(o *perch.Options) {
		o.Engine = perch.EngineNATS
		o.NATS.URL, o.NATS.Name = r.url, name
		o.Topics.Default.Presence = true
		o.Topics.Default.AllowPresenceForSubscriber = true
		o.Topics.Default.JoinLeave, o.Topics.Default.ForcePushJoinLeave = true, true
		o.Topics.JoinLeaveInterval = 10 * time.Millisecond
		perch.SetNodeTimes(o, 100*time.Millisecond, time.Second, 2*time.Second)
		if change != nil {
			change(o)
		}
	})}
}

func newNodesRig(t *testing.T, change func(name string, o *perch.Options)) *nodesRig {
	t.Helper()
	r := &nodesRig{url: natsForNodes(t)}
	for _, name := range []string{"a", "b", "c"} {
		r.all = append(r.all, r.node(t, name, func(o *perch.Options) {
			if change != nil {
				change(name, o)
			}
		}))
	}
	r.a, r.b, r.c = r.all[0], r.all[1], r.all[2]
	for _, n := range r.all {
		eventually(t, "all know all", func() bool { return n.metric(t, "perch_nodes") == 3 })
	}
	return r
}

// user is a peer that has connected, and its client id.
func (s *clusterNode) user(t *testing.T, user string) (*peer, string) {
	t.Helper()
	p := s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand(token(user, time.Hour)))
	client, _ := p.reply(1)["connect"].(map[string]any)["client"].(string)
	return p, client
}

// subscribed is user, subscribed to a topic.
func (s *clusterNode) subscribed(t *testing.T, user, topic string) (*peer, string) {
	t.Helper()
	p, client := s.user(t, user)
	p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":%q}}`, topic))
	p.reply(2)
	return p, client
}

// refused skips what comes up to the reply with the id, and is its error.
func (p *peer) refused(id int) map[string]any {
	p.t.Helper()
	for {
		for _, r := range p.lines() {
			if r["id"] == float64(id) {
				e, _ := r["error"].(map[string]any)
				return e
			}
		}
	}
}

// push skips what comes up to a push of the kind.
func (p *peer) push(kind string) map[string]any {
	p.t.Helper()
	for {
		for _, r := range p.lines() {
			if push, ok := r["push"].(map[string]any); ok && push[kind] != nil {
				return push
			}
		}
	}
}

// result is the answer of the API, decoded.
func (s *clusterNode) result(t testing.TB, method, body string) map[string]any {
	t.Helper()
	var out struct {
		Result map[string]any `json:"result"`
	}
	if err := json.Unmarshal([]byte(s.api(t, method, body)), &out); err != nil {
		t.Fatal(err)
	}
	return out.Result
}

// fails is the code of an answer of the API that is an error.
func (s *clusterNode) fails(t testing.TB, method, body string) int {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+s.admin+"/api/"+method, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.apiKey)
	_, answer := do(t, req)
	var out struct{ Error struct{ Code int } }
	if err := json.Unmarshal([]byte(answer), &out); err != nil {
		t.Fatal(err)
	}
	return out.Error.Code
}

// TestNodesDisconnect: what is done to a user, or to a client id, reaches the
// sessions of all nodes.
func TestNodesDisconnect(t *testing.T) {
	r := newNodesRig(t, nil)
	var peers []*peer
	var clients []string
	for _, n := range r.all {
		p, client := n.user(t, "ann")
		peers, clients = append(peers, p), append(clients, client)
	}
	stays, staying := r.c.user(t, "ann")
	t.Run("one of another node", func(t *testing.T) {
		before := r.c.metric(t, "perch_node_answers_total")
		r.a.api(t, "disconnect", fmt.Sprintf(`{"client":%q}`, clients[1]))
		peers[1].closes(3503)
		if n := r.c.metric(t, "perch_node_answers_total"); n != before {
			t.Errorf("%v questions to a node that the client id does not name", n-before)
		}
	})
	t.Run("one of nobody", func(t *testing.T) {
		r.a.api(t, "disconnect", fmt.Sprintf(`{"client":%q}`, clients[1]))
		r.a.api(t, "disconnect", `{"client":"nobody"}`)
	})
	t.Run("all but one", func(t *testing.T) {
		r.b.api(t, "batch", fmt.Sprintf(`{"commands":[{"disconnect":{"user":"ann","whitelist":[%q],"disconnect":{"code":4001,"reason":"why"}}}]}`, staying))
		peers[0].closes(4001)
		peers[2].closes(4001)
		stays.send(`{"id":9,"subscribe":{"channel":"still"}}`)
		stays.reply(9)
	})
}

// TestNodesSubscribe: subscribe, unsubscribe and refresh from any node.
func TestNodesSubscribe(t *testing.T) {
	r := newNodesRig(t, nil)
	b, _ := r.b.user(t, "ann")
	c, client := r.c.user(t, "ann")
	r.a.api(t, "subscribe", `{"user":"ann","channel":"given","data":{"x":1}}`)
	for _, p := range []*peer{b, c} {
		if push := p.push("subscribe"); push["channel"] != "given" {
			t.Errorf("%v", push)
		}
	}
	if n := r.a.result(t, "channels", `{"pattern":"giv*"}`)["channels"].(map[string]any)["given"].(map[string]any)["num_clients"]; n != 2.0 {
		t.Errorf("%v subscribers", n)
	}
	r.b.api(t, "unsubscribe", fmt.Sprintf(`{"client":%q,"channel":"given"}`, client))
	if push := c.push("unsubscribe"); push["channel"] != "given" {
		t.Errorf("%v", push)
	}
	if n := r.c.result(t, "channels", `{}`)["channels"].(map[string]any)["given"].(map[string]any)["num_clients"]; n != 1.0 {
		t.Errorf("%v subscribers", n)
	}
	r.a.api(t, "refresh", fmt.Sprintf(`{"client":%q,"expire_at":%d}`, client, time.Now().Add(time.Hour).Unix()))
	if push := c.push("refresh"); push["refresh"] == nil {
		t.Errorf("%v", push)
	}
	r.a.api(t, "refresh", `{"user":"ann","expired":true}`)
	b.closes(3005)
	c.closes(3005)
	for body, code := range map[string]int{
		`{"user":"ann"}`: 107,
		`{"user":"ann","channel":"unknown:topic"}`: 102,
	} {
		if got := r.a.fails(t, "subscribe", body); got != code {
			t.Errorf("%s: %d, want %d", body, got, code)
		}
	}
}

// TestNodesPresence: backends and clients see who is subscribed on all nodes, and
// a node that goes takes its subscribers along.
func TestNodesPresence(t *testing.T) {
	r := newNodesRig(t, nil)
	asking, ann := r.a.subscribed(t, "ann", "there")
	_, bob := r.b.subscribed(t, "bob", "there")
	_, bob2 := r.c.subscribed(t, "bob", "there")
	ask := func(ids ...string) func() bool {
		return func() bool {
			asking.send(`{"id":20,"presence":{"channel":"there"}}`, `{"id":21,"presence_stats":{"channel":"there"}}`)
			got := []string{}
			for client := range asking.reply(20)["presence"].(map[string]any)["presence"].(map[string]any) {
				got = append(got, client)
			}
			slices.Sort(got)
			slices.Sort(ids)
			stats := asking.reply(21)["presence_stats"].(map[string]any)
			if len(got) == len(ids) && stats["num_clients"] != float64(len(ids)) {
				return false
			}
			return slices.Equal(got, ids)
		}
	}
	if !ask(ann, bob, bob2)() {
		t.Error("a client does not see all nodes' subscribers")
	}
	for _, n := range r.all {
		if got := n.result(t, "presence", `{"channel":"there"}`)["presence"].(map[string]any); len(got) != 3 || got[bob2].(map[string]any)["user"] != "bob" {
			t.Errorf("%v", got)
		}
		if got := n.result(t, "presence_stats", `{"channel":"there"}`); got["num_clients"] != 3.0 || got["num_users"] != 2.0 {
			t.Errorf("%v", got)
		}
	}
	r.c.Abort()
	<-r.c.done
	r.c.err = nil
	eventually(t, "its subscribers are gone", ask(ann, bob))
	if n := r.a.metric(t, `perch_node_changes_total{change="left"}`); n != 1 {
		t.Errorf("%v left", n)
	}
}

// TestNodesInfo: the nodes are listed, with their names.
func TestNodesInfo(t *testing.T) {
	r := newNodesRig(t, nil)
	r.b.subscribed(t, "ann", "x")
	names := map[string]float64{}
	for _, n := range r.a.result(t, "info", `{}`)["nodes"].([]any) {
		node := n.(map[string]any)
		names[node["name"].(string)] = node["num_clients"].(float64)
	}
	if fmt.Sprint(names) != "map[a:0 b:1 c:0]" {
		t.Errorf("%v", names)
	}
	if _, body := get(t, "http://"+r.a.admin+"/readyz"); body != `{"nodes":3,"ready":true,"state":"ready"}` {
		t.Error(body)
	}
}

// TestNodesNews: who comes and goes on one node is told on the others.
func TestNodesNews(t *testing.T) {
	r := newNodesRig(t, nil)
	a, _ := r.a.user(t, "ann")
	a.send(`{"id":2,"subscribe":{"channel":"lobby"}}`)
	for i := range 2 {
		if i == 0 {
			a.push("join") // its own
		}
		b, bob := r.b.subscribed(t, "bob", "lobby")
		join := a.push("join")
		info := join["join"].(map[string]any)["info"].(map[string]any)
		if info["client"] != bob || info["user"] != "bob" || join["channel"] != "lobby" {
			t.Fatalf("%v", join)
		}
		// It is the only one of its node: nobody is left there to gather what is told.
		b.Reset()
		if left := a.push("leave")["leave"].(map[string]any)["info"].(map[string]any); left["client"] != bob {
			t.Fatalf("%v", left)
		}
	}
}

// TestNodesDisagree: two nodes whose namespaces differ say so, once.
func TestNodesDisagree(t *testing.T) {
	var ofC perch.Options
	r := newNodesRig(t, func(name string, o *perch.Options) {
		if name == "c" {
			o.Topics.Default.AllowPublishForSubscriber = true
			ofC = *o
		}
	})
	for i, want := range []float64{1, 1, 2} {
		eventually(t, "the difference is seen", func() bool { return r.all[i].metric(t, "perch_nodes_disagreeing") == want })
	}
	const warning = "node has other namespaces"
	if n := strings.Count(r.a.log.String(), warning); n != 1 {
		t.Errorf("said %d times", n)
	}
	ofC.Topics.Default.AllowPublishForSubscriber = false
	if err := r.c.Reload(ofC); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.all {
		eventually(t, "they agree", func() bool { return n.metric(t, "perch_nodes_disagreeing") == 0 })
	}
	eventually(t, "it is said", func() bool { return strings.Contains(r.a.log.String(), "node agrees on the namespaces again") })
}

// newProxy is a link to an address, which can fail.
func newProxy(t testing.TB, to string) *testkit.Proxy {
	t.Helper()
	p, err := testkit.NewProxy(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// TestNodeCutOff: a node whose connection is cut vanishes for the others, and
// says that it can't reach them; nothing hangs.
func TestNodeCutOff(t *testing.T) {
	r := &nodesRig{url: natsForNodes(t)}
	p := newProxy(t, strings.TrimPrefix(r.url, "nats://"))
	a := r.node(t, "a", nil)
	b := r.node(t, "b", func(o *perch.Options) { o.NATS.URL = "nats://" + p.Addr() })
	eventually(t, "both know both", func() bool { return a.metric(t, "perch_nodes") == 2 && b.metric(t, "perch_nodes") == 2 })
	a.subscribed(t, "ann", "there")
	bob, bobs := b.subscribed(t, "bob", "there")
	p.Cut()
	eventually(t, "the others don't count it", func() bool {
		return a.metric(t, `perch_node_changes_total{change="gone"}`) == 1
	})
	if got := a.result(t, "presence_stats", `{"channel":"there"}`); got["num_clients"] != 1.0 {
		t.Errorf("%v", got)
	}
	// It knows of its own alone, and says that it does.
	if code := b.fails(t, "presence", `{"channel":"there"}`); code != 100 {
		t.Errorf("presence: %d", code)
	}
	if code := b.fails(t, "disconnect", `{"user":"ann"}`); code != 100 {
		t.Errorf("disconnect: %d", code)
	}
	bob.send(`{"id":7,"presence":{"channel":"there"}}`)
	if e := bob.refused(7); e["code"] != 100.0 || e["temporary"] != true {
		t.Errorf("%v", e)
	}
	if nodes := b.result(t, "info", `{}`)["nodes"].([]any); len(nodes) != 1 {
		t.Errorf("%v", nodes)
	}
	// A session that is here needs nobody else.
	b.api(t, "disconnect", fmt.Sprintf(`{"client":%q}`, bobs))
	bob.closes(3503)
}

// stuck keeps a loop busy until its channel is closed.
type stuck chan struct{}

func (s stuck) Run() bool { <-s; return false }

// TestNodeSlow: a node whose loops stand still is waited for no longer than said,
// the caller is told, and what waits for it is bounded; the others and info go on.
func TestNodeSlow(t *testing.T) {
	r := newNodesRig(t, func(_ string, o *perch.Options) {
		o.Loops = 1
		perch.SetNodeTimes(o, 100*time.Millisecond, time.Second, 300*time.Millisecond)
	})
	asking, _ := r.a.subscribed(t, "ann", "there")
	r.b.subscribed(t, "bob", "there")
	gate := make(stuck)
	loop := r.b.Net().Loop(0)
	if !loop.Reserve(1) {
		t.Fatal("no room")
	}
	loop.PostTask(1, gate)
	opened := false
	defer func() {
		if !opened {
			close(gate)
		}
	}()
	for method, body := range map[string]string{
		"presence": `{"channel":"there"}`, "presence_stats": `{"channel":"there"}`, "subscribe": `{"user":"bob","channel":"more"}`,
	} {
		if code := r.a.fails(t, method, body); code != 100 {
			t.Errorf("%s: %d", method, code)
		}
	}
	asking.send(`{"id":5,"presence":{"channel":"there"}}`)
	if e := asking.refused(5); e["code"] != 100.0 || e["temporary"] != true {
		t.Errorf("%v", e)
	}
	if n := r.a.metric(t, "perch_node_unanswered_total"); n != 4 {
		t.Errorf("%v unanswered", n)
	}
	if n := strings.Count(r.a.log.String(), "nodes have not answered in time"); n != 1 {
		t.Errorf("said %d times", n)
	}
	// It lives: it is in the list, and what does not need its loops is done.
	if n := len(r.a.result(t, "info", `{}`)["nodes"].([]any)); n != 3 {
		t.Errorf("%d nodes", n)
	}
	if n := r.a.metric(t, "perch_nodes"); n != 3 {
		t.Errorf("%v nodes", n)
	}
	r.c.api(t, "disconnect", `{"user":"ann"}`)
	asking.closes(3503)
	close(gate)
	opened = true
	eventually(t, "it answers again", func() bool {
		return r.a.fails(t, "presence_stats", `{"channel":"there"}`) == 0
	})
	if n := r.a.metric(t, "perch_node_surveys"); n != 0 {
		t.Errorf("%v surveys are left", n)
	}
}

// TestNodeBack: clients of a node that ends come back through another one, and are
// counted there, once; and so does the node.
func TestNodeBack(t *testing.T) {
	r := newNodesRig(t, nil)
	var lost []*peer
	for i := range 20 {
		p, _ := r.c.subscribed(t, fmt.Sprintf("user-%d", i), "there")
		lost = append(lost, p)
	}
	r.c.Abort()
	<-r.c.done
	r.c.err = nil
	for i, p := range lost {
		if _, _, err := p.Closed(); err == nil {
			t.Log("a close frame came")
		}
		r.all[i%2].subscribed(t, fmt.Sprintf("user-%d", i), "there")
	}
	want := func(n *clusterNode, count float64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%v are there", count), func() bool {
			got := n.result(t, "presence_stats", `{"channel":"there"}`)
			return got["num_clients"] == count && got["num_users"] == count
		})
	}
	want(r.a, 20)
	want(r.b, 20)
	again := r.node(t, "c", nil)
	again.subscribed(t, "late", "there")
	// It knows the others before it is ready.
	if got := again.result(t, "presence_stats", `{"channel":"there"}`); got["num_clients"] != 21.0 {
		t.Errorf("%v", got)
	}
	want(r.a, 21)
	if n := r.a.metric(t, `perch_node_changes_total{change="joined"}`); n != 3 {
		t.Errorf("%v joined", n)
	}
}

// TestNodesAlone: a server whose NATS takes nobody else has no other nodes, and
// shows none.
func TestNodesAlone(t *testing.T) {
	r := &nodesRig{}
	n := r.node(t, "a", nil)
	n.subscribed(t, "ann", "there")
	if got := n.result(t, "presence_stats", `{"channel":"there"}`); got["num_clients"] != 1.0 {
		t.Errorf("%v", got)
	}
	if _, page := get(t, "http://"+n.admin+"/metrics"); strings.Contains(page, "perch_node") {
		t.Error("metrics of a cluster")
	}
	if _, body := get(t, "http://"+n.admin+"/readyz"); body != `{"ready":true,"state":"ready"}` {
		t.Error(body)
	}
}

func TestNodesDigest(t *testing.T) {
	digest := func(change func(*perch.Options)) string {
		o := perch.DefaultOptions()
		o.Topics.Namespaces = []topic.NamespaceOptions{{Name: "aa"}, {Name: "bb", HistorySize: 1, HistoryTTL: time.Second}}
		change(&o)
		return perch.Digest(&o)
	}
	same := digest(func(*perch.Options) {})
	for name, change := range map[string]func(*perch.Options){
		"order":         func(o *perch.Options) { slices.Reverse(o.Topics.Namespaces) },
		"other options": func(o *perch.Options) { o.Listen, o.Topics.MaxLength = "x", 3 },
	} {
		if digest(change) != same {
			t.Errorf("%s makes a difference", name)
		}
	}
	for name, change := range map[string]func(*perch.Options){
		"default":     func(o *perch.Options) { o.Topics.Default.Presence = true },
		"size":        func(o *perch.Options) { o.Topics.Namespaces[1].HistorySize = 2 },
		"ttl":         func(o *perch.Options) { o.Topics.Namespaces[1].HistoryTTL++ },
		"list":        func(o *perch.Options) { o.Topics.Namespaces[0].AllowedDeltaTypes = []string{"fossil"} },
		"fewer":       func(o *perch.Options) { o.Topics.Namespaces = o.Topics.Namespaces[:1] },
		"other names": func(o *perch.Options) { o.Topics.Namespaces[0].Name = "cc" },
		"swapped": func(o *perch.Options) {
			n := o.Topics.Namespaces
			n[0].HistorySize, n[1].HistorySize = n[1].HistorySize, 0
		},
	} {
		if digest(change) == same {
			t.Errorf("%s makes no difference", name)
		}
	}
}
