package perch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch/internal/testkit"
	"perch/topic"
)

// follower is a client of the SDK that takes the numbers of a topic, on whichever
// node takes its connection.
type follower struct {
	c     *fleet
	on    atomic.Int64 // the node of its connection
	first int          // the node that is tried first

	mu    sync.Mutex
	got   []int
	ended []string // subscriptions that did not recover
	times int      // that it subscribed
}

// dial goes to the first node that takes the connection.
func (f *follower) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	var err error
	for i := range f.c.nodes {
		k := (f.first + i) % len(f.c.nodes)
		var conn net.Conn
		if conn, err = d.DialContext(ctx, network, f.c.nodes[k].public); err == nil {
			f.on.Store(int64(k))
			return conn, nil
		}
	}
	return nil, err
}

// follow has n clients subscribe, spread over the nodes, one half of them with
// Protobuf.
func (c *fleet) follow(t *testing.T, name string, n int) []*follower {
	t.Helper()
	// A call that has no answer outlives its client, for the SDK's timeout of 5 s.
	t.Cleanup(func() {
		stacks := make([]byte, 4<<20)
		eventually(t, "the end of the SDK's calls", func() bool {
			return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("centrifuge-go.(*Client).sendAsync"))
		})
	})
	var all []*follower
	subscribed := make(chan int, n*100)
	for i := range n {
		f := &follower{c: c, first: i % len(c.nodes)}
		create := centrifuge.NewJsonClient
		if i%2 == 1 {
			create = centrifuge.NewProtobufClient
		}
		k := create("ws://perch.test/connection/websocket", centrifuge.Config{
			Token: token(fmt.Sprint("f", i), time.Hour), HandshakeTimeout: testkit.Timeout, NetDialContext: f.dial,
		})
		t.Cleanup(k.Close)
		sub, err := k.NewSubscription(name, centrifuge.SubscriptionConfig{Recoverable: true, Positioned: true})
		if err != nil {
			t.Fatal(err)
		}
		sub.OnSubscribed(func(e centrifuge.SubscribedEvent) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.times++; f.times == 1 {
				subscribed <- i
			} else if !e.WasRecovering || !e.Recovered {
				f.ended = append(f.ended, fmt.Sprintf("subscription %d: recovering %v, recovered %v, behind %d", f.times, e.WasRecovering, e.Recovered, len(f.got)))
			}
		})
		sub.OnUnsubscribed(func(e centrifuge.UnsubscribedEvent) {
			if e.Code != 0 {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.ended = append(f.ended, fmt.Sprintf("unsubscribed: %d %s", e.Code, e.Reason))
			}
		})
		sub.OnPublication(func(e centrifuge.PublicationEvent) {
			var n int
			_ = json.Unmarshal(e.Data, &n)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.got = append(f.got, n)
		})
		if err := k.Connect(); err != nil {
			t.Fatal(err)
		}
		if err := sub.Subscribe(); err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	for range all {
		await(t, "subscribed", subscribed)
	}
	return all
}

// have is how many it has got.
func (f *follower) have() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.got)
}

// complete waits until all have got n numbers, and checks that each has every one
// once and in order, and has recovered whenever it came back.
func complete(t *testing.T, all []*follower, n int) {
	t.Helper()
	for i, f := range all {
		patiently(t, fmt.Sprintf("%d publications at follower %d (node %d)", n, i, f.on.Load()), func() bool { return f.have() >= n })
	}
	for i, f := range all {
		f.mu.Lock()
		for k, v := range f.got {
			if v != k {
				t.Errorf("follower %d: %d in the place of %d", i, v, k)
				break
			}
		}
		for _, e := range f.ended {
			t.Errorf("follower %d: %s", i, e)
		}
		f.mu.Unlock()
	}
}

// numbers publishes 0, 1, 2, … until it is told to stop: each at the next node,
// under a key, until one acknowledges it.
type numbers struct {
	c     *fleet
	name  string
	stop  chan struct{}
	done  chan struct{}
	n     atomic.Int64 // acknowledged
	tried atomic.Int64 // attempts that failed
	err   error
}

func (c *fleet) number(name string, every time.Duration) *numbers {
	p := &numbers{c: c, name: name, stop: make(chan struct{}), done: make(chan struct{})}
	go p.run(every)
	return p
}

func (p *numbers) run(every time.Duration) {
	defer close(p.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		for tries, end := 0, time.Now().Add(fleetPatience); ; tries++ {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
			_, err := p.c.nodes[(i+tries)%len(p.c.nodes)].publish(ctx, fleetPublish{
				Channel: p.name, Data: json.RawMessage(fmt.Sprint(i)), IdempotencyKey: fmt.Sprint("k", i),
			})
			cancel()
			if err == nil {
				break
			}
			p.tried.Add(1)
			var answered *apiFailure
			if time.Now().After(end) || errors.As(err, &answered) && answered.Code != 100 {
				p.err = err
				return
			}
			lasting(10 * time.Millisecond)
		}
		p.n.Add(1)
	}
}

// end stops it and tells how many there are.
func (p *numbers) end(t *testing.T) int {
	t.Helper()
	close(p.stop)
	<-p.done
	if p.err != nil {
		t.Fatalf("publish: %v", p.err)
	}
	return int(p.n.Load())
}

// further waits until so many more are acknowledged.
func (p *numbers) further(t *testing.T, more int64) {
	t.Helper()
	want := p.n.Load() + more
	patiently(t, fmt.Sprintf("%d publications", want), func() bool { return p.n.Load() >= want })
}

var fleetLong = topic.NamespaceOptions{Name: "long", HistorySize: 1500, HistoryTTL: time.Hour, HistoryMetaTTL: time.Hour, ForceRecovery: true}

// TestFleetRollingRestart: one node after the other drains and starts again,
// while publications go on; all clients end with all of them, in order, once.
func TestFleetRollingRestart(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetLong}})
	all := c.follow(t, "long:a", 60)
	p := c.number("long:a", 10*time.Millisecond)
	for _, n := range c.nodes {
		p.further(t, 30)
		if err := n.process.Stop(20 * time.Second); err != nil {
			t.Errorf("%s: %v", n.name, err)
		}
		p.further(t, 10)
		n.start()
		n.waitReady()
	}
	p.further(t, 30)
	count := p.end(t)
	complete(t, all, count)
	moved := 0
	for _, f := range all {
		moved += f.times - 1
	}
	if moved < len(all) {
		t.Errorf("%d clients came back %d times", len(all), moved)
	}
	t.Logf("%d publications, %d attempts failed; %d clients came back %d times", count, p.tried.Load(), len(all), moved)
}

// TestFleetNodeKilled: the clients of a node that is killed come back on others,
// and nobody has lost anything.
func TestFleetNodeKilled(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetLong}})
	all := c.follow(t, "long:a", 12)
	p := c.number("long:a", 5*time.Millisecond)
	p.further(t, 30)
	c.nodes[0].kill()
	p.further(t, 100)
	for i, f := range all {
		patiently(t, fmt.Sprint("another node for follower ", i), func() bool { return f.on.Load() != 0 })
	}
	complete(t, all, p.end(t))
}

// TestFleetNATSKilled kills a server of NATS while publications go on: one that
// follows, then the one that leads.
func TestFleetNATSKilled(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetLong}})
	all := c.follow(t, "long:a", 12)
	p := c.number("long:a", 5*time.Millisecond)
	p.further(t, 30)
	follower, err := c.nats.Follower(t.Context(), c.stream("long"))
	if err != nil {
		t.Fatal(err)
	}
	follower.Kill()
	p.further(t, 50)
	ctx, cancel := context.WithTimeout(t.Context(), fleetPatience)
	defer cancel()
	if err := c.nats.Restore(ctx); err != nil {
		t.Fatal(err)
	}
	c.leader("long").Kill()
	p.further(t, 50)
	complete(t, all, p.end(t))
}

// TestFleetNodeStopped: a node that stands still for 10 s takes up again what it
// has missed, by itself.
func TestFleetNodeStopped(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetLong}})
	all := c.follow(t, "long:a", 6)
	p := c.number("long:a", 10*time.Millisecond)
	p.further(t, 20)
	n := c.nodes[1]
	if err := n.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	lasting(10 * time.Second)
	if err := n.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.further(t, 20)
	complete(t, all, p.end(t))
	for i, f := range all {
		if f.times != 1 {
			t.Errorf("follower %d had to subscribe %d times", i, f.times)
		}
	}
}
