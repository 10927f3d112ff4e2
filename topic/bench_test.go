package topic

import (
	"testing"

	"perch/session"
)

// BenchmarkSubscribe is a subscription and its end, beside 10,000 others of the
// topic.
func BenchmarkSubscribe(b *testing.B) {
	topics, l := fanoutRig(b, 10000)
	sessions := testSessions(l, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := topics.Subscribe(&sessions[0], "a", false); err != nil {
			b.Fatal(err)
		}
		topics.Leave(&sessions[0])
	}
}

// BenchmarkFanout10k is topic's own part of a publication to 10,000 sessions:
// what the writes cost stays out.
func BenchmarkFanout10k(b *testing.B) {
	const subscribers = 10000
	for _, bb := range []struct {
		name  string
		batch int
	}{{"alone", 1}, {"20 together", 20}} {
		b.Run(bb.name, func(b *testing.B) {
			topics, l := fanoutRig(b, subscribers)
			data := make([]byte, 128)
			done := func(Position, error) {}
			b.ReportAllocs()
			for b.Loop() {
				for range bb.batch {
					topics.Publish("a", &Publication{Data: data}, done)
				}
				for l.stepInPlace() {
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*bb.batch*subscribers), "ns/delivery")
		})
	}
}

var _ session.Transport = (*discard)(nil)
