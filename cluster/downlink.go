package cluster

import (
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"perch/internal/pace"
	"perch/topic"
)

const (
	// downQueue is how many messages of the hub wait to be stored; what comes beyond
	// it is read later.
	downQueue = 512
	// downRetry is between two attempts to read what has not come.
	downRetry = time.Second
	// placePause is how often is noted how far a site has the hub's stream.
	placePause = time.Second
)

// downlink stores what a stream of the hub has into the one of the site. One
// goroutine does it.
type downlink struct {
	l    *leaf
	s    *stream
	wake chan struct{}

	epoch  string // of the hub's stream
	at     uint64 // the site has everything up to it
	noted  uint64 // what of at is noted in the site's stream
	mark   mark   // where it is noted
	seldom pace.Seldom
}

// place finds out how far the site has the hub's stream: as it is noted, and by what
// came behind the note.
func (d *downlink) place() error {
	s := d.s
	last, err := waitFor(s.life, func(done func(*row, error)) { s.last(s.stored+tokenPlace, done) })
	if err != nil {
		return err
	}
	from := uint64(0)
	if last != nil {
		r, err := decode(last.data)
		if err != nil || r.flags&flagPlace == 0 {
			return errFormat
		}
		d.epoch, d.at, d.noted, d.mark = r.epoch, r.previous, r.previous, mark{last.seq, last.time()}
		from = last.seq
	}
	for done := false; !done; {
		var rows []row
		if rows, done, err = d.l.up.own(s, from+1); err != nil {
			return err
		}
		for i := range rows {
			from = rows[i].seq
			if p, err := readPlace(rows[i].head[headerHub]); err == nil && (p.Epoch != d.epoch || p.Seq > d.at) {
				d.epoch, d.at = p.Epoch, p.Seq
			}
		}
	}
	return nil
}

// run takes what the hub's stream delivers, and reads what did not come.
func (d *downlink) run() {
	s := d.s
	live := make(chan *nats.Msg, downQueue)
	link := s.b.link
	sub, err := link.nc.ChanSubscribe(link.Prefix()+"."+subjectDeliver+"."+namespaceToken(s.namespace)+".*", live)
	if err != nil {
		return // the connection is closed
	}
	defer func() { _ = sub.Unsubscribe() }()
	look := time.NewTicker(hubPause)
	defer look.Stop()
	note := time.NewTicker(placePause)
	defer note.Stop()
	due := true // there may be something that does not come of itself
	retry := time.NewTimer(0)
	defer retry.Stop()
	for s.life.Err() == nil {
		var err error
		select {
		case <-s.life.Done():
			return
		case m := <-live:
			err = d.take(m, live)
		case <-d.wake:
			due, err = false, d.read()
		case <-retry.C:
			if due {
				due, err = false, d.read()
			}
		case <-look.C:
			due = false
			if err = d.read(); err == nil {
				err = d.refresh()
			}
		case <-note.C:
			err = d.note()
		}
		if err != nil && s.life.Err() == nil {
			if !due {
				due = true
				retry.Reset(downRetry)
			}
			if quiet, ok := d.seldom.Pass(10 * time.Second); ok && d.l.joined.Load() {
				s.log.Warn("what the hub has can't be read: it comes later", "err", err, "quiet", quiet)
			}
		}
	}
}

// take is what the hub's stream has just stored, and what came behind it.
func (d *downlink) take(m *nats.Msg, live <-chan *nats.Msg) error {
	var rows []row
	next := d.at + 1
	for {
		w, ok := rowOf(m)
		switch {
		case !ok:
			d.s.b.unreadable(m.Subject, errFormat)
		case w.seq == next && d.epoch != "":
			rows = append(rows, w)
			next++
		case w.seq >= next:
			if err := d.bring(rows); err != nil {
				return err
			}
			return d.read()
		}
		if len(rows) >= readMost {
			return d.bring(rows)
		}
		select {
		case m = <-live:
		default:
			return d.bring(rows)
		}
	}
}

// read asks the hub for all that the site does not have.
func (d *downlink) read() error {
	if !d.l.joined.Load() {
		return nil // it is tried once the hub is there
	}
	for {
		a, err := d.l.askHub(d.s.life, namespaceToken(d.s.namespace), readQuestion{Site: d.l.site, From: d.at + 1})
		if err != nil {
			return err
		}
		if a.epoch != d.epoch {
			if d.epoch != "" && a.began <= d.at {
				d.s.log.Warn("the hub's history has a new epoch: it is read from there on", "epoch", a.epoch)
				d.at = max(a.began, 1) - 1
				d.epoch = a.epoch
				continue
			}
			d.epoch = a.epoch
		}
		if err := d.bring(a.rows); err != nil {
			return err
		}
		if !a.more || len(a.rows) == 0 {
			return nil
		}
	}
}

// bring stores rows of the hub's stream here, in their order.
func (d *downlink) bring(rows []row) error {
	for len(rows) > 0 {
		n := 0
		var all []bringing
		for n < len(rows) {
			b := d.look(&rows[n])
			if b.alone && len(all) > 0 {
				break
			}
			n++
			if b.subject != "" {
				all = append(all, b)
			}
			if b.alone {
				break
			}
		}
		if err := d.store(all); err != nil {
			return err
		}
		d.l.received.Add(uint64(len(all)))
		d.at = rows[n-1].seq
		rows = rows[n:]
	}
	return nil
}

// bringing is a row of the hub on its way into the site's stream.
type bringing struct {
	row     *row
	name    string
	subject string // empty: the site has no use for it
	record  record
	alone   bool // what is before it is stored first
}

// look tells what becomes of a row.
func (d *downlink) look(w *row) bringing {
	if len(w.data) == 0 || header(&nats.Msg{Header: w.head}, headerSite) == d.l.site {
		return bringing{}
	}
	r, err := decode(w.data)
	if err != nil {
		d.s.b.unreadable(w.subject, err)
		return bringing{}
	}
	if r.flags&flagEpoch != 0 {
		d.epoch = r.epoch // what is behind it is of that one
	}
	if r.flags&(flagEpoch|flagPlace) != 0 {
		return bringing{}
	}
	return bringing{
		row: w, name: r.topic, subject: d.s.stored + token(r.topic), record: r, alone: r.flags&(flagVersion|flagRemoved) != 0,
	}
}

// store stores what is to be stored together.
func (d *downlink) store(all []bringing) error {
	answers := make(chan error, len(all))
	var failed atomic.Bool
	for i := range all {
		b := &all[i]
		done := func(err error) {
			if err != nil {
				failed.Store(true)
			}
			answers <- err
		}
		h := d.head(b.row)
		with := func(subject string, more nats.Header, data []byte, done func(uint64, error)) {
			for k, v := range h {
				more[k] = v
			}
			d.s.store(subject, more, data, done)
		}
		switch {
		case b.record.flags&flagRemoved != 0:
			d.s.removeTry(b.name, with, 0, done)
		case b.record.flags&flagVersion != 0:
			v := &versioned{s: d.s, store: with, subject: b.subject, data: b.row.data, version: b.record.version,
				epoch: b.record.versionEpoch}
			v.done = func(_ topic.Position, err error) { done(err) }
			v.try()
		default:
			d.s.store(b.subject, h, b.row.data, func(_ uint64, err error) { done(err) })
		}
		if failed.Load() {
			all = all[:i+1]
			break
		}
	}
	var err error
	for range all {
		select {
		case e := <-answers:
			err = errors.Join(err, e)
		case <-d.s.life.Done():
			return d.s.life.Err()
		}
	}
	return err
}

// head goes with a row of the hub: where it is from, and an id by which it is stored
// once, also where it comes twice.
func (d *downlink) head(w *row) nats.Header {
	seq := strconv.FormatUint(w.seq, 10)
	id := "hub." + d.epoch + "." + seq
	if have := w.head[headerMsgID]; len(have) > 0 {
		id = have[0]
	}
	return nats.Header{headerMsgID: {id}, headerHub: {d.epoch + " " + seq}}
}

// note writes down how far the site has the hub's stream.
func (d *downlink) note() error {
	if d.epoch == "" || d.at == d.noted && (d.mark.seq == 0 || time.Since(d.mark.at) < d.s.config().MaxAge/4) {
		return nil
	}
	return d.write()
}

func (d *downlink) write() error {
	at := d.at
	seq, err := waitFor(d.s.life, func(done func(uint64, error)) {
		d.s.store(d.s.stored+tokenPlace, nil, encodePlace(d.epoch, at), done)
	})
	if err == nil {
		d.noted, d.mark = at, mark{seq, time.Now()}
	}
	return err
}

// refresh writes it again before the stream drops it for its size.
func (d *downlink) refresh() error {
	if d.mark.seq == 0 || d.epoch == "" {
		return nil
	}
	st, err := d.s.state()
	if err != nil {
		return err
	}
	low := st.last-st.first > 1000 && d.mark.seq < st.first+(st.last-st.first)/4
	if low || d.mark.seq < st.first {
		return d.write()
	}
	return nil
}
