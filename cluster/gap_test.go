package cluster

import (
	"testing"

	"perch/topic"
)

// cut keeps what the stream delivers from n until the end is called: a time
// without a connection.
func (n *node) cut(t *testing.T, name string) (mend func()) {
	t.Helper()
	s := n.streamFor(name)
	if err := s.sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	if err := n.link.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		sub, err := n.link.nc.Subscribe(s.deliver+"*", s.take)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.link.nc.Flush(); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.sub = sub
		s.mu.Unlock()
	}
}

// TestGapBehindUndone: what a loop had no room for is missed by its subscribers,
// though what follows had to be read.
func TestGapBehindUndone(t *testing.T) {
	a, b := pair(t, news)
	at := a.must("news:x", "1")
	b.got.wait(t, "news:x", 1)
	full := func(on bool) {
		b.got.mu.Lock()
		b.got.full = on
		b.got.mu.Unlock()
	}
	full(true)
	a.must("news:x", "2")
	until(t, "given up", func() bool { return b.Counts().Undone == 1 })
	full(false)
	mend := b.cut(t, "news:x")
	a.must("news:x", "3")
	mend()
	a.must("news:x", "4")
	all := b.got.wait(t, "news:x", 3)
	if data(all) != "1 3 4" || all[1].prev <= at.Offset {
		t.Errorf("delivered %v: 2 is missing, and nobody sees it", all)
	}
}

// TestGapDiscarded: what the stream has dropped before it could be read is missed,
// also where the topic has nothing else in the stream.
func TestGapDiscarded(t *testing.T) {
	a, b := pair(t, news)
	at := a.must("news:x", "1")
	b.got.wait(t, "news:x", 1)
	mend := b.cut(t, "news:x")
	a.must("news:x", "2")
	last := a.must("news:y", "y")
	st, err := a.link.js.Stream(t.Context(), a.streamFor("news:x").name)
	if err != nil {
		t.Fatal(err)
	}
	for seq := range last.Offset { // as a bound of bytes does
		_ = st.DeleteMsg(t.Context(), seq)
	}
	mend()
	a.must("news:y", "z")
	b.got.wait(t, "news:y", 2)
	a.must("news:x", "3")
	all := b.got.wait(t, "news:x", 2)
	if data(all) != "1 3" || all[1].prev <= at.Offset {
		t.Errorf("delivered %v: 2 is missing, and nobody sees it", all)
	}
}

// TestSizeGrows: what a smaller history has dropped stays missed when it has grown,
// on the node that changed it and on others.
func TestSizeGrows(t *testing.T) {
	large := news
	large.HistorySize = 50
	for _, c := range []struct {
		name          string
		first, second topic.NamespaceOptions
	}{{"grows", news, large}, {"shrinks", large, news}} {
		t.Run(c.name, func(t *testing.T) {
			s := natsServer(t)
			a := newNode(t, Options{URL: s.ClientURL(), Name: "a"}, c.first).waitReady()
			var first topic.Position
			var b *node
			if c.name == "shrinks" { // of another node: this one still has the large one
				b = newNode(t, Options{URL: s.ClientURL(), Name: "b"}, c.second).waitReady()
			}
			_, quiet, err := a.read("news:x", topic.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			first = a.must("news:x", "0")
			for i := range 20 {
				a.must("news:x", number("p", i))
			}
			if b == nil {
				b = newNode(t, Options{URL: s.ClientURL(), Name: "b"}, c.second).waitReady()
			}
			for _, n := range []*node{a, b} {
				for _, at := range []topic.Position{first, quiet} {
					pubs, _, err := n.read("news:x", topic.Filter{Limit: 100, Since: &at})
					if err != nil || len(pubs) == 0 || pubs[0].Previous <= at.Offset {
						t.Errorf("since %v: %d publications of 20, the first follows on %v, %v", at, len(pubs), pubs[0].Previous, err)
					}
				}
			}
		})
	}
}
