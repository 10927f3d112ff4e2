package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"perch/internal/frame"
)

// DenseOptions configure a Dense.
type DenseOptions struct {
	Addr string // IPv4 host:port
	Path string
	// First makes the payload of the first text frame of session i; nil: nothing
	// is sent, and the upgrade alone is what is waited for.
	First func(i int) []byte
	// Replies is how many replies First asks for.
	Replies int
	// Window is how many connects are under way at once; 0 means 64.
	Window int
	// Sources is how many addresses of 127.0.0.0/8 the connections come from, one
	// after the other; 0 means 1. From one address about 28,000 connections to one
	// port are possible, fewer while old ones are in TIME_WAIT.
	Sources int
	// FirstSource is the last byte of the first of them; 0 means 1.
	FirstSource int
	// Seen, where set, is called with each reply and push of session i. line dies
	// with the call.
	Seen func(i int, line []byte)
	// Frame, where set, is called with each frame of session i that is no ping and
	// no close. payload dies with the call.
	Frame func(i int, opcode byte, payload []byte)
}

// DenseStats count what a Dense saw.
type DenseStats struct {
	Ready   int `json:"ready"`   // sessions whose First was answered
	Failed  int `json:"failed"`  // connections that ended before that
	Closed  int `json:"closed"`  // sessions that the server ended later
	Replies int `json:"replies"` // with an id
	Errors  int `json:"errors"`  // of the replies
	Pushes  int `json:"pushes"`
	Pings   int `json:"pings"` // the server's, of both kinds; each was answered
	Bytes   int `json:"bytes"` // read
	// Codes counts close codes; FirstError is what the first failure said.
	Codes      map[uint16]int `json:"codes,omitempty"`
	FirstError string         `json:"first_error,omitempty"`
}

// Dense holds very many WebSocket sessions of the JSON client protocol without
// a goroutine each: everything happens in its methods, on the goroutine that
// calls them. Between calls nobody answers the server's pings.
type Dense struct {
	opts  DenseOptions
	to    unix.SockaddrInet4
	head  []byte
	ep    int
	conns []denseConn
	under int // connections that are not ready yet
	stats DenseStats
	burst *burst
	buf   [256 << 10]byte
	ev    [512]unix.EpollEvent
}

type denseState uint8

const (
	denseConnecting denseState = iota
	denseHandshake
	denseWaiting
	denseReady
	denseGone
)

type denseConn struct {
	fd    int
	in    []byte // an incomplete frame or head
	out   []byte // not taken by the socket yet
	want  int    // replies and pushes still to come
	sent  int    // messages of the burst
	state denseState
	polls bool // EPOLLOUT is asked for
}

// NewDense prepares a client that holds no connection yet.
func NewDense(opts DenseOptions) (*Dense, error) {
	ap, err := netip.ParseAddrPort(opts.Addr)
	if err != nil || !ap.Addr().Is4() {
		return nil, fmt.Errorf("testkit: dense: address %q is not IPv4:port", opts.Addr)
	}
	if opts.Window == 0 {
		opts.Window = 64
	}
	opts.Sources = max(opts.Sources, 1)
	opts.FirstSource = max(opts.FirstSource, 1)
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("testkit: dense: %w", err)
	}
	d := &Dense{opts: opts, ep: ep, head: []byte(Head(opts.Addr, opts.Path))}
	d.to = unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	d.stats.Codes = map[uint16]int{}
	return d, nil
}

// Stats is what was seen so far.
func (d *Dense) Stats() DenseStats { return d.stats }

// Open adds n sessions and returns when each is ready or has failed.
func (d *Dense) Open(ctx context.Context, n int) error {
	failed := d.stats.Failed
	for opened := 0; opened < n || d.under > 0; {
		for opened < n && d.under < d.opts.Window {
			if err := d.connect(); err != nil {
				return err
			}
			opened++
		}
		if err := d.poll(ctx, 100); err != nil {
			return err
		}
	}
	if bad := d.stats.Failed - failed; bad > 0 {
		return fmt.Errorf("testkit: dense: %d of %d sessions failed, first: %s", bad, n, d.stats.FirstError)
	}
	return nil
}

// Hold answers the server's pings for a time.
func (d *Dense) Hold(ctx context.Context, t time.Duration) error {
	for end := time.Now().Add(t); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := d.poll(ctx, int(min(left.Milliseconds()+1, 100))); err != nil {
			return err
		}
	}
}

type burst struct {
	count, want int
	message     func(i, k int) []byte
	active      int
	next        int
}

// Burst sends count messages on each ready session, window sessions at once,
// and returns when all were answered. message makes the k-th of session i;
// want is how many replies and pushes answer it. A session sends the next when
// the one before is answered.
func (d *Dense) Burst(ctx context.Context, count, window, want int, message func(i, k int) []byte) error {
	d.burst = &burst{count: count, want: want, message: message}
	defer func() { d.burst = nil }()
	for d.burst.next < len(d.conns) || d.burst.active > 0 {
		for d.burst.next < len(d.conns) && d.burst.active < window {
			i := d.burst.next
			d.burst.next++
			c := &d.conns[i]
			if c.state != denseReady {
				continue
			}
			d.burst.active++
			c.sent = 0
			d.burstNext(i, c)
		}
		if err := d.poll(ctx, 100); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dense) burstNext(i int, c *denseConn) {
	if c.sent == d.burst.count {
		d.burst.active--
		return
	}
	c.want = d.burst.want
	k := c.sent
	c.sent++
	d.send(i, c, OpText, d.burst.message(i, k))
}

// Send sends one text message on session i, if that is ready.
func (d *Dense) Send(i int, payload []byte) {
	if c := &d.conns[i]; c.state == denseReady {
		d.send(i, c, OpText, payload)
	}
}

// SendWire sends bytes as they are on session i, if that is ready.
func (d *Dense) SendWire(i int, wire []byte) {
	if c := &d.conns[i]; c.state == denseReady {
		d.write(i, c, wire)
	}
}

// Until answers the server's pings until ok, which is asked after each wait.
func (d *Dense) Until(ctx context.Context, ok func() bool) error {
	for !ok() {
		if err := d.poll(ctx, 10); err != nil {
			return err
		}
	}
	return nil
}

// Close ends every connection and the client. With reset the connections end
// by RST and leave no TIME_WAIT behind, without it by FIN.
func (d *Dense) Close(reset bool) error {
	for i := range d.conns {
		c := &d.conns[i]
		if c.state == denseGone {
			continue
		}
		if reset {
			_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
		unix.Close(c.fd)
		c.state = denseGone
	}
	d.conns = nil
	return unix.Close(d.ep)
}

func (d *Dense) connect() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("testkit: dense: socket: %w", err)
	}
	i := len(d.conns)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if d.opts.Sources > 1 || d.opts.FirstSource > 1 {
		// The port is chosen at connect, when the whole pair is known.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		src := d.opts.FirstSource + i%d.opts.Sources
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, byte(src >> 8), byte(src)}}); err != nil {
			unix.Close(fd)
			return fmt.Errorf("testkit: dense: bind: %w", err)
		}
	}
	if err := unix.Connect(fd, &d.to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return fmt.Errorf("testkit: dense: connect: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT, Fd: int32(i)}
	if err := unix.EpollCtl(d.ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		unix.Close(fd)
		return fmt.Errorf("testkit: dense: epoll: %w", err)
	}
	d.conns = append(d.conns, denseConn{fd: fd, polls: true})
	d.under++
	return nil
}

func (d *Dense) poll(ctx context.Context, ms int) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("testkit: dense: %w (%+v, %d under way)", err, d.stats, d.under)
	}
	n, err := unix.EpollWait(d.ep, d.ev[:], ms)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("testkit: dense: epoll wait: %w", err)
	}
	for e := range max(n, 0) {
		i := int(d.ev[e].Fd)
		c := &d.conns[i]
		if c.state == denseGone {
			continue
		}
		if d.ev[e].Events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 && c.state != denseConnecting {
			d.read(i, c)
		}
		if c.state != denseGone && (d.ev[e].Events&unix.EPOLLOUT != 0 || c.state == denseConnecting) {
			d.writable(i, c)
		}
	}
	return nil
}

func (d *Dense) writable(i int, c *denseConn) {
	if c.state == denseConnecting {
		if no, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || no != 0 {
			d.gone(c, fmt.Sprintf("connect: %v", unix.Errno(no)))
			return
		}
		c.state = denseHandshake
		d.write(i, c, d.head)
		return
	}
	out := c.out
	c.out = nil
	d.write(i, c, out)
}

// write sends p behind what waits already.
func (d *Dense) write(i int, c *denseConn, p []byte) {
	if len(c.out) > 0 {
		c.out = append(c.out, p...)
		return
	}
	for len(p) > 0 {
		n, err := unix.Write(c.fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			d.gone(c, fmt.Sprintf("write: %v", err))
			return
		}
		p = p[n:]
	}
	c.out = append(c.out, p...)
	if wait := len(c.out) > 0; wait != c.polls {
		c.polls = wait
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
		if wait {
			ev.Events |= unix.EPOLLOUT
		}
		if err := unix.EpollCtl(d.ep, unix.EPOLL_CTL_MOD, c.fd, &ev); err != nil {
			d.gone(c, fmt.Sprintf("epoll: %v", err))
		}
	}
}

func (d *Dense) send(i int, c *denseConn, opcode byte, payload []byte) {
	d.write(i, c, Client(opcode, payload).Append(nil))
}

func (d *Dense) read(i int, c *denseConn) {
	have := copy(d.buf[:], c.in)
	n, err := unix.Read(c.fd, d.buf[have:])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return
	case err != nil:
		d.gone(c, fmt.Sprintf("read: %v", err))
		return
	case n == 0:
		d.gone(c, io.EOF.Error())
		return
	}
	d.stats.Bytes += n
	rest := d.buf[:have+n]
	if c.state == denseHandshake {
		if rest = d.upgraded(i, c, rest); c.state == denseHandshake {
			c.in = append(c.in[:0], rest...)
			return
		}
	}
	for c.state != denseGone {
		opcode, payload, size := frame.Next(rest)
		if size == 0 {
			break
		}
		d.frame(i, c, opcode, payload)
		rest = rest[size:]
	}
	if c.state == denseGone {
		return
	}
	if len(rest) == len(d.buf) {
		d.gone(c, "frame too large")
		return
	}
	if c.in = append(c.in[:0], rest...); len(c.in) == 0 {
		c.in = nil // ten thousand idle sessions hold no buffers here either
	}
}

var headEnd = []byte("\r\n\r\n")

func (d *Dense) upgraded(i int, c *denseConn, p []byte) []byte {
	end := bytes.Index(p, headEnd)
	if end < 0 {
		return p
	}
	head, rest := p[:end], p[end+len(headEnd):]
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) || !bytes.Contains(head, []byte(Accept)) {
		line, _, _ := bytes.Cut(head, []byte("\r\n"))
		d.gone(c, fmt.Sprintf("upgrade: %q", line))
		return nil
	}
	c.state = denseWaiting
	if d.opts.First == nil {
		d.ready(c)
		return rest
	}
	c.want = d.opts.Replies
	d.send(i, c, OpText, d.opts.First(i))
	return rest
}

func (d *Dense) ready(c *denseConn) {
	c.state = denseReady
	d.under--
	d.stats.Ready++
}

func (d *Dense) frame(i int, c *denseConn, opcode byte, payload []byte) {
	if d.opts.Frame != nil && opcode != OpPing && opcode != OpClose {
		d.opts.Frame(i, opcode, payload)
	}
	switch opcode {
	case OpPing:
		d.stats.Pings++
		d.send(i, c, OpPong, payload)
	case OpPong:
	case OpClose:
		code := Frame{Payload: payload}.CloseCode()
		d.stats.Codes[code]++
		d.gone(c, fmt.Sprintf("close %d %q", code, payload[min(2, len(payload)):]))
	default:
		d.message(i, c, payload)
	}
}

var (
	emptyObject = []byte("{}")
	pushPrefix  = []byte(`{"push"`)
	errorKey    = []byte(`"error":{`)
)

// message counts the replies of a text frame. Ping is the empty reply.
func (d *Dense) message(i int, c *denseConn, p []byte) {
	if bytes.Equal(p, emptyObject) {
		d.stats.Pings++
		d.send(i, c, OpText, emptyObject)
		return
	}
	got := 0
	for line := range bytes.SplitSeq(p, []byte("\n")) {
		switch {
		case len(line) == 0:
			continue
		case bytes.HasPrefix(line, pushPrefix):
			d.stats.Pushes++
			// Before the session is ready its own subscriptions may push; only
			// replies count.
			if c.state == denseReady {
				got++
			}
		default:
			d.stats.Replies++
			got++
			if bytes.Contains(line[:min(len(line), 64)], errorKey) {
				d.stats.Errors++
				d.first(string(line))
			}
		}
		if d.opts.Seen != nil {
			d.opts.Seen(i, line)
		}
	}
	before := c.want
	c.want = max(0, c.want-got)
	if before == 0 || c.want > 0 || c.state == denseGone {
		return
	}
	switch {
	case c.state == denseWaiting:
		d.ready(c)
	case d.burst != nil && c.sent > 0:
		d.burstNext(i, c)
	}
}

func (d *Dense) first(what string) {
	if d.stats.FirstError == "" {
		d.stats.FirstError = what
	}
}

func (d *Dense) gone(c *denseConn, why string) {
	if c.state == denseGone {
		return
	}
	if c.state == denseReady {
		d.stats.Closed++
		if d.burst != nil && c.want > 0 {
			d.burst.active--
		}
	} else {
		d.stats.Failed++
		d.under--
	}
	d.first(why)
	c.state = denseGone
	c.in, c.out = nil, nil
	unix.Close(c.fd)
}
