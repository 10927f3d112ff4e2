package perch

import (
	"context"
	"sync"
	"time"

	"perch/session"
)

const (
	// drainRate is how many sessions a second a drain closes at the least; with
	// more than the budget allows at this rate, it is as fast as it must be.
	drainRate = 2000
	drainWave = 20 * time.Millisecond
	// drainMoment is above what netpoll gives a peer to close its side.
	drainMoment = 1200 * time.Millisecond
)

// drain closes all sessions with the code that asks them to reconnect, in
// waves, so that they don't come back all at once; then it waits until the
// peers have taken it. It returns at the latest when the budget is spent.
func (s *Server) drain(ctx context.Context) {
	budget := s.opts.Drain.Budget
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	start := time.Now()
	t := time.NewTicker(drainWave)
	defer t.Stop()
	// Once more for those whose opening handshake was under way.
	for range 2 {
		s.closeInWaves(ctx, t.C, budget)
	}
	// The last peers have a moment to take the close frame; who has sent no
	// request head by then is not waited for.
	last := time.Now()
	for ctx.Err() == nil {
		n := s.net.Stats()
		if n.Open == 0 || n.Sessions == 0 && time.Since(last) > drainMoment {
			break
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	s.log.Info("drained", "took", time.Since(start).Round(time.Millisecond), "left", s.net.Stats().Open)
}

// closeInWaves closes the sessions that there are.
func (s *Server) closeInWaves(ctx context.Context, tick <-chan time.Time, budget time.Duration) {
	ids := s.sessionIDs(ctx)
	info := session.ReasonShutdown.Info()
	// Nine tenths of the budget are for the closes, the rest for the last peers.
	rate := max(drainRate, float64(len(ids))/(budget.Seconds()*0.9))
	wave := max(1, int(rate*drainWave.Seconds()))
	for len(ids) > 0 {
		n := min(wave, len(ids))
		for _, id := range ids[:n] {
			if l := s.net.Loop(id.Loop()); l != nil {
				l.PostClose(id, session.ReasonShutdown, info.Code, info.Text)
			}
		}
		ids = ids[n:]
		select {
		case <-ctx.Done():
			return
		case <-tick:
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
	return ids
}
