package netpoll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"perch/internal/pace"
	"perch/session"
)

// ErrEngine is returned by Run when the event loops ended unasked.
var ErrEngine = errors.New("netpoll: the event loops ended unasked")

// joinBytes is the size of a loop's join buffer.
const joinBytes = 64 << 10

// Server holds the connections of all listeners on gnet's event loops. Its
// exported methods are safe from any goroutine.
type Server struct {
	opts  Options
	log   *slog.Logger
	ports map[string]*port // by the address that gnet gives a listener
	only  *port            // where there is one

	limits atomic.Pointer[Limits]

	pingTicks, pongTicks uint32

	handler   events
	engine    gnet.Engine
	front     *front
	watcher   *watcher
	admission *admission
	deflater  *deflater // nil: permessage-deflate is not negotiated
	kicks     chan *loop
	listening listening

	acceptFailures acceptFailures

	open        atomic.Int64 // connections on the loops
	handed      atomic.Int64 // connections with net/http
	panics      atomic.Uint64
	httpRefused atomic.Uint64
	refused     atomic.Uint64 // closed at the hard cap
	refusing    atomic.Int64  // connections that wait for their refusal
	draining    atomic.Bool
	tight       atomic.Bool  // there is no memory for more connections
	memory      atomic.Int64 // how much more the connections may hold
	refusals    pace.Seldom

	loopsMu sync.Mutex
	loops   atomic.Pointer[[]*loop] // in the order in which they were met

	ticked atomic.Int64 // the last tick, in nanoseconds since made
	made   time.Time

	started    chan struct{}
	startOnce  sync.Once
	done       chan struct{}
	stopping   atomic.Bool
	background sync.WaitGroup
}

// port is a Listener made ready.
type port struct {
	addr      string
	endpoints map[string]*endpoint
	none      *endpoint // stands for the endpoint before the head is known
}

// endpoint is an Endpoint made ready.
type endpoint struct {
	Endpoint
	port    *port
	parts   session.PartHandler // Handler, where it is one
	pending int                 // the bound on what waits for a peer
}

// New makes the server ready to run. It binds nothing: whether the addresses
// are free, its caller has found out (SO_REUSEPORT shares a taken port without
// a word).
func New(o Options) (*Server, error) {
	if o.Loops == 0 {
		o.Loops = runtime.GOMAXPROCS(0)
	}
	o.Loops = min(o.Loops, session.MaxLoops)
	if o.now == nil {
		o.now = time.Now
	}
	s := &Server{
		opts: o, log: o.Logger, ports: make(map[string]*port), made: time.Now(),
		kicks: make(chan *loop, session.MaxLoops), started: make(chan struct{}), done: make(chan struct{}),
	}
	if o.PingInterval > 0 {
		s.pingTicks, s.pongTicks = ticks(o.PingInterval), ticks(o.PongTimeout)
	}
	empty := []*loop{}
	s.loops.Store(&empty)
	for _, ln := range o.Listeners {
		p := &port{addr: ln.Addr, endpoints: make(map[string]*endpoint)}
		p.none = &endpoint{port: p, pending: o.PendingBytes}
		for _, e := range ln.Endpoints {
			// A message as large as allowed may be under way to a peer that is not slow.
			parts, _ := e.Handler.(session.PartHandler)
			p.endpoints[e.Path] = &endpoint{Endpoint: *e, port: p, parts: parts, pending: max(o.PendingBytes, 2*e.MessageSize)}
		}
		a, err := netip.ParseAddrPort(ln.Addr)
		if err != nil {
			return nil, fmt.Errorf("netpoll: listen on %s: %w", ln.Addr, err)
		}
		s.ports[a.String()] = p
		s.only = p
	}
	if len(s.ports) != 1 {
		s.only = nil
	}
	addr, err := net.ResolveTCPAddr("tcp", o.Listeners[0].Addr)
	if err != nil {
		return nil, fmt.Errorf("netpoll: listen: %w", err)
	}
	s.front = &front{server: s, conns: make(chan *handedConn, max(16, min(o.HTTPConnections, 1024))), closed: make(chan struct{}), addr: addr}
	if s.watcher, err = newWatcher(s); err != nil {
		return nil, err
	}
	s.memory.Store(math.MaxInt64 / 2)
	s.limits.Store(&o.Limits)
	s.admission = newAdmission(&o.Limits)
	s.deflater = newDeflater(s, o.Deflate, runtime.GOMAXPROCS(0))
	s.handler = events{server: s}
	return s, nil
}

// Run serves until Stop. ErrEngine: the event loops ended by themselves.
func (s *Server) Run() error {
	defer close(s.done)
	var addrs []string
	for _, ln := range s.opts.Listeners {
		network := "tcp"
		if a := netip.MustParseAddrPort(ln.Addr).Addr(); a.Is4() {
			network = "tcp4" // 32 bytes less a connection
		}
		addrs = append(addrs, network+"://"+ln.Addr)
	}
	s.background.Add(2)
	go s.kicker()
	go s.watcher.run()
	err := gnet.Rotate(&s.handler, addrs,
		gnet.WithReusePort(true), gnet.WithReuseAddr(true), gnet.WithNumEventLoop(s.opts.Loops),
		gnet.WithLoadBalancing(gnet.LeastConnections), gnet.WithTicker(true), gnet.WithLogger(gnetLog{s.log, s}),
		gnet.WithTCPNoDelay(gnet.TCPNoDelay))
	_ = s.front.Close()
	_ = s.watcher.file.Close()
	// gnet keeps an engine, and all that hangs on it, for as long as the process
	// lives: the tables of the connections go now.
	s.loops.Store(&[]*loop{})
	switch {
	case err != nil:
		return fmt.Errorf("netpoll: run: %w", err)
	case !s.stopping.Load():
		return ErrEngine
	}
	return nil
}

// SetLimits changes the limits while the server runs. It holds for connections
// that come from then on: none is ended. A bound on addresses where there was
// none at the start is not taken. Safe from any goroutine.
func (s *Server) SetLimits(l Limits) {
	s.limits.Store(&l)
	s.admission.set(&l)
}

// Started is closed when all loops take connections.
func (s *Server) Started() <-chan struct{} { return s.started }

// Refuse makes the server answer every further request head with 503.
func (s *Server) Refuse() {
	s.draining.Store(true)
	s.eachConn(func(_ *loop, c *conn) {
		if c.mode == modeWaiting {
			c.itsTurn()
		}
	})
}

// Stop closes what is still open and ends Run. The ticker tells gnet, within a
// tick: its own Stop looks twice a second whether it is done.
func (s *Server) Stop(ctx context.Context) error {
	s.stopping.Store(true)
	select {
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("netpoll: stop: %w", ctx.Err())
	}
	s.background.Wait()
	return nil
}

// Loop implements session.Loops.
func (s *Server) Loop(index int) session.Loop {
	if l := s.loop(index); l != nil {
		return l
	}
	return nil
}

// Each implements session.Loops.
func (s *Server) Each(f func(session.Loop)) { s.each(func(l *loop) { f(l) }) }

func (s *Server) loop(index int) *loop {
	loops := *s.loops.Load()
	if index >= len(loops) {
		return nil
	}
	return loops[index]
}

func (s *Server) each(f func(*loop)) {
	for _, l := range *s.loops.Load() {
		f(l)
	}
}

// EachSession calls f on every loop with every session of it that is open, a
// slice at a time. What it returns is closed when all loops are done. f does
// not keep the session; where it panics, that session ends.
func (s *Server) EachSession(f func(*session.Session)) (done <-chan struct{}) {
	return s.eachConn(func(l *loop, c *conn) {
		if c.live() && c.sessions {
			f(&c.sess)
		}
	})
}

// eachConn is EachSession for every connection.
func (s *Server) eachConn(f func(*loop, *conn)) (done <-chan struct{}) {
	ended := make(chan struct{})
	loops := *s.loops.Load()
	left := new(atomic.Int64)
	left.Store(int64(len(loops)) + 1)
	finish := func() {
		if left.Add(-1) == 0 {
			close(ended)
		}
	}
	for _, l := range loops {
		l.PostTask(0, &sweep{l: l, f: f, finish: finish})
	}
	finish()
	return ended
}

// sweepSlice is how many slots a sweep looks at in a turn.
const sweepSlice = 1024

type sweep struct {
	l      *loop
	f      func(*loop, *conn)
	finish func()
	at     int
}

// Run implements session.Task.
func (w *sweep) Run() (more bool) {
	end := min(w.at+sweepSlice, len(w.l.chunks)*int(chunkSize))
	for ; w.at < end; w.at++ {
		if c := w.l.conn(uint32(w.at)); c.socket != nil && c.mode < modeGone {
			w.l.guard(c, func() { w.f(w.l, c) })
		}
	}
	if w.at < len(w.l.chunks)*int(chunkSize) {
		return true
	}
	w.finish()
	return false
}

// loopOf finds or makes the loop of a gnet event loop, which is met with its
// first connection.
func (s *Server) loopOf(e gnet.EventLoop) *loop {
	for _, l := range *s.loops.Load() {
		if l.events == e {
			return l
		}
	}
	s.loopsMu.Lock()
	defer s.loopsMu.Unlock()
	old := *s.loops.Load()
	l := s.newLoop(len(old), e)
	l.join = make([]byte, 0, joinBytes)
	loops := append(append(make([]*loop, 0, len(old)+1), old...), l)
	s.loops.Store(&loops)
	return l
}

// portOf is the port of a new connection.
func (s *Server) portOf(c gnet.Conn) *port {
	if s.only != nil {
		return s.only
	}
	if p := s.ports[c.LocalAddr().String()]; p != nil {
		return p
	}
	return s.ports[s.opts.Listeners[0].Addr]
}

// tickNow asks every loop for a turn of its wheel.
func (s *Server) tickNow() time.Duration {
	s.startOnce.Do(func() {
		err := s.listening.find(s)
		if err != nil {
			s.log.Warn("listeners not found: a drain answers with 503 until its end", "err", err)
		}
		if err == nil {
			err = s.listening.tune(&s.opts)
		}
		if err != nil {
			s.log.Warn("listeners not tuned: silent connections are accepted, dead ones stay until their pong is due", "err", err)
		}
		close(s.started)
	})
	s.listening.resume(time.Now())
	s.ticked.Store(int64(time.Since(s.made)))
	s.each((*loop).tick)
	return tick
}

// Lag is for how long the slowest loop has not got round to the turn of its
// wheel that a tick asked for, or the ticks themselves have not come; a loop
// without connections has none. It is above a second where a handler blocks its
// loop, or something keeps the whole process. Safe from any goroutine.
func (s *Server) Lag() (lag time.Duration, index int) {
	now := time.Since(s.made)
	if s.stopping.Load() {
		return 0, -1
	}
	select {
	case <-s.started:
		lag = max(0, now-time.Duration(s.ticked.Load())-tick)
	default:
	}
	index = -1
	s.each(func(l *loop) {
		if asked := l.asked.Load(); asked > 0 && now-time.Duration(asked) > lag {
			lag, index = now-time.Duration(asked), l.index
		}
	})
	return lag, index
}
