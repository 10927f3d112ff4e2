package topic

import (
	"fmt"
	"testing"
	"time"
)

func TestMemoryIdempotency(t *testing.T) {
	key := func(k string, size int) PublishOptions {
		return PublishOptions{IdempotencyKey: k, IdempotencyTTL: 5 * time.Minute, HistorySize: size, HistoryTTL: time.Hour}
	}
	for _, size := range []int{0, 10} {
		t.Run(fmt.Sprintf("history %d", size), func(t *testing.T) {
			m, r, clock := memoryRig(MemoryOptions{})
			steps := []struct {
				topic, key string
				pass       time.Duration
				again      bool
			}{
				{"a", "k", 0, false},
				{"a", "k", 0, true},
				{"b", "k", 0, false},
				{"a", "l", 0, false},
				{"a", "", 0, false},
				{"a", "", 0, false},
				{"a", "k", 5*time.Minute - 1, true}, // an answer does not last longer for being given
				{"a", "k", 1, false},
				{"a", "k", 5*time.Minute - 1, true},
				{"a", "l", 0, false},
			}
			at := make(map[string]Position)
			for i, s := range steps {
				clock.add(s.pass)
				if i%2 == 0 {
					m.sweep()
				}
				before := len(r.deliveries)
				got := memoryMust(t, m, s.topic, "x", key(s.key, size))
				if again := len(r.deliveries) == before; again != s.again {
					t.Fatalf("step %d: taken for the same: %v", i, again)
				}
				if s.again && got != at[s.topic+s.key] {
					t.Errorf("step %d: answered %+v, at first %+v", i, got, at[s.topic+s.key])
				}
				at[s.topic+s.key] = got
			}
		})
	}
}

func TestMemoryIdempotencyIsBounded(t *testing.T) {
	const bound = 640_000
	m, r, clock := memoryRig(MemoryOptions{ResultBytes: bound})
	o := PublishOptions{IdempotencyTTL: time.Hour}
	const n = 10 * bound / resultOverhead
	for i := range n {
		o.IdempotencyKey = fmt.Sprint("key-", i)
		clock.add(1)
		memoryMust(t, m, "a", "1", o)
		memoryMust(t, m, fmt.Sprint(i), "1", o)
	}
	bytes, answers := 0, 0
	for i := range m.shards {
		rs := &m.shards[i].results
		for _, k := range rs.order[rs.first:] {
			bytes += k.size()
		}
		if len(rs.byKey) != len(rs.order)-rs.first {
			t.Errorf("shard %d: %d answers in %d places", i, len(rs.byKey), len(rs.order)-rs.first)
		}
		answers += len(rs.byKey)
	}
	if int64(bytes) != m.results.Load() || bytes > bound || bytes < bound*9/10 {
		t.Errorf("%d bytes are kept, %d counted; the bound is %d", bytes, m.results.Load(), bound)
	}
	// The newest are the ones that are kept, of one topic as of many.
	before := len(r.deliveries)
	for i := n - answers/2 + 1; i < n; i++ {
		o.IdempotencyKey = fmt.Sprint("key-", i)
		memoryMust(t, m, "a", "1", o)
		memoryMust(t, m, fmt.Sprint(i), "1", o)
	}
	if got := len(r.deliveries) - before; got > 0 {
		t.Errorf("%d of the newest answers are gone", got)
	}
	clock.add(time.Hour)
	m.sweep()
	for i := range m.shards {
		if rs := &m.shards[i].results; rs.byKey != nil || rs.order != nil || m.results.Load() != 0 {
			t.Fatalf("shard %d keeps %+v", i, rs)
		}
	}
}
