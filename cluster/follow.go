package cluster

import (
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"perch/topic"
)

const (
	// fullWait is how long a delivery waits for room in the inbox of a loop, and
	// fullPause between two attempts.
	fullWait  = time.Second
	fullPause = time.Millisecond
	// repairMost is how many messages are read to close a gap; beyond that the
	// positions of subscribers are compared, and each is told what it has missed.
	repairMost = 1 << 18
)

// follow begins to take what the stream delivers.
func (s *stream) follow() error {
	s.mu.Lock()
	defer s.mu.Unlock()
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
	if err := s.readEpoch(false); err != nil {
		return err
	}
	if s.b.link.unclean {
		// What had been delivered may not have reached the disk.
		if err := s.readEpoch(true); err != nil {
			return err
		}
	}
	st, err := s.state()
	if err != nil {
		return err
	}
	s.at.Store(st.last)
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
	at := s.at.Load()
	if w.seq <= at {
		// It has come already, unless the stream has begun anew.
		if r, err := decode(w.data); err == nil && r.flags&flagEpoch != 0 && r.epoch != *s.epoch.Load() {
			s.anew = true
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
	r, err := decode(w.data)
	switch {
	case err != nil:
		s.b.unreadable(w.subject, err)
		return
	case r.flags&flagEpoch != 0:
		s.setEpoch(r.epoch, mark{w.seq, w.at})
		return
	case r.flags&flagRemoved != 0:
		s.marks.note(w.seq, r.previous)
		return
	case r.pub == nil || !s.b.receiver.Interested(r.topic):
		return
	}
	r.pub.Offset, r.pub.Previous = w.seq, before
	d := topic.Delivery{Publication: r.pub, Epoch: *s.epoch.Load(), Delta: r.flags&flagDelta != 0}
	for begun := time.Now(); ; {
		if err = s.b.receiver.Deliver(r.topic, d); err == nil {
			return
		}
		if time.Since(begun) > fullWait || s.life.Err() != nil {
			break
		}
		time.Sleep(fullPause)
	}
	// It is stored: who is without it sees that by the next one, or is told.
	s.hole = w.seq
	s.b.undone.Add(1)
	s.doubt()
}

// repairLocked reads what has not come, up to a sequence; false: not now.
func (s *stream) repairLocked(to uint64) bool {
	from := s.at.Load() + 1
	if to-from >= repairMost {
		s.skipLocked(to)
		return true
	}
	for tries := 0; s.at.Load() < to; {
		from := s.at.Load() + 1
		rows, err := wait(func(done func([]row, error)) {
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
		kept := min(s.most.Load(), st.most)
		brought := map[string]bool{}
		for i := range rows {
			w := &rows[i]
			if w.seq > to {
				s.at.Store(to)
				return true
			}
			// What came before of the topic is not told. Where all that the stream had
			// in between is still there, it was delivered, or comes with this; else
			// subscribers find by themselves that something is missing.
			before := min(s.hole, w.seq-1)
			if !brought[w.subject] && s.manyLocked(w.subject, from, to, kept) {
				before = w.seq - 1
			}
			brought[w.subject] = true
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
	rows, err := wait(func(done func([]row, error)) {
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
	have := s.at.Load()
	switch {
	case st.last < have || s.anew:
		return s.lostLocked()
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
	return s.refreshLocked(st)
}

// lostLocked is for a stream that stands before what it has delivered: it has been
// made anew, or an old copy of it has come back.
func (s *stream) lostLocked() error {
	// Once more, from the leader: a new one may not have had all yet.
	again, err := s.state()
	if err != nil || again.last >= s.at.Load() && !s.anew {
		return err
	}
	old := *s.epoch.Load()
	last, err := s.lastSync(s.stored + tokenEpoch)
	if err != nil {
		return err
	}
	var fresh bool
	if last != nil {
		r, err := decode(last.data)
		fresh = err != nil || r.epoch == old
	}
	s.log.Error("history has lost publications that had been delivered", "stood", s.at.Load(), "stands", again.last)
	if err := s.readEpoch(fresh); err != nil {
		return err
	}
	s.at.Store(again.last)
	s.anew = false
	return nil
}

// refreshLocked writes the epoch's name again before the stream drops it for its
// age or its size.
func (s *stream) refreshLocked(st streamState) error {
	m := s.mark
	old := time.Since(m.at) > s.config().MaxAge/2
	low := st.last-st.first > 1000 && m.seq < st.first+(st.last-st.first)/4
	if !old && !low {
		return nil
	}
	m, err := s.writeEpoch(*s.epoch.Load(), m.seq)
	if errors.Is(err, errConflict) {
		return s.readEpoch(false) // another node was first
	}
	if err == nil {
		s.mark = m
	}
	return err
}
