package topic

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"perch/session"
)

// BenchmarkSubscribe is a subscription and its end, beside 10,000 others of the
// topic.
func BenchmarkSubscribe(b *testing.B) {
	topics, l := fanoutRig(b, 10000)
	sessions := testSessions(l, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := topics.Subscribe(&sessions[0], "a", SubscribeOptions{}); err != nil {
			b.Fatal(err)
		}
		topics.Leave(&sessions[0])
	}
}

// BenchmarkPublish is the publisher's part of a publication, with and without a
// history, to a topic with one subscriber.
func BenchmarkPublish(b *testing.B) {
	history := NamespaceOptions{HistorySize: 100, HistoryTTL: time.Minute}
	for _, bb := range []struct {
		name   string
		ns     NamespaceOptions
		topics int
		r      PublishRequest
	}{
		{"without history", NamespaceOptions{}, 1, PublishRequest{}},
		{"with history", history, 1, PublishRequest{}},
		{"without history, 10k topics", NamespaceOptions{}, 10_000, PublishRequest{}},
		{"with history, 10k topics", history, 10_000, PublishRequest{}},
		{"with history, short of room", history, 10_000, PublishRequest{}},
		{"with history and a version", history, 1, PublishRequest{Version: math.MaxUint64}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			o := Options{Default: bb.ns}
			if strings.HasSuffix(bb.name, "short of room") {
				o.Memory.HistoryBytes = 5 << 20
			}
			topics := newTopics(b, o)
			l := newFakeLoop(b, 0)
			names := make([]string, bb.topics)
			for i := range names {
				names[i] = fmt.Sprint("topic-", i)
			}
			sessions := testSessions(l, 1)
			if err := topics.Subscribe(&sessions[0], names[0], SubscribeOptions{}); err != nil {
				b.Fatal(err)
			}
			data := make([]byte, 128)
			done := func(Position, error) {}
			sessions[0].Encoding = session.EncodingNone
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				topics.Publish(topics.rules.Load().fallback, names[i], &Publication{Data: data}, bb.r, done)
				if i++; i == len(names) {
					i = 0
				}
				for l.stepInPlace() {
				}
			}
		})
	}
}

// BenchmarkFanout10k is topic's own part of a publication to 10,000 sessions:
// what the writes cost stays out.
func BenchmarkFanout10k(b *testing.B) {
	const subscribers = 10000
	for _, bb := range []struct {
		name  string
		batch int
		rig   func(testing.TB, int) (*Topics, *fakeLoop)
	}{
		{"alone", 1, fanoutRig},
		{"20 together", 20, fanoutRig},
		{"tracked, alone", 1, trackedFanout},
		{"tracked, 20 together", 20, trackedFanout},
	} {
		b.Run(bb.name, func(b *testing.B) {
			topics, l := bb.rig(b, subscribers)
			data := make([]byte, 128)
			done := func(Position, error) {}
			b.ReportAllocs()
			for b.Loop() {
				for range bb.batch {
					topics.Publish(topics.rules.Load().fallback, "a", &Publication{Data: data}, PublishRequest{}, done)
				}
				for l.stepInPlace() {
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*bb.batch*subscribers), "ns/delivery")
		})
	}
}

var _ session.Transport = (*discard)(nil)
