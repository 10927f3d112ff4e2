package netpoll

import (
	"log/slog"
	"net/netip"
	"time"

	"perch/session"
)

// MaxHead is the largest request head taken, in bytes.
const MaxHead = 8 << 10

// Options configure a Server. All fields are needed, save where they say what
// their zero value means.
type Options struct {
	Listeners []Listener
	// Loops is how many event loops run; 0 means one a processor that the process
	// may use, at most session.MaxLoops.
	Loops  int
	Logger *slog.Logger
	Limits
	// DeferAccept leaves connections to the kernel until they say something, or for
	// about a second.
	DeferAccept bool
	// Trusted are the networks of proxies that are believed: what they put into
	// X-Forwarded-For, and, with ProxyProtocol, the PROXY header that their
	// connections begin with.
	Trusted       []netip.Prefix
	ProxyProtocol bool
	// HTTPConnections bounds the connections that are with net/http.
	HTTPConnections int
	// PendingBytes is what may wait for a slow peer.
	PendingBytes int
	// InboxBytes bounds what waits for one loop.
	InboxBytes int
	// PingInterval 0 means no pings. A ping unanswered for PongTimeout is a miss;
	// PingMisses misses in a row close the connection.
	PingInterval time.Duration
	PongTimeout  time.Duration
	PingMisses   int
	// Deflate is of permessage-deflate, on all endpoints of WebSockets. Its zero value
	// turns it off.
	Deflate Deflate

	// now is the wall clock, where a test has another. Only what is given in Unix
	// time goes by it; deadlines and heartbeats go by the time that passes.
	now       func() time.Time
	stormFrom uint64 // stormConnects, where a test wants another; 0: that
}

// silence is how long a peer may say nothing; 0: for ever.
func (o *Options) silence() time.Duration {
	if o.PingInterval == 0 {
		return 0
	}
	return o.PingInterval + time.Duration(o.PingMisses)*o.PongTimeout
}

// Limits are those that can change while the server runs: see SetLimits.
type Limits struct {
	// Connections is how many connections are served: the next ones get a 503.
	// HardConnections, above it, is where connections are closed without a word;
	// it stays below the descriptor limit, so that there is room for the 503s.
	Connections     int
	HardConnections int
	// PerAddress bounds the connections of one IPv4 address or IPv6 /64, PerSubnet
	// those of an IPv4 /24 or IPv6 /48: the next ones get a 429.
	PerAddress, PerSubnet AddressLimits
	// ConnectionRate bounds how many come in a second, 0: no bound. The next ones
	// wait for their turn, ConnectionWait at the most; those that would wait longer
	// get a 503.
	ConnectionRate int
	ConnectionWait time.Duration
	// HandshakeTimeout is the time from accept to the end of the request head.
	HandshakeTimeout time.Duration
	// MessageTimeout is the time from the first byte of a message, or of a frame, to
	// its last; 0: no bound.
	MessageTimeout time.Duration
	// MessageRate bounds the frames that a session sends in a second, of whatever
	// kind, with a burst of as many; 0: no bound.
	MessageRate int
}

// Listener is one public port and what it serves.
type Listener struct {
	// Addr is host:port, the port not 0; an IPv4 host listens on IPv4 only.
	Addr string
	// Endpoints are the paths of this port that a loop serves.
	Endpoints []*Endpoint
}

// Endpoint is a path on which a WebSocket can be opened, or an event stream.
type Endpoint struct {
	Path    string
	Handler session.Handler
	// Events makes the path one of event streams (text/event-stream of the HTML
	// standard): a GET over HTTP/1.1 or HTTP/1.0 is answered with a stream that
	// lasts. What frames are elsewhere are whole events here, each with the empty
	// line that ends it, and there is no other empty line in them. Its handler gets
	// no messages, and its heartbeat waits for no answer. Other methods go to
	// net/http.
	Events bool
	// Last is the event, for an event stream, that tells the peer why it ends; nil:
	// it is not told. Safe from any goroutine.
	Last func(code uint16, text string) []byte
	// MessageSize is the largest message taken, in bytes.
	MessageSize int
	// ConnectTimeout, where above 0, is the time from the upgrade until the
	// session must be connected.
	ConnectTimeout time.Duration
	// Pings are the frames that the heartbeat sends, by encoding. Where there is
	// none, or the decision asks for it, it sends pings of RFC 6455.
	Pings [session.EncodingCount][]byte
	// Check decides about an opening handshake that is right in form: at once, now
	// being true, or later, by the function that it has got from Request.Later. It
	// runs on the loop and does not block.
	Check func(r *Request) (d Decision, now bool)
}

// Request is the request head of an opening handshake. Its strings point into
// the head: what outlives Check is cloned.
type Request struct {
	Path          string
	Query         string
	Host          string
	Origin        string
	Authorization string
	// Protocols is the list of subprotocols offered, as sent.
	Protocols   string
	UserAgent   string
	LastEventID string
	head        string
	conn        *conn
	key         [24]byte // the peer's Sec-WebSocket-Key
}

// Remote is the peer's address, host:port. Runs within Check.
func (r *Request) Remote() string { return r.conn.Remote() }

// Header calls f with each header of the request, in order. The strings point into
// the head. Runs within Check.
func (r *Request) Header(f func(name, value string)) { eachField(r.head, f) }

// Later is for a Check that can't decide at once: the function it returns takes
// the decision, once, from any goroutine. Runs within Check.
func (r *Request) Later() func(Decision) {
	loop, id, key := r.conn.loop, r.conn.id(), r.key
	return func(d Decision) {
		loop.Post(0, 0, func(*session.Session) {
			if c := loop.at(id); c != nil && c.mode == modeChecking {
				loop.guard(c, func() { c.decide(&d, key, nil) })
			}
		})
	}
}

// Decision is what Check says.
type Decision struct {
	// Status is the HTTP status of a refusal; 0 accepts.
	Status int
	// Text is the body of a refusal, one line; an event stream's path puts it into
	// JSON.
	Text string
	// Header is lines for the answer, whatever it is, each with its line end.
	Header string
	// Protocol is the subprotocol chosen; empty for none.
	Protocol string
	Encoding session.Encoding
	// FramePings makes the heartbeat send pings of RFC 6455.
	FramePings bool
	// Identity goes to Handler.Open.
	Identity any
}
