package cluster

import (
	"math"
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

// TestGapRemoved: who has missed some of a history that was removed meanwhile is told
// so by what follows.
func TestGapRemoved(t *testing.T) {
	a, b := pair(t, news)
	at := a.must("news:x", "1")
	b.got.wait(t, "news:x", 1)
	mend := b.cut(t, "news:x")
	a.must("news:x", "2")
	removed := make(chan error, 1)
	a.RemoveHistory("news:x", func(err error) { removed <- err })
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
	a.must("news:x", "3")
	mend()
	a.must("news:y", "z")
	all := b.got.wait(t, "news:x", 2)
	if data(all) != "1 3" || all[1].prev <= at.Offset {
		t.Errorf("delivered %v after %v: 2 is missing, and nobody sees it", all, at)
	}
}

// TestGapGrown: of a time in which less was kept, less than is kept now may be all
// that is left.
func TestGapGrown(t *testing.T) {
	large := news
	large.HistorySize = 50
	a, b := pair(t, news)
	first := a.must("news:x", "0")
	b.got.wait(t, "news:x", 1)
	s := b.streamFor("news:x")
	s.mu.Lock() // nothing is taken until it is given back
	for i := range 12 {
		a.must("news:x", number("p", i))
	}
	a.SetNamespaces(namespaces(t, []topic.NamespaceOptions{large}))
	until(t, "grown", func() bool {
		st, err := a.link.js.Stream(t.Context(), s.name)
		if err != nil {
			return false
		}
		_, known := leastOf(st.CachedInfo().Config.Metadata)
		return st.CachedInfo().Config.MaxMsgsPerSubject == 51 && known < math.MaxUint64
	})
	b.SetNamespaces(namespaces(t, []topic.NamespaceOptions{large}))
	ok := s.repairLocked(first.Offset + 12)
	s.mu.Unlock()
	if !ok {
		t.Fatal("not repaired")
	}
	if all := b.got.wait(t, "news:x", 7); all[1].prev <= first.Offset {
		t.Errorf("%v does not tell that others are gone", all)
	}
}

// TestGapOfMany: what nobody wants is passed over, each of as many topics.
func TestGapOfMany(t *testing.T) {
	a, b := pair(t, news)
	a.must("news:x", "1")
	b.got.wait(t, "news:x", 1)
	mend := b.cut(t, "news:x")
	b.got.mu.Lock()
	b.got.want = map[string]bool{"news:x": true}
	b.got.mu.Unlock()
	for i := range 200 {
		a.must(number("news:", i), "2")
	}
	asked := b.link.nc.Stats().OutMsgs
	mend()
	a.must("news:x", "3")
	if all := b.got.wait(t, "news:x", 2); data(all) != "1 3" {
		t.Errorf("delivered %v", all)
	}
	if n := b.link.nc.Stats().OutMsgs - asked; n > 100 {
		t.Errorf("%d questions for one topic that is wanted", n)
	}
}
