package topic

import (
	"fmt"
	"hash/maphash"
	"maps"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"perch/session"
)

const (
	defaultMaxSubscriptions = 128
	defaultMaxLength        = 255
	topicShards             = 64
	// mapShrinkAt is from how many topics on a shard's map is worth replacing.
	mapShrinkAt = 16
)

// Options configure Topics.
type Options struct {
	Default    NamespaceOptions
	Namespaces []NamespaceOptions
	// MaxSubscriptions bounds the subscriptions of a session; 0 means 128.
	MaxSubscriptions int
	// MaxLength bounds a topic's name, in bytes; 0 means 255.
	MaxLength int
	Encoders  Encoders
	// Broker is where publications get their offsets; nil means in memory.
	Broker Broker
}

// Topics is the table of the topics that have subscribers on this node. A
// topic without any costs nothing.
type Topics struct {
	opts       Options
	fallback   *Namespace
	namespaces map[string]*Namespace
	broker     Broker

	seed   maphash.Seed
	shards [topicShards]shard

	publications  atomic.Uint64
	deliveries    atomic.Uint64
	encodings     atomic.Uint64
	encodeErrors  atomic.Uint64
	rejected      atomic.Uint64
	subscriptions atomic.Int64
}

type shard struct {
	mu     sync.Mutex
	topics map[string]*Topic
	most   int // topics in this map so far
	_      [40]byte
}

// Topic is a name with subscribers on this node. Most have them on one loop
// only, so the first loop's list stands in place.
type Topic struct {
	name string

	// Under the shard's lock. A list never changes its loop: a publication under
	// way holds a pointer to it.
	first local
	more  []*local
}

// New makes the table and starts the broker.
func New(o Options) (*Topics, error) {
	if o.MaxSubscriptions == 0 {
		o.MaxSubscriptions = defaultMaxSubscriptions
	}
	if o.MaxLength == 0 {
		o.MaxLength = defaultMaxLength
	}
	if o.Broker == nil {
		o.Broker = NewMemory()
	}
	t := &Topics{opts: o, namespaces: make(map[string]*Namespace), broker: o.Broker, seed: maphash.MakeSeed()}
	for i := range t.shards {
		t.shards[i].topics = make(map[string]*Topic)
	}
	var err error
	if t.fallback, err = newNamespace(o.Default); err != nil {
		return nil, fmt.Errorf("topic: default: %w", err)
	}
	for _, no := range o.Namespaces {
		ns, err := newNamespace(no)
		if err != nil {
			return nil, fmt.Errorf("topic: namespace %q: %w", no.Name, err)
		}
		if no.Name == "" || t.namespaces[no.Name] != nil {
			return nil, fmt.Errorf("topic: namespace %q is empty or named twice", no.Name)
		}
		t.namespaces[no.Name] = ns
	}
	if err := t.broker.Start(t); err != nil {
		return nil, fmt.Errorf("topic: start broker: %w", err)
	}
	return t, nil
}

// Close ends the broker. Safe from any goroutine.
func (t *Topics) Close() error { return t.broker.Close() }

// MaxLength is the longest name of a topic, in bytes.
func (t *Topics) MaxLength() int { return t.opts.MaxLength }

// Namespace is the namespace of a topic's name. ErrUnknownTopic: there is no
// such namespace, or the name is empty, too long or not one of its names. Safe
// from any goroutine.
func (t *Topics) Namespace(name string) (*Namespace, error) {
	if name == "" || len(name) > t.opts.MaxLength {
		return nil, ErrUnknownTopic
	}
	prefix, rest := namespaceOf(name)
	ns := t.fallback
	if prefix != "" {
		if ns = t.namespaces[prefix]; ns == nil {
			return nil, ErrUnknownTopic
		}
	} else if len(rest) < len(name) {
		return nil, ErrUnknownTopic // ":x" names an empty namespace
	}
	if ns.pattern != nil && !ns.pattern.MatchString(rest) {
		return nil, ErrUnknownTopic
	}
	return ns, nil
}

// Publish hands p to the broker; p and all it holds belong to the topic from
// here on. done is called once, from any goroutine, perhaps before Publish
// returns; its error is ErrFull where a loop has no room. Safe from any
// goroutine.
func (t *Topics) Publish(name string, p *Publication, done func(Position, error)) {
	t.broker.Publish(name, p, done)
}

func (t *Topics) shard(name string) *shard {
	return &t.shards[maphash.String(t.seed, name)%topicShards]
}

// Deliver implements Receiver.
func (t *Topics) Deliver(name string, d Delivery) error {
	sh := t.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	tp := sh.topics[name]
	if tp == nil {
		t.publications.Add(1)
		return nil
	}
	dv := &delivery{Delivery: d, name: tp.name, topics: t}
	// All loops get the publication, or none.
	if !tp.reserveLocked(dv.room()) {
		t.rejected.Add(1)
		return ErrFull
	}
	t.publications.Add(1)
	tp.first.postLocked(dv)
	for _, l := range tp.more {
		l.postLocked(dv)
	}
	return nil
}

// postLocked brings d, whose room is reserved, to the list. The room is not the
// task's but the list's to give back: what waits there for a long fan-out stays
// within the bound of the inbox.
func (l *local) postLocked(d *delivery) {
	if l.active {
		l.loop.PostTask(0, &post{l: l, d: d, joins: l.joins})
	}
}

func (tp *Topic) reserveLocked(n int) bool {
	if tp.first.active && !tp.first.loop.Reserve(n) {
		return false
	}
	for i, l := range tp.more {
		if !l.active || l.loop.Reserve(n) {
			continue
		}
		if tp.first.active {
			tp.first.loop.Release(n)
		}
		for _, m := range tp.more[:i] {
			if m.active {
				m.loop.Release(n)
			}
		}
		return false
	}
	return true
}

// localFor finds or makes the list of a loop and counts a join: what is
// delivered from here on is for the subscriber to be.
func (t *Topics) localFor(name string, loop session.Loop) *local {
	sh := t.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	tp := sh.topics[name]
	if tp == nil {
		tp = &Topic{name: strings.Clone(name)}
		tp.first.topic, tp.first.loop = tp, loop
		sh.topics[tp.name] = tp
		sh.most = max(sh.most, len(sh.topics))
		t.broker.Subscribe(tp.name, func(error) {})
	}
	l := tp.listLocked(loop)
	l.active = true
	l.joins += joinStep
	return l
}

// listLocked finds or makes the list of a loop.
func (tp *Topic) listLocked(loop session.Loop) *local {
	if tp.first.loop == loop {
		return &tp.first
	}
	for _, l := range tp.more {
		if l.loop == loop {
			return l
		}
	}
	l := &local{topic: tp, loop: loop}
	tp.more = append(tp.more, l)
	return l
}

// release notes that l has no subscribers any more.
func (t *Topics) release(l *local) {
	tp := l.topic
	sh := t.shard(tp.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	l.active = false
	if tp.first.active {
		return
	}
	for _, m := range tp.more {
		if m.active {
			return
		}
	}
	delete(sh.topics, tp.name)
	sh.shrinkLocked()
	t.broker.Unsubscribe(tp.name, func(error) {})
}

// shrinkLocked follows the topics down: a map keeps the memory of the most that
// it ever had.
func (sh *shard) shrinkLocked() {
	n := len(sh.topics)
	if sh.most < mapShrinkAt || n > sh.most/4 {
		return
	}
	small := make(map[string]*Topic, n)
	maps.Copy(small, sh.topics)
	sh.topics, sh.most = small, n
}

// Counts is what Topics tells of itself.
type Counts struct {
	Publications  uint64 // taken by Deliver
	Deliveries    uint64 // publications handed to sessions
	Encodings     uint64
	EncodeErrors  uint64
	Rejected      uint64 // refused with ErrFull
	Topics        int    // with subscribers
	Subscriptions int
}

// Counts reads the counters. Safe from any goroutine.
func (t *Topics) Counts() Counts {
	c := Counts{
		Publications: t.publications.Load(), Deliveries: t.deliveries.Load(), Encodings: t.encodings.Load(),
		EncodeErrors: t.encodeErrors.Load(), Rejected: t.rejected.Load(), Subscriptions: int(t.subscriptions.Load()),
	}
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		c.Topics += len(sh.topics)
		sh.mu.Unlock()
	}
	return c
}

// Topics lists the topics with subscribers whose names match pattern (of
// path.Match; empty: all) and how many subscribers each has. It goes through
// the whole table: for the API, not for a hot path. Safe from any goroutine.
func (t *Topics) Topics(pattern string) (map[string]int, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("topic: list: %w", err)
	}
	out := make(map[string]int)
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for name, tp := range sh.topics {
			if pattern != "" {
				if ok, _ := path.Match(pattern, name); !ok {
					continue
				}
			}
			n := int(tp.first.count.Load())
			for _, l := range tp.more {
				n += int(l.count.Load())
			}
			if n > 0 {
				out[name] = n
			}
		}
		sh.mu.Unlock()
	}
	return out, nil
}
