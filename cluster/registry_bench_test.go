package cluster

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"perch/auth"
	"perch/auth/storetest"
)

func BenchmarkTokensRotate(b *testing.B) {
	for _, sync := range []time.Duration{0, time.Second} {
		b.Run(fmt.Sprintf("sync=%s", sync), func(b *testing.B) {
			c := storetest.NewClock()
			s := startTokens(b, linkTo(b, Options{Server: ServerOptions{Dir: b.TempDir(), SyncInterval: sync}}), TokensOptions{Now: c.Now})
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				token, _, err := s.NewFamily(auth.Family{Client: "dev", Subject: "u", Expires: c.In(time.Hour)})
				for pb.Next() && err == nil {
					token, _, err = storetest.Rotate(s, c, token, "dev")
				}
				if err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// BenchmarkRegistry has 100,000 clients: what it costs to look one up that is not
// at hand, and to make a page.
func BenchmarkRegistry(b *testing.B) {
	const clients = 100_000
	r := startRegistry(b, linkTo(b, Options{Server: ServerOptions{Dir: b.TempDir(), SyncInterval: time.Minute}}))
	var group sync.WaitGroup
	for w := range 16 {
		group.Go(func() {
			for i := w; i < clients; i += 16 {
				if err := r.Put(b.Context(), sampleClient(fmt.Sprintf("sensor-%06d", i))); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.Run("get", func(b *testing.B) {
		for i := range b.N {
			if _, err := r.Load(b.Context(), fmt.Sprintf("sensor-%06d", i%clients)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("page", func(b *testing.B) {
		for range b.N {
			list, more, err := r.List(b.Context(), "sensor-050000", 100)
			if err != nil || len(list) != 100 || !more || list[0].ID != "sensor-050001" {
				b.Fatal(len(list), more, err)
			}
		}
	})
}
