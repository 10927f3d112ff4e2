package bench

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// slowServer echoes, and does it as late as it is told.
type slowServer struct {
	l    net.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex
	open []net.Conn
	// delay goes by before each answer.
	delay time.Duration
	// After stallAt messages, 0 for never, nobody is read from until stall is over.
	stallAt int64
	stall   time.Duration
	read    atomic.Int64
	stalled chan struct{} // closed when the stall is over
	// Each swallow'th message gets no answer; 0: all get one.
	swallow int64
	ended   chan struct{}
}

func startSlow(t *testing.T, s *slowServer) *slowServer {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.l, s.stalled, s.ended = l, make(chan struct{}), make(chan struct{})
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.open = append(s.open, c)
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(s.ended)
		s.mu.Lock()
		for _, c := range s.open {
			c.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

// serve answers in order, each message delay after it came.
func (s *slowServer) serve(c net.Conn) {
	defer c.Close()
	if _, err := ws.Upgrade(c); err != nil {
		return
	}
	type answer struct {
		at time.Time
		p  []byte
	}
	answers := make(chan answer, 10000)
	s.wg.Go(func() {
		for a := range answers {
			select {
			case <-time.After(time.Until(a.at)):
			case <-s.ended:
			}
			if err := wsutil.WriteServerText(c, a.p); err != nil {
				c.Close()
			}
		}
	})
	defer close(answers)
	for {
		p, err := wsutil.ReadClientText(c)
		if err != nil {
			return
		}
		n := s.read.Add(1)
		if n == s.stallAt {
			time.AfterFunc(s.stall, func() { close(s.stalled) })
		}
		if s.stallAt > 0 && n >= s.stallAt {
			select {
			case <-s.stalled:
			case <-s.ended:
			}
		}
		if s.swallow > 0 && n%s.swallow == 0 {
			continue
		}
		answers <- answer{time.Now().Add(s.delay), p}
	}
}

func (s *slowServer) echo(t *testing.T, o Options) Result {
	t.Helper()
	o.Scenario, o.URL = Echo, "ws://"+s.l.Addr().String()+"/"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := Run(ctx, o, Command{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Failed > 0 {
		t.Fatalf("%d failed, first: %s", r.Failed, r.FirstError)
	}
	return r
}

// TestKnownDelay: a server that takes 50 ms is reported to take 50 ms, in both
// modes.
func TestKnownDelay(t *testing.T) {
	const delay = 50 * time.Millisecond
	for _, c := range []struct {
		mode string
		o    Options
	}{
		{OpenLoop, Options{Rate: 400}},
		{ClosedLoop, Options{}},
	} {
		t.Run(c.mode, func(t *testing.T) {
			s := startSlow(t, &slowServer{delay: delay})
			c.o.Connections, c.o.Duration, c.o.Warmup = 20, time.Second, 200*time.Millisecond
			r := s.echo(t, c.o)
			if r.Mode != c.mode {
				t.Errorf("mode %q, want %q", r.Mode, c.mode)
			}
			if r.Latency == nil || r.Latency.Min < delay {
				t.Fatalf("latency %+v: below the server's own delay", r.Latency)
			}
			if p50, _ := r.Latency.at(50); p50 > 2*delay {
				t.Errorf("p50 is %s, the server's delay %s", p50, delay)
			}
			if c.mode == ClosedLoop && (r.Rate < 100 || r.Rate > 420) {
				t.Errorf("%.0f messages/s, at most 400 can be of 20 connections that wait %s each", r.Rate, delay)
			}
		})
	}
}

// TestCoordinatedOmission: a server that stands still for a second out of two
// and a half has made every message late that was due meanwhile, by half a
// second on average: a generator that waits with it would report one late
// message a connection.
func TestCoordinatedOmission(t *testing.T) {
	const (
		stall    = time.Second
		duration = 2500 * time.Millisecond
		rate     = 1000
	)
	s := startSlow(t, &slowServer{stallAt: rate / 2, stall: stall})
	r := s.echo(t, Options{Rate: rate, Connections: 10, Duration: duration, Warmup: 200 * time.Millisecond})
	if want := rate * duration.Seconds(); float64(r.Count) < 0.9*want {
		t.Errorf("%d messages counted, %.0f were due", r.Count, want)
	}
	if r.Latency.Max < 9*stall/10 {
		t.Errorf("the longest took %s, the server stood still for %s", r.Latency.Max, stall)
	}
	// Due in the stall: 40 % of all, evenly late.
	if p75, _ := r.Latency.at(75); p75 < stall/4 {
		t.Errorf("p75 is %s; two of five messages were due while the server stood still for %s", p75, stall)
	}
	if p90, _ := r.Latency.at(90); p90 < stall/2 {
		t.Errorf("p90 is %s after a stall of %s", p90, stall)
	}
}

// TestMissingDeliveries: a server that drops every tenth message is told to
// have failed by as many.
func TestMissingDeliveries(t *testing.T) {
	s := startSlow(t, &slowServer{swallow: 10})
	// With one connection an echo is a delivery to all.
	o, err := Options{Scenario: Fanout, URL: "ws://" + s.l.Addr().String() + "/", Connections: 1, Rate: 200,
		Duration: time.Second, Warmup: 200 * time.Millisecond}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	coordinator := &run{o: o, see: silent{}}
	g, err := newGenerator(t.Context(), o, 0, coordinator.phase)
	if err != nil {
		t.Fatal(err)
	}
	g.answerLimit = 500 * time.Millisecond
	share, err := g.run()
	if err != nil {
		t.Fatal(err)
	}
	r, err := coordinator.finish([]shareResult{share})
	if err != nil {
		t.Fatal(err)
	}
	all := r.Count + r.Failed
	if all < 150 || r.Failed < all/10-1 || r.Failed > all/10+1 {
		t.Errorf("%d delivered, %d failed", r.Count, r.Failed)
	}
	if !strings.Contains(r.FirstError, "are missing") {
		t.Errorf("the first failure: %q", r.FirstError)
	}
}
