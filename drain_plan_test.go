package perch

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"perch/internal/testkit"
	"perch/session"
)

// TestPlanWaves: each session is in one wave, the waves are even and spread
// evenly, each at a moment of its own time, over as long as the rate makes it,
// or three quarters of the budget.
func TestPlanWaves(t *testing.T) {
	tests := []struct {
		n      int
		rate   float64
		budget time.Duration
		waves  int
	}{
		{0, 2000, 10 * time.Second, 0},
		{1, 2000, 10 * time.Second, 1},
		{2, 1, time.Minute, 2},
		{20, 2000, 10 * time.Second, 1},
		{2000, 2000, 10 * time.Second, 50},   // a second
		{10000, 2000, 10 * time.Second, 250}, // five
		{100000, 2000, 10 * time.Second, 375},
		{100000, 1, time.Second, 37},
		{3, 1, 10 * time.Second, 3},
		{100, 10, 100 * time.Second, 100},
		{50, 2000, time.Millisecond, 1},
		{50, 2000, 0, 1},
		{50, 2000, -time.Second, 1},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%d at %v in %s", tt.n, tt.rate, tt.budget), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			waves := planWaves(tt.n, tt.rate, tt.budget, r.Float64)
			if len(waves) != tt.waves {
				t.Fatalf("%d waves, want %d", len(waves), tt.waves)
			}
			span := min(time.Duration(float64(tt.n)/tt.rate*float64(time.Second)), time.Duration(drainWaves*float64(tt.budget)))
			step := max(0, span) / time.Duration(max(1, len(waves)))
			sum, jitter := 0, map[time.Duration]bool{}
			for i, w := range waves {
				sum += w.n
				if even := tt.n / len(waves); w.n < even || w.n > even+1 {
					t.Errorf("wave %d closes %d of %d in %d", i, w.n, tt.n, len(waves))
				}
				from := step * time.Duration(i)
				if w.at < from-time.Microsecond || w.at > from+step+time.Microsecond {
					t.Errorf("wave %d at %s", i, w.at)
				}
				jitter[w.at-from] = true
			}
			if sum != tt.n {
				t.Errorf("the waves close %d of %d", sum, tt.n)
			}
			if len(waves) > 10 && len(jitter) < len(waves)/2 {
				t.Errorf("%d waves come at %d moments of their time", len(waves), len(jitter))
			}
			if last := len(waves) - 1; last >= 0 && waves[last].at > max(0, span) {
				t.Errorf("the last wave comes at %s, after %s", waves[last].at, span)
			}
		})
	}
}

// TestPlanIsRandom: two plans don't close in step.
func TestPlanIsRandom(t *testing.T) {
	a, b := planWaves(1000, 2000, time.Minute, rand.Float64), planWaves(1000, 2000, time.Minute, rand.Float64)
	if slices.Equal(a, b) {
		t.Error("two plans are the same")
	}
}

// TestDrainDelivers: a publication that was acknowledged stands before the
// close in the loop's inbox, but its fan-out takes turns of its own: the session
// is closed behind it.
func TestDrainDelivers(t *testing.T) {
	s := runServer(t, func(o *Options) {
		o.Auth.Require, o.Topics.Default.AllowSubscribeForAnonymous, o.Topics.Default.AllowSubscribeForClient = "none", true, true
	})
	w, err := testkit.Open(s.PublicAddr(), "/connection/websocket")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	if err := w.SendFrames(testkit.Text(string(testkit.Commands(testkit.ConnectCommand(""), testkit.SubscribeCommand(2, "news"))))); err != nil {
		t.Fatal(err)
	}
	for got := ""; !strings.Contains(got, `"id":2`); {
		msg, err := w.Message()
		if err != nil {
			t.Fatal(err)
		}
		got = string(msg)
	}
	id := s.sessionIDs(t.Context())[0]
	held, release := make(chan struct{}), make(chan struct{})
	s.net.Loop(id.Loop()).Post(0, 0, func(*session.Session) { close(held); <-release })
	<-held
	if err := s.Publish(t.Context(), "news", []byte(`"acknowledged"`)); err != nil {
		t.Fatal(err)
	}
	d := &drain{server: s, begun: time.Now(), budget: time.Minute}
	d.close(id, 0)
	close(release)
	if msg, err := w.Message(); err != nil || !strings.Contains(string(msg), "acknowledged") {
		t.Fatalf("got %q, %v", msg, err)
	}
	s.sync(t.Context())
	d.again()
	if code, _, err := w.Closed(); err != nil || code != 3001 {
		t.Errorf("close %d, %v", code, err)
	}
}
