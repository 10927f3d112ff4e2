package topic

import (
	"slices"
	"time"
)

// oracleTopic is what the oracle of the recovery model knows of a topic: all
// that was published in its epoch, and since when nobody has used it.
type oracleTopic struct {
	epoch   string
	log     []oracleEntry // by offset, from 1 on
	removed uint64        // the history up to here is gone
	used    time.Time
}

type oracleEntry struct {
	number uint32
	at     time.Time
}

func (o *oracleTopic) top() Position { return Position{uint64(len(o.log)), o.epoch} }

// has tells whether a history of so many and such a time must still have the
// publication of an offset.
func (o *oracleTopic) has(offset uint64, ns *Namespace, now time.Time) bool {
	return offset > o.removed && offset+uint64(ns.HistorySize) > uint64(len(o.log)) &&
		now.Before(o.log[offset-1].at.Add(ns.HistoryTTL))
}

// expect is what must come of a recovery that asks now: the numbers of the
// publications, and whether it is one.
func (o *oracleTopic) expect(r RecoverRequest, ns *Namespace, limit int, now time.Time) (numbers []uint32, ok bool) {
	top := o.top()
	switch {
	case !r.Recover:
		return nil, false
	case r.Cache:
		if r.Since.Offset > 0 && r.Since == top {
			return nil, true
		}
		if top.Offset == 0 || !o.has(top.Offset, ns, now) {
			return nil, false
		}
		return []uint32{o.log[top.Offset-1].number}, true
	case r.Since.Epoch != "" && r.Since.Epoch != top.Epoch, r.Since.Offset > top.Offset,
		top.Offset-r.Since.Offset > uint64(limit):
		return nil, false
	}
	for offset := r.Since.Offset + 1; offset <= top.Offset; offset++ {
		if !o.has(offset, ns, now) {
			return nil, false
		}
		numbers = append(numbers, o.log[offset-1].number)
	}
	return numbers, true
}

// subState is how far a subscription of the model is.
type subState uint8

const (
	subNone    subState = iota
	subReading          // its history is read
	subTold             // its client knows, Live is to come
	subLive
)

// modelClient is what a client keeps of a topic, also when it is not subscribed,
// and what the oracle knows of its subscription.
type modelClient struct {
	name  string
	at    Position // as the client says it when it comes back
	known bool
	base  []byte // of deltas

	state   subState
	plain   bool // without a position
	delta   bool
	attempt int // grows with each subscription and each end
	// due are the publications without an offset that must still come, of a
	// plain subscription all.
	due []uint32
	// room is what has been published since, as far as it may be held back.
	room int

	request RecoverRequest
	top     Position // when it asked
	numbers []uint32
	ok      bool
}

func (c *modelClient) end() {
	c.state, c.due = subNone, nil
	c.attempt++
}

// got is the oracle's look at the answer to a recovery; "" where it is right.
func (c *modelClient) got(g *Recovered) string {
	var numbers []uint32
	for _, p := range g.Publications {
		n, whole := documentNumber(p.Data)
		if !whole {
			return "a payload that nobody has published"
		}
		numbers = append(numbers, n)
	}
	switch {
	case g.Position != c.top:
		return "another position than the topic's"
	case g.OK != c.ok && c.ok:
		return "not recovered, though the history has it all"
	case g.OK != c.ok:
		return "recovered, though the history does not have it"
	case !slices.Equal(numbers, c.numbers):
		return "other publications than what was missed"
	}
	c.at, c.known = g.Position, true
	c.base = nil
	if n := len(g.Publications); n > 0 {
		c.base = g.Publications[n-1].Data
	}
	return ""
}

// live is its look at a publication that is written; "" where it is right.
func (c *modelClient) live(o *oracleTopic, offset uint64, number uint32) string {
	switch {
	case c.state != subLive:
		return "written to a subscription that is not live"
	case c.plain || offset == 0:
		if len(c.due) == 0 || c.due[0] != number {
			return "not the one that is due"
		}
		c.due = c.due[1:]
		return ""
	case offset <= c.at.Offset:
		return "again, or an older one"
	case offset != c.at.Offset+1:
		return "a gap before it"
	case offset > uint64(len(o.log)) || o.log[offset-1].number != number:
		return "not what has this offset"
	}
	c.at.Offset = offset
	return ""
}
