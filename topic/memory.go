package topic

import (
	"container/heap"
	"hash/maphash"
	"maps"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	memoryShards = 64

	defaultHistoryBytes      = 128 << 20
	defaultHistoryTopicBytes = 4 << 20
	defaultResultBytes       = 16 << 20
	defaultMetaTTL           = time.Hour
	sweepInterval            = time.Second
	// sweepMost is how many streams one hold of a shard's lock looks at.
	sweepMost = 256
)

// MemoryOptions configure the in-memory broker; zero means the default.
type MemoryOptions struct {
	// HistoryBytes bounds the histories of all topics, and what is kept of topics
	// beside: 128 MiB. Over it go the positions of topics without a history and
	// without subscribers, then publications; of each kind, what would end next.
	// TopicBytes bounds the history of one topic: 4 MiB. The deltas of publications
	// are not counted: they are shorter than what they stand for.
	HistoryBytes int64
	TopicBytes   int
	// ResultBytes bounds the answers to publications with an idempotency key:
	// 16 MiB.
	ResultBytes int
	// MetaTTL is how long the position of a topic is kept that says nothing else:
	// an hour.
	MetaTTL time.Duration
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Memory is the broker of a single node: publications go to this node's
// subscribers and nowhere else, and histories are lost with the process.
type Memory struct {
	o        MemoryOptions
	receiver Receiver
	seed     maphash.Seed
	shards   [memoryShards]memoryShard
	heads    [headCount][memoryShards]atomic.Int64 // when the first in each queue is due, and the first answer ends
	bytes    atomic.Int64                          // of all streams
	kept     atomic.Int64                          // publications in them
	results  atomic.Int64                          // bytes of all answers
	start    time.Time                             // times are counted from here, so that a clock set anew ends nothing

	stop chan struct{}
	done sync.WaitGroup
}

type memoryShard struct {
	mu      sync.Mutex
	streams map[string]*stream
	most    int // streams in this map so far
	queues  [queueCount]streamQueue
	results results
	heads   [headCount]*atomic.Int64 // its place in Memory.heads; written under mu
	_       [8]byte
}

// The queues of a shard: the streams of which no more is left than a position,
// and those with publications.
const (
	queueBare = iota
	queueKept
	queueCount
	// headResults is the place of the answers beside those of the queues.
	headResults = queueCount
	headCount   = queueCount + 1
)

// unlock lets others see when something is due.
func (sh *memoryShard) unlock() {
	for i := range sh.queues {
		head := int64(math.MaxInt64)
		if len(sh.queues[i]) > 0 {
			head = sh.queues[i][0].due
		}
		if sh.heads[i].Load() != head {
			sh.heads[i].Store(head)
		}
	}
	if head := sh.results.oldest(); sh.heads[headResults].Load() != head {
		sh.heads[headResults].Store(head)
	}
	sh.mu.Unlock()
}

// queueLocked puts a stream that has changed where it belongs.
func (sh *memoryShard) queueLocked(s *stream) {
	q := queueBare
	if s.len() > 0 {
		q = queueKept
	}
	if q == s.queue {
		heap.Fix(&sh.queues[q], s.place)
		return
	}
	heap.Remove(&sh.queues[s.queue], s.place)
	s.queue = q
	s.due = s.next()
	heap.Push(&sh.queues[q], s)
}

// NewMemory makes the in-memory broker.
func NewMemory(o MemoryOptions) *Memory {
	def(&o.HistoryBytes, defaultHistoryBytes)
	def(&o.TopicBytes, defaultHistoryTopicBytes)
	def(&o.ResultBytes, defaultResultBytes)
	def(&o.MetaTTL, defaultMetaTTL)
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Memory{o: o, seed: maphash.MakeSeed(), start: o.Now(), stop: make(chan struct{})}
	for i := range m.shards {
		m.shards[i].results.all = &m.results
		for q := range m.heads {
			m.heads[q][i].Store(math.MaxInt64)
			m.shards[i].heads[q] = &m.heads[q][i]
		}
	}
	return m
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// SetNamespaces implements Broker.
func (m *Memory) SetNamespaces([]*Namespace) {}

// Start implements Broker.
func (m *Memory) Start(r Receiver) error {
	m.receiver = r
	m.done.Go(func() {
		t := time.NewTicker(sweepInterval)
		defer t.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-t.C:
				m.sweep()
			}
		}
	})
	return nil
}

// Close implements Broker.
func (m *Memory) Close() error {
	close(m.stop)
	m.done.Wait()
	return nil
}

// now is in nanoseconds since the start.
func (m *Memory) now() int64 { return int64(m.o.Now().Sub(m.start)) }

func (m *Memory) shard(name string) *memoryShard {
	return &m.shards[maphash.String(m.seed, name)%memoryShards]
}

// Publish implements Broker; done is called before it returns.
func (m *Memory) Publish(topic string, p *Publication, o PublishOptions, done func(Position, error)) {
	if o.HistorySize <= 0 && o.IdempotencyKey == "" {
		done(Position{}, m.receiver.Deliver(topic, Delivery{Publication: p, Delta: o.Delta}))
		return
	}
	now := m.now()
	at, err := m.publish(topic, p, now, &o)
	m.shed(now)
	if o.IdempotencyKey != "" {
		m.shedResults()
	}
	done(at, err)
}

// publish gives p its offset, brings it to the subscribers and keeps it, in one
// hold of the lock: all three agree in their order.
func (m *Memory) publish(topic string, p *Publication, now int64, o *PublishOptions) (Position, error) {
	sh := m.shard(topic)
	sh.mu.Lock()
	defer sh.unlock()
	if o.IdempotencyKey != "" {
		if at, ok := sh.results.find(topic, o.IdempotencyKey, now); ok {
			return at, nil
		}
	}
	at, err := m.addLocked(sh, topic, p, now, o)
	if err == nil && o.IdempotencyKey != "" {
		sh.results.keep(strings.Clone(topic), strings.Clone(o.IdempotencyKey),
			result{at, now + int64(o.IdempotencyTTL)})
	}
	return at, err
}

func (m *Memory) addLocked(sh *memoryShard, topic string, p *Publication, now int64, o *PublishOptions) (Position, error) {
	if o.HistorySize <= 0 {
		return Position{}, m.receiver.Deliver(topic, Delivery{Publication: p, Delta: o.Delta})
	}
	s := m.streamLocked(sh, topic, now, m.meta(o.MetaTTL, o.HistoryTTL))
	if s.older(o.Version, o.VersionEpoch) {
		return s.position(), nil
	}
	p.Offset, p.Previous = s.top+1, s.top
	if err := m.receiver.Deliver(topic, Delivery{Publication: p, Epoch: s.epoch, Delta: o.Delta}); err != nil {
		p.Offset, p.Previous = 0, 0
		return Position{}, err
	}
	m.changeLocked(sh, s, func() {
		s.add(p, now, o)
		s.trim(now, o.HistorySize, m.o.TopicBytes)
	})
	return s.position(), nil
}

// changeLocked counts what a change of a stream brings.
func (m *Memory) changeLocked(sh *memoryShard, s *stream, do func()) {
	size, n := s.size(), s.len()
	do()
	if d := s.len() - n; d != 0 {
		m.kept.Add(int64(d))
	}
	if d := s.size() - size; d != 0 {
		m.bytes.Add(int64(d))
	}
	sh.queueLocked(s)
}

func (m *Memory) meta(meta, history time.Duration) time.Duration {
	def(&meta, m.o.MetaTTL)
	return max(meta, history)
}

// streamLocked finds or makes the stream of a topic.
func (m *Memory) streamLocked(sh *memoryShard, topic string, now int64, meta time.Duration) *stream {
	if s := sh.streams[topic]; s != nil {
		if s.forget > now || s.len() > 0 || m.receiver.Interested(topic) {
			s.use(now, meta)
			return s
		}
		m.removeLocked(sh, s) // it should have been forgotten already
	}
	s := newStream(strings.Clone(topic), now, meta)
	if sh.streams == nil {
		sh.streams = make(map[string]*stream)
	}
	sh.streams[s.name] = s
	sh.most = max(sh.most, len(sh.streams))
	heap.Push(&sh.queues[s.queue], s)
	m.bytes.Add(int64(s.size()))
	return s
}

// removeLocked forgets a topic: its next publication begins a new epoch.
func (m *Memory) removeLocked(sh *memoryShard, s *stream) {
	m.bytes.Add(-int64(s.size()))
	m.kept.Add(-int64(s.len()))
	delete(sh.streams, s.name)
	heap.Remove(&sh.queues[s.queue], s.place)
	if n := len(sh.streams); sh.most >= mapShrinkAt && n <= sh.most/4 {
		small := make(map[string]*stream, n)
		maps.Copy(small, sh.streams)
		sh.streams, sh.most = small, n
	}
}

// History implements Broker; done is called before it returns.
func (m *Memory) History(topic string, f Filter, done func([]*Publication, Position, error)) {
	now := m.now()
	pubs, at, err := m.history(topic, now, &f)
	m.shed(now) // the position may be a new one
	done(pubs, at, err)
}

func (m *Memory) history(topic string, now int64, f *Filter) ([]*Publication, Position, error) {
	sh := m.shard(topic)
	sh.mu.Lock()
	defer sh.unlock()
	s := m.streamLocked(sh, topic, now, m.meta(f.Meta, 0))
	if f.Since != nil && f.Since.Epoch != "" && f.Since.Epoch != s.epoch {
		return nil, s.position(), ErrUnrecoverable
	}
	m.trimLocked(sh, s, now)
	return s.read(f), s.position(), nil
}

// trimLocked drops what is over.
func (m *Memory) trimLocked(sh *memoryShard, s *stream, now int64) {
	m.changeLocked(sh, s, func() { s.trim(now, math.MaxInt, math.MaxInt) })
}

// RemoveHistory implements Broker; done is called before it returns.
func (m *Memory) RemoveHistory(topic string, done func(error)) {
	sh := m.shard(topic)
	sh.mu.Lock()
	if s := sh.streams[topic]; s != nil {
		m.changeLocked(sh, s, func() { s.trim(math.MaxInt64, 0, 0) })
	}
	sh.unlock()
	done(nil)
}

// Subscribe implements Broker.
func (m *Memory) Subscribe(_ string, done func(error)) { done(nil) }

// Unsubscribe implements Broker.
func (m *Memory) Unsubscribe(_ string, done func(error)) { done(nil) }

// sweep drops what is over: publications, positions and answers.
func (m *Memory) sweep() {
	now := m.now()
	for i := range m.shards {
		for m.sweepSome(&m.shards[i], now) {
		}
	}
}

// sweepSome looks at some streams of a shard and tells whether more are due.
func (m *Memory) sweepSome(sh *memoryShard, now int64) bool {
	sh.mu.Lock()
	defer sh.unlock()
	sh.results.expire(now)
	for range sweepMost {
		s := sh.dueLocked(now)
		if s == nil {
			return false
		}
		m.trimLocked(sh, s, now)
		if s.len() == 0 && s.forget <= now && !m.stayLocked(s, now) {
			m.removeLocked(sh, s)
			continue
		}
		s.due = max(s.next(), now+1)
		sh.queueLocked(s)
	}
	return true
}

// dueLocked is a stream to look at, or nil.
func (sh *memoryShard) dueLocked(now int64) *stream {
	for _, q := range sh.queues {
		if len(q) > 0 && q[0].due <= now {
			return q[0]
		}
	}
	return nil
}

// stayLocked keeps the position of a topic with subscribers, who compare theirs
// with it; false: it has none.
func (m *Memory) stayLocked(s *stream, now int64) bool {
	if !m.receiver.Interested(s.name) {
		return false
	}
	s.use(now, m.o.MetaTTL)
	return true
}

// MemoryCounts is what Memory tells of itself.
type MemoryCounts struct {
	Topics       int   // with a position
	Publications int   // in histories
	Bytes        int64 // of both
}

// Counts reads them. Safe from any goroutine.
func (m *Memory) Counts() MemoryCounts {
	c := MemoryCounts{Bytes: m.bytes.Load(), Publications: int(m.kept.Load())}
	for i := range m.shards {
		sh := &m.shards[i]
		sh.mu.Lock()
		c.Topics += len(sh.streams)
		sh.mu.Unlock()
	}
	return c
}
