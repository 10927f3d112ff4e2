package netpoll

import (
	"slices"

	"github.com/valyala/bytebufferpool"
)

// outbound is what waits to be sent to one peer: shared frames, which nobody
// changes, and frames of this conn's own. A conn has one only while something
// waits.
type outbound struct {
	// parts leave in this order. The last may be own.B, which still grows.
	parts   [][]byte
	own     *bytebufferpool.ByteBuffer
	pong    bool // one waits behind a blocked peer
	from    int  // where the growing part begins in own.B
	off     int  // how much of the first part has been sent
	bytes   int  // of all parts, what has been sent left out
	counted int  // what of bytes is in the loop's PendingBytes
	queued  int  // what of it the kernel had when it took no more; in QueuedBytes
	listed  bool
	raw     bool // the first part is not made of frames
	events  bool // what are frames elsewhere are events
	blocked bool // the watcher says when the peer takes more
	watched bool // the descriptor is in the watcher's set
	array   [4][]byte

	// line is what has to leave behind parts and waits for the pool (deflate_out.go).
	// bytes has it in, as it is before it is deflated: standing bytes.
	line     []standing
	standing int
	place    [1]standing
}

// seal ends the growing part.
func (o *outbound) seal() {
	if o.own != nil && o.from < len(o.own.B) {
		o.parts = append(o.parts, o.own.B[o.from:len(o.own.B):len(o.own.B)])
		o.from = len(o.own.B)
	}
}

// grow is the buffer to which a frame of n bytes is appended.
func (o *outbound) grow(n int) *bytebufferpool.ByteBuffer {
	if o.own == nil {
		o.own = getWriteBuffer()
		o.from = 0
	}
	// The parts before point into the buffer: it must not move under them.
	// And a large one that grows would be copied and left behind again and again.
	if len(o.own.B)+n > cap(o.own.B) && (o.from > 0 || len(o.own.B) >= ownChunk) {
		o.seal()
		o.own = getWriteBuffer()
		o.from = 0
	}
	return o.own
}

// behind is how much waits behind the frame that is under way, which is the
// first part of a blocked conn. That one does not count: a frame of any size
// may be sent to a peer that is not slow, and no socket takes a large one at
// once.
func (o *outbound) behind() int {
	if len(o.parts) == 0 {
		return o.bytes
	}
	return o.bytes - (len(o.parts[0]) - o.off)
}

// advance notes that n bytes more have been sent.
func (o *outbound) advance(n int) {
	o.bytes -= n
	o.off += n
	i := 0
	for i < len(o.parts) && o.off >= len(o.parts[i]) {
		o.off -= len(o.parts[i])
		o.parts[i] = nil
		o.raw = false
		i++
	}
	if i > 0 {
		o.parts = o.parts[:copy(o.parts, o.parts[i:])]
	}
}

// frameEnd is where the frame ends of which the first off bytes of the first
// part are the last ones sent.
func (o *outbound) frameEnd() int {
	p := o.parts[0]
	if o.raw {
		return len(p)
	}
	at := 0
	for at < o.off {
		at += o.frameLength(p[at:])
	}
	return at
}

// split makes the frame that is under way, or the next one, a part of its own:
// the own frames of a turn are one part, which may be of any size.
func (o *outbound) split() {
	if len(o.parts) == 0 || o.raw {
		return
	}
	p := o.parts[0]
	end := o.frameEnd()
	if end == o.off {
		end += o.frameLength(p[end:])
	}
	if end < len(p) {
		o.parts = slices.Insert(o.parts, 1, p[end:])
		o.parts[0] = p[:end:end]
	}
}

// frameLength is the length of the server's frame, or event, at the front of p.
func (o *outbound) frameLength(p []byte) int {
	if o.events {
		return eventLength(p)
	}
	head, size := frameSize(p)
	return head + size
}
