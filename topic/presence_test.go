package topic

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"perch/session"
)

func presence(topics *Topics, name string) (out map[string]int, calls *int, err *error) {
	out, calls, err = make(map[string]int), new(int), new(error)
	topics.Presence(name, func(all []ClientInfo, e error) {
		*calls++
		*err = e
		for _, i := range all {
			out[i.Client]++
		}
	})
	return out, calls, err
}

func newNamed(topics *Topics, l *fakeLoop, client string) *fakePeer {
	p := newFakePeer(topics, l, session.EncodingJSON)
	p.s.Extra = &session.Extra{Client: client, Info: []byte(`"of ` + client + `"`)}
	return p
}

func TestPresence(t *testing.T) {
	topics := newTopics(t, Options{})
	if all, calls, err := presence(topics, "a"); *calls != 1 || *err != nil || len(all) != 0 {
		t.Errorf("of nobody: %v, %d answers, %v", all, *calls, *err)
	}
	loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1), newFakeLoop(t, 2)}
	for i, l := range loops {
		for _, o := range []SubscribeOptions{{}, {Info: []byte("7")}, {Hidden: true}, {Told: true}} {
			p := newNamed(topics, l, fmt.Sprint(i, len(o.Info), o.Hidden, o.Told))
			if err := topics.Subscribe(&p.s, "a", o); err != nil {
				t.Fatal(err)
			}
		}
		mustSubscribe(t, topics, newNamed(topics, l, "other"), "b")
	}
	topics.Presence("a", func(all []ClientInfo, err error) {
		if err != nil || len(all) != 9 {
			t.Errorf("%d there, %v", len(all), err)
		}
		for _, i := range all {
			if want := fmt.Sprintf(`"of %s"`, i.Client); string(i.ConnInfo) != want {
				t.Errorf("%+v", i)
			}
			if (i.Client[2] == '1') != (string(i.ChanInfo) == "7") {
				t.Errorf("%+v", i)
			}
		}
	})
	for i, l := range loops {
		if l.room() != session.PostOverhead {
			t.Errorf("loop %d: %d bytes reserved", i, l.room())
		}
		l.drain()
	}
	checkQuiet(t, topics, loops...)
}

func TestPresenceWithoutRoom(t *testing.T) {
	for full := range 3 {
		topics := newTopics(t, Options{})
		var loops []*fakeLoop
		for i := range 3 {
			loops = append(loops, newFakeLoop(t, i))
			mustSubscribe(t, topics, newNamed(topics, loops[i], "x"), "a")
		}
		loops[full].limit = session.PostOverhead - 1
		all, calls, err := presence(topics, "a")
		if *calls != 1 || !errors.Is(*err, ErrFull) || len(all) != 0 {
			t.Errorf("%v, %d answers, %v", all, *calls, *err)
		}
		for _, l := range loops {
			if l.drain() != 0 {
				t.Error("a census without all the others")
			}
		}
		checkQuiet(t, topics, loops...)
	}
}

// TestCensus lets subscribers come and go between the slices, with and without
// a publication under way: whoever stays is found, whoever was never there is
// not, and the loop is not held up.
func TestCensus(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 3))
		topics := newTopics(t, Options{})
		loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
		stays := make(map[string]*fakePeer)
		ever := make(map[string]bool)
		next := 0
		join := func() {
			p := newNamed(topics, loops[rng.IntN(2)], fmt.Sprint(next))
			next++
			p.onWrite = func([]byte) {}
			mustSubscribe(t, topics, p, "a")
			stays[p.s.Extra.Client] = p
			ever[p.s.Extra.Client] = true
		}
		for range 1 + rng.IntN(8*presenceSlice) {
			join()
		}
		was := make(map[string]bool)
		for c := range stays {
			was[c] = true
		}
		got, calls, err := presence(topics, "a")
		share := 1 + rng.IntN(6) // of those there that go between two slices, at the most
		for *calls == 0 {
			if rng.IntN(4) == 0 {
				mustPublish(t, topics, "a", "x")
			}
			leave := rng.IntN(1 + len(stays)/share)
			for c, p := range stays { // in no order
				if leave--; leave < 0 {
					break
				}
				topics.Unsubscribe(&p.s, "a")
				delete(stays, c)
			}
			for range rng.IntN(300) {
				join()
			}
			loops[rng.IntN(2)].step()
		}
		if *err != nil || *calls != 1 {
			t.Fatalf("seed %d: %d answers, %v", seed, *calls, *err)
		}
		for c := range was {
			if stays[c] != nil && got[c] == 0 {
				t.Fatalf("seed %d: %s stayed and is missing", seed, c)
			}
		}
		for c := range got {
			if !ever[c] {
				t.Fatalf("seed %d: %q was never there", seed, c)
			}
		}
		for _, l := range loops {
			l.drain()
		}
		checkQuiet(t, topics, loops...)
	}
}

// A slice looks at so many and no more.
func TestCensusSlices(t *testing.T) {
	for _, n := range []int{1, presenceSlice, presenceSlice + 1, 3 * presenceSlice} {
		topics := newTopics(t, Options{})
		l := newFakeLoop(t, 0)
		for i := range n {
			mustSubscribe(t, topics, newNamed(topics, l, fmt.Sprint(i)), "a")
		}
		got, calls, _ := presence(topics, "a")
		if steps, want := l.drain(), (n+presenceSlice-1)/presenceSlice; steps != want || len(got) != n || *calls != 1 {
			t.Errorf("%d of %d in %d steps, want %d", len(got), n, steps, want)
		}
	}
}

// Whoever asks before a census has begun gets its answer; who asks later, that of
// another.
func TestPresenceIsShared(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	for range 3 {
		mustSubscribe(t, topics, newFakePeer(topics, l, session.EncodingJSON), "a")
	}
	var answers []int
	ask := func() {
		topics.Presence("a", func(all []ClientInfo, err error) {
			if err != nil {
				t.Error(err)
			}
			answers = append(answers, len(all))
		})
	}
	for range 100 {
		ask()
	}
	if n := len(l.inbox); n != 1 {
		t.Errorf("%d posts for 100 who ask", n)
	}
	l.drain()
	mustSubscribe(t, topics, newFakePeer(topics, l, session.EncodingJSON), "a")
	ask()
	l.drain()
	if len(answers) != 101 || answers[0] != 3 || answers[99] != 3 || answers[100] != 4 {
		t.Errorf("%v", answers)
	}
	checkQuiet(t, topics, l)
}
