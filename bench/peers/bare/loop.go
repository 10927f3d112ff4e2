package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/panjf2000/gnet/v2"
)

// member is the context of a connection that gets publications or pings.
type member struct {
	conn  gnet.Conn
	loop  *loop
	topic bool
	gone  bool
	all   int // its place in loop.all
	sub   int // its place in loop.subs
}

// loop is what an event loop knows of its members.
type loop struct {
	events gnet.EventLoop

	// The event loop's.
	all, subs []*member
	due       float64
	cursor    int

	mu    sync.Mutex
	inbox []byte // publications of other loops, as frames
	share float64
}

// join makes c a member. Runs on the loop.
func (s *server) join(c gnet.Conn, topic bool) *member {
	s.mu.Lock()
	l := s.loops[c.EventLoop()]
	if l == nil {
		l = &loop{events: c.EventLoop()}
		s.loops[l.events] = l
	}
	s.mu.Unlock()
	m := &member{conn: c, loop: l, topic: topic, all: len(l.all), sub: len(l.subs)}
	l.all = append(l.all, m)
	if topic {
		l.subs = append(l.subs, m)
	}
	return m
}

// OnClose takes a member out. Runs on the loop, also within a Write that fails.
func (s *server) OnClose(c gnet.Conn, _ error) gnet.Action {
	m, ok := c.Context().(*member)
	if !ok {
		return gnet.None
	}
	m.gone = true
	l := m.loop
	last := l.all[len(l.all)-1]
	l.all[m.all], last.all = last, m.all
	l.all = slices.Delete(l.all, len(l.all)-1, len(l.all))
	if m.topic {
		last := l.subs[len(l.subs)-1]
		l.subs[m.sub], last.sub = last, m.sub
		l.subs = slices.Delete(l.subs, len(l.subs)-1, len(l.subs))
	}
	return gnet.None
}

// publish hands frames to every loop's subscribers. Runs on loop from.
func (s *server) publish(from *loop, frames []byte) {
	s.mu.Lock()
	for _, l := range s.loops {
		if l == from {
			continue
		}
		l.mu.Lock()
		first := len(l.inbox) == 0
		l.inbox = append(l.inbox, frames...)
		l.mu.Unlock()
		if first {
			_ = l.events.Execute(context.Background(), inboxTask{l})
		}
	}
	s.mu.Unlock()
	from.deliver(frames)
}

// deliver writes frames to each subscriber, in one piece. Runs on the loop.
func (l *loop) deliver(frames []byte) {
	// From the back: a subscriber that is closed has the last one take its place.
	for i := len(l.subs) - 1; i >= 0; i-- {
		_, _ = l.subs[i].conn.Write(frames)
	}
}

type inboxTask struct{ *loop }

// Run implements gnet.Runnable.
func (t inboxTask) Run(context.Context) error {
	t.mu.Lock()
	frames := t.inbox
	t.inbox = nil
	t.mu.Unlock()
	t.deliver(frames)
	return nil
}

// beats is in how many steps the members get their pings.
const beats = 256

// OnTick has a goroutine of its own: the pings are sent by the loops.
func (s *server) OnTick() (time.Duration, gnet.Action) {
	step := max(s.every/beats, time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.loops {
		l.mu.Lock()
		first := l.share == 0
		l.share += float64(step) / float64(s.every)
		l.mu.Unlock()
		if first {
			_ = l.events.Execute(context.Background(), beatTask{l})
		}
	}
	return step, gnet.None
}

var pingFrame = []byte{0x89, 0}

type beatTask struct{ *loop }

// Run implements gnet.Runnable. It sends the pings of a share of the members.
func (t beatTask) Run(context.Context) error {
	t.mu.Lock()
	share := t.share
	t.share = 0
	t.mu.Unlock()
	n := float64(len(t.all))
	for t.due = min(t.due+share*n, n); t.due >= 1 && len(t.all) > 0; t.due-- {
		if t.cursor++; t.cursor >= len(t.all) {
			t.cursor = 0
		}
		_, _ = t.all[t.cursor].conn.Write(pingFrame)
	}
	return nil
}
