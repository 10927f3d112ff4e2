package topic

import (
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"perch/session"
)

const (
	defaultMaxSubscriptions  = 128
	defaultMaxLength         = 255
	defaultLimit             = 300
	defaultHeldBytes         = 1 << 20
	defaultIdempotencyTTL    = 5 * time.Minute
	defaultJoinLeaveInterval = 200 * time.Millisecond
	defaultPositionInterval  = 40 * time.Second
	topicShards              = 64
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
	// Broker is where publications get their offsets; nil means in memory, as
	// Memory says.
	Broker Broker
	Memory MemoryOptions
	// Node is the one whose client ids are shown to others.
	Node session.Node
	// HistoryLimit bounds the publications of one answer, RecoveryLimit those of
	// one recovery; 0 means 300. Who has missed more is told that it can't recover.
	HistoryLimit  int
	RecoveryLimit int
	// HeldBytes bounds what is held back of one subscription while its history is
	// read; 0 means 1 MiB.
	HeldBytes int
	// IdempotencyTTL is how long a publication's key is remembered; 0 means 5
	// minutes.
	IdempotencyTTL time.Duration
	// JoinLeaveInterval is how long the news of who comes and goes are gathered
	// while they follow one another; 0 means 200 ms.
	JoinLeaveInterval time.Duration
	// PositionInterval is how often the positions of subscribers are compared with
	// those of their topics; 0 means 40 s.
	PositionInterval time.Duration
	// Joined turns the news of a topic into the bytes that go to a subscriber's
	// wire; nil: they are not told.
	Joined JoinEncoders
	// Told, where set, is given the news of this node's subscribers for those of
	// others, in their order. It does not block and does not call Topics; nobody
	// changes the news.
	Told func(name string, news []News)
	// Writers bring publications to the sessions of a wire that says where they
	// stand.
	Writers Writers
	// Lost is told that s has missed a publication of a topic, by which its
	// subscription is of no use; server: it is the server's own. It runs on the
	// loop of s. nil: the subscription goes on.
	Lost func(s *session.Session, name string, server bool)
}

// Topics is the table of the topics that have subscribers on this node. A
// topic without any costs nothing.
type Topics struct {
	opts   Options
	rules  atomic.Pointer[rules]
	broker Broker

	seed   maphash.Seed
	shards [topicShards]shard

	stop   chan struct{}
	done   sync.WaitGroup
	checks chan struct{} // a place for each topic whose subscribers are looked at

	publications  atomic.Uint64
	deliveries    atomic.Uint64
	encodings     atomic.Uint64
	encodeErrors  atomic.Uint64
	rejected      atomic.Uint64
	subscriptions atomic.Int64
	losses        atomic.Uint64
	recoveries    atomic.Uint64
	unrecovered   atomic.Uint64
	newsDropped   atomic.Uint64
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
	rare  *rare
}

// rare is what only some topics have; all of it stands under the shard's lock.
type rare struct {
	more []*local // lists of further loops
	// ns is the topic's namespace, where it has a subscriber with a position, which
	// positioned says.
	ns         *Namespace
	positioned bool
	// last is the publication delivered before, while there are subscribers that have
	// agreed on deltas, and it is none that no delta is made of.
	last   *Publication
	deltas int        // these subscribers
	asked  *gathering // who wants to know who is there, and is not answered; or nil
	news   *news      // of who comes and goes; nil while nothing is
}

// needLocked is the rare part of a topic that needs it.
func (tp *Topic) needLocked() *rare {
	if tp.rare == nil {
		tp.rare = &rare{}
	}
	return tp.rare
}

// moreLocked are the lists of further loops.
func (tp *Topic) moreLocked() []*local {
	if tp.rare == nil {
		return nil
	}
	return tp.rare.more
}

// deltaLocked tells whether subscribers may have agreed on deltas.
func (tp *Topic) deltaLocked() bool {
	return tp.rare != nil && tp.rare.deltas > 0
}

// New makes the table and starts the broker.
func New(o Options) (*Topics, error) {
	if o.MaxSubscriptions == 0 {
		o.MaxSubscriptions = defaultMaxSubscriptions
	}
	if o.MaxLength == 0 {
		o.MaxLength = defaultMaxLength
	}
	def(&o.HistoryLimit, defaultLimit)
	def(&o.RecoveryLimit, defaultLimit)
	def(&o.HeldBytes, defaultHeldBytes)
	def(&o.IdempotencyTTL, defaultIdempotencyTTL)
	def(&o.JoinLeaveInterval, defaultJoinLeaveInterval)
	def(&o.PositionInterval, defaultPositionInterval)
	if o.Broker == nil {
		o.Broker = NewMemory(o.Memory)
	}
	t := &Topics{opts: o, broker: o.Broker, seed: maphash.MakeSeed(), stop: make(chan struct{}),
		checks: make(chan struct{}, checksMost)}
	for i := range t.shards {
		t.shards[i].topics = make(map[string]*Topic)
	}
	if err := t.SetNamespaces(o.Default, o.Namespaces); err != nil {
		return nil, err
	}
	if err := t.broker.Start(t); err != nil {
		return nil, fmt.Errorf("topic: start broker: %w", err)
	}
	if o.Lost != nil {
		t.done.Go(t.watchPositions)
	}
	return t, nil
}

// Close ends the broker. It is called once. Safe from any goroutine.
func (t *Topics) Close() error {
	close(t.stop)
	t.done.Wait()
	return t.broker.Close()
}

// MaxLength is the longest name of a topic, in bytes.
func (t *Topics) MaxLength() int { return t.opts.MaxLength }

// MaxSubscriptions is how many a session may have.
func (t *Topics) MaxSubscriptions() int { return t.opts.MaxSubscriptions }

// Namespace is the namespace of a topic's name. ErrUnknownTopic: there is no
// such namespace, or the name is empty, too long or not one of its names. Safe
// from any goroutine.
func (t *Topics) Namespace(name string) (*Namespace, error) {
	if name == "" || len(name) > t.opts.MaxLength {
		return nil, ErrUnknownTopic
	}
	prefix, rest := namespaceOf(name)
	r := t.rules.Load()
	ns := r.fallback
	if prefix != "" {
		if ns = r.namespaces[prefix]; ns == nil {
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

// PublishRequest is what a publisher may ask for.
type PublishRequest struct {
	// SkipHistory sends the publication to whoever is subscribed now, without an
	// offset.
	SkipHistory bool
	// IdempotencyKey, Version, VersionEpoch and Delta are those of PublishOptions.
	IdempotencyKey string
	Version        uint64
	VersionEpoch   string
	Delta          bool
}

// Publish hands p, for a topic of the namespace ns, to the broker; p and all it
// holds belong to the topic from here on. done is called once, from any
// goroutine, perhaps before Publish returns; its error is ErrFull where a loop
// has no room, ErrNotAvailable for a version where there is no history. Safe
// from any goroutine.
func (t *Topics) Publish(ns *Namespace, name string, p *Publication, r PublishRequest, done func(Position, error)) {
	o := PublishOptions{Delta: (r.Delta || ns.DeltaPublish) && len(ns.AllowedDeltaTypes) > 0}
	if ns.History() && !r.SkipHistory {
		o.HistorySize, o.HistoryTTL, o.MetaTTL = ns.HistorySize, ns.HistoryTTL, ns.HistoryMetaTTL
		o.Version, o.VersionEpoch = r.Version, r.VersionEpoch
	} else if r.Version > 0 {
		done(Position{}, ErrNotAvailable)
		return
	}
	if r.IdempotencyKey != "" {
		o.IdempotencyKey, o.IdempotencyTTL = r.IdempotencyKey, t.opts.IdempotencyTTL
	}
	t.broker.Publish(name, p, o, done)
}

// History reads a topic of the namespace ns. f.Limit is cut to
// Options.HistoryLimit. done is called once, from any goroutine, perhaps before
// History returns; ErrNotAvailable where the namespace keeps none,
// ErrUnrecoverable where f.Since is of another epoch. Safe from any goroutine.
func (t *Topics) History(ns *Namespace, name string, f Filter, done func([]*Publication, Position, error)) {
	if !ns.History() {
		done(nil, Position{}, ErrNotAvailable)
		return
	}
	if f.Limit < 0 || f.Limit > t.opts.HistoryLimit {
		f.Limit = t.opts.HistoryLimit
	}
	f.Meta = ns.HistoryMetaTTL
	t.broker.History(name, f, done)
}

// RemoveHistory drops the publications that a topic of the namespace ns keeps.
// done is as with History. Safe from any goroutine.
func (t *Topics) RemoveHistory(ns *Namespace, name string, done func(error)) {
	if !ns.History() {
		done(ErrNotAvailable)
		return
	}
	t.broker.RemoveHistory(name, done)
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
	if tp.deltaLocked() {
		dv.base = tp.rare.last
	}
	// All loops get the publication, or none.
	if !tp.reserveLocked(dv.room()) {
		t.rejected.Add(1)
		return ErrFull
	}
	t.publications.Add(1)
	if tp.deltaLocked() {
		if tp.rare.last = d.Publication; len(d.Publication.Data) > deltaMost {
			tp.rare.last = nil
		}
	}
	for l := range tp.activeLocked() {
		l.postLocked(dv)
	}
	return nil
}

// activeLocked are the lists that have subscribers.
func (tp *Topic) activeLocked() iter.Seq[*local] {
	return func(yield func(*local) bool) {
		if tp.first.active && !yield(&tp.first) {
			return
		}
		for _, l := range tp.moreLocked() {
			if l.active && !yield(l) {
				return
			}
		}
	}
}

// Interested implements Receiver.
func (t *Topics) Interested(name string) bool {
	sh := t.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.topics[name] != nil
}

// postLocked brings d, whose room is reserved, to the list. The room is not the
// task's but the list's to give back: what waits there for a long fan-out stays
// within the bound of the inbox.
func (l *local) postLocked(d *delivery) {
	l.loop.PostTask(0, &post{l: l, d: d, joins: l.joins})
}

// reserveLocked takes room in the inbox of each loop with subscribers, or in
// none.
func (tp *Topic) reserveLocked(n int) bool {
	for l := range tp.activeLocked() {
		if l.loop.Reserve(n) {
			continue
		}
		for m := range tp.activeLocked() {
			if m == l {
				return false
			}
			m.loop.Release(n)
		}
	}
	return true
}

// localFor finds or makes the list of a loop and counts a join: what is
// delivered from here on is for the subscriber to be.
func (t *Topics) localFor(ns *Namespace, name string, loop session.Loop, o *SubscribeOptions) *local {
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
	if o.Position || o.Delta {
		r := tp.needLocked()
		if o.Delta {
			r.deltas++
		}
		r.positioned = r.positioned || o.Position
		if o.Position && r.ns == nil { // once: its subscribers' loops read it without the lock
			r.ns = ns
		}
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
	for _, l := range tp.moreLocked() {
		if l.loop == loop {
			return l
		}
	}
	l := &local{topic: tp, loop: loop}
	r := tp.needLocked()
	r.more = append(r.more, l)
	return l
}

// release notes that l has no subscribers any more.
func (t *Topics) release(l *local) {
	tp := l.topic
	sh := t.shard(tp.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	l.active = false
	for range tp.activeLocked() {
		return
	}
	delete(sh.topics, tp.name)
	t.forgetNewsLocked(tp)
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
	Losses        uint64 // subscriptions that missed something
	Recoveries    uint64 // that found all
	Unrecovered   uint64 // that did not
	NewsDropped   uint64 // of who came and left, beyond what may wait
	Topics        int    // with subscribers
	Subscriptions int
	History       MemoryCounts // of the in-memory broker
}

// Counts reads the counters. Safe from any goroutine.
func (t *Topics) Counts() Counts {
	c := Counts{
		Publications: t.publications.Load(), Deliveries: t.deliveries.Load(), Encodings: t.encodings.Load(),
		EncodeErrors: t.encodeErrors.Load(), Rejected: t.rejected.Load(), Subscriptions: int(t.subscriptions.Load()),
		Losses: t.losses.Load(), Recoveries: t.recoveries.Load(), Unrecovered: t.unrecovered.Load(),
		NewsDropped: t.newsDropped.Load(),
	}
	if m, ok := t.broker.(*Memory); ok {
		c.History = m.Counts()
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
			for _, l := range tp.moreLocked() {
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
