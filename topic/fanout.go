package topic

import (
	"slices"
	"sync"
	"sync/atomic"

	"perch/session"
)

const (
	// sliceSubscribers is how many subscribers one slice of a fan-out serves: at
	// about 10 µs a write, some 1.3 ms of the loop.
	sliceSubscribers = 128
	// roundBytes bounds what one round joins to one write per subscriber.
	roundBytes = 256 << 10
)

// delivery is a publication on its way to this node's loops, which share its
// encodings; or, without a publication, news of who came and went.
type delivery struct {
	Delivery
	name   string
	topics *Topics
	base   *Publication // what was delivered before, or nil
	news   []News
	frames [session.EncodingCount][formCount]atomic.Pointer[encoded]
	mu     sync.Mutex // held while one of them is made
}

type encoded struct{ frame []byte }

// room is what the delivery takes of a loop's inbox, until it has passed the
// loop's subscribers.
func (d *delivery) room() int { return session.PostOverhead + d.weight() }

func (d *delivery) weight() int {
	if d.Publication == nil {
		return newsWeight(d.news)
	}
	return d.Publication.weight()
}

// frameSize is about what the delivery's frame will take in any format.
func (d *delivery) frameSize() int { return d.weight() + len(d.name) + 64 }

// frame is the delivery in a wire format, made by who needs it first; nil where
// that format can't carry it.
func (d *delivery) frame(e session.Encoding, form Form) []byte {
	if f := d.frames[e][form].Load(); f != nil {
		return f.frame
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.frameLocked(e, form).frame
}

func (d *delivery) frameLocked(e session.Encoding, form Form) *encoded {
	f := d.frames[e][form].Load()
	switch {
	case f != nil:
		return f
	case form == FormPatch && d.patchLocked() == nil:
		f = d.frameLocked(e, FormWhole)
	default:
		f = &encoded{}
		b, err := d.encodeLocked(e, form)
		switch {
		case err != nil:
			d.topics.encodeErrors.Add(1)
		case b != nil:
			d.topics.encodings.Add(1)
			f.frame = b
		}
	}
	d.frames[e][form].Store(f)
	return f
}

func (d *delivery) encodeLocked(e session.Encoding, form Form) ([]byte, error) {
	if d.Publication == nil {
		if enc := d.topics.opts.Joined[e]; enc != nil {
			return enc(d.name, d.news)
		}
		return nil, nil
	}
	enc := d.topics.opts.Encoders[e]
	if enc == nil {
		return nil, nil
	}
	data := d.Publication.Data
	if form == FormPatch {
		data = d.patchLocked()
	}
	return enc(d.name, d.Publication, form, data)
}

// fanout is the work of a list that has publications under way: those that
// wait, and the round that is at its subscribers now. It exists only then.
type fanout struct {
	waiting []arrival

	// The round: publications between which nobody joined. A publication from
	// before a subscriber came is not for it: who joins while the round runs stands
	// behind end; late says that others joined before it began, so that each
	// subscriber's time is compared with the round's.
	running bool
	round   []arrival
	late    bool
	row     row
	joined  [session.EncodingCount][variantCount]joined
	cursor  int
	end     int
	holes   []uint32
}

// variant is which of the forms a subscriber gets in a round.
type variant uint8

const (
	variantPlain variant = iota
	variantWhole         // deltas, but for the first
	variantPatch         // all deltas
	variantCount
)

func (v variant) form(i int) Form {
	switch {
	case v == variantPlain:
		return FormPlain
	case v == variantWhole && i == 0:
		return FormWhole
	}
	return FormPatch
}

// joined is a round in one format, one frame behind the other.
type joined struct {
	made  bool
	bytes []byte
	whole bool // no frame is missing
}

// arrival is a delivery and the list's joins when it was posted.
type arrival struct {
	*delivery
	joins uint32
}

// post brings one publication to one list. The first of a row becomes the one
// that works; the later ones add theirs and are done.
type post struct {
	l      *local
	d      *delivery
	joins  uint32 // of the list, when this was posted
	worker bool
}

// Run implements session.Task. Runs on the loop of the list.
func (p *post) Run() (more bool) {
	l := p.l
	if !p.worker {
		if l.out != nil {
			l.out.waiting = append(l.out.waiting, arrival{p.d, p.joins})
			return false
		}
		if len(l.subs) == 0 || p.d.Publication == nil && l.tracks == nil {
			l.loop.Release(p.d.room())
			return false
		}
		l.out = &fanout{waiting: []arrival{{p.d, p.joins}}}
		p.worker = true
		// What waits behind in the inbox joins the first round: its frames leave
		// in the same writes.
		return true
	}
	whole := false
	defer func() {
		// A panic ends this task, but the list has no other worker: the next
		// subscriber is served in a task of its own.
		if !whole {
			l.loop.PostTask(0, p)
		}
	}()
	more = l.work(p.d.topics)
	whole = true
	return more
}

// work serves the next slice of subscribers and tells whether more is left.
func (l *local) work(t *Topics) bool {
	f := l.out
	if !f.running {
		f.begin(l)
	}
	stop := min(f.cursor+sliceSubscribers, f.end)
	sent := 0
	for f.cursor < stop {
		// A write may end this session or, through its handler, take others out of
		// the list: their places stay, empty.
		s, k := l.subs[f.cursor], l.track(f.cursor)
		f.cursor++
		if s == nil || f.late && !memberOf(s).findList(l).since(f.round[0].joins, l.joins) {
			continue
		}
		if k != nil {
			sent += f.tracked(t, s, k)
			continue
		}
		if f.round[0].Publication == nil {
			continue // who has no tracking has not asked for news
		}
		if b := f.bytes(s.Encoding, variantPlain); b.bytes != nil {
			s.WriteFrame(b.bytes)
			sent += len(f.round)
		}
	}
	t.deliveries.Add(uint64(sent))
	if f.cursor < f.end {
		return true
	}
	l.finish()
	if len(f.waiting) > 0 && len(l.subs) > 0 {
		return true
	}
	l.passed(f.waiting)
	l.out = nil
	return false
}

// passed gives the room of publications back.
func (l *local) passed(row []arrival) {
	n := 0
	for _, a := range row {
		n += a.room()
	}
	if n > 0 {
		l.loop.Release(n)
	}
}

func (f *fanout) begin(l *local) {
	n, size := 0, 0
	for n < len(f.waiting) && f.waiting[n].joins == f.waiting[0].joins &&
		(n == 0 || size+f.waiting[n].frameSize() <= roundBytes) {
		if f.waiting[n].Publication == nil {
			n = max(n, 1) // news are a round of their own
			break
		}
		size += f.waiting[n].frameSize()
		n++
	}
	f.round = f.waiting[:n:n]
	f.waiting = f.waiting[n:]
	f.row = rowOf(f.round)
	f.joined = [session.EncodingCount][variantCount]joined{}
	f.late = f.round[0].joins != l.joins
	f.cursor, f.end, f.running = 0, len(l.subs), true
}

// bytes is all of the round's frames in a format, one behind the other.
func (f *fanout) bytes(e session.Encoding, v variant) *joined {
	j := &f.joined[e][v]
	if j.made {
		return j
	}
	j.made, j.whole = true, true
	if len(f.round) == 1 {
		j.bytes = f.round[0].frame(e, v.form(0))
		j.whole = j.bytes != nil
		return j
	}
	size := 0
	for i, d := range f.round {
		n := len(d.frame(e, v.form(i)))
		size += n
		j.whole = j.whole && n > 0
	}
	if size > 0 {
		j.bytes = make([]byte, 0, size)
		for i, d := range f.round {
			j.bytes = append(j.bytes, d.frame(e, v.form(i))...)
		}
	}
	return j
}

// finish ends the round and closes the gaps that the leavers left. From the
// back, so that what moves into a gap is never a gap itself.
func (l *local) finish() {
	f := l.out
	l.passed(f.round)
	f.running = false
	f.round = nil
	if len(f.holes) == 0 {
		return
	}
	slices.Sort(f.holes)
	for i := len(f.holes) - 1; i >= 0; i-- {
		l.drop(f.holes[i])
	}
	f.holes = nil
}
