// Package pace limits how often something happens: to all together, or to each
// of many keys. It is a token bucket told as a time (the generic cell rate
// algorithm of ITU-T I.371): no timer fills it, and a key that is at rest costs
// nothing.
package pace

import "time"

// Rate is how often: Count times a second, with a burst of as many. The zero
// Rate is no bound.
type Rate struct{ Count int }

// window is what a whole bucket is worth.
const window = int64(time.Second)

func (r Rate) interval() int64 { return max(1, window/int64(r.Count)) }

// next is the bucket after one event more at now, and how long that event has to
// wait for it; ok: at most wait. at is the theoretical arrival time so far. All
// are in nanoseconds.
func (r Rate) next(at, now, wait int64) (after, delay int64, ok bool) {
	after = max(at, now) + r.interval()
	delay = max(0, after-now-window)
	return after, delay, delay <= wait
}

// Limiter is one bucket. It belongs to one goroutine, or stands under a lock.
type Limiter struct {
	Rate Rate
	at   int64
}

// Reserve takes an event at now (nanoseconds of any clock that does not go back)
// and says how long it has to wait; false: longer than wait, and it is not taken.
func (l *Limiter) Reserve(now int64, wait time.Duration) (delay time.Duration, ok bool) {
	if l.Rate.Count <= 0 {
		return 0, true
	}
	after, d, ok := l.Rate.next(l.at, now, int64(wait))
	if ok {
		l.at = after
	}
	return time.Duration(d), ok
}

// Table is a bucket for each key. A full bucket and one that was never used are
// the same, so a key is forgotten a second or two after its last event. It
// belongs to one goroutine, or stands under a lock.
type Table[K comparable] struct {
	Rate Rate
	// young are the buckets used since turned, old those of the window before:
	// what is older is full again.
	young, old map[K]int64
	turned     int64
}

// Allow takes an event of k at now (nanoseconds of any clock that does not go
// back); false: its bucket is empty, and the event is not taken.
func (t *Table[K]) Allow(k K, now int64) bool {
	if t.Rate.Count <= 0 {
		t.young, t.old = nil, nil // the bound has been taken away
		return true
	}
	if now-t.turned >= window+t.Rate.interval() {
		t.turn(now)
	}
	at, ok := t.young[k]
	if !ok {
		at = t.old[k]
	}
	after, _, ok := t.Rate.next(at, now, 0)
	if ok {
		if t.young == nil {
			t.young = make(map[K]int64)
		}
		t.young[k] = after
	}
	return ok
}

// turn forgets who is at rest. The maps go too: one keeps the room of the most
// that it ever had.
func (t *Table[K]) turn(now int64) {
	t.old, t.young = t.young, nil
	if now-t.turned >= 2*(window+t.Rate.interval()) {
		t.old = nil
	}
	t.turned = now
}

// Len is how many keys are remembered.
func (t *Table[K]) Len() int { return len(t.young) + len(t.old) }
