package cluster

import (
	"sync"
	"time"

	"perch/topic"
)

const (
	// readsMost is how many histories are read at once, and readsWaiting how many may
	// wait for it; beyond that they are refused.
	readsMost    = 128
	readsWaiting = 1 << 18
	// readBatch is how many messages are asked for at once.
	readBatch = 512
	readBytes = 8 << 20
	// staleWait is how long a server that is behind gets, twice as long each time.
	staleWait = 2 * time.Millisecond
	staleMost = 10
)

// reads lets so many histories be read at once.
type reads struct {
	b       *Broker
	mu      sync.Mutex
	running int
	waiting []func()
	closed  bool
}

// begin lets do begin now or later; false: too many wait. do calls over once.
func (r *reads) begin(do func()) bool {
	r.mu.Lock()
	if r.closed || len(r.waiting) >= readsWaiting {
		r.mu.Unlock()
		return false
	}
	if r.running >= readsMost {
		r.waiting = append(r.waiting, do)
		r.mu.Unlock()
		return true
	}
	r.running++
	r.mu.Unlock()
	do()
	return true
}

func (r *reads) over() {
	r.mu.Lock()
	if len(r.waiting) == 0 {
		r.running--
		r.mu.Unlock()
		return
	}
	next := r.waiting[0]
	r.waiting[0] = nil
	if r.waiting = r.waiting[1:]; len(r.waiting) == 0 {
		r.waiting = nil
	}
	r.mu.Unlock()
	// Not from here: a row of reads that end at once would grow the stack.
	go next()
}

// close lets what waits begin, and fail: the connection answers nobody any more.
func (r *reads) close() {
	r.mu.Lock()
	r.closed = true
	all := r.waiting
	r.waiting = nil
	r.mu.Unlock()
	for _, do := range all {
		do()
	}
}

// reading is one that is under way. Its steps follow one another, on goroutines of
// the connection.
type reading struct {
	s       *stream
	name    string
	subject string
	f       topic.Filter
	done    func([]*topic.Publication, topic.Position, error)

	epoch string
	made  int64  // the stream
	base  uint64 // everything up to it had been delivered before the reading began
	last  *row
	top   topic.Position
	rows  []row
	// hidden rows stand before the history.
	hidden int
	tries  int
}

// history implements topic.Broker's History.
func (s *stream) history(name string, f topic.Filter, done func([]*topic.Publication, topic.Position, error)) {
	if !s.up() {
		done(nil, topic.Position{}, ErrUnavailable)
		return
	}
	if f.Check && !s.doubted() {
		done(nil, topic.Position{Epoch: *s.epoch.Load()}, nil)
		return
	}
	r := &reading{s: s, name: name, subject: s.stored + token(name), f: f}
	r.done = func(pubs []*topic.Publication, at topic.Position, err error) {
		s.b.reads.over()
		done(pubs, at, err)
	}
	if !s.b.reads.begin(r.begin) {
		done(nil, topic.Position{}, topic.ErrFull)
	}
}

func (r *reading) begin() {
	// Read before the stream is asked: what it does not answer comes behind these.
	r.made, r.epoch, r.base = r.s.made.Load(), *r.s.epoch.Load(), r.s.at.Load()
	r.s.last(r.subject, r.gotLast)
}

func (r *reading) fail(err error) { r.done(nil, topic.Position{}, err) }

func (r *reading) gotLast(last *row, err error) {
	if err != nil {
		r.fail(err)
		return
	}
	r.last = last
	r.top = topic.Position{Offset: r.base, Epoch: r.epoch}
	if r.f.Check {
		r.top.Offset = 0
	}
	if last != nil {
		r.top.Offset = r.stands(last)
	}
	since := r.f.Since
	switch {
	case since != nil && since.Epoch != "" && since.Epoch != r.epoch:
		r.done(nil, r.top, topic.ErrUnrecoverable)
	case r.f.Limit == 0:
		r.done(nil, r.top, nil)
	case since != nil && !r.f.Reverse && last != nil && since.Offset == r.top.Offset:
		r.done(nil, r.top, nil) // nothing was missed
	case since == nil && r.f.Reverse && r.f.Limit == 1:
		if last != nil {
			r.rows = []row{*last}
		}
		r.give(false)
	default:
		r.read(r.from())
	}
}

// stands is the offset at which a topic stands whose last message this is.
func (r *reading) stands(last *row) uint64 {
	rec, err := decode(last.data)
	if err == nil && rec.flags&flagRemoved != 0 {
		r.s.marks.note(last.seq, rec.previous)
		return rec.previous
	}
	return last.seq
}

// from is where the reading begins: at the position itself, whose message tells
// that none behind it is gone.
func (r *reading) from() uint64 {
	if r.f.Since != nil && !r.f.Reverse {
		return r.f.Since.Offset
	}
	return 1
}

// read asks for the messages from a sequence on.
func (r *reading) read(from uint64) {
	most := readBatch
	if r.f.Limit > 0 && !r.f.Reverse {
		most = min(most, r.f.Limit+2)
	}
	r.s.batch(r.subject, from, most, readBytes, func(rows []row, more bool, err error) {
		if err != nil {
			r.fail(err)
			return
		}
		rows = r.follow(rows)
		r.rows = append(r.rows, rows...)
		n := len(r.rows)
		switch {
		case r.enough():
			r.check()
		case more && len(rows) > 0:
			r.read(r.rows[n-1].seq)
		case more && n > 0 && from == r.rows[n-1].seq:
			r.read(from + 1) // that one is as large as an answer may be
		case r.last != nil && (n == 0 || r.rows[n-1].seq < r.last.seq) && from <= r.last.seq:
			r.again()
		default:
			r.check()
		}
	})
}

// follow is what a batch brings beyond those before. Each begins with the last one
// of the batch before it: while that is there, nothing between the two has gone.
func (r *reading) follow(rows []row) []row {
	n := len(r.rows)
	switch {
	case len(rows) == 0:
	case n == 0:
		if r.from() == 1 {
			// One more is kept than the history has.
			r.hidden = max(0, int(rows[0].left)+1-r.s.ns.Load().HistorySize)
		}
	case rows[0].seq == r.rows[n-1].seq:
		return rows[1:]
	default:
		rows[0].torn = true
	}
	return rows
}

// again asks once more where the server that has answered is behind the leader.
func (r *reading) again() {
	if r.tries++; r.tries > staleMost {
		r.fail(ErrUnavailable)
		return
	}
	r.rows = nil
	time.AfterFunc(staleWait<<r.tries, func() { r.read(r.from()) })
}

// enough tells whether all that is asked for is there: publications go out in the
// order of the stream, so those that are too many are not read.
func (r *reading) enough() bool {
	if r.f.Reverse || r.f.Limit < 0 {
		return false
	}
	least := r.s.b.now().Add(-r.s.ns.Load().HistoryTTL)
	n := 0
	for i := range r.rows {
		if i >= r.hidden && !r.rows[i].time().Before(least) && !r.isSince(&r.rows[i]) {
			n++
		}
	}
	return n > r.f.Limit
}

func (r *reading) isSince(w *row) bool { return r.f.Since != nil && w.seq == r.f.Since.Offset }

// check finds out whether anything may be gone between the position and the first
// message behind it.
func (r *reading) check() {
	since := r.f.Since
	if since == nil || r.f.Reverse || len(r.rows) > 0 && r.isSince(&r.rows[0]) {
		r.give(true)
		return
	}
	// Of each topic so many are kept: with as many behind the position, others may
	// have gone. What the stream drops because of its age or its size is in front of
	// its first message.
	if len(r.rows) > 0 && int64(len(r.rows)) >= r.s.most.Load() || since.Offset > r.s.at.Load() {
		r.give(false)
		return
	}
	r.s.look(func(st streamState, err error) {
		if err != nil {
			r.fail(err)
			return
		}
		if st.created.UnixNano() != r.made {
			r.s.sure.Store(false)
			r.s.poke()
			r.fail(ErrUnavailable)
			return
		}
		if st.last < r.base {
			r.again() // an old copy, or a new leader that has not had all yet
			return
		}
		r.give(int64(len(r.rows)) < st.keptSince(since.Offset) && st.first <= since.Offset+1)
	})
}

// give answers. whole: nothing is gone between the position and the first row.
func (r *reading) give(whole bool) {
	var before uint64
	known := r.f.Since == nil
	since := r.f.Since
	if since != nil && whole {
		before, known = since.Offset, true
	}
	if since != nil && whole && len(r.rows) == 0 && r.last == nil {
		r.top.Offset = since.Offset
	}
	if n := len(r.rows); n > 0 && !r.f.Reverse {
		// What has been stored since the last message was asked for came with the rest.
		r.top.Offset = max(r.top.Offset, r.stands(&r.rows[n-1]))
	}
	least := r.s.b.now().Add(-r.s.ns.Load().HistoryTTL)
	var pubs []*topic.Publication
	for i := range r.rows {
		w := &r.rows[i]
		rec, err := decode(w.data)
		if err != nil {
			r.s.b.unreadable(w.subject, err)
			known = false
			continue
		}
		if rec.flags&flagRemoved != 0 {
			r.s.marks.note(w.seq, rec.previous)
			before, known = rec.previous, true
			continue
		}
		p := rec.pub
		if p == nil {
			continue
		}
		if p.Offset, p.Previous = w.seq, before; !known || w.torn {
			p.Previous = w.seq - 1
		}
		before, known = w.seq, true
		if i < r.hidden || w.time().Before(least) || r.isSince(w) || r.f.Reverse && since != nil && w.seq >= since.Offset {
			continue
		}
		pubs = append(pubs, p)
	}
	if r.f.Reverse {
		for i, j := 0, len(pubs)-1; i < j; i, j = i+1, j-1 {
			pubs[i], pubs[j] = pubs[j], pubs[i]
		}
	}
	if r.f.Limit > 0 && len(pubs) > r.f.Limit {
		pubs = pubs[:r.f.Limit]
	}
	r.done(pubs, r.top, nil)
}
