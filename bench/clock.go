package bench

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// now is the machine's monotonic clock in nanoseconds. Unlike time.Now it means
// the same in every process of a run, so that a publisher's stamp can be read
// elsewhere.
func now() int64 {
	var ts unix.Timespec
	// CLOCK_MONOTONIC is always there.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// pacer gives the moments at which the events of an open loop are due: at a
// constant rate from its start, whatever became of those before.
type pacer struct {
	start int64
	rate  float64 // per second
	n     int64   // events given out
	at    int64   // the moment of the last take
	same  int     // events given out at it
}

// turnMost is how many events are given out before the sockets are looked at
// again: one that can't keep up must still read answers, and hear of its end.
const turnMost = 1024

// due is when the next event is due.
func (p *pacer) due() int64 { return p.start + int64(float64(p.n)*float64(time.Second)/p.rate) }

// take gives out the next event if it is due at t. After turnMost of them it
// says no once, with a moment that has passed: the caller comes again at once.
func (p *pacer) take(t int64) (due int64, ok bool) {
	if due = p.due(); due > t {
		return due, false
	}
	if t != p.at {
		p.at, p.same = t, 0
	}
	if p.same == turnMost {
		p.same = 0
		return due, false
	}
	p.same++
	p.n++
	return due, true
}

// wait blocks until the epoll set has an event or until the moment given.
// epoll_wait itself knows milliseconds only.
func wait(ep int, until int64) error {
	d := until - now()
	if d <= 0 {
		return nil
	}
	ts := unix.NsecToTimespec(d)
	_, err := unix.Ppoll([]unix.PollFd{{Fd: int32(ep), Events: unix.POLLIN}}, &ts, nil)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}
