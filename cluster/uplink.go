package cluster

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"perch/internal/pace"
	"perch/topic"
)

const (
	defaultUplinkBytes = 256 << 20
	// headerKept, on what waits for the hub, is the epoch and the offset at the site,
	// headerID the publisher's idempotency key as JetStream has it.
	headerKept = "Perch-Kept"
	headerID   = "Perch-Id"
	// uplinkOverhead is what JetStream takes for a message beside its parts, roughly.
	uplinkOverhead = 160
	// uplinkLook is how often the stream of what waits is looked at.
	uplinkLook = 2 * time.Second
)

// errFlying: what is under way has to end first.
var errFlying = errors.New("cluster: publications are under way")

// uplink keeps what is on its way to the hub in a stream of its own: the histories
// drop publications when they are too many or too old, whether or not the hub has
// them.
//
// A publication is stored in the history, then here, then answered. So this stream
// has the publications of each history in its order, up to some offset; what the
// history has behind it (the process ended in between, or an answer did not come) is
// put in before anything else is taken (repair). What is answered is in both.
type uplink struct {
	l *leaf
	// s is what waits, marks a stream with nothing but the latest mark. Of a stream,
	// only its way to ask and store is used.
	s    *stream
	mark *stream
	most int64
	drop bool // the oldest, where there is no room

	wake  chan struct{}
	opens sync.Mutex
	ready atomic.Bool

	// Of the goroutine that sends, once open has returned.
	id   string // of this stream and what was sent of it: in the ids that the hub gets
	at   uint64 // the hub has everything up to it
	sent map[string]place

	mu      sync.Mutex
	repairs map[*stream]struct{}
	// What waited at the last look and what has come since it began; air is what is
	// under way into the history or here, in bytes.
	had, come waiting
	air       int64

	forwarded atomic.Uint64
	refused   atomic.Uint64
	dropped   atomic.Uint64
	seldom    pace.Seldom
	dropping  pace.Seldom
}

// waiting is how much waits for the hub.
type waiting struct{ messages, bytes int64 }

// place is where something is in a stream.
type place struct {
	Epoch string `json:"epoch"`
	Seq   uint64 `json:"seq"`
}

// kept is, of a stream of the site, how far it waits for the hub, or has gone there.
// Under the uplink's mutex.
type kept struct {
	behind bool // there may be something that does not wait yet
	flying int  // what is under way into either stream
	row    []*keeping
}

// keeping is a publication until it waits.
type keeping struct {
	seq  uint64
	done []func(error)
}

// uplinkMark says how much of what waits the hub has.
type uplinkMark struct {
	ID   string           `json:"id"`
	At   uint64           `json:"at"`
	Sent map[string]place `json:"sent"` // by the namespace's token: the last that the hub has
}

func newUplink(l *leaf) *uplink {
	o := &l.b.link.opts.Server.Leaf
	u := &uplink{
		l: l, most: o.StoreBytes, drop: o.DropOldest, wake: make(chan struct{}, 1),
		sent: make(map[string]place), repairs: make(map[*stream]struct{}),
	}
	if u.most == 0 {
		u.most = defaultUplinkBytes
	}
	u.s = u.stream(streamUplink, subjectUplink)
	u.mark = u.stream(streamUplinkAt, subjectMark)
	return u
}

func (u *uplink) waiting() waiting {
	u.mu.Lock()
	defer u.mu.Unlock()
	return waiting{max(0, u.had.messages+u.come.messages), u.bytesLocked()}
}

func (u *uplink) bytesLocked() int64 { return u.had.bytes + u.come.bytes + u.air }

// keep stores a publication of this site, and has it wait for the hub. Safe from
// any goroutine; it does not block.
func (u *uplink) keep(s *stream, subject string, h nats.Header, data []byte, done func(uint64, error)) {
	size := u.size(s, h, data)
	u.mu.Lock()
	switch k := &s.kept; {
	case k.behind:
		u.mu.Unlock()
		done(0, ErrUnavailable)
		return
	case !u.drop && u.bytesLocked()+size > u.most:
		bytes := u.bytesLocked()
		u.mu.Unlock()
		u.refused.Add(1)
		if quiet, ok := u.dropping.Pass(time.Minute); ok {
			u.l.log.Warn("too much waits for the hub: publications with a history are refused, see nats.leaf.store_bytes",
				"bytes", bytes, "quiet", quiet)
		}
		done(0, topic.ErrFull)
		return
	default:
		k.flying++
		u.air += size
	}
	u.mu.Unlock()
	stored := func(a ack, err error) { u.stored(s, a, err, h, data, size, done) }
	if !s.tryStore(subject, h, data, stored) {
		stored(ack{}, topic.ErrFull)
	}
}

func (u *uplink) size(s *stream, h nats.Header, data []byte) int64 {
	n := uplinkOverhead + len(u.s.stored) + len(s.namespace) + len(data)
	if id := h[headerMsgID]; len(id) > 0 {
		n += len(id[0])
	}
	return int64(n)
}

// stored is told what became of a publication in the history.
func (u *uplink) stored(s *stream, a ack, err error, h nats.Header, data []byte, size int64, done func(uint64, error)) {
	k := &s.kept
	u.mu.Lock()
	if err != nil || a.Duplicate || k.behind {
		k.flying--
		u.air -= size
	}
	switch {
	case errors.Is(err, errConflict), errors.Is(err, topic.ErrFull):
		// Nothing was stored.
	case err != nil:
		// It may have been.
		u.behindLocked(s)
	case k.behind:
		// What came before it does not wait yet: whoever repairs that finds it.
		err = ErrUnavailable
	case a.Duplicate:
		for _, w := range k.row {
			if w.seq == a.Seq {
				w.done = append(w.done, func(err error) { done(a.Seq, err) })
				u.mu.Unlock()
				return
			}
		}
	default:
		w := &keeping{seq: a.Seq, done: []func(error){func(err error) { done(a.Seq, err) }}}
		// Under the lock: what has been stored in an order waits in the same.
		if u.put(s, a.Seq, h, data, func(err error) { u.waits(s, w, size, err) }) {
			k.row = append(k.row, w)
			u.mu.Unlock()
			return
		}
		k.flying--
		u.air -= size
		u.behindLocked(s)
		err = ErrUnavailable
	}
	u.mu.Unlock()
	done(a.Seq, err)
}

// put hands one over to wait; false: there is no room.
func (u *uplink) put(s *stream, seq uint64, h nats.Header, data []byte, done func(error)) bool {
	head := nats.Header{headerKept: {*s.epoch.Load() + " " + strconv.FormatUint(seq, 10)}}
	if id := h[headerMsgID]; len(id) > 0 {
		head[headerID] = id
	}
	return u.s.tryStore(u.s.stored+namespaceToken(s.namespace), head, data, func(_ ack, err error) { done(err) })
}

// waits is told what became of one that was to wait.
func (u *uplink) waits(s *stream, w *keeping, size int64, err error) {
	k := &s.kept
	var all []*keeping
	u.mu.Lock()
	k.flying--
	u.air -= size
	switch {
	case err != nil:
		if quiet, ok := u.seldom.Pass(10 * time.Second); ok {
			u.l.log.Error("publication can't wait for the hub", "err", err, "quiet", quiet)
		}
		u.behindLocked(s)
		all, k.row = k.row, nil
		err = ErrUnavailable
	case len(k.row) > 0 && k.row[0] == w:
		u.come.messages++
		u.come.bytes += size
		all, k.row = k.row[:1:1], k.row[1:]
	}
	u.mu.Unlock()
	for _, w := range all {
		for _, done := range w.done {
			done(err)
		}
	}
	poke(u.wake)
}

// behindLocked has it found out what of a history does not wait yet.
func (u *uplink) behindLocked(s *stream) {
	s.kept.behind = true
	u.repairs[s] = struct{}{}
	poke(u.wake)
}
