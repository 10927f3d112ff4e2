package cluster

import (
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"perch/topic"
)

const (
	// fullWait is how long a delivery waits for room in the inbox of a loop,
	// fullPause between two attempts, and fullAgain how long none waits once one has
	// waited in vain.
	fullWait  = time.Second
	fullPause = time.Millisecond
	fullAgain = 10 * time.Second
	// repairMost is how many messages are read to close a gap; beyond that the
	// positions of subscribers are compared, and each is told what it has missed.
	repairMost = 1 << 18
)

// errAnew: the stream is not the one that it was.
var errAnew = errors.New("cluster: the stream has been made anew")

// follow begins to take what the stream delivers.
func (s *stream) follow() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	losses := s.b.link.Losses()
	if s.sub == nil {
		sub, err := s.b.link.nc.Subscribe(s.deliver+"*", s.take)
		if err != nil {
			return err
		}
		if err := sub.SetPendingLimits(-1, takeBytes); err != nil {
			return err
		}
		s.sub = sub
	}
	// The server knows of the subscription before the stream is asked where it
	// stands: what comes behind that is delivered.
	if err := s.b.link.nc.FlushTimeout(s.b.link.Timeout()); err != nil {
		return err
	}
	before, err := s.state()
	if err != nil {
		return err
	}
	if err := s.readEpoch(""); err != nil {
		return err
	}
	st, err := s.state()
	if err != nil {
		return err
	}
	if !st.created.Equal(before.created) {
		return errAnew
	}
	s.made.Store(st.created.UnixNano())
	s.at.Store(st.last)
	s.known = *s.epoch.Load()
	s.sureSince(losses)
	return nil
}

func (s *stream) unfollow() {
	s.ready.Store(false)
	s.mu.Lock()
	sub := s.sub
	s.mu.Unlock()
	if sub != nil {
		_ = sub.Unsubscribe()
	}
}

// take is one message behind the last. Runs on the subscription's goroutine.
func (s *stream) take(m *nats.Msg) {
	w, ok := rowOf(m)
	if !ok {
		s.b.unreadable(m.Subject, errFormat)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.sure.Load() {
		return // it is read with the others, once the stream has been looked at
	}
	at := s.at.Load()
	if w.seq <= at {
		// It has come already, unless the stream has begun anew.
		if r, err := decode(w.data); err == nil && r.flags&flagEpoch != 0 && r.epoch != *s.epoch.Load() {
			s.doubtLocked()
			s.poke()
		}
		return
	}
	if w.seq > at+1 && !s.repairLocked(w.seq-1) {
		return // it is read with the others, once that can be done
	}
	before := s.hole
	if w.before > 0 {
		before = s.marks.before(w.before)
	}
	s.bringLocked(&w, before)
}

// bringLocked delivers a row.
func (s *stream) bringLocked(w *row, before uint64) {
	defer s.at.Store(w.seq)
	r, rest, err := peek(w.data)
	if err == nil && r.flags&(flagEpoch|flagRemoved) == 0 && !s.b.receiver.Interested(r.topic) {
		return
	}
	if err == nil {
		r, err = r.read(rest)
	}
	switch {
	case err != nil:
		s.b.unreadable(w.subject, err)
		return
	case r.flags&flagEpoch != 0:
		s.setEpoch(r, mark{w.seq, w.time()})
		return
	case r.flags&flagRemoved != 0:
		s.marks.note(w.seq, r.previous)
		return
	case r.pub == nil:
		return
	}
	r.pub.Offset, r.pub.Previous = w.seq, before
	if s.deliverLocked(r.topic, topic.Delivery{Publication: r.pub, Epoch: *s.epoch.Load(), Delta: r.flags&flagDelta != 0}) {
		return
	}
	// It is stored: who is without it sees that by the next one, or is told.
	s.hole = w.seq
	s.b.undone.Add(1)
	s.doubt()
}

// deliverLocked waits for room in the inbox of a loop that is full, and not again
// for a while where none came: a loop that stands still must not hold up all the
// other topics.
func (s *stream) deliverLocked(name string, d topic.Delivery) bool {
	for begun := (time.Time{}); ; {
		if s.b.receiver.Deliver(name, d) == nil {
			return true
		}
		now := time.Now()
		if now.Before(s.hurry) || s.life.Err() != nil {
			return false
		}
		if begun.IsZero() {
			begun = now
		}
		if now.Sub(begun) > fullWait {
			s.hurry = now.Add(fullAgain)
			return false
		}
		time.Sleep(fullPause)
	}
}

// repairLocked reads what has not come, up to a sequence; false: not now.
func (s *stream) repairLocked(to uint64) bool {
	from := s.at.Load() + 1
	if to-from >= repairMost {
		s.skipLocked(to)
		return true
	}
	stood := make(map[string]uint64) // by subject: where a history ended that was removed
	for tries := 0; s.at.Load() < to; {
		from := s.at.Load() + 1
		rows, err := waitFor(s.life, func(done func([]row, error)) {
			s.batch(s.stored+"*", from, readBatch, readBytes, func(rows []row, _ bool, err error) { done(rows, err) })
		})
		if err != nil {
			return false
		}
		// Behind the reading: what the stream has dropped until then is seen.
		st, err := s.state()
		if err != nil {
			return false
		}
		if st.first > from {
			s.hole = max(s.hole, min(st.first-1, to))
		}
		if len(rows) == 0 || rows[0].seq > to {
			// All that was between is gone, or the server that answers is behind.
			if len(rows) == 0 && tries < staleMost && st.last >= to && st.first <= to {
				tries++
				time.Sleep(staleWait << tries)
				continue
			}
			s.hole = max(s.hole, to)
			s.at.Store(to)
			return true
		}
		kept := min(s.most.Load(), st.keptSince(from))
		looked := make(map[string]bool)
		for i := range rows {
			w := &rows[i]
			if w.seq > to {
				s.at.Store(to)
				return true
			}
			// What came before of the topic is not told. Where all that the stream had
			// in between is still there, it was delivered, or comes with this; else
			// subscribers find by themselves that something is missing.
			// Who stood before the end of a removed history has missed some of it.
			before := max(min(s.hole, w.seq-1), stood[w.subject])
			r, rest, err := peek(w.data)
			switch {
			case err != nil || r.flags&flagEpoch != 0:
			case r.flags&flagRemoved != 0:
				if r, err = r.read(rest); err == nil {
					stood[w.subject] = r.previous
				}
			case !looked[w.subject] && s.b.receiver.Interested(r.topic):
				looked[w.subject] = true
				if s.manyLocked(w.subject, from, to, kept) {
					before = w.seq - 1
				}
			}
			s.b.repaired.Add(1)
			s.bringLocked(w, before)
		}
	}
	return true
}

// manyLocked tells whether a topic has so many messages in a gap that others of it
// may have gone.
func (s *stream) manyLocked(subject string, from, to uint64, kept int64) bool {
	if int64(to-from)+1 < kept {
		return false
	}
	rows, err := waitFor(s.life, func(done func([]row, error)) {
		s.batch(subject, from, int(min(kept, readBatch)), readBytes, func(rows []row, _ bool, err error) { done(rows, err) })
	})
	return err != nil || int64(len(rows)) >= min(kept, readBatch)
}

// skipLocked gives up on what is too much to read.
func (s *stream) skipLocked(to uint64) {
	s.log.Warn("too much has been missed to be read: clients recover one by one", "messages", to-s.at.Load())
	s.hole = to
	s.at.Store(to)
	s.doubt()
}

// watch compares the stream with what has come of it. Where it is behind twice
// (at once, where at is set), what is missing is read.
func (s *stream) watch(at bool) error {
	losses := s.b.link.Losses()
	if !s.b.link.Connected() {
		return nil
	}
	st, err := s.state()
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if err = s.ensure(); err == nil {
			st, err = s.state()
		}
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if at && !s.anew {
		// Whatever has happened to the stream meanwhile, its epoch says so.
		if err := s.compareLocked(); err != nil {
			return err
		}
	}
	have := s.at.Load()
	switch {
	case st.last < have || s.anew || st.created.UnixNano() != s.made.Load():
		return s.lostLocked(losses)
	case st.last == have:
		s.behind = 0
	case at || s.behind > 0 && have < s.behind:
		s.behind = 0
		if !s.repairLocked(st.last) {
			return errors.New("what has been missed could not be read")
		}
	default:
		s.behind = st.last
	}
	s.known = *s.epoch.Load()
	s.sureSince(losses)
	return s.refreshLocked(st)
}

// compareLocked finds out whether another epoch has been written where this node
// has been already.
func (s *stream) compareLocked() error {
	last, err := s.lastSync(s.stored + tokenEpoch)
	if err != nil || last == nil || last.seq > s.at.Load() {
		return err
	}
	if r, err := decode(last.data); err != nil || r.epoch != *s.epoch.Load() {
		s.doubtLocked()
	}
	return nil
}

// sureSince: the stream is the same, as it was seen after so many losses of the
// connection.
func (s *stream) sureSince(losses uint64) {
	s.sure.Store(true)
	if s.b.link.Losses() != losses {
		s.sure.Store(false)
	}
}

// doubtLocked: what the stream holds may be another one's. Nothing of it is given
// out until that is known.
func (s *stream) doubtLocked() {
	s.anew = true
	s.sure.Store(false)
}

// lostLocked is for a stream that stands before what it has delivered: it has been
// made anew, or an old copy of it has come back.
func (s *stream) lostLocked(losses uint64) error {
	// Once more, from the leader: a new one may not have had all yet.
	again, err := s.state()
	if err != nil || again.last >= s.at.Load() && !s.anew && again.created.UnixNano() == s.made.Load() {
		return err
	}
	s.doubtLocked()
	s.log.Error("history has lost publications that had been delivered", "stood", s.at.Load(), "stands", again.last)
	// Before the epoch is another: a place of the old stream never goes with the name
	// of the new one.
	s.at.Store(again.last)
	s.hole, s.behind = 0, 0
	if err := s.readEpoch(s.known); err != nil {
		return err
	}
	s.made.Store(again.created.UnixNano())
	s.anew, s.known = false, *s.epoch.Load()
	s.sureSince(losses)
	return nil
}

// refreshLocked writes the epoch's name again before the stream drops it for its
// age or its size.
func (s *stream) refreshLocked(st streamState) error {
	m := s.mark
	old := time.Since(m.at) > s.config().MaxAge/2
	low := m.seq < st.first || m.seq < st.first+(st.last-st.first)/4
	if !old && !low {
		return nil
	}
	epoch := record{epoch: *s.epoch.Load(), previous: s.began.Load()}
	for range epochTries {
		last, err := s.lastSync(s.stored + tokenEpoch)
		if err != nil {
			return err
		}
		before := uint64(0) // it may be gone already: the stream is still the same one
		if last != nil {
			r, err := decode(last.data)
			if err != nil || r.epoch != epoch.epoch {
				return s.readEpoch("")
			}
			before = last.seq
			if last.seq > m.seq {
				s.mark = mark{last.seq, last.time()} // another node was first
				return nil
			}
		}
		written, err := s.writeEpoch(epoch, before)
		if err == nil {
			s.mark = written
		}
		if !errors.Is(err, errConflict) {
			return err
		}
		// Another node was first, or what was read has been dropped meanwhile.
	}
	return errConflict
}
