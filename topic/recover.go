package topic

import (
	"errors"
	"sync/atomic"

	"perch/session"
)

// RecoverRequest is what a subscriber wants of the past.
type RecoverRequest struct {
	// Recover asks for what was missed since Since or, with Cache, for the latest
	// publication unless Since is its position.
	Recover bool
	Cache   bool
	Since   Position
}

// Recovered is what it gets.
type Recovered struct {
	// Position is that of the topic; live publications follow it.
	Position Position
	// Publications are those missed, in their order. They are shared: nobody
	// changes them.
	Publications []*Publication
	// OK says that nothing is missing between RecoverRequest.Since and Position.
	OK bool
}

// Recover reads where a topic stands and what s has missed of it, for a
// subscription with SubscribeOptions.Position. done is called once on the loop
// of s, perhaps before Recover returns, unless s ends meanwhile. The client is
// told, and then Live lets what came meanwhile follow. With an error the
// subscription has ended: ErrNotAvailable where somebody else ended it, ErrFull
// where the loop has no room. Runs on the loop of s.
func (t *Topics) Recover(s *session.Session, name string, r RecoverRequest, done func(*session.Session, Recovered, error)) {
	sub := memberOf(s).find(name)
	if sub == nil || sub.track == nil || sub.track.held == nil {
		done(s, Recovered{}, ErrNotAvailable)
		return
	}
	loop := s.Loop()
	if !loop.Reserve(session.PostOverhead) {
		t.Unsubscribe(s, name)
		done(s, Recovered{}, ErrFull)
		return
	}
	w := &recovering{topics: t, name: sub.list.topic.name, request: r, track: sub.track, loop: loop, id: s.ID(), done: done}
	ns := sub.list.topic.rare.ns
	f := Filter{Meta: ns.HistoryMetaTTL}
	switch {
	case r.Recover && r.Cache:
		f.Limit, f.Reverse = 1, true
	case r.Recover:
		f.Limit, f.Since = t.opts.RecoveryLimit, &r.Since
	}
	t.broker.History(w.name, f, w.read)
	if w.state.CompareAndSwap(readStarted, readAwaited) {
		return
	}
	loop.Release(session.PostOverhead)
	w.finish(s)
}

// recovering is a recovery whose history the broker reads. Whoever comes second,
// the loop that asks or the broker that answers, sees that the other was there.
type recovering struct {
	topics  *Topics
	name    string
	request RecoverRequest
	track   *tracking
	loop    session.Loop
	id      session.ID
	done    func(*session.Session, Recovered, error)

	pubs  []*Publication
	top   Position
	err   error
	state atomic.Uint32
}

const (
	readStarted  = iota
	readAnswered // before the loop looked
	readAwaited  // the loop has gone on; the answer is posted
)

// read takes the broker's answer. Runs on any goroutine.
func (w *recovering) read(pubs []*Publication, top Position, err error) {
	w.pubs, w.top, w.err = pubs, top, err
	if w.state.CompareAndSwap(readStarted, readAnswered) {
		return
	}
	w.loop.Post(session.PostOverhead, w.id, func(s *session.Session) {
		if s != nil {
			w.finish(s)
		}
	})
}

// finish runs on the loop.
func (w *recovering) finish(s *session.Session) {
	t, k := w.topics, w.track
	if k.gone {
		w.done(s, Recovered{}, ErrNotAvailable)
		return
	}
	if w.err != nil && !errors.Is(w.err, ErrUnrecoverable) {
		t.Unsubscribe(s, w.name)
		w.done(s, Recovered{}, w.err)
		return
	}
	r := Recovered{Position: w.top}
	if w.request.Recover && w.err == nil {
		r.Publications, r.OK = w.recovered()
	}
	if w.request.Recover {
		t.recovered(r.OK)
	}
	k.offset, k.epoch = w.top.Offset, w.top.Epoch
	if n := len(r.Publications); n > 0 && k.is(trackDelta) {
		k.base = r.Publications[n-1]
		t.lastIs(w.name, k.base)
	}
	w.done(s, r, nil)
}

// Live ends the hold of a subscription that has been recovered, and writes what
// came meanwhile, each publication once and in order. s may have ended
// afterwards. Runs on the loop of s.
func (t *Topics) Live(s *session.Session, name string) {
	sub := memberOf(s).find(name)
	if sub == nil || sub.track == nil || sub.track.held == nil {
		return
	}
	k := sub.track
	h := k.held
	k.held = nil
	for _, d := range h.row {
		if t.bring(s, k, d) {
			t.deliveries.Add(1)
		}
		if k.gone || k.held != nil {
			return
		}
	}
	if h.over && t.opts.Lost != nil {
		t.lost(s, k, name)
	}
}

// recovered is the row of publications from the position asked for to the top;
// false: it is not whole.
func (w *recovering) recovered() ([]*Publication, bool) {
	if w.request.Cache {
		return w.latest()
	}
	since := w.request.Since
	if since.Epoch != "" && since.Epoch != w.top.Epoch {
		return nil, false
	}
	at := since.Offset
	for _, p := range w.pubs {
		if p.Previous > at || p.Offset <= at {
			return nil, false
		}
		at = p.Offset
	}
	if at != w.top.Offset {
		return nil, false
	}
	return w.pubs, true
}

// latest is the publication at the top, or nothing where the client has it.
func (w *recovering) latest() ([]*Publication, bool) {
	same := w.request.Since.Offset > 0 && w.request.Since == w.top
	if same || len(w.pubs) == 0 {
		return nil, same
	}
	if w.pubs[0].Offset != w.top.Offset {
		return nil, false
	}
	return w.pubs[:1], true
}

func (t *Topics) recovered(ok bool) {
	if ok {
		t.recoveries.Add(1)
	} else {
		t.unrecovered.Add(1)
	}
}
