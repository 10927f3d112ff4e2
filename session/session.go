package session

// Encoding is an index into the table of wire formats. A publication is
// encoded once for each encoding that its subscribers use.
type Encoding uint8

// The wire formats.
const (
	EncodingNone     Encoding = iota
	EncodingJSON              // Centrifuge protocol, JSON in text frames
	EncodingProtobuf          // Centrifuge protocol, Protobuf in binary frames
	EncodingUniJSON           // bare pushes, JSON in text frames; the peer says nothing
	EncodingEvents            // the same, as events of an event stream
	EncodingCount
)

// Unidirectional tells whether a peer of this encoding only listens. Safe from
// any goroutine.
func (e Encoding) Unidirectional() bool { return e == EncodingUniJSON || e == EncodingEvents }

// State is how far a session's own handshake has come.
type State uint8

// The states, in their order.
const (
	StateOpened    State = iota // the socket is upgraded, the peer is unknown
	StateVerifying              // its credentials are in the pool
	StateConnected              // the peer is known
	StateClosed                 // nothing goes in or out any more
)

// Session is one peer. It is kept small: what most sessions don't have stands
// behind Extra. All methods run on the loop, save where they say otherwise.
type Session struct {
	// Fixed from Open on.
	transport Transport
	loop      Loop
	id        ID

	// The identity. user is set once, before the registry knows the session.
	user string
	// The neighbours in the registry's bucket, under the shard's lock.
	prev, next *Session

	// Topics is the state that package topic keeps of the session.
	Topics any
	// Work is what package handler keeps of a session that waits for the pool.
	Work any
	// Extra is what only some sessions have.
	Extra *Extra

	// Family is the hash of the token's family, by which a revocation finds the
	// session; 0 where the token has none.
	Family uint64
	// Token is the hash of the token's jti, for the same; 0 where it has none.
	Token uint64

	State     State
	Encoding  Encoding
	Anonymous bool
	listed    bool

	// Expires is when the identity ends, in Unix seconds; 0 for never. (It stands
	// where the compiler would pad.)
	Expires uint32
}

// Extra is what only some sessions have. Its slices are owned by the session.
type Extra struct {
	Client  string // the client id that another server gave the session
	Info    []byte // JSON about the connection, shown to others
	Meta    []byte // JSON about the connection, for backends only
	Name    string // the client's name and version, as it says
	Version string
	Headers string // of the opening handshake, for backends: lines of "Name: value"
}

// Open prepares s for a new peer. The transport calls it, on the loop.
func (s *Session) Open(t Transport, l Loop, id ID) {
	*s = Session{transport: t, loop: l, id: id}
}

// ID is the name of the session on this node.
func (s *Session) ID() ID { return s.id }

// Loop is the loop that owns the session. Safe from any goroutine that the
// loop gave it to.
func (s *Session) Loop() Loop { return s.loop }

// ClientID is the name of the session that peers and backends see: the one that
// node makes of its ID, or the one that it came with from another server.
func (s *Session) ClientID(node Node) string {
	if s.Extra != nil && s.Extra.Client != "" {
		return s.Extra.Client
	}
	return node.ClientID(s.id)
}

// User is the identity; empty for an anonymous peer or before it is known.
func (s *Session) User() string { return s.user }

// Closed tells whether the session has ended. Runs on the loop.
func (s *Session) Closed() bool { return s.State == StateClosed }

// Write sends one message in the session's encoding; payload is copied. Runs
// on the loop; the session may be closed afterwards.
func (s *Session) Write(payload []byte) {
	if s.State != StateClosed {
		s.transport.WriteMessage(payload, s.Encoding == EncodingProtobuf)
	}
}

// WriteKind sends one message as text or binary, whatever the encoding;
// payload is copied. Runs on the loop.
func (s *Session) WriteKind(payload []byte, binary bool) {
	if s.State != StateClosed {
		s.transport.WriteMessage(payload, binary)
	}
}

// WriteFrame sends shared bytes that are framed already; nobody may change
// them any more. Runs on the loop; the session may be closed afterwards.
func (s *Session) WriteFrame(frame []byte) {
	if s.State != StateClosed {
		s.transport.WriteFrame(frame)
	}
}

// Close ends the session with the code and the text of r. The first reason
// wins. Runs on the loop.
func (s *Session) Close(r Reason) {
	if s.State != StateClosed {
		info := r.Info()
		s.transport.CloseWith(r, info.Code, info.Text)
	}
}

// CloseCustom ends the session with a code and a text of the backend's. Runs
// on the loop.
func (s *Session) CloseCustom(code uint16, text string) {
	if s.State != StateClosed {
		s.transport.CloseWith(ReasonCustom, code, text)
	}
}

// Pending is how many bytes wait to be taken by the peer. Runs on the loop.
func (s *Session) Pending() int { return s.transport.Pending() }

// StartHeartbeat begins the pings. Runs on the loop.
func (s *Session) StartHeartbeat() { s.transport.StartHeartbeat() }

// Pong notes the answer to a ping; false when none was under way. Runs on the
// loop.
func (s *Session) Pong() bool { return s.transport.Pong() }

// SetExpiry asks for Handler.Expire at a time in Unix seconds; 0 for never.
// Runs on the loop.
func (s *Session) SetExpiry(unix int64) { s.transport.SetExpiry(unix) }

// Remote is the peer's address, as text. Runs on the loop.
func (s *Session) Remote() string { return s.transport.Remote() }
