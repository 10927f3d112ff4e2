package topic

import (
	"errors"
	"slices"
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

// errCensus is the answer where going through the subscribers has panicked.
var errCensus = errors.New("topic: presence could not be read")

// Presence gathers who is subscribed to a topic of this node. done is called
// once, on a loop or before Presence returns: what takes long with many is to be
// done elsewhere. A subscriber may stand twice in what it gets, which is shared
// with others who ask at the same time: nobody changes it. ErrFull: a loop has no
// room. Safe from any goroutine.
func (t *Topics) Presence(name string, done func([]ClientInfo, error)) {
	if waits, err := t.ask(name, done); !waits {
		done(nil, err)
	}
}

// ask lets a census begin, or joins one that has not begun yet: with thousands
// who come back at once and ask, few are needed. false: done has to be called.
func (t *Topics) ask(name string, done func([]ClientInfo, error)) (bool, error) {
	sh := t.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	tp := sh.topics[name]
	if tp == nil {
		return false, nil
	}
	r := tp.needLocked()
	if r.asked != nil {
		r.asked.done = append(r.asked.done, done)
		return true, nil
	}
	if !tp.reserveLocked(session.PostOverhead) {
		return false, ErrFull
	}
	g := &gathering{done: []func([]ClientInfo, error){done}}
	var tasks []*census
	for l := range tp.activeLocked() {
		tasks = append(tasks, &census{t: t, l: l, g: g, part: len(tasks), cursor: -1})
	}
	g.parts = make([][]ClientInfo, len(tasks))
	g.left.Store(int32(len(tasks)))
	r.asked = g
	for _, c := range tasks {
		c.l.loop.PostTask(session.PostOverhead, c)
	}
	return true, nil
}

// begun closes a gathering to those who ask later.
func (t *Topics) begun(tp *Topic, g *gathering) {
	sh := t.shard(tp.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if tp.rare.asked == g {
		tp.rare.asked = nil
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
	parts  [][]ClientInfo
	left   atomic.Int32
	failed atomic.Bool
	// done grows under the shard's lock until the first part is begun.
	done []func([]ClientInfo, error)
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
	sound := false
	defer func() {
		// Behind a panic as well: who asks waits for it.
		if !sound {
			c.g.failed.Store(true)
		}
		if !more {
			c.g.add(c.part, c.out)
		}
	}()
	if c.cursor < 0 {
		c.t.begun(c.l.topic, c.g)
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
	sound = true
	return c.cursor > 0
}

// add takes the part of one loop; the last one brings the answer.
func (g *gathering) add(part int, out []ClientInfo) {
	g.parts[part] = out
	if g.left.Add(-1) > 0 {
		return
	}
	if g.failed.Load() {
		for _, done := range g.done {
			done(nil, errCensus)
		}
		return
	}
	all := slices.Concat(g.parts...)
	for _, done := range g.done {
		done(all, nil)
	}
}
