package netpoll

import (
	"time"

	"perch/internal/pace"
	"perch/session"
)

const (
	// tick is the wheel's grain: no deadline is met earlier than asked, and none
	// more than about two ticks late.
	tick = 100 * time.Millisecond
	// wheelSlots ticks are one turn of the wheel, 51.2 s: what is due later is
	// looked at once a turn.
	wheelSlots = 512
)

// wheel is a hashed timing wheel over the conns of a loop. Its lists run
// through the conns by slot number + 1, so that it costs 12 bytes a conn and
// the garbage collector sees none of it. It is lazy: activity moves no entry,
// an entry that comes up too early is put back.
type wheel struct {
	heads [wheelSlots]uint32
	now   uint32 // ticks since the loop began
	count int
}

// ticks is d in ticks, rounded up, at least 1.
func ticks(d time.Duration) uint32 {
	return uint32(min(max(1, (d+tick-1)/tick), maxTicks))
}

// maxTicks is a year: further deadlines are looked at again by then.
const maxTicks = 365 * 24 * time.Hour / tick

// present is the tick of now. The hand may lag behind it: a loop without
// connections does not turn its wheel, so an empty one is set right here.
func (l *loop) present() uint32 {
	now := uint32(time.Since(l.start) / tick)
	if l.wheel.count == 0 && now > l.wheel.now {
		l.wheel.now = now
	}
	return now
}

// schedule puts c into the wheel, or moves it: it comes up at the tick due, or a
// turn from now where that is earlier.
func (l *loop) schedule(c *conn, due uint32) {
	l.unschedule(c)
	due = max(due, l.wheel.now+1)
	due = min(due, l.wheel.now+wheelSlots-1)
	c.due = due
	at := &l.wheel.heads[due%wheelSlots]
	c.next = *at
	if *at != 0 {
		l.conn(*at - 1).prev = c.slot + 1
	}
	*at = c.slot + 1
	l.wheel.count++
}

// unschedule takes c out of the wheel.
func (l *loop) unschedule(c *conn) {
	if c.due == 0 {
		return
	}
	if c.prev != 0 {
		l.conn(c.prev - 1).next = c.next
	} else {
		l.wheel.heads[c.due%wheelSlots] = c.next
	}
	if c.next != 0 {
		l.conn(c.next - 1).prev = c.prev
	}
	c.due, c.prev, c.next = 0, 0, 0
	l.wheel.count--
}

// firesPerSlice bounds the deadlines met in one slice of a turn: at about
// 10 µs a ping, some 1.3 ms of the loop.
const firesPerSlice = 128

// stallTicks is how far behind the wheel is after a stall; a busy loop's lag is
// a tick or two.
const stallTicks = 5

// turnWheel brings the wheel up to the present. It is a session.Task.
type turnWheel struct{ l *loop }

func (t turnWheel) Run() (more bool) {
	l := t.l
	target := l.present()
	if target > l.wheel.now+stallTicks {
		l.stalled = target
	}
	for fired := 0; ; {
		// All that stands at the hand's place is due. The hand moves on when the
		// place is empty; nothing is scheduled there meanwhile.
		at := &l.wheel.heads[l.wheel.now%wheelSlots]
		for *at != 0 {
			if fired == firesPerSlice {
				return true
			}
			fired++
			c := l.conn(*at - 1)
			l.unschedule(c)
			l.guard(c, c.fire)
		}
		if l.wheel.now >= target {
			l.storm.tick(l.stats.Accepted.Load(), l.server.opts.Loops)
			l.press.tick(l.present())
			if l.server.limits.Load().MessageRate == 0 {
				l.paces = pace.Table[session.ID]{} // there may have been one
			}
			l.stats.Timers.Set(int64(l.wheel.count))
			l.asked.Store(0)
			return false
		}
		l.wheel.now++
	}
}
