package perch

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"perch/auth"
	"perch/backend"
	"perch/cluster"
	"perch/handler"
	"perch/internal/stats"
	"perch/netpoll"
	"perch/session"
	"perch/topic"
)

// state is how far a server has come.
type state int32

const (
	stateStarting state = iota
	stateReady
	stateDraining
)

const (
	// poolGrace is what a method that blocks gets at an end without a drain, and at
	// the end of a budget that is spent.
	poolGrace = 200 * time.Millisecond
	// stopGrace is what the event loops get to end.
	stopGrace = 5 * time.Second
)

// fewConnections is below what anybody wants to serve who has not said so.
const fewConnections = 1000

// ErrAborted is returned by Run where Abort came before the drain was done.
var ErrAborted = errors.New("perch: stopped before the drain was done")

// Server is one Perch. New wires it, Run runs it until its context ends and
// it has drained. It is run once.
type Server struct {
	opts     Options                 // those that it was made with
	live     atomic.Pointer[Options] // those that hold now
	log      *slog.Logger
	level    *slog.LevelVar // of log; nil: it is the caller's
	loops    int
	capacity atomic.Pointer[capacity]
	memory   *budget // nil: nothing bounds it
	node     session.Node
	started  time.Time

	// The parts, from the bottom up.
	link      *cluster.Link   // nil: engine memory
	broker    *cluster.Broker // likewise
	nodes     *cluster.Nodes  // nil: there never are others
	answers   func(ctx context.Context, method string, params []byte) ([]byte, error)
	lock      io.Closer // of the data directory; nil: the authority has it
	tokens    *cluster.Tokens
	clients   *cluster.Registry
	authority *auth.Live
	origins   atomic.Pointer[origins]
	registry  *session.Registry
	topics    *topic.Topics
	pool      *handler.Pool
	backend   *backend.Client
	// passed are the headers that go with calls of the backend, by their name in
	// lower case.
	passed   map[string]bool
	commands *handler.Commands
	// evictions end the sessions of what is revoked.
	evictions *handler.Evictions
	net       *netpoll.Server
	public    *http.Server
	admin     *http.Server
	adminLn   net.Listener

	addr  string
	held  io.Closer // keeps the port until the loops have it
	state atomic.Int32
	ready chan struct{}
	abort chan struct{}
	once  sync.Once

	reload          sync.Mutex
	reloads         stats.Vec[string]
	httpPanics      stats.Counter
	issued, refused stats.Vec[string]
	apiCalls        stats.Vec[stats.APILabel]
}

// New checks the options, reads or makes the keys and takes the ports. What it
// returns must be run. Its errors say in one line what to do.
func New(opts Options) (*Server, error) {
	opts = opts.WithDefaults()
	if opts.Dev {
		opts = opts.WithDev()
	}
	if errs := opts.Check(); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	s := &Server{
		opts: opts, log: opts.Logger, started: time.Now(), ready: make(chan struct{}), abort: make(chan struct{}),
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // does not fail
	s.node = session.Node(binary.BigEndian.Uint64(b[:]))
	if s.log == nil {
		s.log, s.level = newLogger(opts.Log)
	}
	ok := false
	defer func() {
		if !ok {
			s.release(time.Now())
		}
	}()
	for _, step := range []func() error{s.takePorts, s.wireLink, s.wireNodes, s.wireAuth, s.wireCore, s.wireNet, s.wireMemory, s.wireHTTP} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	s.live.Store(&s.opts)
	ok = true
	return s, nil
}

// newLogger is the logger of the options, on standard error, and its level.
func newLogger(o LogOptions) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	_ = level.UnmarshalText([]byte(o.Level)) // Check has seen it
	ho := &slog.HandlerOptions{Level: level}
	if o.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, ho)), level
	}
	return slog.New(slog.NewTextHandler(os.Stderr, ho)), level
}

// Ready is closed when both ports take connections.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// PublicAddr is the address of the public port, as host:port.
func (s *Server) PublicAddr() string { return s.addr }

// AdminAddr is the address of the admin port, as host:port.
func (s *Server) AdminAddr() string { return s.adminLn.Addr().String() }

// HandleRPC registers a method that clients can call. It may block: it runs in
// the pool. Safe from any goroutine, at any time.
func (s *Server) HandleRPC(name string, f handler.RPCFunc) { s.commands.HandleRPC(name, f) }

// HandleSend registers what takes the messages that clients want no answer to.
// Safe from any goroutine, at any time.
func (s *Server) HandleSend(f handler.SendFunc) { s.commands.HandleSend(f) }

// Publish hands a publication to all subscribers of a topic and waits until
// the broker has it. data must not be changed any more; for clients with JSON
// it is one JSON value. Safe from any goroutine save a loop's.
func (s *Server) Publish(ctx context.Context, name string, data []byte) error {
	_, err := s.PublishRequest(ctx, name, &topic.Publication{Data: data}, topic.PublishRequest{})
	return err
}

// PublishRequest is Publish with tags and all that a publisher may ask for, and
// returns the place of the publication in its topic. p and all it holds belong to
// the topic from here on.
func (s *Server) PublishRequest(ctx context.Context, name string, p *topic.Publication, r topic.PublishRequest) (topic.Position, error) {
	ns, err := s.topics.Namespace(name)
	if err != nil {
		return topic.Position{}, err
	}
	type answer struct {
		at  topic.Position
		err error
	}
	done := make(chan answer, 1)
	s.topics.Publish(ns, name, p, r, func(at topic.Position, err error) { done <- answer{at, err} })
	select {
	case a := <-done:
		return a.at, a.err
	case <-ctx.Done():
		return topic.Position{}, ctx.Err()
	}
}

// Abort ends Run at once, whatever a drain has left: what a second signal
// does. Safe from any goroutine.
func (s *Server) Abort() { s.once.Do(func() { close(s.abort) }) }

// Lag is for how long the slowest event loop has not got round to its turn,
// which comes ten times a second while it has connections. Seconds of it mean
// that something blocks a loop, and its sessions with it. Safe from any
// goroutine.
func (s *Server) Lag() time.Duration {
	lag, _ := s.net.Lag()
	return lag
}

// DrainTime is the longest that the drain takes, by the options that hold. Safe
// from any goroutine.
func (s *Server) DrainTime() time.Duration {
	o := s.live.Load().Drain
	return o.Delay + o.Budget
}

// Run serves until ctx ends, then drains. It returns nil after a drain,
// ErrAborted where Abort cut it short, and an error when a port could not be
// served or the event loops ended unasked.
func (s *Server) Run(ctx context.Context) error {
	deadline := time.Now() // of the end
	defer func() { s.release(deadline) }()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	defer background.Wait()
	defer end()
	background.Go(func() { settle(life, s.net.Open) })
	if s.memory != nil {
		background.Go(func() { s.memory.run(life) })
	}

	failed := make(chan error, 3)
	loops := make(chan error, 1)
	serve := func(hs *http.Server, ln net.Listener, what string) {
		background.Go(func() {
			if err := hs.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				failed <- fmt.Errorf("perch: serve %s: %w", what, err)
			}
		})
	}
	serve(s.admin, s.adminLn, "admin")
	err := s.awaitBroker(ctx, failed)
	if err != nil {
		s.state.Store(int32(stateDraining))
		_ = s.admin.Close()
		return notWaited(err)
	}
	go func() { loops <- s.net.Run() }()
	serve(s.public, s.net.Listener(), "public")

	select {
	case <-s.net.Started():
		_ = s.held.Close()
		if err = s.startNodes(ctx); err != nil {
			err = fmt.Errorf("perch: %w", err)
			break
		}
		s.state.Store(int32(stateReady))
		close(s.ready)
		s.greet()
		select {
		case <-ctx.Done():
			deadline, err = s.shutdown()
		case <-s.abort:
		case err = <-failed:
		case err = <-loops:
			loops <- nil
		}
	case err = <-loops:
		loops <- nil
	}
	s.state.Store(int32(stateDraining))
	_ = s.public.Close()
	_ = s.admin.Close()
	s.commands.Close()
	stop, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if e := s.net.Stop(stop); e != nil && err == nil {
		err = fmt.Errorf("perch: %w", e)
	}
	select {
	case e := <-loops:
		if err == nil {
			err = e
		}
	case <-stop.Done():
	}
	return err
}

// greet logs what an operator should know of a server that is ready.
func (s *Server) greet() {
	capacity := s.capacity.Load()
	s.log.Info("serving", "listen", s.addr, "admin", s.AdminAddr(), "connections", capacity.soft)
	if capacity.soft < fewConnections && s.opts.Limits.Connections == 0 {
		s.log.Warn("the descriptor limit leaves room for few connections: raise it (ulimit -n, LimitNOFILE=)",
			"descriptors", capacity.descriptors, "connections", capacity.soft)
	}
	if a, err := netip.ParseAddrPort(s.AdminAddr()); err == nil && !a.Addr().IsLoopback() {
		s.log.Warn("the admin port is not on loopback: metrics and profiles take no key", "admin", s.AdminAddr())
	}
	if s.opts.Insecure {
		s.log.Warn("insecure mode: no token is needed and every topic operation is allowed")
	}
}

// shutdown is the orderly end: not ready, then, after the delay, no new
// connections, no sessions, no requests, within the budget; deadline is when
// that ends. ErrAborted: Abort has cut it short.
func (s *Server) shutdown() (deadline time.Time, err error) {
	s.state.Store(int32(stateDraining))
	o := s.live.Load().Drain
	life, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-s.abort:
			cancel()
		case <-life.Done():
		}
	}()
	s.log.Info("draining", "sessions", s.net.Stats().Sessions, "delay", o.Delay, "budget", o.Budget)
	pause(life, o.Delay)
	begun := time.Now()
	deadline = begun.Add(o.Budget)
	ctx, stop := context.WithDeadline(life, deadline)
	defer stop()
	if err := s.net.Unlisten(ctx); err != nil {
		s.log.Warn("new connections are answered with 503 until the end", "err", err)
	}
	// Requests that are under way go on beside the sessions; idle connections go.
	var public sync.WaitGroup
	public.Go(func() { _ = s.public.Shutdown(ctx) }) // what is left is closed next
	s.drain(ctx, begun)
	public.Wait()
	_ = s.admin.Shutdown(ctx) // the last: readiness and metrics are asked for meanwhile
	select {
	case <-s.abort:
		return time.Now(), ErrAborted
	default:
		return deadline, nil
	}
}

// release gives back what New has taken. Methods that are at work have until
// the deadline, or a moment.
func (s *Server) release(deadline time.Time) {
	if s.held != nil {
		_ = s.held.Close()
	}
	if s.adminLn != nil {
		_ = s.adminLn.Close()
	}
	if s.commands != nil {
		s.commands.Close()
	}
	if s.evictions != nil {
		s.evictions.Close()
	}
	if s.nodes != nil {
		s.nodes.Close()
	}
	if s.pool != nil {
		ctx, cancel := context.WithTimeout(context.Background(), max(poolGrace, time.Until(deadline)))
		defer cancel()
		if err := s.pool.Close(ctx); err != nil {
			s.log.Warn("methods are still at work", "err", err)
		}
	}
	if s.backend != nil {
		s.backend.Close()
	}
	if s.topics != nil {
		if err := s.topics.Close(); err != nil {
			s.log.Error("close broker failed", "err", err)
		}
	}
	if s.authority != nil {
		if err := s.authority.Close(); err != nil {
			s.log.Error("close token store failed", "err", err)
		}
	}
	if s.clients != nil {
		s.clients.Close()
		_ = s.tokens.Close() // also where it has no authority yet
	}
	if s.link != nil {
		s.link.Close()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}
