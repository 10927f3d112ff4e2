package cluster

import (
	"testing"
	"time"

	"perch/topic"
)

// TestAnewUnseen: a stream that is made anew while a node hears nothing, and has
// come further than the old one when it looks, is another one: nothing of it is
// given out in the old epoch, and the old epoch does not come back.
func TestAnewUnseen(t *testing.T) {
	srv := natsServer(t)
	b := newNode(t, Options{URL: srv.ClientURL(), Name: "b"}, news).waitReady()
	s := b.streamFor("news:x")
	old := b.must("news:x", "old")
	b.got.wait(t, "news:x", 1)
	b.cut(t, "news:x")
	s.mu.Lock() // its watch waits
	js := b.link.js
	if err := js.DeleteStream(t.Context(), s.name); err != nil {
		t.Fatal(err)
	}
	a := newNode(t, Options{URL: srv.ClientURL(), Name: "a"}, news).waitReady()
	var at topic.Position
	for i := range 10 {
		at = a.must("news:x", number("n", i))
	}
	s.mu.Unlock()
	epoch := func(n *node) string { return *n.streamFor("news:x").epoch.Load() }
	until(t, "of the new epoch", func() bool { return epoch(b) == at.Epoch })
	if epoch(a) != at.Epoch {
		t.Errorf("the epoch of the other node is %s, was %s", epoch(a), at.Epoch)
	}
	for _, g := range b.got.of("news:x")[1:] {
		if g.at.Epoch == old.Epoch {
			t.Errorf("%v was delivered in the epoch of the old stream", g)
		}
	}
}

// TestAnewAsked: between the making anew and the look that finds it, nobody is told
// that he has all.
func TestAnewAsked(t *testing.T) {
	srv := natsServer(t)
	l, err := Open(Options{URL: srv.ClientURL(), Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	b := begin(t, l, BrokerOptions{}, time.Hour, []topic.NamespaceOptions{news}).waitReady()
	_, old, err := b.read("news:x", topic.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	b.must("news:x", "old")
	b.got.wait(t, "news:x", 1)
	b.cut(t, "news:x")
	if err := b.link.js.DeleteStream(t.Context(), b.streamFor("news:x").name); err != nil {
		t.Fatal(err)
	}
	newNode(t, Options{URL: srv.ClientURL(), Name: "a"}, news).waitReady()
	pubs, top, err := b.read("news:x", topic.Filter{Limit: 10, Since: &old})
	if err == nil && len(pubs) == 0 && top == old {
		t.Error("a lost publication was not missed")
	}
}
