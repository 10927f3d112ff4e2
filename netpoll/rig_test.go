package netpoll

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"perch/session"
)

// rig is a loop without an engine: the test's goroutine is the loop's, and
// every conn has one end of a real socket pair. Nothing moves unless the test
// moves it; within a synctest bubble the wheel's clock is the bubble's.
type rig struct {
	t       testing.TB
	server  *Server
	loop    *loop
	events  *fakeEvents
	handler *recorder
	peers   map[*peer]struct{} // not yet ended
	remote  net.Addr           // of who comes; nil: 192.0.2.1
	buf     [256 << 10]byte
}

// fakeEvents stands for gnet's event loop.
type fakeEvents struct {
	gnet.EventLoop
	server *Server
	wakes  chan struct{}
	second bool // a wake-up was asked for while one was on its way
}

func (e *fakeEvents) Execute(context.Context, gnet.Runnable) error {
	select {
	case e.wakes <- struct{}{}:
	default:
		e.second = true
	}
	return nil
}

// Close is gnet's: OnClose runs within, then the descriptor goes.
func (e *fakeEvents) Close(c gnet.Conn) error {
	k := c.(*fakeSocket)
	if k.gone {
		return nil
	}
	k.gone = true
	e.server.handler.OnClose(k, nil)
	return unix.Close(k.fd)
}

// fakeSocket stands for gnet's connection.
type fakeSocket struct {
	gnet.Conn
	events *fakeEvents
	fd     int
	ctx    any
	buf    []byte
	gone   bool
	remote net.Addr // nil: 192.0.2.1
}

func (k *fakeSocket) Fd() int                   { return k.fd }
func (k *fakeSocket) Dup() (int, error)         { return unix.Dup(k.fd) }
func (k *fakeSocket) Context() any              { return k.ctx }
func (k *fakeSocket) SetContext(ctx any)        { k.ctx = ctx }
func (k *fakeSocket) EventLoop() gnet.EventLoop { return k.events }
func (k *fakeSocket) LocalAddr() net.Addr       { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (k *fakeSocket) Next(int) ([]byte, error)  { b := k.buf; k.buf = nil; return b, nil }
func (k *fakeSocket) RemoteAddr() net.Addr {
	if k.remote != nil {
		return k.remote
	}
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7}
}

// recorder is a Handler that writes down what it is told, and answers where it
// is asked to.
type recorder struct {
	log     []string
	opened  func(*session.Session)
	message func(s *session.Session, data []byte, binary bool)
	expire  func(*session.Session)
	closed  func(*session.Session, session.Reason)
	quiet   bool
}

func (h *recorder) note(format string, args ...any) {
	if !h.quiet {
		h.log = append(h.log, fmt.Sprintf(format, args...))
	}
}

func (h *recorder) Open(s *session.Session, _ any) {
	h.note("open")
	if h.opened != nil {
		h.opened(s)
	}
}

func (h *recorder) Message(s *session.Session, data []byte, binary bool) {
	if !h.quiet {
		kind := "text"
		if binary {
			kind = "binary"
		}
		h.note("%s:%s", kind, data)
	}
	if h.message != nil {
		h.message(s, data, binary)
	}
}

func (h *recorder) Expire(s *session.Session) {
	h.note("expire")
	if h.expire != nil {
		h.expire(s)
	}
}

func (h *recorder) Closed(s *session.Session, r session.Reason) {
	h.note("closed:%v", r)
	if h.closed != nil {
		h.closed(s, r)
	}
}

// options are what the tests' servers have unless they say otherwise.
func options(addr string, h session.Handler) Options {
	return Options{
		Listeners: []Listener{{Addr: addr, Endpoints: []*Endpoint{{
			Path: "/echo", Handler: h, MessageSize: 16 << 20, Check: accept,
		}}}},
		Loops: 2, Logger: slog.New(slog.DiscardHandler), HTTPConnections: 16,
		Limits:       Limits{Connections: 1000, HardConnections: 1100, HandshakeTimeout: 5 * time.Second},
		PendingBytes: 1 << 20, InboxBytes: 1 << 20,
		PingInterval: 25 * time.Second, PongTimeout: 8 * time.Second, PingMisses: 1,
	}
}

func newRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	h := &recorder{}
	o := options("127.0.0.1:1", h) // nothing listens there
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	e := &fakeEvents{server: s, wakes: make(chan struct{}, 1)}
	r := &rig{t: t, server: s, events: e, loop: s.loopOf(e), handler: h, peers: make(map[*peer]struct{})}
	t.Cleanup(r.end)
	return r
}

// watch runs the watcher, as Run does.
func (r *rig) watch() {
	r.server.background.Add(1)
	go r.server.watcher.run()
}

// end closes what is open and checks that nothing is left of it.
func (r *rig) end() {
	for p := range r.peers {
		p.end()
	}
	_ = r.server.watcher.file.Close()
	r.server.background.Wait()
	r.idle()
	if n := r.loop.stats.Open.Load(); n != 0 {
		r.t.Errorf("%d conns open at the end", n)
	}
	if n := r.server.open.Load(); n != 0 {
		r.t.Errorf("the server counts %d connections at the end", n)
	}
	if n := r.loop.stats.Sessions.Load(); n != 0 {
		r.t.Errorf("%d sessions at the end", n)
	}
	if n := r.loop.wheel.count; n != 0 {
		r.t.Errorf("%d entries in the wheel at the end", n)
	}
	if r.events.second {
		r.t.Error("two wake-ups on their way at once")
	}
	if n := len(r.loop.clients); n != 0 {
		r.t.Errorf("%d clients of proxies at the end", n)
	}
	for i := range r.server.admission.scopes {
		for j := range r.server.admission.scopes[i].shards {
			if n := len(r.server.admission.scopes[i].shards[j].count); n != 0 {
				r.t.Errorf("%d addresses are counted at the end", n)
			}
		}
	}
	if n := len(r.loop.free); n != len(r.loop.chunks)*int(chunkSize) {
		r.t.Errorf("%d of %d slots are free at the end", n, len(r.loop.chunks)*int(chunkSize))
	}
	for i := range len(r.loop.chunks) * int(chunkSize) {
		if c := r.loop.conn(uint32(i)); c.socket != nil || c.in != nil || c.out != nil {
			r.t.Errorf("slot %d keeps what it had", i)
		}
	}
}

// idle checks that nothing waits and no buffer is counted.
func (r *rig) idle() {
	r.t.Helper()
	if n := int64(r.loop.stats.PendingBytes.Load()); n != 0 {
		r.t.Errorf("%d bytes pending", n)
	}
	if n := r.loop.stats.PartialBytes.Load(); n != 0 && len(r.peers) == 0 {
		r.t.Errorf("%d partial bytes with nobody there", n)
	}
	for _, c := range r.loop.dirty {
		if c != nil {
			r.t.Error("a conn is listed for a flush")
		}
	}
}

// peer is the other end of a conn.
type peer struct {
	r      *rig
	c      *conn
	socket *fakeSocket
	fd     int
	eof    bool
}

// accept opens a connection; nil where the server closed it at once.
func (r *rig) accept() *peer {
	r.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.acceptOn(fds[0], fds[1])
}

// acceptOn opens a connection that is written to through fd and read at far.
func (r *rig) acceptOn(fd, far int) *peer {
	k := &fakeSocket{events: r.events, fd: fd, remote: r.remote}
	p := &peer{r: r, socket: k, fd: far}
	if _, action := r.server.handler.OnOpen(k); action == gnet.Close {
		p.end()
		return nil
	}
	p.c = k.ctx.(*conn)
	r.peers[p] = struct{}{}
	return p
}

// end closes both ends.
func (p *peer) end() {
	_ = p.r.events.Close(p.socket)
	p.hangUp()
	delete(p.r.peers, p)
}

// hangUp closes the peer's end.
func (p *peer) hangUp() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
		p.fd = -1
	}
}

// gone tells whether the server has closed the connection.
func (p *peer) gone() bool { return p.socket.gone }

// feed is what gnet does when the socket has bytes. The server may change what
// it is fed, so it gets a copy.
func (p *peer) feed(b []byte) { p.feedInPlace(bytes.Clone(b)) }

func (p *peer) feedInPlace(b []byte) {
	if p.socket.gone {
		return
	}
	p.socket.buf = b
	if p.r.server.handler.OnTraffic(p.socket) == gnet.Close {
		_ = p.r.events.Close(p.socket)
	}
}

// take reads what has come, and notes the end.
func (p *peer) take() []byte {
	var out []byte
	for {
		n, err := unix.Read(p.fd, p.r.buf[:])
		switch {
		case n > 0:
			out = append(out, p.r.buf[:n]...)
		case err == unix.EINTR:
		case n == 0 && err == nil:
			p.eof = true
			return out
		default:
			return out
		}
	}
}

// handed is the connection that was given to net/http, or nil. Its descriptor
// is closed already.
func (r *rig) handed() *handedConn {
	select {
	case h := <-r.server.front.conns:
		_ = closeFD(h.fd)
		h.giveBack()
		return h
	default:
		return nil
	}
}

// step is a turn of the inbox, in case one was asked for.
func (r *rig) step() {
	select {
	case <-r.events.wakes:
		r.loop.turn(true)
	default:
	}
}

// turn is as many turns as the inbox needs.
func (r *rig) turn() {
	for r.step(); ; r.loop.turn(true) {
		select {
		case <-r.server.kicks:
		default:
			return
		}
	}
}

// tick is what the engine's ticker brings about.
func (r *rig) tick() {
	r.loop.tick()
	r.turn()
}

const upgradeHead = "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"

// upgraded opens a connection and makes it a WebSocket.
func (r *rig) upgraded() *peer {
	r.t.Helper()
	p := r.accept()
	p.upgrade()
	return p
}

func (p *peer) upgrade() {
	p.r.t.Helper()
	p.feed([]byte(upgradeHead))
	if got := string(p.take()); got != switching {
		p.r.t.Fatalf("the handshake's answer is %q", got)
	}
}

// sess is the session at the server.
func (p *peer) sess() *session.Session { return &p.c.sess }

// masked is a client's frame.
func masked(op ws.OpCode, fin bool, payload string) []byte {
	f := ws.NewFrame(op, fin, []byte(payload))
	b, err := ws.CompileFrame(ws.MaskFrameWith(f, [4]byte{0x37, 0xfa, 0x21, 0x3d}))
	if err != nil {
		panic(err)
	}
	return b
}

// frames takes apart what a server has sent; rest is an incomplete frame.
func frames(t testing.TB, b []byte) (out []ws.Frame, rest []byte) {
	t.Helper()
	for len(b) > 0 {
		r := bytes.NewReader(b)
		f, err := readFrame(r)
		if err != nil {
			return out, b
		}
		if err := ws.CheckHeader(f.Header, ws.StateClientSide); err != nil {
			t.Fatalf("the server sent a bad frame: %v", err)
		}
		out = append(out, f)
		b = b[len(b)-r.Len():]
	}
	return out, nil
}

// closeOf is the code and the text of a close frame; -1 where f is none.
func closeOf(f ws.Frame) (int, string) {
	if f.Header.OpCode != ws.OpClose {
		return -1, ""
	}
	if len(f.Payload) < 2 {
		return 0, ""
	}
	code, text := ws.ParseCloseFrameData(f.Payload)
	return int(code), text
}

// cuts calls f with b whole, byte by byte, and cut once at every boundary.
func cuts(b []byte, f func(how string, pieces [][]byte)) {
	f("whole", [][]byte{b})
	var single [][]byte
	for i := range b {
		single = append(single, b[i:i+1:i+1])
	}
	f("byte by byte", single)
	for i := 1; i < len(b); i++ {
		f(fmt.Sprintf("cut at %d", i), [][]byte{b[:i:i], b[i:]})
	}
}

// feedAll feeds pieces and returns what is answered.
func (p *peer) feedAll(pieces [][]byte) (answer []byte) {
	for _, b := range pieces {
		p.feed(b)
		answer = append(answer, p.take()...)
	}
	return answer
}
