package session

// Handler says what messages mean. Its methods run on the loop of the session
// and never block it.
type Handler interface {
	// Open is called once, when the opening handshake is done and before any
	// message. identity is what the handshake's check returned, or nil.
	Open(s *Session, identity any)
	// Message is called with each whole message: text has been checked to be
	// UTF-8. data dies with the call, and may be changed by it.
	Message(s *Session, data []byte, binary bool)
	// Expire is called when the time given to SetExpiry is reached.
	Expire(s *Session)
	// Closed is called once for each Open, as the last call for s. Nothing can be
	// written any more.
	Closed(s *Session, r Reason)
}

// PartHandler is a Handler that takes long messages in parts, so that no peer
// keeps a loop to itself.
type PartHandler interface {
	// MessagePart takes the place of Message. It handles at most most commands at
	// the front of data and returns what is left, a slice of data, and how many it
	// has handled. With what is left it is called again in a later turn, before
	// anything else that the peer has sent. done is how many of the message's
	// commands have been handled before.
	MessagePart(s *Session, data []byte, binary bool, done, most int) (rest []byte, n int)
}

// Mover is a Handler whose sessions can go to another server and live on
// there. Its methods run on the loop.
type Mover interface {
	// Export writes down what the handler knows of s. An error says that s can't
	// go now: something of it is under way elsewhere.
	Export(s *Session) ([]byte, error)
	// Import takes the place of Open for a session that Export has written down.
	// After an error Closed is called and the connection ends.
	Import(s *Session, data []byte) error
}

// Transport is how a session reaches its peer. Runs on the loop. After any
// call the session may be closed.
type Transport interface {
	// WriteMessage sends payload as one message of the given opcode kind; it is
	// copied before the call returns. On an event stream payload is whole events.
	WriteMessage(payload []byte, binary bool)
	// WriteFrame sends bytes that are framed for the wire already. They are kept
	// without a copy until they are sent: nobody changes them any more.
	WriteFrame(frame []byte)
	// Pending is how many bytes wait to be taken by the peer.
	Pending() int
	// CloseWith begins the end: the close frame with the code and the text is
	// sent, then the connection goes. The first reason wins. Closed runs before
	// the call returns.
	CloseWith(r Reason, code uint16, text string)
	// StartHeartbeat begins the pings; every is their interval in milliseconds
	// (0: as configured).
	StartHeartbeat()
	// Pong notes the answer to a ping; false when none was under way.
	Pong() bool
	// SetExpiry asks for Handler.Expire at a time in Unix seconds; 0 takes the
	// wish back.
	SetExpiry(unix int64)
	// Remote is the peer's address, as text.
	Remote() string
}

// Loop is where the sessions of one event loop are reached. All of its methods
// are safe from any goroutine.
type Loop interface {
	// Index is the loop's number, from 0.
	Index() int
	// Reserve takes room for n bytes in the loop's inbox. It never blocks: false
	// means full. Whoever reserves calls Post, PostTask or Release with the same
	// n exactly once.
	Reserve(n int) bool
	// Release gives reserved room back.
	Release(n int)
	// Post runs f on the loop with the session of id, in the order of the posts;
	// the session is nil where it has ended. n is what was reserved.
	Post(n int, id ID, f func(*Session))
	// PostTask runs t on the loop, in the order of the posts.
	PostTask(n int, t Task)
	// PostClose ends the session of id. It needs no room and is never dropped.
	PostClose(id ID, r Reason, code uint16, text string)
}

// Task is work of a loop that may be long. Run does a slice of it on the loop
// and tells whether more is left; then it is called again after the sockets
// had their turn, behind what else waits in the inbox.
type Task interface {
	Run() (more bool)
}

// Loops finds loops. Safe from any goroutine.
type Loops interface {
	// Loop is the loop of an index, or nil where no such loop runs.
	Loop(index int) Loop
	// Each calls f with each running loop.
	Each(f func(Loop))
}

// PostOverhead is what a post counts in an inbox beside the bytes it carries.
const PostOverhead = 128
