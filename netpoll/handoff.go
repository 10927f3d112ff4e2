package netpoll

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"perch/session"
)

// handOff gives a connection to net/http: b is all that has been read of it.
func (c *conn) handOff(b []byte) {
	s := c.loop.server
	if s.handed.Add(1) > int64(s.opts.HTTPConnections) {
		s.handed.Add(-1)
		s.httpRefused.Add(1)
		c.refuseAs(overHTTP)
		c.overload()
		return
	}
	h, err := c.detach(append([]byte(nil), b...))
	if err != nil {
		s.handed.Add(-1)
		s.log.Warn("hand-off to net/http failed", "err", err)
		c.overload()
		return
	}
	h.port = c.endpoint.port
	if c.via&viaEntered != 0 {
		// It stays one of its address for as long as net/http has it.
		h.counted, h.entered = c.client().Addr(), c.via
	}
	if !s.front.offer(h) {
		_ = closeFD(h.fd)
		s.handed.Add(-1)
		s.httpRefused.Add(1)
		c.overload()
		return
	}
	c.via &^= viaEntered | viaAddress | viaSubnet
	c.loop.stats.Outcomes[OutcomeHandedOff].Add(1)
	c.reason = session.ReasonHandedOff
	c.mode = modeLinger // nothing of it is read here any more
	c.drop()
}

// front is the net.Listener from which net/http takes what is handed off.
type front struct {
	server *Server
	conns  chan *handedConn
	closed chan struct{}
	addr   net.Addr

	mu   sync.Mutex
	over bool // closed: nothing is offered any more
}

// Listener is where net/http finds the requests that are not upgraded here.
// Safe from any goroutine.
func (s *Server) Listener() net.Listener { return s.front }

// Accept implements net.Listener.
func (f *front) Accept() (net.Conn, error) {
	for {
		select {
		case h := <-f.conns:
			if err := h.open(); err != nil {
				f.server.log.Debug("hand-off to net/http failed", "err", err)
				continue
			}
			return h, nil
		case <-f.closed:
			return nil, net.ErrClosed
		}
	}
}

// offer puts h where Accept finds it; false: there is no room, or nobody will
// come for it.
func (f *front) offer(h *handedConn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return false
	}
	select {
	case f.conns <- h:
		return true
	default:
		return false
	}
}

// Close implements net.Listener. What waits to be accepted is closed.
func (f *front) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return nil
	}
	f.over = true
	close(f.closed)
	for {
		select {
		case h := <-f.conns:
			_ = closeFD(h.fd)
			h.giveBack()
		default:
			return nil
		}
	}
}

// Addr implements net.Listener.
func (f *front) Addr() net.Addr { return f.addr }

// handedConn is a connection that net/http serves. It does not embed the
// net.TCPConn, whose WriteTo would pass by the prefix.
type handedConn struct {
	server *Server
	port   *port
	tcp    *net.TCPConn
	fd     int // until open
	given  atomic.Bool
	from   netip.AddrPort // whose it is, where a PROXY header has said so
	// counted is the address of which it is one.
	counted netip.Addr
	entered via

	// One reader at a time: net/http's.
	prefix []byte
}

// open makes the net.TCPConn, in Accept's goroutine.
func (h *handedConn) open() error {
	f := os.NewFile(uintptr(h.fd), "perch-http")
	c, err := net.FileConn(f)
	_ = f.Close() // FileConn has a duplicate of its own
	if err != nil {
		h.giveBack()
		return err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		h.giveBack()
		_ = c.Close()
		return net.ErrClosed
	}
	h.tcp = tcp
	return nil
}

// giveBack frees the connection's place in the count, once.
func (h *handedConn) giveBack() {
	if h.given.CompareAndSwap(false, true) {
		h.server.handed.Add(-1)
		h.server.admission.leave(h.counted, h.entered)
	}
}

// release takes the net.TCPConn out: its place is free, and Close has nothing
// left to do.
func (h *handedConn) release() *net.TCPConn {
	if !h.given.CompareAndSwap(false, true) {
		return nil
	}
	h.server.handed.Add(-1)
	h.server.admission.leave(h.counted, h.entered)
	return h.tcp
}

// Read implements net.Conn.
func (h *handedConn) Read(p []byte) (int, error) {
	if len(h.prefix) > 0 {
		n := copy(p, h.prefix)
		h.prefix = h.prefix[n:]
		if len(h.prefix) == 0 {
			h.prefix = nil
		}
		return n, nil
	}
	return h.tcp.Read(p)
}

// ReadFrom lets net/http use sendfile.
func (h *handedConn) ReadFrom(r io.Reader) (int64, error) { return h.tcp.ReadFrom(r) }

// Write implements net.Conn.
func (h *handedConn) Write(p []byte) (int, error) { return h.tcp.Write(p) }

// CloseWrite lets net/http shut its side before it closes.
func (h *handedConn) CloseWrite() error { return h.tcp.CloseWrite() }

// Close implements net.Conn.
func (h *handedConn) Close() error {
	h.giveBack()
	return h.tcp.Close()
}

// LocalAddr implements net.Conn.
func (h *handedConn) LocalAddr() net.Addr { return h.tcp.LocalAddr() }

// RemoteAddr implements net.Conn. Behind a proxy that speaks the PROXY protocol it
// is that of the client.
func (h *handedConn) RemoteAddr() net.Addr {
	if h.from.IsValid() {
		return net.TCPAddrFromAddrPort(h.from)
	}
	return h.tcp.RemoteAddr()
}

// SetDeadline implements net.Conn.
func (h *handedConn) SetDeadline(t time.Time) error { return h.tcp.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (h *handedConn) SetReadDeadline(t time.Time) error { return h.tcp.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (h *handedConn) SetWriteDeadline(t time.Time) error { return h.tcp.SetWriteDeadline(t) }
