package perch

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"perch/session"
)

const (
	drainWave = 20 * time.Millisecond
	// Of the budget, the waves take at most this part; what was still at work is
	// closed all the same at drainForced, and the rest is for the peers to take it
	// and for requests and methods to end.
	drainWaves  = 0.75
	drainForced = 0.85
	drainPeers  = 0.95
	// drainMoment is above what netpoll gives a peer to close its side.
	drainMoment = 1200 * time.Millisecond
	// drainTries is how often a session to which publications are under way is
	// looked at again, a wave apart: a topic that never rests holds nobody.
	drainTries = 25
)

// wave is a number of sessions that are closed at once.
type wave struct {
	at time.Duration // since the waves began
	n  int
}

// planWaves spreads n closes over as long as rate, a second, makes it, and over
// most of the budget at the longest: where the rate is too low for that it is
// as high as it must be. Waves are 20 ms apart, or as far as one session a wave
// needs. Each comes at a random moment of its time, so that the processes of a
// fleet that are told to end together don't send theirs away in step.
func planWaves(n int, rate float64, budget time.Duration, random func() float64) []wave {
	if n == 0 {
		return nil
	}
	span := max(0, min(float64(n)/rate*float64(time.Second), drainWaves*float64(budget)))
	count := min(n, max(1, int(span/float64(drainWave))))
	step := span / float64(count)
	waves := make([]wave, count)
	for i := range waves {
		waves[i] = wave{
			at: time.Duration((float64(i) + random()) * step),
			n:  n*(i+1)/count - n*i/count,
		}
	}
	return waves
}

// drain closes all sessions with the code that asks them to reconnect.
type drain struct {
	server *Server
	begun  time.Time
	budget time.Duration

	mu   sync.Mutex
	late []lateSession
}

// lateSession is one that had something under way when its turn came.
type lateSession struct {
	id    session.ID
	tries int
}

// drain closes the sessions in waves, in random order, then waits until the
// peers have taken it. It returns at the latest when ctx ends.
func (s *Server) drain(ctx context.Context, begun time.Time) {
	d := &drain{server: s, begun: begun, budget: s.live.Load().Drain.Budget}
	d.run(ctx)
	forced := d.force(ctx)
	// The last peers have a moment to take the close frame; who has sent no
	// request head by then is not waited for.
	last := time.Now()
	for ctx.Err() == nil && d.spent() < drainPeers {
		n := s.net.Stats()
		if n.Open == 0 || n.Sessions == 0 && time.Since(last) > drainMoment {
			break
		}
		pause(ctx, drainWave)
	}
	s.log.Info("drained", "took", time.Since(begun).Round(time.Millisecond), "forced", forced, "left", s.net.Stats().Open)
}

// spent is the part of the budget that is gone.
func (d *drain) spent() float64 {
	if d.budget <= 0 {
		return 1
	}
	return float64(time.Since(d.begun)) / float64(d.budget)
}

// run goes through the sessions, and once more through those whose opening
// handshake was under way.
func (d *drain) run(ctx context.Context) {
	for range 2 {
		d.server.sync(ctx)
		ids := d.fresh(d.server.sessionIDs(ctx))
		rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		from := time.Now()
		for _, w := range planWaves(len(ids), float64(d.server.live.Load().Drain.Rate), d.budget-time.Since(d.begun), rand.Float64) {
			if !pause(ctx, w.at-time.Since(from)) {
				return
			}
			for _, id := range ids[:w.n] {
				d.close(id, 0)
			}
			ids = ids[w.n:]
			d.again()
		}
	}
	for ctx.Err() == nil && d.spent() < drainForced {
		// What has been posted is looked at: the list is whole when it has come back.
		if d.server.sync(ctx); d.count() == 0 {
			return
		}
		d.again()
		pause(ctx, drainWave)
	}
}

// close ends a session unless something of it is under way: a command that has
// been taken is answered first, and a publication that has been acknowledged
// is delivered.
func (d *drain) close(id session.ID, tries int) {
	s := d.server
	l := s.net.Loop(id.Loop())
	if l == nil {
		return
	}
	l.Post(0, id, func(p *session.Session) {
		switch {
		case p == nil:
		case s.commands.Busy(p):
			d.postpone(id, tries)
		case tries < drainTries && !s.topics.Settled(p):
			d.postpone(id, tries+1)
		default:
			p.Close(session.ReasonShutdown)
		}
	})
}

func (d *drain) postpone(id session.ID, tries int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.late = append(d.late, lateSession{id, tries})
}

// fresh is ids without those that were late.
func (d *drain) fresh(ids []session.ID) []session.ID {
	d.mu.Lock()
	defer d.mu.Unlock()
	late := make(map[session.ID]bool, len(d.late))
	for _, l := range d.late {
		late[l.id] = true
	}
	return slices.DeleteFunc(ids, func(id session.ID) bool { return late[id] })
}

func (d *drain) take() []lateSession {
	d.mu.Lock()
	defer d.mu.Unlock()
	late := d.late
	d.late = nil
	return late
}

func (d *drain) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.late)
}

// again looks at those that were late.
func (d *drain) again() {
	for _, l := range d.take() {
		d.close(l.id, l.tries)
	}
}

// force closes those that are at work still, and tells how many.
func (d *drain) force(ctx context.Context) int {
	// What has been posted last may not have been looked at: all that are left are
	// asked for anew.
	d.take()
	ids := d.server.sessionIDs(ctx)
	info := session.ReasonShutdown.Info()
	for _, id := range ids {
		if loop := d.server.net.Loop(id.Loop()); loop != nil {
			loop.PostClose(id, session.ReasonShutdown, info.Code, info.Text)
		}
	}
	return len(ids)
}

// pause waits; false: ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// sync waits until all loops have done what was posted before.
func (s *Server) sync(ctx context.Context) {
	var done []chan struct{}
	s.net.Each(func(l session.Loop) {
		c := make(chan struct{})
		done = append(done, c)
		l.Post(0, 0, func(*session.Session) { close(c) })
	})
	for _, c := range done {
		select {
		case <-c:
		case <-ctx.Done():
			return
		}
	}
}

// sessionIDs asks all loops for their sessions.
func (s *Server) sessionIDs(ctx context.Context) []session.ID {
	var mu sync.Mutex
	var ids []session.ID
	done := s.net.EachSession(func(p *session.Session) {
		mu.Lock()
		ids = append(ids, p.ID())
		mu.Unlock()
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(ids)
}
