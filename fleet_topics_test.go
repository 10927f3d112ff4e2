package perch_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch/topic"
)

// TestFleetTopics: what topics can do holds over nodes.
func TestFleetTopics(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetNews, {
		Name: "state", HistorySize: 1, HistoryTTL: time.Hour, HistoryMetaTTL: time.Hour, ForceRecovery: true,
		ForceRecoveryMode: topic.RecoverCache, AutoCacheRecover: true,
	}}})
	a, b, d := c.nodes[0], c.nodes[1], c.nodes[2]
	subscribe := func(t *testing.T, n *fleetNode, name string) *subscription {
		t.Helper()
		sub := n.dial(t, centrifuge.NewProtobufClient).subscribe(t, name, centrifuge.SubscriptionConfig{})
		await(t, "subscribed", sub.subscribed)
		return sub
	}
	get := func(t *testing.T, sub *subscription, all ...string) {
		t.Helper()
		for _, want := range all {
			if got := string(await(t, want, sub.published).Data); got != fmt.Sprintf("%q", want) {
				t.Fatalf("got %s, want %q", got, want)
			}
		}
	}

	t.Run("idempotency", func(t *testing.T) {
		for _, name := range []string{"news:key", "state:key"} {
			sub := subscribe(t, b, name)
			var first topic.Position
			for i, n := range []*fleetNode{a, b, d, a} {
				at, err := n.publish(bounded(t), fleetPublish{Channel: name, Data: rawJSON("once"), IdempotencyKey: "k"})
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					first = at
				} else if at != first {
					t.Errorf("%s: %v at %s, %v at first", name, at, n.name, first)
				}
			}
			d.must(name, "end")
			get(t, sub, "once", "end")
		}
	})

	t.Run("versions", func(t *testing.T) {
		sub := subscribe(t, d, "news:version")
		for i, p := range []struct {
			n       *fleetNode
			data    string
			version uint64
		}{{a, "five", 5}, {b, "four", 4}, {d, "five again", 5}, {b, "six", 6}, {a, "end", 7}} {
			if _, err := p.n.publish(bounded(t), fleetPublish{Channel: "news:version", Data: rawJSON(p.data), Version: p.version}); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
		}
		get(t, sub, "five", "six", "end")
	})

	t.Run("removed history", func(t *testing.T) {
		sub := subscribe(t, d, "news:removed")
		for _, n := range c.nodes {
			n.must("news:removed", n.name)
		}
		before, err := d.history(bounded(t), "news:removed")
		if err != nil || len(before.Publications) != 3 {
			t.Fatalf("history: %+v, %v", before, err)
		}
		if err := a.call(bounded(t), "history_remove", map[string]any{"channel": "news:removed"}, nil); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.nodes {
			h, err := n.history(bounded(t), "news:removed")
			if err != nil || len(h.Publications) != 0 || h.Offset != before.Offset || h.Epoch != before.Epoch {
				t.Errorf("%s: %+v, %v, want nothing, at %d of %s", n.name, h, err, before.Offset, before.Epoch)
			}
		}
		b.must("news:removed", "end")
		get(t, sub, "p0", "p1", "p2", "end")
		if len(sub.subscribed)+len(sub.unsubscribed) > 0 {
			t.Error("the subscription was lost")
		}
	})

	t.Run("cache", func(t *testing.T) {
		a.must("state:a", "old")
		b.must("state:a", "new")
		for _, n := range c.nodes {
			sub := subscribe(t, n, "state:a")
			get(t, sub, "new")
			d.must("state:a", n.name)
			get(t, sub, n.name)
			a.must("state:a", "new")
		}
	})
}

// TestFleetAllKilled: every node and every server of NATS is killed, and all
// start again: nothing that was acknowledged is gone.
func TestFleetAllKilled(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetLong}})
	all := c.follow(t, "long:a", 12)
	p := c.number("long:a", 3*time.Millisecond)
	p.further(t, 100)
	for _, n := range c.nodes {
		n.kill()
	}
	for _, s := range c.nats.Servers {
		s.Kill()
	}
	for _, n := range c.nodes {
		n.start()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*fleetPatience)
	defer cancel()
	if err := c.nats.Restore(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		n.waitReady()
	}
	p.further(t, 50)
	complete(t, all, p.end(t))
}
