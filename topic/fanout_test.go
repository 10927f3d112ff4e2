package topic

import (
	"errors"
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

func TestBatch(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	first := newFakePeer(topics, l, session.EncodingJSON)
	second := newFakePeer(topics, l, session.EncodingProtobuf)
	mustSubscribe(t, topics, first, "a")
	mustSubscribe(t, topics, second, "a")
	for i := range 5 {
		mustPublish(t, topics, "a", fmt.Sprint(i))
	}
	l.drain()
	if got := first.text(); got != "j0;j1;j2;j3;j4;" {
		t.Errorf("posted together, written as %q", got)
	}
	if got := second.text(); got != "p0;p1;p2;p3;p4;" {
		t.Errorf("posted together, written as %q", got)
	}
	if c := topics.Counts(); c.Encodings != 10 || c.Deliveries != 10 {
		t.Errorf("counts %+v", c)
	}
	checkQuiet(t, topics, l)
}

// A publication alone goes out as the encoder made it, without a copy: all
// subscribers of all loops share it.
func TestSharedFrame(t *testing.T) {
	topics := newTopics(t, Options{})
	loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
	peers := append(fakePeers(topics, loops[0], 2), fakePeers(topics, loops[1], 2)...)
	for _, p := range peers {
		mustSubscribe(t, topics, p, "a")
	}
	mustPublish(t, topics, "a", "1")
	loops[0].drain()
	loops[1].drain()
	for i, p := range peers {
		if len(p.frames) != 1 || &p.frames[0][0] != &peers[0].frames[0][0] {
			t.Errorf("peer %d has a frame of its own", i)
		}
	}
}

func TestRoundBytes(t *testing.T) {
	const part = roundBytes / 2
	for _, tt := range []struct {
		name   string
		sizes  []int
		writes []int // publications in each
	}{
		{"just fits", []int{part, part}, []int{2}},
		{"one byte too many", []int{part, part + 1}, []int{1, 1}},
		{"one over the bound alone", []int{roundBytes + 1, 1, 1}, []int{1, 2}},
		{"a small one before", []int{1, roundBytes, 1}, []int{1, 1, 1}},
		{"many", []int{part, part, part, part, part}, []int{2, 2, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topics := newTopics(t, Options{})
			l := newFakeLoop(t, 0)
			p := newFakePeer(topics, l, session.EncodingJSON)
			mustSubscribe(t, topics, p, "a")
			want := ""
			for i, n := range tt.sizes {
				data := strings.Repeat(string(rune('a'+i)), n)
				want += "j" + data + ";"
				mustPublish(t, topics, "a", data)
			}
			l.drain()
			var writes []int
			got := ""
			for _, f := range p.frames {
				writes = append(writes, strings.Count(string(f), ";"))
				got += string(f)
			}
			if !slices.Equal(writes, tt.writes) || got != want {
				t.Errorf("writes of %v publications, want %v; in order: %v", writes, tt.writes, got == want)
			}
			checkQuiet(t, topics, l)
		})
	}
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

// What waits for a long fan-out stays in the account of the inbox: a publisher
// that is faster than the loop gets ErrFull, however fast the posts are taken.
func TestWaitingIsBounded(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	peers := fakePeers(topics, l, 2*sliceSubscribers)
	for _, p := range peers {
		p.onWrite = func([]byte) {}
		mustSubscribe(t, topics, p, "a")
	}
	one := session.PostOverhead + 1
	l.limit = 5 * one
	mustPublish(t, topics, "a", "x")
	l.step()
	l.step() // the round of the first is half done
	taken := 0
	for publish(topics, "a", "x") == nil {
		if taken++; taken > 100 {
			t.Fatal("publications pile up behind a fan-out without a bound")
		}
		for range 2 {
			if len(l.inbox) > 1 { // not the fan-out itself
				it := l.inbox[len(l.inbox)-1]
				l.inbox = l.inbox[:len(l.inbox)-1]
				if it.task.Run() {
					t.Fatal("a second worker")
				}
				l.Release(it.n)
			}
		}
	}
	if taken != 4 {
		t.Errorf("%d publications taken behind the first, there is room for 4", taken)
	}
	l.drain()
	if err := publish(topics, "a", "x"); err != nil {
		t.Errorf("the room is back, publish says %v", err)
	}
	l.drain()
	checkQuiet(t, topics, l)
}

// The room of publications that nobody is left for comes back as well.
func TestRoomComesBackWithoutSubscribers(t *testing.T) {
	for steps := range 5 {
		t.Run(fmt.Sprint(steps, " steps"), func(t *testing.T) {
			topics := newTopics(t, Options{})
			l := newFakeLoop(t, 0)
			peers := fakePeers(topics, l, 2*sliceSubscribers)
			for _, p := range peers {
				mustSubscribe(t, topics, p, "a")
			}
			for range 3 {
				mustPublish(t, topics, "a", strings.Repeat("x", roundBytes))
			}
			for range steps {
				l.step()
			}
			for _, p := range peers {
				p.s.Close(session.ReasonNormal)
			}
			l.drain()
			checkQuiet(t, topics, l)
			if c := topics.Counts(); c.Topics != 0 {
				t.Errorf("%d topics left", c.Topics)
			}
		})
	}
}

func TestFullInbox(t *testing.T) {
	for full := range 3 {
		t.Run(fmt.Sprintf("loop %d of 3", full), func(t *testing.T) {
			topics := newTopics(t, Options{})
			var loops []*fakeLoop
			var peers []*fakePeer
			for i := range 3 {
				loops = append(loops, newFakeLoop(t, i))
				peers = append(peers, newFakePeer(topics, loops[i], session.EncodingJSON))
				mustSubscribe(t, topics, peers[i], "a")
			}
			const data = "12345"
			loops[full].limit = session.PostOverhead + len(data) - 1
			if err := publish(topics, "a", data); !errors.Is(err, ErrFull) {
				t.Fatalf("publish: %v, want ErrFull", err)
			}
			checkQuiet(t, topics, loops...)
			loops[full].limit++
			mustPublish(t, topics, "a", data)
			for i, l := range loops {
				if n := l.room(); n != session.PostOverhead+len(data) {
					t.Errorf("loop %d: %d bytes reserved for a publication of %d", i, n, len(data))
				}
				l.drain()
				if got := peers[i].text(); got != "j12345;" {
					t.Errorf("loop %d: got %q: the refused publication is for nobody", i, got)
				}
			}
			if c := topics.Counts(); c.Rejected != 1 || c.Publications != 1 {
				t.Errorf("counts %+v", c)
			}
			checkQuiet(t, topics, loops...)
		})
	}
}

// A loop whose subscribers have gone is not asked for room.
func TestFullInboxOfNobody(t *testing.T) {
	for _, gone := range []int{0, 1} {
		topics := newTopics(t, Options{})
		loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
		var peers []*fakePeer
		for i := range loops {
			peers = append(peers, newFakePeer(topics, loops[i], session.EncodingJSON))
			mustSubscribe(t, topics, peers[i], "a")
		}
		topics.Unsubscribe(&peers[gone].s, "a")
		loops[gone].limit = 0
		mustPublish(t, topics, "a", "1")
		loops[1-gone].drain()
		if peers[1-gone].text() != "j1;" || len(loops[gone].inbox) != 0 {
			t.Errorf("without loop %d: %q", gone, peers[1-gone].text())
		}
		loops[gone].limit = fakeRoom
		mustSubscribe(t, topics, peers[gone], "a")
		mustPublish(t, topics, "a", "2")
		loops[gone].drain()
		if peers[gone].text() != "j2;" {
			t.Errorf("loop %d, back again: %q", gone, peers[gone].text())
		}
	}
}

func TestEncoderError(t *testing.T) {
	encoders := plainEncoders()
	plain := encoders[session.EncodingProtobuf]
	calls := 0
	encoders[session.EncodingProtobuf] = func(name string, p *Publication) ([]byte, error) {
		calls++
		if string(p.Data) == "bad" {
			return []byte("never sent"), errModelFormat
		}
		return plain(name, p)
	}
	for _, tt := range []struct {
		name         string
		publications []string
		json, proto  string
	}{
		{"alone", []string{"bad"}, "jbad;", ""},
		{"in a batch", []string{"1", "bad", "2"}, "j1;jbad;j2;", "p1;p2;"},
		{"first", []string{"bad", "1"}, "jbad;j1;", "p1;"},
		{"nothing but", []string{"bad", "bad"}, "jbad;jbad;", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls = 0
			topics := newTopics(t, Options{Encoders: encoders})
			loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
			var peers []*fakePeer
			for _, l := range loops {
				for _, e := range []session.Encoding{session.EncodingJSON, session.EncodingProtobuf} {
					p := newFakePeer(topics, l, e)
					mustSubscribe(t, topics, p, "a")
					peers = append(peers, p)
				}
			}
			bad := uint64(0)
			for _, data := range tt.publications {
				mustPublish(t, topics, "a", data)
				if data == "bad" {
					bad++
				}
			}
			for _, l := range loops {
				l.drain()
			}
			for i, p := range peers {
				if want := []string{tt.json, tt.proto}[i%2]; p.text() != want {
					t.Errorf("peer %d got %q, want %q", i, p.text(), want)
				}
			}
			if c := topics.Counts(); c.EncodeErrors != bad || calls != len(tt.publications) {
				t.Errorf("%d errors counted, %d calls", c.EncodeErrors, calls)
			}
		})
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
		encoders[e] = func(name string, p *Publication) ([]byte, error) {
			if _, before := calls[e].LoadOrStore(string(p.Data), true); before {
				twice.Add(1)
			}
			return encode(name, p)
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
