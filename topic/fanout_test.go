package topic

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"perch/session"
)

func fakePeers(topics *Topics, l *fakeLoop, n int) []*fakePeer {
	peers := make([]*fakePeer, n)
	for i := range peers {
		peers[i] = newFakePeer(topics, l, session.EncodingJSON)
	}
	return peers
}

func mustPublish(t testing.TB, topics *Topics, name, data string) {
	t.Helper()
	if err := publish(topics, name, data); err != nil {
		t.Fatalf("publish %q: %v", name, err)
	}
}

func TestPublishReachesEachLoop(t *testing.T) {
	topics := newTopics(t, Options{})
	var loops []*fakeLoop
	var peers []*fakePeer
	for i := range 3 {
		loops = append(loops, newFakeLoop(t, i))
		for _, e := range []session.Encoding{session.EncodingJSON, session.EncodingProtobuf, session.EncodingNone} {
			p := newFakePeer(topics, loops[i], e)
			mustSubscribe(t, topics, p, "a")
			peers = append(peers, p)
		}
	}
	other := newFakePeer(topics, loops[0], session.EncodingJSON)
	mustSubscribe(t, topics, other, "b")
	mustPublish(t, topics, "a", "1")
	mustPublish(t, topics, "nobody", "2")
	for _, l := range loops {
		l.drain()
	}
	for i, p := range peers {
		if want := []string{"j1;", "p1;", ""}[i%3]; p.text() != want {
			t.Errorf("peer %d got %q, want %q", i, p.text(), want)
		}
	}
	if other.text() != "" {
		t.Errorf("another topic's subscriber got %q", other.text())
	}
	c := topics.Counts()
	if c.Publications != 2 || c.Deliveries != 6 || c.Encodings != 2 || c.EncodeErrors != 0 || c.Rejected != 0 {
		t.Errorf("counts %+v", c)
	}
	checkQuiet(t, topics, loops...)
}

// A long fan-out lets others have the loop between its slices.
func TestSlices(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	peers := fakePeers(topics, l, 3*sliceSubscribers+1)
	served := 0
	for _, p := range peers {
		p.onWrite = func([]byte) { served++ }
		mustSubscribe(t, topics, p, "a")
	}
	mustPublish(t, topics, "a", "1")
	var between []int
	for l.step() {
		between = append(between, served)
		l.do(func() {})
		l.step()
	}
	want := []int{0, sliceSubscribers, 2 * sliceSubscribers, 3 * sliceSubscribers, 3*sliceSubscribers + 1}
	if i := slices.Index(between, want[len(want)-1]); i < 0 || !slices.Equal(slices.Compact(between[:i+1]), want) {
		t.Errorf("served after each step: %v, want %v", between, want)
	}
	checkQuiet(t, topics, l)
}

func TestNotFromBefore(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps int // of the loop, between the publications and the subscription
	}{
		{"in the inbox", 0},
		{"the first waits, the second in the inbox", 1},
		{"both wait", 2},
		{"the first round runs", 3},
		{"the first round is half done", 4},
	} {
		for _, empty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, alone %v", tt.name, empty), func(t *testing.T) {
				topics := newTopics(t, Options{})
				l := newFakeLoop(t, 0)
				peers := fakePeers(topics, l, 2*sliceSubscribers)
				for _, p := range peers {
					mustSubscribe(t, topics, p, "a")
				}
				mustPublish(t, topics, "a", "1")
				mustPublish(t, topics, "a", "2")
				for range tt.steps {
					l.step()
				}
				late := newFakePeer(topics, l, session.EncodingJSON)
				gone := newFakePeer(topics, l, session.EncodingJSON)
				mustSubscribe(t, topics, late, "a")
				mustSubscribe(t, topics, gone, "a")
				if empty {
					for _, p := range peers {
						p.s.Close(session.ReasonNormal)
					}
				}
				mustPublish(t, topics, "a", "3")
				gone.s.Close(session.ReasonNormal)
				l.drain()
				if late.text() != "j3;" {
					t.Errorf("subscribed before the third, got %q", late.text())
				}
				if gone.text() != "" {
					t.Errorf("left before the loop ran, got %q", gone.text())
				}
				for _, p := range peers {
					if got := strings.ReplaceAll(p.text(), "|", ""); !empty && got != "j1;j2;j3;" {
						t.Fatalf("subscribed before all, got %q", got)
					}
				}
				checkQuiet(t, topics, l)
			})
		}
	}
}

// A panic under a write costs the one session its publication, and the loop's
// turn; the others get theirs, and the topic goes on.
func TestPanicUnderWrite(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	peers := fakePeers(topics, l, 2*sliceSubscribers)
	for _, p := range peers {
		mustSubscribe(t, topics, p, "a")
	}
	peers[3].onWrite = func([]byte) {
		peers[5].s.Close(session.ReasonSlow)
		panic("a handler's fault")
	}
	run := func() {
		for again := true; again; {
			func() {
				defer func() {
					if again = recover() != nil; again {
						peers[3].onWrite = nil
					}
				}()
				l.drain()
			}()
		}
	}
	mustPublish(t, topics, "a", "1")
	run()
	mustPublish(t, topics, "a", "2")
	run()
	for i, p := range peers {
		want := "j1;|j2;"
		switch i {
		case 3:
			want = "j2;"
		case 5:
			want = ""
		}
		if p.text() != want {
			t.Errorf("peer %d got %q, want %q", i, p.text(), want)
		}
	}
	checkQuiet(t, topics, l)
}

// TestConcurrentLoops runs real goroutines as loops and publishers: one
// encoding per format and publication, one order for all loops.
func TestConcurrentLoops(t *testing.T) {
	const nLoops, nPublishers, each, subscribers = 4, 3, 300, 40
	var calls [session.EncodingCount]sync.Map
	var twice atomic.Int32
	encoders := plainEncoders()
	for e, encode := range encoders {
		if encode == nil {
			continue
		}
		encoders[e] = func(name string, p *Publication, form Form, data []byte) ([]byte, error) {
			if _, before := calls[e].LoadOrStore(string(p.Data), true); before {
				twice.Add(1)
			}
			return encode(name, p, form, data)
		}
	}
	topics := newTopics(t, Options{Encoders: encoders})
	stop := make(chan struct{})
	var serving, working sync.WaitGroup
	var stayers, comers []*fakePeer
	loops := make([]*fakeLoop, nLoops)
	for i := range loops {
		l := newFakeLoop(t, i)
		loops[i] = l
		for k := range subscribers {
			p := newFakePeer(topics, l, session.EncodingJSON+session.Encoding(k%2))
			if k < subscribers/2 {
				mustSubscribe(t, topics, p, "a")
				stayers = append(stayers, p)
			} else {
				comers = append(comers, p)
			}
		}
		serving.Go(func() { l.serve(stop) })
	}
	for i := range nPublishers {
		working.Go(func() {
			for k := range each {
				if err := publish(topics, "a", fmt.Sprintf("%d-%d", i, k)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	working.Go(func() {
		for range each {
			for _, p := range comers {
				p.s.Loop().(*fakeLoop).do(func() {
					if !topics.Unsubscribe(&p.s, "a") {
						mustSubscribe(t, topics, p, "a")
					}
				})
			}
			if _, err := topics.Topics(""); err != nil {
				t.Error(err)
			}
			topics.Counts()
		}
	})
	working.Wait()
	close(stop)
	serving.Wait()

	if n := twice.Load(); n != 0 {
		t.Errorf("%d publications were encoded again", n)
	}
	if c := topics.Counts(); c.Encodings != 2*nPublishers*each || c.Publications != nPublishers*each {
		t.Errorf("counts %+v", c)
	}
	order := received(stayers[0])
	if len(order) != nPublishers*each {
		t.Fatalf("%d publications arrived of %d", len(order), nPublishers*each)
	}
	place := make(map[string]int, len(order))
	last := make(map[byte]int)
	for i, data := range order {
		place[data] = i
		var from, k int
		if _, err := fmt.Sscanf(data, "%d-%d", &from, &k); err != nil {
			t.Fatal(err)
		}
		if before, ok := last[byte(from)]; ok && k != before+1 {
			t.Fatalf("publisher %d: %d came after %d", from, k, before)
		}
		last[byte(from)] = k
	}
	for i, p := range stayers {
		if !slices.Equal(received(p), order) {
			t.Errorf("peer %d saw another order", i)
		}
	}
	for i, p := range comers {
		before := -1
		for _, data := range received(p) {
			if place[data] <= before {
				t.Fatalf("comer %d: %q out of order or twice", i, data)
			}
			before = place[data]
		}
	}
	checkQuiet(t, topics, loops...)
}

// received is the data of all that p got.
func received(p *fakePeer) []string {
	var out []string
	for _, f := range p.frames {
		for part := range strings.SplitSeq(strings.TrimSuffix(string(f), ";"), ";") {
			out = append(out, part[1:])
		}
	}
	return out
}
