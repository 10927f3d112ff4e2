package netpoll

import (
	"cmp"
	"slices"
	"sync"

	"perch/session"
)

// shedLeast is what has to be held for a connection for its end to be worth
// anything.
const shedLeast = 4 << 10

// kernelSocket is about what the kernel takes for a connection beside what waits in
// its buffers: the socket, its file, its place in the epoll set (docs/tuning.md).
const kernelSocket = 3 << 10

// KernelBytes is about what the kernel holds for the connections. Safe from any
// goroutine.
func (s *Server) KernelBytes() int64 {
	n := (s.open.Load() + s.handed.Load()) * kernelSocket
	s.each(func(l *loop) { n += l.stats.QueuedBytes.Load() })
	return n
}

// SetTight makes the server refuse new connections, with 503, while there is no
// memory for them. Safe from any goroutine.
func (s *Server) SetTight(tight bool) { s.tight.Store(tight) }

// SetRoom says how many bytes more the connections may hold, beside what they hold
// now: the brake between two looks at the memory. Who would take more is closed.
// Safe from any goroutine.
func (s *Server) SetRoom(bytes int64) { s.memory.Store(bytes) }

// brake gives c up, which has just been given more to hold, where there was no room
// for it. Afterwards c may be gone.
func (c *conn) brake() {
	if c.loop.server.memory.Load() < 0 {
		c.giveUp()
	}
}

// holding is a connection and the bytes that are held for it.
type holding struct {
	id    session.ID
	bytes int
}

// held is what stands in memory for c beside its place in the table. Frames that
// wait for several peers count for each of them.
func (c *conn) held() int {
	n := 0
	if c.out != nil && c.out.blocked {
		n += c.out.bytes
	}
	if c.in != nil {
		n += c.in.counted
		if c.in.later != nil {
			n += c.in.later.size()
		}
		if c.in.job != nil {
			n += len(c.in.job.in) + c.in.job.waits()
		}
	}
	return n
}

// Shed closes those connections for which the most is held, what waits for a slow
// peer or has not come whole, until want bytes are let go. It returns how many
// that were, and what was held for them. It waits for the loops: not for a loop's
// goroutine.
func (s *Server) Shed(want int64) (closed int, bytes int64) {
	var mu sync.Mutex
	var all []holding
	done := s.eachConn(func(l *loop, c *conn) {
		if n := c.held(); n >= shedLeast && c.mode != modeLinger {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, holding{c.id(), n})
		}
	})
	select {
	case <-done:
	case <-s.done:
		return 0, 0
	}
	mu.Lock()
	defer mu.Unlock()
	slices.SortFunc(all, func(a, b holding) int { return cmp.Compare(b.bytes, a.bytes) })
	for _, h := range all {
		if bytes >= want {
			break
		}
		l := s.loop(h.id.Loop())
		if l == nil {
			continue
		}
		closed++
		bytes += int64(h.bytes)
		l.Post(0, 0, func(*session.Session) {
			if c := l.at(h.id); c != nil {
				l.guard(c, c.giveUp)
			}
		})
	}
	return closed, bytes
}

// giveUp ends a connection for the memory that it holds.
func (c *conn) giveUp() {
	if c.mode >= modeLinger {
		return // it goes already
	}
	r := session.ReasonMemory
	if c.sess.Encoding == session.EncodingNone {
		r = session.ReasonMemoryPlain
	}
	c.loop.stats.Slow.Add(1)
	c.shed()
	c.releaseIn()
	c.fail(r)
}
