package topic

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"perch/session"
)

func TestLate(t *testing.T) {
	at := func(n uint64) Position { return Position{n, "e"} }
	other := Position{7, "other"}
	type check struct {
		offset uint64 // of the subscriber
		top    Position
		late   bool
	}
	for _, tt := range []struct {
		name   string
		checks []check
	}{
		{"where it should be", []check{{7, at(7), false}, {7, at(7), false}}},
		{"on its way", []check{{6, at(7), false}, {7, at(7), false}}},
		{"on its way, always", []check{{6, at(7), false}, {7, at(9), false}, {9, at(12), false}}},
		{"stands still", []check{{6, at(7), false}, {6, at(7), true}}},
		{"falls behind", []check{{6, at(9), false}, {8, at(12), true}}},
		{"ahead of an old answer", []check{{9, at(7), false}, {9, at(7), false}}},
		{"caught up between", []check{{6, at(7), false}, {7, at(7), false}, {7, at(8), false}, {8, at(8), false}}},
		{"another epoch", []check{{6, other, false}, {6, other, true}}},
		{"an old answer of another epoch", []check{{6, other, false}, {6, at(6), false}, {6, other, false}}},
		{"another epoch, then behind", []check{{6, other, false}, {6, at(7), false}, {6, at(7), true}}},
		{"behind, then another epoch", []check{{6, at(7), false}, {6, other, false}, {6, other, true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := &tracking{epoch: "e"}
			for i, c := range tt.checks {
				k.offset = c.offset
				if k.late(c.top) != c.late {
					t.Errorf("check %d: late %v", i, !c.late)
				}
			}
		})
	}
}

// The comparison reaches each subscriber with a position on each loop, in slices
// and while others go, and tells of those that stand still, no others.
func TestComparison(t *testing.T) {
	const each = 2*presenceSlice + 10
	r := newRecoverRig(t, false, Options{})
	at := r.publish("x")
	loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
	lost := make(map[*session.Session]bool)
	r.onEnd = func(s *session.Session, name string) {
		lost[s] = true
		r.Unsubscribe(s, name)
	}
	var good, bad, plain, held []*fakePeer
	for _, l := range loops {
		for i := range each {
			p := newFakePeer(r.Topics, l, session.EncodingJSON)
			switch i % 4 {
			case 0:
				r.live(p, SubscribeOptions{})
				bad = append(bad, p)
				memberOf(&p.s).find("a").track.offset = 0
			case 1:
				mustSubscribe(t, r.Topics, p, "a")
				plain = append(plain, p)
			case 2:
				r.recover(p, SubscribeOptions{}, RecoverRequest{})
				memberOf(&p.s).find("a").track.offset = 0
				held = append(held, p)
			default:
				r.live(p, SubscribeOptions{})
				good = append(good, p)
			}
		}
	}
	r.compare("a", at, func() {})
	for _, l := range loops {
		if steps := l.drain(); steps < 3 {
			t.Errorf("%d subscribers in %d slices", each, steps)
		}
	}
	if len(lost) > 0 {
		t.Fatalf("%d lost at the first check", len(lost))
	}
	r.compare("a", at, func() {})
	loops[0].step()
	gone := make(map[*session.Session]bool)
	for i, p := range slices.Concat(good, plain) { // fewer stay than have not been looked at
		if i%8 != 0 {
			gone[&p.s] = true
			r.Unsubscribe(&p.s, "a")
		}
	}
	for _, l := range loops {
		l.drain()
	}
	for _, p := range bad {
		if !lost[&p.s] {
			t.Fatal("one that stands still is passed over")
		}
	}
	if len(lost) != len(bad) {
		t.Errorf("%d lost, %d stand still", len(lost), len(bad))
	}
	for _, p := range slices.Concat(good, plain, held) {
		if r.Subscribed(&p.s, "a") == gone[&p.s] {
			t.Fatal("a good subscription has ended")
		}
	}
	for _, p := range held {
		r.Live(&p.s, "a")
	}
	checkQuiet(t, r.Topics, loops...)
}

// A full inbox puts the check off.
func TestComparisonWithoutRoom(t *testing.T) {
	r := newRecoverRig(t, false, Options{})
	at := r.publish("x")
	l := newFakeLoop(t, 0)
	p := newFakePeer(r.Topics, l, session.EncodingJSON)
	r.live(p, SubscribeOptions{})
	l.limit = 0
	r.compare("a", at, func() {})
	if len(l.inbox) > 0 || l.room() != 0 {
		t.Error("posted without room")
	}
}

// A loss behind which nothing is published is found by the periodic check.
func TestWatchPositions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecoverRig(t, true, Options{PositionInterval: 40 * time.Second})
		l := newFakeLoop(t, 0)
		p := newFakePeer(r.Topics, l, session.EncodingJSON)
		r.publish("x")
		r.recover(p, SubscribeOptions{}, RecoverRequest{})
		r.late.answer(-1)
		l.drain()
		r.Live(&p.s, "a")
		run := func(d time.Duration) {
			for range d / (100 * time.Millisecond) {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				r.late.answer(-1)
				l.drain()
			}
		}
		run(3 * time.Minute)
		if len(r.lost) > 0 {
			t.Fatalf("lost %v", r.lost)
		}
		// Published, and lost on its way.
		r.late.Memory.receiver = &fakeReceiver{interested: map[string]bool{"a": true}}
		r.publish("y")
		run(39 * time.Second)
		if len(r.lost) > 0 {
			t.Fatal("lost at the first check: it might have been on its way")
		}
		run(45 * time.Second)
		if !slices.Equal(r.lost, []string{"a"}) {
			t.Errorf("lost %v", r.lost)
		}
		r.late.Memory.receiver = r.Topics
	})
}
