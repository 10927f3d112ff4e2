package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	// errNoKey: there is nothing of that key, or not any more.
	errNoKey = errors.New("cluster: no such key")
	// errRevision: another node has written the key meanwhile.
	errRevision = errors.New("cluster: key has changed")
)

// Headers of a key-value bucket (ADR-8 of NATS).
const (
	kvOperation = "KV-Operation"
	kvPurge     = "PURGE"
)

const (
	// markTTL is how long the mark of a key that was taken out stays: as long as who
	// has read it before may want to write it.
	markTTL = time.Minute
	// openWait is between two attempts to open a bucket.
	openWait = time.Second
)

// bucket is a key-value bucket of JetStream. It is written and read by the stream
// below it, which says more than the bucket's own interface: each key can have
// a time to live, also where it is changed, and a write names the revision that
// it takes the place of.
//
// Reads ask the leader: a replica that lags behind would call a refresh token
// that was just made one that was used twice. Safe from any goroutine.
type bucket struct {
	link    *Link
	stream  string
	subject string // with a dot behind it
	handle  atomic.Pointer[jetstream.Stream]
	round   atomic.Pointer[context.CancelFunc] // ends the watch's consumer
}

func newBucket(l *Link, kind string) *bucket {
	// A site's server and its hub see one another's subjects: each has buckets of
	// its own.
	name := l.Prefix() + "_"
	if site := l.opts.Server.Leaf.Site; site != "" {
		name += site + "_"
	}
	name += kind
	b := &bucket{link: l, stream: "KV_" + name, subject: "$KV." + name + "."}
	l.OnChange(b.again, b.again)
	return b
}

// again has the watch begin anew.
func (b *bucket) again() {
	if end := b.round.Load(); end != nil {
		(*end)()
	}
}

// open makes the bucket, or finds it; it tries until it can, or ctx ends.
func (b *bucket) open(ctx context.Context) error {
	config := jetstream.StreamConfig{
		Name: b.stream, Subjects: []string{b.subject + ">"}, Storage: jetstream.FileStorage, Replicas: b.link.Replicas(),
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DenyDelete: true, AllowRollup: true, AllowMsgTTL: true,
	}
	for said := ""; ; {
		ask, cancel := context.WithTimeout(ctx, b.link.Timeout())
		s, err := b.link.JetStream().CreateOrUpdateStream(ask, config)
		cancel()
		if err == nil {
			b.handle.Store(&s)
			return nil
		}
		// One line for each thing that is wrong.
		if b.link.Connected() && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			b.link.log.Warn("waiting for a bucket of the broker", "bucket", b.stream, "err", err)
		}
		if !pauseFor(ctx, openWait, nil) {
			return ctx.Err()
		}
	}
}

// opened is the stream; ErrUnavailable: the bucket has not been opened.
func (b *bucket) opened() (jetstream.Stream, error) {
	s := b.handle.Load()
	if s == nil {
		return nil, ErrUnavailable
	}
	return *s, nil
}

// get returns the value of a key and its revision; errNoKey comes with that of
// the mark that the key has left, if there is one.
func (b *bucket) get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	s, err := b.opened()
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.link.Timeout())
	defer cancel()
	m, err := s.GetLastMsgForSubject(ctx, b.subject+key)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, 0, errNoKey
	case err != nil:
		return nil, 0, b.fault(err)
	case marked(m.Header):
		return nil, m.Sequence, errNoKey
	}
	return m.Data, m.Sequence, nil
}

// marked tells whether a message is not a value, but says that there is none.
func marked(h nats.Header) bool { return h.Get(kvOperation) != "" || h.Get("Nats-Marker-Reason") != "" }

// put writes a key in the place of a revision (0: of none), to be forgotten after
// ttl (0: never), and returns the new revision. It fails with errRevision.
func (b *bucket) put(ctx context.Context, key string, value []byte, revision uint64, ttl time.Duration) (uint64, error) {
	return b.publish(ctx, &nats.Msg{Subject: b.subject + key, Data: value}, ttl, jetstream.WithExpectLastSequencePerSubject(revision))
}

// write is put in the place of whatever stands there.
func (b *bucket) write(ctx context.Context, key string, value []byte, ttl time.Duration) (uint64, error) {
	return b.publish(ctx, &nats.Msg{Subject: b.subject + key, Data: value}, ttl)
}

// remove takes out a key of that revision. It fails with errRevision.
func (b *bucket) remove(ctx context.Context, key string, revision uint64) error {
	m := &nats.Msg{Subject: b.subject + key, Header: nats.Header{}}
	m.Header.Set(kvOperation, kvPurge)
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	_, err := b.publish(ctx, m, markTTL, jetstream.WithExpectLastSequencePerSubject(revision))
	return err
}

func (b *bucket) publish(ctx context.Context, m *nats.Msg, ttl time.Duration, opts ...jetstream.PublishOpt) (uint64, error) {
	if _, err := b.opened(); err != nil {
		return 0, err
	}
	if ttl > 0 {
		opts = append(opts, jetstream.WithMsgTTL(max(ttl, time.Second)))
	}
	ctx, cancel := context.WithTimeout(ctx, b.link.Timeout())
	defer cancel()
	ack, err := b.link.JetStream().PublishMsg(ctx, m, opts...)
	if err != nil {
		return 0, b.fault(err)
	}
	return ack.Sequence, nil
}

// drop forgets all keys of a pattern but the keep that were written last.
func (b *bucket) drop(ctx context.Context, pattern string, keep int) error {
	s, err := b.opened()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.link.Timeout())
	defer cancel()
	opts := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(b.subject + pattern)}
	if keep > 0 {
		opts = append(opts, jetstream.WithPurgeKeep(uint64(keep)))
	}
	if err := s.Purge(ctx, opts...); err != nil {
		return b.fault(err)
	}
	return nil
}

// fault is an error of JetStream in the words of this package: whatever is not a
// conflict is that the broker can't do it now.
func (b *bucket) fault(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
		return errRevision
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// watching is what a bucket's watcher is to do.
type watching struct {
	pattern string
	// begin is asked for the first sequence wanted, each time that the watch begins
	// anew; 0: what comes from now on.
	begin func() uint64
	// begun, where set, is called once that is settled: what is written from then on
	// is told of.
	begun func()
	// each is told of each message, in order.
	each func(key string, m jetstream.Msg, at *jetstream.MsgMetadata)
	// caught is called whenever all that there was has been told; it may be called
	// again.
	caught func()
	// headers: the values are not wanted.
	headers bool
	batch   int  // how many are asked for at once
	once    bool // return after caught
}

const (
	// watchCheck is how long a watch hears nothing before it looks whether its stream
	// is still the one that it began with.
	watchCheck = 30 * time.Second
	// caughtCheck is the same before all has been told that there was: what was still
	// to come may have expired, and nothing tells of that.
	caughtCheck = time.Second
	// watchBeat is how often the server says that it is there, and caughtMost after
	// how many looks that find something to come, and nothing that has, a watch begins
	// anew: twice the beat, as without them.
	watchBeat  = 5 * time.Second
	caughtMost = 10
)

var (
	// errStreamAnew: sequences don't mean any more what they meant before.
	errStreamAnew = errors.New("cluster: stream has begun anew")
	// errSilent: there is something to be told, which does not come.
	errSilent = errors.New("cluster: messages of a stream do not come")
)

// watch tells of what is written to the keys of a pattern, until ctx ends. A
// consumer ends with the connection: the stream that is there when it is back may
// have lost its end, or be another one, and then a consumer that goes on at its
// place would pass over what is new.
func (b *bucket) watch(ctx context.Context, w watching) {
	for ctx.Err() == nil {
		round, end := context.WithCancel(ctx)
		b.round.Store(&end)
		if !b.link.Connected() {
			pauseFor(round, openWait/4, nil) // ctx is looked at next
			end()
			continue
		}
		done, err := b.follow(round, w)
		end()
		if done || ctx.Err() != nil {
			return
		}
		if err == nil {
			continue
		}
		b.link.log.Debug("watch of a bucket begins anew", "bucket", b.stream, "err", err)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			b.link.log.Error("bucket of the broker is lost, and made anew", "bucket", b.stream)
			// The server has ended its consumers, and may be taking its files away still:
			// one made meanwhile would lose its own, and answer nobody.
			pauseFor(ctx, openWait, nil)
			_ = b.open(ctx) // ctx is looked at next
			continue
		}
		pauseFor(ctx, openWait/4, nil)
	}
}

// follow watches with one consumer, until it fails or ctx ends.
func (b *bucket) follow(ctx context.Context, w watching) (done bool, err error) {
	config := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{b.subject + w.pattern}, HeadersOnly: w.headers, InactiveThreshold: time.Minute,
		MaxResetAttempts: 1, // watch has a better way, which ends when it is to
	}
	if seq := w.begin(); seq > 0 {
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, seq
	} else {
		config.DeliverPolicy = jetstream.DeliverNewPolicy
	}
	ask, cancel := context.WithTimeout(ctx, b.link.Timeout())
	defer cancel()
	stream, err := b.link.JetStream().Stream(ask, b.stream)
	if err != nil {
		return false, err
	}
	made, last := stream.CachedInfo().Created, uint64(0)
	cons, err := b.link.JetStream().OrderedConsumer(ask, b.stream, config)
	if err != nil {
		return false, err
	}
	if w.begun != nil {
		w.begun()
	}
	caught := cons.CachedInfo().NumPending == 0
	if caught {
		w.caught()
		if w.once {
			return true, nil
		}
	}
	it, err := cons.Messages(jetstream.PullMaxMessages(w.batch), jetstream.PullExpiry(30*time.Second), jetstream.PullHeartbeat(watchBeat))
	if err != nil {
		return false, err
	}
	defer it.Stop()
	defer context.AfterFunc(ctx, it.Stop)()
	var at *jetstream.MsgMetadata // of the last one
	for silent := 0; ; {
		check := watchCheck
		if !caught {
			check = caughtCheck
		}
		m, err := it.Next(jetstream.NextMaxWait(check))
		switch {
		case err == nil:
			silent = 0
			if at, err = m.Metadata(); err != nil {
				return false, err
			}
			last = at.Sequence.Stream
			w.each(strings.TrimPrefix(m.Subject(), b.subject), m, at)
			if at.NumPending > 0 {
				continue
			}
		case errors.Is(err, nats.ErrTimeout) && caught:
			if err = b.same(ctx, stream, made, last); err != nil {
				return false, err
			}
			continue
		case errors.Is(err, nats.ErrTimeout):
			nothing, err := b.nothingLeft(ctx, cons, at)
			if err != nil {
				return false, err
			}
			if !nothing {
				if silent++; silent >= caughtMost {
					return false, errSilent
				}
				continue
			}
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return false, nil
		default:
			return false, err
		}
		caught = true
		w.caught()
		if w.once {
			return true, nil
		}
	}
}

// nothingLeft tells whether a consumer has sent all that there was, and at, its
// last message here, was the last of that.
func (b *bucket) nothingLeft(ctx context.Context, cons jetstream.Consumer, at *jetstream.MsgMetadata) (bool, error) {
	ask, cancel := context.WithTimeout(ctx, b.link.Timeout())
	defer cancel()
	info, err := cons.Info(ask)
	if err != nil {
		return false, err
	}
	told := uint64(0) // of this consumer: another one may have taken its place
	if at != nil && at.Consumer == info.Name {
		told = at.Sequence.Consumer
	}
	return info.NumPending == 0 && info.Delivered.Consumer == told, nil
}

// same fails where a stream is not the one that was made then, or has lost what it
// had told of.
func (b *bucket) same(ctx context.Context, stream jetstream.Stream, made time.Time, last uint64) error {
	ask, cancel := context.WithTimeout(ctx, b.link.Timeout())
	defer cancel()
	info, err := stream.Info(ask)
	if err == nil && (!info.Created.Equal(made) || info.State.LastSeq < last) {
		err = errStreamAnew
	}
	return err
}

// keyOf is a name as one token of a key; longKey is from where on only its hash
// is.
func keyOf(name string) string {
	const longKey = 128
	if len(name) > longKey {
		sum := sha256.Sum256([]byte(name))
		return "=h" + base64.RawURLEncoding.EncodeToString(sum[:]) // no escape begins so
	}
	var k strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			k.WriteByte(c)
		default:
			fmt.Fprintf(&k, "=%02X", c)
		}
	}
	return k.String()
}

// unkey is the name of a key that keyOf has made of a short one.
func unkey(key string) (name string, ok bool) {
	if !strings.Contains(key, "=") {
		return key, key != ""
	}
	out := make([]byte, 0, len(key))
	for i := 0; i < len(key); i++ {
		if key[i] != '=' {
			out = append(out, key[i])
			continue
		}
		if i+2 >= len(key) {
			return "", false
		}
		hi, lo := strings.IndexByte(keyDigits, key[i+1]), strings.IndexByte(keyDigits, key[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	return string(out), true
}

const keyDigits = "0123456789ABCDEF"
