package cluster

import (
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"perch/topic"
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
	r, w, s := cutSite(t)
	for i := 1; i < 400; i++ {
		s.put("news:x", number("a", i+1))
		r.hub.put("news:x", number("h", i+1))
	}
	// What is published here is delivered here, whatever the hub does.
	s.got.wait(t, "news:x", 401)
	until(t, "counted", func() bool { return s.Counts().Leaf.Waiting == 399 })
	w.Heal()
	same(t, "news:x", 800, s.node, r.hub)
	until(t, "nothing waiting", func() bool { return s.Counts().Leaf.Waiting == 0 })
}

// What waits for the hub is not dropped with the site's history.
func TestLeafShortHistory(t *testing.T) {
	r := newRig(t)
	r.ns = []topic.NamespaceOptions{{Name: "news", HistorySize: 5, HistoryTTL: time.Hour}}
	w := r.wan()
	s := r.site("berlin", w, LeafOptions{})
	s.waitUp(true)
	w.Cut()
	s.waitUp(false)
	const n = 500
	for i := range n {
		if _, err := s.publish("news:x", number("a", i+1), stored); err != nil {
			t.Fatal(err)
		}
	}
	w.Heal()
	same(t, "news:x", n, r.hub)
	if all := r.hub.got.wait(t, "news:x", n); len(all) != n {
		t.Errorf("%d delivered at the hub", len(all))
	}
}

// A site begins without its hub, and goes on across a restart of it.
func TestLeafWithoutHub(t *testing.T) {
	r := newRig(t)
	w := r.wan()
	w.Cut()
	s := r.site("berlin", w, LeafOptions{})
	for i := range 10 {
		s.put("news:x", number("a", i+1))
	}
	s.got.wait(t, "news:x", 10)
	w.Heal()
	same(t, "news:x", 10, s.node, r.hub)
	// The hub's server goes away, and comes back with what it had.
	dir, port := r.nats.StoreDir(), r.nats.Addr().(*net.TCPAddr).Port
	r.nats.Shutdown()
	r.nats.WaitForShutdown()
	s.waitUp(false)
	for i := 10; i < 20; i++ {
		s.put("news:x", number("a", i+1))
	}
	r.nats = hubServer(t, strings.TrimSuffix(dir, "/jetstream"), port, r.port)
	same(t, "news:x", 20, s.node, r.hub)
}

// Answers that are lost make nothing come twice, at the hub or down here.
func TestLeafLostAnswers(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			r, w, s := cutSite(t)
			for i := 1; i < 50; i++ {
				s.put("news:x", number("a", i+1))
				s.put("news:y", number("a", i))
			}
			w.Deaf(headerCommit)
			w.Heal()
			r.hub.got.wait(t, "news:y", 49) // the hub has them all, and the site does not know
			if c := s.Counts().Leaf; c.Waiting == 0 {
				t.Errorf("%+v", c)
			}
			if restart {
				s.kill()
			}
			w.Cut()
			r.hub.put("news:x", "h2")
			w.Heal()
			if restart {
				s.start(t)
			}
			until(t, "nothing waiting", func() bool { return s.Counts().Leaf.Waiting == 0 })
			same(t, "news:x", 52, r.hub)
			same(t, "news:y", 49, r.hub)
			until(t, "down", func() bool { return len(s.all("news:x")) == 52 })
			ordered(t, "site", s.all("news:x"))
		})
	}
}

// A site that was ended between its two writes forwards what it has stored.
func TestLeafBetweenWrites(t *testing.T) {
	r := newRig(t)
	s := r.site("berlin", r.wan(), LeafOptions{})
	s.waitUp(true)
	s.put("news:x", "a1")
	st := s.streamFor("news:x")
	for i := 1; i < 4; i++ {
		data := encode("news:x", &topic.Publication{Data: []byte(number("a", i+1))}, &longStored)
		if _, err := st.storeSync(st.stored+token("news:x"), nil, data); err != nil {
			t.Fatal(err)
		}
	}
	s.got.wait(t, "news:x", 4)
	s.kill()
	s.start(t)
	s.put("news:x", "a5")
	same(t, "news:x", 5, r.hub)
}

// What is not known to be stored is found out before anything else is taken.
func TestLeafUnknownOutcome(t *testing.T) {
	r := newRig(t)
	s := r.site("berlin", r.wan(), LeafOptions{})
	s.waitUp(true)
	s.put("news:x", "a1")
	st := s.streamFor("news:x")
	u := s.leaf.up
	key := longStored
	key.IdempotencyKey = "k"
	data := encode("news:x", &topic.Publication{Data: []byte("a2")}, &key)
	h := nats.Header{headerMsgID: {token("news:x") + "." + token("k")}}
	if _, err := st.storeSync(st.stored+token("news:x"), h, data); err != nil {
		t.Fatal(err)
	}
	// Its answer did not come.
	u.mu.Lock()
	st.kept.flying++
	u.air++
	u.mu.Unlock()
	answered := make(chan error, 1)
	u.stored(st, ack{}, ErrUnavailable, h, data, 1, func(_ uint64, err error) { answered <- err })
	if err := <-answered; !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	until(t, "taken", func() bool { _, err := s.publish("news:x", "a2", key); return err == nil })
	s.put("news:x", "a3")
	same(t, "news:x", 3, s.node, r.hub)
}

// Nothing is answered that does not wait for the hub.
func TestLeafNothingWaits(t *testing.T) {
	r := newRig(t)
	s := r.site("berlin", r.wan(), LeafOptions{})
	if err := s.link.js.DeleteStream(t.Context(), s.leaf.up.s.name); err != nil {
		t.Fatal(err)
	}
	if _, err := s.publish("news:x", "a1", longStored); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

func TestLeafFull(t *testing.T) {
	const room = 64 << 10
	big := strings.Repeat("0", 1000)
	number := func(i int) string { return fmt.Sprintf("a%s%d", big, i) }
	t.Run("refuse", func(t *testing.T) {
		r := newRig(t)
		w := r.wan()
		w.Cut()
		s := r.site("berlin", w, LeafOptions{StoreBytes: room})
		n := 0
		for ; n < 1000; n++ {
			if _, err := s.publish("news:x", number(n+1), longStored); err != nil {
				if !errors.Is(err, topic.ErrFull) {
					t.Fatal(err)
				}
				break
			}
		}
		if n < 40 || n > 64 {
			t.Errorf("%d publications of 1 kB have room in 64 KiB", n)
		}
		if c := s.Counts().Leaf; c.Refused != 1 || c.WaitingBytes > room {
			t.Errorf("%+v", c)
		}
		if err := s.removeNow("news:y"); err != nil {
			t.Errorf("nothing to remove: %v", err)
		}
		if got := len(s.all("news:x")); got != n {
			t.Errorf("%d instead of %d here: what is refused is not stored", got, n)
		}
		w.Heal()
		same(t, "news:x", n, s.node, r.hub)
		until(t, "room", func() bool { _, err := s.publish("news:x", number(n+1), longStored); return err == nil })
		same(t, "news:x", n+1, s.node, r.hub)
	})
	t.Run("drop oldest", func(t *testing.T) {
		r := newRig(t)
		w := r.wan()
		s := r.site("berlin", w, LeafOptions{StoreBytes: room, DropOldest: true})
		s.put("news:y", "a1")
		same(t, "news:y", 1, s.node, r.hub)
		until(t, "known", func() bool { return s.Counts().Leaf.Waiting == 0 })
		w.Cut()
		s.waitUp(false)
		const n = 300
		for i := range n {
			s.put("news:x", number(i+1))
		}
		if got := len(s.all("news:x")); got != n {
			t.Errorf("%d instead of %d here", got, n)
		}
		w.Heal()
		until(t, "the newest", func() bool {
			all := r.hub.all("news:x")
			return len(all) > 0 && all[len(all)-1] == number(n)
		})
		until(t, "counted", func() bool { return s.Counts().Leaf.Waiting == 0 })
		all := r.hub.all("news:x")
		ordered(t, "hub", all)
		c := s.Counts().Leaf
		if int(c.Dropped)+len(all) != n || c.Dropped < 200 {
			t.Errorf("%d at the hub, %+v", len(all), c)
		}
		s.kill()
		s.start(t)
		s.put("news:x", number(n+1))
		until(t, "the next", func() bool { have := r.hub.all("news:x"); return have[len(have)-1] == number(n+1) })
		if again := r.hub.all("news:x"); len(again) != len(all)+1 {
			t.Errorf("%d at the hub, then %d", len(all), len(again))
		}
		if all := r.hub.all("news:y"); len(all) != 1 {
			t.Errorf("what the hub had came again: %v", all)
		}
	})
}

func (n *node) removeNow(name string) error {
	c := make(chan error, 1)
	n.RemoveHistory(name, func(err error) { c <- err })
	return <-c
}

func TestLeafTwoSites(t *testing.T) {
	r := newRig(t)
	wa, wb := r.wan(), r.wan()
	a, b := r.site("aachen", wa, LeafOptions{}), r.site("berlin", wb, LeafOptions{})
	a.waitUp(true)
	b.waitUp(true)
	n := 0
	round := func(k int) {
		for range k {
			n++
			a.put("news:x", number("a", n))
			b.put("news:x", number("b", n))
			r.hub.put("news:x", number("h", n))
		}
	}
	round(20)
	same(t, "news:x", 60, r.hub, a.node, b.node)
	wa.Cut()
	a.waitUp(false)
	round(20)
	same(t, "news:x", 100, r.hub, b.node)
	wb.Cut()
	b.waitUp(false)
	round(20)
	b.kill()
	wa.Heal()
	same(t, "news:x", 160, r.hub, a.node)
	b.start(t)
	wb.Heal()
	same(t, "news:x", 180, r.hub, a.node)
	until(t, "all at the last site", func() bool { return len(b.all("news:x")) == 180 })
	// What a site knows of itself is not noted all the time: nothing comes again.
	b.kill()
	b.start(t)
	round(1)
	same(t, "news:x", 183, r.hub, a.node)
	until(t, "all at the last site", func() bool { return len(b.all("news:x")) == 183 })
	ordered(t, "berlin", b.all("news:x"))
}

func TestLeafWhatCrosses(t *testing.T) {
	r := newRig(t)
	w := r.wan()
	s := r.site("berlin", w, LeafOptions{})
	s.waitUp(true)
	full := &topic.Publication{
		Data: []byte(`{"a":1}`), Tags: map[string]string{"k": "v"},
		Info: &topic.ClientInfo{User: "u", Client: "c", ConnInfo: []byte(`{}`), ChanInfo: []byte(`[]`)},
	}
	for _, way := range []struct {
		name     string
		from, to *node
	}{{"up", s.node, r.hub}, {"down", r.hub, s.node}} {
		t.Run(way.name, func(t *testing.T) {
			name := "news:" + way.name
			c := make(chan error, 1)
			way.from.Publish(name, full, longStored, func(_ topic.Position, err error) { c <- err })
			if err := <-c; err != nil {
				t.Fatal(err)
			}
			way.to.got.wait(t, name, 1)
			pubs, _, err := way.to.read(name, topic.Filter{Limit: -1})
			if err != nil || len(pubs) != 1 || !reflect.DeepEqual(pubs[0].Tags, full.Tags) || !reflect.DeepEqual(pubs[0].Info, full.Info) ||
				string(pubs[0].Data) != string(full.Data) {
				t.Errorf("%+v, %v", pubs, err)
			}
			// A key names one publication wherever it comes in.
			key := longStored
			key.IdempotencyKey = "once"
			name += "-key"
			if _, err := way.from.publish(name, "a1", key); err != nil {
				t.Fatal(err)
			}
			way.to.got.wait(t, name, 1)
			if _, err := way.to.publish(name, "a1", key); err != nil {
				t.Fatal(err)
			}
			way.to.put(name, "b1")
			same(t, name, 2, way.from, way.to)
			// A history that is removed is removed there, too.
			if err := way.from.removeNow(name); err != nil {
				t.Fatal(err)
			}
			until(t, "removed", func() bool { return len(way.to.all(name)) == 0 })
			way.from.put(name, "a2")
			same(t, name, 1, way.from, way.to)
		})
	}
	t.Run("versions", func(t *testing.T) {
		w.Cut()
		s.waitUp(false)
		version := func(n *node, v uint64) {
			o := longStored
			o.Version = v
			if _, err := n.publish("news:state", fmt.Sprint("v", v), o); err != nil {
				t.Fatal(err)
			}
		}
		// The newest wins on both sides, whoever had it.
		version(s.node, 1)
		version(r.hub, 2)
		version(s.node, 5)
		version(r.hub, 3)
		w.Heal()
		for _, n := range []*node{s.node, r.hub} {
			until(t, "the newest at "+n.link.Name(), func() bool {
				all := n.all("news:state")
				return all[len(all)-1] == "v5"
			})
		}
		until(t, "nothing waiting", func() bool { return s.Counts().Leaf.Waiting == 0 })
		if all := r.hub.all("news:state"); strings.Join(all, " ") != "v2 v3 v5" {
			t.Errorf("hub: %v", all)
		}
		r.hub.put("news:end", "h1") // comes behind the rest
		s.got.wait(t, "news:end", 1)
		if all := s.all("news:state"); strings.Join(all, " ") != "v1 v5" {
			t.Errorf("site: %v", all)
		}
	})
}

// A site that was ended knows what it has of the hub, also where ids are forgotten.
func TestLeafPlace(t *testing.T) {
	r := newRig(t)
	w := r.wan()
	s := r.site("berlin", w, LeafOptions{})
	s.kill()
	s.more.IdempotencyTTL = leastDuplicates
	s.start(t)
	s.waitUp(true)
	n := 0
	for range 3 {
		for range 20 {
			n++
			r.hub.put("news:x", number("h", n))
		}
		until(t, "all at the site", func() bool { return len(s.all("news:x")) == n })
		s.kill()
		killed := time.Now()
		until(t, "ids forgotten", func() bool { return time.Since(killed) > 2*leastDuplicates })
		s.start(t)
	}
	r.hub.put("news:x", number("h", n+1))
	same(t, "news:x", n+1, r.hub)
	until(t, "all at the site", func() bool { return len(s.all("news:x")) > n })
	if all := s.all("news:x"); len(all) != n+1 {
		t.Errorf("%d instead of %d", len(all), n+1)
	}
	ordered(t, "site", s.all("news:x"))
}

// A hub that keeps no history of a namespace holds the rest up no longer than until
// it does.
func TestLeafHubWithoutNamespace(t *testing.T) {
	r := newRig(t)
	r.ns = append(r.ns, topic.NamespaceOptions{Name: "more", HistorySize: 100, HistoryTTL: time.Hour})
	s := r.site("berlin", r.wan(), LeafOptions{})
	s.waitUp(true)
	s.put("more:x", "a1")
	s.put("news:x", "a1")
	r.hub.SetNamespaces(namespaces(t, r.ns))
	same(t, "more:x", 1, s.node, r.hub)
	same(t, "news:x", 1, s.node, r.hub)
	r.hub.put("more:x", "h1")
	same(t, "more:x", 2, s.node, r.hub)
}

// Without a history, publications cross while the uplink is there.
func TestLeafAtMostOnce(t *testing.T) {
	r := newRig(t)
	a, b := r.site("aachen", r.wan(), LeafOptions{}), r.site("berlin", r.wan(), LeafOptions{})
	a.waitUp(true)
	b.waitUp(true)
	for i, n := range []*node{a.node, b.node, r.hub} {
		name := number("plain", i)
		// Interest crosses by itself, a moment after the uplink is there.
		until(t, "crossing", func() bool {
			if _, err := n.publish(name, "x", topic.PublishOptions{}); err != nil {
				t.Fatal(err)
			}
			for _, m := range []*node{a.node, b.node, r.hub} {
				if len(m.got.of(name)) == 0 {
					return false
				}
			}
			return true
		})
	}
}
