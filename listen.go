package perch

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// listenAddr makes of a configured address what the event loops can bind: an
// IP address and a port, and keeps the port until held is closed. A port of 0
// becomes a free one.
//
// The loops bind with SO_REUSEPORT, by which a second process of the same user
// would share a taken port without a word. So the port is bound here first without
// it, which fails where it is taken; then the option is set, by which the loops can
// bind it and nobody else can who does as we do. The socket does not listen: no
// connection goes to it.
func listenAddr(key, addr string) (bound string, held io.Closer, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %q is not host:port", key, addr)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	ip, err := net.ResolveIPAddr("ip", host)
	if err != nil {
		return "", nil, fmt.Errorf("%s: host of %q: %w", key, addr, err)
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		return "", nil, fmt.Errorf("%s: port of %q: %w", key, addr, err)
	}
	at, err := holdPort(ip, number)
	if err != nil {
		return "", nil, listenError(key, addr, err)
	}
	name, err := unix.Getsockname(at.fd)
	if err != nil {
		_ = at.Close()
		return "", nil, fmt.Errorf("%s: %w", key, os.NewSyscallError("getsockname", err))
	}
	switch sa := name.(type) {
	case *unix.SockaddrInet4:
		number = sa.Port
	case *unix.SockaddrInet6:
		number = sa.Port
	}
	return net.JoinHostPort(ip.String(), strconv.Itoa(number)), at, nil
}

// heldPort is a bound socket that does not listen.
type heldPort struct {
	fd   int
	once sync.Once
}

// Close implements io.Closer; it may be called again.
func (h *heldPort) Close() (err error) {
	h.once.Do(func() { err = unix.Close(h.fd) })
	return err
}

func holdPort(ip *net.IPAddr, port int) (*heldPort, error) {
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if v4 := ip.IP.To4(); v4 != nil {
		sa = &unix.SockaddrInet4{Port: port, Addr: [4]byte(v4)}
	} else {
		zone := 0
		if i, err := net.InterfaceByName(ip.Zone); err == nil {
			zone = i.Index
		}
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: [16]byte(ip.IP.To16()), ZoneId: uint32(zone)}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	h := &heldPort{fd: fd}
	if err = unix.Bind(fd, sa); errors.Is(err, unix.EADDRINUSE) && port != 0 {
		// What a server before has left in TIME_WAIT is passed over with SO_REUSEADDR
		// alone, and by that others who have bound the port are as well, up to listen.
		if err = canListen(ip, port); err == nil {
			if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
				err = unix.Bind(fd, sa)
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
			}
		}
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if err != nil {
		_ = h.Close()
		return nil, os.NewSyscallError("bind", err)
	}
	return h, nil
}

// canListen tries to, for a moment.
func canListen(ip *net.IPAddr, port int) error {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip.IP, Port: port, Zone: ip.Zone})
	if err != nil {
		return err
	}
	return ln.Close()
}

// listenError says in one line what to do.
func listenError(key, addr string, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%s: %s is taken by another process: stop that one or choose another address", key, addr)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: no permission for %s: choose a port above 1023 or grant CAP_NET_BIND_SERVICE", key, addr)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%s: %s is not an address of this machine", key, addr)
	}
	return fmt.Errorf("%s: listen on %s: %w", key, addr, err)
}

const (
	// adminConnections bounds the admin port's connections.
	adminConnections = 128
	// spareDescriptors are kept for files, logs, remote keys and the runtime.
	spareDescriptors = 128
)

// capacity divides the process's descriptors.
type capacity struct {
	descriptors int // the limit of the process
	soft        int // connections that are served
	hard        int // connections that are accepted: those above soft get a 503
	http        int // connections with net/http
}

// capacityFor finds what the descriptor limit allows. Every connection is one
// descriptor; one with net/http is up to three for a moment. The Go runtime
// has raised the soft limit to the hard one.
func capacityFor(o LimitOptions, loops int) (capacity, error) {
	var rl unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &rl); err != nil {
		return capacity{}, fmt.Errorf("limits: read the descriptor limit: %w", err)
	}
	c := capacity{descriptors: int(min(rl.Cur, 1<<30)), http: o.HTTPConnections}
	// With few descriptors the fixed parts shrink with them.
	c.http = min(c.http, max(4, c.descriptors/16))
	admin := min(adminConnections, max(8, c.descriptors/16))
	spare := min(spareDescriptors, max(16, c.descriptors/16))
	room := c.descriptors - c.http - admin - spare - 4*loops
	refused := min(256, max(8, room/64)) // for 503s
	if o.Connections == 0 {
		c.soft = room - refused
	} else {
		c.soft = o.Connections
	}
	c.hard = c.soft + refused
	if c.soft < 1 && o.Connections == 0 {
		return capacity{}, fmt.Errorf(
			"the descriptor limit of %d leaves no room for connections: raise it (ulimit -n, LimitNOFILE=) to %d at the least",
			c.descriptors, c.descriptors-room+1+refused)
	}
	if c.hard > room {
		return capacity{}, fmt.Errorf(
			"limits.connections: %d connections need a descriptor limit of %d, and it is %d: raise it (ulimit -n, LimitNOFILE=) or lower limits.connections",
			c.soft, c.descriptors-room+c.soft+refused, c.descriptors)
	}
	return c, nil
}

// patientListener takes a failing accept for a passing matter: net/http, which
// ends at what it does not know, tries again a little later then.
type patientListener struct{ net.Listener }

// Accept implements net.Listener.
func (l patientListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		err = passingError{err}
	}
	return c, err
}

// passingError is a net.Error of which net/http knows that it passes.
type passingError struct{ error }

func (e passingError) Unwrap() error { return e.error }
func (passingError) Timeout() bool   { return false }
func (passingError) Temporary() bool { return true }
