package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"perch/topic"
)

func pair(t *testing.T, all ...topic.NamespaceOptions) (a, b *node) {
	s := natsServer(t)
	return newNode(t, Options{URL: s.ClientURL(), Name: "a"}, all...).waitReady(),
		newNode(t, Options{URL: s.ClientURL(), Name: "b"}, all...).waitReady()
}

// TestIdempotent: a key does its work on whichever node it comes again.
func TestIdempotent(t *testing.T) {
	a, b := pair(t, news)
	o := stored
	o.IdempotencyKey, o.IdempotencyTTL = "key.1 *", time.Minute
	first, err := a.publish("news:x", "1", o)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{b, a} {
		if at, err := n.publish("news:x", "1", o); err != nil || at != first {
			t.Errorf("again: %v, %v, want %v", at, err, first)
		}
	}
	other, err := b.publish("news:y", "1", o)
	if err != nil || other == first {
		t.Errorf("another topic: %v, %v", other, err)
	}
	a.must("news:x", "2")
	for _, n := range []*node{a, b} {
		if all := n.got.wait(t, "news:x", 2); data(all) != "1 2" {
			t.Errorf("delivered: %s", data(all))
		}
	}
}

// TestVersion: what is not newer is dropped, on whichever node it comes.
func TestVersion(t *testing.T) {
	a, b := pair(t, news)
	put := func(n *node, text string, version uint64, epoch string) topic.Position {
		t.Helper()
		o := stored
		o.Version, o.VersionEpoch = version, epoch
		at, err := n.publish("news:x", text, o)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	five := put(a, "5", 5, "e")
	if at := put(b, "4", 4, "e"); at != five {
		t.Errorf("an older one: at %v, want %v", at, five)
	}
	if at := put(b, "5 again", 5, ""); at != five {
		t.Errorf("the same one: at %v, want %v", at, five)
	}
	six := put(b, "6", 6, "e")
	other := put(a, "1 of f", 1, "f")
	if six.Offset <= five.Offset || other.Offset <= six.Offset {
		t.Errorf("at %v, %v, %v", five, six, other)
	}
	// All at once: the newest wins, and none that is older comes behind it.
	const many = 40
	done := make(chan error, many)
	for i := range many {
		o := stored
		o.Version, o.VersionEpoch = uint64(10+i), "f"
		n := a
		if i%2 == 0 {
			n = b
		}
		n.Publish("news:z", &topic.Publication{Data: []byte(number("v", 10+i))}, o, func(_ topic.Position, err error) { done <- err })
	}
	lost := 0
	for range many {
		if err := <-done; err != nil {
			if !errors.Is(err, topic.ErrUnavailable) {
				t.Error(err)
			}
			lost++
		}
	}
	if lost == many {
		t.Fatal("none was stored")
	}
	pubs, _, err := a.read("news:z", topic.Filter{Limit: -1})
	if err != nil || len(pubs) == 0 {
		t.Fatalf("%v, %v", pubs, err)
	}
	for i := 1; i < len(pubs); i++ {
		if string(pubs[i].Data) <= string(pubs[i-1].Data) {
			t.Errorf("an older version stands behind a newer one: %s", text(pubs))
		}
	}
}

// TestRemove: a removed history is gone, and yet who had all of it has missed
// nothing, and who had not is told.
func TestRemove(t *testing.T) {
	a, b := pair(t, news)
	first := a.must("news:x", "secret 1")
	last := a.must("news:x", "secret 2")
	done := make(chan error, 1)
	b.RemoveHistory("news:x", func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{a, b} {
		pubs, top, err := n.read("news:x", topic.Filter{Limit: -1})
		if err != nil || len(pubs) != 0 || top != last {
			t.Errorf("removed: %q at %v, %v, want nothing at %v", text(pubs), top, err, last)
		}
	}
	after := b.must("news:x", "3")
	for _, n := range []*node{a, b} {
		all := n.got.wait(t, "news:x", 3)
		chained(t, all)
		if all[2].prev != last.Offset {
			t.Errorf("%v does not follow on %v", all[2], last)
		}
		pubs, top, err := n.read("news:x", topic.Filter{Limit: 10, Since: &last})
		if err != nil || text(pubs) != "3" || pubs[0].Previous != last.Offset || top != after {
			t.Errorf("since the last: %q at %v, %v", text(pubs), top, err)
		}
		pubs, _, err = n.read("news:x", topic.Filter{Limit: 10, Since: &first})
		if err != nil || len(pubs) != 1 || pubs[0].Previous <= first.Offset {
			t.Errorf("since the first: %q, %v: what was removed was not noticed", text(pubs), err)
		}
	}
	b.RemoveHistory("news:nothing", func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

// TestQuietTopic: where a topic stands that has no publication is a place in the
// stream, and all that follows is found from there.
func TestQuietTopic(t *testing.T) {
	a, b := pair(t, news)
	for i := range 20 {
		a.must("news:loud", number("l", i))
	}
	b.got.wait(t, "news:loud", 20)
	_, at, err := b.read("news:quiet", topic.Filter{})
	if err != nil || at.Epoch == "" {
		t.Fatalf("at %v, %v", at, err)
	}
	for i := range 20 {
		a.must("news:loud", number("m", i))
	}
	if pubs, top, err := a.read("news:quiet", topic.Filter{Limit: 10, Since: &at}); err != nil || len(pubs) > 0 || top != at {
		t.Errorf("nothing came: %q at %v, %v, want %v", text(pubs), top, err, at)
	}
	q := a.must("news:quiet", "q")
	pubs, top, err := b.read("news:quiet", topic.Filter{Limit: 10, Since: &at})
	if err != nil || text(pubs) != "q" || pubs[0].Previous > at.Offset || top != q {
		t.Errorf("one came: %q at %v, %v", text(pubs), top, err)
	}
	for i := range 5 {
		a.must("news:quiet", number("q", i))
	}
	if pubs, _, _ := b.read("news:quiet", topic.Filter{Limit: 10, Since: &at}); len(pubs) > 0 && pubs[0].Previous <= at.Offset {
		t.Errorf("as many came as are kept, and %q may not be all", text(pubs))
	}
	if _, _, err := b.read("news:quiet", topic.Filter{Limit: 10, Since: &topic.Position{Offset: at.Offset, Epoch: "other"}}); !errors.Is(err, topic.ErrUnrecoverable) {
		t.Errorf("of another epoch: %v", err)
	}
}

// TestExpired: what is older than a history's time is not given out, and who has
// missed it is told; where the topic stands is known for longer.
func TestExpired(t *testing.T) {
	brief := topic.NamespaceOptions{Name: "brief", HistorySize: 5, HistoryTTL: 300 * time.Millisecond, HistoryMetaTTL: time.Hour}
	a, b := pair(t, brief)
	first := a.must("brief:x", "1")
	last := a.must("brief:x", "2")
	until(t, "over", func() bool {
		pubs, _, err := b.read("brief:x", topic.Filter{Limit: 10})
		return err == nil && len(pubs) == 0
	})
	if pubs, top, err := b.read("brief:x", topic.Filter{Limit: 10, Since: &last}); err != nil || len(pubs) > 0 || top != last {
		t.Errorf("since the last: %q at %v, %v", text(pubs), top, err)
	}
	a.must("brief:x", "3")
	pubs, _, err := b.read("brief:x", topic.Filter{Limit: 10, Since: &first})
	if err != nil || text(pubs) != "3" || pubs[0].Previous != last.Offset {
		t.Errorf("since the first: %q, %v", text(pubs), err)
	}
}

// TestLongHistory is read in more than one batch, from the front and the back.
func TestLongHistory(t *testing.T) {
	long := topic.NamespaceOptions{Name: "long", HistorySize: 3 * readBatch, HistoryTTL: time.Hour}
	a, b := pair(t, long)
	const n = 2*readBatch + 100
	done := make(chan error, n)
	var want []string
	for i := range n {
		want = append(want, number("p", i))
		a.Publish("long:x", &topic.Publication{Data: []byte(want[i])}, stored, func(_ topic.Position, err error) { done <- err })
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	b.got.wait(t, "long:x", n)
	all, _, err := b.read("long:x", topic.Filter{Limit: -1})
	if err != nil || text(all) != strings.Join(want, " ") {
		t.Fatalf("%d of %d, %v", len(all), n, err)
	}
	at := topic.Position{Offset: all[50].Offset, Epoch: *b.streamFor("long:x").epoch.Load()}
	some, top, err := b.read("long:x", topic.Filter{Limit: 700, Since: &at})
	if err != nil || text(some) != strings.Join(want[51:751], " ") || top.Offset != all[n-1].Offset {
		t.Errorf("700 since: %d, top %v, %v", len(some), top, err)
	}
	back, _, err := b.read("long:x", topic.Filter{Limit: 2, Reverse: true, Since: &at})
	if err != nil || text(back) != "p49 p48" {
		t.Errorf("backwards: %q, %v", text(back), err)
	}
}

// TestTorn: where a topic loses publications between two batches of one reading,
// the second does not follow on the first.
func TestTorn(t *testing.T) {
	a, _ := pair(t, news)
	for i := range 8 {
		a.must("news:x", number("p", i))
	}
	s := a.streamFor("news:x")
	r := &reading{s: s, subject: s.stored + token("news:x"), f: topic.Filter{Limit: -1}}
	rows, err := waitFor(t.Context(), func(done func([]row, error)) {
		s.batch(r.subject, 1, 10, readBytes, func(rows []row, _ bool, err error) { done(rows, err) })
	})
	if err != nil || len(rows) != 6 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	r.rows = r.follow(rows[:2])
	if more := r.follow(append([]row(nil), rows[1:4]...)); len(more) != 2 || more[0].torn || more[0].seq != rows[2].seq {
		t.Errorf("a batch that begins with the last one: %+v", more)
	}
	if more := r.follow(append([]row(nil), rows[3:]...)); len(more) != 3 || !more[0].torn {
		t.Errorf("a batch before which some have gone: %+v", more)
	} else {
		r.rows = append(r.rows, more...)
	}
	var pubs []*topic.Publication
	r.done = func(p []*topic.Publication, _ topic.Position, _ error) { pubs = p }
	r.give(true)
	// p2 is kept beyond the history.
	if text(pubs) != "p3 p5 p6 p7" || pubs[1].Previous <= pubs[0].Offset || pubs[2].Previous != pubs[1].Offset {
		t.Errorf("%s: %v follows on %v", text(pubs), pubs[1].Offset, pubs[1].Previous)
	}
}

// TestOldCopyAsked: a client whose place a restored copy has not reached is not told
// that it has all.
func TestOldCopyAsked(t *testing.T) {
	l := linkTo(t, Options{URL: natsServer(t).ClientURL()})
	n := begin(t, l, BrokerOptions{}, time.Hour, []topic.NamespaceOptions{news}).waitReady()
	at := n.must("news:x", "1")
	n.got.wait(t, "news:x", 1)
	s := n.streamFor("news:x")
	s.at.Add(100) // it had been delivered before
	since := topic.Position{Offset: at.Offset + 50, Epoch: at.Epoch}
	if pubs, top, err := n.read("news:x", topic.Filter{Limit: -1, Since: &since}); err == nil {
		t.Errorf("recovered %v at %v", text(pubs), top)
	}
}
