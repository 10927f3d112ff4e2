package topic

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeClock is a clock that a test moves.
type fakeClock struct{ ns atomic.Int64 }

func newFakeClock() *fakeClock {
	c := &fakeClock{}
	c.ns.Store(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *fakeClock) now() time.Time      { return time.Unix(0, c.ns.Load()) }
func (c *fakeClock) add(d time.Duration) { c.ns.Add(int64(d)) }

// fakeReceiver takes what a broker delivers.
type fakeReceiver struct {
	mu         sync.Mutex
	deliveries []Delivery
	interested map[string]bool
	full       bool
}

func (r *fakeReceiver) Deliver(_ string, d Delivery) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return ErrFull
	}
	r.deliveries = append(r.deliveries, d)
	return nil
}

func (r *fakeReceiver) Interested(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.interested[name]
}

// memoryRig is an in-memory broker whose clock the test moves; it is not swept
// but by the test.
func memoryRig(o MemoryOptions) (*Memory, *fakeReceiver, *fakeClock) {
	clock, r := newFakeClock(), &fakeReceiver{interested: make(map[string]bool)}
	o.Now = clock.now
	m := NewMemory(o)
	m.receiver = r
	return m, r, clock
}

var keepTen = PublishOptions{HistorySize: 10, HistoryTTL: time.Minute}

func memoryPublish(t testing.TB, m *Memory, name, data string, o PublishOptions) (at Position, err error) {
	t.Helper()
	called := 0
	m.Publish(name, &Publication{Data: []byte(data)}, o, func(p Position, e error) { called, at, err = called+1, p, e })
	if called != 1 {
		t.Fatalf("done was called %d times", called)
	}
	return at, err
}

func memoryMust(t testing.TB, m *Memory, name, data string, o PublishOptions) Position {
	t.Helper()
	at, err := memoryPublish(t, m, name, data, o)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// memoryRead is the data of a history, joined.
func memoryRead(t testing.TB, m *Memory, name string, f Filter) (data string, at Position, err error) {
	t.Helper()
	called := 0
	m.History(name, f, func(all []*Publication, p Position, e error) {
		called++
		for _, p := range all {
			data += string(p.Data)
		}
		at, err = p, e
	})
	if called != 1 {
		t.Fatalf("done was called %d times", called)
	}
	return data, at, err
}

var allOf = Filter{Limit: -1}

func TestMemoryHistory(t *testing.T) {
	m, r, _ := memoryRig(MemoryOptions{})
	_, before, err := memoryRead(t, m, "a", Filter{})
	if err != nil || before.Offset != 0 || len(before.Epoch) != epochLength {
		t.Fatalf("a topic nobody has published to: %+v, %v", before, err)
	}
	for i := range 15 {
		at := memoryMust(t, m, "a", string(rune('a'+i)), keepTen)
		if at != (Position{uint64(i + 1), before.Epoch}) {
			t.Fatalf("publication %d is at %+v", i, at)
		}
	}
	for i, d := range r.deliveries {
		if p := d.Publication; d.Epoch != before.Epoch || p.Offset != uint64(i+1) || p.Previous != uint64(i) {
			t.Fatalf("delivery %d: %+v of %q", i, p, d.Epoch)
		}
	}
	at := func(n uint64) *Position { return &Position{n, before.Epoch} }
	for _, tt := range []struct {
		name string
		f    Filter
		want string
		err  error
	}{
		{"all", allOf, "fghijklmno", nil},
		{"none", Filter{}, "", nil},
		{"from the beginning", Filter{Limit: 3}, "fgh", nil},
		{"from the end", Filter{Limit: 3, Reverse: true}, "onm", nil},
		{"since", Filter{Limit: -1, Since: at(12)}, "mno", nil},
		{"since what is no more", Filter{Limit: 2, Since: at(1)}, "fg", nil},
		{"since the top", Filter{Limit: -1, Since: at(15)}, "", nil},
		{"since what is to come", Filter{Limit: -1, Since: at(99)}, "", nil},
		{"before", Filter{Limit: 2, Since: at(8), Reverse: true}, "gf", nil},
		{"before all", Filter{Limit: -1, Since: at(6), Reverse: true}, "", nil},
		{"before what is to come", Filter{Limit: 2, Since: at(99), Reverse: true}, "on", nil},
		{"since, of no epoch", Filter{Limit: -1, Since: &Position{Offset: 14}}, "o", nil},
		{"since, of another epoch", Filter{Limit: -1, Since: &Position{14, "other"}}, "", ErrUnrecoverable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, top, err := memoryRead(t, m, "a", tt.f)
			if got != tt.want || !errors.Is(err, tt.err) || top != *at(15) {
				t.Errorf("%q at %+v, %v; want %q, %v", got, top, err, tt.want, tt.err)
			}
		})
	}
	m.RemoveHistory("a", func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	if got, top, err := memoryRead(t, m, "a", allOf); got != "" || top != *at(15) || err != nil {
		t.Errorf("removed: %q at %+v, %v", got, top, err)
	}
	if next := memoryMust(t, m, "a", "p", keepTen); next != *at(16) {
		t.Errorf("the next is at %+v", next)
	}
	if c := m.Counts(); c.Topics != 1 || c.Publications != 1 {
		t.Errorf("counts %+v", c)
	}
}

// Without a history nothing is kept, and nothing has an offset.
func TestMemoryKeepsNothingUnasked(t *testing.T) {
	m, r, _ := memoryRig(MemoryOptions{})
	if at := memoryMust(t, m, "a", "1", PublishOptions{Delta: true}); at != (Position{}) {
		t.Errorf("it is at %+v", at)
	}
	if d := r.deliveries[0]; d.Epoch != "" || d.Publication.Offset != 0 || !d.Delta {
		t.Errorf("delivered %+v", d)
	}
	if c := m.Counts(); c != (MemoryCounts{}) {
		t.Errorf("counts %+v", c)
	}
}

func TestMemoryTTL(t *testing.T) {
	for _, swept := range []bool{false, true} {
		t.Run(fmt.Sprintf("swept %v", swept), func(t *testing.T) {
			m, _, clock := memoryRig(MemoryOptions{MetaTTL: 10 * time.Minute})
			pass := func(d time.Duration) {
				clock.add(d)
				if swept {
					m.sweep()
				}
			}
			first := memoryMust(t, m, "a", "1", keepTen)
			pass(30 * time.Second)
			memoryMust(t, m, "a", "2", keepTen)
			pass(29 * time.Second)
			if got, _, _ := memoryRead(t, m, "a", allOf); got != "12" {
				t.Errorf("after 59 s: %q", got)
			}
			pass(time.Second)
			if got, _, _ := memoryRead(t, m, "a", allOf); got != "2" {
				t.Errorf("after 60 s: %q", got)
			}
			pass(30 * time.Second)
			if got, at, _ := memoryRead(t, m, "a", allOf); got != "" || at != (Position{2, first.Epoch}) {
				t.Errorf("after 90 s: %q at %+v", got, at)
			}
			if c := m.Counts(); c.Publications != 0 || c.Topics != 1 {
				t.Errorf("counts %+v", c)
			}
			// Reading is a use.
			pass(10*time.Minute - time.Nanosecond)
			if _, at, _ := memoryRead(t, m, "a", Filter{}); at != (Position{2, first.Epoch}) {
				t.Errorf("the position went early: %+v", at)
			}
			pass(10 * time.Minute)
			if swept {
				if c := m.Counts(); c != (MemoryCounts{}) {
					t.Errorf("something stays: %+v", c)
				}
			}
			if at := memoryMust(t, m, "a", "3", keepTen); at.Offset != 1 || at.Epoch == first.Epoch {
				t.Errorf("forgotten, the topic goes on at %+v", at)
			}
		})
	}
}

// A namespace that says nothing of its positions gets the broker's time, however
// short its histories are; where it says something, that.
func TestMemoryMetaTTL(t *testing.T) {
	for _, tt := range []struct {
		name     string
		of, meta time.Duration // the memory's and the namespace's
		want     time.Duration
	}{
		{"the memory's", time.Hour, 0, time.Hour},
		{"the namespace's, longer", time.Hour, 2 * time.Hour, 2 * time.Hour},
		{"the namespace's, shorter", time.Hour, 2 * time.Minute, 2 * time.Minute},
		{"never below the history's", 10 * time.Second, 0, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clock := newFakeClock()
			topics := newTopics(t, Options{
				Default: NamespaceOptions{HistorySize: 10, HistoryTTL: time.Minute, HistoryMetaTTL: tt.meta},
				Memory:  MemoryOptions{MetaTTL: tt.of, Now: clock.now},
			})
			position := func(name string) (at Position) {
				topics.History(topics.fallback, name, Filter{}, func(_ []*Publication, p Position, err error) { at = p })
				return at
			}
			published, err := publishAs(topics, "published", "1", PublishRequest{})
			if err != nil {
				t.Fatal(err)
			}
			read := position("read")
			clock.add(tt.want - time.Nanosecond)
			memory := topics.broker.(*Memory)
			memory.sweep()
			if n := memory.Counts().Topics; n != 2 && tt.want != time.Minute || n == 0 {
				t.Errorf("%d positions a moment before the end", n)
			}
			clock.add(time.Nanosecond)
			memory.sweep()
			if n := memory.Counts().Topics; n != 0 {
				t.Errorf("%d positions at the end", n)
			}
			if position("published").Epoch == published.Epoch || position("read").Epoch == read.Epoch {
				t.Error("an epoch comes back")
			}
		})
	}
}

// The position of a topic with subscribers stays, whatever its time.
func TestMemorySubscribedPositionsStay(t *testing.T) {
	for _, swept := range []bool{false, true} {
		m, r, clock := memoryRig(MemoryOptions{MetaTTL: time.Minute})
		r.interested["a"] = true
		at := memoryMust(t, m, "a", "1", keepTen)
		for range 5 {
			clock.add(time.Hour)
			if swept {
				m.sweep()
			}
		}
		if next := memoryMust(t, m, "a", "2", keepTen); next != (Position{2, at.Epoch}) {
			t.Errorf("swept %v: goes on at %+v, was at %+v", swept, next, at)
		}
	}
}

// A system clock set anew ends nothing: only time that passes does.
func TestMemoryClockIsMonotonic(t *testing.T) {
	m := NewMemory(MemoryOptions{})
	if n := m.now(); n < 0 || n > int64(time.Minute) {
		t.Errorf("a moment after the start it is %d", n)
	}
}

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

func TestMemoryFull(t *testing.T) {
	m, r, _ := memoryRig(MemoryOptions{})
	first := memoryMust(t, m, "a", "1", keepTen)
	o := keepTen
	o.IdempotencyKey, o.IdempotencyTTL, o.Version = "k", time.Minute, 7
	r.full = true
	for _, o := range []PublishOptions{keepTen, o, {IdempotencyKey: "k", IdempotencyTTL: time.Minute}, {}} {
		p := &Publication{Data: []byte("2")}
		m.Publish("a", p, o, func(at Position, err error) {
			if !errors.Is(err, ErrFull) || at != (Position{}) {
				t.Errorf("%+v: at %+v, %v", o, at, err)
			}
		})
		if p.Offset != 0 || p.Previous != 0 {
			t.Errorf("refused, it has offset %d behind %d", p.Offset, p.Previous)
		}
	}
	if got, at, _ := memoryRead(t, m, "a", allOf); got != "1" || at != first {
		t.Errorf("%q is kept, at %+v", got, at)
	}
	r.full = false
	// Neither its key nor its version has been used up.
	if at := memoryMust(t, m, "a", "2", o); at.Offset != 2 {
		t.Errorf("the next is at %+v", at)
	}
	if got, _, _ := memoryRead(t, m, "a", allOf); got != "12" {
		t.Errorf("%q is kept", got)
	}
}

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
	const bound = memoryShards * 10_000
	m, r, clock := memoryRig(MemoryOptions{ResultBytes: bound})
	o := PublishOptions{IdempotencyTTL: time.Hour}
	const n = 10 * bound / resultOverhead
	for i := range n {
		o.IdempotencyKey = fmt.Sprint("key-", i)
		memoryMust(t, m, "a", "1", o)
		memoryMust(t, m, fmt.Sprint(i), "1", o)
	}
	sum := 0
	for i := range m.shards {
		rs := &m.shards[i].results
		if rs.bytes > bound/memoryShards {
			t.Errorf("shard %d keeps %d bytes", i, rs.bytes)
		}
		bytes := 0
		for _, k := range rs.order[rs.first:] {
			bytes += k.size()
		}
		if bytes != rs.bytes || len(rs.byKey) != len(rs.order)-rs.first {
			t.Errorf("shard %d counts %d bytes, keeps %d; %d answers in %d places", i, rs.bytes, bytes, len(rs.byKey), len(rs.order)-rs.first)
		}
		sum += len(rs.byKey)
	}
	if sum == 0 {
		t.Error("no answer is kept")
	}
	// The newest are the ones that are kept.
	before := len(r.deliveries)
	memoryMust(t, m, "a", "1", o)
	if len(r.deliveries) != before {
		t.Error("the newest answer is gone")
	}
	clock.add(time.Hour)
	m.sweep()
	for i := range m.shards {
		if rs := &m.shards[i].results; rs.byKey != nil || rs.order != nil || rs.bytes != 0 {
			t.Fatalf("shard %d keeps %+v", i, rs)
		}
	}
}

func TestMemoryVersions(t *testing.T) {
	m, r, _ := memoryRig(MemoryOptions{})
	version := func(v uint64, epoch string) PublishOptions {
		o := keepTen
		o.Version, o.VersionEpoch = v, epoch
		return o
	}
	for i, s := range []struct {
		v     uint64
		epoch string
		top   uint64
	}{
		{5, "", 1}, {5, "", 1}, {4, "", 1}, {6, "", 2}, {1, "x", 3}, {1, "x", 3}, {1, "", 3}, {2, "x", 4}, {0, "", 5}, {2, "x", 5}, {1, "y", 6},
	} {
		before := len(r.deliveries)
		if at := memoryMust(t, m, "a", "d", version(s.v, s.epoch)); at.Offset != s.top {
			t.Errorf("step %d: at %+v, want %d", i, at, s.top)
		}
		if n := len(r.deliveries); uint64(n) != s.top {
			t.Errorf("step %d: %d delivered, before %d", i, n, before)
		}
	}
	if c := m.Counts(); c != m.recount() {
		t.Errorf("counts %+v, there are %+v", c, m.recount())
	}
}

// Publishers of many topics at once, with too little room: what is counted stays
// what there is, and offsets stay without a gap.
func TestMemoryConcurrent(t *testing.T) {
	const publishers, each, names, bound = 8, 2000, 50, 64 << 10
	m, r, clock := memoryRig(MemoryOptions{HistoryBytes: bound, TopicBytes: 8 << 10})
	var running sync.WaitGroup
	stop := make(chan struct{})
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				clock.add(time.Millisecond)
				m.sweep()
				m.Counts()
			}
		}
	})
	for i := range publishers {
		running.Go(func() {
			for k := range each {
				name := fmt.Sprint((i*7 + k) % names)
				memoryMust(t, m, name, strings.Repeat("x", k%500), keepTen)
				if k%5 == 0 {
					m.History(name, allOf, func(all []*Publication, top Position, err error) {
						o := offsets(all)
						if !slices.IsSorted(o) || len(o) > 0 && o[len(o)-1] != top.Offset {
							t.Errorf("%v, top %d", o, top.Offset)
						}
					})
				}
			}
		})
	}
	running.Wait()
	close(stop)
	sweeping.Wait()
	if c := m.Counts(); c != m.recount() || c.Bytes > bound {
		t.Errorf("counts %+v, there are %+v, the bound is %d", c, m.recount(), bound)
	}
	if len(r.deliveries) != publishers*each {
		t.Errorf("%d delivered", len(r.deliveries))
	}
}
