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
				topics.History(topics.rules.Load().fallback, name, Filter{}, func(_ []*Publication, p Position, err error) { at = p })
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
