package netpoll

import (
	"sync"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/valyala/bytebufferpool"
	"golang.org/x/sys/unix"

	"perch/session"
)

// pooledMax is the largest buffer that goes back to a pool.
const pooledMax = 64 << 10

// writeBuffers hold frames that a conn copies. Whatever is not above pooledMax
// is kept: bytebufferpool's own pool lets go of the largest twentieth, so that
// where most turns are small, each turn of several messages would make a buffer
// and grow it.
var writeBuffers = sync.Pool{New: func() any {
	return &bytebufferpool.ByteBuffer{B: make([]byte, 0, writeBufferSize)}
}}

const writeBufferSize = 512

func getWriteBuffer() *bytebufferpool.ByteBuffer {
	return writeBuffers.Get().(*bytebufferpool.ByteBuffer)
}

func putWriteBuffer(b *bytebufferpool.ByteBuffer) {
	if cap(b.B) <= pooledMax {
		b.Reset()
		writeBuffers.Put(b)
	}
}

// inBuffers hold what is incomplete, for as long as it is.
var inBuffers bytebufferpool.Pool

func putInBuffer(b *bytebufferpool.ByteBuffer) {
	if cap(b.B) <= pooledMax {
		inBuffers.Put(b)
	}
}

const (
	// ownChunk is from where on a conn's own frames go to a new buffer.
	ownChunk = 16 << 10
	// turnBytes is how much of one turn waits for its end.
	turnBytes = 256 << 10
	// strangerBytes is what waits at the most for a peer that nobody knows yet.
	strangerBytes = 32 << 10
)

// pingFrame is a ping of RFC 6455 without payload.
var pingFrame = ws.MustCompileFrame(ws.NewPingFrame(nil))

// outbound makes sure that c has one.
func (c *conn) outbound() *outbound {
	if c.out == nil {
		l := c.loop
		if n := len(l.spare); n > 0 {
			c.out = l.spare[n-1]
			l.spare[n-1] = nil
			l.spare = l.spare[:n-1]
		} else {
			c.out = &outbound{}
			c.out.parts = c.out.array[:0]
		}
		c.out.events = c.endpoint.Events
	}
	return c.out
}

// releaseOut lets go of what waits.
func (c *conn) releaseOut() {
	o := c.out
	if o == nil {
		return
	}
	c.out = nil
	l := c.loop
	l.stats.PendingBytes.Add(int64(-o.counted))
	l.stats.QueuedBytes.Add(int64(-o.queued))
	if o.watched {
		l.server.watcher.remove(c)
	}
	if o.own != nil {
		putWriteBuffer(o.own)
	}
	o.disperse()
	if len(l.spare) < spareOutbounds && cap(o.parts) <= 64 {
		clear(o.parts[:cap(o.parts)])
		*o = outbound{parts: o.parts[:0]}
		l.spare = append(l.spare, o)
	}
}

// list notes that c has frames to send at the end of the turn. With a blocked
// peer they are pending bytes from now on.
func (c *conn) list() {
	o := c.outbound()
	if o.blocked {
		c.account()
		return
	}
	if !o.listed {
		o.listed = true
		c.loop.dirty = append(c.loop.dirty, c)
	}
}

// WriteFrame implements session.Transport.
func (c *conn) WriteFrame(frame []byte) {
	if !c.live() {
		return
	}
	if !c.room(len(frame)) {
		return
	}
	c.loop.stats.MessagesOut.Add(1)
	c.loop.stats.FramesOut.Add(1)
	if c.deflate != 0 {
		var waits bool
		if frame, waits = c.deflateShared(frame); waits {
			return
		}
	}
	o := c.outbound()
	o.seal()
	o.parts = append(o.parts, frame)
	o.bytes += len(frame)
	c.list()
	c.early()
}

// early sends a large part of a turn before the turn's end.
func (c *conn) early() {
	if o := c.out; o.bytes > turnBytes && !o.blocked {
		c.flush()
	}
}

// pongFor answers a ping. While a pong waits for a blocked peer, the next ones
// need none (RFC 6455, section 5.5.3).
func (c *conn) pongFor(payload []byte) {
	if o := c.out; o != nil && o.blocked {
		if o.pong {
			return
		}
		o.pong = true
	}
	c.writeOwn(ws.OpPong, payload)
}

// WriteMessage implements session.Transport.
func (c *conn) WriteMessage(payload []byte, binary bool) {
	if !c.live() {
		return
	}
	op := ws.OpText
	if binary {
		op = ws.OpBinary
	}
	c.loop.stats.MessagesOut.Add(1)
	c.writeOwn(op, payload)
}

// writeOwn frames a copy of payload; that of an event stream is framed already.
func (c *conn) writeOwn(op ws.OpCode, payload []byte) {
	if !c.room(len(payload) + maxServerHeader) {
		return
	}
	if c.deflate != 0 && c.deflateOwn(op, payload) {
		c.loop.stats.FramesOut.Add(1)
		return
	}
	o := c.outbound()
	b := o.grow(len(payload) + maxServerHeader)
	n := len(b.B)
	if !o.events {
		b.B = appendHeader(b.B, op, len(payload))
	}
	b.B = append(b.B, payload...)
	o.bytes += len(b.B) - n
	c.loop.stats.FramesOut.Add(1)
	c.list()
	if o.blocked {
		c.loop.server.memory.Add(int64(n - len(b.B)))
		c.brake()
		return
	}
	c.early()
}

// writeRaw sends bytes that are not frames: the answer to a request head.
func (c *conn) writeRaw(b []byte) {
	o := c.outbound()
	buf := o.grow(len(b))
	buf.B = append(buf.B, b...)
	o.bytes += len(b)
	o.raw = len(o.parts) == 0
	o.seal()
	c.list()
}

// bound is how much may wait for the peer behind the part under way.
func (c *conn) bound() int {
	if c.sess.State < session.StateConnected && c.sess.Encoding != session.EncodingNone {
		return min(strangerBytes, c.endpoint.pending)
	}
	return c.endpoint.pending
}

// room checks the bound on what waits for a slow peer, and ends it where n
// bytes more are over. A conn that is not blocked may take any one frame: it
// is sent at the end of the turn.
func (c *conn) room(n int) bool {
	o := c.out
	if o == nil || !o.blocked || o.behind()+n <= c.bound() {
		return true
	}
	c.tooSlow()
	return false
}

func (c *conn) tooSlow() {
	c.loop.stats.Slow.Add(1)
	r := session.ReasonSlow
	if c.sess.Encoding == session.EncodingNone {
		r = session.ReasonSlowConsumerPlain
	}
	// The close frame goes where the frames went that are not sent: behind the
	// one that is under way, so that the peer reads a frame's end, then why.
	c.shed()
	c.fail(r)
}

// maxServerHeader is the largest frame header that a server sends.
const maxServerHeader = 10

// appendHeader appends the header of an unfragmented frame (RFC 6455, section
// 5.2).
func appendHeader(b []byte, op ws.OpCode, n int) []byte {
	switch {
	case n < 126:
		return append(b, 0x80|byte(op), byte(n))
	case n < 1<<16:
		return append(b, 0x80|byte(op), 126, byte(n>>8), byte(n))
	default:
		u := uint64(n)
		return append(b, 0x80|byte(op), 127, byte(u>>56), byte(u>>48), byte(u>>40), byte(u>>32),
			byte(u>>24), byte(u>>16), byte(u>>8), byte(u))
	}
}

// writeClose sends a close frame; code 0 sends one without a code.
func (c *conn) writeClose(code uint16, text string) {
	var p [125]byte
	b := p[:0]
	if code != 0 {
		b = append(b, byte(code>>8), byte(code))
		text = text[:min(len(text), len(p)-2)]
		for !utf8.ValidString(text) {
			text = text[:len(text)-1] // a rune that the bound has cut
		}
		b = append(b, text...)
	}
	o := c.outbound()
	buf := o.grow(len(b) + maxServerHeader)
	n := len(buf.B)
	buf.B = appendHeader(buf.B, ws.OpClose, len(b))
	buf.B = append(buf.B, b...)
	o.bytes += len(buf.B) - n
	c.loop.stats.FramesOut.Add(1)
	c.list()
}

// flushDirty sends what the turn has left for all conns.
func (l *loop) flushDirty() {
	// Flushing may end sessions, whose handlers may write to others: the list
	// grows while it is walked.
	for i := 0; i < len(l.dirty); i++ {
		c := l.dirty[i]
		if c == nil {
			continue
		}
		l.dirty[i] = nil
		l.guard(c, c.flush)
	}
	l.dirty = l.dirty[:0]
}

// flush sends what waits, in one write where it fits.
func (c *conn) flush() {
	o := c.out
	if o == nil {
		return
	}
	o.listed = false
	if o.blocked || c.mode == modeGone || c.mode == modeFree {
		return
	}
	o.seal()
	l := c.loop
	for len(o.parts) > 0 {
		b := o.parts[0][o.off:]
		if len(o.parts) > 1 && len(b) < cap(l.join) {
			b = l.joined(b, o.parts[1:])
		}
		n, err := c.send(b)
		l.stats.BytesOut.Add(uint64(n))
		o.advance(n)
		if err == errBlocked {
			c.block()
			return
		}
		if err != nil {
			c.gone()
			return
		}
	}
	if len(o.line) > 0 {
		return
	}
	if c.mode == modeLinger {
		c.shut()
	}
	c.releaseOut()
}

// joined copies first and as many of the parts behind it as fit into the loop's
// join buffer: at these sizes a copy costs less than a vector.
func (l *loop) joined(first []byte, parts [][]byte) []byte {
	j := append(l.join[:0], first...)
	for _, p := range parts {
		if len(j)+len(p) > cap(j) {
			break
		}
		j = append(j, p...)
	}
	return j
}

// block waits for the peer to take more.
func (c *conn) block() {
	o := c.out
	o.blocked = true
	o.split()
	c.account()
	c.countQueued(true)
	if err := c.loop.server.watcher.add(c); err != nil {
		c.loop.server.log.Error("watch for writable failed", "err", err)
		c.gone()
		return
	}
	if c.live() && o.behind() > c.bound() {
		c.tooSlow()
	}
}

// account brings the loop's pending bytes up to date.
func (c *conn) account() {
	o := c.out
	c.loop.stats.PendingBytes.Add(int64(o.bytes - o.counted))
	o.counted = o.bytes
}

// countQueued notes what a blocked peer has in the kernel, which is the most that
// it may have there.
func (c *conn) countQueued(blocked bool) {
	o, n := c.out, 0
	if blocked {
		n, _ = unix.IoctlGetInt(int(c.fd), unix.SIOCOUTQ) // 0 where there is no TCP underneath
	}
	c.loop.stats.QueuedBytes.Add(int64(n - o.queued))
	o.queued = n
}

// writable is called when the watcher says so.
func (c *conn) writable() {
	if c.out == nil || !c.out.blocked {
		return
	}
	c.out.blocked, c.out.pong = false, false
	c.countQueued(false)
	c.flush()
	if c.out != nil {
		c.account()
	}
}

// Pending implements session.Transport.
func (c *conn) Pending() int {
	if c.out == nil {
		return 0
	}
	return c.out.bytes
}

// shed throws away the frames that wait, save the rest of the one that is
// under way.
func (c *conn) shed() {
	o := c.out
	if o == nil {
		return
	}
	o.disperse()
	o.seal()
	if len(o.parts) == 0 {
		return
	}
	end := o.frameEnd()
	clear(o.parts[1:])
	o.parts = o.parts[:1]
	o.parts[0] = o.parts[0][:end]
	o.bytes = end - o.off
	if o.bytes == 0 {
		o.parts, o.off = o.parts[:0], 0
	}
	c.account()
}
