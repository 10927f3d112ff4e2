package topic

import (
	"fmt"
	"math"
	"runtime"
	"strconv"
	"testing"

	"perch/session"
)

// The budgets, in bytes of heap. They are part of the 1,000 (1,300 with an own
// topic) that an idle session may cost: raise them only with that sum in sight.
const (
	sharedBudget = 64 + 48
	ownBudget    = 300
	// restBudget is what the table may keep when nobody is left: small maps.
	restBudget = 64 << 10
)

// heap is what is reachable.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what the first has only made ready to be swept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func testSessions(l session.Loop, n int) []session.Session {
	out := make([]session.Session, n)
	for i := range out {
		out[i].Open(nil, l, session.MakeID(l.Index(), 1, uint32(i)))
		out[i].Encoding = session.EncodingJSON
		out[i].State = session.StateConnected
	}
	return out
}

func TestSubscriptionMemory(t *testing.T) {
	const n = 20000
	shared := func(int) string { return "news:everyone" }
	own := func(i int) string { return fmt.Sprintf("#user-%06d", i) }
	for _, tt := range []struct {
		name   string
		topic  func(int) string
		budget float64
	}{
		{"shared topic", shared, sharedBudget},
		{"own topic", own, ownBudget},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topics := newTopics(t, Options{Namespaces: []NamespaceOptions{{Name: "news"}}})
			sessions := testSessions(newFakeLoop(t, 0), n)
			before := heap()
			for i := range sessions {
				if err := topics.Subscribe(&sessions[i], tt.topic(i), true); err != nil {
					t.Fatal(err)
				}
			}
			each := float64(heap()-before) / n
			for i := range sessions {
				topics.Leave(&sessions[i])
			}
			left := heap() - before
			t.Logf("%.1f B a subscription, %d B left of all", each, left)
			if each > tt.budget {
				t.Errorf("a subscription costs %.1f B, the budget is %.0f", each, tt.budget)
			}
			if left > restBudget {
				t.Errorf("%d subscriptions left %d B behind", n, left)
			}
			runtime.KeepAlive(sessions)
			runtime.KeepAlive(topics)
		})
	}
}

// A topic that is used once leaves nothing, one after the other or in waves.
func TestTopicsLeaveNothing(t *testing.T) {
	for _, tt := range []struct{ n, wave int }{{1_000_000 / raceDivisor, 1}, {200_000, 50_000}} {
		n, wave := tt.n, tt.wave
		t.Run(fmt.Sprintf("%d at a time", wave), func(t *testing.T) {
			topics := newTopics(t, Options{})
			l := newFakeLoop(t, 0)
			sessions := testSessions(l, wave)
			data := []byte("1")
			before := heap()
			name := make([]byte, 0, 32)
			for i := 0; i < n; i += wave {
				for k := range sessions {
					name = strconv.AppendInt(append(name[:0], "topic-"...), int64(i+k), 10)
					if err := topics.Subscribe(&sessions[k], string(name), false); err != nil {
						t.Fatal(err)
					}
				}
				// Some end with a publication under way.
				if i%8 == 0 {
					topics.Publish(string(name), &Publication{Data: data}, func(Position, error) {})
				}
				for k := range sessions {
					topics.Leave(&sessions[k])
				}
				l.drain()
			}
			left := heap() - before
			t.Logf("%d B left of %d topics", left, n)
			if left > restBudget {
				t.Errorf("%d topics left %d B behind", n, left)
			}
			checkQuiet(t, topics, l)
			if c := topics.Counts(); c.Topics != 0 || c.Subscriptions != 0 {
				t.Errorf("counts %+v", c)
			}
			runtime.KeepAlive(sessions)
		})
	}
}

// discard takes frames and keeps nothing.
type discard struct{ fakePeer }

func (*discard) WriteFrame([]byte) {}

func fanoutRig(t testing.TB, n int) (*Topics, *fakeLoop) {
	copied := func(_ string, p *Publication) ([]byte, error) { return append([]byte(nil), p.Data...), nil }
	topics := newTopics(t, Options{Encoders: Encoders{session.EncodingJSON: copied, session.EncodingProtobuf: copied}})
	l := newFakeLoop(t, 0)
	sessions := make([]session.Session, n)
	for i := range sessions {
		sessions[i].Open(&discard{}, l, session.MakeID(0, 1, uint32(i)))
		sessions[i].Encoding = session.EncodingJSON + session.Encoding(i%2)
		if err := topics.Subscribe(&sessions[i], "a", false); err != nil {
			t.Fatal(err)
		}
	}
	return topics, l
}

// What a fan-out allocates does not depend on how many it reaches.
func TestFanoutAllocations(t *testing.T) {
	data := []byte("1234567890")
	done := func(Position, error) {}
	measure := func(subscribers, batch int) float64 {
		topics, l := fanoutRig(t, subscribers)
		return testing.AllocsPerRun(20, func() {
			for range batch {
				topics.Publish("a", &Publication{Data: data}, done)
			}
			for more := true; more; {
				more = l.stepInPlace()
			}
		})
	}
	for _, batch := range []int{1, 10} {
		few, many := measure(2, batch), measure(10000, batch)
		t.Logf("%d publications: %.0f allocations for 2 subscribers, %.0f for 10,000", batch, few, many)
		if math.Abs(many-few) > 1 {
			t.Errorf("%d publications: %.0f allocations for 2 subscribers, %.0f for 10,000", batch, few, many)
		}
		// For each: publication, delivery, post, and an encoding and its frame in
		// each of two formats. For the round: the fan-out, what waits, and what is
		// joined.
		if limit := float64(7*batch + 10); many > limit {
			t.Errorf("%d publications take %.0f allocations, the bound is %.0f", batch, many, limit)
		}
	}
}
