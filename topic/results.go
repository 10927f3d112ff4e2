package topic

import (
	"math"
	"sync/atomic"
)

// results remembers what publications with an idempotency key were answered. All
// shards together are bounded (Memory.shedResults). It stands under its shard's
// lock.
type results struct {
	byKey map[resultKey]result
	order []resultKey // by age, from first on
	first int
	all   *atomic.Int64 // bytes of all shards
}

type resultKey struct{ topic, key string }

type result struct {
	position Position
	ends     int64 // as in a stream
}

// resultOverhead is about what an answer takes beside its key, in a table that is
// not full.
const resultOverhead = 256

func (k *resultKey) size() int { return resultOverhead + len(k.topic) + len(k.key) }

// find is the answer of an earlier publication.
func (r *results) find(topic, key string, now int64) (Position, bool) {
	v, ok := r.byKey[resultKey{topic, key}]
	return v.position, ok && v.ends > now
}

// keep remembers an answer.
func (r *results) keep(topic, key string, v result) {
	if r.byKey == nil {
		r.byKey = make(map[resultKey]result)
	}
	k := resultKey{topic, key}
	if _, there := r.byKey[k]; !there {
		// One that is over and comes again keeps its place: it goes early, not late.
		r.order = append(r.order, k)
		r.all.Add(int64(k.size()))
	}
	r.byKey[k] = v
}

// oldest is when the head of the row ends.
func (r *results) oldest() int64 {
	if r.first == len(r.order) {
		return math.MaxInt64
	}
	return r.byKey[r.order[r.first]].ends
}

// expire drops what is over at the head of the row.
func (r *results) expire(now int64) {
	for r.first < len(r.order) && r.byKey[r.order[r.first]].ends <= now {
		r.drop()
	}
	if r.first == len(r.order) {
		*r = results{all: r.all}
	}
}

func (r *results) drop() {
	k := r.order[r.first]
	r.order[r.first] = resultKey{}
	r.first++
	r.all.Add(-int64(k.size()))
	delete(r.byKey, k)
	if r.first > 64 && r.first > len(r.order)/2 {
		r.order, r.first = append([]resultKey(nil), r.order[r.first:]...), 0
	}
}
