package cluster

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// replies brings the answers of NATS to whoever waits for them, with one
// subscription for all and no goroutine for each. What is under way ends after
// the timeout, and at once where the connection is lost.
type replies struct {
	nc      *nats.Conn
	prefix  string // of the subjects that answers come to, with the dot behind
	timeout time.Duration

	mu    sync.Mutex
	next  uint64
	wait  map[uint64]*call
	order []timed // by their time, from first on
	first int

	stop chan struct{}
	done sync.WaitGroup
}

// call is one that waits. got is called with each answer, and at the end with nil
// and an error where no more comes; it tells whether more is to come. It runs on a
// goroutine of the connection's, or the one that ends it, and does not block.
type call struct {
	got  func(m *nats.Msg, err error) (more bool)
	room int64         // that it takes until it ends,
	of   *atomic.Int64 // of this; nil: of nothing

	mu   sync.Mutex
	over bool
}

// answer brings one answer, or the end, unless it has ended; it tells whether more
// is to come.
func (c *call) answer(m *nats.Msg, err error) (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	more = c.got(m, err)
	if c.over = !more; c.over && c.of != nil {
		c.of.Add(-c.room)
	}
	return more
}

type timed struct {
	token uint64
	ends  int64 // Unix nanoseconds
}

const sweepReplies = 100 * time.Millisecond

func newReplies(l *Link) (*replies, error) {
	r := &replies{
		nc: l.nc, prefix: nats.NewInbox() + ".", timeout: l.opts.Timeout, wait: make(map[uint64]*call), stop: make(chan struct{}),
	}
	sub, err := l.nc.Subscribe(r.prefix+"*", r.take)
	if err != nil {
		return nil, err
	}
	// Answers are bounded by those who wait for them.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	r.done.Go(r.sweep)
	return r, nil
}

// expect gives the subject to which the answers of a call are to come, and its
// token.
func (r *replies) expect(c *call) (string, uint64) {
	ends := time.Now().Add(r.timeout).UnixNano()
	r.mu.Lock()
	r.next++
	t := r.next
	r.wait[t] = c
	r.order = append(r.order, timed{t, ends})
	r.mu.Unlock()
	return r.prefix + strconv.FormatUint(t, 36), t
}

func (r *replies) take(m *nats.Msg) {
	t, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, r.prefix), 36, 64)
	if err != nil {
		return
	}
	r.mu.Lock()
	c := r.wait[t]
	r.mu.Unlock()
	if c != nil && !c.answer(m, nil) {
		r.forget(t)
	}
}

func (r *replies) forget(t uint64) {
	r.mu.Lock()
	delete(r.wait, t)
	r.mu.Unlock()
}

// fail ends a call; nothing where it has ended.
func (r *replies) fail(t uint64, err error) {
	r.mu.Lock()
	c := r.wait[t]
	delete(r.wait, t)
	r.mu.Unlock()
	if c != nil {
		c.answer(nil, err)
	}
}

// failAll ends what is under way: no answer comes any more.
func (r *replies) failAll(err error) {
	r.mu.Lock()
	all := r.wait
	r.wait = make(map[uint64]*call)
	r.order, r.first = nil, 0
	r.mu.Unlock()
	for _, c := range all {
		c.answer(nil, err)
	}
}

// sweep ends what has waited for too long.
func (r *replies) sweep() {
	tick := time.NewTicker(sweepReplies)
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case now := <-tick.C:
			for _, t := range r.due(now) {
				r.fail(t, ErrUnavailable)
			}
		}
	}
}

// due takes those out of the row that have waited for too long.
func (r *replies) due(now time.Time) []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []uint64
	for r.first < len(r.order) {
		t := r.order[r.first]
		_, waits := r.wait[t.token]
		if waits && t.ends > now.UnixNano() {
			break
		}
		if waits {
			out = append(out, t.token)
		}
		r.first++
	}
	if r.first > 1024 && r.first > len(r.order)/2 || r.first == len(r.order) {
		r.order, r.first = append([]timed(nil), r.order[r.first:]...), 0
	}
	return out
}

// waiting is how many calls are under way.
func (r *replies) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.wait)
}

func (r *replies) close() {
	close(r.stop)
	r.done.Wait()
	r.failAll(ErrUnavailable)
}
