package topic

import (
	"math"
	"sync/atomic"
	"time"

	"perch/session"
)

// checkParts is in how many pieces one check of all topics is done, and
// checksMost how many topics are looked at at once.
const (
	checkParts = topicShards
	checksMost = 256
)

// otherEpoch stands in tracking.behind where the topic was of another epoch.
const otherEpoch = math.MaxUint64

// watchPositions compares, shard by shard, where the subscribers of each topic
// stand with where it stands itself: a loss behind which nothing more is
// published would never be seen otherwise.
func (t *Topics) watchPositions() {
	tick := time.NewTicker(max(t.opts.PositionInterval/checkParts, time.Millisecond))
	defer tick.Stop()
	for i := 0; ; i = (i + 1) % topicShards {
		select {
		case <-t.stop:
			return
		case <-tick.C:
			t.checkShard(&t.shards[i])
		}
	}
}

// checkShard asks where the topics of a shard stand. No more than checksMost are
// under way at once: with a million topics the inboxes are for others as well.
func (t *Topics) checkShard(sh *shard) {
	type checked struct {
		name string
		meta time.Duration
	}
	sh.mu.Lock()
	var all []checked
	for _, tp := range sh.topics {
		if r := tp.rare; r != nil && r.positioned {
			all = append(all, checked{tp.name, r.ns.HistoryMetaTTL})
		}
	}
	sh.mu.Unlock()
	for _, c := range all {
		select {
		case <-t.stop:
			return
		case t.checks <- struct{}{}:
		}
		t.broker.History(c.name, Filter{Meta: c.meta, Check: true}, func(_ []*Publication, top Position, err error) {
			over := func() { <-t.checks }
			if err != nil {
				over()
				return
			}
			t.compare(c.name, top, over)
		})
	}
}

// compare lets each loop with subscribers of the topic look at them, and calls
// over when all have. Safe from any goroutine.
func (t *Topics) compare(name string, top Position, over func()) {
	lists := t.lists(name)
	left := new(atomic.Int32)
	left.Store(int32(len(lists)) + 1)
	done := func() {
		if left.Add(-1) == 0 {
			over()
		}
	}
	for _, l := range lists {
		if l.loop.Reserve(session.PostOverhead) {
			l.loop.PostTask(session.PostOverhead, &comparison{t: t, l: l, top: top, cursor: -1, done: done})
		} else {
			done() // at the next check
		}
	}
	done()
}

// comparison goes through the subscribers of one loop as a census does.
type comparison struct {
	t      *Topics
	l      *local
	top    Position
	cursor int
	done   func()
}

// Run implements session.Task. Runs on the loop of the list.
func (c *comparison) Run() (more bool) {
	// Behind a panic as well: the loop does not call it again.
	defer func() {
		if !more {
			c.done()
		}
	}()
	if c.cursor < 0 {
		c.cursor = len(c.l.subs)
	}
	for range presenceSlice {
		c.cursor = min(c.cursor, len(c.l.subs)) - 1
		if c.cursor < 0 {
			break
		}
		s, k := c.l.subs[c.cursor], c.l.track(c.cursor)
		if s == nil || k == nil || !k.is(trackPosition) || k.held != nil {
			continue
		}
		if k.late(c.top) {
			c.t.lost(s, k, c.l.topic.name)
		}
	}
	return c.cursor > 0
}

// late tells whether the position has not come to where the topic stood at the
// check before: what is on its way now is no loss. Of another epoch it must be
// twice: an answer may be older than the subscription.
func (k *tracking) late(top Position) bool {
	before := k.behind
	k.behind = 0
	switch {
	case k.epoch != top.Epoch:
		k.behind = otherEpoch
		return before == otherEpoch
	case before != 0 && before != otherEpoch && k.offset < before:
		return true
	case k.offset < top.Offset:
		k.behind = top.Offset
	}
	return false
}
