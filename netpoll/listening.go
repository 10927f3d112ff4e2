package netpoll

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// deferSeconds is how long the kernel keeps a connection that says nothing. It
// counts in retransmissions of its own, of which 1 is the least.
const deferSeconds = 1

// listening are the server's listening sockets. gnet has no way to them, so
// they are looked for among the process's descriptors, once, when all loops
// listen. They stay gnet's to close. Safe from any goroutine.
type listening struct {
	mu      sync.Mutex
	sockets []listenSocket
	until   time.Time // paused up to then; zero: they are in their epoll sets
	closed  bool      // nothing is done to them any more
}

// listenSocket is one of them, with the epoll set of its loop.
type listenSocket struct{ fd, epfd int }

// listenEvents are those for which gnet has its listeners watched.
const listenEvents = unix.EPOLLIN | unix.EPOLLPRI

// find looks for the listening sockets of s.
func (ls *listening) find(s *Server) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("netpoll: find listeners: %w", err)
	}
	var found []listenSocket
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || !s.listens(fd) {
			continue
		}
		epfd, err := epollOf(fd)
		if err != nil {
			return err
		}
		found = append(found, listenSocket{fd, epfd})
	}
	if len(found) == 0 {
		return fmt.Errorf("netpoll: find listeners: %w", fs.ErrNotExist)
	}
	ls.sockets = found
	return nil
}

// tune sets what connections inherit from our listeners, so that it costs no call
// for each of them.
//
// The kernel keeps new connections until their first bytes are there
// (TCP_DEFER_ACCEPT): one that never speaks costs no descriptor, and one that does
// is accepted and read in one turn of the loop. In a storm that is a tenth of the
// CPU.
//
// And it ends a connection whose peer has acknowledged nothing for half as long
// again as one may be silent (TCP_USER_TIMEOUT): what waits to be sent holds its
// memory no longer than that. The heartbeat comes first, where there is one, as it
// can say why.
func (ls *listening) tune(o *Options) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	set := func(what string, option, value int) error {
		for _, l := range ls.sockets {
			if err := unix.SetsockoptInt(l.fd, unix.IPPROTO_TCP, option, value); err != nil {
				return fmt.Errorf("netpoll: %s: %w", what, os.NewSyscallError("setsockopt", err))
			}
		}
		return nil
	}
	if o.DeferAccept {
		if err := set("defer accept", unix.TCP_DEFER_ACCEPT, deferSeconds); err != nil {
			return err
		}
	}
	if silence := o.silence(); silence > 0 {
		return set("user timeout", unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()*3/2))
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

// pause takes the listeners out of their epoll sets for d. All of them: what a
// process or a kernel runs out of, no other loop has.
func (ls *listening) pause(d time.Duration) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.closed || len(ls.sockets) == 0 {
		return
	}
	if ls.until.IsZero() {
		for _, l := range ls.sockets {
			_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, l.fd, nil) // it may be out already
		}
	}
	ls.until = time.Now().Add(d)
}

// resume ends a pause whose time is over. Where the kernel does not take a
// listener back, for want of memory, the next tick tries again.
func (ls *listening) resume(now time.Time) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.closed || ls.until.IsZero() || now.Before(ls.until) {
		return
	}
	for _, l := range ls.sockets {
		ev := unix.EpollEvent{Events: listenEvents, Fd: int32(l.fd)}
		if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, l.fd, &ev); err != nil && !errors.Is(err, unix.EEXIST) {
			return
		}
	}
	ls.until = time.Time{}
}

// over tells whether the sockets listen no more.
func (ls *listening) over() bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.closed
}

// leave is for the end of the engine: the descriptors are about to be others'.
func (ls *listening) leave() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.closed = true
	ls.sockets = nil
}

// refuse shuts the sockets down: from then on the kernel resets who connects,
// or has another process that listens on the port (SO_REUSEPORT) take them,
// and the port can be bound anew although this process lives on. A socket that
// is shut down but still watched would report a hang-up without end, so it
// leaves its epoll set before. It is not closed: its number stays taken until
// gnet closes it.
func (ls *listening) refuse() error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.closed {
		return nil
	}
	ls.closed = true
	var errs []error
	for _, l := range ls.sockets {
		_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, l.fd, nil) // out already in a pause
		if err := unix.Shutdown(l.fd, unix.SHUT_RDWR); err != nil {
			errs = append(errs, os.NewSyscallError("shutdown", err))
		}
	}
	if len(ls.sockets) == 0 {
		errs = append(errs, fs.ErrNotExist)
	}
	return errors.Join(errs...)
}

// queued is how many connections the kernel has ready for the loops: tcp(7)
// says it for a listener in tcpi_unacked.
func (ls *listening) queued() (n int) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.closed || !ls.until.IsZero() {
		return 0 // nobody takes them
	}
	for _, l := range ls.sockets {
		if info, err := unix.GetsockoptTCPInfo(l.fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n += int(info.Unacked)
		}
	}
	return n
}

const (
	// unlistenFor is how long the queues of the kernel get to run empty, and
	// unlistenLook how often they are looked at.
	unlistenFor  = 250 * time.Millisecond
	unlistenLook = time.Millisecond
)

// Unlisten ends the listening: heads are answered with 503, those who wait in
// the kernel's queues still get that answer, and whoever connects afterwards
// is reset by the kernel, or served by another process on the same port, while
// the connections that there are live on. Safe from any goroutine.
func (s *Server) Unlisten(ctx context.Context) error {
	s.Refuse()
	ctx, cancel := context.WithTimeout(ctx, unlistenFor)
	defer cancel()
	t := time.NewTicker(unlistenLook)
	defer t.Stop()
	// What has been read already, and waits for net/http, is taken as well.
	for ctx.Err() == nil && s.listening.queued()+len(s.front.conns) > 0 {
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if err := s.listening.refuse(); err != nil {
		return fmt.Errorf("netpoll: unlisten: %w", err)
	}
	return nil
}
