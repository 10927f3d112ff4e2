package cluster

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"perch/topic"
)

func TestStored(t *testing.T) {
	s := natsServer(t)
	a := newNode(t, Options{URL: s.ClientURL(), Name: "a"}, news).waitReady()
	b := newNode(t, Options{URL: s.ClientURL(), Name: "b"}, news).waitReady()
	var at []topic.Position
	for i := range 8 {
		n := a
		if i%2 == 1 {
			n = b
		}
		at = append(at, n.must("news:x", number("p", i)))
	}
	for _, n := range []*node{a, b} {
		all := n.got.wait(t, "news:x", 8)
		if data(all) != "p0 p1 p2 p3 p4 p5 p6 p7" {
			t.Errorf("delivered: %s", data(all))
		}
		chained(t, all)
		for i, g := range all {
			if g.at != at[i] {
				t.Errorf("%v delivered at %v, answered %v", g.data, g.at, at[i])
			}
		}
		pubs, top, err := n.read("news:x", topic.Filter{Limit: -1})
		if err != nil || text(pubs) != "p3 p4 p5 p6 p7" || top != at[7] {
			t.Errorf("history %q at %v, %v", text(pubs), top, err)
		}
		pubs, top, err = n.read("news:x", topic.Filter{Limit: 10, Since: &at[5]})
		if err != nil || text(pubs) != "p6 p7" || pubs[0].Previous != at[5].Offset || top != at[7] {
			t.Errorf("since p5: %q at %v, %v", text(pubs), top, err)
		}
		// The first one of the history follows on this one, which is gone from it.
		pubs, _, err = n.read("news:x", topic.Filter{Limit: 10, Since: &at[2]})
		if err != nil || text(pubs) != "p3 p4 p5 p6 p7" || pubs[0].Previous != at[2].Offset {
			t.Errorf("since p2: %q, %v", text(pubs), err)
		}
		pubs, _, err = n.read("news:x", topic.Filter{Limit: 1, Reverse: true})
		if err != nil || text(pubs) != "p7" {
			t.Errorf("latest: %q, %v", text(pubs), err)
		}
		pubs, _, _ = n.read("news:x", topic.Filter{Limit: 10, Since: &at[0]})
		if len(pubs) > 0 && pubs[0].Previous <= at[0].Offset {
			t.Errorf("what is gone was not noticed: %v", pubs[0])
		}
	}
}

func TestEmbedded(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(Options{Name: "e", Server: ServerOptions{Dir: dir, SyncInterval: time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	n := begin(t, l, BrokerOptions{}, 0, []topic.NamespaceOptions{news}).waitReady()
	at := n.must("news:x", "p0")
	n.must("news:x", "p1")
	n.got.wait(t, "news:x", 2)
	_ = n.Close()
	l.Close()
	n = newNode(t, Options{Name: "e", Server: ServerOptions{Dir: dir}}, news).waitReady()
	pubs, top, err := n.read("news:x", topic.Filter{Limit: 10, Since: &at})
	if err != nil || text(pubs) != "p1" || top.Epoch != at.Epoch || pubs[0].Previous != at.Offset {
		t.Errorf("after a restart: %q at %v, %v", text(pubs), top, err)
	}
}

// TestRepeated: what a stream delivers again is not delivered again.
func TestRepeated(t *testing.T) {
	a, b := pair(t, news)
	s := b.streamFor("news:x")
	sub, err := b.link.nc.SubscribeSync(s.deliver + "*")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.link.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	a.must("news:x", "1")
	m, err := sub.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	b.got.wait(t, "news:x", 1)
	s.take(m)
	a.must("news:x", "2")
	if all := b.got.wait(t, "news:x", 2); data(all) != "1 2" {
		t.Errorf("delivered: %s", data(all))
	}
}

// TestPlainOrder: what is published on one node at once has one order, there and
// on another.
func TestPlainOrder(t *testing.T) {
	a, b := pair(t)
	const publishers, each = 8, 500
	var wg sync.WaitGroup
	for k := range publishers {
		wg.Go(func() {
			for i := range each {
				if _, err := a.publish("plain", fmt.Sprintf("%d.%d", k, i), topic.PublishOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	here, there := a.got.wait(t, "plain", publishers*each), b.got.wait(t, "plain", publishers*each)
	if data(here) != data(there) {
		t.Error("in another order")
	}
}
