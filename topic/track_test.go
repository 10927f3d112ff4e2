package topic

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"perch/session"
)

// arrive brings a publication as a broker of another kind might.
func arrive(t testing.TB, topics *Topics, epoch string, offset, previous uint64) {
	t.Helper()
	p := &Publication{Data: []byte(fmt.Sprintf("%s%d", epoch, offset)), Offset: offset, Previous: previous}
	if err := topics.Deliver("a", Delivery{Publication: p, Epoch: epoch}); err != nil {
		t.Fatal(err)
	}
}

// TestPositions delivers publications to a subscriber who stands at offset 3 of
// the epoch that the broker says; each step is an offset, the one before it, and
// perhaps another epoch.
func TestPositions(t *testing.T) {
	type step struct {
		offset, previous uint64
		epoch            string // "": the topic's
	}
	for _, tt := range []struct {
		name  string
		steps []step
		want  []uint64
		lost  bool
	}{
		{"in order", []step{{4, 3, ""}, {5, 4, ""}}, []uint64{4, 5}, false},
		{"not by one", []step{{7, 3, ""}, {20, 7, ""}}, []uint64{7, 20}, false},
		{"what it has", []step{{3, 2, ""}, {4, 3, ""}}, []uint64{4}, false},
		{"long ago", []step{{1, 0, ""}, {4, 3, ""}}, []uint64{4}, false},
		{"twice", []step{{4, 3, ""}, {4, 3, ""}, {5, 4, ""}}, []uint64{4, 5}, false},
		{"again from an earlier one", []step{{4, 3, ""}, {5, 4, ""}, {4, 3, ""}, {5, 4, ""}, {6, 5, ""}}, []uint64{4, 5, 6}, false},
		{"behind one that reaches back", []step{{5, 2, ""}, {6, 5, ""}}, []uint64{5, 6}, false},
		{"a gap", []step{{5, 4, ""}}, nil, true},
		{"a gap, later", []step{{4, 3, ""}, {6, 5, ""}, {7, 6, ""}}, []uint64{4}, true},
		{"nothing behind a gap", []step{{5, 4, ""}, {4, 3, ""}}, nil, true},
		{"another epoch", []step{{4, 3, "new"}}, nil, true},
		{"another epoch, from its beginning", []step{{1, 0, "new"}}, nil, true},
		{"another epoch, later", []step{{4, 3, ""}, {5, 4, "new"}}, []uint64{4}, true},
		{"without an offset", []step{{0, 0, ""}, {4, 3, ""}, {0, 0, ""}, {5, 4, ""}}, []uint64{0, 4, 0, 5}, false},
		{"without an offset before a gap", []step{{0, 0, ""}, {5, 4, ""}, {0, 0, ""}}, []uint64{0}, true},
	} {
		for _, together := range []bool{false, true} { // all in one round
			t.Run(fmt.Sprintf("%s, together %v", tt.name, together), func(t *testing.T) {
				r := newRecoverRig(t, false, Options{})
				var at Position
				for range 3 {
					at = r.publish("x")
				}
				l := newFakeLoop(t, 0)
				p, plain := newFakePeer(r.Topics, l, session.EncodingJSON), newFakePeer(r.Topics, l, session.EncodingJSON)
				r.live(p, SubscribeOptions{})
				mustSubscribe(t, r.Topics, plain, "a")
				name := func(s step) string {
					if s.epoch == "" {
						s.epoch = at.Epoch
					}
					return fmt.Sprintf("%s%d", s.epoch, s.offset)
				}
				var want, all []string
				for _, s := range tt.steps {
					epoch := s.epoch
					if epoch == "" {
						epoch = at.Epoch
					}
					arrive(t, r.Topics, epoch, s.offset, s.previous)
					all = append(all, name(s))
					if !together {
						l.drain()
					}
				}
				l.drain()
				for _, offset := range tt.want {
					want = append(want, name(step{offset: offset}))
				}
				if got := received(p); !slices.Equal(got, want) || (len(r.lost) == 1) != tt.lost || len(r.lost) > 1 {
					t.Errorf("got %v, want %v; lost %v", got, want, r.lost)
				}
				if got := received(plain); !slices.Equal(got, all) {
					t.Errorf("without a position: got %v, want %v", got, all)
				}
				if r.Subscribed(&p.s, "a") == tt.lost || r.Counts().Losses != uint64(len(r.lost)) {
					t.Errorf("subscribed: %v, counts %+v", tt.lost, r.Counts())
				}
				checkQuiet(t, r.Topics, l)
			})
		}
	}
}

// Without somebody to tell, a loss changes nothing: the subscription goes on.
func TestPositionsWithoutLost(t *testing.T) {
	topics := newTopics(t, Options{Default: NamespaceOptions{HistorySize: 1, HistoryTTL: 1e9}})
	l := newFakeLoop(t, 0)
	p := newFakePeer(topics, l, session.EncodingJSON)
	if err := topics.Subscribe(&p.s, "a", positioned); err != nil {
		t.Fatal(err)
	}
	topics.Recover(&p.s, "a", RecoverRequest{}, func(s *session.Session, _ Recovered, _ error) { topics.Live(s, "a") })
	for i, epoch := range []string{"x", "x", "y", "y", "y"} {
		arrive(t, topics, epoch, uint64(2*i+1), uint64(2*i))
		l.drain()
	}
	arrive(t, topics, "y", 9, 8)
	l.drain()
	if got := received(p); !slices.Equal(got, []string{"x1", "x3", "y5", "y7", "y9"}) {
		t.Errorf("got %v", got)
	}
}

// A subscription that is told of its loss only later gets nothing meanwhile, and
// one word.
func TestLostOnce(t *testing.T) {
	r := newRecoverRig(t, false, Options{})
	r.onEnd = func(*session.Session, string) {}
	at := r.publish("x")
	l := newFakeLoop(t, 0)
	p := newFakePeer(r.Topics, l, session.EncodingJSON)
	r.live(p, SubscribeOptions{})
	for i := range uint64(5) {
		arrive(t, r.Topics, at.Epoch, 2*i+3, 2*i+2)
		if i > 2 {
			l.drain()
		}
	}
	r.compare("a", Position{99, "other"}, func() {})
	r.compare("a", Position{99, "other"}, func() {})
	l.drain()
	if len(r.lost) != 1 || p.text() != "" || r.Counts().Losses != 1 {
		t.Errorf("lost %v, got %q", r.lost, p.text())
	}
	checkQuiet(t, r.Topics, l)
}

// A write that panics leaves its session behind by what was to be written; that
// is a gap like any other.
func TestPanicIsAGap(t *testing.T) {
	for _, together := range []int{1, 2} {
		r := newRecoverRig(t, false, Options{})
		l := newFakeLoop(t, 0)
		p := newFakePeer(r.Topics, l, session.EncodingJSON)
		r.live(p, SubscribeOptions{})
		p.onWrite = func([]byte) {
			p.onWrite = nil
			panic("a fault of the write's")
		}
		for range together {
			r.publish("a")
		}
		for again := true; again; {
			func() {
				defer func() { again = recover() != nil }()
				l.drain()
			}()
		}
		r.publish("b")
		l.drain()
		if p.text() != "" || !slices.Equal(r.lost, []string{"a"}) {
			t.Errorf("got %q, lost %v", p.text(), r.lost)
		}
		checkQuiet(t, r.Topics, l)
	}
}

// Skipping the history, a publication comes in its turn and moves nothing.
func TestSkipHistory(t *testing.T) {
	r := newRecoverRig(t, false, Options{})
	l := newFakeLoop(t, 0)
	p := newFakePeer(r.Topics, l, session.EncodingJSON)
	r.live(p, SubscribeOptions{})
	r.publish("a")
	if at, err := publishAs(r.Topics, "a", "b", PublishRequest{SkipHistory: true}); err != nil || at != (Position{}) {
		t.Errorf("skipped, it is at %+v, %v", at, err)
	}
	r.publish("c")
	l.drain()
	if got := strings.Join(received(p), ""); got != "abc" || len(r.lost) > 0 {
		t.Errorf("got %q, lost %v", got, r.lost)
	}
	r.History(r.rules.Load().fallback, "a", allOf, func(all []*Publication, at Position, _ error) {
		if len(all) != 2 || at.Offset != 2 {
			t.Errorf("%d are kept, at %+v", len(all), at)
		}
	})
}

// Where a subscription stands can be asked for, and is where it stands.
func TestDescribe(t *testing.T) {
	r := newRecoverRig(t, false, Options{})
	at := r.publish("a")
	l := newFakeLoop(t, 0)
	p := newFakePeer(r.Topics, l, session.EncodingJSON)
	want := SubscribeOptions{Server: true, Position: true, Delta: true, News: true, Told: true, Hidden: true, Info: []byte("1")}
	r.live(p, want)
	mustSubscribe(t, r.Topics, p, "b")
	at.Offset++
	r.publish("b")
	l.drain()
	var got []Subscription
	r.Each(&p.s, func(s Subscription) { got = append(got, s) })
	if s := fmt.Sprintf("%+v", got); s != fmt.Sprintf("%+v", []Subscription{{"a", want, at}, {Topic: "b"}}) {
		t.Errorf("%s", s)
	}
	if n := topicsPositions(r.Topics, p); len(n) != 1 || n["a"] != at {
		t.Errorf("positions %v", n)
	}
}

func topicsPositions(t *Topics, p *fakePeer) map[string]Position {
	out := make(map[string]Position)
	t.EachPosition(&p.s, func(name string, at Position) { out[name] = at })
	return out
}
