package pace

import (
	"sync"
	"time"
)

// Seldom picks the events that are worth a line in a log: what goes wrong for one
// client may go wrong for thousands in a second. The zero value is ready. Safe from
// any goroutine.
type Seldom struct {
	mu    sync.Mutex
	next  time.Time
	quiet int // events since the last one that passed
}

// Pass takes an event; true: none has passed for as long as every. quiet is how many
// have not since then.
func (s *Seldom) Pass(every time.Duration) (quiet int, ok bool) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.next) {
		s.quiet++
		return 0, false
	}
	quiet, s.quiet, s.next = s.quiet, 0, now.Add(every)
	return quiet, true
}
