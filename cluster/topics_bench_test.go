package cluster

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"perch/topic"
)

const manyTopics = 100_000

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func cpu() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkManyTopics compares the two ways in which publications of other nodes
// could find a node with 100,000 topics: a subscription to NATS for each, or one
// for all, and most of what comes dropped. Client and server of NATS are both in
// this process.
func BenchmarkManyTopics(b *testing.B) {
	b.Run("subscriptions", func(b *testing.B) {
		s := natsServer(b)
		nc, err := nats.Connect(s.ClientURL())
		if err != nil {
			b.Fatal(err)
		}
		defer nc.Close()
		for b.Loop() {
			before, begun := heap(), cpu()
			for i := range manyTopics {
				if _, err := nc.Subscribe(number("perch.t.user:", i), func(*nats.Msg) {}); err != nil {
					b.Fatal(err)
				}
			}
			if err := nc.Flush(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64((cpu()-begun).Nanoseconds())/manyTopics, "cpu-ns/topic")
			b.ReportMetric(float64(heap()-before)/manyTopics, "B/topic")
		}
	})
	// What a node does with a publication that nobody wants there.
	b.Run("dropped", func(b *testing.B) {
		s := natsServer(b)
		to := newNode(b, Options{URL: s.ClientURL(), Name: "to"})
		to.got.want = map[string]bool{"last": true}
		nc, err := nats.Connect(s.ClientURL())
		if err != nil {
			b.Fatal(err)
		}
		defer nc.Close()
		data := encode("user:12345", &topic.Publication{Data: make([]byte, 128)}, &topic.PublishOptions{})
		last := encode("last", &topic.Publication{Data: []byte("x")}, &topic.PublishOptions{})
		if err := to.link.nc.Flush(); err != nil {
			b.Fatal(err)
		}
		begun := cpu()
		for b.Loop() {
			if err := nc.Publish("perch.p.0", data); err != nil {
				b.Fatal(err)
			}
		}
		if err := nc.Publish("perch.p.0", last); err != nil {
			b.Fatal(err)
		}
		to.got.wait(b, "last", 1)
		b.ReportMetric(float64((cpu()-begun).Nanoseconds())/float64(b.N), "cpu-ns/op")
	})
	// What JetStream keeps in memory of topics with one publication each.
	b.Run("stored", func(b *testing.B) {
		n := newNode(b, Options{Server: ServerOptions{Dir: b.TempDir(), SyncInterval: time.Second}}, news).waitReady()
		n.got.want = map[string]bool{}
		for b.Loop() {
			before := heap()
			done := make(chan error, manyTopics)
			room := make(chan struct{}, 1000)
			for i := range manyTopics {
				room <- struct{}{}
				n.Publish(number("news:user", i), &topic.Publication{Data: make([]byte, 128)}, stored, func(_ topic.Position, err error) {
					<-room
					done <- err
				})
			}
			for range manyTopics {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(heap()-before)/manyTopics, "B/topic")
		}
	})
}
