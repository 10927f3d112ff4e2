package topic

import (
	"sync/atomic"

	"perch/session"
)

// local is the subscriber list of a topic on one loop. What is not said
// otherwise belongs to the loop.
type local struct {
	topic *Topic
	loop  session.Loop

	active bool         // under the shard's lock: has subscribers
	count  atomic.Int32 // written by the loop, read by any
	// joins is how many have joined so far, in joinSteps; it may wrap. Written by
	// the loop under the shard's lock.
	joins uint32

	subs []*session.Session
	out  *fanout // nil while nothing is under way
}

// subscription is what a session keeps of one topic.
type subscription struct {
	list  *local
	index uint32 // in list.subs
	// joined is list.joins at the time, its lowest bit aside: that one says that
	// the server made the subscription, not the client.
	joined uint32
}

const (
	byServer = 1
	joinStep = 2
)

// since tells whether the subscription was there when list.joins was at. Both
// are looked at from now, the list's joins: at is never long ago, while between
// a subscription and now the count may have gone half around.
func (s *subscription) since(at, now uint32) bool { return now-s.joined&^byServer >= now-at }

// member is what topic keeps of a session. Most have one subscription.
type member struct {
	one  subscription
	more []subscription
}

func (m *member) find(name string) *subscription {
	if m == nil {
		return nil
	}
	if m.one.list != nil && m.one.list.topic.name == name {
		return &m.one
	}
	for i := range m.more {
		if m.more[i].list.topic.name == name {
			return &m.more[i]
		}
	}
	return nil
}

func (m *member) findList(l *local) *subscription {
	if m.one.list == l {
		return &m.one
	}
	for i := range m.more {
		if m.more[i].list == l {
			return &m.more[i]
		}
	}
	return nil
}

func (m *member) len() int {
	n := len(m.more)
	if m.one.list != nil {
		n++
	}
	return n
}

func memberOf(s *session.Session) *member {
	m, _ := s.Topics.(*member)
	return m
}

// Subscribe adds s to the subscribers of a topic; server says that the server
// does it of its own accord. ErrUnknownTopic, ErrAlreadySubscribed, ErrTooMany;
// ErrNotAvailable where s has ended: nobody would take it out again. Runs on
// the loop of s.
func (t *Topics) Subscribe(s *session.Session, name string, server bool) error {
	if s.Closed() {
		return ErrNotAvailable
	}
	if _, err := t.Namespace(name); err != nil {
		return err
	}
	m := memberOf(s)
	if m.find(name) != nil {
		return ErrAlreadySubscribed
	}
	if m != nil && m.len() >= t.opts.MaxSubscriptions {
		return ErrTooMany
	}
	if m == nil {
		m = &member{}
		s.Topics = m
	}
	l := t.localFor(name, s.Loop())
	sub := subscription{list: l, index: uint32(len(l.subs)), joined: l.joins}
	if server {
		sub.joined |= byServer
	}
	l.subs = append(l.subs, s)
	l.count.Add(1)
	if m.one.list == nil {
		m.one = sub
	} else {
		m.more = append(m.more, sub)
	}
	t.subscriptions.Add(1)
	return nil
}

// Unsubscribe takes s out of a topic; false: it was not in. Runs on the loop of
// s.
func (t *Topics) Unsubscribe(s *session.Session, name string) bool {
	m := memberOf(s)
	sub := m.find(name)
	if sub == nil {
		return false
	}
	t.remove(*sub)
	if n := len(m.more); n > 0 {
		*sub = m.more[n-1]
		m.more[n-1] = subscription{} // it would hold the topic
		m.more = m.more[:n-1]
	} else {
		m.one = subscription{}
	}
	if len(m.more) == 0 {
		m.more = nil
	}
	if m.one.list == nil {
		s.Topics = nil
	}
	return true
}

// Subscribed tells whether s is a subscriber of a topic. Runs on the loop of s.
func (t *Topics) Subscribed(s *session.Session, name string) bool {
	return memberOf(s).find(name) != nil
}

// Count is how many topics s is subscribed to. Runs on the loop of s.
func (t *Topics) Count(s *session.Session) int {
	if m := memberOf(s); m != nil {
		return m.len()
	}
	return 0
}

// Settled tells whether no publication is under way to s: whoever moves s before
// that would lose it. Runs on the loop of s.
func (t *Topics) Settled(s *session.Session) bool {
	m := memberOf(s)
	if m == nil {
		return true
	}
	if m.one.list != nil && m.one.list.out != nil {
		return false
	}
	for i := range m.more {
		if m.more[i].list.out != nil {
			return false
		}
	}
	return true
}

// Each calls f with each topic of s; f does not subscribe or unsubscribe. Runs
// on the loop of s.
func (t *Topics) Each(s *session.Session, f func(name string, server bool)) {
	m := memberOf(s)
	if m == nil {
		return
	}
	if m.one.list != nil {
		f(m.one.list.topic.name, m.one.joined&byServer != 0)
	}
	for i := range m.more {
		f(m.more[i].list.topic.name, m.more[i].joined&byServer != 0)
	}
}

// Leave takes s out of all its topics: its session ends. Runs on the loop of s.
func (t *Topics) Leave(s *session.Session) {
	m := memberOf(s)
	if m == nil {
		return
	}
	if m.one.list != nil {
		t.remove(m.one)
	}
	for _, sub := range m.more {
		t.remove(sub)
	}
	s.Topics = nil
}

func (t *Topics) remove(sub subscription) {
	l := sub.list
	t.subscriptions.Add(-1)
	left := l.count.Add(-1)
	if l.out != nil && l.out.running {
		// A round's cursor counts places: they stay until it is over.
		l.subs[sub.index] = nil
		l.out.holes = append(l.out.holes, sub.index)
	} else {
		l.drop(sub.index)
	}
	if left == 0 {
		t.release(l)
	}
}

// drop fills the place i with the last subscriber.
func (l *local) drop(i uint32) {
	n := len(l.subs) - 1
	last := l.subs[n]
	l.subs[n] = nil
	l.subs = l.subs[:n]
	if int(i) < n {
		l.subs[i] = last
		if last != nil {
			memberOf(last).findList(l).index = i
		}
	}
	// Memory follows the subscribers down, a quarter at a time.
	if n == 0 {
		l.subs = nil
	} else if c := cap(l.subs); c > 64 && n < c/4 {
		l.subs = append(make([]*session.Session, 0, c/2), l.subs...)
	}
}
