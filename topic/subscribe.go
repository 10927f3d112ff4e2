package topic

import (
	"iter"
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
	// tracks are those of the subscribers, by the same places; nil while none has
	// any, which is why it is no slice in place.
	tracks *[]*tracking
	out    *fanout // nil while nothing is under way
}

// subscription is what a session keeps of one topic.
type subscription struct {
	list  *local
	index uint32 // in list.subs
	// joined is list.joins at the time, its lowest bit aside: that one says that
	// the server made the subscription, not the client.
	joined uint32
	track  *tracking // nil for most
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

// all are the subscriptions of a member, which may be nil.
func (m *member) all() iter.Seq[*subscription] {
	return func(yield func(*subscription) bool) {
		if m == nil || m.one.list != nil && !yield(&m.one) {
			return
		}
		for i := range m.more {
			if !yield(&m.more[i]) {
				return
			}
		}
	}
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

// SubscribeOptions say what a subscription is to be.
type SubscribeOptions struct {
	// Server says that the server makes it of its own accord.
	Server bool
	// Position lets missed publications be noticed (Options.Lost). The
	// subscription is held back until Recover, which must follow.
	Position bool
	// Delta says that the client has agreed on deltas.
	Delta bool
	// News lets it be told of who comes and goes, Told tells the others of it.
	News bool
	Told bool
	// Joined says that the others have been told already that it came.
	Joined bool
	// Hidden leaves it out of presence.
	Hidden bool
	// Info is JSON about the subscriber, shown to others; nobody changes it.
	Info []byte
	// Namespace is that of the topic's name, where it is known already; nil: it is
	// looked up.
	Namespace *Namespace
}

// tracking is nil where there is nothing to track, as with most.
func (o *SubscribeOptions) tracking() *tracking {
	if !(o.Position || o.Delta || o.News || o.Told || o.Hidden) && o.Info == nil {
		return nil
	}
	var flags trackFlags
	for _, f := range [...]struct {
		on   bool
		flag trackFlags
	}{{o.Position, trackPosition}, {o.Delta, trackDelta}, {o.News, trackNews}, {o.Told, trackTold},
		{o.Told && o.Joined, trackJoined}, {o.Hidden, trackHidden}} {
		if f.on {
			flags |= f.flag
		}
	}
	k := &tracking{info: o.Info, flags: flags}
	if o.Position {
		k.held = &held{}
	}
	return k
}

// Subscribe adds s to the subscribers of a topic. ErrUnknownTopic,
// ErrAlreadySubscribed, ErrTooMany; ErrNotAvailable where s has ended: nobody
// would take it out again. Runs on the loop of s.
func (t *Topics) Subscribe(s *session.Session, name string, o SubscribeOptions) error {
	if s.Closed() {
		return ErrNotAvailable
	}
	ns := o.Namespace
	if ns == nil {
		var err error
		if ns, err = t.Namespace(name); err != nil {
			return err
		}
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
	l := t.localFor(ns, name, s.Loop(), &o)
	sub := subscription{list: l, index: uint32(len(l.subs)), joined: l.joins, track: o.tracking()}
	if o.Server {
		sub.joined |= byServer
	}
	l.add(s, sub.track)
	l.count.Add(1)
	if m.one.list == nil {
		m.one = sub
	} else {
		m.more = append(m.more, sub)
	}
	t.subscriptions.Add(1)
	return nil
}

// add puts a subscriber behind the others.
func (l *local) add(s *session.Session, k *tracking) {
	if k != nil && l.tracks == nil {
		tracks := make([]*tracking, len(l.subs), max(cap(l.subs), 1))
		l.tracks = &tracks
	}
	l.subs = append(l.subs, s)
	if l.tracks != nil {
		*l.tracks = append(*l.tracks, k)
	}
}

// Unsubscribe takes s out of a topic; false: it was not in. Runs on the loop of
// s.
func (t *Topics) Unsubscribe(s *session.Session, name string) bool {
	m := memberOf(s)
	sub := m.find(name)
	if sub == nil {
		return false
	}
	t.remove(s, *sub)
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

// Settled tells whether no publication is under way to s, and no recovery:
// whoever moves s before that would lose it. Runs on the loop of s.
func (t *Topics) Settled(s *session.Session) bool {
	for sub := range memberOf(s).all() {
		if sub.list.out != nil || sub.track != nil && sub.track.held != nil {
			return false
		}
	}
	return true
}

// Subscription is what can be said of one.
type Subscription struct {
	Topic string
	SubscribeOptions
	At Position // where it stands, with SubscribeOptions.Position
}

// Each calls f with each subscription of s; f does not subscribe or unsubscribe.
// Runs on the loop of s.
func (t *Topics) Each(s *session.Session, f func(Subscription)) {
	for sub := range memberOf(s).all() {
		f(sub.describe())
	}
}

func (s *subscription) describe() Subscription {
	d := Subscription{Topic: s.list.topic.name}
	d.Server = s.joined&byServer != 0
	if k := s.track; k != nil {
		d.Position, d.Delta, d.Hidden = k.is(trackPosition), k.is(trackDelta), k.is(trackHidden)
		d.News, d.Told, d.Joined = k.is(trackNews), k.is(trackTold), k.is(trackJoined)
		d.Info, d.At = k.info, Position{k.offset, k.epoch}
	}
	return d
}

// Leave takes s out of all its topics: its session ends. Runs on the loop of s.
func (t *Topics) Leave(s *session.Session) {
	m := memberOf(s)
	if m == nil {
		return
	}
	for sub := range m.all() {
		t.remove(s, *sub)
	}
	s.Topics = nil
}

func (t *Topics) remove(s *session.Session, sub subscription) {
	l := sub.list
	if k := sub.track; k != nil {
		k.gone, k.held, k.base = true, nil, nil
		if k.is(trackJoined) {
			defer t.tell(l.topic, News{Left: true, Client: t.clientInfo(s, k)})
		}
	}
	if sub.track != nil && sub.track.is(trackDelta) {
		t.dropDelta(l.topic)
	}
	t.subscriptions.Add(-1)
	left := l.count.Add(-1)
	if l.out != nil && l.out.running {
		// A round's cursor counts places: they stay until it is over.
		l.subs[sub.index] = nil
		if l.tracks != nil {
			(*l.tracks)[sub.index] = nil
		}
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
	l.subs = cut(l.subs, int(i))
	if l.tracks != nil {
		if *l.tracks = cut(*l.tracks, int(i)); n == 0 {
			l.tracks = nil
		}
	}
	if int(i) < n && last != nil {
		memberOf(last).findList(l).index = i
	}
}

// cut puts the last element in the place i. Memory follows the elements down, a
// quarter at a time.
func cut[T any](s []*T, i int) []*T {
	n := len(s) - 1
	s[i], s[n] = s[n], nil
	s = s[:n]
	if n == 0 {
		return nil
	}
	if c := cap(s); c > 64 && n < c/4 {
		s = append(make([]*T, 0, c/2), s...)
	}
	return s
}
