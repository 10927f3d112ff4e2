package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"perch/topic"
)

func (u *uplink) stream(name, subject string) *stream {
	b := u.l.b
	name = b.link.Prefix() + name
	return &stream{b: b, log: b.log.With("stream", name), name: name, life: b.life, stored: b.link.streamPrefix() + "." + subject + "."}
}

// make has JetStream make one of the two.
func (u *uplink) make(s *stream, change func(*jetstream.StreamConfig)) error {
	link := u.l.b.link
	c := jetstream.StreamConfig{
		Name: s.name, Subjects: []string{s.stored + "*"}, Storage: jetstream.FileStorage, Replicas: 1,
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, MaxBytes: -1, MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1,
		MaxMsgsPerSubject: -1, AllowDirect: true, Duplicates: leastDuplicates,
	}
	change(&c)
	ctx, cancel := context.WithTimeout(u.l.b.life, link.Timeout())
	defer cancel()
	if _, err := link.js.CreateOrUpdateStream(ctx, c); err != nil {
		return fmt.Errorf("make the stream of what waits for the hub: %w", err)
	}
	return nil
}

// open makes the streams and finds out how far the hub has it. Once is enough.
func (u *uplink) open() error {
	u.opens.Lock()
	defer u.opens.Unlock()
	if u.ready.Load() {
		return nil
	}
	if err := u.l.b.life.Err(); err != nil {
		return err
	}
	b := u.l.b
	err := u.make(u.s, func(c *jetstream.StreamConfig) {
		c.Description = "perch: what waits for the hub"
		if u.drop {
			c.MaxBytes = u.most
		}
	})
	if err == nil {
		err = u.make(u.mark, func(c *jetstream.StreamConfig) {
			c.Description, c.MaxMsgsPerSubject = "perch: how much of it the hub has", 1
		})
	}
	if err != nil {
		return err
	}
	st, err := u.s.state()
	if err != nil {
		return err
	}
	if st.last == 0 {
		// It is never empty: its files would begin anew, and what is forced to the disk
		// is followed by their numbers.
		first := func(done func(uint64, error)) { u.s.store(u.s.stored+tokenMark, nil, encodePlace("", 0), done) }
		if _, err = waitFor(b.life, first); err != nil {
			return err
		}
		st = streamState{first: 1, last: 1}
	}
	last, err := waitFor(b.life, func(done func(*row, error)) { u.mark.last(u.mark.stored+tokenMark, done) })
	if err != nil {
		return err
	}
	var m uplinkMark
	if last != nil {
		if err := json.Unmarshal(last.data, &m); err != nil {
			return fmt.Errorf("how far the hub has it: %w", err)
		}
	}
	if m.ID == "" || m.At > st.last {
		// The sequences that follow may have been used before the machine stopped.
		m.ID = newEpoch()
	}
	u.id, u.at = m.ID, min(max(m.At, st.first-1, 1), st.last) // the first one is none
	if m.Sent != nil {
		u.sent = m.Sent
	}
	if err := u.note(b.life); err != nil {
		return err
	}
	if err := u.look(); err != nil {
		return err
	}
	if err := u.s.openBlocks(); err != nil {
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
	u.mu.Lock()
	u.had = waiting{int64(st.last - min(st.last, max(u.at, st.first-1))), int64(st.bytes)}
	u.come.messages -= before.messages
	u.come.bytes -= before.bytes
	u.mu.Unlock()
	return nil
}

// note writes down how much the hub has.
func (u *uplink) note(ctx context.Context) error {
	data, err := json.Marshal(uplinkMark{ID: u.id, At: u.at, Sent: u.sent})
	if err != nil {
		return err
	}
	_, err = waitFor(ctx, func(done func(uint64, error)) { u.mark.store(u.mark.stored+tokenMark, nil, data, done) })
	return err
}

// purge drops what the hub has, but for the last one.
func (u *uplink) purge(ctx context.Context) error {
	_, err := waitFor(ctx, func(done func(*nats.Msg, error)) {
		u.s.ask("$JS.API.STREAM.PURGE."+u.s.name, map[string]uint64{"seq": u.at}, func(m *nats.Msg, err error) bool {
			done(m, err)
			return false
		})
	})
	return err
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
