package netpoll

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"perch/session"
)

// turnBudget is how long one turn of the inbox takes at the most before the
// sockets get theirs.
const turnBudget = 2 * time.Millisecond

// turnItems is how many items one turn takes at the most, however fast they
// are.
const turnItems = 4096

// inlineAt is how much may wait in an inbox before the loop sees to it between
// two sockets. Without that, what one round of sockets posts to its own loop
// would pile up until the round is over.
const inlineAt = 256 << 10

// idleItems is how much room an idle inbox keeps, in items.
const idleItems = 256

// item is one post. n bytes of the inbox's bound are given back when it is
// done.
type item struct {
	id     session.ID
	f      func(*session.Session)
	task   session.Task
	text   string
	n      int32
	code   uint16
	kind   itemKind
	reason session.Reason
}

type itemKind uint8

const (
	itemPost itemKind = iota
	itemTask
	itemClose
	itemWritable
	itemLate
)

// inbox is the one way into a loop: ordered, bounded in bytes, any number of
// writers, one reader.
type inbox struct {
	// Any goroutine.
	bytes    atomic.Int64
	rejected atomic.Uint64
	limit    int64

	mu    sync.Mutex
	items []item
	awake bool // the loop has been woken and has not yet found the inbox empty

	// The loop's.
	current []item
	at      int
}

// due tells whether the loop has been woken for the inbox and has not yet found
// it empty.
func (in *inbox) due() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.awake
}

// Reserve implements session.Loop.
func (l *loop) Reserve(n int) bool {
	if l.inbox.bytes.Add(int64(n)) > l.inbox.limit {
		l.inbox.bytes.Add(int64(-n))
		l.inbox.rejected.Add(1)
		return false
	}
	return true
}

// Release implements session.Loop.
func (l *loop) Release(n int) { l.inbox.bytes.Add(int64(-n)) }

// Post implements session.Loop.
func (l *loop) Post(n int, id session.ID, f func(*session.Session)) {
	l.put(item{kind: itemPost, id: id, f: f, n: int32(n)})
}

// PostTask implements session.Loop.
func (l *loop) PostTask(n int, t session.Task) {
	l.put(item{kind: itemTask, task: t, n: int32(n)})
}

// PostClose implements session.Loop.
func (l *loop) PostClose(id session.ID, r session.Reason, code uint16, text string) {
	l.put(item{kind: itemClose, id: id, reason: r, code: code, text: text})
}

func (l *loop) put(it item) {
	l.inbox.mu.Lock()
	l.inbox.items = append(l.inbox.items, it)
	wake := !l.inbox.awake
	l.inbox.awake = true
	l.inbox.mu.Unlock()
	if wake {
		l.wake()
	}
}

// wake makes gnet run the inbox. The error says that the engine is at its end:
// then nothing runs any more. Safe from any goroutine.
func (l *loop) wake() {
	_ = l.events.Execute(context.Background(), l.drain)
}

// drainTask is what gnet runs. One prebuilt value serves all wake-ups of a
// loop.
type drainTask struct{ l *loop }

// Run implements gnet.Runnable.
func (d drainTask) Run(context.Context) error {
	d.l.turn(true)
	return nil
}

// turn works through the inbox for at most about turnBudget, then lets the
// frames of the turn out. What is left waits until the sockets had their turn:
// it is woken from another goroutine, since gnet runs a task that a task gives
// it before it looks at the sockets. woken says that a wake-up brought the turn
// about. Between two sockets none did: then the one on its way stays due.
func (l *loop) turn(woken bool) {
	in := &l.inbox
	start := time.Now()
	done := 0
	for {
		if in.at == len(in.current) && !l.refill(woken) {
			break
		}
		done++
		it := &in.current[in.at]
		in.at++
		long := it.kind == itemTask || it.kind == itemLate
		if more := l.run(it); more {
			again := *it
			*it = item{}
			in.mu.Lock()
			in.items = append(in.items, again)
			in.mu.Unlock()
		} else {
			if it.n != 0 {
				in.bytes.Add(-int64(it.n))
			}
			*it = item{}
		}
		if len(l.dirty) >= flushAt {
			l.flushDirty()
		}
		if done == turnItems || (long || done%16 == 0) && time.Since(start) > turnBudget {
			if woken {
				l.server.kicks <- l
			}
			break
		}
	}
	l.flushDirty()
	l.stats.MostItems.see(done)
	l.stats.Turns.Add(1)
}

// refill takes what has been posted since; false: there is nothing, and after
// a turn that was woken the next post wakes the loop.
func (l *loop) refill(woken bool) bool {
	in := &l.inbox
	in.mu.Lock()
	defer in.mu.Unlock()
	spare := in.current[:0]
	in.at = 0
	if len(in.items) == 0 {
		in.awake = in.awake && !woken
		if cap(spare) > idleItems {
			spare = nil
		}
		if cap(in.items) > idleItems {
			in.items = nil
		}
		in.current = spare
		return false
	}
	in.current, in.items = in.items, spare
	return true
}

func (l *loop) run(it *item) (more bool) {
	defer func() {
		if p := recover(); p != nil {
			l.panicked(p)
			more = false
		}
	}()
	switch it.kind {
	case itemTask:
		return it.task.Run()
	case itemPost:
		c := l.find(it.id)
		if c == nil {
			it.f(nil)
			return false
		}
		it.f(&c.sess)
	case itemClose:
		if c := l.find(it.id); c != nil {
			c.CloseWith(it.reason, it.code, it.text)
		}
	case itemWritable:
		if c := l.at(it.id); c != nil {
			c.writable()
		}
	case itemLate:
		return l.serveLate()
	}
	return false
}

// kicker wakes the loops that have used up their turn. One goroutine serves
// all loops.
func (s *Server) kicker() {
	defer s.background.Done()
	for {
		select {
		case l := <-s.kicks:
			l.wake()
		case <-s.done:
			return
		}
	}
}
