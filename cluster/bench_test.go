package cluster

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"perch/topic"
)

// BenchmarkPublishStored is a publication into a history on file, of the embedded
// server, until it has been answered: by one publisher, and by several at once,
// each of which waits for its answer.
func BenchmarkPublishStored(b *testing.B) {
	for _, sync := range []time.Duration{time.Second, 0} {
		for _, publishers := range []int{1, 16, 256} {
			name := fmt.Sprintf("sync=%s/publishers=%d", sync, publishers)
			if sync == 0 {
				name = fmt.Sprintf("sync=always/publishers=%d", publishers)
			}
			b.Run(name, func(b *testing.B) {
				n := newNode(b, Options{Server: ServerOptions{Dir: b.TempDir(), SyncInterval: sync}}, news).waitReady()
				n.got.want = map[string]bool{} // what a delivery costs is measured elsewhere
				publishStored(b, n, publishers)
			})
		}
	}
}

func publishStored(b *testing.B, n *node, publishers int) {
	data := []byte(strings.Repeat("x", 128))
	took := make([]time.Duration, b.N)
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for k := range publishers {
		wg.Go(func() {
			name := number("news:", k)
			done := make(chan error, 1)
			for i := k; i < b.N; i += publishers {
				begun := time.Now()
				n.Publish(name, &topic.Publication{Data: data}, stored, func(_ topic.Position, err error) { done <- err })
				if err := <-done; err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(begun)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "publications/s")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkPublishPlain is a publication without a history, with the memory engine,
// on a node that is alone, and on one that others may listen to.
func BenchmarkPublishPlain(b *testing.B) {
	data := []byte(strings.Repeat("x", 128))
	run := func(b *testing.B, broker topic.Broker) {
		b.ReportAllocs()
		for b.Loop() {
			broker.Publish("news:x", &topic.Publication{Data: data}, topic.PublishOptions{}, func(_ topic.Position, err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
	}
	deaf := &sink{}
	b.Run("memory", func(b *testing.B) {
		m := topic.NewMemory(topic.MemoryOptions{})
		if err := m.Start(deaf); err != nil {
			b.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		run(b, m)
	})
	b.Run("alone", func(b *testing.B) { run(b, plainNode(b, Options{}, deaf)) })
	b.Run("outside", func(b *testing.B) { run(b, plainNode(b, Options{URL: natsServer(b).ClientURL()}, deaf)) })
}

func plainNode(b *testing.B, o Options, r topic.Receiver) *Broker {
	if o.URL == "" {
		o.Server.Dir = b.TempDir()
	}
	l, err := Open(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(l.Close)
	n := NewBroker(l, BrokerOptions{})
	if err := n.Start(r); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = n.Close() })
	if err := n.Wait(b.Context()); err != nil {
		b.Fatal(err)
	}
	return n
}

// sink takes everything.
type sink struct{}

func (*sink) Deliver(string, topic.Delivery) error { return nil }
func (*sink) Interested(string) bool               { return true }

// BenchmarkAcross is from a publication on one node until another delivers it.
func BenchmarkAcross(b *testing.B) {
	s := natsServer(b)
	from := newNode(b, Options{URL: s.ClientURL(), Name: "a"}, news).waitReady()
	to := newNode(b, Options{URL: s.ClientURL(), Name: "b"}, news).waitReady()
	data := []byte(strings.Repeat("x", 128))
	for _, of := range []struct {
		name string
		o    topic.PublishOptions
	}{{"plain", topic.PublishOptions{}}, {"stored", stored}} {
		b.Run(of.name, func(b *testing.B) {
			var took []time.Duration
			n := len(to.got.of("news:x"))
			for b.Loop() {
				begun := time.Now()
				from.Publish("news:x", &topic.Publication{Data: data}, of.o, func(topic.Position, error) {})
				n++
				for to.got.count() < n {
					<-to.got.more
				}
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
