package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// What sites read of the hub's histories they ask of the hub's nodes, over subjects
// below the prefix: JetStream's own do not cross from one domain to another, nor
// does a site need any right to them.

const (
	// headerState ends an answer.
	headerState = "Perch-State"
	stateEnd    = "end"
	stateNone   = "none" // no such namespace with a history
	// headerEpoch is that of the hub's stream, headerBegan where it was written.
	headerEpoch = "Perch-Epoch"
	headerBegan = "Perch-Began"
	headerMore  = "Perch-More"
	// headerRows, with the end, is how many have been sent before it: a connection
	// that breaks loses some of them, and what comes behind them goes out on the next.
	headerRows = "Perch-Rows"

	// readMost bounds what a site is given at once.
	readMost      = 256
	readMostBytes = 512 << 10
	// sitesGroup is the queue group of the hub's nodes: one of them answers.
	sitesGroup = "perch"
)

// errNoNamespace: the hub keeps no history of a namespace.
var errNoNamespace = errors.New("cluster: the hub keeps no history of this namespace")

// readQuestion is what a site asks: the latest message of a topic, or the messages
// of a stream from a sequence on.
type readQuestion struct {
	Site string `json:"site"`
	Last string `json:"last,omitempty"` // token of the topic
	From uint64 `json:"from,omitempty"`
}

// readAnswer is what the hub says to it. Of what is of no use to the site only the
// sequence comes.
type readAnswer struct {
	rows  []row
	more  bool
	epoch string
	began uint64
}

// serveSites answers sites.
func (b *Broker) serveSites() error {
	if b.link.Alone() {
		return nil
	}
	sub, err := b.link.nc.QueueSubscribe(b.link.Prefix()+"."+subjectRead+".*", sitesGroup, b.answerSite)
	if err != nil {
		return err
	}
	b.subs = append(b.subs, sub)
	return nil
}

// answerSite runs on the subscription's goroutine.
func (b *Broker) answerSite(m *nats.Msg) {
	var q readQuestion
	if err := json.Unmarshal(m.Data, &q); err != nil || m.Reply == "" {
		b.unreadable(m.Subject, err)
		return
	}
	ns := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	var s *stream
	for name, have := range *b.streams.Load() {
		if namespaceToken(name) == ns && have.ready.Load() {
			s = have
		}
	}
	if s == nil {
		b.out.send(&message{subject: m.Reply, header: nats.Header{headerState: {stateNone}}})
		return
	}
	reply := m.Reply
	b.reads.begin(func() {
		give := func(rows []row, more bool, err error) {
			b.reads.over()
			if err == nil {
				s.tellSite(reply, &q, rows, more)
			}
		}
		if q.Last != "" {
			s.last(s.stored+q.Last, func(last *row, err error) {
				if last == nil {
					give(nil, false, err)
					return
				}
				give([]row{*last}, false, err)
			})
			return
		}
		s.batch(s.stored+"*", q.From, readMost, readMostBytes, give)
	})
}

// tellSite sends the answer. What does not fit into what waits for NATS, or can't be
// written, is the last of it: the site asks again.
func (s *stream) tellSite(reply string, q *readQuestion, rows []row, more bool) {
	least := s.b.now().Add(-s.ns.Load().HistoryTTL)
	var torn atomic.Bool
	for i := range rows {
		w := &rows[i]
		h := nats.Header{headerSequence: {strconv.FormatUint(w.seq, 10)}}
		m := &message{subject: reply, header: h, data: w.data, torn: &torn}
		if site := w.head[headerSite]; len(site) > 0 {
			h[headerSite] = site
		}
		if id := w.head[headerMsgID]; len(id) > 0 {
			h[headerMsgID] = id
		}
		if q.Last == "" && (w.time().Before(least) || header(&nats.Msg{Header: w.head}, headerSite) == q.Site) {
			m.data = nil
		}
		if out := (nats.Msg{Header: h, Data: m.data}); int64(out.Size()) > s.b.link.nc.MaxPayload() {
			// It would end each answer at the same place, where the site would stay.
			s.b.notSent(m, nats.ErrMaxPayload)
			m.data = nil
		}
		if !s.b.out.send(m) {
			return
		}
	}
	s.b.out.send(&message{subject: reply, torn: &torn, header: nats.Header{
		headerState: {stateEnd}, headerEpoch: {*s.epoch.Load()}, headerBegan: {strconv.FormatUint(s.began.Load(), 10)},
		headerMore: {strconv.FormatBool(more)}, headerRows: {strconv.Itoa(len(rows))},
	}})
}

// askHub asks a node of the hub. An answer of which something is lost is an error.
func (l *leaf) askHub(ctx context.Context, ns string, q readQuestion) (readAnswer, error) {
	data, err := json.Marshal(q)
	if err != nil {
		return readAnswer{}, err
	}
	var a readAnswer
	return waitFor(ctx, func(done func(readAnswer, error)) {
		got := func(m *nats.Msg, err error) bool {
			if err != nil {
				done(a, err)
				return false
			}
			switch header(m, headerState) {
			case stateEnd:
				if header(m, headerRows) != strconv.Itoa(len(a.rows)) {
					done(a, fmt.Errorf("%w: an answer of the hub has lost messages", ErrUnavailable))
					return false
				}
				a.epoch, a.more = header(m, headerEpoch), header(m, headerMore) == "true"
				a.began, err = strconv.ParseUint(header(m, headerBegan), 10, 64)
				done(a, err)
				return false
			case stateNone:
				done(a, errNoNamespace)
				return false
			}
			if header(m, headerStatus) != "" {
				done(a, fmt.Errorf("%w: no node of the hub answers", ErrUnavailable))
				return false
			}
			r, ok := rowOf(m)
			if !ok {
				done(a, errFormat)
				return false
			}
			a.rows = append(a.rows, r)
			return true
		}
		subject := l.b.link.Prefix() + "." + subjectRead + "." + ns
		if !l.b.out.send(&message{subject: subject, data: data, got: got}) {
			done(a, ErrUnavailable)
		}
	})
}

// hubPause is how often the hub is asked whether something has not come.
const hubPause = 10 * time.Second
