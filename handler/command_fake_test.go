package handler

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// fakeLoop runs its posts when the test says so, on the test's goroutine.
type fakeLoop struct {
	mu       sync.Mutex
	wake     chan struct{}
	queue    []func()
	used     int
	room     int
	sessions map[session.ID]*fakePeer
}

func newFakeLoop() *fakeLoop {
	return &fakeLoop{wake: make(chan struct{}, 1), room: 1 << 20, sessions: make(map[session.ID]*fakePeer)}
}

func (l *fakeLoop) Index() int { return 3 }

func (l *fakeLoop) Reserve(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used+n > l.room {
		return false
	}
	l.used += n
	return true
}

func (l *fakeLoop) Release(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used -= n
}

func (l *fakeLoop) put(f func()) {
	l.mu.Lock()
	l.queue = append(l.queue, f)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *fakeLoop) Post(n int, id session.ID, f func(*session.Session)) {
	l.put(func() {
		l.Release(n)
		if p := l.sessions[id]; p != nil && !p.s.Closed() {
			f(&p.s)
			return
		}
		f(nil)
	})
}

func (l *fakeLoop) PostTask(n int, t session.Task) {
	l.put(func() {
		if t.Run() {
			l.PostTask(n, t)
			return
		}
		l.Release(n)
	})
}

func (l *fakeLoop) PostClose(id session.ID, r session.Reason, code uint16, text string) {
	l.put(func() {
		if p := l.sessions[id]; p != nil {
			p.CloseWith(r, code, text)
		}
	})
}

// turn runs what is there, and what comes of it.
func (l *fakeLoop) turn() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.mu.Unlock()
			return
		}
		f := l.queue[0]
		l.queue = l.queue[1:]
		l.mu.Unlock()
		f()
	}
}

// until runs the loop till ok.
func (l *fakeLoop) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for {
		l.turn()
		if ok() {
			return
		}
		select {
		case <-l.wake:
		case <-time.After(5 * time.Millisecond): // what is not of the loop has no signal
		case <-limit.C:
			t.Fatalf("still waiting: %s", what)
		}
	}
}

func (l *fakeLoop) inUse() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}

// fakePeer is a session and the peer that it serves.
type fakePeer struct {
	t       testing.TB
	rig     *rig
	s       session.Session
	out     [][]byte // messages not yet looked at
	kinds   []bool
	reason  session.Reason
	code    uint16
	closed  int
	beating bool
	pinged  bool
	expiry  int64
	pending int
}

func (p *fakePeer) WriteMessage(payload []byte, binary bool) {
	if p.s.Closed() {
		p.t.Error("written after the close")
	}
	p.out = append(p.out, bytes.Clone(payload))
	p.kinds = append(p.kinds, binary)
}

// WriteFrame takes the header off, so that all output is messages.
func (p *fakePeer) WriteFrame(frame []byte) {
	for len(frame) > 0 {
		size, head := int(frame[1]), 2
		switch frame[1] {
		case 126:
			size, head = int(binary.BigEndian.Uint16(frame[2:])), 4
		case 127:
			size, head = int(binary.BigEndian.Uint64(frame[2:])), 10
		}
		p.WriteMessage(frame[head:head+size], frame[0] == 0x82)
		frame = frame[head+size:]
	}
}

func (p *fakePeer) Pending() int { return p.pending }

func (p *fakePeer) CloseWith(r session.Reason, code uint16, _ string) {
	if p.s.Closed() {
		return
	}
	p.reason, p.code = r, code
	p.s.State = session.StateClosed
	p.closed++
	p.rig.c.Closed(&p.s, r)
}

func (p *fakePeer) StartHeartbeat() { p.beating = true }

func (p *fakePeer) Pong() bool {
	was := p.pinged
	p.pinged = false
	return was
}

func (p *fakePeer) SetExpiry(unix int64) { p.expiry = unix }
func (p *fakePeer) Remote() string       { return "192.0.2.1:1" }

// replies takes what was sent to the peer, decoded.
func (p *fakePeer) replies() []*pb.Reply {
	p.t.Helper()
	var out []*pb.Reply
	for _, msg := range p.out {
		var got []*pb.Reply
		var d pb.ReplyDecoder = pb.NewJSONReplyDecoder(msg)
		if p.s.Encoding == session.EncodingProtobuf {
			d = pb.NewProtobufReplyDecoder(msg)
		}
		for {
			r, err := d.Decode()
			if err == io.EOF {
				break
			}
			if err != nil {
				p.t.Fatalf("sent %q: %v", msg, err)
			}
			out = append(out, r)
			got = append(got, r)
		}
		p.spelled(msg, got)
	}
	p.out, p.kinds = nil, nil
	return out
}

// spelled checks that a message is, byte for byte, what the SDKs' own encoders
// make of it; maps aside, which have no order.
func (p *fakePeer) spelled(msg []byte, got []*pb.Reply) {
	p.t.Helper()
	var want []byte
	for i, r := range got {
		if r.Connect != nil && len(r.Connect.Subs) > 1 || r.Presence != nil {
			return
		}
		if p.s.Encoding == session.EncodingProtobuf {
			raw, err := r.MarshalCF()
			if err != nil {
				p.t.Fatal(err)
			}
			want = append(binary.AppendUvarint(want, uint64(len(raw))), raw...)
			continue
		}
		if i > 0 {
			want = append(want, '\n')
		}
		want = r.AppendJSON(want)
	}
	if !bytes.Equal(msg, want) {
		p.t.Fatalf("sent %q, want %q", msg, want)
	}
}

// said is what was sent, as lines of JSON.
func (p *fakePeer) said() string {
	p.t.Helper()
	var lines []string
	for _, r := range p.replies() {
		lines = append(lines, string(r.AppendJSON(nil)))
	}
	return strings.Join(lines, "\n")
}

func (p *fakePeer) wants(want ...string) {
	p.t.Helper()
	if got := p.said(); got != strings.Join(want, "\n") {
		p.t.Fatalf("the peer was told\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func (p *fakePeer) wantsClose(r session.Reason) {
	p.t.Helper()
	if !p.s.Closed() || p.reason != r || p.code != r.Info().Code {
		p.t.Fatalf("closed %v for %v with %d, want %v", p.s.Closed(), p.reason, p.code, r)
	}
}

func (p *fakePeer) wantsOpen() {
	p.t.Helper()
	if p.s.Closed() {
		p.t.Fatalf("closed for %v", p.reason)
	}
}

// idle checks that the session holds nothing of the handler's.
func (p *fakePeer) idle() {
	p.t.Helper()
	if p.s.Work != nil {
		p.t.Errorf("an idle session holds %+v", p.s.Work)
	}
	if n := p.rig.loop.inUse(); n != 0 {
		p.t.Errorf("%d bytes of the inbox stay taken", n)
	}
}

// message makes a message of commands that are written in JSON.
func (p *fakePeer) message(commands ...string) []byte {
	p.t.Helper()
	if p.s.Encoding != session.EncodingProtobuf {
		return []byte(strings.Join(commands, "\n"))
	}
	var out []byte
	for _, text := range commands {
		var cmd pb.Command
		if err := protocol.Decode([]byte(text), protocol.JSON, &cmd); err != nil {
			p.t.Fatalf("%s: %v", text, err)
		}
		raw, err := cmd.MarshalCF()
		if err != nil {
			p.t.Fatal(err)
		}
		out = append(binary.AppendUvarint(out, uint64(len(raw))), raw...)
	}
	return out
}

// send is one message of the peer's. Its bytes are destroyed afterwards, as the
// loop's buffer is.
func (p *fakePeer) send(commands ...string) {
	p.t.Helper()
	msg := p.message(commands...)
	p.rig.c.Message(&p.s, msg, p.s.Encoding == session.EncodingProtobuf)
	for i := range msg {
		msg[i] = 'x'
	}
}

func (p *fakePeer) connect(token string) {
	p.t.Helper()
	t, _ := json.Marshal(token)
	p.send(`{"id":1,"connect":{"token":` + string(t) + `}}`)
	p.rig.loop.until(p.t, "the connect reply", func() bool { return len(p.out) > 0 || p.s.Closed() })
	p.wantsOpen()
	if r := p.replies(); len(r) != 1 || r[0].Connect == nil {
		p.t.Fatalf("connect was answered with %v", r)
	}
}

// fakeVerifier knows tokens by what they say: "user", or one it was given.
// Those that begin with "slow" are for the pool.
type fakeVerifier struct {
	claims map[string]*auth.Claims
	subs   map[string]*auth.SubscriptionClaims
	gate   chan struct{} // where set, slow tokens wait for it
}

var errBadSignature = errors.Join(auth.ErrTokenInvalid, errors.New("signature"))

func (v *fakeVerifier) failure(token string) error {
	switch strings.TrimPrefix(token, "slow-") {
	case "bad":
		return errBadSignature
	case "expired":
		return auth.ErrTokenExpired
	case "keys":
		return auth.ErrKeysUnavailable
	case "panic":
		panic("verifier")
	}
	return nil
}

func (v *fakeVerifier) Connect(token string) (*auth.Claims, error) {
	if !v.Cheap(token) && v.gate != nil {
		<-v.gate
	}
	if err := v.failure(token); err != nil {
		return nil, err
	}
	if c := v.claims[token]; c != nil {
		return c, nil
	}
	return &auth.Claims{Subject: strings.TrimPrefix(token, "slow-")}, nil
}

func (v *fakeVerifier) Subscription(token string) (*auth.SubscriptionClaims, error) {
	if err := v.failure(token); err != nil {
		return nil, err
	}
	if c := v.subs[token]; c != nil {
		return c, nil
	}
	return nil, errBadSignature
}

func (v *fakeVerifier) Cheap(token string) bool { return !strings.HasPrefix(token, "slow-") }

// fakeBroker keeps publications and what it has read until the test answers,
// where it is told to.
type fakeBroker struct {
	*topic.Memory
	mu   sync.Mutex
	hold bool
	held []func(error)
	err  error

	slow  bool // reads wait in reads
	reads []func()
	fail  error // of reads
}

func (b *fakeBroker) Publish(name string, p *topic.Publication, o topic.PublishOptions, done func(topic.Position, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.hold:
		b.held = append(b.held, func(err error) {
			if err != nil {
				done(topic.Position{}, err)
				return
			}
			b.Memory.Publish(name, p, o, done)
		})
	case b.err != nil:
		done(topic.Position{}, b.err)
	default:
		b.Memory.Publish(name, p, o, done)
	}
}

// History reads at once, so that a slow answer is an old one.
func (b *fakeBroker) History(name string, f topic.Filter, done func([]*topic.Publication, topic.Position, error)) {
	b.mu.Lock()
	slow, fail := b.slow, b.fail
	b.mu.Unlock()
	answer := done
	if fail != nil {
		answer = func([]*topic.Publication, topic.Position, error) { done(nil, topic.Position{}, fail) }
	}
	if !slow {
		b.Memory.History(name, f, answer)
		return
	}
	b.Memory.History(name, f, func(pubs []*topic.Publication, at topic.Position, err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.reads = append(b.reads, func() { answer(pubs, at, err) })
	})
}

// answer lets the reads go that wait, the last first.
func (b *fakeBroker) answer() int {
	b.mu.Lock()
	reads := b.reads
	b.reads, b.slow = nil, false
	b.mu.Unlock()
	for i := len(reads) - 1; i >= 0; i-- {
		reads[i]()
	}
	return len(reads)
}

// rig is a handler with all it needs.
type rig struct {
	t        testing.TB
	c        *Commands
	loop     *fakeLoop
	topics   *topic.Topics
	broker   *fakeBroker
	registry *session.Registry
	verifier *fakeVerifier
	pool     *Pool
	now      time.Time
	log      *syncBuffer
	slot     uint32
	closed   bool
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type rigOptions struct {
	Options
	Pool   PoolOptions
	Topics topic.Options
}

func newRig(t testing.TB, change ...func(*rigOptions)) *rig {
	t.Helper()
	r := &rig{
		t: t, loop: newFakeLoop(), registry: session.NewRegistry(), now: time.Unix(1_700_000_000, 0), log: &syncBuffer{},
		broker:   &fakeBroker{Memory: topic.NewMemory(topic.MemoryOptions{})},
		verifier: &fakeVerifier{claims: map[string]*auth.Claims{}, subs: map[string]*auth.SubscriptionClaims{}},
	}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	o := rigOptions{
		Options: Options{Node: 77, Version: "v", PingInterval: 25 * time.Second, Logger: log, Now: func() time.Time { return r.now }},
		Pool:    PoolOptions{Workers: 4, Logger: log},
		Topics: topic.Options{
			Default: topic.NamespaceOptions{AllowSubscribeForClient: true, AllowPublishForClient: true},
			Namespaces: []topic.NamespaceOptions{
				{Name: "closed"},
				{Name: "open", AllowSubscribeForClient: true, AllowSubscribeForAnonymous: true, AllowPublishForClient: true, AllowPublishForAnonymous: true},
				{Name: "chat", AllowSubscribeForClient: true, AllowPublishForSubscriber: true},
			},
			Broker: r.broker, Encoders: Encoders(), Joined: JoinEncoders(), Node: 77, MaxSubscriptions: 4, MaxLength: 40,
			PositionInterval: time.Hour, JoinLeaveInterval: time.Hour,
			Lost: func(s *session.Session, name string, server bool) { r.c.LoseSubscription(s, name, server) },
		},
	}
	for _, f := range change {
		f(&o)
	}
	var err error
	if r.topics, err = topic.New(o.Topics); err != nil {
		t.Fatal(err)
	}
	r.pool = NewPool(o.Pool)
	o.Options.Topics, o.Options.Pool, o.Options.Registry, o.Options.Verifier = r.topics, r.pool, r.registry, r.verifier
	if r.c, err = New(o.Options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func (r *rig) close() {
	r.c.Close()
	if err := r.pool.Close(r.t.Context()); err != nil && r.t.Context().Err() == nil {
		r.t.Error(err)
	}
	r.pool.done.Wait()
	r.loop.turn()
	if r.closed {
		return
	}
	r.closed = true
	for _, p := range r.loop.sessions {
		p.CloseWith(session.ReasonShutdown, 0, "")
	}
	r.broker.answer()
	r.loop.turn()
	if err := r.topics.Close(); err != nil {
		r.t.Error(err)
	}
	// Contexts that end tell of it on goroutines of their own.
	r.loop.until(r.t, "the inbox's room at the end", func() bool { return r.loop.inUse() == 0 })
}

// open is a new peer; identity is what the handshake found.
func (r *rig) open(e session.Encoding, identity any) *fakePeer {
	r.slot++
	p := &fakePeer{t: r.t, rig: r}
	id := session.MakeID(3, r.slot, r.slot)
	p.s.Open(p, r.loop, id)
	p.s.Encoding = e
	r.loop.sessions[id] = p
	r.c.Open(&p.s, identity)
	return p
}

// user is a peer that is connected.
func (r *rig) user(e session.Encoding, name string) *fakePeer {
	r.t.Helper()
	p := r.open(e, nil)
	p.connect(name)
	return p
}

// publish is a publication of a backend's, which reaches all before it returns.
func (r *rig) publish(name, data string, change ...func(*topic.PublishRequest)) topic.Position {
	r.t.Helper()
	ns, err := r.topics.Namespace(name)
	if err != nil {
		r.t.Fatal(err)
	}
	var q topic.PublishRequest
	for _, f := range change {
		f(&q)
	}
	var got topic.Position
	r.topics.Publish(ns, name, &topic.Publication{Data: []byte(data)}, q, func(at topic.Position, err error) {
		if got = at; err != nil {
			r.t.Fatal(err)
		}
	})
	r.loop.turn()
	return got
}

// namespaces adds to those of the rig.
func namespaces(all ...topic.NamespaceOptions) func(*rigOptions) {
	return func(o *rigOptions) { o.Topics.Namespaces = append(o.Topics.Namespaces, all...) }
}

// kept is a namespace whose topics keep their publications.
func kept(name string, change ...func(*topic.NamespaceOptions)) topic.NamespaceOptions {
	o := topic.NamespaceOptions{Name: name, AllowSubscribeForClient: true, HistorySize: 5, HistoryTTL: time.Hour}
	for _, f := range change {
		f(&o)
	}
	return o
}

// both runs a test in each encoding.
func both(t *testing.T, f func(t *testing.T, e session.Encoding)) {
	t.Run("json", func(t *testing.T) { f(t, session.EncodingJSON) })
	t.Run("protobuf", func(t *testing.T) { f(t, session.EncodingProtobuf) })
}
