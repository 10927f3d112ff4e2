package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"perch/topic"
)

const (
	headerExpectLast = "Nats-Expected-Last-Subject-Sequence"
	headerMsgID      = "Nats-Msg-Id"
	headerRollup     = "Nats-Rollup"
	rollupSubject    = "sub"

	// codeWrongLast is JetStream's error where something came in between, and
	// codeWrongLastSoon where that is being stored by a cluster just now.
	codeWrongLast     = 10071
	codeWrongLastSoon = 10164
	// conflictTries is how often a change is tried that others come before.
	conflictTries = 8
)

// errConflict: something came before that this was not meant to follow.
var errConflict = errors.New("cluster: something else was written first")

// ack is JetStream's answer to what it is to store.
type ack struct {
	Seq       uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate"`
	Error     *struct {
		ErrCode     int    `json:"err_code"`
		Description string `json:"description"`
	} `json:"error"`
}

// readAck is what was stored, or the error.
func readAck(m *nats.Msg, err error) (ack, error) {
	if err != nil {
		return ack{}, err
	}
	if len(m.Data) == 0 { // nobody is there to store it
		return ack{}, ErrUnavailable
	}
	if seq := plainAck(m.Data); seq > 0 {
		return ack{Seq: seq}, nil
	}
	var a ack
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return a, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if e := a.Error; e != nil {
		if e.ErrCode == codeWrongLast || e.ErrCode == codeWrongLastSoon {
			return a, errConflict
		}
		return a, fmt.Errorf("%w: %s (%d)", ErrUnavailable, e.Description, e.ErrCode)
	}
	return a, nil
}

// plainAck reads what nearly all answers are, {"stream":"NAME","seq":N} with the
// domain in between where there is one; 0: it is another.
func plainAck(b []byte) uint64 {
	b, ok := bytes.CutPrefix(b, []byte(`{"stream":"`))
	_, b, named := bytes.Cut(b, []byte(`"`))
	if domain, there := bytes.CutPrefix(b, []byte(`,"domain":"`)); there {
		_, b, named = bytes.Cut(domain, []byte(`"`))
	}
	b, last := bytes.CutPrefix(b, []byte(`,"seq":`))
	if !ok || !named || !last || len(b) < 2 || b[len(b)-1] != '}' {
		return 0
	}
	var n uint64
	for _, c := range b[:len(b)-1] {
		if c < '0' || c > '9' || n > math.MaxUint64/10-1 {
			return 0
		}
		n = 10*n + uint64(c-'0')
	}
	return n
}

func expectLast(seq uint64) nats.Header {
	return nats.Header{headerExpectLast: {strconv.FormatUint(seq, 10)}}
}

// store hands a message over that is to be stored; done gets its sequence.
func (s *stream) store(subject string, h nats.Header, data []byte, done func(uint64, error)) {
	if !s.tryStore(subject, h, data, func(a ack, err error) { done(a.Seq, err) }) {
		done(0, topic.ErrFull)
	}
}

// storeOwn stores what is published at this node. At a leaf it has its place among
// what goes on to the hub before it is answered.
func (s *stream) storeOwn(subject string, h nats.Header, data []byte, done func(uint64, error)) {
	if l := s.b.leaf; l != nil {
		l.up.keep(s, subject, h, data, done)
		return
	}
	s.store(subject, h, data, done)
}

// tryStore is store; false: there is no room, and done is not called.
func (s *stream) tryStore(subject string, h nats.Header, data []byte, done func(ack, error)) bool {
	m := &message{subject: subject, header: h, data: data}
	blocks := s.blocks // set later than the first messages go out
	m.got = func(reply *nats.Msg, err error) bool {
		a, err := readAck(reply, err)
		if err != nil && !errors.Is(err, errConflict) && err != ErrUnavailable { //nolint:errorlint // what has a cause is logged
			s.complain(err)
		}
		if blocks == nil {
			done(a, err)
			return false
		}
		if err != nil {
			blocks.answered()
			done(a, err)
			return false
		}
		// It takes its room until the disk has it.
		n := m.size()
		s.b.out.bytes.Add(n)
		blocks.wait(func(err error) {
			s.b.out.bytes.Add(-n)
			if err != nil {
				s.complain(err)
				err = ErrUnavailable
			}
			done(a, err)
		})
		blocks.answered()
		return false
	}
	if blocks != nil {
		blocks.begin()
	}
	if s.b.out.send(m) {
		return true
	}
	if blocks != nil {
		blocks.answered()
	}
	return false
}

func (s *stream) complain(err error) {
	if quiet, ok := s.seldom.Pass(time.Second); ok {
		s.log.Error("publication not stored", "err", err, "quiet", quiet)
	}
}

func (s *stream) storeSync(subject string, h nats.Header, data []byte) (uint64, error) {
	return waitSync(s, func(done func(uint64, error)) { s.store(subject, h, data, done) })
}

// publish stores a publication.
func (s *stream) publish(name string, p *topic.Publication, o *topic.PublishOptions, done func(topic.Position, error)) {
	if !s.up() {
		done(topic.Position{}, ErrUnavailable)
		return
	}
	t := token(name)
	var h nats.Header
	if o.IdempotencyKey != "" {
		h = nats.Header{headerMsgID: {t + "." + token(o.IdempotencyKey)}}
	}
	data := encode(name, p, o)
	if o.Version > 0 {
		// It waits here while the last one is asked for.
		n := int64(len(data))
		if !s.b.out.reserve(n) {
			done(topic.Position{}, topic.ErrFull)
			return
		}
		w := &versioned{s: s, store: s.storeOwn, subject: s.stored + t, data: data, header: h, version: o.Version, epoch: o.VersionEpoch}
		w.done = func(at topic.Position, err error) { s.b.out.bytes.Add(-n); done(at, err) }
		w.try()
		return
	}
	s.storeOwn(s.stored+t, h, data, func(seq uint64, err error) { done(s.positionOf(seq, err)) })
}

func (s *stream) positionOf(seq uint64, err error) (topic.Position, error) {
	if err != nil {
		return topic.Position{}, err
	}
	return topic.Position{Offset: seq, Epoch: *s.epoch.Load()}, nil
}

// storing is storeOwn, or what else stores.
type storing func(subject string, h nats.Header, data []byte, done func(uint64, error))

// versioned stores a publication that is newer than the last one, or nothing.
type versioned struct {
	s       *stream
	store   storing
	subject string
	data    []byte
	header  nats.Header
	version uint64
	epoch   string
	done    func(topic.Position, error)
	tries   int
}

func (w *versioned) try() {
	w.s.last(w.subject, func(last *row, err error) {
		if err != nil {
			w.done(topic.Position{}, err)
			return
		}
		var seq uint64
		if last != nil {
			seq = last.seq
			r, err := decode(last.data)
			if err == nil && r.version >= w.version && (w.epoch == "" || w.epoch == r.versionEpoch) {
				w.done(w.s.positionOf(seq, nil))
				return
			}
		}
		h := expectLast(seq)
		for k, v := range w.header {
			h[k] = v
		}
		w.store(w.subject, h, w.data, func(seq uint64, err error) {
			if w.tries++; errors.Is(err, errConflict) {
				if w.tries < conflictTries {
					time.AfterFunc(staleWait<<w.tries, w.try)
					return
				}
				err = ErrUnavailable
			}
			w.done(w.s.positionOf(seq, err))
		})
	})
}

// remove drops the history of a topic. A mark stays in its place, which says where
// the topic stood: a client that has everything up to there has missed nothing.
func (s *stream) remove(name string, done func(error)) {
	if !s.up() {
		done(ErrUnavailable)
		return
	}
	s.removeTry(name, s.storeOwn, 0, done)
}

func (s *stream) removeTry(name string, store storing, tries int, done func(error)) {
	subject := s.stored + token(name)
	s.last(subject, func(last *row, err error) {
		if err != nil || last == nil {
			done(err)
			return
		}
		r, err := decode(last.data)
		if err != nil || r.flags&flagRemoved != 0 {
			done(err)
			return
		}
		h := expectLast(last.seq)
		h[headerRollup] = []string{rollupSubject}
		store(subject, h, encodeRemoved(name, last.seq), func(_ uint64, err error) {
			if errors.Is(err, errConflict) {
				if tries < conflictTries {
					time.AfterFunc(staleWait<<tries, func() { s.removeTry(name, store, tries+1, done) })
					return
				}
				err = ErrUnavailable
			}
			done(err)
		})
	})
}
