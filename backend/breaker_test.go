package backend

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestBreaker: a method that fails again and again is not asked any more, while
// another of the same backend is; one call tries later, and closes it or not.
func TestBreaker(t *testing.T) {
	var broken atomic.Bool
	var asked atomic.Int64
	broken.Store(true)
	b := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/rpc" {
			if asked.Add(1); broken.Load() {
				w.WriteHeader(500)
				return
			}
		}
		says(`{"result":{}}`)(w, r)
	})
	c, log := newClient(t, b.URL, Options{BreakerFailures: 3, BreakerOpen: 50 * time.Millisecond}, RPC, Connect)
	for range 3 {
		if err := c.rpc(t.Context()); !errors.Is(err, ErrFailed) {
			t.Fatal(err)
		}
	}
	for range 100 {
		if err := c.rpc(t.Context()); err == nil {
			t.Fatal("answered")
		}
	}
	// Were 50 ms over meanwhile, one more of them was asked, or two.
	if n := asked.Load(); n > 10 || c.outcomes(RPC)[outcomeOpen] < 90 {
		t.Errorf("asked %d times, %v", n, c.outcomes(RPC))
	}
	if err := c.connect(t.Context()); err != nil {
		t.Errorf("another method: %v", err)
	}
	eventually(t, "it is tried again, in vain", func() bool {
		before := asked.Load()
		return c.rpc(t.Context()) != nil && asked.Load() > before
	})
	broken.Store(false)
	eventually(t, "it is tried again", func() bool { return c.rpc(t.Context()) == nil })
	for range 10 {
		if err := c.rpc(t.Context()); err != nil {
			t.Errorf("closed, and %v", err)
		}
	}
	if st := c.Stats(); st.Methods[1].Breaker != 0 {
		t.Errorf("%+v", st.Methods)
	}
	for _, line := range []string{"its circuit breaker is open", "backend is asked again"} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("not logged: %s", line)
		}
	}
}

// TestBreakerHalfOpen: while one call tries, the others don't.
func TestBreakerHalfOpen(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	var broken atomic.Bool
	broken.Store(true)
	b := newService(t, func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			w.WriteHeader(500)
			return
		}
		entered <- struct{}{}
		<-release
		says(`{"result":{}}`)(w, r)
	})
	c, _ := newClient(t, b.URL, Options{BreakerFailures: 1, BreakerOpen: time.Millisecond, Timeout: patience}, RPC)
	_ = c.rpc(t.Context())
	broken.Store(false)
	eventually(t, "the breaker is half open", func() bool { return c.Stats().Methods[0].Breaker == 1 })
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.rpc(t.Context()); err != nil {
			t.Error(err)
		}
	})
	await(t, "the call that tries", entered)
	for range 5 {
		if err := c.rpc(t.Context()); !errors.Is(err, ErrOpen) {
			t.Errorf("got %v", err)
		}
	}
	close(release)
	wg.Wait()
	if n := b.asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

// TestBreakerStaysClosed: what is no sign of a broken backend opens nothing.
func TestBreakerStaysClosed(t *testing.T) {
	var n atomic.Int64
	for name, answer := range map[string]http.HandlerFunc{
		"refusals":       says(`{"error":{"code":1000}}`),
		"disconnects":    says(`{"disconnect":{"code":4000}}`),
		"client's fault": http.NotFound,
		"too large":      says(strings.Repeat(" ", 2000)),
		"flapping": func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1)%2 == 0 {
				w.WriteHeader(500)
				return
			}
			says(`{"result":{}}`)(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newService(t, answer)
			c, _ := newClient(t, b.URL, Options{BreakerFailures: 2, ResponseSize: 1 << 10, Retries: -1}, RPC)
			for range 10 {
				_ = c.rpc(t.Context())
			}
			if b.asked.Load() != 10 {
				t.Errorf("asked %d times of 10", b.asked.Load())
			}
		})
	}
	t.Run("sessions that go", func(t *testing.T) {
		entered := make(chan struct{}, 1)
		b := newService(t, func(w http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			silent(w, r)
		})
		c, log := newClient(t, b.URL, Options{BreakerFailures: 2, Timeout: patience}, RPC)
		for range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = c.rpc(ctx) })
			await(t, "a call", entered)
			cancel()
			wg.Wait()
		}
		if c.Stats().Methods[0].Breaker != 0 || c.outcomes(RPC)[outcomeCancelled] != 5 || log.String() != "" {
			t.Errorf("%v, %s", c.outcomes(RPC), log)
		}
	})
	t.Run("callers whose time ends", func(t *testing.T) {
		entered := make(chan struct{}, 1)
		b := newService(t, func(w http.ResponseWriter, r *http.Request) {
			entered <- struct{}{}
			silent(w, r)
		})
		c, log := newClient(t, b.URL, Options{BreakerFailures: 2, Timeout: patience, Least: time.Millisecond}, RPC)
		for range 5 {
			ctx := &lapsing{Context: t.Context(), done: make(chan struct{})}
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := c.rpc(ctx); !errors.Is(err, errLate) {
					t.Errorf("got %v", err)
				}
			})
			await(t, "a call", entered)
			close(ctx.done)
			wg.Wait()
		}
		if c.Stats().Methods[0].Breaker != 0 || c.outcomes(RPC)[outcomeLate] != 5 || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("%v, %s", c.outcomes(RPC), log)
		}
	})
	t.Run("callers without time", func(t *testing.T) {
		b := newService(t, says(`{"result":{}}`))
		c, _ := newClient(t, b.URL, Options{BreakerFailures: 2, Timeout: patience, Least: patience / 2}, RPC)
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), patience/2-time.Second)
			if err := c.rpc(ctx); !errors.Is(err, errLate) || !errors.Is(err, ErrFailed) {
				t.Errorf("got %v", err)
			}
			cancel()
		}
		st := c.Stats().Methods[0]
		if b.asked.Load() != 0 || st.Breaker != 0 || st.Calls[outcomeLate] != 5 || st.Times.Count != 0 {
			t.Errorf("asked %d times, %+v", b.asked.Load(), st)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := c.rpc(ctx); err != nil {
			t.Errorf("with time enough: %v", err)
		}
	})
	t.Run("a wait for a connection above the timeout", func(t *testing.T) {
		b := newService(t, says(`{"result":{}}`))
		c, _ := newClient(t, b.URL, Options{BreakerFailures: 2, Connections: 1, Timeout: 20 * time.Millisecond, Wait: patience}, RPC)
		e := c.endpoints[RPC]
		if err := e.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if err := c.rpc(t.Context()); !errors.Is(err, errBusy) {
				t.Errorf("got %v", err)
			}
		}
		e.give()
		if st := c.Stats().Methods[0]; st.Breaker != 0 || st.Calls[outcomeBusy] != 5 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("none", func(t *testing.T) {
		b := newService(t, http.NotFound)
		b.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			b.asked.Add(1)
			w.WriteHeader(500)
		})
		c, _ := newClient(t, b.URL, Options{BreakerFailures: -1}, RPC)
		for range 20 {
			_ = c.rpc(t.Context())
		}
		if b.asked.Load() != 20 {
			t.Errorf("asked %d times of 20", b.asked.Load())
		}
	})
}

// lapsing is a context whose deadline is over when the test says so.
type lapsing struct {
	context.Context
	done chan struct{}
}

func (l *lapsing) Done() <-chan struct{} { return l.done }

func (l *lapsing) Err() error {
	select {
	case <-l.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// TestBreakerOpensUnderLoad: silence is a sign also where callers have just the
// time that a call needs.
func TestBreakerOpensUnderLoad(t *testing.T) {
	b := newService(t, silent)
	const timeout = 50 * time.Millisecond
	c, _ := newClient(t, b.URL, Options{BreakerFailures: 2, BreakerOpen: time.Hour, Timeout: timeout, Retries: -1}, RPC)
	eventually(t, "the breaker is open", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), timeout+time.Millisecond)
		defer cancel()
		_ = c.rpc(ctx)
		return c.Stats().Methods[0].Breaker == 2
	})
}

// TestBreakerOpens: each of these is a sign.
func TestBreakerOpens(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"500":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"429":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) },
		"redirect": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(302) },
		"garbage":  says("?"),
		"silence":  silent,
		"closing": func(w http.ResponseWriter, _ *http.Request) {
			if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_ = c.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newService(t, answer)
			c, _ := newClient(t, b.URL, Options{BreakerFailures: 2, BreakerOpen: time.Hour, Timeout: 50 * time.Millisecond}, RPC)
			for range 10 {
				_ = c.rpc(t.Context())
			}
			if b.asked.Load() != 2 || c.outcomes(RPC)[outcomeOpen] != 8 || c.Stats().Methods[0].Breaker != 2 {
				t.Errorf("asked %d times of 10, %v", b.asked.Load(), c.outcomes(RPC))
			}
		})
	}
}

// TestComplaints: a backend that is down does not fill the log.
func TestComplaints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logBuffer{}
		c := complaints{log: slog.New(slog.NewTextHandler(log, nil)), method: "rpc", backend: "b:1"}
		for range 100 {
			c.add(outcomeTimeout, ErrFailed)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "more=0") {
			t.Errorf("logged %s", log)
		}
		time.Sleep(logEvery) // the bubble's clock
		c.add(outcomeTimeout, ErrFailed)
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "more=99") {
			t.Errorf("logged %s", log)
		}
	})
}
