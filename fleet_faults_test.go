package perch_test

import (
	"context"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"perch/internal/testkit"
)

// fleetFault is one way in which a part of a fleet or its NATS fails, and comes back.
type fleetFault struct {
	name string
	do   func(ctx context.Context, k *fleetModel, rng *rand.Rand) error
}

// lasting waits for a time in which something is broken: nothing tells when
// everybody has noticed.
func lasting(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	<-t.C
}

func between(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}

var fleetFaults = []fleetFault{
	{"a node is killed", func(ctx context.Context, k *fleetModel, rng *rand.Rand) error {
		n := k.c.nodes[rng.IntN(len(k.c.nodes))]
		n.kill()
		k.setDown(n, true)
		lasting(between(rng, 300*time.Millisecond, time.Second))
		n.start()
		if err := n.process.WaitHTTP(ctx, "http://"+n.admin+"/readyz"); err != nil {
			return err
		}
		k.setDown(n, false)
		return nil
	}},
	{"a node stands still", func(_ context.Context, k *fleetModel, rng *rand.Rand) error {
		n := k.c.nodes[rng.IntN(len(k.c.nodes))]
		if err := n.process.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		lasting(300 * time.Millisecond) // a load balancer needs a moment
		k.setDown(n, true)
		lasting(between(rng, 4*time.Second, 6*time.Second)) // TestFleetNodeStopped has 10 s
		defer k.setDown(n, false)
		return n.process.Signal(syscall.SIGCONT)
	}},
	{"a follower is killed", func(ctx context.Context, k *fleetModel, rng *rand.Rand) error {
		s, err := k.c.nats.Follower(ctx, k.c.stream("long"))
		if err != nil {
			return err
		}
		s.Kill()
		lasting(between(rng, 500*time.Millisecond, 2*time.Second))
		return s.Start()
	}},
	{"the leader is killed", func(ctx context.Context, k *fleetModel, rng *rand.Rand) error {
		s, err := k.c.nats.Leader(ctx, k.c.stream("long"))
		if err != nil {
			return err
		}
		s.Kill()
		lasting(between(rng, 500*time.Millisecond, 6*time.Second))
		return s.Start()
	}},
	{"the leader stands still", func(ctx context.Context, k *fleetModel, rng *rand.Rand) error {
		s, err := k.c.nats.Leader(ctx, k.c.stream("long"))
		if err != nil {
			return err
		}
		if err := s.Stop(); err != nil {
			return err
		}
		lasting(between(rng, 10*time.Second, 12*time.Second))
		return s.Continue()
	}},
	{"a link is cut", func(_ context.Context, k *fleetModel, rng *rand.Rand) error {
		n := k.c.nodes[0]
		n.each((*testkit.Proxy).Cut)
		lasting(between(rng, time.Second, 3*time.Second))
		n.each((*testkit.Proxy).Heal)
		return nil
	}},
	{"a link lets nothing through", func(_ context.Context, k *fleetModel, rng *rand.Rand) error {
		n := k.c.nodes[0]
		n.each((*testkit.Proxy).Stall)
		lasting(between(rng, 2*time.Second, 8*time.Second))
		n.each((*testkit.Proxy).Heal)
		return nil
	}},
}

// TestFleetModelFaults: each fault once, or for as long as -fleetmodel says,
// under clients and publishers that go on.
func TestFleetModelFaults(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: fleetNamespaces(), linked: 1})
	for i, f := range fleetFaults {
		t.Run(f.name, func(t *testing.T) {
			k := newFleetModel(c, string(rune('a'+i)), uint64(i+1), true)
			rng := rand.New(rand.NewPCG(uint64(i), 5))
			k.run(func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), *fleetModelTime+2*fleetPatience)
				defer cancel()
				for begun := time.Now(); ; {
					lasting(between(rng, 500*time.Millisecond, time.Second))
					if err := f.do(ctx, k, rng); err != nil {
						t.Error(err)
						return
					}
					if err := c.nats.WaitReady(ctx); err != nil {
						t.Error(err)
						return
					}
					lasting(between(rng, 500*time.Millisecond, time.Second))
					if time.Since(begun) > *fleetModelTime {
						return
					}
				}
			})
			k.report(t)
		})
	}
}
