package topic

import (
	"bytes"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"testing"
	"time"

	"perch/session"
)

// The budgets, in bytes of heap. They are part of the 1,000 (1,300 with an own
// topic) that an idle session may cost: raise them only with that sum in sight.
const (
	sharedBudget = 64
	ownBudget    = 300
	// trackedBudget is what recovery, presence and the news of who comes and goes
	// may cost a subscription of a shared topic more.
	trackedBudget = 250
	// streamBudget is what a topic of one's own may cost more than that, for its
	// position, of which no more is left when nothing is published.
	streamBudget = streamOverhead + 16
	// restBudget is what the table may keep when nobody is left: small maps.
	restBudget = 64 << 10
)

// heapBytes is what is reachable.
func heapBytes() int64 {
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
	plain := SubscribeOptions{Server: true}
	tracked := SubscribeOptions{Server: true, Position: true, Told: true}
	for _, tt := range []struct {
		name   string
		topic  func(int) string
		o      SubscribeOptions
		budget float64
	}{
		{"shared topic", shared, plain, sharedBudget},
		{"own topic", own, plain, ownBudget},
		{"shared topic, recovery and presence", shared, tracked, sharedBudget + trackedBudget},
		{"own topic, recovery and presence", own, tracked, ownBudget + trackedBudget + streamBudget},
	} {
		t.Run(tt.name, func(t *testing.T) {
			history := NamespaceOptions{HistorySize: 10, HistoryTTL: time.Minute}
			news := history
			news.Name = "news"
			clock := newFakeClock()
			topics := newTopics(t, Options{Default: history, Namespaces: []NamespaceOptions{news}, Memory: MemoryOptions{Now: clock.now}})
			sessions := testSessions(newFakeLoop(t, 0), n)
			before := heapBytes()
			for i := range sessions {
				name := tt.topic(i)
				if err := topics.Subscribe(&sessions[i], name, tt.o); err != nil {
					t.Fatal(err)
				}
				if tt.o.Position {
					topics.Recover(&sessions[i], name, RecoverRequest{}, func(*session.Session, Recovered, error) {})
					topics.Live(&sessions[i], name)
				}
			}
			each := float64(heapBytes()-before) / n
			if c := topics.Counts(); c.Subscriptions != n {
				t.Fatalf("%d subscriptions", c.Subscriptions)
			}
			for i := range sessions {
				topics.Leave(&sessions[i])
			}
			clock.add(2 * time.Hour)
			if m := topics.broker.(*Memory); tt.o.Position {
				m.sweep()
			}
			left := heapBytes() - before
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
			before := heapBytes()
			name := make([]byte, 0, 32)
			for i := 0; i < n; i += wave {
				for k := range sessions {
					name = strconv.AppendInt(append(name[:0], "topic-"...), int64(i+k), 10)
					if err := topics.Subscribe(&sessions[k], string(name), SubscribeOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				// Some end with a publication under way.
				if i%8 == 0 {
					topics.Publish(topics.rules.Load().fallback, string(name), &Publication{Data: data}, PublishRequest{}, func(Position, error) {})
				}
				for k := range sessions {
					topics.Leave(&sessions[k])
				}
				l.drain()
			}
			left := heapBytes() - before
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

// trackedFanout subscribes n sessions with positions and news, each second one
// with deltas.
func trackedFanout(t testing.TB, n int) (*Topics, *fakeLoop) {
	copied := func(_ string, _ *Publication, _ Form, data []byte) ([]byte, error) { return bytes.Clone(data), nil }
	topics := newTopics(t, Options{
		Default: NamespaceOptions{HistorySize: 10, HistoryTTL: time.Minute, AllowedDeltaTypes: []string{DeltaFossil}},
		Lost:    func(*session.Session, string, bool) { t.Error("lost") }, Joined: plainJoined(),
		Encoders: Encoders{session.EncodingJSON: copied, session.EncodingProtobuf: copied},
	})
	l := newFakeLoop(t, 0)
	sessions := make([]session.Session, n)
	for i := range sessions {
		sessions[i].Open(&discard{}, l, session.MakeID(0, 1, uint32(i)))
		sessions[i].Encoding = session.EncodingJSON + session.Encoding(i%2)
		o := SubscribeOptions{Position: true, News: true, Told: true, Delta: i/2%2 == 0}
		if err := topics.Subscribe(&sessions[i], "a", o); err != nil {
			t.Fatal(err)
		}
		topics.Recover(&sessions[i], "a", RecoverRequest{}, func(s *session.Session, _ Recovered, _ error) { topics.Live(s, "a") })
	}
	return topics, l
}

func fanoutRig(t testing.TB, n int) (*Topics, *fakeLoop) {
	copied := func(_ string, _ *Publication, _ Form, data []byte) ([]byte, error) { return bytes.Clone(data), nil }
	topics := newTopics(t, Options{Encoders: Encoders{session.EncodingJSON: copied, session.EncodingProtobuf: copied}})
	l := newFakeLoop(t, 0)
	sessions := make([]session.Session, n)
	for i := range sessions {
		sessions[i].Open(&discard{}, l, session.MakeID(0, 1, uint32(i)))
		sessions[i].Encoding = session.EncodingJSON + session.Encoding(i%2)
		if err := topics.Subscribe(&sessions[i], "a", SubscribeOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return topics, l
}

// What a fan-out allocates does not depend on how many it reaches.
func TestFanoutAllocations(t *testing.T) {
	// For each: publication, delivery, post, and an encoding and its frame in
	// each of two formats. For the round: the fan-out, what waits, and what is
	// joined.
	t.Run("plain", func(t *testing.T) { fanoutAllocations(t, fanoutRig, 7, 10) })
	// Beside that the history, and for deltas a form more in each format and the
	// patch.
	t.Run("tracked", func(t *testing.T) { fanoutAllocations(t, trackedFanout, 22, 20) })
}

func fanoutAllocations(t *testing.T, rig func(testing.TB, int) (*Topics, *fakeLoop), each, round int) {
	data := []byte("1234567890")
	done := func(Position, error) {}
	measure := func(subscribers, batch int) float64 {
		topics, l := rig(t, subscribers)
		return testing.AllocsPerRun(20, func() {
			for range batch {
				topics.Publish(topics.rules.Load().fallback, "a", &Publication{Data: data}, PublishRequest{}, done)
			}
			for more := true; more; {
				more = l.stepInPlace()
			}
		})
	}
	for _, batch := range []int{1, 10} {
		few, many := measure(4, batch), measure(10000, batch)
		t.Logf("%d publications: %.0f allocations for 4 subscribers, %.0f for 10,000", batch, few, many)
		if math.Abs(many-few) > 1 {
			t.Errorf("%d publications: %.0f allocations for 4 subscribers, %.0f for 10,000", batch, few, many)
		}
		if limit := float64(each*batch + round); many > limit {
			t.Errorf("%d publications take %.0f allocations, the bound is %.0f", batch, many, limit)
		}
	}
}
