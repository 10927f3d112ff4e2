//go:build linux

package main

import (
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is what one read takes at the most.
	bufferSize = 64 << 10
	// maxEvents is how many ready sockets one epoll_wait reports.
	maxEvents = 512
	// beats is in how many steps the connections get their pings.
	beats = 256
	// chunkSize is by how many descriptors the table grows. Nothing is copied
	// and left behind for the collector then.
	chunkSize = 1024
)

// conn is what is kept of a connection. The zero value is none.
type conn struct {
	state   uint8
	rest    uint8
	blocked bool  // bytes wait in loop.unsent; the socket is watched for room alone
	sub     int32 // its place in loop.subs
}

const (
	stateHead = iota + 1
	stateEcho
	stateTopic
)

// Of an incomplete head or frame.
const (
	restNone  = iota
	restSmall // is put in front of what the next read brings
	restBig   // is larger than the loop's buffer: has its own
)

// loop is one goroutine's: sockets, buffers and all. Only what stands under mu is
// touched by others.
type loop struct {
	epoll, listener, wake int
	others                []*loop
	events                [maxEvents]unix.EpollEvent
	conns                 [][]conn // by descriptor, in chunks

	buf     []byte           // what a read fills
	control []byte           // answers to the control frames of a publisher
	answer  []byte           // to an opening handshake
	pub     []byte           // the publications of this turn, as frames
	taken   []byte           // inbox, while it is delivered
	rests   map[int32][]byte // incomplete heads and frames
	unsent  map[int32][]byte // what a full socket did not take
	subs    []int32          // who is on /topic

	every  time.Duration // between two pings of a connection
	last   time.Time     // pings have been sent until then
	due    float64       // descriptors to look at, and a fraction
	cursor int

	subscribers atomic.Int32 // len(subs), for the others

	mu    sync.Mutex
	inbox []byte // publications of other loops, as frames
}

func newLoop(addr *net.TCPAddr, every time.Duration) (*loop, error) {
	l := &loop{
		every: every, last: time.Now(),
		buf:    make([]byte, bufferSize),
		rests:  make(map[int32][]byte),
		unsent: make(map[int32][]byte),
	}
	var err error
	if l.listener, err = bind(addr); err != nil {
		return nil, err
	}
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	// Edge-triggered, the eventfd reports each write once and need not be read.
	for fd, events := range map[int]uint32{l.listener: unix.EPOLLIN, l.wake: unix.EPOLLIN | unix.EPOLLET} {
		ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
		if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
	}
	return l, nil
}

func (l *loop) run() error {
	timeout := -1
	if l.every > 0 {
		timeout = max(int(l.every.Milliseconds())/beats, 1)
	}
	for {
		// The one call that sleeps goes through the scheduler, 20 ns more, so that
		// the runtime can have the processor meanwhile. All others return at once.
		n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll),
			uintptr(unsafe.Pointer(&l.events[0])), maxEvents, uintptr(timeout), 0, 0)
		if errno != 0 {
			if errno == unix.EINTR {
				continue
			}
			return os.NewSyscallError("epoll_wait", errno)
		}
		woken := false
		for i := range l.events[:n] {
			switch fd := l.events[i].Fd; fd {
			case int32(l.listener):
				if err := l.accept(); err != nil {
					return err
				}
			case int32(l.wake):
				woken = true
			default:
				// A descriptor that the same turn closed has no other event in it.
				if c := l.conn(fd); c.blocked {
					l.writable(fd, c)
				} else {
					l.readable(fd, c)
				}
			}
		}
		l.deliver(woken)
		if l.every > 0 {
			l.beat(time.Duration(timeout) * time.Millisecond)
		}
	}
}

// conn is the connection of a descriptor.
func (l *loop) conn(fd int32) *conn { return &l.conns[fd/chunkSize][fd%chunkSize] }

// accept takes one connection. Looking for a second where there is none costs
// the kernel more than reporting it with the next turn's sockets.
func (l *loop) accept() error {
	r, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l.listener), 0, 0, unix.SOCK_NONBLOCK, 0, 0)
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR, unix.ECONNABORTED:
		return nil
	default:
		// Out of descriptors, the listener would stay ready and spin.
		return os.NewSyscallError("accept4", errno)
	}
	fd := int32(r)
	for int(fd) >= len(l.conns)*chunkSize {
		l.conns = append(l.conns, make([]conn, chunkSize))
	}
	c := l.conn(fd)
	*c = conn{state: stateHead}
	if l.readable(fd, c); c.state != 0 && !c.blocked {
		l.watch(fd, unix.EPOLL_CTL_ADD, unix.EPOLLIN)
	}
	return nil
}

// watch tells what the loop wants to hear of a socket.
func (l *loop) watch(fd int32, op int, events uint32) {
	ev := unix.EpollEvent{Events: events, Fd: fd}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.epoll), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(&ev)), 0, 0)
	if errno == unix.ENOENT && op == unix.EPOLL_CTL_MOD {
		// The answer to the very first read did not fit.
		l.watch(fd, unix.EPOLL_CTL_ADD, events)
	}
}

// send writes p or keeps what the socket does not take. False means that the
// connection is closed.
func (l *loop) send(fd int32, c *conn, p []byte) bool {
	if c.blocked {
		l.unsent[fd] = append(l.unsent[fd], p...)
		return true
	}
	n, errno := write(fd, p)
	if n == len(p) {
		return true
	}
	if errno != 0 && errno != unix.EAGAIN {
		l.close(fd, c)
		return false
	}
	l.unsent[fd] = append([]byte(nil), p[n:]...)
	c.blocked = true
	// Who does not read is not read from.
	l.watch(fd, unix.EPOLL_CTL_MOD, unix.EPOLLOUT)
	return true
}

// writable sends what waited for room.
func (l *loop) writable(fd int32, c *conn) {
	p := l.unsent[fd]
	n, errno := write(fd, p)
	switch {
	case errno != 0 && errno != unix.EAGAIN:
		l.close(fd, c)
	case n < len(p):
		l.unsent[fd] = p[n:]
	default:
		delete(l.unsent, fd)
		c.blocked = false
		l.watch(fd, unix.EPOLL_CTL_MOD, unix.EPOLLIN)
	}
}

// close ends a connection; its descriptor may be another's from then on.
func (l *loop) close(fd int32, c *conn) {
	if c.state == stateTopic {
		l.unsubscribe(c)
	}
	if c.rest != restNone {
		delete(l.rests, fd)
	}
	if c.blocked {
		delete(l.unsent, fd)
	}
	*c = conn{}
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// beat sends the pings that have come due in steps of at least step. The
// cursor goes once around the table of descriptors in l.every.
func (l *loop) beat(step time.Duration) {
	now := time.Now()
	passed := now.Sub(l.last)
	if passed < step {
		return
	}
	l.last = now
	size := len(l.conns) * chunkSize
	if l.due += float64(size) * float64(passed) / float64(l.every); l.due > float64(size) {
		l.due = float64(size)
	}
	for ; l.due >= 1; l.due-- {
		if l.cursor++; l.cursor >= size {
			l.cursor = 0
		}
		fd := int32(l.cursor)
		if c := l.conn(fd); c.state >= stateEcho && !c.blocked {
			l.send(fd, c, pingFrame)
		}
	}
}

// read and write do not sleep, so the scheduler need not know of them.

func read(fd int32, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// write is sendto for the sake of MSG_NOSIGNAL: a peer that is gone is an error,
// not a SIGPIPE.
func write(fd int32, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
