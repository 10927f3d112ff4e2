package topic

import (
	"sync/atomic"

	"perch/session"
)

// presenceSlice is how many subscribers one slice of a presence answer looks at:
// some 50 µs of the loop.
const presenceSlice = 512

// clientInfo is what others see of a subscriber. Runs on the loop of s.
func (t *Topics) clientInfo(s *session.Session, k *tracking) ClientInfo {
	i := ClientInfo{User: s.User(), Client: s.ClientID(t.opts.Node)}
	if s.Extra != nil {
		i.ConnInfo = s.Extra.Info
	}
	if k != nil {
		i.ChanInfo = k.info
	}
	return i
}

// Info is what others see of s as a subscriber of a topic. Runs on the loop of s.
func (t *Topics) Info(s *session.Session, name string) ClientInfo {
	if sub := memberOf(s).find(name); sub != nil {
		return t.clientInfo(s, sub.track)
	}
	return t.clientInfo(s, nil)
}

// Presence gathers who is subscribed to a topic of this node. done is called
// once, on a loop or before Presence returns: what takes long with many is to be
// done elsewhere. A subscriber may stand twice in what it gets. ErrFull: a loop
// has no room. Safe from any goroutine.
func (t *Topics) Presence(name string, done func([]ClientInfo, error)) {
	lists := t.lists(name)
	if lists == nil {
		done(nil, nil)
		return
	}
	for i, l := range lists {
		if !l.loop.Reserve(session.PostOverhead) {
			for _, r := range lists[:i] {
				r.loop.Release(session.PostOverhead)
			}
			done(nil, ErrFull)
			return
		}
	}
	g := &gathering{parts: make([][]ClientInfo, len(lists)), done: done}
	g.left.Store(int32(len(lists)))
	for i, l := range lists {
		l.loop.PostTask(session.PostOverhead, &census{t: t, l: l, g: g, part: i, cursor: -1})
	}
}

// lists are those of a topic that have subscribers.
func (t *Topics) lists(name string) []*local {
	sh := t.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	tp := sh.topics[name]
	if tp == nil {
		return nil
	}
	var out []*local
	for l := range tp.activeLocked() {
		out = append(out, l)
	}
	return out
}

// gathering waits for the loops' parts.
type gathering struct {
	parts [][]ClientInfo
	left  atomic.Int32
	done  func([]ClientInfo, error)
}

// census goes through the subscribers of one loop, from the last to the first:
// whoever leaves meanwhile is replaced by the last, so that nobody who stays is
// passed over.
type census struct {
	t      *Topics
	l      *local
	g      *gathering
	part   int
	cursor int // the place behind the next one; -1: not begun
	out    []ClientInfo
}

// Run implements session.Task. Runs on the loop of the list.
func (c *census) Run() (more bool) {
	if c.cursor < 0 {
		c.cursor = len(c.l.subs)
		c.out = make([]ClientInfo, 0, c.cursor)
	}
	c.cursor = min(c.cursor, len(c.l.subs))
	for range min(presenceSlice, c.cursor) {
		c.cursor--
		if s, k := c.l.subs[c.cursor], c.l.track(c.cursor); s != nil && (k == nil || !k.is(trackHidden)) {
			c.out = append(c.out, c.t.clientInfo(s, k))
		}
	}
	if c.cursor > 0 {
		return true
	}
	c.g.parts[c.part] = c.out
	if c.g.left.Add(-1) == 0 {
		all := c.g.parts[0]
		for _, p := range c.g.parts[1:] {
			all = append(all, p...)
		}
		c.g.done(all, nil)
	}
	return false
}
