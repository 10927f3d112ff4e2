package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/goleak"

	"perch/topic"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(siteDirEnv); dir != "" {
		siteProcess(dir)
		return
	}
	goleak.VerifyTestMain(m,
		// The NATS server keeps these for the life of the process.
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*syncOutSem).run"),
	)
}

// natsServer is a server outside, with JetStream.
func natsServer(t testing.TB) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: maxPayload,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// got is what a receiver was given.
type got struct {
	topic string
	data  string
	at    topic.Position
	prev  uint64
}

// receiver stands in the place of topic.Topics.
type receiver struct {
	mu   sync.Mutex
	all  []got
	want map[string]bool // nil: all
	full bool
	more chan struct{}
}

func newReceiver() *receiver { return &receiver{more: make(chan struct{}, 1)} }

func (r *receiver) Deliver(name string, d topic.Delivery) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return topic.ErrFull
	}
	p := d.Publication
	r.all = append(r.all, got{name, string(p.Data), topic.Position{Offset: p.Offset, Epoch: d.Epoch}, p.Previous})
	poke(r.more)
	return nil
}

func (r *receiver) Interested(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.want == nil || r.want[name]
}

func (r *receiver) of(name string) []got {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []got
	for _, g := range r.all {
		if g.topic == name {
			out = append(out, g)
		}
	}
	return out
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// wait waits until so many have come of a topic.
func (r *receiver) wait(t testing.TB, name string, n int) []got {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		if all := r.of(name); len(all) >= n {
			return all
		}
		select {
		case <-r.more:
		case <-late:
			t.Fatalf("%d of %d publications of %s have come: %v", len(r.of(name)), n, name, r.of(name))
		}
	}
}

// node is one broker and what it delivers.
type node struct {
	t testing.TB
	*Broker
	got *receiver
}

func newNode(t testing.TB, o Options, all ...topic.NamespaceOptions) *node {
	t.Helper()
	if o.Name == "" {
		o.Name = t.Name()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	if o.URL == "" && o.Server.Dir == "" {
		o.Server.Dir = t.TempDir()
	}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return begin(t, l, BrokerOptions{}, 200*time.Millisecond, all)
}

// begin starts a node on l; watch is how often it looks at its streams, 0 as usual.
func begin(t testing.TB, l *Link, o BrokerOptions, watch time.Duration, all []topic.NamespaceOptions) *node {
	t.Helper()
	n := &node{t: t, Broker: NewBroker(l, o), got: newReceiver()}
	if watch > 0 {
		n.watchEvery = watch
	}
	n.SetNamespaces(namespaces(t, all))
	if err := n.Start(n.got); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// namespaces makes them ready, as topic.Topics does.
func namespaces(t testing.TB, all []topic.NamespaceOptions) []*topic.Namespace {
	t.Helper()
	catch := &catcher{Memory: topic.NewMemory(topic.MemoryOptions{})}
	o := topic.Options{Broker: catch}
	for _, ns := range all {
		if ns.Name == "" {
			o.Default = ns
		} else {
			o.Namespaces = append(o.Namespaces, ns)
		}
	}
	topics, err := topic.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = topics.Close() }()
	return catch.all
}

type catcher struct {
	*topic.Memory
	all []*topic.Namespace
}

func (c *catcher) SetNamespaces(all []*topic.Namespace) { c.all = all }

func (n *node) waitReady() *node {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	if err := n.Wait(ctx); err != nil {
		waiting, _ := n.Ready()
		n.t.Fatalf("not ready in time: %v, %s", err, waiting)
	}
	return n
}

// until waits for a condition that nobody tells of.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(20 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not %s in time", what)
		}
	}
}

func (n *node) publish(name, data string, o topic.PublishOptions) (topic.Position, error) {
	type answer struct {
		at  topic.Position
		err error
	}
	c := make(chan answer, 1)
	n.Publish(name, &topic.Publication{Data: []byte(data)}, o, func(at topic.Position, err error) { c <- answer{at, err} })
	a := <-c
	return a.at, a.err
}

// must publishes to a topic with a history.
func (n *node) must(name, data string) topic.Position {
	n.t.Helper()
	at, err := n.publish(name, data, stored)
	if err != nil {
		n.t.Fatal(err)
	}
	return at
}

func (n *node) read(name string, f topic.Filter) ([]*topic.Publication, topic.Position, error) {
	type answer struct {
		pubs []*topic.Publication
		at   topic.Position
		err  error
	}
	c := make(chan answer, 1)
	n.History(name, f, func(pubs []*topic.Publication, at topic.Position, err error) { c <- answer{pubs, at, err} })
	a := <-c
	return a.pubs, a.at, a.err
}

func text(pubs []*topic.Publication) string {
	var out []string
	for _, p := range pubs {
		out = append(out, string(p.Data))
	}
	return strings.Join(out, " ")
}

func data(all []got) string {
	var out []string
	for _, g := range all {
		out = append(out, g.data)
	}
	return strings.Join(out, " ")
}

// chained fails where deliveries of a topic do not follow one on the other.
func chained(t testing.TB, all []got) {
	t.Helper()
	if !slices.IsSortedFunc(all, func(a, b got) int { return int(a.at.Offset) - int(b.at.Offset) }) {
		t.Errorf("out of order: %v", all)
	}
	for i := 1; i < len(all); i++ {
		if all[i].prev != all[i-1].at.Offset && all[i].prev != 0 {
			t.Errorf("%v does not follow on %v", all[i], all[i-1])
		}
	}
}

var (
	news   = topic.NamespaceOptions{Name: "news", HistorySize: 5, HistoryTTL: time.Hour}
	stored = topic.PublishOptions{HistorySize: 5, HistoryTTL: time.Hour}
)

func number(prefix string, i int) string { return fmt.Sprintf("%s%d", prefix, i) }

func slogTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
