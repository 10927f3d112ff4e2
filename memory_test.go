package perch_test

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"perch/internal/doctor"
	"perch/internal/testkit"
)

// The memory budget of a session, in bytes of RssAnon, and what may come on
// top of it when the session has been busy.
const (
	sharedBudget = 1000
	ownBudget    = 1300
	burstFactor  = 1.2
	stormFactor  = 1.5
	// doctorNear is how near the doctor's word on a session is.
	doctorNear = 0.15
	// goroutineSlack is for what net/http keeps for the connections of the
	// measurement itself.
	goroutineSlack = 10
)

// full tells whether the long measurements are asked for. Without them the same
// code runs small, with bounds that only catch what is grossly wrong: at 1,000
// sessions the runtime's own steps weigh more than the sessions.
func full() bool { return os.Getenv("PERCH_TEST_MEMORY") == "1" }

func TestMemory(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for _, c := range []struct {
		name     string
		topic    func(int) string
		messages int
		budget   float64
	}{
		{"shared topic", testkit.SharedTopic, 0, sharedBudget},
		{"own topic", testkit.OwnTopic, 20, ownBudget},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := testkit.MemoryOptions{Topic: c.topic, Messages: c.messages, Size: 4 << 10, Log: t.Logf}
			budget, factor := c.budget, burstFactor
			if !full() {
				o.Sessions, o.Cool = 1000, 5*time.Second
				budget, factor = 5000, 3
			}
			r, err := testkit.Memory(ctx, startProcess(ctx, t, 0), o)
			if err != nil {
				t.Fatal(err)
			}
			if r.PerSession > budget {
				t.Errorf("an idle session costs %.0f B, the budget is %.0f", r.PerSession, budget)
			}
			if said := doctorsSession(t); full() && c.budget == ownBudget && math.Abs(r.PerSession-said) > doctorNear*said {
				t.Errorf("an idle session costs %.0f B, the doctor says %.0f", r.PerSession, said)
			}
			limit := factor * r.PerSession
			if !full() {
				limit = max(limit, budget)
			}
			t.Logf("%.0f B a session; %.0f B after a burst, the target is %.1f times", r.PerSession, r.AfterBurst, burstFactor)
			if r.AfterBurst > limit {
				t.Errorf("%.0f B after a burst, %.0f before: more than %.1f times", r.AfterBurst, r.PerSession, factor)
			}
			if r.Goroutines[1] > r.Goroutines[0]+goroutineSlack {
				t.Errorf("%d goroutines without sessions, %d with %d", r.Goroutines[0], r.Goroutines[1], r.Sessions)
			}
		})
	}
}

// doctorsSession is what perch doctor counts for a session, in bytes of RssAnon.
func doctorsSession(t *testing.T) float64 {
	t.Helper()
	for _, l := range doctor.Examine(doctor.System{}, doctor.Load{Connections: 10_000}).Memory {
		if l.Name == "sessions" {
			return float64(l.Each)
		}
	}
	t.Fatal("the doctor's report has no sessions")
	return 0
}

// TestStorm compares the CPU of a connect storm with that of a bare gnet and
// gobwas server. At its full size it wants the machine for itself.
func TestStorm(t *testing.T) {
	n, rounds := 5000, 5
	if !full() {
		n, rounds = 500, 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	s := startProcess(ctx, t, 0)
	root, err := testkit.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	bin, err := testkit.Executable(ctx, filepath.Join(root, "bench", "peers"), "./bare")
	if err != nil {
		t.Fatal(err)
	}
	bare, addr, err := testkit.StartBare(ctx, bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bare.Stop(5 * time.Second) }) // gnet ends by the signal
	r, err := testkit.Storm(ctx, s, bare, addr, n, rounds)
	if err != nil {
		t.Fatal(err)
	}
	// A number of a noisy machine: it is told, and fails only where something is
	// grossly wrong.
	t.Logf("perch %v, bare %v: a session costs %.2f times a bare upgrade, the target is %.1f", r.Perch, r.Bare, r.Ratio, stormFactor)
	if r.Ratio > 2*stormFactor {
		t.Errorf("a session costs %.2f times a bare upgrade", r.Ratio)
	}
}
