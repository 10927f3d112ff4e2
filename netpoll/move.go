package netpoll

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/gobwas/ws"

	"perch/session"
)

// Errors of a connection's move.
var (
	ErrGone    = errors.New("netpoll: no such session")
	ErrNoMove  = errors.New("netpoll: this session can't move")
	errVersion = errors.New("netpoll: connection state of an unknown version")
	errDeflate = errors.New("netpoll: the connection deflates messages, this server does not")
)

// moveVersion is the version of Moved.
const moveVersion = 1

// Moved is a live connection between two servers, a WebSocket or an event stream: the state of its
// framing and what its session's handler wrote down. The byte stream is the
// descriptor beside it. It holds no pointers into a server, so it can be
// encoded.
type Moved struct {
	Version int
	// The framing, inwards: the incomplete frame, and the fragments of the
	// incomplete message.
	Raw     []byte
	Message []byte
	Opcode  byte
	Open    bool
	// Deflate is what has been negotiated of permessage-deflate. Deflated says that
	// Message is, Whole that all of it is there: Raw comes behind it.
	Deflate  byte
	Deflated bool
	Whole    bool
	// The framing, outwards: bytes that the peer has not taken yet.
	Pending []byte
	// The endpoint and the heartbeat.
	Path       string
	Encoding   session.Encoding
	FramePings bool
	// Client is whose connection it is, where a proxy has said so.
	Client   netip.AddrPort
	Beating  bool
	Awaiting bool
	Misses   uint8
	// Session is the handler's.
	Session []byte
}

// Export takes a session's connection out of the server: done gets its state
// and a descriptor, which is the caller's, or ErrGone, or ErrNoMove where the
// handler can't part with it now. The peer notices nothing. done runs on the
// loop and does not block. Safe from any goroutine.
func (s *Server) Export(id session.ID, done func(Moved, *os.File, error)) {
	l := s.loop(id.Loop())
	if l == nil {
		done(Moved{}, nil, ErrGone)
		return
	}
	l.Post(0, id, func(p *session.Session) {
		if p == nil {
			done(Moved{}, nil, ErrGone)
			return
		}
		done(l.find(id).export())
	})
}

func (c *conn) export() (m Moved, f *os.File, err error) {
	mover, ok := c.endpoint.Handler.(session.Mover)
	if !ok {
		return m, nil, ErrNoMove
	}
	// What a turn still owes the peer goes first, as far as it will.
	c.endLine()
	c.flush()
	if !c.live() {
		return m, nil, ErrGone
	}
	if c.in != nil && c.in.later != nil && c.in.later.message != nil {
		return m, nil, ErrNoMove // the rest of a message is no frame any more
	}
	state, err := mover.Export(&c.sess)
	if err != nil {
		return m, nil, fmt.Errorf("%w: %w", ErrNoMove, err)
	}
	fd, err := c.socket.Dup()
	if err != nil {
		return m, nil, fmt.Errorf("netpoll: duplicate descriptor: %w", err)
	}
	m = Moved{
		Version: moveVersion, Path: c.endpoint.Path, Encoding: c.sess.Encoding, FramePings: c.frames,
		Beating: c.beating, Awaiting: c.awaiting, Misses: c.misses, Session: state,
		Deflate: c.deflate,
	}
	if c.via&viaProxy != 0 {
		m.Client = c.client()
	}
	if in := c.in; in != nil {
		if t := in.later; t != nil && t.frames != nil {
			m.Raw = append([]byte(nil), t.frames.B[t.at:]...)
		}
		if in.raw != nil {
			m.Raw = append([]byte(nil), in.raw.B...)
		}
		if in.open {
			m.Message, m.Opcode, m.Open, m.Deflated = append([]byte{}, in.msg.B...), byte(in.op), true, in.deflated
		}
		if in.job != nil {
			in.job.export(&m)
		}
	}
	if o := c.out; o != nil {
		o.seal()
		for i, p := range o.parts {
			if i == 0 {
				p = p[o.off:]
			}
			m.Pending = append(m.Pending, p...)
		}
	}
	c.end(session.ReasonHandedOff)
	c.mode = modeLinger
	c.drop()
	return m, os.NewFile(uintptr(fd), "perch-moved"), nil
}

// Import gives a connection of another server to a loop of this one, on the
// port of the first listener that has its path. f belongs to Import from here
// on. Its error says that the connection could not be taken; when the handler
// refuses it afterwards, it is closed. Safe from any goroutine.
func (s *Server) Import(m Moved, f *os.File) error {
	c, err := net.FileConn(f)
	_ = f.Close() // FileConn has a duplicate of its own
	if err != nil {
		return fmt.Errorf("netpoll: import: %w", err)
	}
	if m.Version != moveVersion {
		_ = c.Close()
		return fmt.Errorf("netpoll: import: %w: %d", errVersion, m.Version)
	}
	if m.Deflate != 0 && s.deflater == nil {
		_ = c.Close()
		return fmt.Errorf("netpoll: import: %w", errDeflate)
	}
	for _, ln := range s.opts.Listeners {
		for _, p := range s.ports {
			if p.addr == ln.Addr && p.endpoints[m.Path] != nil {
				return s.enroll(c, &adopted{port: p, moved: &m, from: m.Client})
			}
		}
	}
	_ = c.Close()
	return fmt.Errorf("netpoll: import: no endpoint at %q", m.Path)
}

// restore makes c what it was on another server.
func (c *conn) restore(m *Moved) {
	l := c.loop
	c.endpoint = c.endpoint.port.endpoints[m.Path]
	mover, ok := c.endpoint.Handler.(session.Mover)
	if !ok || c.endpoint.Events != (m.Encoding == session.EncodingEvents) {
		c.drop()
		return
	}
	l.stats.Sessions.Add(1)
	c.mode, c.deadline = c.endpoint.mode(), 0
	if c.endpoint.ConnectTimeout > 0 {
		c.deadline = l.present() + ticks(c.endpoint.ConnectTimeout) + 1
	}
	c.frames, c.deflate = m.FramePings, m.Deflate
	c.sess.Open(c, l, c.id())
	c.sess.Encoding = m.Encoding
	c.sessions = true
	c.reschedule()
	if len(m.Pending) > 0 {
		c.writeRaw(m.Pending)
	}
	if err := mover.Import(&c.sess, m.Session); err != nil {
		l.server.log.Warn("session not taken over", "err", err)
		c.fail(session.ReasonServiceRestart)
		return
	}
	if m.Beating && c.live() {
		c.StartHeartbeat()
		if m.Awaiting {
			// The pong may be on its way: it has its whole time once more.
			c.awaiting, c.misses, c.owed, c.pinged = true, m.Misses, m.Misses+1, l.present()
			c.reschedule()
		}
	}
	if m.Open && c.mode == modeWebSocket {
		in := c.inbound()
		in.op, in.open, in.deflated = ws.OpCode(m.Opcode), true, m.Deflated
		in.msg = inBuffers.Get()
		in.msg.B = append(in.msg.B, m.Message...)
		c.incomplete()
	}
	if m.Whole && c.mode == modeWebSocket {
		c.inflate(ws.OpCode(m.Opcode), m.Message)
	}
	if len(m.Raw) > 0 && c.mode == modeWebSocket {
		c.readFrames(m.Raw)
	}
}
