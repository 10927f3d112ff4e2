package perch

import (
	"log/slog"
	"time"

	"perch/topic"
)

// Options are every knob of a server; the zero value of a field means its
// default, which DefaultOptions writes out. The koanf tags are the keys of
// perch.yaml and, in capitals behind PERCH_, of the environment; a field with
// unit:"bytes" can be written as 64KiB there, one with secret:"true" is never
// quoted in an error.
type Options struct {
	Listen  string `koanf:"listen"`
	Admin   string `koanf:"admin"`
	DataDir string `koanf:"data_dir"`
	Loops   int    `koanf:"loops"`
	// Engine is memory (one node, histories end with the process) or nats.
	Engine string `koanf:"engine"`
	// Insecure: no token needed, every topic operation allowed.
	Insecure bool `koanf:"insecure"`
	// Dev: demo page, echo, example clients and permissive topics.
	Dev  bool `koanf:"dev"`
	Echo bool `koanf:"echo"`
	Demo bool `koanf:"demo"`

	Log       LogOptions       `koanf:"log"`
	API       APIOptions       `koanf:"api"`
	Auth      AuthOptions      `koanf:"auth"`
	Topics    TopicOptions     `koanf:"topics"`
	NATS      NATSOptions      `koanf:"nats"`
	WebSocket WebSocketOptions `koanf:"websocket"`
	SSE       SSEOptions       `koanf:"sse"`
	Heartbeat HeartbeatOptions `koanf:"heartbeat"`
	Limits    LimitOptions     `koanf:"limits"`
	Proxy     ProxyOptions     `koanf:"proxy"`
	Memory    MemoryOptions    `koanf:"memory"`
	Pool      PoolOptions      `koanf:"pool"`
	Backend   BackendOptions   `koanf:"backend"`
	Drain     DrainOptions     `koanf:"drain"`

	// Logger, where set, takes the place of Log. Not in the file.
	Logger *slog.Logger `koanf:"-"`

	// broker, where set, makes the one that takes the place of the in-memory
	// broker: tests put delays and faults into it.
	broker func(topic.MemoryOptions) topic.Broker
	// nodeTimes lets tests have nodes that are sooner taken for gone.
	nodeTimes nodeTimes
	// used, where set, takes the place of what the process takes: tests run short of
	// memory without doing so.
	used func() int64
}

// LogOptions say what is logged, and how.
type LogOptions struct {
	Level  string `koanf:"level"`  // debug, info, warn, error
	Format string `koanf:"format"` // text, json
}

// APIOptions are of the server API on the admin port.
type APIOptions struct {
	// Key is what X-API-Key must hold; empty: made once in DataDir.
	Key string `koanf:"key" secret:"true"`
}

// AuthOptions say who may connect.
type AuthOptions struct {
	// Require is connect (a token in the handshake or the connect command),
	// handshake (before the upgrade) or none (a peer without a token is
	// anonymous; a token that is sent is verified all the same).
	Require    string `koanf:"require"`
	HMACSecret string `koanf:"hmac_secret" secret:"true"`
	// Keys are PEM files. The first private one signs; all verify.
	Keys        []KeyOptions  `koanf:"keys"`
	JWKSURL     string        `koanf:"jwks_url"`
	JWKSRefresh time.Duration `koanf:"jwks_refresh"`
	// Issuer and Audience, where set, are put into issued tokens and demanded of
	// tokens that are verified.
	Issuer     string          `koanf:"issuer"`
	Audience   string          `koanf:"audience"`
	TokenTTL   time.Duration   `koanf:"token_ttl"`
	RefreshTTL time.Duration   `koanf:"refresh_ttl"`
	Clients    []ClientOptions `koanf:"clients"`
}

// KeyOptions name a PEM file: a public key, a certificate or a private key.
type KeyOptions struct {
	ID   string `koanf:"id"` // kid; empty: the RFC 7638 thumbprint
	File string `koanf:"file"`
}

// ClientOptions are a device or backend that may ask for tokens.
type ClientOptions struct {
	ID string `koanf:"id"`
	// SecretHash is a bcrypt or argon2id hash.
	SecretHash string `koanf:"secret_hash" secret:"true"`
	// User is the sub of its tokens; empty: ID. "{sub}" in a request is taken only
	// where AnyUser is set.
	User    string `koanf:"user"`
	AnyUser bool   `koanf:"any_user"`
	// Channels are topics that the client is subscribed to by its token.
	Channels []string `koanf:"channels"`
	// TokenTTL and RefreshTTL override those of auth.
	TokenTTL   time.Duration `koanf:"token_ttl"`
	RefreshTTL time.Duration `koanf:"refresh_ttl"`
}

// TopicOptions are the rules of topics.
type TopicOptions struct {
	Default          topic.NamespaceOptions   `koanf:"default"`
	Namespaces       []topic.NamespaceOptions `koanf:"namespaces"`
	MaxSubscriptions int                      `koanf:"max_subscriptions"`
	MaxLength        int                      `koanf:"max_length"`
	// UserPersonal subscribes each identified session to its user's topic,
	// PersonalNamespace + ":#" + user (without a namespace: "#" + user).
	UserPersonal      bool   `koanf:"user_personal"`
	PersonalNamespace string `koanf:"personal_namespace"`
	// HistoryBytes bounds the histories of all topics, HistoryTopicBytes that of
	// one.
	HistoryBytes      int `koanf:"history_bytes" unit:"bytes"`
	HistoryTopicBytes int `koanf:"history_topic_bytes" unit:"bytes"`
	// HistoryLimit bounds the publications of one answer, RecoveryLimit those of
	// one recovery.
	HistoryLimit  int `koanf:"history_limit"`
	RecoveryLimit int `koanf:"recovery_limit"`
	// HistoryMetaTTL is how long a topic's position is kept that nothing uses.
	HistoryMetaTTL time.Duration `koanf:"history_meta_ttl"`
	// IdempotencyTTL is how long the answer to a publication with an idempotency
	// key is kept.
	IdempotencyTTL time.Duration `koanf:"idempotency_ttl"`
	// JoinLeaveInterval is over what time the news of who comes and goes are
	// gathered.
	JoinLeaveInterval time.Duration `koanf:"join_leave_interval"`
	// PositionInterval is how often subscribers' positions are checked.
	PositionInterval time.Duration `koanf:"position_interval"`
}

// NATSOptions are of engine nats.
type NATSOptions struct {
	// URL is a cluster outside, one or more addresses with commas between; empty: a
	// server runs in the process, on DataDir.
	URL string `koanf:"url" secret:"url"`
	// Name is the node's, shown to operators; empty: the host's and a part of the
	// node's id.
	Name string `koanf:"name"`
	// Prefix begins all subjects and names of streams: nodes with the same one are one
	// cluster.
	Prefix      string         `koanf:"prefix"`
	Credentials string         `koanf:"credentials"` // a .creds file
	NKey        string         `koanf:"nkey"`        // a file with a seed
	User        string         `koanf:"user"`
	Password    string         `koanf:"password" secret:"true"`
	Token       string         `koanf:"token" secret:"true"`
	TLS         NATSTLSOptions `koanf:"tls"`
	// Replicas is how many servers of an outside cluster keep each history.
	Replicas int `koanf:"replicas"`
	// Timeout bounds what NATS is asked: a publication that is not stored by then has
	// failed.
	Timeout time.Duration `koanf:"timeout"`
	// QueueBytes bounds the publications that wait for NATS; the next ones are
	// refused.
	QueueBytes int `koanf:"queue_bytes" unit:"bytes"`
	// HistoryBytes bounds the stream of each namespace; 0: no bound but the disk's.
	HistoryBytes int `koanf:"history_bytes" unit:"bytes"`

	// Of the server in the process. Listen is where it takes clients of NATS; empty:
	// nowhere. StoreBytes bounds all that it keeps. Sync is how often what was
	// written is forced to the disk, SyncAlways: before each answer.
	Listen     string      `koanf:"listen"`
	StoreBytes int         `koanf:"store_bytes" unit:"bytes"`
	Sync       string      `koanf:"sync"`
	Leaf       LeafOptions `koanf:"leaf"`
}

// SyncAlways is the value of nats.sync that acknowledges nothing before it is on
// the disk.
const SyncAlways = "always"

// NATSTLSOptions are PEM files.
type NATSTLSOptions struct {
	CA   string `koanf:"ca"`
	Cert string `koanf:"cert"`
	Key  string `koanf:"key"`
}

// LeafOptions join a site's embedded server to a hub.
type LeafOptions struct {
	// URL is where the hub takes leaf nodes.
	URL string `koanf:"url" secret:"url"`
	// Site names the leaf; no two of a hub have the same.
	Site        string         `koanf:"site"`
	Credentials string         `koanf:"credentials"`
	TLS         NATSTLSOptions `koanf:"tls"`
	// StoreBytes bounds the publications that wait for the hub. Full says what
	// becomes of the next ones then: LeafRefuse or LeafDropOldest.
	StoreBytes int    `koanf:"store_bytes" unit:"bytes"`
	Full       string `koanf:"full"`
}

// The values of nats.leaf.full.
const (
	// LeafRefuse answers that there is no room.
	LeafRefuse = "refuse"
	// LeafDropOldest drops what has waited longest for the hub.
	LeafDropOldest = "drop_oldest"
)

// The values of engine.
const (
	EngineMemory = "memory"
	EngineNATS   = "nats"
)

// WebSocketOptions are of the WebSocket endpoints.
type WebSocketOptions struct {
	Path string `koanf:"path"`
	// UniPath is where peers connect that only listen; PathOff: nowhere.
	UniPath string `koanf:"uni_path"`
	// AllowedOrigins are patterns such as https://*.example.com; "*" allows all.
	// A request without Origin, or from the host it goes to, is always allowed.
	AllowedOrigins []string `koanf:"allowed_origins"`
	// MessageSize is the largest message taken, in bytes.
	MessageSize int `koanf:"message_size" unit:"bytes"`
	// Compression negotiates permessage-deflate (RFC 7692) with clients that offer it.
	// Messages shorter than CompressionThreshold are sent as they are.
	Compression          bool `koanf:"compression"`
	CompressionThreshold int  `koanf:"compression_threshold" unit:"bytes"`
}

// PathOff, in the place of a path, leaves its endpoint out.
const PathOff = "off"

// SSEOptions are of the event streams. Who may open one, WebSocketOptions say.
type SSEOptions struct {
	Path string `koanf:"path"` // PathOff: none are served
}

// HeartbeatOptions are of the pings.
type HeartbeatOptions struct {
	Interval time.Duration `koanf:"interval"`
	Timeout  time.Duration `koanf:"timeout"`
	Misses   int           `koanf:"misses"`
}

// LimitOptions bound what peers can take.
type LimitOptions struct {
	// Connections is the most that are held; 0: what the descriptor limit allows.
	Connections int `koanf:"connections"`
	// AcceptSilent accepts connections before they say anything; else the kernel
	// keeps them until then, or for about a second.
	AcceptSilent bool `koanf:"accept_silent"`
	// ConnectionsPerAddress bounds those of one IPv4 address or IPv6 /64,
	// ConnectionsPerSubnet those of an IPv4 /24 or IPv6 /48; the rates bound how many
	// come in a second. The next ones get a 429. 0: no bound.
	ConnectionsPerAddress    int `koanf:"connections_per_address"`
	ConnectionsPerSubnet     int `koanf:"connections_per_subnet"`
	ConnectionRatePerAddress int `koanf:"connection_rate_per_address"`
	ConnectionRatePerSubnet  int `koanf:"connection_rate_per_subnet"`
	// ConnectionRate bounds how many come in a second from everywhere, 0: no bound.
	// The next ones wait, ConnectionWait at the most, or get a 503.
	ConnectionRate  int           `koanf:"connection_rate"`
	ConnectionWait  time.Duration `koanf:"connection_wait"`
	HTTPConnections int           `koanf:"http_connections"`
	// SessionsPerUser bounds the sessions of a user: the next ones are closed with
	// 3504. 0: no bound.
	SessionsPerUser int `koanf:"sessions_per_user"`
	// MessageRate bounds the frames that a session sends in a second, CommandRate
	// its commands, each with a burst of as many. 0: no bound.
	MessageRate int `koanf:"message_rate"`
	CommandRate int `koanf:"command_rate"`
	// MessageTimeout is the time from the first byte of a message to its last.
	MessageTimeout   time.Duration `koanf:"message_timeout"`
	HandshakeTimeout time.Duration `koanf:"handshake_timeout"`
	ConnectTimeout   time.Duration `koanf:"connect_timeout"`
	// HTTPTimeout is how long a request may take to arrive, body and all, on the
	// public port, and its answer to be taken.
	HTTPTimeout time.Duration `koanf:"http_timeout"`
	// PendingBytes is the most that waits for a peer before it is closed as slow.
	PendingBytes int `koanf:"pending_bytes" unit:"bytes"`
	// InboxBytes bounds the work that waits for one loop.
	InboxBytes int `koanf:"inbox_bytes" unit:"bytes"`
}

// ProxyOptions say which proxies are believed.
type ProxyOptions struct {
	// Trusted are networks (10.0.0.0/8) or addresses of proxies. What they put into
	// X-Forwarded-For is believed, and of nobody else.
	Trusted []string `koanf:"trusted"`
	// Protocol: their connections begin with a PROXY header, version 1 or 2.
	Protocol bool `koanf:"protocol"`
}

// MemoryOptions bound the process.
type MemoryOptions struct {
	// Budget is what it may take, the kernel's part of its connections included, in
	// bytes; 0: the limit of its cgroup, or else the memory of the machine.
	Budget int `koanf:"budget" unit:"bytes"`
}

// PoolOptions are of the workers that do what may block.
type PoolOptions struct {
	Workers    int    `koanf:"workers"`
	QueueBytes int    `koanf:"queue_bytes" unit:"bytes"`
	Overflow   string `koanf:"overflow"` // reply (error 111), close (3013)
	// SessionBytes bounds the commands of one session that wait for an earlier one.
	SessionBytes int `koanf:"session_bytes" unit:"bytes"`
	// CallTimeout bounds a call of a registered method, from its arrival.
	CallTimeout time.Duration `koanf:"call_timeout"`
}

// BackendOptions are of the user's own service that decides what Perch does not.
type BackendOptions struct {
	// Connect to RPC are the URLs at which the methods are asked; empty: they are
	// not.
	Connect    string `koanf:"connect"`
	Refresh    string `koanf:"refresh"`
	Subscribe  string `koanf:"subscribe"`
	SubRefresh string `koanf:"sub_refresh"`
	Publish    string `koanf:"publish"`
	RPC        string `koanf:"rpc"`
	// Secret goes with each call as X-API-Key.
	Secret string `koanf:"secret" secret:"true"`
	// Headers are the names of those headers of the opening handshake that go with
	// calls, StaticHeaders whole ones ("Name: value") that always go.
	Headers       []string `koanf:"headers"`
	StaticHeaders []string `koanf:"static_headers" secret:"true"`
	// Binary sends payloads in base64, whatever they are.
	Binary bool `koanf:"binary_encoding"`
	// Timeout bounds a call with its retries; Wait the time in it for a connection.
	Timeout     time.Duration `koanf:"timeout"`
	Connections int           `koanf:"connections"`
	IdleTimeout time.Duration `koanf:"idle_timeout"`
	Wait        time.Duration `koanf:"wait"`
	// ResponseSize is the largest answer taken, in bytes.
	ResponseSize int `koanf:"response_size" unit:"bytes"`
	// Retries is how often a call is repeated that can be; below 0: never.
	Retries int `koanf:"retries"`
	// BreakerFailures in a row open the circuit breaker of a method for BreakerOpen;
	// below 0: it has none.
	BreakerFailures int           `koanf:"breaker_failures"`
	BreakerOpen     time.Duration `koanf:"breaker_open"`
}

// DrainOptions are of the end of the process.
type DrainOptions struct {
	// Budget bounds all of the end, save Delay, which comes before: how long the
	// server says that it is not ready and serves all the same.
	Budget time.Duration `koanf:"budget"`
	Delay  time.Duration `koanf:"delay"`
	// Rate is how many sessions are sent away in a second, where the budget allows
	// for as few.
	Rate int `koanf:"rate"`
}

// DefaultOptions are the options of a server that nobody configured.
func DefaultOptions() Options {
	return Options{
		Listen:  "127.0.0.1:8000",
		Admin:   "127.0.0.1:8001",
		DataDir: "perch-data",
		Engine:  EngineMemory,
		Log:     LogOptions{Level: "info", Format: "text"},
		Auth: AuthOptions{
			Require: "connect", JWKSRefresh: 5 * time.Minute,
			TokenTTL: time.Hour, RefreshTTL: 30 * 24 * time.Hour,
		},
		Topics: TopicOptions{
			MaxSubscriptions: 128, MaxLength: 255, HistoryBytes: 128 << 20, HistoryTopicBytes: 4 << 20, HistoryLimit: 300,
			RecoveryLimit: 300, HistoryMetaTTL: time.Hour, IdempotencyTTL: 5 * time.Minute,
			JoinLeaveInterval: 200 * time.Millisecond, PositionInterval: 40 * time.Second,
		},
		NATS: NATSOptions{
			Prefix: "perch", Replicas: 1, Timeout: 5 * time.Second, QueueBytes: 64 << 20, Sync: SyncAlways,
			Leaf: LeafOptions{StoreBytes: 256 << 20, Full: LeafRefuse},
		},
		WebSocket: WebSocketOptions{
			Path: "/connection/websocket", UniPath: "/connection/uni_websocket", MessageSize: 64 << 10, CompressionThreshold: 256,
		},
		SSE:       SSEOptions{Path: "/connection/uni_sse"},
		Heartbeat: HeartbeatOptions{Interval: 25 * time.Second, Timeout: 8 * time.Second, Misses: 1},
		Limits: LimitOptions{
			ConnectionWait: time.Second, MessageTimeout: time.Minute, PendingBytes: 1 << 20, InboxBytes: 64 << 20,
			HTTPConnections: 1024, HandshakeTimeout: 5 * time.Second, ConnectTimeout: 10 * time.Second, HTTPTimeout: 10 * time.Second,
		},
		Pool: PoolOptions{Workers: 64, QueueBytes: 16 << 20, Overflow: "reply", SessionBytes: 256 << 10, CallTimeout: 10 * time.Second},
		Backend: BackendOptions{
			Timeout: 3 * time.Second, Connections: 64, IdleTimeout: 30 * time.Second, Wait: 500 * time.Millisecond,
			ResponseSize: 1 << 20, Retries: 1, BreakerFailures: 10, BreakerOpen: 5 * time.Second,
		},
		Drain: DrainOptions{Budget: 10 * time.Second, Rate: 2000},
	}
}
