package handler

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"perch/auth"
	"perch/internal/pace"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// Error is an answer to a command that could not be done. What a registered
// method returns as one goes to the client as it is.
type Error = protocol.Error

// Verifier decides about tokens. Its errors are those of package auth. Safe
// from any goroutine.
type Verifier interface {
	Connect(token string) (*auth.Claims, error)
	Subscription(token string) (*auth.SubscriptionClaims, error)
	// Cheap tells whether verifying token is light enough for a loop.
	Cheap(token string) bool
}

// Identity is what the opening handshake found out of a peer; it goes to
// Commands.Open.
type Identity struct {
	// Claims are of the token that was verified before the upgrade; nil: none was
	// sent.
	Claims *auth.Claims
	// FramePings says that the peer is pinged with frames of RFC 6455 and not with
	// the protocol's own.
	FramePings bool
	// Headers are those of the handshake that go with calls of the backend, as lines
	// of "Name: value" with CRLF.
	Headers string
	// Uni is what the handshake of a unidirectional endpoint said; nil: nothing.
	Uni *UniRequest
}

// Require says where a peer must have shown a token.
type Require string

// The values of auth.require.
const (
	RequireConnect   Require = "connect"   // in the handshake or the connect command
	RequireHandshake Require = "handshake" // before the upgrade
	RequireNone      Require = "none"      // a peer without one is anonymous
)

// Overflow says what a command meets that there is no room for.
type Overflow string

// The values of pool.overflow.
const (
	OverflowReply Overflow = "reply" // error 111
	OverflowClose Overflow = "close" // 3013
)

// Options configure Commands. Topics, Registry, Verifier and Pool must be set.
type Options struct {
	Node     session.Node
	Topics   *topic.Topics
	Registry *session.Registry
	Verifier Verifier
	// Revoked reports whether what a token says has been revoked since it was
	// verified; nil: never. Called on loops.
	Revoked func(*auth.Claims) bool
	Pool    *Pool
	Logger  *slog.Logger
	// Version is what the connect reply says.
	Version string

	Require  Require // "": RequireConnect
	Insecure bool
	// PingInterval is told to clients; 0 tells them that there are no pings.
	PingInterval time.Duration
	// ExpiredGrace is how long a client may be late with a refresh; 0 means 25 s.
	ExpiredGrace time.Duration
	// UserPersonal subscribes each session with a user to its PersonalTopic.
	UserPersonal      bool
	PersonalNamespace string

	Overflow Overflow // "": OverflowReply
	// SessionBytes bounds the commands of one session that wait for an earlier
	// one; 0 means 256 KiB.
	SessionBytes int
	// ReplyBytes is what may wait for a peer (Endpoint.PendingBytes of package
	// netpoll). What a subscription has missed is recovered where it fits in, a
	// history is cut to it, and a longer answer is sent where nothing else waits and
	// it has eight times that at most; 0: nothing bounds them.
	ReplyBytes int
	// CommandRate bounds the commands of a session in a second, with a burst of as
	// many; 0: no bound. What is above it meets Overflow.
	CommandRate int
	// SessionsPerUser bounds the sessions of a user; 0: no bound. The next ones are
	// closed with 3504.
	SessionsPerUser int
	// CallTimeout bounds a call of a registered method, from its arrival; 0 means
	// 10 s.
	CallTimeout time.Duration
	Backend     BackendOptions
	// Peers are the other nodes; nil: there never are any.
	Peers Peers
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

const (
	defaultExpiredGrace = 25 * time.Second
	defaultSessionBytes = 256 << 10
	defaultCallTimeout  = 10 * time.Second

	// maxBuffer is the largest buffer for replies that a loop keeps.
	maxBuffer = 64 << 10
	// unsaidEvery is how often replies are logged that can't be encoded, of one
	// method: a method that gives what is no JSON does so for each of its calls.
	unsaidEvery = 10 * time.Second
	// maxTTL is the longest time, in seconds, that a client is told: a year. SDKs
	// make a timer of it.
	maxTTL = 365 * 24 * 3600
)

// Commands is the session.Handler of the Centrifuge client protocol.
type Commands struct {
	opts     Options
	log      *slog.Logger
	topics   *topic.Topics
	pool     *Pool
	counters Counters
	// ctx ends with Close; the contexts of calls are its children.
	ctx  context.Context
	stop context.CancelFunc
	// began is where the rates' clock begins: it does not jump.
	began time.Time

	// asking are the lanes of the backend's methods; nil: it is not asked.
	asking  askingLanes
	methods atomic.Pointer[map[string]*method]
	send    atomic.Pointer[sender]
	// unsaid and unsaidRPC pick what is logged of replies that can't be encoded,
	// unsaidRPC of the backend's answers to calls.
	unsaid, unsaidRPC pace.Seldom

	// Each element is its loop's alone, which makes it when it first needs it.
	loops [session.MaxLoops]*loopState
}

// loopState is what one loop keeps. It is touched there and nowhere else.
type loopState struct {
	buf []byte
	cmd *protocol.Command // empty; nil while one is done
	// paces are the sessions' rates of commands.
	paces pace.Table[session.ID]
	// positions and id are where the id of an event is put together.
	positions, id []byte
	// expiries are of the subscriptions that end before their session, in Unix
	// seconds, by topic. Few sessions have any.
	expiries map[session.ID]map[string]int64
	// refreshing are the sessions and, with a topic, the subscriptions of which the
	// backend is asked whether they go on: the numbers of the questions, of which
	// questions is the last.
	refreshing map[refreshed]uint64
	questions  uint64
}

// The encodings have the same numbers in both tables.
const (
	_ = uint8(protocol.JSON) - uint8(session.EncodingJSON)
	_ = uint8(session.EncodingJSON) - uint8(protocol.JSON)
	_ = uint8(protocol.Protobuf) - uint8(session.EncodingProtobuf)
	_ = uint8(session.EncodingProtobuf) - uint8(protocol.Protobuf)
)

var (
	_ session.PartHandler = (*Commands)(nil)
	_ session.Handler     = (*Commands)(nil)
	_ APISessions         = (*Commands)(nil)
)

// New makes the handler.
func New(o Options) (*Commands, error) {
	if o.Topics == nil || o.Registry == nil || o.Verifier == nil || o.Pool == nil {
		return nil, errors.New("handler: topics, registry, verifier and pool must be set")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Require == "" {
		o.Require = RequireConnect
	}
	if o.Overflow == "" {
		o.Overflow = OverflowReply
	}
	if o.ExpiredGrace == 0 {
		o.ExpiredGrace = defaultExpiredGrace
	}
	if o.SessionBytes == 0 {
		o.SessionBytes = defaultSessionBytes
	}
	if o.CallTimeout == 0 {
		o.CallTimeout = defaultCallTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Peers == nil {
		o.Peers = noPeers{}
	}
	c := &Commands{opts: o, log: o.Logger, topics: o.Topics, pool: o.Pool, began: time.Now()}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.openBackend()
	return c, nil
}

// Close ends the contexts of the calls under way. The pool is its owner's to
// close, afterwards. Safe from any goroutine.
func (c *Commands) Close() { c.stop() }

// Counters are the handler's counters. Safe from any goroutine.
func (c *Commands) Counters() *Counters { return &c.counters }

func encodingOf(s *session.Session) protocol.Encoding {
	if s.Encoding == session.EncodingProtobuf {
		return protocol.Protobuf
	}
	return protocol.JSON
}

// at is the state of the loop of s. Runs on the loop.
func (c *Commands) at(s *session.Session) *loopState {
	i := s.Loop().Index()
	if c.loops[i] == nil {
		c.loops[i] = &loopState{}
		c.loops[i].paces.Rate.Count = c.opts.CommandRate
	}
	return c.loops[i]
}

// Open implements session.Handler. identity is an Identity, a pointer to one,
// or nil.
func (c *Commands) Open(s *session.Session, identity any) {
	var id Identity
	switch v := identity.(type) {
	case Identity:
		id = v
	case *Identity:
		if v != nil {
			id = *v
		}
	}
	if id == (Identity{}) {
		return
	}
	needWork(s).identity = id
	if id.Claims != nil {
		// A revocation may come before the connect command.
		mark(s, id.Claims)
	}
}

// Message implements session.Handler: it runs the commands of one message, in
// their order.
func (c *Commands) Message(s *session.Session, data []byte, binary bool) {
	c.MessagePart(s, data, binary, 0, protocol.MaxCommands+1)
}

// MessagePart implements session.PartHandler.
func (c *Commands) MessagePart(s *session.Session, data []byte, binary bool, done, most int) (rest []byte, n int) {
	if binary != (s.Encoding == session.EncodingProtobuf) {
		s.Close(session.ReasonUnsupportedData) // RFC 6455, section 7.4.1
		return nil, 0
	}
	e := encodingOf(s)
	if done == 0 && protocol.IsPong(data, e) {
		c.pong(s)
		return nil, 1
	}
	frame := protocol.ContinueFrame(data, e, done)
	for ; !s.Closed(); n++ {
		if n == most {
			return frame.Rest(), n
		}
		raw, err := frame.Next()
		if err == io.EOF {
			return nil, n
		}
		if err != nil {
			c.malformed(s, err)
			return nil, n
		}
		if protocol.IsEmptyCommand(raw, e) {
			c.pong(s)
			continue
		}
		w := workOf(s)
		switch {
		case w == nil || !w.busy && !w.refused:
			c.run(s, e, raw, c.overRate(s))
		case w.busy:
			c.postpone(s, w, e, raw, c.overRate(s))
		}
	}
	return nil, n
}

// Expire implements session.Handler.
func (c *Commands) Expire(s *session.Session) { c.expire(s) }

// Closed implements session.Handler.
func (c *Commands) Closed(s *session.Session, r session.Reason) {
	if w := workOf(s); w != nil {
		if w.cancel != nil {
			w.cancel()
		}
		s.Work = nil
	}
	c.forget(s)
	if r == session.ReasonHandedOff {
		c.topics.Quiet(s)
	}
	c.topics.Leave(s)
	c.opts.Registry.Remove(s)
}

// pong takes the answer to a ping; an answer to none breaks the protocol.
func (c *Commands) pong(s *session.Session) {
	if !s.Pong() {
		c.badRequest(s, "pong without ping")
	}
}

var errForm = errors.New("handler: command out of place")

func (c *Commands) malformed(s *session.Session, err error) {
	c.counters.Malformed.Add(1)
	if c.log.Enabled(c.ctx, slog.LevelDebug) {
		c.log.Debug("message refused", "session", c.clientID(s), "err", err)
	}
	s.Close(session.ReasonBadRequest)
}

func (c *Commands) badRequest(s *session.Session, why string) {
	c.counters.Malformed.Add(1)
	if c.log.Enabled(c.ctx, slog.LevelDebug) {
		c.log.Debug("message refused", "session", c.clientID(s), "err", errForm, "reason", why)
	}
	s.Close(session.ReasonBadRequest)
}

func (c *Commands) clientID(s *session.Session) string { return s.ClientID(c.opts.Node) }

// overRate takes a command from the rate of s as it comes, not as it is done: the
// backlog of a client that kept to its rate runs at once. true: there is none left.
func (c *Commands) overRate(s *session.Session) bool {
	return c.opts.CommandRate > 0 && !c.at(s).paces.Allow(s.ID(), int64(time.Since(c.began)))
}

// run decodes one command and does it, or refuses it as over the rate.
func (c *Commands) run(s *session.Session, e protocol.Encoding, raw []byte, over bool) {
	// The command is taken out of the loop's state while it is in use: a panic
	// leaves it behind, half done.
	st := c.at(s)
	cmd := st.cmd
	if st.cmd = nil; cmd == nil {
		cmd = &protocol.Command{}
	}
	c.do(s, e, raw, over, cmd)
	*cmd = protocol.Command{}
	st.cmd = cmd
}

// do decodes raw into cmd and carries it out. cmd is used again: what outlives
// the call keeps what cmd points to, not cmd.
func (c *Commands) do(s *session.Session, e protocol.Encoding, raw []byte, over bool, cmd *protocol.Command) {
	if err := protocol.Decode(raw, e, cmd); err != nil {
		c.malformed(s, err)
		return
	}
	k := kindOf(cmd)
	switch {
	case k == kindNone && cmd.Id == 0:
		c.pong(s)
		return
	case cmd.Id == 0 && k != kindSend:
		c.badRequest(s, "no id")
		return
	case (s.State == session.StateConnected) == (k == kindConnect):
		c.badRequest(s, "connect must come first, and once")
		return
	}
	c.counters.commands[k].Add(1)
	if over {
		c.counters.RateLimited.Add(1)
		c.noRoom(s, cmd.Id, noRoomRate)
		return
	}
	switch k {
	case kindConnect:
		c.connect(s, cmd)
	case kindSubscribe:
		c.subscribe(s, cmd)
	case kindUnsubscribe:
		c.unsubscribe(s, cmd)
	case kindPublish:
		c.publish(s, cmd)
	case kindRPC:
		c.call(s, cmd)
	case kindSend:
		c.sendCommand(s, cmd)
	case kindRefresh:
		c.refresh(s, cmd)
	case kindSubRefresh:
		c.subRefresh(s, cmd)
	case kindPresence:
		c.presence(s, cmd.Id, cmd.Presence.Channel, peerPresence)
	case kindPresenceStats:
		c.presence(s, cmd.Id, cmd.PresenceStats.Channel, peerPresenceStats)
	case kindHistory:
		c.history(s, cmd)
	default:
		// PingRequest is in the protocol's files, but servers refuse it.
		c.badRequest(s, "no request")
	}
}

// reply sends r. Runs on the loop; s may be closed afterwards.
func (c *Commands) reply(s *session.Session, r *protocol.Reply) {
	if err := c.say(s, r); err != nil {
		c.notSaid(s, r.Id, &c.unsaid, err)
	}
}

// say is reply where the caller knows whose fault an error is: what an application
// gave can't be said in the client's format, and nothing has been sent.
func (c *Commands) say(s *session.Session, r *protocol.Reply) error {
	if s.Encoding.Unidirectional() {
		c.tell(s, r)
		return nil
	}
	st := c.at(s)
	buf, err := protocol.AppendReply(st.buf[:0], encodingOf(s), r)
	if err == nil {
		c.write(s, st, buf)
	}
	return err
}

// notSaid answers the command id, where it is one, in the place of a reply that
// can't be encoded. log picks what is logged of it.
func (c *Commands) notSaid(s *session.Session, id uint32, log *pace.Seldom, err error) {
	c.counters.NotEncoded.Add(1)
	if quiet, ok := log.Pass(unsaidEvery); ok {
		c.log.Error("reply not encoded", "session", c.clientID(s), "more", quiet, "err", err)
	}
	if id != 0 {
		c.fail(s, id, protocol.ErrInternal)
	}
}

// fail answers the command id with e.
func (c *Commands) fail(s *session.Session, id uint32, e *Error) { c.failFor(s, id, e, e.Message) }

// logRefused notes, for whoever looks into one client's troubles, that a command
// gets e.
func (c *Commands) logRefused(s *session.Session, e *Error, why string) {
	if c.log.Enabled(c.ctx, slog.LevelDebug) {
		c.log.Debug("command refused", "session", c.clientID(s), "remote", s.Remote(), "code", e.Code, "reason", why)
	}
}

// failFor is fail with a reason that only the log tells.
func (c *Commands) failFor(s *session.Session, id uint32, e *Error, why string) {
	c.logRefused(s, e, why)
	if s.Encoding.Unidirectional() {
		c.failUni(s, e)
		return
	}
	c.counters.failed(e.Code)
	if id == 0 {
		return // a send is not answered
	}
	st := c.at(s)
	buf, err := protocol.AppendError(st.buf[:0], encodingOf(s), id, e)
	if err != nil {
		c.log.Error("error not encoded", "session", c.clientID(s), "err", err)
		return
	}
	c.write(s, st, buf)
}

func (c *Commands) push(s *session.Session, p *protocol.Push) {
	c.reply(s, &protocol.Reply{Push: p})
}

func (c *Commands) write(s *session.Session, st *loopState, buf []byte) {
	if cap(buf) <= maxBuffer {
		st.buf = buf
	}
	s.Write(buf)
}

func (c *Commands) now() int64 { return c.opts.Now().Unix() }

// ttl is the time to tell a client, in seconds.
func ttl(at, now int64) uint32 { return uint32(max(0, min(at-now, maxTTL))) }
