package cluster

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"perch/topic"
)

// trio is a cluster of three servers, any of which can go and come back.
type trio struct {
	t      testing.TB
	ports  [3]int
	routes [3]int
	dirs   [3]string
	srv    [3]*server.Server
}

func newTrio(t testing.TB) *trio {
	c := &trio{t: t}
	for i := range 3 {
		c.ports[i], c.routes[i], c.dirs[i] = freePort(t), freePort(t), t.TempDir()
	}
	for i := range 3 {
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range 3 {
			c.stop(i)
		}
	})
	until(t, "led", func() bool {
		return slices.ContainsFunc(c.srv[:], func(s *server.Server) bool { return s.JetStreamIsLeader() })
	})
	return c
}

func (c *trio) start(i int) {
	var routes []*url.URL
	for _, p := range c.routes {
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", p)})
	}
	s, err := server.NewServer(&server.Options{
		ServerName: fmt.Sprintf("s%d", i), Host: "127.0.0.1", Port: c.ports[i], JetStream: true, StoreDir: c.dirs[i],
		NoSigs: true, NoLog: true, MaxPayload: maxPayload, Routes: routes,
		Cluster: server.ClusterOpts{Name: "trio", Host: "127.0.0.1", Port: c.routes[i]},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		c.t.Fatal("the server does not start")
	}
	c.srv[i] = s
}

func (c *trio) stop(i int) {
	if c.srv[i] != nil {
		c.srv[i].Shutdown()
		c.srv[i].WaitForShutdown()
		c.srv[i] = nil
	}
}

func (c *trio) url(first int) string {
	var all []string
	for i := range 3 {
		all = append(all, fmt.Sprintf("nats://127.0.0.1:%d", c.ports[(first+i)%3]))
	}
	return strings.Join(all, ",")
}

// TestThree: while servers go and come back, none of what was acknowledged is lost,
// all nodes deliver the same in the same order, and a recovery that says that it is
// whole is.
func TestThree(t *testing.T) {
	c := newTrio(t)
	big := topic.NamespaceOptions{Name: "news", HistorySize: 100000, HistoryTTL: time.Hour}
	var nodes []*node
	for i := range 3 {
		nodes = append(nodes, newNode(t, Options{URL: c.url(i), Name: number("n", i), Replicas: 3, Timeout: 2 * time.Second}, big))
	}
	for _, n := range nodes {
		n.waitReady()
	}
	var stop atomic.Bool
	var mu sync.Mutex
	acked := map[string]map[string]topic.Position{}
	tried := map[string]int{}
	var wg sync.WaitGroup
	var failed, stood atomic.Int64 // attempts; and those that were acknowledged
	for i, n := range nodes {
		for k := range 3 {
			name := number("news:t", k)
			wg.Go(func() {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for j := 0; !stop.Load(); j++ {
					<-tick.C
					text := fmt.Sprintf("n%d.%d", i, j)
					o := stored
					o.IdempotencyKey, o.IdempotencyTTL = text, time.Minute
					at, err := n.publish(name, text, o)
					mu.Lock()
					tried[name]++
					if err == nil {
						if acked[name] == nil {
							acked[name] = map[string]topic.Position{}
						}
						acked[name][text] = at
					}
					mu.Unlock()
					if err != nil {
						failed.Add(1)
						j-- // again, with the same key
					} else {
						stood.Add(1)
					}
				}
			})
		}
		wg.Go(func() { // recovers from where deliveries have brought it
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for !stop.Load() {
				<-tick.C
				name := number("news:t", rand.IntN(3))
				before := n.got.of(name)
				if len(before) == 0 {
					continue
				}
				at := before[rand.IntN(len(before))].at
				have := n.got.of(name)
				pubs, top, err := n.read(name, topic.Filter{Limit: -1, Since: &at})
				if err != nil {
					continue
				}
				i := slices.IndexFunc(have, func(g got) bool { return g.at == at })
				for j, g := range have[i+1:] {
					if j >= len(pubs) || pubs[j].Offset != g.at.Offset {
						t.Errorf("%s since %v: %d read up to %v, delivered before was %v", name, at, len(pubs), top, g)
						break
					}
				}
				last := at.Offset
				for _, p := range pubs {
					if p.Previous != last {
						t.Errorf("%s: %d follows on %d, not %d", name, p.Offset, p.Previous, last)
					}
					last = p.Offset
				}
				if top.Offset != last {
					t.Errorf("%s: read up to %d, top %v", name, last, top)
				}
			}
		})
	}
	goesOn := func() {
		t.Helper()
		before := stood.Load()
		until(t, "published to as before", func() bool { return stood.Load() >= before+300 })
	}
	for round := range 4 {
		goesOn()
		i := round % 3
		c.stop(i)
		goesOn() // with two of three
		c.start(i)
		until(t, "well", func() bool { return c.srv[i].JetStreamIsCurrent() })
	}
	stop.Store(true)
	wg.Wait()
	for _, n := range nodes {
		until(t, "ready to be written", func() bool { _, err := n.publish("news:t9", "x", stored); return err == nil })
	}
	for name, all := range acked {
		want, _, err := nodes[0].read(name, topic.Filter{Limit: -1})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, p := range want {
			if seen[string(p.Data)] {
				t.Errorf("%s: %s stands there twice", name, p.Data)
			}
			seen[string(p.Data)] = true
		}
		for text := range all {
			if !seen[text] {
				t.Errorf("%s: %s was acknowledged at %v and is lost", name, text, all[text])
			}
		}
		for k, n := range nodes {
			g := n.got.wait(t, name, len(want))
			if data(g) != text(want) {
				t.Errorf("%s: node %d delivered %d, the history has %d", name, k, len(g), len(want))
			}
			chained(t, g)
		}
		t.Logf("%s: %d acknowledged of %d, %d stored", name, len(all), tried[name], len(want))
	}
	for _, n := range nodes {
		t.Logf("failed %d, %+v", failed.Load(), n.Counts())
	}
}

// TestThreeVersions: of versions that come at once the newest stands last, and none
// fails because another is being stored.
func TestThreeVersions(t *testing.T) {
	c := newTrio(t)
	var nodes []*node
	for i := range 3 {
		nodes = append(nodes, newNode(t, Options{URL: c.url(i), Name: number("n", i), Replicas: 3}, news))
	}
	for _, n := range nodes {
		n.waitReady()
	}
	for round := range 20 {
		name := number("news:", round)
		done := make(chan error, len(nodes))
		for i, n := range nodes {
			o := stored
			o.Version = uint64(1 + i)
			n.Publish(name, &topic.Publication{Data: []byte(number("v", i))}, o, func(_ topic.Position, err error) { done <- err })
		}
		for range nodes {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		pubs, _, err := nodes[0].read(name, topic.Filter{Limit: -1})
		if err != nil || len(pubs) == 0 || string(pubs[len(pubs)-1].Data) != "v2" {
			t.Errorf("%s, %v", text(pubs), err)
		}
	}
}
