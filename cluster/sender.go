package cluster

import (
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
)

// message is one that goes out. Where got is set, answers are expected: as in
// call. torn is shared by messages, without got, that are of use only together:
// behind one that can't be written, the others are not.
type message struct {
	subject string
	header  nats.Header
	data    []byte
	got     func(*nats.Msg, error) bool
	torn    *atomic.Bool
}

const messageOverhead = 256

func (m *message) size() int64 { return int64(messageOverhead + len(m.subject) + len(m.data)) }

// sender takes messages from any goroutine, in their order, to one that writes to
// NATS: the socket of a server that has stopped reading blocks that one alone.
// What waits, or waits for its answer, is bounded.
type sender struct {
	nc      *nats.Conn
	replies *replies
	most    int64
	failed  func(m *message, err error) // is told what could not be written
	bytes   atomic.Int64

	mu     sync.Mutex
	row    []*message
	closed bool
	wake   chan struct{}
	stop   chan struct{}
	done   sync.WaitGroup
}

func newSender(nc *nats.Conn, r *replies, most int, failed func(*message, error)) *sender {
	s := &sender{nc: nc, replies: r, most: int64(most), failed: failed, wake: make(chan struct{}, 1), stop: make(chan struct{})}
	s.done.Go(s.run)
	return s
}

// send hands m over; false: there is no room, or the sender has ended. It does not
// block.
func (s *sender) send(m *message) bool {
	n := m.size()
	if !s.reserve(n) {
		return false
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.bytes.Add(-n)
		return false
	}
	s.row = append(s.row, m)
	first := len(s.row) == 1
	s.mu.Unlock()
	if first {
		poke(s.wake)
	}
	return true
}

// reserve takes room for n bytes, which bytes counts until it is given back.
func (s *sender) reserve(n int64) bool {
	if s.bytes.Add(n) > s.most {
		s.bytes.Add(-n)
		return false
	}
	return true
}

func (s *sender) queued() int64 { return s.bytes.Load() }

func (s *sender) run() {
	var row []*message
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		}
		for {
			s.mu.Lock()
			row, s.row = s.row, row[:0]
			s.mu.Unlock()
			if len(row) == 0 {
				break
			}
			for i, m := range row {
				select {
				case <-s.stop: // what could be written may take its time, each of them
					s.drop(m)
				default:
					s.write(m)
				}
				row[i] = nil
			}
			if cap(row) > 4096 {
				row = nil // a burst leaves no table behind
			}
		}
	}
}

// write runs on the sender's goroutine.
func (s *sender) write(m *message) {
	out := nats.Msg{Subject: m.subject, Header: m.header, Data: m.data}
	if m.got == nil {
		if m.torn == nil || !m.torn.Load() {
			if err := s.nc.PublishMsg(&out); err != nil {
				if m.torn != nil {
					m.torn.Store(true)
				}
				s.failed(m, err)
			}
		}
		s.bytes.Add(-m.size())
		return
	}
	// Its room is its own until it has been answered.
	reply, t := s.replies.expect(&call{got: m.got, room: m.size(), of: &s.bytes})
	out.Reply = reply
	if err := s.nc.PublishMsg(&out); err != nil {
		s.failed(m, err)
		s.replies.fail(t, ErrUnavailable)
	}
}

// close ends what waits with an error.
func (s *sender) close() {
	close(s.stop)
	s.done.Wait()
	s.mu.Lock()
	row := s.row
	s.row, s.closed = nil, true
	s.mu.Unlock()
	for _, m := range row {
		s.drop(m)
	}
}

// drop ends what is not written any more.
func (s *sender) drop(m *message) {
	if m.got != nil {
		m.got(nil, ErrUnavailable)
	}
	s.bytes.Add(-m.size())
}
