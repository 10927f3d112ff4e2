package cluster

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"perch/internal/pace"
	"perch/session"
)

// subjectNodes is what nodes tell one another: n.<kind> to all, n.<node>.<kind>
// to one.
const (
	subjectNodes = "n"
	kindHello    = "hello"
	kindAsk      = "ask"
	kindAnswer   = "answer"
	kindNews     = "news"
)

const (
	defaultAnnounce = 2 * time.Second
	defaultGone     = 7 * time.Second
	defaultAsk      = 2 * time.Second
	// meetPause is how long a new node waits for others to answer before it takes
	// it that all have, and meetRounds how often while more come.
	meetPause  = 60 * time.Millisecond
	meetRounds = 8
	// goodbye bounds how long the last words may take.
	goodbye = 500 * time.Millisecond
	// outboxBytes bounds what waits to be said.
	outboxBytes = 16 << 20
)

// NodesOptions configure Nodes.
type NodesOptions struct {
	Link    *Link
	Node    session.Node
	Version string
	Started time.Time
	// Answer does what another node asks for. It runs on one of a few goroutines,
	// may block until ctx ends, and keeps params no longer than that. ErrTooLarge and
	// ErrBusy reach the one who asks as they are.
	Answer func(ctx context.Context, method string, params []byte) ([]byte, error)
	// News takes what another node tells of a topic. It does not block.
	News   func(topic string, data []byte)
	Logger *slog.Logger
	// Interval is how often the node announces itself (0: 2 s), Gone after which
	// silence another is taken for dead (0: 7 s), Timeout how long answers are
	// waited for (0: 2 s).
	Interval time.Duration
	Gone     time.Duration
	Timeout  time.Duration
}

// Peer is another node that is alive.
type Peer struct {
	Node    session.Node
	Name    string
	Version string
	Started time.Time
	// Agrees: its namespaces are configured as ours are.
	Agrees bool
}

type peer struct {
	Peer
	digest string
	heard  time.Time
}

// parted is a node that has said goodbye. What it has said before, to this node
// alone, comes by another subscription and may be heard behind it.
type parted struct {
	started int64
	at      time.Time
}

// partedKeep is for how long that may be.
const partedKeep = 10 * time.Second

// Nodes knows the other nodes of a cluster, asks them and answers them. All
// methods are safe from any goroutine; those that block say so.
type Nodes struct {
	opts    NodesOptions
	log     *slog.Logger
	nc      *nats.Conn
	self    string
	base    string // of the subjects
	outbox  outbox
	helpers helpers
	life    context.Context
	end     context.CancelFunc
	back    chan struct{}
	subs    []*nats.Subscription
	done    sync.WaitGroup

	mu      sync.Mutex
	peers   map[session.Node]*peer
	parted  map[session.Node]parted
	digest  string
	swept   time.Time
	surveys map[uint64]*survey
	shared  map[string]*survey
	last    uint64 // number of the last survey
	held    int    // bytes of answers that are not complete
	closed  bool

	joined, left, gone            atomic.Uint64
	asked, answered, unanswered   atomic.Uint64
	busy, refused, unsaid, broken atomic.Uint64
	silent                        pace.Seldom
}

// NewNodes makes the table; Start begins.
func NewNodes(o NodesOptions) *Nodes {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Interval, defaultAnnounce)
	def(&o.Gone, defaultGone)
	def(&o.Timeout, defaultAsk)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Nodes{
		opts: o, log: o.Logger, nc: o.Link.Conn(), self: nodeHex(o.Node), base: o.Link.Prefix() + "." + subjectNodes + ".",
		helpers: helpers{most: answerWorkers, queue: answerQueue, bytes: answerQueueBytes},
		back:    make(chan struct{}, 1),
		peers:   make(map[session.Node]*peer), parted: make(map[session.Node]parted), surveys: make(map[uint64]*survey), shared: make(map[string]*survey),
	}
	n.outbox = outbox{publish: n.nc.Publish, most: outboxBytes}
	n.life, n.end = context.WithCancel(context.Background())
	return n
}

// Start announces the node and returns when it knows those that are there, after
// a fraction of a second; where NATS is not connected, at once: it announces
// itself when that is there. It is called once.
func (n *Nodes) Start(ctx context.Context) error {
	// Two tokens are for one node, one is for all.
	for _, subject := range []string{n.base + "*", n.base + n.self + ".*"} {
		sub, err := n.nc.Subscribe(subject, n.receive)
		if err != nil {
			return err
		}
		n.subs = append(n.subs, sub)
	}
	n.opts.Link.OnChange(func() { poke(n.back) }, n.failSurveys)
	n.mu.Lock()
	n.swept = time.Now()
	n.mu.Unlock()
	known := -1
	for range meetRounds {
		if !n.opts.Link.Connected() {
			break
		}
		n.announce(envelope{Ask: true})
		pauseFor(ctx, meetPause, nil) // ctx is looked at next
		if now := len(n.Peers()); now == known || ctx.Err() != nil {
			break
		} else {
			known = now
		}
	}
	n.done.Go(n.run)
	return nil
}

func (n *Nodes) run() {
	tick := time.NewTicker(n.opts.Interval)
	defer tick.Stop()
	for {
		select {
		case <-n.life.Done():
			return
		case <-n.back:
			n.sweep()
			n.announce(envelope{Ask: true})
		case <-tick.C:
			n.sweep()
			n.announce(envelope{})
		}
	}
}

func (n *Nodes) hello(e envelope) []byte {
	n.mu.Lock()
	e.Digest = n.digest
	n.mu.Unlock()
	e.Node, e.Name, e.Build = n.self, cut(n.opts.Link.Name(), maxName), cut(n.opts.Version, maxName)
	e.Started = n.opts.Started.Unix()
	return e.encode(nil)
}

func cut(s string, most int) string { return strings.ToValidUTF8(s[:min(len(s), most)], "") }

// announce tells all. It may wait for the network.
func (n *Nodes) announce(e envelope) {
	_ = n.nc.Publish(n.base+kindHello, n.hello(e)) // without a connection nobody is there to hear it
}

// SetDigest says how this node's namespaces are configured: those whose digest
// is another one disagree with it.
func (n *Nodes) SetDigest(digest string) {
	n.mu.Lock()
	if n.digest == digest {
		n.mu.Unlock()
		return
	}
	n.digest = digest
	var say []func()
	for _, p := range n.peers {
		say = append(say, n.compareLocked(p))
	}
	n.mu.Unlock()
	for _, f := range say {
		f()
	}
	n.outbox.send(n.base+kindHello, n.hello(envelope{}))
}

// compareLocked notes whether p agrees, and returns what is to be logged of it.
func (n *Nodes) compareLocked(p *peer) func() {
	agrees := p.digest == n.digest
	if agrees == p.Agrees {
		return func() {}
	}
	p.Agrees = agrees
	name, id := p.Name, nodeHex(p.Node)
	if agrees {
		return func() { n.log.Info("node agrees on the namespaces again", "node", name, "id", id) }
	}
	return func() {
		n.log.Warn("node has other namespaces: give both the same configuration", "node", name, "id", id)
	}
}

// receive runs on the goroutine of a subscription.
func (n *Nodes) receive(m *nats.Msg) {
	e, body, ok := decodeEnvelope(m.Data)
	if !ok {
		n.broken.Add(1)
		n.log.Debug("message of a node not understood", "subject", m.Subject)
		return
	}
	if e.from == n.opts.Node {
		return
	}
	switch kind := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]; kind {
	case kindHello:
		n.hear(&e)
	case kindAsk:
		n.question(&e, body)
	case kindAnswer:
		n.take(&e, body)
	case kindNews:
		if n.opts.News != nil {
			n.opts.News(e.Topic, body)
		}
	default: // of a later version
		n.broken.Add(1)
	}
}

// hear takes an announcement.
func (n *Nodes) hear(e *envelope) {
	if e.Bye {
		n.mu.Lock()
		if n.peers[e.from] != nil {
			n.parted[e.from] = parted{e.Started, time.Now()}
		}
		n.mu.Unlock()
		n.drop(e.from, &n.left, "node left")
		return
	}
	n.mu.Lock()
	if p, ok := n.parted[e.from]; n.closed || ok && p.started == e.Started {
		n.mu.Unlock()
		return
	}
	p, known := n.peers[e.from]
	if !known {
		p = &peer{Peer: Peer{Node: e.from, Agrees: true}}
		n.peers[e.from] = p
		n.joined.Add(1)
	}
	p.Name, p.Version, p.Started, p.digest, p.heard = e.Name, e.Build, time.Unix(e.Started, 0), e.Digest, time.Now()
	say := n.compareLocked(p)
	n.mu.Unlock()
	if !known {
		n.log.Info("node joined", "node", e.Name, "id", e.Node, "version", e.Build)
	}
	say()
	if e.Ask || !known {
		n.outbox.send(n.base+e.Node+"."+kindHello, n.hello(envelope{}))
	}
}

// drop takes a node out, for which nothing waits any more.
func (n *Nodes) drop(node session.Node, count *atomic.Uint64, text string) {
	n.mu.Lock()
	p := n.peers[node]
	if p == nil {
		n.mu.Unlock()
		return
	}
	delete(n.peers, node)
	var over []func()
	for _, s := range n.surveys {
		if _, waits := s.left[node]; waits {
			n.dropPartLocked(s, node)
			over = append(over, n.overLocked(s))
		}
	}
	n.mu.Unlock()
	count.Add(1)
	n.log.Info(text, "node", p.Name, "id", nodeHex(node))
	for _, f := range over {
		f()
	}
}

// sweep takes out the nodes that have been silent for too long. Where it was this
// node that could not hear (no connection, or its process stood still), they get
// the time anew.
func (n *Nodes) sweep() {
	now := time.Now()
	n.mu.Lock()
	deaf := !n.opts.Link.Connected() || now.Sub(n.swept) > 2*n.opts.Interval
	n.swept = now
	for node, p := range n.parted {
		if now.Sub(p.at) > partedKeep {
			delete(n.parted, node)
		}
	}
	var gone []session.Node
	for node, p := range n.peers {
		if deaf {
			p.heard = now
		} else if now.Sub(p.heard) > n.opts.Gone {
			gone = append(gone, node)
		}
	}
	n.mu.Unlock()
	for _, node := range gone {
		n.drop(node, &n.gone, "node gone: it has not been heard of")
	}
}

// Peers are the other nodes, by their names.
func (n *Nodes) Peers() []Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]Peer, 0, len(n.peers))
	for _, p := range n.peers {
		all = append(all, p.Peer)
	}
	slices.SortFunc(all, func(a, b Peer) int { return byName(a.Name, a.Node, b.Name, b.Node) })
	return all
}

// byName orders nodes by their names, those of one name by their ids.
func byName(nameA string, a session.Node, nameB string, b session.Node) int {
	if c := strings.Compare(nameA, nameB); c != 0 {
		return c
	}
	return strings.Compare(nodeHex(a), nodeHex(b))
}

// Alone tells that there is nobody to ask: NATS is connected, and no other node
// known.
func (n *Nodes) Alone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.peers) == 0 && n.opts.Link.Connected()
}

// Tell brings news of a topic, of about size bytes, to the nodes that are there.
// encode is called later, on another goroutine, and gives them in messages of some
// 256 KiB. It does not block; false: they could not be told.
func (n *Nodes) Tell(topic string, size int, encode func() [][]byte) bool {
	n.mu.Lock()
	nobody := len(n.peers) == 0
	n.mu.Unlock()
	if nobody {
		return true
	}
	if !n.opts.Link.Connected() || !n.outbox.put(letter{subject: n.base + kindNews, size: size, make: func() [][]byte {
		all := encode()
		for i := range all {
			e := envelope{Node: n.self, Topic: topic}
			all[i] = e.encode(all[i])
		}
		return all
	}}) {
		n.unsaid.Add(1)
		return false
	}
	return true
}

// NodesCounts is what Nodes tell of themselves. The first two are of now.
type NodesCounts struct {
	Peers       int
	Disagreeing int    // of them
	Joined      uint64 // nodes that came,
	Left        uint64 // that said that they go,
	Gone        uint64 // and that went silent
	Surveys     int    // under way
	Asked       uint64 // surveys so far
	Unanswered  uint64 // answers that did not come in time
	Busy        uint64 // questions of ours for which there was no room
	Answered    uint64 // questions of others
	Refused     uint64 // of them, for want of room
	Unsaid      uint64 // news that other nodes were not told of
	Broken      uint64 // messages that were not understood
}

// Counts reads the counters.
func (n *Nodes) Counts() NodesCounts {
	c := NodesCounts{
		Joined: n.joined.Load(), Left: n.left.Load(), Gone: n.gone.Load(), Asked: n.asked.Load(), Unanswered: n.unanswered.Load(),
		Busy: n.busy.Load(), Answered: n.answered.Load(), Refused: n.refused.Load(), Unsaid: n.unsaid.Load(), Broken: n.broken.Load(),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	c.Peers, c.Surveys = len(n.peers), len(n.surveys)
	for _, p := range n.peers {
		if !p.Agrees {
			c.Disagreeing++
		}
	}
	return c
}

// Close says goodbye and ends all that is under way. It blocks for a moment, and
// for as long as an answer of this node's takes that does not heed its context.
func (n *Nodes) Close() {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.closed = true
	n.mu.Unlock()
	n.end()
	n.done.Wait()
	n.outbox.close()
	if n.opts.Link.Connected() {
		n.announce(envelope{Bye: true})
		_ = n.nc.FlushTimeout(goodbye)
	}
	for _, sub := range n.subs {
		_ = sub.Unsubscribe()
	}
	n.failSurveys()
	n.helpers.close()
}
