package cluster

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"perch/internal/pace"
	"perch/topic"
)

const (
	defaultQueueBytes = 64 << 20
	// publishShards is over how many subjects publications without a history are
	// spread: a topic stays on one, so that its order holds.
	publishShards = 8
	// takeBytes bounds what waits of a subject until this node has taken it.
	takeBytes = 64 << 20
	// readyPause is how often is looked whether the streams are there, at the start.
	readyPause = 5 * time.Millisecond
)

// BrokerOptions configure a Broker; zero means the default.
type BrokerOptions struct {
	// QueueBytes bounds the publications that wait for NATS or its answer: 64 MiB.
	// The next ones are refused with topic.ErrFull.
	QueueBytes int
	// HistoryBytes bounds the stream of each namespace; 0: as the server does.
	HistoryBytes int64
	// MetaTTL is how long the position of a topic is kept that nothing uses, where
	// its namespace says nothing else, and IdempotencyTTL how long a key: both as in
	// topic.Options.
	MetaTTL        time.Duration
	IdempotencyTTL time.Duration
	// Memory is of what needs no stream: the answers to idempotency keys of topics
	// without a history.
	Memory topic.MemoryOptions
}

// Broker is topic.Broker over NATS.
//
// A publication without a history reaches the subscribers of this node at once,
// as with topic.Memory, and those of others over a plain subject: at most once,
// each node's in their order. One with a history goes into the JetStream stream
// of its namespace, and from there to the subscribers of all nodes, this one too,
// in the stream's order; its offset is the stream's sequence.
type Broker struct {
	link *Link
	log  *slog.Logger
	opts BrokerOptions

	leaf     *leaf // nil: this node's server is none
	local    *topic.Memory
	receiver topic.Receiver
	out      *sender
	replies  *replies
	reads    reads
	seed     maphash.Seed
	// watchEvery is how often streams are compared with what has come of them.
	watchEvery time.Duration

	order    [publishShards]sync.Mutex // held while a publication goes out: here and there in one order
	subjects [publishShards]string

	mu      sync.Mutex
	begun   bool
	closed  bool
	streams atomic.Pointer[map[string]*stream] // by namespace
	subs    []*nats.Subscription
	life    context.Context
	end     context.CancelFunc
	done    sync.WaitGroup

	unsent    atomic.Uint64 // publications without a history that no other node got
	refused   atomic.Uint64 // publications for which there was no room
	failed    atomic.Uint64 // publications that are not known to be stored
	undone    atomic.Uint64 // deliveries of other nodes for which a loop had no room
	repaired  atomic.Uint64 // publications that had to be read because they did not come
	malformed atomic.Uint64
	seldom    pace.Seldom
	large     pace.Seldom
}

// NewBroker makes a broker; topic.New starts it.
func NewBroker(l *Link, o BrokerOptions) *Broker {
	if o.QueueBytes == 0 {
		o.QueueBytes = defaultQueueBytes
	}
	if o.MetaTTL == 0 {
		o.MetaTTL = time.Hour
	}
	if o.IdempotencyTTL == 0 {
		o.IdempotencyTTL = 5 * time.Minute
	}
	b := &Broker{link: l, log: l.log, opts: o, local: topic.NewMemory(o.Memory), seed: maphash.MakeSeed(), watchEvery: watchInterval}
	b.life, b.end = context.WithCancel(context.Background())
	b.streams.Store(&map[string]*stream{})
	if l.opts.Server.Leaf.URL != "" {
		b.leaf = newLeaf(b)
	}
	for i := range b.subjects {
		b.subjects[i] = l.Prefix() + "." + subjectPublish + "." + strconv.Itoa(i)
	}
	return b
}

// Start implements topic.Broker. It does not wait for NATS.
func (b *Broker) Start(r topic.Receiver) error {
	b.receiver = r
	var err error
	if b.replies, err = newReplies(b.link); err != nil {
		return err
	}
	b.out = newSender(b.link.nc, b.replies, b.opts.QueueBytes, b.notSent)
	b.reads.b = b
	if b.link.Alone() {
		err = b.local.Start(r)
	} else if err = b.local.Start(forwarder{b}); err == nil {
		err = b.listen()
	}
	if err != nil {
		return err
	}
	if b.leaf != nil {
		b.done.Go(b.leaf.run)
	} else if err := b.serveSites(); err != nil {
		return err
	}
	b.link.OnChange(nil, func() { b.replies.failAll(ErrUnavailable) })
	b.mu.Lock()
	defer b.mu.Unlock()
	b.begun = true
	for _, s := range *b.streams.Load() {
		b.done.Go(s.run)
	}
	return nil
}

// listen takes what other nodes publish without a history.
func (b *Broker) listen() error {
	for _, subject := range b.subjects {
		sub, err := b.link.nc.Subscribe(subject, b.take)
		if err != nil {
			return err
		}
		if err := sub.SetPendingLimits(-1, takeBytes); err != nil {
			return err
		}
		b.subs = append(b.subs, sub)
	}
	return nil
}

// Close implements topic.Broker.
func (b *Broker) Close() error {
	b.mu.Lock()
	begun := b.begun && !b.closed
	b.closed = true
	b.mu.Unlock()
	if !begun {
		return nil
	}
	b.end()
	for _, sub := range b.subs {
		_ = sub.Unsubscribe()
	}
	// First what answers: those who follow the streams may wait for it.
	b.out.close()
	b.replies.close()
	b.done.Wait()
	b.reads.close()
	return b.local.Close()
}

// Ready tells whether the streams of all namespaces with a history are there and
// followed; waiting names one that is not. Safe from any goroutine.
func (b *Broker) Ready() (waiting string, ok bool) {
	for _, s := range *b.streams.Load() {
		if !s.ready.Load() {
			return s.name, false
		}
	}
	return "", true
}

// Wait returns once Ready says so, and NATS knows what this node takes; ctx ends
// the wait. Safe from any goroutine.
func (b *Broker) Wait(ctx context.Context) error {
	if err := b.link.Wait(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(readyPause)
	defer tick.Stop()
	for {
		if _, ok := b.Ready(); ok {
			// Whoever publishes from here on is heard by this node.
			if b.link.nc.FlushTimeout(b.link.Timeout()) == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// SetNamespaces implements topic.Broker: a namespace with a history has a stream.
func (b *Broker) SetNamespaces(all []*topic.Namespace) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := *b.streams.Load()
	streams := make(map[string]*stream)
	for _, ns := range all {
		if !ns.History() {
			continue
		}
		if s := old[ns.Name]; s != nil {
			s.configure(ns)
			streams[ns.Name] = s
			continue
		}
		s := newStream(b, ns)
		streams[ns.Name] = s
		if b.begun && !b.closed {
			b.done.Go(s.run)
		}
	}
	for name, s := range old {
		if streams[name] == nil {
			s.end()
		}
	}
	b.streams.Store(&streams)
}

// streamFor is the stream of a topic; nil: its namespace keeps no history.
func (b *Broker) streamFor(name string) *stream {
	return (*b.streams.Load())[namespaceOf(name)]
}

// Publish implements topic.Broker.
func (b *Broker) Publish(name string, p *topic.Publication, o topic.PublishOptions, done func(topic.Position, error)) {
	if o.HistorySize <= 0 {
		b.local.Publish(name, p, o, done)
		return
	}
	s := b.streamFor(name)
	if s == nil {
		done(topic.Position{}, topic.ErrNotAvailable)
		return
	}
	s.publish(name, p, &o, func(at topic.Position, err error) {
		switch {
		case errors.Is(err, topic.ErrFull):
			b.refused.Add(1)
		case err != nil:
			b.failed.Add(1)
		}
		done(at, err)
	})
}

// History implements topic.Broker.
func (b *Broker) History(name string, f topic.Filter, done func([]*topic.Publication, topic.Position, error)) {
	s := b.streamFor(name)
	if s == nil {
		done(nil, topic.Position{}, topic.ErrNotAvailable)
		return
	}
	s.history(name, f, done)
}

// RemoveHistory implements topic.Broker.
func (b *Broker) RemoveHistory(name string, done func(error)) {
	s := b.streamFor(name)
	if s == nil {
		done(topic.ErrNotAvailable)
		return
	}
	s.remove(name, done)
}

// Subscribe implements topic.Broker: each node takes all publications, and drops
// those that nobody here wants. A subscription to NATS for each topic would cost
// more memory than the topic, and leave a time between a client's subscription
// and the first publication of another node that reaches it.
func (b *Broker) Subscribe(_ string, done func(error)) { done(nil) }

// Unsubscribe implements topic.Broker.
func (b *Broker) Unsubscribe(_ string, done func(error)) { done(nil) }

// forwarder delivers the publications without a history: here, then to the other
// nodes.
type forwarder struct{ b *Broker }

// Deliver implements topic.Receiver.
func (f forwarder) Deliver(name string, d topic.Delivery) error {
	b := f.b
	shard := maphash.String(b.seed, name) % publishShards
	b.order[shard].Lock()
	defer b.order[shard].Unlock()
	if err := b.receiver.Deliver(name, d); err != nil {
		return err
	}
	if !b.link.Connected() {
		b.unsent.Add(1)
		return nil
	}
	data := encode(name, d.Publication, &topic.PublishOptions{Delta: d.Delta})
	if !b.out.send(&message{subject: b.subjects[shard], data: data}) {
		b.unsent.Add(1)
	}
	return nil
}

// Interested implements topic.Receiver.
func (f forwarder) Interested(name string) bool { return f.b.receiver.Interested(name) }

// take brings a publication of another node, without a history, to the
// subscribers of this one.
func (b *Broker) take(m *nats.Msg) {
	r, rest, err := peek(m.Data)
	if err != nil {
		b.unreadable(m.Subject, err)
		return
	}
	if !b.receiver.Interested(r.topic) {
		return
	}
	if r, err = r.read(rest); err != nil || r.pub == nil {
		b.unreadable(m.Subject, err)
		return
	}
	if b.receiver.Deliver(r.topic, topic.Delivery{Publication: r.pub, Delta: r.flags&flagDelta != 0}) != nil {
		b.undone.Add(1)
	}
}

// notSent is told what NATS has not taken.
func (b *Broker) notSent(m *message, err error) {
	if m.got == nil {
		b.unsent.Add(1)
	}
	if errors.Is(err, nats.ErrMaxPayload) {
		if quiet, ok := b.large.Pass(time.Second); ok {
			b.log.Error("message is larger than the NATS server takes: raise its max_payload",
				"subject", m.subject, "bytes", len(m.data), "max_payload", b.link.nc.MaxPayload(), "quiet", quiet)
		}
	}
}

// now is the clock by which histories are too old.
func (b *Broker) now() time.Time { return time.Now() }

// unreadable is for what no node of this version has sent.
func (b *Broker) unreadable(subject string, err error) {
	b.malformed.Add(1)
	if quiet, ok := b.seldom.Pass(time.Second); ok {
		b.log.Warn("message of another node not read: nodes of two versions, or somebody else on these subjects",
			"subject", subject, "err", err, "quiet", quiet)
	}
}

// BrokerCounts is what a Broker tells of itself.
type BrokerCounts struct {
	Connected bool
	Losses    uint64 // of the connection
	Waiting   int    // calls that NATS has not answered
	Queued    int64  // bytes of publications that wait for NATS or its answer
	Unsent    uint64 // publications without a history that no other node got
	Refused   uint64 // publications for which there was no room
	Failed    uint64 // publications that are not known to be stored
	Undone    uint64 // deliveries for which a loop had no room
	Repaired  uint64 // deliveries that had to be read, because they did not come
	Dropped   uint64 // messages that came faster than they could be taken
	Malformed uint64 // messages of no version that is known
	Leaf      *LeafCounts
}

// Counts reads the counters. Safe from any goroutine, once the broker is started.
func (b *Broker) Counts() BrokerCounts {
	return BrokerCounts{
		Connected: b.link.Connected(), Losses: b.link.Losses(), Waiting: b.replies.waiting(), Queued: b.out.queued(),
		Unsent: b.unsent.Load(), Refused: b.refused.Load(), Failed: b.failed.Load(), Undone: b.undone.Load(),
		Repaired: b.repaired.Load(), Dropped: b.link.Dropped(), Malformed: b.malformed.Load(), Leaf: b.leaf.counts(),
	}
}
