package netpoll

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"perch/session"
)

// watcher waits until blocked conns can be written to again, which gnet tells
// nobody. It is an epoll set of its own, with the blocked descriptors only,
// which itself hangs in the runtime's poller: it costs no thread, and nothing
// while no peer is slow.
type watcher struct {
	server *Server
	epfd   int
	file   *os.File
	raw    syscall.RawConn
}

func newWatcher(s *Server) (*watcher, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("netpoll: watcher: %w", os.NewSyscallError("epoll_create1", err))
	}
	if err := unix.SetNonblock(epfd, true); err != nil {
		_ = closeFD(epfd)
		return nil, fmt.Errorf("netpoll: watcher: %w", os.NewSyscallError("fcntl", err))
	}
	w := &watcher{server: s, epfd: epfd, file: os.NewFile(uintptr(epfd), "perch-writable")}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, fmt.Errorf("netpoll: watcher: %w", err)
	}
	return w, nil
}

// add asks for one post when c can be written to. Runs on the loop of c.
func (w *watcher) add(c *conn) error {
	id := uint64(c.id())
	ev := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	op := unix.EPOLL_CTL_ADD
	if c.out.watched {
		op = unix.EPOLL_CTL_MOD
	}
	if err := unix.EpollCtl(w.epfd, op, int(c.fd), &ev); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	c.out.watched = true
	return nil
}

// remove takes c out of the set. Runs on the loop of c, before its descriptor
// is closed.
func (w *watcher) remove(c *conn) {
	_ = unix.EpollCtl(w.epfd, unix.EPOLL_CTL_DEL, int(c.fd), nil) // gone already where the descriptor is
}

// run posts what comes up until the watcher is closed.
func (w *watcher) run() {
	defer w.server.background.Done()
	events := make([]unix.EpollEvent, 256)
	for {
		n := 0
		err := w.raw.Read(func(uintptr) bool {
			var err error
			if n, err = unix.EpollWait(w.epfd, events, 0); err != nil {
				n = 0
			}
			return n > 0
		})
		if err != nil {
			return
		}
		for _, ev := range events[:n] {
			id := session.ID(uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32)
			if l := w.server.loop(id.Loop()); l != nil {
				l.put(item{kind: itemWritable, id: id})
			}
		}
	}
}

func closeFD(fd int) error { return unix.Close(fd) }
