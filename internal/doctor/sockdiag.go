package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listener is what the kernel tells of a listening socket.
type Listener struct {
	Inode   uint32
	Waiting int64 // connections in its accept queue
	Backlog int64 // the length of that queue which is in force
}

// The layouts of linux/inet_diag.h: a request is inet_diag_req_v2, an answer
// inet_diag_msg, and both hold an inet_diag_sockid.
const (
	diagRequestSize = 56
	diagSize        = 72
	tcpListen       = 10
	// An answer that does not come is no reason to wait for long.
	diagTimeout = 2 // seconds
)

// errDiag is an answer that reads otherwise than we know it.
var errDiag = errors.New("doctor: sock_diag: unknown format")

// askListeners asks the kernel by netlink for the TCP sockets that listen on a
// port, in the network namespace of this process. The backlog in force stands
// nowhere else.
func askListeners(port int) ([]Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("doctor: sock_diag: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: diagTimeout}); err != nil {
		return nil, fmt.Errorf("doctor: sock_diag: %w", err)
	}
	var all []Listener
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := unix.Sendto(fd, diagRequest(family, port), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, fmt.Errorf("doctor: sock_diag: %w", err)
		}
		// The kernel fills at most 32 KiB of one read.
		b := make([]byte, 64<<10)
		for end := false; !end; {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("doctor: sock_diag: %w", err)
			}
			if all, end, err = diagAnswer(b[:n], port, all); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// diagRequest asks for the listeners of one family. The kernel passes over
// those of other ports, and does not look at connections.
func diagRequest(family byte, port int) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+diagRequestSize)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	r := b[unix.NLMSG_HDRLEN:]
	r[0], r[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(r[4:], 1<<tcpListen) // idiag_states
	binary.BigEndian.PutUint16(r[8:], uint16(port))    // id.idiag_sport
	return b
}

// diagAnswer appends the listeners of one read to list; end says that there is
// no more to read.
func diagAnswer(b []byte, port int, list []Listener) (all []Listener, end bool, err error) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil || len(messages) == 0 {
		return nil, false, errDiag
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			return list, true, nil
		case unix.NLMSG_ERROR:
			if len(m.Data) < 4 {
				return nil, false, errDiag
			}
			errno := -int32(binary.NativeEndian.Uint32(m.Data))
			return nil, false, fmt.Errorf("doctor: sock_diag: %w", unix.Errno(errno))
		case unix.SOCK_DIAG_BY_FAMILY:
			if len(m.Data) < diagSize {
				return nil, false, errDiag
			}
			if m.Data[1] != tcpListen || int(binary.BigEndian.Uint16(m.Data[4:])) != port {
				continue
			}
			// Of a listener, rqueue is what waits and wqueue how much may.
			list = append(list, Listener{
				Inode:   binary.NativeEndian.Uint32(m.Data[68:]),
				Waiting: int64(binary.NativeEndian.Uint32(m.Data[56:])),
				Backlog: int64(binary.NativeEndian.Uint32(m.Data[60:])),
			})
		}
	}
	return list, false, nil
}
