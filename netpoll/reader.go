package netpoll

import (
	"encoding/binary"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/valyala/bytebufferpool"

	"perch/session"
)

// inbound is what a conn keeps of bytes that are not yet a whole: a request
// head, a frame, the fragments of a message. A conn has one only while
// something is incomplete.
type inbound struct {
	raw   *bytebufferpool.ByteBuffer // the incomplete head or frame
	total int                        // length of the frame in raw; 0 while its header is incomplete
	head  header                     // of that frame
	msg   *bytebufferpool.ByteBuffer // the fragments so far
	op    ws.OpCode                  // of the fragmented message
	open  bool                       // a message has begun and not ended
	due   uint32                     // the tick by which it has to be whole; 0 for never
	later *putOff                    // what is beyond the peer's share of the turn
	// counted is what of the buffers is in the loop's PartialBytes.
	counted int

	deflated bool       // the fragmented message is
	job      *inflation // a whole message that is being inflated; nothing else is there then
}

// inbound makes sure that c has one.
func (c *conn) inbound() *inbound {
	if c.in == nil {
		c.in = &inbound{}
	}
	return c.in
}

// incomplete notes that a message, or a frame, has begun to arrive: it has
// MessageTimeout for the rest.
// Afterwards c may be gone.
func (c *conn) incomplete() {
	timeout := c.loop.server.limits.Load().MessageTimeout
	if c.in.due == 0 && timeout > 0 {
		c.in.due = c.loop.present() + ticks(timeout) + 1
		c.reschedule()
	}
	c.accountIn()
	c.brake()
}

// accountIn brings the loop's partial bytes up to date.
func (c *conn) accountIn() {
	in, n := c.in, 0
	if in.raw != nil {
		n += cap(in.raw.B)
	}
	if in.msg != nil {
		n += cap(in.msg.B)
	}
	c.loop.countIn(n - in.counted)
	in.counted = n
}

// countIn notes that n bytes more, or fewer, have not come whole.
func (l *loop) countIn(n int) {
	if n != 0 {
		l.stats.PartialBytes.Add(int64(n))
		l.server.memory.Add(int64(-n))
	}
}

// releaseIn lets go of what is incomplete.
func (c *conn) releaseIn() {
	if c.in == nil {
		return
	}
	c.loop.countIn(-c.in.counted)
	if c.in.raw != nil {
		putInBuffer(c.in.raw)
	}
	if c.in.msg != nil {
		putInBuffer(c.in.msg)
	}
	if c.in.job != nil {
		c.in.job.drop()
	}
	if t := c.in.later; t != nil {
		c.releasePutOff(t)
	}
	c.in = nil
}

// wholeIn drops the inbound where nothing is incomplete any more.
func (c *conn) wholeIn() {
	if c.in.raw == nil && !c.in.open {
		c.releaseIn()
	} else {
		c.accountIn()
	}
}

// header is the header of a client's frame (RFC 6455, section 5.2).
type header struct {
	op     ws.OpCode
	fin    bool
	mask   [4]byte
	length int
	size   int  // of the header itself
	rsv1   bool // a deflated message begins
}

// maxClientHeader is the largest frame header that a client sends.
const maxClientHeader = 14

// parseHeader reads the header at the front of b. ok is false while bytes are
// missing. A reason other than none is a violation, which is found as early as
// its bytes are there. forbidden are the reserved bits that no extension uses.
func parseHeader(b []byte, forbidden byte) (h header, ok bool, bad session.Reason) {
	if len(b) < 2 {
		// RSV and opcode stand in the first byte.
		if len(b) == 1 && (b[0]&forbidden != 0 || misplaced(b[0]) || reserved(ws.OpCode(b[0]&0x0f))) {
			return h, false, session.ReasonProtocolError
		}
		return h, false, session.ReasonNone
	}
	h.fin = b[0]&0x80 != 0
	h.rsv1 = b[0]&rsv1 != 0
	h.op = ws.OpCode(b[0] & 0x0f)
	// What no negotiated extension uses of RSV1 to RSV3 is 0 (section 5.2). Every frame
	// of a client is masked (section 5.1). Control frames are not fragmented and
	// have at most 125 bytes (section 5.5).
	n := int(b[1] & 0x7f)
	if b[0]&forbidden != 0 || misplaced(b[0]) || reserved(h.op) || b[1]&0x80 == 0 || h.op >= ws.OpClose && (!h.fin || n > 125) {
		return h, false, session.ReasonProtocolError
	}
	h.size = 2 + 4
	switch n {
	case 126:
		h.size += 2
	case 127:
		h.size += 8
	}
	// The length is known before the mask is.
	if len(b) < h.size-4 {
		return h, false, session.ReasonNone
	}
	switch n {
	case 126:
		n = int(binary.BigEndian.Uint16(b[2:]))
		if n < 126 {
			return h, false, session.ReasonProtocolError // not the minimal form
		}
	case 127:
		u := binary.BigEndian.Uint64(b[2:])
		if u>>63 != 0 || u < 1<<16 {
			return h, false, session.ReasonProtocolError
		}
		n = int(u)
	}
	h.length = n
	if len(b) < h.size {
		return h, false, session.ReasonNone
	}
	copy(h.mask[:], b[h.size-4:h.size])
	return h, true, session.ReasonNone
}

// reserved tells whether an opcode has no meaning (section 5.2).
func reserved(op ws.OpCode) bool {
	return op > ws.OpBinary && op < ws.OpClose || op > ws.OpPong
}

// admit checks a frame against the message it is part of and against the
// size limit, before its payload is there.
func (c *conn) admit(h header) session.Reason {
	if h.op >= ws.OpClose {
		return session.ReasonNone
	}
	open, sofar, limit := false, 0, c.endpoint.MessageSize
	deflated := h.rsv1
	if c.in != nil && c.in.open {
		open, sofar, deflated = true, len(c.in.msg.B), c.in.deflated
	}
	if deflated {
		limit = packedMost(limit)
	}
	if (h.op == ws.OpContinuation) != open {
		return session.ReasonProtocolError // section 5.4
	}
	if h.length > limit-sofar {
		return session.ReasonMessageTooBig
	}
	return session.ReasonNone
}

// readFrames takes the frames apart that b holds, as far as the peer's share of
// the turn goes. b is changed: payloads are unmasked in place.
func (c *conn) readFrames(b []byte) {
	if c.in != nil && c.in.later != nil {
		c.holdFrames(b)
		return
	}
	l := c.loop
	l.share, l.limit = 0, l.fairShare()
	rest := c.takeFrames(b)
	l.stats.turned(l.share, len(b)-len(rest))
	if len(rest) > 0 {
		c.holdFrames(rest)
	}
}

// takeFrames returns what is beyond the share.
func (c *conn) takeFrames(b []byte) (rest []byte) {
	l := c.loop
	for len(b) > 0 && c.mode == modeWebSocket {
		if c.inflating() {
			c.hold(b)
			return nil
		}
		if l.share >= l.limit || c.in != nil && c.in.later != nil {
			return b
		}
		if c.in != nil && c.in.raw != nil {
			b = b[c.fill(b):]
			continue
		}
		h, ok, bad := parseHeader(b, c.forbidden())
		// The length may be known and too large while the mask is missing.
		if bad == session.ReasonNone && (ok || h.length > 0) {
			bad = c.admit(h)
		}
		if bad != session.ReasonNone {
			c.fail(bad)
			return nil
		}
		if !ok || len(b) < h.size+h.length {
			in := c.inbound()
			in.raw = inBuffers.Get()
			in.raw.B = append(in.raw.B, b...)
			if ok {
				in.head, in.total = h, h.size+h.length
			}
			c.incomplete()
			return nil
		}
		payload := b[h.size : h.size+h.length]
		b = b[h.size+h.length:]
		c.frame(h, payload)
	}
	return nil
}

// fill adds to the incomplete frame what b holds of it, and handles it when it
// is whole. It returns how many bytes it took.
func (c *conn) fill(b []byte) (took int) {
	in := c.in
	if in.total == 0 {
		had := len(in.raw.B)
		in.raw.B = append(in.raw.B, b[:min(len(b), maxClientHeader-had)]...)
		h, ok, bad := parseHeader(in.raw.B, c.forbidden())
		if bad == session.ReasonNone && (ok || h.length > 0) {
			bad = c.admit(h)
		}
		if bad != session.ReasonNone {
			c.fail(bad)
			return len(b)
		}
		if !ok {
			return len(in.raw.B) - had
		}
		in.head, in.total = h, h.size+h.length
		if len(in.raw.B) > in.total {
			in.raw.B = in.raw.B[:in.total] // the rest is the next frame's
		}
		took = len(in.raw.B) - had
	}
	n := min(in.total-len(in.raw.B), len(b)-took)
	// The buffer grows with what arrives, not with what is announced.
	in.raw.B = append(in.raw.B, b[took:took+n]...)
	took += n
	if len(in.raw.B) < in.total {
		c.accountIn()
		c.brake()
		return took
	}
	raw, h := in.raw, in.head
	in.raw, in.total = nil, 0
	if h.fin {
		c.wholeIn()
	} else {
		c.accountIn() // its message goes on, and so does that one's time
	}
	c.frame(h, raw.B[h.size:])
	putInBuffer(raw)
	return took
}

// frame handles one whole frame. payload is masked and dies with the call.
func (c *conn) frame(h header, payload []byte) {
	l := c.loop
	l.stats.FramesIn.Add(1)
	l.share++
	if rate := l.server.limits.Load().MessageRate; rate > 0 {
		l.paces.Rate.Count = rate
		if !l.paces.Allow(c.id(), l.server.clock()) {
			c.tooMany()
			return
		}
	}
	ws.Cipher(payload, h.mask, 0)
	switch h.op {
	case ws.OpPing:
		c.pongFor(payload)
	case ws.OpPong:
		// Unsolicited pongs are allowed (section 5.5.3).
		if c.frames || c.sess.Encoding == session.EncodingNone {
			c.Pong()
		}
	case ws.OpClose:
		c.peerCloses(payload)
	case ws.OpContinuation:
		in := c.in
		in.msg.B = append(in.msg.B, payload...)
		if !h.fin {
			c.accountIn()
			c.brake()
			return
		}
		msg := in.msg
		in.msg, in.open = nil, false
		c.wholeIn()
		c.whole(in.op, in.deflated, msg.B)
		putInBuffer(msg)
	default:
		if h.fin {
			c.whole(h.op, h.rsv1, payload)
			return
		}
		in := c.inbound()
		in.op, in.open, in.deflated = h.op, true, h.rsv1
		in.msg = inBuffers.Get()
		in.msg.B = append(in.msg.B, payload...)
		c.incomplete()
	}
}

// tooMany ends a session that sends more often than it may.
func (c *conn) tooMany() {
	if c.sess.Encoding == session.EncodingNone {
		c.fail(session.ReasonPolicyViolation)
	} else {
		c.fail(session.ReasonTooManyRequests)
	}
}

// whole takes a whole message, which may have to be inflated first.
func (c *conn) whole(op ws.OpCode, deflated bool, data []byte) {
	if deflated {
		c.inflate(op, data)
		return
	}
	c.message(op, data)
}

// message hands a whole message to the session.
func (c *conn) message(op ws.OpCode, data []byte) {
	c.loop.stats.MessagesIn.Add(1)
	if op == ws.OpText && !utf8.Valid(data) {
		c.fail(session.ReasonInvalidPayload) // section 8.1
		return
	}
	rest, done := c.part(data, 0, op == ws.OpBinary)
	if len(rest) > 0 && c.mode == modeWebSocket {
		c.holdMessage(rest, done, op == ws.OpBinary)
	}
}

// peerCloses answers a close frame (section 5.5.1): with its own code where
// that is one that may stand in a frame.
func (c *conn) peerCloses(p []byte) {
	if len(p) == 0 {
		c.CloseWith(session.ReasonPeerClosed, 0, "")
		return
	}
	if len(p) == 1 {
		c.fail(session.ReasonProtocolError)
		return
	}
	code := binary.BigEndian.Uint16(p)
	switch {
	case !validCloseCode(code):
		c.fail(session.ReasonProtocolError)
	case !utf8.Valid(p[2:]):
		c.fail(session.ReasonInvalidPayload)
	default:
		c.CloseWith(session.ReasonPeerClosed, code, "")
	}
}

// validCloseCode tells whether a peer may send a code: sections 7.4.1 and
// 7.4.2, and 1012 to 1014 of the IANA registry.
func validCloseCode(code uint16) bool {
	switch {
	case code >= 1000 && code <= 1003, code >= 1007 && code <= 1014, code >= 3000 && code <= 4999:
		return true
	}
	return false
}
