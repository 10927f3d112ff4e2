package netpoll

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// deferSeconds is how long the kernel keeps a connection that says nothing. It
// counts in retransmissions of its own, of which 1 is the least.
const deferSeconds = 1

// firstBytes is how much is read of a new connection at once.
const firstBytes = 4 << 10

// tuneListeners sets what connections inherit from our listeners, so that it
// costs no call for each of them.
//
// The kernel keeps new connections until their first bytes are there
// (TCP_DEFER_ACCEPT): one that never speaks costs no descriptor, and one that
// does is accepted and read in one turn of the loop. In a storm that is a tenth
// of the CPU.
//
// And it ends a connection whose peer has acknowledged nothing for as long as one
// may be silent (TCP_USER_TIMEOUT): what waits to be sent again holds its memory
// no longer than that.
//
// gnet has neither the options nor a way to its listeners, so they are looked for
// among the process's descriptors.
func (s *Server) tuneListeners() error {
	silence := int(s.opts.silence().Milliseconds())
	if !s.opts.DeferAccept && silence == 0 {
		return nil
	}
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("netpoll: tune listeners: %w", err)
	}
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || !s.listens(fd) {
			continue
		}
		if s.opts.DeferAccept {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferSeconds); err != nil {
				return fmt.Errorf("netpoll: defer accept: %w", os.NewSyscallError("setsockopt", err))
			}
		}
		if silence > 0 {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, silence); err != nil {
				return fmt.Errorf("netpoll: user timeout: %w", os.NewSyscallError("setsockopt", err))
			}
		}
	}
	return nil
}

// listens tells whether a descriptor is one of our listeners.
func (s *Server) listens(fd int) bool {
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || v == 0 {
		return false
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	var at netip.AddrPort
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		at = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		at = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return s.ports[at.String()] != nil
}

// readFirst reads what a new connection has said already. What is not there,
// or an error, is left to gnet, which hears of it from epoll.
func (c *conn) readFirst() {
	l := c.loop
	if l.first == nil {
		l.first = make([]byte, firstBytes)
	}
	if n, err := readNow(int(c.fd), l.first); err == nil && n > 0 {
		c.traffic(l.first[:n])
		l.flushDirty()
	}
}
