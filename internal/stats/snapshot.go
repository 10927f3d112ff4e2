package stats

// Snapshot is the state of a server at one scrape. What ends in Total or is
// said to be a count grows from the start of the process; the rest is as it is
// now. Its maps and slices belong to the snapshot: nobody changes them any more.
type Snapshot struct {
	// Version and Revision name the build.
	Version  string
	Revision string
	// Ready: connections are taken. Insecure: anybody may do anything.
	Ready    bool
	Insecure bool

	// Connections are the sockets that the loops hold now; ConnectionLimit is the
	// most that they would hold.
	Connections     int64
	ConnectionLimit int64
	// Accepted counts the sockets that were accepted; Refused those that were
	// turned away, by cause.
	Accepted uint64
	Refused  map[string]uint64
	// AcceptErrors counts the accepts that failed, by cause.
	AcceptErrors map[string]uint64
	// Sessions are the peers that are known by now.
	Sessions int64

	// HTTPConnections are with net/http now; HTTPHandedOff counts those that went
	// there, HTTPRefused those for which it had no room.
	HTTPConnections int64
	HTTPHandedOff   uint64
	HTTPRefused     uint64

	// Messages are whole ones, Frames those of WebSocket (control frames too),
	// Bytes what went over the sockets of the loops, handshakes included.
	Messages Traffic
	Frames   Traffic
	Bytes    Traffic

	// Handshakes counts opening handshakes by outcome, Closes ended connections by
	// reason.
	Handshakes map[string]uint64
	Closes     map[string]uint64

	Loops []Loop
	// LoopLag is for how long the slowest loop has not got round to its turn, in
	// seconds.
	LoopLag float64
	// InboxLimit is the most bytes that wait for one loop.
	InboxLimit int64
	// PendingBytes wait for slow peers to take them; SlowConsumers counts the
	// peers that were closed for it.
	PendingBytes  int64
	SlowConsumers uint64

	// Memory is what is accounted, by who holds it; layers overlap. MemoryUsed is what
	// the process takes, in the kernel too, MemoryBudget what it may (0: unbounded);
	// MemoryRefusing: connections are refused for it.
	Memory         map[string]int64
	MemoryUsed     int64
	MemoryBudget   int64
	MemoryRefusing bool

	Deflate Deflate

	Pool    Pool
	Fanout  Fanout
	History History

	// Topics have subscribers now; Subscriptions are all of theirs.
	Topics        int64
	Subscriptions int64

	// Commands counts what clients asked for, by kind; Errors the error replies
	// that they got, by code (0: an application's own codes).
	Commands map[string]uint64
	Errors   map[uint32]uint64
	// Malformed counts messages that broke the client protocol, BacklogRejected
	// commands refused because too many of their session waited already.
	Malformed       uint64
	BacklogRejected uint64
	// RateLimited counts commands over their session's rate, UserLimited sessions
	// over their user's number.
	RateLimited uint64
	UserLimited uint64
	// EventIDsMalformed counts the ids of event streams that could not be read.
	EventIDsMalformed uint64
	// NotEncoded counts replies and pushes that their client's format can't carry.
	NotEncoded uint64
	// RPCPanics and RPCTimeouts count methods that broke or took too long.
	RPCPanics   uint64
	RPCTimeouts uint64

	// TokensIssued counts tokens by grant type, TokensRefused requests for one, by
	// error.
	TokensIssued  map[string]uint64
	TokensRefused map[string]uint64

	// StoreFailures counts the writes of the token store that failed; StoreFailing:
	// the last one did.
	StoreFailures uint64
	StoreFailing  bool
	// Revocations are those in force that this node knows; ClientLookups the questions
	// for a client of the registry, by outcome.
	Revocations   int64
	ClientLookups map[string]uint64
	// HTTPPanics counts the requests whose handler panicked.
	HTTPPanics uint64
	// Reloads counts reloads of the configuration, by outcome.
	Reloads map[string]uint64
	// API counts calls of the server API.
	API map[APILabel]uint64

	Backend Backend
	Broker  Broker
	Nodes   *Nodes // nil: there is no cluster
	Leaf    *Leaf  // nil: the node is none
}

// Traffic is what came in and what went out.
type Traffic struct{ In, Out uint64 }

// Loop is one event loop; its index is its place in Snapshot.Loops.
type Loop struct {
	Connections int64
	// InboxBytes are reserved in the inbox now. Rejected counts posts for which
	// there was no room.
	InboxBytes int64
	Rejected   uint64
	// Turns counts the times the loop went through its inbox; Panics those that it
	// recovered from.
	Turns  uint64
	Panics uint64
	// PutOffs counts the times that a peer had sent more than its share of a turn;
	// PutOffBytes of it wait now. MostWork are the most frames and commands, and
	// MostBytes the most bytes, of one peer in one go; MostPosts the most of the
	// inbox in one turn.
	PutOffs     uint64
	PutOffBytes int64
	MostWork    int64
	MostBytes   int64
	MostPosts   int64
	Timers      int64 // connections with a deadline
}

// Pool is the bounded pool of workers.
type Pool struct {
	Workers    int64 // that there may be
	Busy       int64 // that are at work now
	QueueJobs  int64
	QueueBytes int64
	QueueLimit int64 // bytes
	Done       uint64
	Rejected   uint64
}

// Deflate is permessage-deflate. What a loop's sessions share is deflated, and counted,
// once.
type Deflate struct {
	Sessions uint64 // upgraded with it
	Declined uint64 // offers that were not taken
	Messages Traffic
	Plain    Traffic // bytes of the messages
	Deflated Traffic // the same, on the wire
	// Refused are messages for which there was no room: out, they were sent as they
	// were; in, their session was closed.
	Refused    Traffic
	Bombs      uint64 // messages that would have become too big
	QueueBytes int64
}

// Fanout is the way of publications to subscribers.
type Fanout struct {
	Publications uint64 // taken
	Rejected     uint64 // refused: an inbox was full
	Deliveries   uint64 // handed to a subscriber's connection
	Encodings    uint64
	EncodeErrors uint64
}

// History is what is kept of topics, and how those who came back fared.
type History struct {
	Topics       int64 // with a position
	Publications int64
	Bytes        int64 // of both
	Limit        int64 // bytes
	// Recovered counts recoveries by "yes" and "no", Lost the subscriptions that
	// missed something while they lived.
	Recovered map[string]uint64
	Lost      uint64
	// NewsDropped counts those who came or left and of whom nobody was told.
	NewsDropped uint64
}

// Broker is the way to NATS, with engine nats: On.
type Broker struct {
	On         bool
	Connected  bool
	Losses     uint64 // of the connection
	Waiting    int64  // questions and publications without an answer
	QueueBytes int64  // of publications that wait for NATS or its answer
	QueueLimit int64
	// Publications counts what did not go as it should: "unsent" to other nodes,
	// "refused" for want of room, "failed" to be known as stored.
	Publications map[string]uint64
	// Deliveries counts those of other nodes and of streams: "undone" where a loop had
	// no room, "repaired" where they had to be read, "dropped" where they came too
	// fast, "malformed".
	Deliveries map[string]uint64
}

// Backend is what is asked of the user's own service.
type Backend struct {
	Methods     []BackendMethod
	Connections []BackendConnections
}

// BackendMethod is one method that is asked.
type BackendMethod struct {
	Method  string
	Calls   map[string]uint64 // by outcome
	Retries uint64
	Waits   uint64 // for a connection
	Breaker int64  // 0: closed, 1: half open, 2: open
	Times   HistogramSnapshot
}

// BackendConnections are those to one backend.
type BackendConnections struct {
	Backend     string // host:port
	InUse, Idle int64
	Limit       int64
}

// APILabel is what calls of the server API are counted by. Code is "0" for a
// success, the error's code, or the HTTP status of a refused request; Method is
// empty where the request named none that exists.
type APILabel struct{ Method, Code string }
