package pace

import (
	"math/rand/v2"
	"testing"
	"time"
)

const second = int64(time.Second)

func TestBurstThenRate(t *testing.T) {
	for _, rate := range []int{1, 3, 100, 1_000_000} {
		table := Table[string]{Rate: Rate{rate}}
		now, taken := 17*second, 0
		for range rate + 5 {
			if table.Allow("a", now) {
				taken++
			}
		}
		if taken != rate {
			t.Errorf("rate %d: a burst of %d", rate, taken)
		}
		if now += second / int64(rate); !table.Allow("a", now) || table.Allow("a", now) {
			t.Errorf("rate %d: one more is not what an interval brings", rate)
		}
		if !table.Allow("b", now) {
			t.Errorf("rate %d: another key waits as well", rate)
		}
	}
}

func TestNoBound(t *testing.T) {
	var table Table[int]
	var l Limiter
	for range 1000 {
		if _, ok := l.Reserve(0, 0); !ok || !table.Allow(1, 0) {
			t.Fatal("refused")
		}
	}
	if table.Len() != 0 {
		t.Errorf("%d keys are remembered", table.Len())
	}
}

// No row of events passes more than the rate and a burst, whatever the times
// and however the table forgets; and what is refused costs nothing.
func TestNeverMore(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		rate := 1 + r.IntN(50)
		table := Table[int]{Rate: Rate{rate}}
		var passed []int64
		now := second
		for range 2000 {
			now += r.Int64N(1 + r.Int64N(second/4))
			if table.Allow(7, now) {
				passed = append(passed, now)
			}
			table.Allow(r.IntN(1000), now)
		}
		for i := range passed {
			for j := i; j < len(passed); j++ {
				most := rate + 1 + int((passed[j]-passed[i])*int64(rate)/second)
				if n := j - i + 1; n > most {
					t.Fatalf("rate %d: %d in %v", rate, n, time.Duration(passed[j]-passed[i]))
				}
			}
		}
		if len(passed) < rate {
			t.Fatalf("rate %d: only %d passed", rate, len(passed))
		}
	}
}

func TestForgets(t *testing.T) {
	table := Table[int]{Rate: Rate{10}}
	for i := range 10_000 {
		table.Allow(i, second)
	}
	table.Allow(-1, 3*second)
	table.Allow(-2, 9*second)
	if n := table.Len(); n != 1 {
		t.Errorf("%d keys are remembered", n)
	}
}

func TestReserve(t *testing.T) {
	l := Limiter{Rate: Rate{10}}
	now := 5 * second
	for i := range 10 {
		if d, ok := l.Reserve(now, 0); !ok || d != 0 {
			t.Fatalf("event %d of the burst: %v, %v", i, d, ok)
		}
	}
	for i := 1; i <= 3; i++ {
		if d, ok := l.Reserve(now, 300*time.Millisecond); !ok || d != time.Duration(i)*100*time.Millisecond {
			t.Fatalf("event %d behind it waits %v, %v", i, d, ok)
		}
	}
	if d, ok := l.Reserve(now, 300*time.Millisecond); ok {
		t.Fatalf("the fourth is taken, and waits %v", d)
	}
	if d, ok := l.Reserve(now+second/10, 300*time.Millisecond); !ok || d != 300*time.Millisecond {
		t.Fatalf("after an interval: %v, %v", d, ok)
	}
}
