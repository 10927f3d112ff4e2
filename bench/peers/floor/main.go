//go:build linux

// Command floor is the least that a WebSocket server in Go can do for a
// message: an epoll loop of its own, one read and one write per ready socket,
// nothing allocated, nothing kept of an idle connection but 8 bytes. Whatever
// Perch spends beyond it is the price of its features. It trusts its clients:
// there are no limits, no timeouts and no checks of UTF-8.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8100", "IPv4 host:port")
	loops := flag.Int("loops", 2, "event loops, each with a listening socket")
	ping := flag.Duration("ping", 0, "time between two pings of a connection; 0: none")
	flag.Parse()
	if err := run(*listen, *loops, *ping); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

// run returns when a loop fails.
func run(listen string, n int, ping time.Duration) error {
	if n < 1 || ping < 0 {
		return errors.New("-loops is at least 1, -ping at least 0")
	}
	addr, err := net.ResolveTCPAddr("tcp4", listen)
	if err != nil {
		return err
	}
	if addr.Port == 0 {
		return errors.New("-listen needs a port: with 0 each loop would get its own")
	}
	all := make([]*loop, n)
	for i := range all {
		if all[i], err = newLoop(addr, ping); err != nil {
			return err
		}
	}
	failed := make(chan error, n)
	for i, l := range all {
		for j, o := range all {
			if i != j {
				l.others = append(l.others, o)
			}
		}
	}
	for _, l := range all {
		go func() {
			// Not locked to its thread: the runtime interrupts a busy goroutine every
			// 10 ms, and handing it back to a thread of its own takes futex calls.
			failed <- l.run()
		}()
	}
	return <-failed
}

// bind opens a listening socket. The sockets it accepts inherit TCP_NODELAY.
// With TCP_DEFER_ACCEPT the request's head has arrived when accept returns: a
// connection costs one accept, one read, one write and one epoll_ctl, and
// wakes its loop once.
func bind(addr *net.TCPAddr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	sa := &unix.SockaddrInet4{Port: addr.Port}
	copy(sa.Addr[:], addr.IP.To4())
	if err := unix.Bind(fd, sa); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	// The kernel cuts the backlog down to net.core.somaxconn.
	return fd, os.NewSyscallError("listen", unix.Listen(fd, 1<<16))
}
