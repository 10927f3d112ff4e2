package handler

import (
	"sync"

	"perch/auth"
	"perch/session"
)

// Evictions end the live sessions of what is revoked. One walk through all
// sessions is under way at a time: what is revoked meanwhile, and be it by the
// thousand, waits for the next one, together. Safe from any goroutine.
type Evictions struct {
	each func(func(*session.Session)) (done <-chan struct{})
	stop chan struct{}
	done sync.WaitGroup

	mu     sync.Mutex
	next   revokedSet
	busy   bool
	closed bool
}

// NewEvictions makes Evictions that walk with each: it calls a function with every
// session, on its loop, and closes done at the end.
func NewEvictions(each func(func(*session.Session)) (done <-chan struct{})) *Evictions {
	return &Evictions{each: each, stop: make(chan struct{})}
}

// End ends the sessions of r. It does not block.
func (e *Evictions) End(r auth.Revocation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.next.add(r)
	if !e.busy {
		e.busy = true
		e.done.Go(e.run)
	}
}

func (e *Evictions) run() {
	for {
		e.mu.Lock()
		set := e.next
		e.next = revokedSet{}
		if e.busy = !set.empty() && !e.closed; !e.busy {
			e.mu.Unlock()
			return
		}
		e.mu.Unlock()
		walked := e.each(func(s *session.Session) {
			if set.has(s) {
				s.Close(session.ReasonInvalidToken)
			}
		})
		select {
		case <-walked:
		case <-e.stop: // the loops may be gone
			return
		}
	}
}

// Close ends the work.
func (e *Evictions) Close() {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		close(e.stop)
	}
	e.mu.Unlock()
	e.done.Wait()
}

// revokedSet is what is revoked, in the numbers that sessions keep.
type revokedSet struct {
	tokens, families map[uint64]struct{}
	clients          map[[2]uint64]struct{}
}

func put[K comparable](m *map[K]struct{}, k K) {
	if *m == nil {
		*m = make(map[K]struct{})
	}
	(*m)[k] = struct{}{}
}

func (v *revokedSet) add(r auth.Revocation) {
	family, token := marks(r.Client, r.Family, r.ID)
	switch {
	case r.ID != "":
		put(&v.tokens, token)
	case r.Family != "":
		put(&v.families, family)
	case r.Client != "":
		put(&v.clients, [2]uint64{family >> nameBits, token >> nameBits})
	}
}

func (v *revokedSet) empty() bool { return len(v.tokens)+len(v.families)+len(v.clients) == 0 }

// has runs on the session's loop.
func (v *revokedSet) has(s *session.Session) bool {
	if _, ok := v.tokens[s.Token]; ok {
		return true
	}
	if _, ok := v.families[s.Family]; ok {
		return true
	}
	_, ok := v.clients[[2]uint64{s.Family >> nameBits, s.Token >> nameBits}]
	return ok
}
