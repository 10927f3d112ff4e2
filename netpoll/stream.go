package netpoll

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"perch/session"
)

// The byte stream of a conn. All bytes in and out pass through here: what
// encrypts them stands between these functions and the descriptor.

// ErrStopped says that the server takes no connection any more.
var ErrStopped = errors.New("netpoll: stopped")

// errBlocked says that the peer takes nothing at the moment.
var errBlocked = errors.New("netpoll: write would block")

// send writes b and returns how much of it was taken. errBlocked: the rest has
// to wait until the descriptor is writable.
func (c *conn) send(b []byte) (int, error) {
	sent := 0
	for sent < len(b) {
		n, err := writeNow(int(c.fd), b[sent:])
		c.loop.stats.Writes.Add(1)
		if n > 0 {
			sent += n
		}
		switch err {
		case nil:
		case unix.EINTR:
		case unix.EAGAIN:
			return sent, errBlocked
		default:
			return sent, os.NewSyscallError("write", err)
		}
	}
	return sent, nil
}

// shut ends our sending side; the peer sees the end behind the last byte.
func (c *conn) shut() {
	if !c.half {
		c.half = true
		_ = unix.Shutdown(int(c.fd), unix.SHUT_WR) // fails where the peer is gone already
	}
}

// detach makes a net.Conn of the stream whose Read begins with prefix. The
// conn keeps its own descriptor, which the caller closes by dropping c: gnet
// takes it out of its epoll set and never shuts the connection down, so the
// duplicate lives on.
func (c *conn) detach(prefix []byte) (*handedConn, error) {
	fd, err := c.socket.Dup()
	if err != nil {
		return nil, fmt.Errorf("netpoll: duplicate descriptor: %w", err)
	}
	h := &handedConn{server: c.loop.server, fd: fd, prefix: prefix}
	if c.via&viaProxy != 0 {
		h.from = c.client()
	}
	return h, nil
}

// input is where the bytes of a conn enter. b may be changed and dies with the
// call.
func (c *conn) input(b []byte) {
	c.loop.stats.BytesIn.Add(uint64(len(b)))
	switch c.mode {
	case modeHead:
		c.readHead(b)
	case modePreface:
		c.readPreface(b)
	case modeChecking, modeWaiting:
		c.holdChecking(b)
	case modeWebSocket:
		c.readFrames(b)
	case modeEvents:
		c.readNothing(b)
	}
}

// adopted is a connection on its way to a loop that did not accept it: from
// net/http, or from another server.
type adopted struct {
	prefix []byte // the request head, made anew, and what followed it
	port   *port
	from   netip.AddrPort // whose it is, where a PROXY header has said so
	moved  *Moved         // instead of prefix
}

// Adopt gives a connection that Listener handed out to an event loop: prefix
// is the request head and what has been read behind it. It is how an upgrade
// that comes on a kept-alive connection reaches its endpoint. conn belongs to
// Adopt from here on, also when it fails. Safe from any goroutine.
func (s *Server) Adopt(conn net.Conn, prefix []byte) error {
	h, ok := conn.(*handedConn)
	if !ok {
		_ = conn.Close()
		return fmt.Errorf("netpoll: adopt %T: not a connection of this server", conn)
	}
	tcp := h.release()
	if tcp == nil {
		return net.ErrClosed
	}
	return s.enroll(tcp, &adopted{prefix: prefix, port: h.port, from: h.from})
}

// enroll gives a connection to the loop with the fewest. Where none runs yet,
// gnet chooses one.
func (s *Server) enroll(c net.Conn, ad *adopted) error {
	if s.stopping.Load() {
		shutBoth(c)
		_ = c.Close()
		return ErrStopped
	}
	var best *loop
	s.each(func(l *loop) {
		if best == nil || l.stats.Open.Load() < best.stats.Open.Load() {
			best = l
		}
	})
	var results <-chan gnet.RegisteredResult
	var err error
	if ctx := gnet.NewContext(context.Background(), ad); best != nil {
		results, err = best.events.Enroll(ctx, c)
	} else {
		results, err = s.engine.Register(gnet.NewNetConnContext(ctx, c))
	}
	if err != nil {
		_ = c.Close()
		return fmt.Errorf("netpoll: enroll: %w", err)
	}
	select {
	case r := <-results:
		if r.Err != nil {
			return fmt.Errorf("netpoll: enroll: %w", r.Err)
		}
		return nil
	case <-s.done:
		// The loop ended before it took the connection, and gnet waits for it. Its
		// duplicate is out of reach, but the peer can be told.
		shutBoth(c)
		_ = c.Close()
		return ErrStopped
	}
}

// shutBoth ends a connection for all descriptors of it.
func shutBoth(c net.Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

// gone says that writing to the peer failed: there is nobody to tell.
func (c *conn) gone() {
	c.end(session.ReasonPeerGone)
	c.drop()
}
