package topic

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestMemoryTopicBytes(t *testing.T) {
	const one = 1000 + keptOverhead
	m, _, _ := memoryRig(MemoryOptions{TopicBytes: 3 * one})
	for i := range 5 {
		memoryMust(t, m, "a", strings.Repeat(fmt.Sprint(i), 1000), keepTen)
	}
	if got, at, _ := memoryRead(t, m, "a", allOf); len(got) != 3000 || got[0] != '2' || at.Offset != 5 {
		t.Errorf("%d bytes from %q on, at %+v", len(got), got[:1], at)
	}
	memoryMust(t, m, "a", strings.Repeat("x", 3*one), keepTen)
	if got, at, _ := memoryRead(t, m, "a", allOf); got != "" || at.Offset != 6 {
		t.Errorf("more than all there is room for: %d bytes are kept, at %+v", len(got), at)
	}
	memoryMust(t, m, "a", "small", keepTen)
	if got, _, _ := memoryRead(t, m, "a", allOf); got != "small" {
		t.Errorf("afterwards: %q", got)
	}
}

// Over the bound of all, what would end next goes first, of whatever topic.
func TestMemoryHistoryBytes(t *testing.T) {
	const data, topics = 1000, 200
	one := int64(streamOverhead + keptOverhead + len("000") + data)
	m, _, clock := memoryRig(MemoryOptions{HistoryBytes: 100 * one})
	publish := func(i int, ttl time.Duration) {
		memoryMust(t, m, fmt.Sprintf("%03d", i), strings.Repeat("x", data), PublishOptions{HistorySize: 10, HistoryTTL: ttl})
		if n := m.bytes.Load(); n > 100*one {
			t.Fatalf("%d bytes after %d topics, the bound is %d", n, i, 100*one)
		}
	}
	for i := range topics {
		clock.add(time.Second)
		publish(i, time.Hour)
	}
	// Nobody is subscribed: what was published last is kept, and nothing of the
	// topics before.
	keeps := 0
	for i := range topics {
		switch s := m.find(fmt.Sprintf("%03d", i)); {
		case s == nil && keeps > 0:
			t.Errorf("topic %d is gone, and %d older ones are not", i, keeps)
		case s != nil && s.len() == 0:
			t.Errorf("of topic %d the position is left", i)
		case s != nil:
			keeps++
		}
	}
	if keeps < 95 {
		t.Errorf("%d topics have their publication", keeps)
	}
	// One that ends soon goes before older ones that end later.
	publish(topics, time.Minute)
	publish(topics+1, time.Hour)
	if m.find(fmt.Sprint(topics)) != nil {
		t.Error("what would end next is still there")
	}
	if m.find(fmt.Sprint(topics+1)) == nil {
		t.Error("the last one is not there")
	}
	// Topics that are only asked for take nothing from those with a history.
	before := m.Counts().Publications
	for i := range 10 * topics {
		m.History(fmt.Sprint("asked-", i), Filter{}, func([]*Publication, Position, error) {})
	}
	if n := m.Counts().Publications; n < before-1 {
		t.Errorf("%d publications, there were %d", n, before)
	}
	if c, n := m.Counts(), m.recount(); c != n {
		t.Errorf("counted %+v, there are %+v", c, n)
	}
}

// What is used again goes behind what is not, of positions and publications.
func TestMemorySheddingFollowsUse(t *testing.T) {
	const data = 1000
	one := int64(streamOverhead + keptOverhead + 1 + data)
	single := PublishOptions{HistorySize: 1, HistoryTTL: time.Minute}
	for _, tt := range []struct {
		name  string
		bytes int64
		use   func(m *Memory, name string)
	}{
		{"publications", 3 * one, func(m *Memory, name string) { memoryMust(t, m, name, strings.Repeat("x", data), single) }},
		{"positions", 3 * (streamOverhead + 1), func(m *Memory, name string) {
			m.History(name, Filter{}, func([]*Publication, Position, error) {})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, again := range []string{"a", "b", "c"} {
				m, _, clock := memoryRig(MemoryOptions{HistoryBytes: tt.bytes})
				for _, name := range []string{"a", "b", "c", again, "d"} {
					clock.add(time.Second)
					tt.use(m, name)
				}
				oldest := "a"
				if again == "a" {
					oldest = "b"
				}
				for _, name := range []string{"a", "b", "c", "d"} {
					if (m.find(name) == nil) != (name == oldest) {
						t.Errorf("%s used again: %s there %v", again, name, m.find(name) != nil)
					}
				}
			}
		})
	}
}

func (m *Memory) find(name string) *stream { return m.shard(name).streams[name] }

// recount is Counts by looking.
func (m *Memory) recount() (c MemoryCounts) {
	for i := range m.shards {
		for q, of := range m.shards[i].queues {
			c.Topics += len(of)
			for place, s := range of {
				if s.queue != q || s.place != place || (s.len() > 0) != (q == queueKept) || s.due > s.next()+int64(time.Second) {
					c.Topics += 1_000_000 // stands where it should not
				}
			}
		}
		for _, s := range m.shards[i].streams {
			bytes := 0
			for _, k := range s.kept[s.first:] {
				bytes += k.p.weight() + keptOverhead
			}
			c.Publications += s.len()
			c.Bytes += int64(streamOverhead + len(s.name) + len(s.versionEpoch) + bytes)
		}
	}
	return c
}

// A million topics that were used once don't stay: published to or only asked
// for.
func TestMemoryTopicsDontStay(t *testing.T) {
	const n, bound = 200_000 / raceDivisor, 1 << 20
	for _, tt := range []struct {
		name string
		use  func(m *Memory, name string)
	}{
		{"published to", func(m *Memory, name string) { memoryMust(t, m, name, "1", keepTen) }},
		{"read", func(m *Memory, name string) { m.History(name, Filter{}, func([]*Publication, Position, error) {}) }},
		{"with a key", func(m *Memory, name string) {
			o := PublishOptions{IdempotencyKey: "k", IdempotencyTTL: time.Hour}
			memoryMust(t, m, name, "1", o)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, r, clock := memoryRig(MemoryOptions{HistoryBytes: bound, ResultBytes: bound})
			before := heapBytes()
			for i := range n {
				tt.use(m, fmt.Sprintf("topic-%d", i))
				clock.add(1)
				r.deliveries = r.deliveries[:0]
				if b := m.bytes.Load(); b > bound {
					t.Fatalf("%d bytes after %d topics", b, i)
				}
			}
			r.deliveries = nil
			// The bound is of what is counted: it must be about what there is.
			if now := heapBytes() - before; now > 2*bound {
				t.Errorf("%d bytes on the heap, the bound is %d", now, bound)
			}
			clock.add(2 * time.Hour)
			m.sweep()
			if c := m.Counts(); c != (MemoryCounts{}) {
				t.Errorf("stays: %+v", c)
			}
			if left := heapBytes() - before; left > restBudget {
				t.Errorf("%d bytes stay", left)
			}
		})
	}
}

// Where room is short, topics with subscribers lose their publications, never
// their positions, and all of it ends.
func TestMemorySheddingLeavesPositions(t *testing.T) {
	const bound = 20_000
	m, r, _ := memoryRig(MemoryOptions{HistoryBytes: bound})
	was := make(map[string]Position)
	for i := range 100 { // more than fit, empty
		name := fmt.Sprint("subscribed-", i)
		r.interested[name] = true
		was[name] = memoryMust(t, m, name, "1", keepTen)
	}
	for i := range 1000 {
		memoryMust(t, m, fmt.Sprint("other-", i), strings.Repeat("x", 1000), keepTen)
	}
	for name, at := range was {
		if _, now, err := memoryRead(t, m, name, allOf); now != at || err != nil {
			t.Errorf("%s was at %+v, is at %+v, %v", name, at, now, err)
		}
	}
	if c := m.Counts(); c != m.recount() || c.Publications > 0 || c.Topics > 110 {
		t.Errorf("counts %+v, there are %+v", c, m.recount())
	}
}
