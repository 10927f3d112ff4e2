package topic

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"perch/session"
)

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
