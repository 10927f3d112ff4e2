package netpoll

import (
	"sync/atomic"

	"github.com/valyala/bytebufferpool"
	"golang.org/x/sys/unix"

	"perch/session"
)

// A peer's share of a turn. gnet reads up to 64 KiB at once, which may be ten
// thousand frames, or a message of a thousand commands: run in one go, they
// would keep everybody else waiting. So what one peer has sent is handled in
// shares, and the rest is put off until the inbox and the sockets had their
// turn. Meanwhile nothing more is read of this peer: what it sends on waits in
// the kernel, whose window stops it. Nothing is reordered, and what is put off
// is at most what had been read: one read, and one message.

const (
	// turnShare is how many frames and commands of one peer are handled in one go:
	// at 1 to 4 µs each, up to a millisecond. Who sends 16 frames at once is far
	// from it. crowdedShare is how many while others' input is put off, since of
	// those who flood, all may have something to read in one round of sockets.
	turnShare    = 256
	crowdedShare = 32
	// lateShare is how much of what is put off is handled in a turn, of all peers
	// together.
	lateShare = 512
	// putOffBytes is what may wait of a peer, before it is closed: where its reads
	// could not be stopped.
	putOffBytes = 256 << 10
)

// putOff is what a peer has sent beyond its share. A conn has one only while
// something is put off.
type putOff struct {
	// message is a whole message, of which the handler has left what begins at
	// from. done are its commands so far.
	message *bytebufferpool.ByteBuffer
	from    int
	done    int
	binary  bool
	// frames is what came behind it, from at on.
	frames *bytebufferpool.ByteBuffer
	at     int
	paused bool // reads are stopped
}

// size is how much is put off.
func (t *putOff) size() int {
	n := 0
	if t.message != nil {
		n += len(t.message.B) - t.from
	}
	if t.frames != nil {
		n += len(t.frames.B) - t.at
	}
	return n
}

// queueLate puts c behind those whose input is put off. One item of the inbox
// sees to all of them.
func (l *loop) queueLate(c *conn) {
	if len(l.late) == l.lateAt {
		l.put(item{kind: itemLate})
	}
	l.late = append(l.late, c.id())
}

// fairShare is smaller while others wait for theirs.
func (l *loop) fairShare() int {
	if len(l.late) > l.lateAt {
		return crowdedShare
	}
	return turnShare
}

// serveLate handles some of what is put off, of one peer after the other, and
// tells whether more is left.
func (l *loop) serveLate() (more bool) {
	for done := 0; l.lateAt < len(l.late) && done < lateShare; {
		id := l.late[l.lateAt]
		// While the last one is served, it still stands here: who comes next is
		// behind it, and no second item is posted.
		if c := l.at(id); c != nil {
			if c.later() {
				l.late = append(l.late, id)
			}
			done += l.share
		}
		l.lateAt++
	}
	if l.lateAt == len(l.late) {
		l.late, l.lateAt = l.late[:0], 0
		if cap(l.late) > idleItems {
			l.late = nil
		}
		return false
	}
	if l.lateAt >= len(l.late)/2 {
		l.late, l.lateAt = l.late[:copy(l.late, l.late[l.lateAt:])], 0
	}
	return true
}

// countPutOff notes that n bytes more, or fewer, are put off.
func (l *loop) countPutOff(n int) {
	l.stats.PutOffBytes.Add(int64(n))
	l.server.memory.Add(int64(-n))
}

// needPutOff makes sure that c has one, which the inbox sees to.
func (c *conn) needPutOff() *putOff {
	in := c.inbound()
	if in.later == nil {
		in.later = &putOff{}
		if l := c.loop; l.serving != c {
			l.stats.PutOffs.Add(1)
			in.later.paused = c.read(false)
			l.queueLate(c)
		}
	}
	return in.later
}

// read lets gnet read c, or stops it, by its own epoll set: gnet has no call
// for that. It tells whether it could.
func (c *conn) read(on bool) bool {
	s := &c.loop.storm
	if !s.found {
		return false
	}
	ev := unix.EpollEvent{Fd: c.fd}
	if on {
		ev.Events = unix.EPOLLIN | unix.EPOLLPRI // as gnet asks for it
	}
	return unix.EpollCtl(int(s.epfd), unix.EPOLL_CTL_MOD, int(c.fd), &ev) == nil
}

// holdMessage keeps what the handler has left of a message.
func (c *conn) holdMessage(rest []byte, done int, binary bool) {
	t := c.needPutOff()
	t.message = inBuffers.Get()
	t.message.B = append(t.message.B, rest...)
	t.from, t.done, t.binary = 0, done, binary
	c.loop.countPutOff(len(rest))
	c.brake()
}

// holdFrames keeps b behind all that is put off. Over the bound c is closed.
func (c *conn) holdFrames(b []byte) {
	if len(b) == 0 || c.mode != modeWebSocket {
		return
	}
	t := c.needPutOff()
	if t.frames == nil {
		t.frames = inBuffers.Get()
		t.at = 0
	}
	if waits := len(t.frames.B) - t.at; waits > 0 && waits+len(b) > putOffBytes {
		r := session.ReasonTooManyRequests
		if c.sess.Encoding == session.EncodingNone {
			r = session.ReasonPolicyViolation
		}
		c.fail(r)
		return
	}
	if t.at > 0 {
		t.frames.B = t.frames.B[:copy(t.frames.B, t.frames.B[t.at:])]
		t.at = 0
	}
	t.frames.B = append(t.frames.B, b...)
	c.loop.countPutOff(len(b))
	c.brake()
}

// releasePutOff lets go of what is put off, and of the peer's reads.
func (c *conn) releasePutOff(t *putOff) {
	c.loop.countPutOff(-t.size())
	if t.message != nil {
		putInBuffer(t.message)
	}
	if t.frames != nil {
		putInBuffer(t.frames)
	}
	if t.paused && c.mode != modeGone && c.mode != modeFree {
		c.read(true)
	}
	*t = putOff{}
}

// later handles the next share of what is put off, and tells whether more is
// left.
func (c *conn) later() (more bool) {
	in, l := c.in, c.loop
	if in == nil || in.later == nil {
		return false
	}
	t := in.later
	if in.later = nil; in.raw == nil && !in.open {
		c.in = nil
	}
	l.serving, l.share, l.limit = c, 0, turnShare
	before := t.size()
	l.guard(c, func() { c.serve(t) })
	l.serving = nil
	l.stats.turned(l.share, before-t.size())
	if c.mode != modeWebSocket {
		c.releasePutOff(t)
		return false
	}
	if c.in != nil && c.in.later != nil {
		// A frame was a message that is too much for the share.
		m := c.in.later
		t.message, t.from, t.done, t.binary = m.message, m.from, m.done, m.binary
	} else if t.size() == 0 {
		c.releasePutOff(t)
		return false
	}
	c.inbound().later = t
	return true
}

// serve hands on what t holds, as far as the share goes.
func (c *conn) serve(t *putOff) {
	n := t.size()
	defer func() { c.loop.countPutOff(t.size() - n) }()
	if m := t.message; m != nil {
		rest, done := c.part(m.B[t.from:], t.done, t.binary)
		t.from, t.done = len(m.B)-len(rest), done
		if len(rest) > 0 {
			return
		}
		t.message = nil
		putInBuffer(m)
	}
	if t.frames != nil && c.mode == modeWebSocket {
		rest := c.takeFrames(t.frames.B[t.at:])
		t.at = len(t.frames.B) - len(rest)
	}
}

// part hands the session of a message what its share has room for, and returns
// what is left of it. done are its commands so far.
func (c *conn) part(data []byte, done int, binary bool) (rest []byte, now int) {
	e := c.endpoint
	if e.parts == nil {
		e.Handler.Message(&c.sess, data, binary)
		return nil, 0
	}
	l := c.loop
	rest, n := e.parts.MessagePart(&c.sess, data, binary, done, max(1, l.limit-l.share))
	l.share += n
	return rest, done + n
}

// most is the largest of what was seen. It has one writer.
type most struct{ n atomic.Int64 }

func (m *most) see(n int) {
	if int64(n) > m.n.Load() {
		m.n.Store(int64(n))
	}
}

// turned notes what was handled of one peer in one go.
func (st *loopStats) turned(share, bytes int) {
	st.MostShare.see(share)
	st.MostBytes.see(bytes)
}
