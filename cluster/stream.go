package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"perch/internal/pace"
	"perch/topic"
)

const (
	// watchInterval is how often a stream is compared with what has come of it.
	watchInterval = 2 * time.Second
	// ensureRetry is between two attempts to have the stream, at the most.
	ensureRetry = time.Second
	// firstPatience is how long an answer is waited for at first, twice as long each
	// time: who asks for a stream that another node is just making gets none.
	firstPatience = 250 * time.Millisecond
	// lookAgain is between two looks at a stream that may be another one.
	lookAgain = 200 * time.Millisecond
	// suspectTime is for how long positions are compared one by one after something
	// could not be delivered: two rounds of topic's, and some more.
	suspectTime = 2 * time.Minute
	epochLength = 8
	// epochTries is how often the epoch is read and written anew where it changes
	// meanwhile.
	epochTries = 5
	// leastDuplicates is the shortest time for which NATS remembers ids.
	leastDuplicates = 100 * time.Millisecond
)

// stream is the history of the topics of one namespace.
type stream struct {
	b         *Broker
	log       *slog.Logger
	namespace string
	name      string // in JetStream
	stored    string // subjects begin with it, the topic's token follows
	deliver   string

	ns     atomic.Pointer[topic.Namespace]
	most   atomic.Int64 // publications kept of a topic, one more than its history has
	ready  atomic.Bool
	made   atomic.Int64 // when, in Unix nanoseconds: another of the same name has another time
	sure   atomic.Bool  // since the connection is there, the stream has been found to be the same
	epoch  atomic.Pointer[string]
	at     atomic.Uint64 // everything up to it has come, and been delivered
	life   context.Context
	cancel context.CancelFunc
	work   chan struct{} // the watch has something to do at once

	blocks   *blocks      // nil: answers don't wait for the disk; set before ready
	patience atomic.Int64 // nanoseconds that an answer is waited for, while it begins; 0: the link's timeout
	suspect  atomic.Int64 // Unix nanoseconds until which positions are compared one by one
	seldom   pace.Seldom
	began    atomic.Uint64 // where the epoch began
	kept     kept          // of a leaf

	mu     sync.Mutex // held while a delivery is taken
	sub    *nats.Subscription
	marks  marks
	behind uint64    // where the stream stood at the last look, when it had not come yet
	mark   mark      // the message that holds the epoch
	hole   uint64    // of what stands up to it some may not have been delivered here
	hurry  time.Time // until then no delivery waits for a loop
	known  string    // the epoch at the last look
	anew   bool      // the stream is not the one that was made then, or its epoch is another
}

// mark is where and when the epoch was written last.
type mark struct {
	seq uint64
	at  time.Time
}

func newStream(b *Broker, ns *topic.Namespace) *stream {
	t := namespaceToken(ns.Name)
	s := &stream{
		b: b, namespace: ns.Name, name: b.link.Prefix() + streamHistory + t, work: make(chan struct{}, 1),
		stored: b.link.streamPrefix() + "." + subjectStored + "." + t + ".", deliver: b.link.streamPrefix() + "." + subjectDeliver + "." + t + ".",
		log: b.log.With("stream", b.link.Prefix()+streamHistory+t),
	}
	none := ""
	s.epoch.Store(&none)
	s.life, s.cancel = context.WithCancel(b.life)
	s.configure(ns)
	return s
}

// configure takes the namespace as it is from now on.
func (s *stream) configure(ns *topic.Namespace) {
	s.ns.Store(ns)
	s.most.Store(int64(ns.HistorySize) + 1)
	s.poke()
}

func (s *stream) poke() {
	poke(s.work)
}

// end is for a namespace that is no more. The stream stays.
func (s *stream) end() { s.cancel() }

// config is the stream as JetStream has it. One publication more than the history
// has is kept of each topic: it tells whether the first one of the history follows
// on what a client has. All are kept as long as a position is; what is older than
// a history's time is not given out.
func (s *stream) config() jetstream.StreamConfig {
	ns := s.ns.Load()
	age := ns.HistoryMetaTTL
	if age == 0 {
		age = s.b.opts.MetaTTL
	}
	// The epoch is in it as well, and is written again when half of its time is over.
	age = max(age, ns.HistoryTTL, 5*s.b.watchEvery)
	c := jetstream.StreamConfig{
		Name: s.name, Description: "perch: histories of namespace " + quoted(ns.Name),
		Subjects: []string{s.stored + "*"}, Storage: jetstream.FileStorage, Replicas: s.b.link.Replicas(),
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
		MaxMsgsPerSubject: s.most.Load(), MaxAge: age, MaxBytes: -1, MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1,
		AllowDirect: true, AllowRollup: true, Duplicates: max(leastDuplicates, min(s.b.opts.IdempotencyTTL, age)),
		RePublish: &jetstream.RePublish{Source: s.stored + "*", Destination: s.deliver + "{{wildcard(1)}}"},
	}
	// Sites hand over what waited in batches that are stored whole or not at all.
	c.AllowAtomicPublish = s.b.link.server == nil
	if s.b.opts.HistoryBytes > 0 {
		c.MaxBytes = s.b.opts.HistoryBytes
	}
	return c
}

func quoted(name string) string {
	if name == "" {
		return "(none)"
	}
	return name
}

// run makes the stream, and follows it until the broker ends.
func (s *stream) run() {
	changed := make(chan struct{}, 1)
	defer s.b.link.OnChange(func() {
		poke(changed)
	}, func() { s.sure.Store(false) })()
	defer s.unfollow()
	if !s.begin() {
		return
	}
	if s.blocks != nil {
		defer s.blocks.close()
	}
	tick := time.NewTicker(s.b.watchEvery)
	defer tick.Stop()
	again := time.NewTimer(lookAgain)
	defer again.Stop()
	for {
		var err error
		select {
		case <-s.life.Done():
			return
		case <-s.work:
			if err = s.ensure(); err == nil && s.sure.Load() {
				err = s.watch(false)
			} else if err == nil {
				err = s.comeBack()
			}
		case <-changed:
			err = s.comeBack()
		case <-again.C:
			if !s.sure.Load() {
				err = s.comeBack()
			}
		case <-tick.C:
			if s.b.link.Connected() {
				err = s.watch(!s.sure.Load())
			}
		}
		if !s.sure.Load() {
			again.Reset(lookAgain)
		}
		if err != nil && s.life.Err() == nil {
			if quiet, ok := s.seldom.Pass(10 * time.Second); ok {
				s.log.Warn("history not watched", "err", err, "quiet", quiet)
			}
		}
	}
}

// comeBack reads what has come meanwhile, and then what came while it was read: all
// of it is dropped until the stream is known to be the same.
func (s *stream) comeBack() error {
	if err := s.watch(true); err != nil || !s.sure.Load() {
		return err
	}
	return s.watch(true)
}

// up tells whether the stream can be read and written.
func (s *stream) up() bool { return s.ready.Load() && s.sure.Load() && s.b.link.Connected() }

// begin tries until the stream is there; false: the broker ends.
func (s *stream) begin() bool {
	defer s.patience.Store(0)
	for patience := firstPatience; ; patience = min(2*patience, s.b.link.Timeout()) {
		s.patience.Store(int64(patience))
		err := s.b.link.Wait(s.life)
		if err == nil {
			if err = s.ensure(); err == nil {
				if err = s.follow(); err == nil {
					err = s.openBlocks()
				}
			}
		}
		if l := s.b.leaf; err == nil && l != nil {
			err = l.begin(s)
		}
		if err == nil {
			s.ready.Store(true)
			return true
		}
		if s.life.Err() != nil {
			return false
		}
		if patience >= s.b.link.Timeout() { // else it may be a stream that is being made
			if quiet, ok := s.seldom.Pass(10 * time.Second); ok {
				s.log.Error("history not available: publications into it fail", "err", err, "quiet", quiet)
			}
		}
		select {
		case <-s.life.Done():
			return false
		case <-time.After(min(patience, ensureRetry)):
		}
	}
}

// openBlocks lets answers wait for the disk, where they are to.
func (s *stream) openBlocks() (err error) {
	l := s.b.link
	if l.server == nil || l.opts.Server.SyncInterval > 0 {
		return nil
	}
	s.blocks, err = openBlocks(blocksDir(l.opts.Server.Dir, s.name))
	return err
}

// timeout is how long an answer is waited for.
func (s *stream) timeout() time.Duration {
	if p := s.patience.Load(); p > 0 {
		return time.Duration(p)
	}
	return s.b.link.Timeout()
}

// ensure makes the stream as it is configured here.
func (s *stream) ensure() error {
	ctx, cancel := context.WithTimeout(s.life, s.timeout())
	defer cancel()
	want := s.config()
	have, err := s.b.link.js.Stream(ctx, s.name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		_, err = s.b.link.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return s.ensure() // another node was first
		}
		if err != nil {
			return fmt.Errorf("make the stream: %w", err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("look for the stream: %w", err)
	}
	c := have.CachedInfo().Config
	want.Metadata = c.Metadata
	least, until := leastOf(c.Metadata)
	if c.MaxMsgsPerSubject < want.MaxMsgsPerSubject {
		// Where the smaller size ends is known behind the change.
		until = math.MaxUint64
		want.Metadata = withLeast(c.Metadata, min(least, c.MaxMsgsPerSubject), until)
	}
	same := c.MaxMsgsPerSubject == want.MaxMsgsPerSubject && c.MaxAge == want.MaxAge && c.MaxBytes == want.MaxBytes &&
		c.Replicas == want.Replicas && c.Duplicates == want.Duplicates && c.RePublish != nil && *c.RePublish == *want.RePublish
	if same && until != math.MaxUint64 {
		return nil
	}
	info, err := s.b.link.js.UpdateStream(ctx, want)
	if err != nil {
		return fmt.Errorf("change the stream: %w", err)
	}
	if until == math.MaxUint64 {
		i, err := info.Info(ctx)
		if err != nil {
			return fmt.Errorf("look at the stream: %w", err)
		}
		least, _ = leastOf(want.Metadata)
		want.Metadata = withLeast(want.Metadata, least, i.State.LastSeq)
		if _, err := s.b.link.js.UpdateStream(ctx, want); err != nil {
			return fmt.Errorf("change the stream: %w", err)
		}
	}
	if same {
		return nil
	}
	s.log.Warn("history changed to this node's configuration: all nodes should have the same",
		"size", want.MaxMsgsPerSubject-1, "size_before", c.MaxMsgsPerSubject-1, "age", want.MaxAge, "age_before", c.MaxAge,
		"bytes", want.MaxBytes, "bytes_before", c.MaxBytes, "replicas", want.Replicas, "replicas_before", c.Replicas)
	return nil
}

// newEpoch makes the name of an epoch.
func newEpoch() string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	b := make([]byte, epochLength)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b)
}

// readEpoch takes the epoch that the stream holds, or gives it one. One of the name
// stale is not the stream's any more: another takes its place, once for all nodes.
func (s *stream) readEpoch(stale string) error {
	for range epochTries {
		last, err := s.lastSync(s.stored + tokenEpoch)
		if err != nil {
			return err
		}
		var seq uint64
		if last != nil {
			seq = last.seq
			r, err := decode(last.data)
			bad := err != nil || r.epoch == ""
			if bad && stale == "" {
				return fmt.Errorf("epoch of %s: %w", s.name, errFormat)
			}
			if !bad && r.epoch != stale {
				s.setEpoch(r, mark{seq, last.time()})
				return nil
			}
		}
		r := record{epoch: newEpoch()}
		m, err := s.writeEpoch(r, seq)
		if err == nil {
			s.setEpoch(r, m)
			return nil
		}
		if !errors.Is(err, errConflict) {
			return err
		}
		// Another node has written one.
	}
	return errConflict
}

// writeEpoch keeps the epoch's name in the stream itself: with the publications it
// is lost, and so never names others than those it began with.
func (s *stream) writeEpoch(r record, last uint64) (mark, error) {
	seq, err := s.storeSync(s.stored+tokenEpoch, expectLast(last), encodeEpoch(r.epoch, r.previous))
	return mark{seq, time.Now()}, err
}

// setEpoch takes what stands, or came, at m.
func (s *stream) setEpoch(r record, m mark) {
	if m.seq > s.mark.seq || *s.epoch.Load() != r.epoch {
		s.mark = m
	}
	if old := *s.epoch.Load(); old != r.epoch {
		e := strings.Clone(r.epoch)
		s.epoch.Store(&e)
		s.began.Store(cmp.Or(r.previous, m.seq))
		if old != "" {
			s.log.Warn("history has a new epoch: clients are told that they can't recover", "epoch", e)
		}
	}
}

// doubt lets positions be compared one by one for a while.
func (s *stream) doubt() { s.suspect.Store(time.Now().Add(suspectTime).UnixNano()) }

func (s *stream) doubted() bool { return time.Now().UnixNano() < s.suspect.Load() }
