package netpoll

import (
	"bytes"

	"github.com/gobwas/ws"
	"github.com/valyala/bytebufferpool"

	"perch/session"
)

// inflation is an errand: a whole message of a peer's. What the peer has sent
// behind it is held until the message has been handed over.
type inflation struct {
	order

	// Fixed.
	id    session.ID
	op    ws.OpCode
	in    []byte // the payload, and tail
	limit int

	// The runner's, then the loop's.
	out []byte
	bad session.Reason

	// The loop's.
	held *bytebufferpool.ByteBuffer
	at   int // where in held the bytes begin that are not yet read
}

// resumed is the held buffer that is being read at the moment. A message in it that
// has to be inflated takes it over as it is: what follows is not copied for each of
// them.
type resumed struct {
	held *bytebufferpool.ByteBuffer
	at   int
}

// packedMost is how long a deflated message may be whose inflated one may have n
// bytes: zlib promises less, whatever the data.
func packedMost(n int) int { return n + n>>3 + n>>6 + 64 }

// forbidden are the bits of a frame's first byte that have no meaning on c (RFC
// 6455, section 5.2).
func (c *conn) forbidden() byte {
	if c.deflate != 0 {
		return 0x30
	}
	return 0x70
}

// misplaced tells whether a frame's first byte says that a message is deflated
// where none begins: control frames and continuations never do (RFC 7692, section
// 6.1).
func misplaced(first byte) bool {
	op := ws.OpCode(first & 0x0f)
	return first&rsv1 != 0 && op != ws.OpText && op != ws.OpBinary
}

// inflate sends a whole message to be inflated. payload is copied.
func (c *conn) inflate(op ws.OpCode, payload []byte) {
	l := c.loop
	j := &inflation{id: c.id(), op: op, limit: c.endpoint.MessageSize}
	j.in = append(append(make([]byte, 0, len(payload)+len(tail)), payload...), tail...)
	j.loop, j.size, j.most = l, session.PostOverhead+len(j.in), l.server.deflater.limit
	j.since, j.patience = l.present(), inflatePatience
	if !l.server.deflater.put(j) {
		c.tryLater()
		return
	}
	c.inbound().job = j
}

// tryLater ends a connection for whose messages there is no room.
func (c *conn) tryLater() {
	c.loop.server.deflater.tellRefused()
	c.endLater()
}

// endLater tells the peer that it may come back.
func (c *conn) endLater() {
	c.loop.stats.InflateRefused.Add(1)
	if c.sess.Encoding == session.EncodingNone {
		c.CloseWith(session.ReasonTooManyRequests, uint16(ws.StatusCode(1013)), "try again later")
		return
	}
	c.fail(session.ReasonTooManyRequests)
}

// inflating tells whether a message is with the pool: what follows it is held.
func (c *conn) inflating() bool { return c.in != nil && c.in.job != nil }

// hold keeps what the peer has sent behind a message that is being inflated, as much
// as may wait in the other direction and the inbox has room for.
func (c *conn) hold(b []byte) {
	l, j := c.loop, c.in.job
	if r := &l.press.resumed; r.held != nil {
		// b is the rest of what is held already.
		at := len(r.held.B) - len(b)
		l.Release(at - r.at)
		j.held, j.at, r.held = r.held, at, nil
		return
	}
	if j.waits()+len(b) > c.endpoint.pending {
		c.endLater() // the peer sends faster than it may
		return
	}
	if !l.Reserve(len(b)) {
		c.tryLater()
		return
	}
	if j.held == nil {
		j.held, j.at = inBuffers.Get(), 0
	}
	if j.at > len(j.held.B)/2 {
		j.held.B = j.held.B[:copy(j.held.B, j.held.B[j.at:])]
		j.at = 0
	}
	j.held.B = append(j.held.B, b...)
}

// waits is how many bytes are held.
func (j *inflation) waits() int {
	if j.held == nil {
		return 0
	}
	return len(j.held.B) - j.at
}

// drop lets go of the errand and of what is held: the conn reads no more.
func (j *inflation) drop() {
	j.off()
	resumed{j.held, j.at}.release(j.loop)
	j.held = nil
}

// release gives a held buffer back, and the room for what had not been read of it.
func (r resumed) release(l *loop) {
	if r.held != nil {
		l.Release(len(r.held.B) - r.at)
		putInBuffer(r.held)
	}
}

// export writes down a message that is not inflated yet, and what is behind it.
func (j *inflation) export(m *Moved) {
	m.Message, m.Opcode, m.Whole = bytes.Clone(j.in[:len(j.in)-len(tail)]), byte(j.op), true
	if j.held != nil {
		m.Raw = bytes.Clone(j.held.B[j.at:])
	}
}

// Run implements session.Task. Runs on the loop.
func (j *inflation) Run() (more bool) {
	l := j.loop
	if c := l.at(j.id); c != nil && c.inflating() {
		l.guard(c, func() { c.inflated(j) })
	}
	return false
}

// inflated hands the message over and goes on with what is held.
func (c *conn) inflated(j *inflation) {
	l := c.loop
	c.in = nil // nothing is incomplete before a message that is whole
	l.press.taken()
	r := resumed{j.held, j.at}
	j.held = nil
	reading := false
	defer func() {
		// Another message may have taken the buffer over.
		if !reading || l.press.resumed.held != nil {
			r.release(l)
		}
		l.press.resumed = resumed{}
	}()
	if j.bad != session.ReasonNone {
		c.refuseDeflated(j.bad)
		return
	}
	l.stats.Inflated.Add(1)
	l.stats.InflatedFrom.Add(uint64(len(j.in) - len(tail)))
	l.stats.InflatedTo.Add(uint64(len(j.out)))
	l.share, l.limit = 0, l.fairShare()
	c.message(j.op, j.out)
	if r.held != nil && c.mode == modeWebSocket {
		l.press.resumed, reading = r, true
		c.readFrames(r.held.B[r.at:])
	}
}

// refuseDeflated ends a connection whose message could not be inflated.
func (c *conn) refuseDeflated(bad session.Reason) {
	switch bad {
	case session.ReasonTooManyRequests:
		c.tryLater()
		return
	case session.ReasonMessageTooBig:
		c.loop.stats.Bombs.Add(1)
	}
	c.fail(bad)
}

func (j *inflation) work(t *tools) {
	if j.out, j.bad = t.unpack(j.in, j.limit); j.bad != session.ReasonNone {
		return
	}
	// What has been inflated waits in the inbox as well.
	if !j.loop.Reserve(len(j.out)) {
		j.out, j.bad = nil, session.ReasonTooManyRequests
		return
	}
	j.room = len(j.out)
}

func (j *inflation) broken() { j.out, j.bad = nil, session.ReasonServerError }

// giveUp ends the connection: its message can't wait any longer, nor be left out.
// Runs on the loop.
func (j *inflation) giveUp() {
	j.bad = session.ReasonTooManyRequests
	j.loop.PostTask(0, j)
}
