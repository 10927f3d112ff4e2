package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"perch/internal/frame"
)

// events is what a scenario hears of its connections. Everything happens on
// the generator's goroutine, inside conns' methods.
type events interface {
	// upgraded says that the opening handshake is done.
	upgraded(i int)
	// message brings a message; p dies with the call. at is when it was read.
	message(i int, opcode byte, p []byte, at int64)
	// lost says that a connection has ended or could not be made, which is not
	// said of those that drop ended.
	lost(i int, why string)
}

// target is where the connections go.
type target struct {
	addr netip.AddrPort
	head []byte // the request
	// sources is how many addresses of 127.0.0.0/8 they come from, from the
	// address first on; 0: the kernel chooses.
	sources, first int
}

// The request's key and what a server answers to it (RFC 6455, section 1.3).
const (
	requestKey   = "dGhlIHNhbXBsZSBub25jZQ=="
	acceptAnswer = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

func requestHead(host, path string, header []string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n", path, host, requestKey)
	for _, h := range header {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

type connState uint8

const (
	stateGone connState = iota // also the zero value: a place without a connection
	stateConnecting
	stateHandshake
	stateOpen
)

type conn struct {
	in    []byte // an incomplete head or frame
	out   []byte // not taken by the socket yet
	fd    int32
	state connState
}

// conns holds very many connections on one goroutine.
type conns struct {
	target
	on    events
	ep    int
	all   []conn
	open  int   // those in stateOpen
	under int   // those on their way there
	bytes int64 // read
	// generation tells events of a place's former connection apart.
	generation []uint32
	buf        []byte
	ev         []unix.EpollEvent
	// parts are the fragments of messages that are not complete, by place: few
	// servers fragment, so that the others' connections don't pay for it.
	parts map[int]fragments
	// deaf, where set, says whether a connection is not read, and silent whether it
	// does not send its request: that is its scenario's to do, from upgraded on.
	deaf, silent func(i int) bool
}

type fragments struct {
	opcode byte
	b      []byte
}

// readSize is above what a socket's receive buffer holds of small frames; a
// larger frame is assembled from several reads.
const readSize = 256 << 10

// What a server may let grow here: its answer to the request, and a message.
const (
	headMost    = 64 << 10
	messageMost = 64 << 20
)

// pendingMost is how many bytes may wait for a socket before no more is given to
// it. What a server does not read must not fill the generator's memory; the
// kernel's buffers, of some megabytes, come before this.
const pendingMost = 64 << 10

func newConns(t target, on events) (*conns, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("bench: epoll: %w", err)
	}
	return &conns{target: t, on: on, ep: ep, buf: make([]byte, readSize),
		ev: make([]unix.EpollEvent, 512), parts: map[int]fragments{}}, nil
}

// add makes room for n more connections and returns the first's place.
func (c *conns) add(n int) int {
	at := len(c.all)
	c.all = append(c.all, make([]conn, n)...)
	c.generation = append(c.generation, make([]uint32, n)...)
	return at
}

// dial starts a connection in a place that has none.
func (c *conns) dial(i int) error {
	fd, err := unix.Socket(c.family(), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.EMFILE) {
			return fmt.Errorf("bench: %d connections: too many open files; raise the limit (ulimit -n) or use more processes", len(c.all))
		}
		return fmt.Errorf("bench: socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if c.sources > 0 {
		// The port is chosen at connect, when the whole pair is known.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		n := c.first + i%c.sources
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, byte(n >> 16), byte(n >> 8), byte(n)}}); err != nil {
			unix.Close(fd)
			return fmt.Errorf("bench: source address: %w", err)
		}
	}
	if err := unix.Connect(fd, c.sockaddr()); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("bench: no port left of this address; use --sources")
		}
		return fmt.Errorf("bench: connect: %w", err)
	}
	c.generation[i]++
	// Edge-triggered, so that waiting for writability costs no call later.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET,
		Fd: int32(i), Pad: int32(c.generation[i])}
	if err := unix.EpollCtl(c.ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		unix.Close(fd)
		return fmt.Errorf("bench: epoll: %w", err)
	}
	c.all[i] = conn{fd: int32(fd), state: stateConnecting}
	c.under++
	return nil
}

func (c *conns) family() int {
	if c.addr.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (c *conns) sockaddr() unix.Sockaddr {
	if c.addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(c.addr.Port()), Addr: c.addr.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(c.addr.Port()), Addr: c.addr.Addr().As16()}
}

// poll handles what is ready, after waiting for it until the moment given.
func (c *conns) poll(until int64) error {
	if err := wait(c.ep, until); err != nil {
		return fmt.Errorf("bench: poll: %w", err)
	}
	n, err := unix.EpollWait(c.ep, c.ev, 0)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("bench: epoll wait: %w", err)
	}
	for _, ev := range c.ev[:max(n, 0)] {
		i := int(ev.Fd)
		if c.all[i].state == stateGone || uint32(ev.Pad) != c.generation[i] {
			continue
		}
		if ev.Events&unix.EPOLLOUT != 0 || c.all[i].state == stateConnecting {
			c.writable(i)
		}
		if ev.Events&(unix.EPOLLIN|hangup) != 0 && (ev.Events&hangup != 0 || c.deaf == nil || !c.deaf(i)) {
			c.readAll(i, uint32(ev.Pad), ev.Events&hangup != 0)
		}
	}
	return nil
}

func (c *conns) writable(i int) {
	p := &c.all[i]
	if p.state == stateConnecting {
		if no, err := unix.GetsockoptInt(int(p.fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || no != 0 {
			c.end(i, "connect: "+unix.Errno(no).Error())
			return
		}
		p.state = stateHandshake
		if c.silent != nil && c.silent(i) {
			c.on.upgraded(i)
			return
		}
		c.send(i, c.head)
		return
	}
	if len(p.out) > 0 {
		out := p.out
		p.out = nil
		c.send(i, out)
	}
}

// full tells whether so much waits for a socket that nothing more may be sent.
// What can leave without an answer to what was sent before asks for it first;
// what is sent then is taken whole, so that no frame is cut.
func (c *conns) full(i int) bool { return len(c.all[i].out) >= pendingMost }

// send writes b, which are whole frames, behind what waits already. It keeps
// nothing of b.
func (c *conns) send(i int, b []byte) {
	p := &c.all[i]
	if p.state == stateGone {
		return
	}
	if len(p.out) > 0 {
		p.out = append(p.out, b...)
		return
	}
	for len(b) > 0 {
		n, err := unix.Write(int(p.fd), b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			p.out = append(p.out, b...)
			return
		}
		if err != nil {
			c.end(i, "write: "+err.Error())
			return
		}
		b = b[n:]
	}
}

// hangup says that the stream has an end, behind what there is to read.
const hangup = unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLRDHUP

// readAll reads until there is nothing left: the set is edge-triggered. ended
// says that the end was announced together with what is to read: no further edge
// will tell of it.
func (c *conns) readAll(i int, generation uint32, ended bool) {
	for c.all[i].state >= stateHandshake && c.generation[i] == generation {
		p := &c.all[i]
		if len(p.in) >= len(c.buf)/2 {
			c.buf = make([]byte, 2*len(c.buf)) // a large frame
		}
		have := copy(c.buf, p.in)
		n, err := unix.Read(int(p.fd), c.buf[have:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			c.end(i, "read: "+err.Error())
			return
		case n == 0:
			c.end(i, io.EOF.Error())
			return
		}
		c.bytes += int64(n)
		full := have+n == len(c.buf)
		c.input(i, generation, c.buf[:have+n], now())
		if !full && !ended {
			// A stream's short read has emptied it; what comes later is a new edge, and
			// so is a FIN.
			return
		}
	}
}

var headEnd = []byte("\r\n\r\n")

func (c *conns) input(i int, generation uint32, b []byte, at int64) {
	if c.all[i].state == stateHandshake {
		end := bytes.Index(b, headEnd)
		if end < 0 {
			if len(b) > headMost {
				c.end(i, "upgrade: the answer does not end")
				return
			}
			c.all[i].in = append(c.all[i].in[:0], b...)
			return
		}
		head := b[:end]
		if b = b[end+len(headEnd):]; !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) || !bytes.Contains(head, []byte(acceptAnswer)) {
			line, _, _ := bytes.Cut(head, []byte("\r\n"))
			c.end(i, fmt.Sprintf("upgrade: %q", line))
			return
		}
		c.all[i].state = stateOpen
		c.all[i].in = nil
		c.under--
		c.open++
		c.on.upgraded(i)
	}
	for c.all[i].state == stateOpen && c.generation[i] == generation {
		opcode, payload, size := frame.Next(b)
		if size == 0 {
			switch p := &c.all[i]; {
			case len(b) == 0:
				p.in = nil // an idle connection holds no buffer
			case len(b) > messageMost:
				c.end(i, "a frame is too long")
			default:
				p.in = append(p.in[:0], b...)
			}
			return
		}
		final, masked := b[0]&finBit != 0, b[1]&maskBit != 0
		b = b[size:]
		switch {
		case masked:
			c.end(i, "a frame is masked")
			return
		case opcode == opClose:
			c.end(i, closeText(payload))
			return
		case opcode < opClose && (opcode == opContinuation || !final || c.fragmented(i)):
			if opcode, payload, final = c.assemble(i, opcode, payload, final); !final {
				continue
			}
		}
		c.on.message(i, opcode, payload, at)
	}
}

// fragmented tells whether a message has begun and not ended.
func (c *conns) fragmented(i int) bool {
	_, begun := c.parts[i]
	return begun
}

// assemble takes a fragment, and gives the message when it is complete.
func (c *conns) assemble(i int, opcode byte, p []byte, final bool) (byte, []byte, bool) {
	f, begun := c.parts[i]
	if !begun {
		f.opcode = opcode
	}
	if begun != (opcode == opContinuation) || len(f.b)+len(p) > messageMost {
		c.end(i, "a message's fragments are wrong")
		return 0, nil, false
	}
	if f.b = append(f.b, p...); final {
		delete(c.parts, i)
		return f.opcode, f.b, true
	}
	c.parts[i] = f
	return 0, nil, false
}

func closeText(p []byte) string {
	if len(p) < 2 {
		return "closed"
	}
	return fmt.Sprintf("closed with %d %q", int(p[0])<<8|int(p[1]), p[2:])
}

// end is for what the connection did not survive; the scenario hears of it.
func (c *conns) end(i int, why string) {
	c.forget(i)
	c.on.lost(i, why)
}

// drop ends a connection; reset: by RST, which leaves no TIME_WAIT behind.
func (c *conns) drop(i int, reset bool) {
	p := &c.all[i]
	if p.state == stateGone {
		return
	}
	if reset {
		_ = unix.SetsockoptLinger(int(p.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	c.forget(i)
}

func (c *conns) forget(i int) {
	p := &c.all[i]
	switch p.state {
	case stateOpen:
		c.open--
	case stateConnecting, stateHandshake:
		c.under--
	}
	unix.Close(int(p.fd))
	delete(c.parts, i)
	*p = conn{}
}

// close ends all connections and the set.
func (c *conns) close() {
	for i := range c.all {
		c.drop(i, true)
	}
	unix.Close(c.ep)
}

// backoff is what an SDK waits before its attempt'th reconnect, the first being
// 0: between 500 ms and 20 s, at random up to twice as far each time.
func backoff(attempt int) time.Duration {
	const least, most = 500 * time.Millisecond, 20 * time.Second
	step := min(most, least<<min(attempt, 10))
	return min(most, least+rand.N(step))
}
