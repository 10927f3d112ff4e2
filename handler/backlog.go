package handler

import (
	"context"
	"encoding/binary"
	"runtime/debug"

	"perch/protocol"
	"perch/session"
)

// drainSlice is how many commands of a backlog run before the loop's other
// work gets its turn.
const drainSlice = 128

// work is what a session has in Session.Work while it needs it: from Open to
// connect where the handshake left an identity, and while something of its is
// under way outside the loop.
type work struct {
	identity Identity
	// busy: a command's work is not done; later ones go to the backlog.
	busy bool
	// refused: connect was answered with an error. What the client sent behind it
	// is not worth a close that tells it never to come back; it is ignored until
	// the connect timeout.
	refused bool
	// cancel ends the call under way.
	cancel context.CancelFunc
	// backlog holds the commands that wait, from at on: each behind twice its
	// length, and one more where it is to be refused as over the rate.
	backlog []byte
	at      int
}

func workOf(s *session.Session) *work {
	w, _ := s.Work.(*work)
	return w
}

func needWork(s *session.Session) *work {
	w := workOf(s)
	if w == nil {
		w = &work{}
		s.Work = w
	}
	return w
}

// Busy tells whether a command of s is under way, or waits behind one. Runs on
// the loop of s.
func (c *Commands) Busy(s *session.Session) bool {
	w := workOf(s)
	return w != nil && (w.busy || w.at < len(w.backlog)) && !w.refused
}

// Why there was no room for a command; the log says so.
const (
	noRoomRate    = "over the rate"
	noRoomBacklog = "backlog full"
	noRoomQueue   = "queue full" // of the pool, or a loop's inbox
	noRoomPending = "too much waits for the peer"
)

// noRoom answers a command that nothing has taken.
func (c *Commands) noRoom(s *session.Session, id uint32, why string) {
	if c.opts.Overflow == OverflowClose {
		c.logRefused(s, protocol.ErrTooManyRequests, why)
		s.Close(session.ReasonTooManyRequests)
		return
	}
	c.failFor(s, id, protocol.ErrTooManyRequests, why)
}

// postpone copies a command to the backlog. One over the rate waits too: answers
// keep the order of the commands.
func (c *Commands) postpone(s *session.Session, w *work, e protocol.Encoding, raw []byte, over bool) {
	waiting := len(w.backlog) - w.at
	if waiting+len(raw)+binary.MaxVarintLen32 > c.opts.SessionBytes {
		c.counters.BacklogOverflow.Add(1)
		var cmd protocol.Command
		if err := protocol.Decode(raw, e, &cmd); err != nil {
			c.malformed(s, err)
			return
		}
		c.noRoom(s, cmd.Id, noRoomBacklog)
		return
	}
	if w.at > 0 && len(w.backlog)+len(raw)+binary.MaxVarintLen32 > cap(w.backlog) {
		w.backlog = w.backlog[:copy(w.backlog, w.backlog[w.at:])]
		w.at = 0
	}
	head := uint64(len(raw)) << 1
	if over {
		head++
	}
	w.backlog = binary.AppendUvarint(w.backlog, head)
	w.backlog = append(w.backlog, raw...)
}

// offload runs slow in the pool and then, on the loop, what slow returned.
// Until then the later commands of s wait. A panic answers the command with
// error 100.
func (c *Commands) offload(s *session.Session, id uint32, size int, slow func() func(*session.Session)) bool {
	loop, name := s.Loop(), s.ID()
	if !loop.Reserve(session.PostOverhead) {
		c.counters.PoolFull.Add(1)
		c.noRoom(s, id, noRoomQueue)
		return false
	}
	w := needWork(s)
	w.busy = true
	taken := c.pool.Submit(session.PostOverhead+size, func() {
		done := func(s *session.Session) {
			c.fail(s, id, protocol.ErrInternal)
			if s.State == session.StateVerifying {
				c.refuse(s)
			}
		}
		defer func() {
			if r := recover(); r != nil {
				c.log.Error("panic in pool", "err", r, "stack", string(debug.Stack()))
			}
			loop.Post(session.PostOverhead, name, func(s *session.Session) { c.resume(s, done) })
		}()
		done = slow()
	})
	if !taken {
		loop.Release(session.PostOverhead)
		w.busy = false
		release(s)
		c.counters.PoolFull.Add(1)
		c.noRoom(s, id, noRoomQueue)
	}
	return taken
}

// resume takes the result of what was under way, and then the backlog. s is
// nil where the session has ended. Runs on the loop.
func (c *Commands) resume(s *session.Session, done func(*session.Session)) {
	if s == nil || s.Closed() {
		return
	}
	w := needWork(s)
	w.busy = false
	w.cancel = nil
	if done != nil {
		done(s)
	}
	c.drain(s)
}

// drain runs the commands of the backlog until one has to wait again.
func (c *Commands) drain(s *session.Session) {
	e := encodingOf(s)
	for n := 1; !s.Closed(); n++ {
		w := workOf(s)
		if w == nil || w.busy {
			return
		}
		if w.refused || w.at == len(w.backlog) {
			w.backlog, w.at = nil, 0
			release(s)
			return
		}
		if n%drainSlice == 0 && s.Loop().Reserve(session.PostOverhead) {
			w.busy = true
			s.Loop().Post(session.PostOverhead, s.ID(), func(s *session.Session) { c.resume(s, nil) })
			return
		}
		head, k := binary.Uvarint(w.backlog[w.at:])
		from := w.at + k
		w.at = from + int(head>>1)
		c.run(s, e, w.backlog[from:w.at], head&1 != 0)
	}
}

// release drops the work of a session that has none.
func release(s *session.Session) {
	w := workOf(s)
	if w != nil && !w.busy && !w.refused && w.cancel == nil && w.at == len(w.backlog) && w.identity == (Identity{}) {
		s.Work = nil
	}
}
