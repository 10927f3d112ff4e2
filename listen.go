package perch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// listenAddr makes of a configured address what the event loops can bind: an
// IP address and a port. It binds the port for a moment without SO_REUSEPORT,
// since a second process of the same user would otherwise share a taken port
// without a word; a port of 0 becomes a free one.
func listenAddr(key, addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("%s: %q is not host:port", key, addr)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	ip, err := net.ResolveIPAddr("ip", host)
	if err != nil {
		return "", fmt.Errorf("%s: host of %q: %w", key, addr, err)
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		return "", fmt.Errorf("%s: port of %q: %w", key, addr, err)
	}
	network := "tcp"
	if ip.IP.To4() != nil {
		network = "tcp4"
	}
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), network, net.JoinHostPort(ip.String(), strconv.Itoa(number)))
	if err != nil {
		return "", listenError(key, addr, err)
	}
	bound := ln.Addr().(*net.TCPAddr).AddrPort()
	if err := ln.Close(); err != nil {
		return "", fmt.Errorf("%s: probe %s: %w", key, addr, err)
	}
	if network == "tcp4" {
		return net.JoinHostPort(ip.String(), strconv.Itoa(int(bound.Port()))), nil
	}
	return bound.String(), nil
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
