package topic

import "perch/session"

// tracking is what a subscription has that is more than a place in a list. It
// belongs to the loop.
type tracking struct {
	// The position: everything up to it has been written, nothing behind.
	offset uint64
	epoch  string
	// base is the publication written last, of a subscription with deltas.
	base *Publication
	held *held // nil: nothing is held back
	info []byte

	flags trackFlags
	gone  bool // the subscription has ended
	// behind is the offset by which the last check found the subscription late, or
	// otherEpoch; 0: it was not.
	behind uint64
}

type trackFlags uint8

const (
	trackPosition trackFlags = 1 << iota // misses are noticed
	trackDelta                           // has agreed on deltas
	trackNews                            // is told of who comes and goes
	trackTold                            // others are told of it
	trackJoined                          // and have been told that it came
	trackHidden                          // is no part of presence
)

func (k *tracking) is(f trackFlags) bool { return k.flags&f != 0 }

// held is what came while the history of a subscription was read.
type held struct {
	row   []*delivery
	bytes int
	over  bool // more than there was room for
}

func (h *held) add(d *delivery, most int) {
	if h.over {
		return
	}
	if h.bytes += d.room(); h.bytes > most {
		*h = held{over: true}
		return
	}
	h.row = append(h.row, d)
}

// row is what a round is to a position: a row without a gap, or not.
type row struct {
	whole  bool
	epoch  string
	before uint64
	last   uint64
}

func rowOf(round []arrival) row {
	first := round[0].Publication
	if first == nil || first.Offset == 0 {
		return row{}
	}
	r := row{whole: true, epoch: round[0].Epoch, before: first.Previous, last: first.Offset}
	for _, a := range round[1:] {
		p := a.Publication
		if a.Epoch != r.epoch || p.Offset == 0 || p.Previous != r.last {
			return row{}
		}
		r.last = p.Offset
	}
	return r
}

// track is the tracking of the subscriber in a place, or nil.
func (l *local) track(i int) *tracking {
	if l.tracks == nil {
		return nil
	}
	return (*l.tracks)[i]
}

// tracked brings the round to a subscriber that has a tracking, and says how
// many publications were written. The session may have ended afterwards.
func (f *fanout) tracked(t *Topics, s *session.Session, k *tracking) int {
	if f.round[0].Publication == nil {
		if k.is(trackNews) && k.held == nil {
			if b := f.round[0].frame(s.Encoding, FormPlain); b != nil {
				s.WriteFrame(b)
			}
		}
		return 0
	}
	if k.held != nil {
		for _, a := range f.round {
			k.held.add(a.delivery, t.opts.HeldBytes)
		}
		return 0
	}
	if k.is(trackPosition) && (t.opts.Writers[s.Encoding] != nil ||
		!(f.row.whole && k.offset == f.row.before && k.epoch == f.row.epoch)) {
		return f.each(t, s, k)
	}
	v := variantPlain
	if k.is(trackDelta) {
		if v = variantWhole; k.base != nil && k.base == f.round[0].base {
			v = variantPatch
		}
	}
	b := f.bytes(s.Encoding, v)
	if v != variantPlain && !b.whole {
		return f.each(t, s, k)
	}
	sent := 0
	if b.bytes != nil {
		s.WriteFrame(b.bytes)
		sent = len(f.round)
	}
	// Behind the write: one that panics leaves a gap, which is seen.
	if k.is(trackPosition) {
		k.offset = f.row.last
	}
	if v != variantPlain {
		k.base = f.round[len(f.round)-1].Publication
	}
	return sent
}

// each brings the round one by one.
func (f *fanout) each(t *Topics, s *session.Session, k *tracking) (sent int) {
	for _, a := range f.round {
		if k.gone || k.held != nil {
			break
		}
		if t.bring(s, k, a.delivery) {
			sent++
		}
	}
	return sent
}

// bring writes one delivery to a subscriber, unless it has it already; a gap
// before it is a loss. It says whether it has written. The subscription may have
// ended afterwards.
func (t *Topics) bring(s *session.Session, k *tracking, d *delivery) bool {
	p := d.Publication
	if k.is(trackPosition) && p.Offset > 0 {
		switch {
		case k.epoch == d.Epoch && p.Offset <= k.offset:
			return false
		case k.epoch != d.Epoch || p.Previous > k.offset:
			if t.opts.Lost != nil {
				t.lost(s, k, d.name)
				return false
			}
		}
	}
	form := FormPlain
	if k.is(trackDelta) {
		if form = FormWhole; k.base != nil && k.base == d.base {
			form = FormPatch
		}
	}
	b := d.frame(s.Encoding, form)
	if b != nil {
		if w := t.opts.Writers[s.Encoding]; w != nil && k.is(trackPosition) {
			w(s, d.name, Position{p.Offset, d.Epoch}, b)
		} else {
			s.WriteFrame(b)
		}
		if form != FormPlain {
			k.base = p
		}
	}
	if k.is(trackPosition) && p.Offset > 0 {
		k.offset, k.epoch = p.Offset, d.Epoch
	}
	return b != nil
}

// lost tells that the subscription has missed something.
func (t *Topics) lost(s *session.Session, k *tracking, name string) {
	t.losses.Add(1)
	k.held = &held{over: true} // nothing more is written to it
	if sub := memberOf(s).find(name); sub != nil && sub.track == k {
		t.opts.Lost(s, name, sub.joined&byServer != 0)
	}
}
