package perch

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"golang.org/x/net/netutil"

	"perch/auth"
	"perch/cluster"
	"perch/handler"
	"perch/internal/stats"
	"perch/netpoll"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

const (
	echoPath = "/echo"
	// deflateWorkers is the most that deflate and inflate at once: each keeps 1.4 MB.
	deflateWorkers = 4
)

// wireAuth opens the keys, the clients and the store of what is revoked.
func (s *Server) wireAuth() error {
	o := &s.opts
	// Said in the words of the configuration.
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	ao := o.authOptions(s.log)
	if s.link != nil {
		ao.Store, ao.Registry = s.tokens, s.clients
	}
	authority, err := auth.Open(ao)
	if err != nil {
		return o.dataDirError(err)
	}
	s.authority = auth.NewLive(authority)
	if o.API.Key == "" {
		if o.API.Key, err = auth.LoadOrCreateAPIKey(o.DataDir); err != nil {
			return fmt.Errorf("api.key: %w", err)
		}
	}
	if s.link != nil && !s.link.Alone() && o.Auth.HMACSecret == "" && len(o.Auth.Keys) == 0 {
		s.log.Warn("tokens are signed with a key of this node alone, and no other node takes them: give all nodes the same auth.hmac_secret or auth.keys")
	}
	s.origins.Store(newOrigins(o.WebSocket.AllowedOrigins))
	return nil
}

// dataDirError says in the words of the configuration that the directory is taken.
func (o *Options) dataDirError(err error) error {
	if errors.Is(err, auth.ErrLocked) {
		return fmt.Errorf("data_dir: %s is in use by another server: stop that one or choose another directory", o.DataDir)
	}
	return err
}

// authOptions are those of package auth.
func (o *Options) authOptions(log *slog.Logger) auth.Options {
	keys := o.keySetOptions(log)
	out := auth.Options{
		DataDir: o.DataDir, HMACSecret: keys.HMACSecret, Keys: keys.Keys, JWKSURL: keys.JWKSURL, JWKSRefresh: keys.JWKSRefresh,
		Issuer: o.Auth.Issuer, Audience: o.Auth.Audience, TokenTTL: o.Auth.TokenTTL, RefreshTTL: o.Auth.RefreshTTL, Logger: log,
	}
	for _, c := range o.Auth.Clients {
		out.Clients = append(out.Clients, auth.ClientOptions{
			ID: c.ID, SecretHash: c.SecretHash, User: c.User, AnyUser: c.AnyUser, Channels: c.Channels,
			TokenTTL: c.TokenTTL, RefreshTTL: c.RefreshTTL,
		})
	}
	return out
}

// wireCore makes sessions, topics and the handler of the client protocol.
func (s *Server) wireCore() error {
	o := &s.opts
	s.registry = session.NewRegistry()
	memory := topic.MemoryOptions{
		HistoryBytes: int64(o.Topics.HistoryBytes), TopicBytes: o.Topics.HistoryTopicBytes, MetaTTL: o.Topics.HistoryMetaTTL,
	}
	var broker topic.Broker
	switch {
	case o.broker != nil:
		broker = o.broker(memory)
	case s.link != nil:
		s.broker = cluster.NewBroker(s.link, cluster.BrokerOptions{
			QueueBytes: o.NATS.QueueBytes, HistoryBytes: int64(o.NATS.HistoryBytes),
			MetaTTL: o.Topics.HistoryMetaTTL, IdempotencyTTL: o.Topics.IdempotencyTTL, Memory: memory,
		})
		broker = s.broker
	}
	var told func(string, []topic.News)
	if s.nodes != nil {
		told = s.tellNodes
	}
	var err error
	s.topics, err = topic.New(topic.Options{
		Broker: broker, Memory: memory,
		Default: o.Topics.Default, Namespaces: o.Topics.Namespaces,
		MaxSubscriptions: o.Topics.MaxSubscriptions, MaxLength: o.Topics.MaxLength, Node: s.node,
		Encoders: handler.Encoders(), Joined: handler.JoinEncoders(),
		Writers: topic.Writers{
			session.EncodingEvents: func(p *session.Session, name string, at topic.Position, event []byte) {
				s.commands.WriteEvent(p, name, at, event)
			},
		},
		HistoryLimit: o.Topics.HistoryLimit, RecoveryLimit: o.Topics.RecoveryLimit, IdempotencyTTL: o.Topics.IdempotencyTTL,
		JoinLeaveInterval: o.Topics.JoinLeaveInterval, PositionInterval: o.Topics.PositionInterval,
		HeldBytes: o.Limits.PendingBytes,
		Told:      told,
		Lost:      func(p *session.Session, name string, server bool) { s.commands.LoseSubscription(p, name, server) },
	})
	if err != nil {
		return err
	}
	s.pool = handler.NewPool(handler.PoolOptions{Workers: o.Pool.Workers, QueueBytes: o.Pool.QueueBytes, Logger: s.log})
	if err = s.wireBackend(); err != nil {
		return err
	}
	version, _ := buildVersion()
	s.commands, err = handler.New(handler.Options{
		Backend: handler.BackendOptions{Client: s.backend, Timeout: o.backendTimeout()},
		Node:    s.node, Topics: s.topics, Registry: s.registry, Verifier: s.authority, Revoked: s.authority.Revoked, Pool: s.pool, Logger: s.log,
		Version: version, Require: handler.Require(o.Auth.Require), Insecure: o.Insecure,
		PingInterval: o.Heartbeat.Interval, UserPersonal: o.Topics.UserPersonal, PersonalNamespace: o.Topics.PersonalNamespace,
		Overflow: handler.Overflow(o.Pool.Overflow), SessionBytes: o.Pool.SessionBytes,
		ReplyBytes: o.Limits.PendingBytes, CommandRate: o.Limits.CommandRate, SessionsPerUser: o.Limits.SessionsPerUser,
		CallTimeout: o.Pool.CallTimeout, Peers: s.peers(),
	})
	if err != nil {
		return err
	}
	if o.Dev {
		s.commands.RegisterExamples()
	}
	return nil
}

// takePorts comes first: a server that can't have them leaves no files behind.
func (s *Server) takePorts() error {
	var err error
	if s.addr, s.held, err = listenAddr("listen", s.opts.Listen); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", s.opts.Admin)
	if err != nil {
		return listenError("admin", s.opts.Admin, err)
	}
	s.adminLn = netutil.LimitListener(patientListener{ln}, adminConnections)
	return nil
}

// wireNet makes the event loops and what they serve.
func (s *Server) wireNet() error {
	o := &s.opts
	loops := o.Loops
	if loops == 0 {
		loops = runtime.GOMAXPROCS(0)
	}
	capacity, err := capacityFor(o.Limits, loops)
	if err != nil {
		return err
	}
	s.loops = loops
	s.capacity.Store(&capacity)
	endpoints := []*netpoll.Endpoint{{
		Path: o.WebSocket.Path, Handler: s.commands, MessageSize: o.WebSocket.MessageSize,
		ConnectTimeout: o.Limits.ConnectTimeout, Check: s.checkUpgrade,
		Pings: [session.EncodingCount][]byte{
			session.EncodingJSON:     protocol.PingFrame(protocol.JSON),
			session.EncodingProtobuf: protocol.PingFrame(protocol.Protobuf),
		},
	}}
	endpoints = append(endpoints, s.uniEndpoints()...)
	if o.Echo {
		endpoints = append(endpoints, &netpoll.Endpoint{
			Path: echoPath, Handler: handler.Echo{}, MessageSize: 16 << 20, Check: s.checkEcho,
		})
	}
	s.net, err = netpoll.New(netpoll.Options{
		Listeners: []netpoll.Listener{{Addr: s.addr, Endpoints: endpoints}}, Loops: loops, Logger: s.log,
		Limits: netLimits(o, capacity), HTTPConnections: capacity.http, DeferAccept: !o.Limits.AcceptSilent,
		Trusted: o.Proxy.networks(), ProxyProtocol: o.Proxy.Protocol,
		PendingBytes: o.Limits.PendingBytes, InboxBytes: o.Limits.InboxBytes,
		PingInterval: o.Heartbeat.Interval, PongTimeout: o.Heartbeat.Timeout, PingMisses: o.Heartbeat.Misses,
		Deflate: s.deflate(),
	})
	if err != nil {
		return err
	}
	s.evictions = handler.NewEvictions(s.net.EachSession)
	s.authority.Load().Store.OnRevoke(s.evictions.End)
	return nil
}

// deflate is permessage-deflate, where it is configured. Its runners leave workers to
// others.
func (s *Server) deflate() netpoll.Deflate {
	o := &s.opts
	if !o.WebSocket.Compression {
		return netpoll.Deflate{}
	}
	return netpoll.Deflate{
		Submit: s.pool.Submit, Threshold: o.WebSocket.CompressionThreshold,
		Workers: max(1, min(runtime.GOMAXPROCS(0), o.Pool.Workers/2, deflateWorkers)),
	}
}

// addressOf is whose a request over HTTP is, seen through trusted proxies.
func (s *Server) addressOf(c *gin.Context) string {
	from, err := netip.ParseAddrPort(c.Request.RemoteAddr)
	if err != nil {
		return c.RemoteIP()
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	return s.net.Forwarded(from, strings.Join(c.Request.Header.Values("X-Forwarded-For"), ", ")).Addr().String()
}

// wireHTTP makes Gin's two engines.
func (s *Server) wireHTTP() error {
	o := &s.opts
	paths := []string{o.WebSocket.Path}
	if served(o.WebSocket.UniPath) {
		paths = append(paths, o.WebSocket.UniPath)
	}
	if o.Echo {
		paths = append(paths, echoPath)
	}
	var events []string
	if served(o.SSE.Path) {
		events = append(events, o.SSE.Path)
	}
	public := handler.PublicOptions{
		Routes: func(r gin.IRouter) {
			r.Use(s.observeToken)
			handler.RegisterToken(r, handler.TokenOptions{
				Authority: s.authority.Load, Address: s.addressOf, Logger: s.log,
			})
		},
		WebSocketPaths: paths, EventPaths: events, Adopt: s.adopt, AllowOrigin: s.allowOrigin, Demo: o.Demo,
		DemoWebSocketPath: o.WebSocket.Path, Logger: s.log, Panicked: s.httpPanics.Inc,
	}
	if o.Dev {
		public.DemoClient = &handler.DemoClient{ID: DevClient, Secret: DevSecret}
	}
	s.public = handler.NewHTTPServer(handler.NewPublic(public), s.log)
	// Requests of the public port are small, and its connections counted: who
	// dribbles gives the place back soon. net/http counts the time to write from
	// the end of the head.
	s.public.ReadHeaderTimeout = min(s.public.ReadHeaderTimeout, o.Limits.HTTPTimeout)
	s.public.ReadTimeout, s.public.WriteTimeout, s.public.IdleTimeout = o.Limits.HTTPTimeout, 2*o.Limits.HTTPTimeout, min(30*time.Second, 3*o.Limits.HTTPTimeout)
	// A later request of a connection has the bound of the first, to which net/http
	// adds 4 KiB.
	s.public.MaxHeaderBytes = netpoll.MaxHead - 4<<10
	api := s.apiOptions()
	s.answers = handler.NewPeerAnswers(api)
	s.admin = handler.NewHTTPServer(handler.NewAdmin(handler.AdminOptions{
		API:     api,
		Metrics: stats.Handler(stats.NewRegistry(s.snapshot), s.log),
		State:   s.adminState,
		Nodes:   s.knownNodes,
		Logger:  s.log, Panicked: s.httpPanics.Inc,
	}), s.log)
	// Pushing in a loop needs more than the default of time for a request.
	s.admin.ReadTimeout = time.Minute
	return nil
}

func (s *Server) adminState() handler.AdminState {
	switch state(s.state.Load()) {
	case stateReady:
		return handler.AdminReady
	case stateDraining:
		return handler.AdminDraining
	}
	return handler.AdminStarting
}
