package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func sayAll(answers []Answer) string {
	var b bytes.Buffer
	for _, a := range answers {
		fmt.Fprintf(&b, "%s=%s,%v;", a.Name, a.Data, a.Err)
	}
	return b.String()
}

func TestSurvey(t *testing.T) {
	a, b, c := three(t, nil)
	answers, err := a.gather(Question{Method: "m", Params: []byte("p\nq")})
	if got := sayAll(answers); err != nil || got != "b=m:p\nq,<nil>;c=m:p\nq,<nil>;" {
		t.Errorf("%q, %v", got, err)
	}
	// A client id does not carry all of a node's bits.
	if answers, err = a.gather(Question{Node: c.id | 1<<60, Method: "m"}); err != nil || sayAll(answers) != "c=m:,<nil>;" {
		t.Errorf("%q, %v", sayAll(answers), err)
	}
	if answers, err = a.gather(Question{Node: 99, Method: "m"}); err != nil || len(answers) != 0 {
		t.Errorf("%q, %v", sayAll(answers), err)
	}
	b.replies(func(context.Context, string, []byte) ([]byte, error) { return nil, errors.New("broken") })
	c.replies(func(context.Context, string, []byte) ([]byte, error) { panic("bug") })
	answers, _ = a.gather(Question{Method: "m"})
	for i := range answers {
		if !errors.Is(answers[i].Err, ErrAnswer) {
			t.Errorf("%v", answers[i])
		}
	}
	if b.log.count("broken") != 1 || c.log.count("bug") == 0 {
		t.Error("what went wrong is not in the log of the node where it did")
	}
	if n := a.Counts(); n.Surveys != 0 || n.Asked != 3 || n.Unanswered != 0 || a.held != 0 {
		t.Errorf("%+v, held %d", n, a.held)
	}
}

// TestSurveySizes: an answer comes in as many parts as it needs; one that is too
// large, and a question that does not fit in a message, are errors.
func TestSurveySizes(t *testing.T) {
	a, b, c := three(t, nil)
	big := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16+1)
	b.replies(func(context.Context, string, []byte) ([]byte, error) { return big, nil })
	c.replies(func(context.Context, string, []byte) ([]byte, error) { return make([]byte, maxAnswer+1), nil })
	answers, err := a.gather(Question{Method: "m"})
	if err != nil || len(answers) != 2 || !bytes.Equal(answers[0].Data, big) || answers[0].Err != nil || !errors.Is(answers[1].Err, ErrTooLarge) {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	if _, err := a.gather(Question{Method: "m", Params: make([]byte, 1<<20)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if a.held != 0 {
		t.Errorf("%d bytes held", a.held)
	}
}

// TestSurveyHeld: what is held of answers that are not complete is bounded.
func TestSurveyHeld(t *testing.T) {
	a, _, c := three(t, nil)
	c.replies(func(ctx context.Context, _ string, _ []byte) ([]byte, error) { return make([]byte, 1000), nil })
	a.mu.Lock()
	a.held = mostHeld - 500
	a.mu.Unlock()
	answers, _ := a.gather(Question{Method: "m"})
	if len(answers) != 2 || answers[0].Err != nil || !errors.Is(answers[1].Err, ErrTooLarge) {
		t.Errorf("%s", sayAll(answers))
	}
	a.mu.Lock()
	if a.held != mostHeld-500 {
		t.Errorf("%d bytes held", a.held-mostHeld+500)
	}
	a.held = 0
	a.mu.Unlock()
}

// TestSurveyUnanswered: a node that does not answer in time is named, and a late
// answer does no harm.
func TestSurveyUnanswered(t *testing.T) {
	a, _, c := three(t, nil)
	late := make(chan struct{})
	c.replies(func(context.Context, string, []byte) ([]byte, error) { <-late; return []byte("late"), nil })
	answers, err := a.gather(Question{Method: "m", Timeout: 50 * time.Millisecond})
	if got := sayAll(answers); err != nil || got != "b=m:,<nil>;c=,cluster: node has not answered;" {
		t.Errorf("%q, %v", got, err)
	}
	if n := a.Counts(); n.Unanswered != 1 || a.log.count("nodes have not answered in time") != 1 {
		t.Errorf("%+v", n)
	}
	close(late)
	c.replies(echo)
	if answers, err = a.gather(Question{Method: "m"}); err != nil || sayAll(answers) != "b=m:,<nil>;c=m:,<nil>;" {
		t.Errorf("%q, %v", sayAll(answers), err)
	}
}

// TestSurveyNodeGoes: a node that says goodbye, or dies, while it is asked, is not
// waited for.
func TestSurveyNodeGoes(t *testing.T) {
	for name, end := range map[string]func(*member){
		"says goodbye": func(c *member) { c.announce(envelope{Bye: true}) },
		"dies": func(c *member) {
			c.end() // no announcements any more
			c.done.Wait()
		},
		"is cut off": func(c *member) { c.link.Conn().Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, _, c := three(t, nil)
			asked, over := make(chan struct{}), make(chan struct{})
			c.replies(func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
				close(asked)
				<-over
				return nil, ctx.Err()
			})
			t.Cleanup(func() { close(over) })
			got := make(chan []Answer, 1)
			a.Ask(Question{Method: "m", Timeout: time.Hour}, func(all []Answer, _ error) { got <- all })
			<-asked
			end(c)
			select {
			case all := <-got:
				if sayAll(all) != "b=m:,<nil>;" {
					t.Errorf("%q", sayAll(all))
				}
			case <-time.After(patience):
				t.Fatal("it is waited for")
			}
		})
	}
}

// TestSurveyOwnEnd: where the one that asks loses its connection or ends, whoever
// waits hears of it.
func TestSurveyOwnEnd(t *testing.T) {
	for name, end := range map[string]func(*member){
		"closed": func(a *member) { a.Close() },
		"lost":   func(a *member) { a.failSurveys() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, c := three(t, nil)
			over := make(chan struct{})
			b.replies(func(context.Context, string, []byte) ([]byte, error) { <-over; return nil, nil })
			c.replies(*b.say.Load())
			t.Cleanup(func() { close(over) })
			got := make(chan []Answer, 1)
			a.Ask(Question{Method: "m", Timeout: time.Hour}, func(all []Answer, _ error) { got <- all })
			end(a)
			select {
			case all := <-got:
				if len(all) != 2 || !errors.Is(all[0].Err, ErrUnanswered) || !errors.Is(all[1].Err, ErrUnanswered) {
					t.Errorf("%q", sayAll(all))
				}
			case <-time.After(patience):
				t.Fatal("nobody says anything")
			}
		})
	}
}

// TestSurveyShared: who asks the same while it is under way gets the same answers;
// who asks otherwise, others.
func TestSurveyShared(t *testing.T) {
	a, b, _ := three(t, nil)
	var asked atomic.Int32
	over := make(chan struct{})
	b.replies(func(ctx context.Context, m string, p []byte) ([]byte, error) {
		asked.Add(1)
		<-over
		return echo(ctx, m, p)
	})
	var all sync.WaitGroup
	ask := func(q Question) {
		all.Add(1)
		want := fmt.Sprintf("b=%s:%s,<nil>;c=%[1]s:%[2]s,<nil>;", q.Method, q.Params)
		a.Ask(q, func(got []Answer, err error) {
			if err != nil || sayAll(got) != want {
				t.Errorf("%q, %v", sayAll(got), err)
			}
			all.Done()
		})
	}
	for range 100 {
		ask(Question{Method: "m", Params: []byte("1"), Shared: true})
	}
	ask(Question{Method: "m", Params: []byte("2"), Shared: true})
	ask(Question{Method: "m", Params: []byte("1")})
	ask(Question{Method: "m", Params: []byte("1")})
	if n := a.Counts().Asked; n != 4 {
		t.Errorf("%d surveys", n)
	}
	until(t, "b is asked four times", func() bool { return asked.Load() == 4 })
	close(over)
	all.Wait()
	if answers, err := a.gather(Question{Method: "m", Params: []byte("1"), Shared: true}); err != nil || len(answers) != 2 || asked.Load() != 5 {
		t.Errorf("asked %d times", asked.Load())
	}
}

// TestSurveyBounds: too many at once are refused here; and where another node is
// stuck, its queue is bounded and it says so, while it goes on to announce itself.
func TestSurveyBounds(t *testing.T) {
	a, b, _ := three(t, nil)
	b.helpers.queue = 10
	over := make(chan struct{})
	var most, now atomic.Int32
	b.replies(func(ctx context.Context, m string, p []byte) ([]byte, error) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		<-over
		return echo(ctx, m, p)
	})
	const asked = answerWorkers + 10 + 20
	var busy, done atomic.Int32
	for range asked {
		a.Ask(Question{Node: b.id, Method: "m"}, func(all []Answer, err error) {
			if err != nil || len(all) != 1 {
				t.Errorf("%v", err)
			} else if errors.Is(all[0].Err, ErrBusy) {
				busy.Add(1)
			}
			done.Add(1)
		})
	}
	until(t, "what has no room is refused", func() bool { return busy.Load() == 20 && b.Counts().Refused == 20 })
	heard := a.peers[b.id].heard
	until(t, "it announces itself", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.peers[b.id].heard.After(heard)
	})
	close(over)
	until(t, "the others are answered", func() bool { return done.Load() == asked })
	if n := most.Load(); n != answerWorkers {
		t.Errorf("%d at work at once", n)
	}

	a.mu.Lock()
	for i := range uint64(mostSurveys) {
		a.surveys[1<<40+i] = &survey{}
	}
	a.mu.Unlock()
	if _, err := a.gather(Question{Method: "m"}); !errors.Is(err, ErrBusy) || a.Counts().Busy != 1 {
		t.Errorf("%v", err)
	}
	a.mu.Lock()
	clear(a.surveys)
	a.mu.Unlock()
}

// TestOutbox: what can't be sent does not grow without end, and stays in order.
func TestOutbox(t *testing.T) {
	var got []string
	gate := make(chan struct{})
	o := outbox{most: 3 * (letterOverhead + 1), publish: func(_ string, b []byte) error {
		<-gate
		got = append(got, string(b))
		return nil
	}}
	for _, s := range []string{"1", "2", "3"} {
		if !o.send("s", []byte(s)) {
			t.Fatal("no room")
		}
	}
	if o.send("s", []byte("4")) {
		t.Error("the bound does not hold")
	}
	close(gate)
	until(t, "there is room again", func() bool { return o.send("s", []byte("5")) })
	o.close()
	if fmt.Sprint(got) != "[1 2 3 5]" || o.bytes != 0 || o.send("s", nil) {
		t.Errorf("%v, %d bytes", got, o.bytes)
	}
}

// BenchmarkSurvey asks two other nodes over one NATS server, one question after the
// other and 64 at once.
func BenchmarkSurvey(b *testing.B) {
	a, _, _ := three(b, nil)
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if all, err := a.gather(Question{Method: "m"}); err != nil || len(all) != 2 {
				b.Fatal(err)
			}
		}
	})
	b.Run("many", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if all, err := a.gather(Question{Method: "m"}); err != nil || len(all) != 2 {
					b.Error(err)
				}
			}
		})
	})
}
