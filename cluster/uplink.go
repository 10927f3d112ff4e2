package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

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
	l    *leaf
	s    *stream // what waits; of a stream, only its way to ask and store is used
	most int64
	drop bool // the oldest, where there is no room

	wake  chan struct{}
	opens sync.Mutex
	ready atomic.Bool

	// Of the goroutine that sends, once open has returned.
	id     string // of this stream and what was sent of it: in the ids that the hub gets
	at     uint64 // the hub has everything up to it
	marked uint64 // sequence of the mark that says so
	first  uint64 // where the stream began at the last look
	lost   uint64 // a mark that was dropped with the oldest
	sent   map[string]place

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

// mark says how much of what waits the hub has; it stands behind it in the stream.
type uplinkMark struct {
	ID   string           `json:"id"`
	At   uint64           `json:"at"`
	Sent map[string]place `json:"sent"` // by the namespace's token: the last that is no more in the stream
}

func newUplink(l *leaf) *uplink {
	b, o := l.b, &l.b.link.opts.Server.Leaf
	u := &uplink{
		l: l, most: o.StoreBytes, drop: o.DropOldest, wake: make(chan struct{}, 1),
		sent: make(map[string]place), repairs: make(map[*stream]struct{}),
	}
	if u.most == 0 {
		u.most = defaultUplinkBytes
	}
	name := b.link.Prefix() + "_uplink"
	u.s = &stream{b: b, log: b.log.With("stream", name), name: name, life: b.life, stored: b.link.streamPrefix() + "." + subjectUplink + "."}
	return u
}

func (u *uplink) waiting() waiting {
	u.mu.Lock()
	defer u.mu.Unlock()
	return waiting{max(0, u.had.messages+u.come.messages), u.bytesLocked()}
}

func (u *uplink) bytesLocked() int64 { return u.had.bytes + u.come.bytes + u.air }

// open makes the stream and finds out how far the hub has it. Once is enough.
func (u *uplink) open() error {
	u.opens.Lock()
	defer u.opens.Unlock()
	if u.ready.Load() {
		return nil
	}
	b := u.l.b
	c := jetstream.StreamConfig{
		Name: u.s.name, Description: "perch: what waits for the hub", Subjects: []string{u.s.stored + "*"},
		Storage: jetstream.FileStorage, Replicas: 1, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
		MaxBytes: -1, MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1, MaxMsgsPerSubject: -1, AllowDirect: true,
		Duplicates: leastDuplicates,
	}
	if u.drop {
		c.MaxBytes = u.most
	}
	ctx, cancel := context.WithTimeout(b.life, b.link.Timeout())
	defer cancel()
	if _, err := b.link.js.CreateOrUpdateStream(ctx, c); err != nil {
		return fmt.Errorf("make the stream of what waits for the hub: %w", err)
	}
	st, err := u.s.state()
	if err != nil {
		return err
	}
	last, err := waitFor(b.life, func(done func(*row, error)) { u.s.last(u.s.stored+tokenMark, done) })
	if err != nil {
		return err
	}
	var m uplinkMark
	if last != nil {
		if err := json.Unmarshal(last.data, &m); err != nil {
			return fmt.Errorf("how far the hub has it: %w", err)
		}
		u.marked = last.seq
	}
	if m.ID == "" || b.link.unclean || m.At > st.last {
		// The sequences that follow may have been used before the machine stopped.
		m.ID = newEpoch()
	}
	u.id, u.at = m.ID, min(max(m.At, max(st.first, 1)-1), st.last)
	if m.Sent != nil {
		u.sent = m.Sent
	}
	if err := u.mark(b.life); err != nil {
		return err
	}
	if err := u.look(); err != nil {
		return err
	}
	u.ready.Store(true)
	poke(u.wake)
	return nil
}

// look takes the size of the stream. What comes meanwhile may count twice, until the
// next look.
func (u *uplink) look() error {
	u.mu.Lock()
	before := u.come
	u.mu.Unlock()
	st, err := u.s.state()
	if err != nil {
		return err
	}
	u.first = st.first
	u.mu.Lock()
	u.had = waiting{int64(st.messages) - 1, int64(st.bytes)}
	u.come.messages -= before.messages
	u.come.bytes -= before.bytes
	u.mu.Unlock()
	return nil
}

// mark notes how much the hub has.
func (u *uplink) mark(ctx context.Context) error {
	data, err := json.Marshal(uplinkMark{ID: u.id, At: u.at, Sent: u.sent})
	if err != nil {
		return err
	}
	seq, err := waitFor(ctx, func(done func(uint64, error)) { u.s.store(u.s.stored+tokenMark, nil, data, done) })
	if err == nil {
		u.marked = seq
	}
	return err
}

// purge drops what the hub has.
func (u *uplink) purge(ctx context.Context) error {
	_, err := waitFor(ctx, func(done func(*nats.Msg, error)) {
		u.s.ask("$JS.API.STREAM.PURGE."+u.s.name, map[string]uint64{"seq": u.at + 1}, func(m *nats.Msg, err error) bool {
			done(m, err)
			return false
		})
	})
	return err
}

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
	return u.l.b.out.send(&message{subject: u.s.stored + namespaceToken(s.namespace), header: head, data: data, got: func(m *nats.Msg, err error) bool {
		_, err = readAck(m, err)
		done(err)
		return false
	}})
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

// repair finds out what of a history does not wait yet, and puts it there. Until it
// has, nothing more is taken.
func (u *uplink) repair(s *stream) error {
	k := &s.kept
	u.mu.Lock()
	k.behind = true
	flying := k.flying
	u.mu.Unlock()
	if flying > 0 {
		return errFlying
	}
	from, err := u.lastKept(s)
	if err != nil {
		return err
	}
	for done := false; !done; {
		var rows []row
		rows, done, err = u.own(s, from+1)
		if err != nil {
			return err
		}
		answers := make(chan error, len(rows))
		n := 0
		for i := range rows {
			w := &rows[i]
			from = w.seq
			if header := w.head[headerHub]; len(header) > 0 {
				continue
			}
			if r, err := decode(w.data); err != nil || r.flags&(flagEpoch|flagPlace) != 0 {
				continue
			}
			if !u.put(s, w.seq, w.head, w.data, func(err error) { answers <- err }) {
				err = topic.ErrFull
				break
			}
			n++
		}
		for range n {
			select {
			case e := <-answers:
				if err == nil {
					err = e
				}
			case <-s.life.Done():
				return s.life.Err()
			}
		}
		if err != nil {
			return err
		}
	}
	u.mu.Lock()
	k.behind = false
	delete(u.repairs, s)
	u.mu.Unlock()
	poke(u.wake)
	return nil
}

// lastKept is the offset up to which a history waits for the hub, or has gone there.
func (u *uplink) lastKept(s *stream) (uint64, error) {
	t := namespaceToken(s.namespace)
	last, err := waitFor(s.life, func(done func(*row, error)) { u.s.last(u.s.stored+t, done) })
	if err != nil {
		return 0, err
	}
	u.mu.Lock()
	p := u.sent[t]
	u.mu.Unlock()
	if last != nil {
		if p, err = readPlace(last.head[headerKept]); err != nil {
			return 0, err
		}
	}
	if p.Epoch == *s.epoch.Load() {
		return p.Seq, nil
	}
	// Of another epoch, the history may have lost some of its last publications, and
	// has nothing else.
	st, err := s.state()
	return min(p.Seq, st.last), err
}

func readPlace(h []string) (place, error) {
	if len(h) == 0 {
		return place{}, errFormat
	}
	epoch, seq, _ := strings.Cut(h[0], " ")
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		return place{}, errFormat
	}
	return place{epoch, n}, nil
}

// own reads on in a history; done: it ends there.
func (u *uplink) own(s *stream, from uint64) (rows []row, done bool, err error) {
	more := false
	rows, err = waitFor(s.life, func(done func([]row, error)) {
		s.batch(s.stored+"*", from, readBatch, readBytes, func(rows []row, m bool, err error) {
			more = m
			done(rows, err)
		})
	})
	return rows, !more || len(rows) == 0, err
}

// noteSent takes over where the histories stand of which the hub has something more.
func (u *uplink) noteSent(rows []row) {
	u.mu.Lock()
	defer u.mu.Unlock()
	sent := maps.Clone(u.sent)
	for i := range rows {
		if p, err := readPlace(rows[i].head[headerKept]); err == nil {
			sent[u.namespace(&rows[i])] = p
		}
	}
	u.sent = sent
}

// namespace is the token of it, in the subject.
func (u *uplink) namespace(w *row) string { return w.subject[strings.LastIndexByte(w.subject, '.')+1:] }
