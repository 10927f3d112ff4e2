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

func (p *fakePeer) Pending() int { return 0 }

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
		}
	}
	p.out, p.kinds = nil, nil
	return out
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

// fakeBroker keeps publications until the test answers, where it is told to.
type fakeBroker struct {
	*topic.Memory
	mu   sync.Mutex
	hold bool
	held []func(error)
	err  error
}

func (b *fakeBroker) Publish(name string, p *topic.Publication, done func(topic.Position, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.hold:
		b.held = append(b.held, func(err error) {
			if err != nil {
				done(topic.Position{}, err)
				return
			}
			b.Memory.Publish(name, p, done)
		})
	case b.err != nil:
		done(topic.Position{}, b.err)
	default:
		b.Memory.Publish(name, p, done)
	}
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
		broker:   &fakeBroker{Memory: topic.NewMemory()},
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
			Broker: r.broker, Encoders: Encoders(), MaxSubscriptions: 4, MaxLength: 40,
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

// both runs a test in each encoding.
func both(t *testing.T, f func(t *testing.T, e session.Encoding)) {
	t.Run("json", func(t *testing.T) { f(t, session.EncodingJSON) })
	t.Run("protobuf", func(t *testing.T) { f(t, session.EncodingProtobuf) })
}
