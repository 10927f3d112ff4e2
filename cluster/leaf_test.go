package cluster

import (
	"testing"
)

func TestLeafBothWays(t *testing.T) {
	r := newRig(t)
	s := r.site("berlin", r.wan(), LeafOptions{})
	s.waitUp(true)
	for i := range 20 {
		s.put("news:x", number("a", i+1))
		r.hub.put("news:x", number("h", i+1))
		s.put("news:y", number("a", i+1))
	}
	same(t, "news:x", 40, s.node, r.hub)
	same(t, "news:y", 20, s.node, r.hub)
	c := s.Counts().Leaf
	if c.Received != 20 {
		t.Errorf("%+v", c)
	}
	until(t, "nothing waiting", func() bool { c := s.Counts().Leaf; return c.Waiting == 0 && c.Forwarded == 40 })
}

func TestLeafCut(t *testing.T) {
	r := newRig(t)
	w := r.wan()
	s := r.site("berlin", w, LeafOptions{})
	s.waitUp(true)
	s.put("news:x", "a1")
	r.hub.put("news:x", "h1")
	same(t, "news:x", 2, s.node, r.hub)
	w.cut()
	s.waitUp(false)
	for i := 1; i < 400; i++ {
		s.put("news:x", number("a", i+1))
		r.hub.put("news:x", number("h", i+1))
	}
	// What is published here is delivered here, whatever the hub does.
	s.got.wait(t, "news:x", 401)
	if c := s.Counts().Leaf; c.Waiting != 399 {
		t.Errorf("%+v", c)
	}
	w.mend()
	same(t, "news:x", 800, s.node, r.hub)
	until(t, "nothing waiting", func() bool { return s.Counts().Leaf.Waiting == 0 })
}
