package cluster

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// row is a message as a stream holds it.
type row struct {
	seq uint64
	// With a delivery: the last of the subject before it; in a batch, of the batch. 0:
	// none.
	before  uint64
	at      time.Time // zero where stamp has it
	stamp   string
	subject string
	left    uint64 // of the first one of a batch: how many there are behind it
	torn    bool   // others may have stood before it, and behind the one read before
	data    []byte
	head    nats.Header // as it was stored, and what the server adds; not of a leader's answer
}

const (
	headerSequence = "Nats-Sequence"
	headerBefore   = "Nats-Last-Sequence"
	headerTime     = "Nats-Time-Stamp"
	headerSubject  = "Nats-Subject"
	headerPending  = "Nats-Num-Pending"
	headerStatus   = "Status"

	statusEnd      = "204"
	statusNotFound = "404"

	codeNotFound = 10037 // of MSG.GET
)

func header(m *nats.Msg, key string) string {
	if v := m.Header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// rowOf reads a message that a stream has answered or delivered.
func rowOf(m *nats.Msg) (row, bool) {
	seq, err := strconv.ParseUint(header(m, headerSequence), 10, 64)
	if err != nil {
		return row{}, false
	}
	r := row{seq: seq, stamp: header(m, headerTime), subject: header(m, headerSubject), data: m.Data, head: m.Header}
	r.before, _ = strconv.ParseUint(header(m, headerBefore), 10, 64)
	return r, true
}

// time is when the message was stored.
func (r *row) time() time.Time {
	if r.stamp != "" {
		r.at, _ = time.Parse(time.RFC3339Nano, r.stamp)
		r.stamp = ""
	}
	return r.at
}

// ask asks NATS something; got is called as in call.
func (s *stream) ask(subject string, body any, got func(*nats.Msg, error) bool) {
	if !s.b.link.Connected() {
		got(nil, ErrUnavailable)
		return
	}
	data, err := json.Marshal(body)
	if err != nil {
		got(nil, err)
		return
	}
	if !s.b.out.send(&message{subject: subject, data: data, got: got}) {
		got(nil, ErrUnavailable)
	}
}

// direct asks any server that keeps the stream, leader the one that leads it: what
// it has is not behind what has been delivered.
func (s *stream) direct() string { return "$JS.API.DIRECT.GET." + s.name }
func (s *stream) leader() string { return "$JS.API.STREAM.MSG.GET." + s.name }

type getRequest struct {
	Seq     uint64 `json:"seq,omitempty"`
	LastFor string `json:"last_by_subj,omitempty"`
	NextFor string `json:"next_by_subj,omitempty"`
	Batch   int    `json:"batch,omitempty"`
	Bytes   int    `json:"max_bytes,omitempty"`
}

// one asks for a single message; nil: there is none.
func (s *stream) one(q getRequest, done func(*row, error)) {
	if s.b.link.Replicas() > 1 {
		s.ask(s.leader(), q, func(m *nats.Msg, err error) bool {
			done(readOne(m, err))
			return false
		})
		return
	}
	s.ask(s.direct(), q, func(m *nats.Msg, err error) bool {
		switch {
		case err != nil:
			done(nil, err)
		case header(m, headerStatus) == statusNotFound:
			done(nil, nil)
		default:
			r, ok := rowOf(m)
			if !ok {
				done(nil, ErrUnavailable)
			} else {
				done(&r, nil)
			}
		}
		return false
	})
}

// readOne reads the answer of a leader.
func readOne(m *nats.Msg, err error) (*row, error) {
	if err != nil {
		return nil, err
	}
	var a struct {
		Error *struct {
			ErrCode int `json:"err_code"`
		} `json:"error"`
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Data    string    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if len(m.Data) == 0 || json.Unmarshal(m.Data, &a) != nil {
		return nil, ErrUnavailable
	}
	switch {
	case a.Error != nil && a.Error.ErrCode == codeNotFound:
		return nil, nil
	case a.Error != nil || a.Message == nil:
		return nil, ErrUnavailable
	}
	data, err := base64.StdEncoding.DecodeString(a.Message.Data)
	if err != nil {
		return nil, ErrUnavailable
	}
	return &row{seq: a.Message.Seq, subject: a.Message.Subject, at: a.Message.Time, data: data}, nil
}

// last is the latest message of a subject; nil: there is none.
func (s *stream) last(subject string, done func(*row, error)) {
	s.one(getRequest{LastFor: subject}, done)
}

func (s *stream) lastSync(subject string) (*row, error) {
	return waitSync(s, func(done func(*row, error)) { s.last(subject, done) })
}

// batch reads messages of a subject, which may be a pattern, from a sequence on;
// more: there are others behind them. Each answer names the one before it: one that
// did not come, with a server that fails meanwhile, is an error.
func (s *stream) batch(subject string, from uint64, most, bytes int, done func(rows []row, more bool, err error)) {
	var rows []row
	var before uint64
	q := getRequest{Seq: max(from, 1), NextFor: subject, Batch: most, Bytes: bytes}
	s.ask(s.direct(), q, func(m *nats.Msg, err error) bool {
		if err != nil {
			done(nil, false, err)
			return false
		}
		switch status := header(m, headerStatus); status {
		case "":
			r, ok := rowOf(m)
			if !ok || r.before != before {
				done(nil, false, ErrUnavailable)
				return false
			}
			if len(rows) == 0 {
				r.left, _ = strconv.ParseUint(header(m, headerPending), 10, 64)
			}
			rows, before = append(rows, r), r.seq
			return true
		case statusEnd:
			if end, _ := strconv.ParseUint(header(m, headerBefore), 10, 64); end != before {
				done(nil, false, ErrUnavailable)
				return false
			}
			left, _ := strconv.ParseUint(header(m, headerPending), 10, 64)
			done(rows, left > 0, nil)
		case statusNotFound:
			done(rows, false, nil)
		default:
			done(nil, false, ErrUnavailable)
		}
		return false
	})
}

// waitSync is waitFor, no longer than s waits for answers.
func waitSync[T any](s *stream, do func(func(T, error))) (T, error) {
	ctx, cancel := context.WithTimeoutCause(s.life, s.timeout(), ErrUnavailable)
	defer cancel()
	return waitFor(ctx, do)
}

// marks remembers the places of removed histories: deliveries behind them name
// them as what came before, while subscribers stand where the topic stood.
type marks struct {
	mu    sync.Mutex
	stood map[uint64]uint64 // the offset at which the topic stood, by the mark's
	order []uint64
}

const marksMost = 4096

func (k *marks) note(seq, stood uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, there := k.stood[seq]; there {
		return
	}
	if k.stood == nil {
		k.stood = make(map[uint64]uint64)
	}
	if len(k.order) >= marksMost {
		delete(k.stood, k.order[0])
		k.order = append(k.order[:0:0], k.order[1:]...)
	}
	k.stood[seq] = stood
	k.order = append(k.order, seq)
}

// before is the offset that a delivery follows on.
func (k *marks) before(seq uint64) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v, ok := k.stood[seq]; ok {
		return v
	}
	return seq
}
