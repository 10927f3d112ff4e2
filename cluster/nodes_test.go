package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"perch/internal/testkit"
	"perch/session"
)

// patience bounds what a test waits for.
const patience = 20 * time.Second

// outside is a NATS server for the time of the test.
func outside(t testing.TB, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, MaxPayload: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(patience) {
		t.Fatal("the nats server does not start")
	}
	return s
}

type syncLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *syncLog) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

// member is a node of a test.
type member struct {
	*Nodes
	t    testing.TB
	id   session.Node
	link *Link
	log  *syncLog
	say  atomic.Pointer[replyFunc]
	news chan string
}

type replyFunc func(ctx context.Context, method string, params []byte) ([]byte, error)

// answers sets what it says to questions.
func (m *member) replies(f replyFunc) { m.say.Store(&f) }

func echo(_ context.Context, method string, params []byte) ([]byte, error) {
	return []byte(method + ":" + string(params)), nil
}

// join makes a node, which is taken for gone after half a second.
func join(t testing.TB, url, name string, id session.Node, change func(*NodesOptions)) *member {
	t.Helper()
	m := &member{t: t, id: id, log: &syncLog{}, news: make(chan string, 1024)}
	m.replies(echo)
	log := slog.New(slog.NewTextHandler(m.log, nil))
	var err error
	if m.link, err = Open(Options{URL: url, Name: name, Logger: log}); err != nil {
		t.Fatal(err)
	}
	o := NodesOptions{
		Link: m.link, Node: id, Version: "test", Started: time.Unix(100, 0), Logger: log,
		Answer: func(ctx context.Context, method string, params []byte) ([]byte, error) {
			return (*m.say.Load())(ctx, method, params)
		},
		News:     func(topic string, data []byte) { m.news <- topic + "=" + string(data) },
		Interval: 50 * time.Millisecond, Gone: 500 * time.Millisecond, Timeout: patience,
	}
	if change != nil {
		change(&o)
	}
	m.Nodes = NewNodes(o)
	m.SetDigest("same")
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		m.link.Close()
	})
	return m
}

// three are nodes a, b and c, which know one another.
func three(t testing.TB, change func(*NodesOptions)) (a, b, c *member) {
	t.Helper()
	url := outside(t, -1).ClientURL()
	a, b, c = join(t, url, "a", 1, change), join(t, url, "b", 2, change), join(t, url, "c", 3, change)
	a.knows("b c")
	b.knows("a c")
	c.knows("a b")
	return a, b, c
}

func (m *member) names() string {
	var all []string
	for _, p := range m.Peers() {
		all = append(all, p.Name)
	}
	return strings.Join(all, " ")
}

func (m *member) knows(names string) {
	m.t.Helper()
	until(m.t, m.link.Name()+" knows "+names, func() bool { return m.names() == names })
}

// gather asks and waits for the answers.
func (m *member) gather(q Question) ([]Answer, error) {
	m.t.Helper()
	type got struct {
		answers []Answer
		err     error
	}
	c := make(chan got, 2)
	m.Ask(q, func(a []Answer, err error) { c <- got{a, err} })
	select {
	case g := <-c:
		return g.answers, g.err
	case <-time.After(2 * patience):
		m.t.Fatal("no answer at all")
		return nil, nil
	}
}

// TestNodesKnown: a node knows those that are there before Start returns, and they
// know it.
func TestNodesKnown(t *testing.T) {
	url := outside(t, -1).ClientURL()
	slow := func(o *NodesOptions) { o.Interval = time.Hour } // what is known is known by asking
	a := join(t, url, "a", 1, slow)
	if !a.Alone() {
		t.Error("somebody is there")
	}
	b := join(t, url, "b", 2, slow)
	c := join(t, url, "c", 3, slow)
	if got := c.names(); got != "a b" {
		t.Errorf("c knows %q", got)
	}
	a.knows("b c")
	b.knows("a c")
	if p := a.Peers()[1]; p.Node != 3 || p.Version != "test" || !p.Started.Equal(time.Unix(100, 0)) || !p.Agrees || a.Alone() {
		t.Errorf("%+v", p)
	}
	c.Close()
	a.knows("b")
	if n := a.Counts(); n.Joined != 2 || n.Left != 1 || n.Gone != 0 || n.Peers != 1 {
		t.Errorf("%+v", n)
	}
	// They are written once the table has changed.
	until(t, "one line for each", func() bool { return a.log.count("node joined") >= 2 && a.log.count("node left") >= 1 })
	if j, l := a.log.count("node joined"), a.log.count("node left"); j != 2 || l != 1 {
		t.Errorf("%d lines for those who came and %d for those who left", j, l)
	}
}

// newProxy is a way to a NATS server that can fail, and its URL.
func newProxy(t testing.TB, to string) (p *testkit.Proxy, url string) {
	t.Helper()
	p, err := testkit.NewProxy(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, "nats://" + p.Addr()
}

// TestNodeGone: a node that is cut off is gone for the others after a while; it
// keeps them, as it is itself that can't hear, and all know all when it is back.
func TestNodeGone(t *testing.T) {
	s := outside(t, -1)
	p, url := newProxy(t, s.Addr().String())
	a, b := join(t, s.ClientURL(), "a", 1, nil), join(t, s.ClientURL(), "b", 2, nil)
	c := join(t, url, "c", 3, nil)
	a.knows("b c")
	p.Cut()
	a.knows("b")
	b.knows("a")
	if n := a.Counts(); n.Gone != 1 || n.Left != 0 || a.log.count("node gone") != 1 {
		t.Errorf("%+v", n)
	}
	if c.names() != "a b" || c.Alone() {
		t.Errorf("cut off, it knows %q", c.names())
	}
	if _, err := c.gather(Question{Method: "x"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("cut off: %v", err)
	}
	if c.Tell("t", 1, func() [][]byte { return [][]byte{{1}} }) || c.Counts().Unsaid != 1 {
		t.Error("news were told to nobody")
	}
	p.Heal()
	a.knows("b c")
	if answers, err := c.gather(Question{Method: "x"}); err != nil || len(answers) != 2 || c.Counts().Gone != 0 {
		t.Errorf("back: %v, %v", answers, err)
	}
}

// TestNodesDisagree: a node with another configuration is named once, and again
// when it has ours.
func TestNodesDisagree(t *testing.T) {
	a, b, _ := three(t, nil)
	const differs, agrees = "node has other namespaces", "node agrees on the namespaces again"
	b.SetDigest("other")
	until(t, "the difference is seen", func() bool { return a.Counts().Disagreeing == 1 && b.Counts().Disagreeing == 2 })
	b.announce(envelope{}) // says nothing new
	b.SetDigest("same")
	until(t, "they agree", func() bool { return a.Counts().Disagreeing == 0 && b.Counts().Disagreeing == 0 })
	if a.log.count(differs) != 1 || a.log.count(agrees) != 1 || b.log.count(differs) != 2 || b.log.count(agrees) != 2 {
		t.Errorf("%s\n%s", a.log.b.String(), b.log.b.String())
	}
}

// TestNodesPaused: a node whose process stood still does not take the others for
// dead when it goes on.
func TestNodesPaused(t *testing.T) {
	a, _, _ := three(t, nil)
	a.mu.Lock()
	long := time.Now().Add(-time.Hour)
	a.swept = long
	for _, p := range a.peers {
		p.heard = long
	}
	a.mu.Unlock()
	a.sweep()
	if got := a.names(); got != "b c" {
		t.Errorf("it knows %q", got)
	}
}

func TestNews(t *testing.T) {
	a, b, c := three(t, nil)
	for i := range 100 {
		if !a.Tell("topic", 10, func() [][]byte { return [][]byte{fmt.Appendf(nil, "%d", i)} }) {
			t.Fatal("not told")
		}
	}
	for _, m := range []*member{b, c} {
		for i := range 100 {
			select {
			case got := <-m.news:
				if want := fmt.Sprintf("topic=%d", i); got != want {
					t.Fatalf("%q, want %q", got, want)
				}
			case <-time.After(patience):
				t.Fatal("no news")
			}
		}
	}
	if len(a.news) > 0 {
		t.Error("it hears itself")
	}
}

// TestUnknown: what is not understood is counted, and nothing else.
func TestUnknown(t *testing.T) {
	a, b, _ := three(t, nil)
	good := envelope{Node: nodeHex(9)}
	good.encode(nil)
	for _, c := range []struct {
		kind string
		data string
	}{
		{"hello", ""}, {"hello", "{}"}, {"hello", "{}\n"}, {"hello", `{"v":2,"node":"0000000000000009"}` + "\n"},
		{"hello", `{"v":1,"node":"9"}` + "\n"}, {"hello", `{"v":1,"node":"0000000000000000"}` + "\n"},
		{"hello", `{"v":1,"node":"000000000000000x"}` + "\n"},
		{"hello", `{"v":1,"node":"0000000000000009","name":"` + strings.Repeat("x", 300) + `"}` + "\n"},
		{"what", string(good.encode(nil))},
	} {
		before := b.Counts().Broken
		if err := a.nc.Publish("perch.n."+c.kind, []byte(c.data)); err != nil {
			t.Fatal(err)
		}
		until(t, fmt.Sprintf("%q is counted", c.data), func() bool { return b.Counts().Broken == before+1 })
	}
	if got := b.names(); got != "a c" {
		t.Errorf("it knows %q", got)
	}
}

func FuzzEnvelope(f *testing.F) {
	e := envelope{Node: nodeHex(7), Name: "n", Build: "v", Digest: "d", Ask: true, ID: 4, Method: "m", Millis: 5, Part: 1, More: true, Err: "busy", Topic: "t"}
	f.Add(e.encode([]byte("body\nmore")))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, body, ok := decodeEnvelope(b)
		if !ok {
			return
		}
		if e.from == 0 || e.Part < 0 || e.Millis < 0 {
			t.Fatalf("%+v", e)
		}
		again, rest, ok := decodeEnvelope(e.encode(body))
		if !ok || again != e || !bytes.Equal(rest, body) {
			t.Fatalf("%+v\n%+v", e, again)
		}
	})
}

// TestNodesBeforeNATS: a node that starts while NATS is away announces itself when
// it is there.
func TestNodesBeforeNATS(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	_ = ln.Close()
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	slow := func(o *NodesOptions) { o.Interval = time.Hour }
	a, b := join(t, url, "a", 1, slow), join(t, url, "b", 2, slow)
	if a.Alone() {
		t.Error("it can't know that it is alone")
	}
	if _, err := a.gather(Question{Method: "x"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	outside(t, port)
	a.knows("b")
	b.knows("a")
	if answers, err := a.gather(Question{Method: "x"}); err != nil || sayAll(answers) != "b=x:,<nil>;" {
		t.Errorf("%q, %v", sayAll(answers), err)
	}
}

// TestNodesLateWord: a node that has said goodbye does not come back by what it has
// said before, which may be heard behind it.
func TestNodesLateWord(t *testing.T) {
	url := outside(t, -1).ClientURL()
	a := join(t, url, "a", 1, func(o *NodesOptions) { o.Gone = time.Hour })
	far := linkTo(t, Options{URL: url})
	if err := far.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	say := func(subject string, e envelope) {
		e.Node, e.Name, e.Digest = nodeHex(9), "x", "same"
		if err := far.Conn().Publish(subject, e.encode(nil)); err != nil {
			t.Fatal(err)
		}
	}
	say("perch.n.hello", envelope{Started: 100})
	a.knows("x")
	say("perch.n.hello", envelope{Started: 100, Bye: true})
	a.knows("")
	before := a.Counts().Broken
	say("perch.n."+nodeHex(1)+".hello", envelope{Started: 100})
	say("perch.n."+nodeHex(1)+".what", envelope{}) // behind it
	until(t, "all is heard", func() bool { return a.Counts().Broken == before+1 })
	a.knows("")
	if n := a.Counts(); n.Joined != 1 || n.Left != 1 {
		t.Errorf("%+v", n)
	}
	// Of the same id, but another one.
	say("perch.n.hello", envelope{Started: 101})
	a.knows("x")
}
