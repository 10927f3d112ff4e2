package netpoll

import (
	"bytes"
	stdflate "compress/flate"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
	"github.com/klauspost/compress/flate"

	"perch/internal/pace"
	"perch/session"
)

// permessage-deflate (RFC 7692), without context takeover in either direction:
// a message is deflated and inflated by itself, so that a conn keeps nothing
// between two of them, and a frame that many get is deflated once.
//
// All of it is done by a few runners in the pool. A message on its way there
// holds its conn's later ones back: those to the peer stand in line
// (deflate_out.go), the peer's bytes are held (deflate_in.go).

// Deflate configures permessage-deflate.
type Deflate struct {
	// Submit gives the pool a job that counts size bytes while it waits. It never
	// blocks and does not run the job itself; false: there is no room. nil: the
	// extension is not negotiated.
	Submit func(size int, run func()) bool
	// Threshold is the length in bytes from which on a message is deflated; 0
	// means 256.
	Threshold int
	// Workers bounds how many jobs run at once; 0 means one a processor that the
	// process may use, at most 4. Each has a deflater and an inflater of 1.4 MB together, and 1.1 MB
	// more for each smaller window that is asked for and that a message exceeds.
	Workers int
}

const (
	defaultThreshold = 256
	maxDeflaters     = 4
	// deflateQueue bounds the bytes that wait for a runner, unless two messages as
	// large as allowed need more. Half of it is for messages of peers alone: what goes
	// to peers can leave as it is, what comes from them can't be left out.
	deflateQueue = 8 << 20
	// runFor is how long a runner keeps its worker while others wait for one.
	runFor = 5 * time.Millisecond
	// patience is how many ticks messages to a peer wait for a runner before they
	// leave as they are; those of a peer, before its connection ends.
	deflatePatience, inflatePatience = 5, 50

	fullWindow = 15 // bits
	// scratchMax is the largest scratch buffer that is kept.
	scratchMax = 256 << 10
	// deflateLevel: a publication of 1 KiB takes 7 µs, one of 64 KiB 120 µs. Higher ones
	// take up to half as much again for less than 1%.
	deflateLevel = 3
)

// tail is what stands behind a message's payload when it is inflated: what the
// sender took off (RFC 7692, section 7.2.2), then an empty last block, so that
// the end is told from a cut.
const tail = "\x00\x00\xff\xff" + "\x01\x00\x00\xff\xff"

// errands are the jobs of one deflater, deflations and inflations.
type errand interface {
	// base is what the errands have in common.
	base() *order
	// work is done by a runner. broken says that it panicked.
	work(*tools)
	broken()
	// Run is a session.Task, on the order's loop, behind work.
	Run() (more bool)
	// giveUp is called on the loop when a runner has not come in time.
	giveUp()
}

// order is an errand's place in the queue.
type order struct {
	loop     *loop
	most     int // bytes that the queue may have with it
	size     int // in the queue, and reserved in the loop's inbox
	room     int // reserved beside, by the runner
	state    atomic.Int32
	since    uint32 // tick of the order
	patience uint32 // ticks
}

const (
	orderWaits int32 = iota
	orderTaken
	orderOff // nobody wants it any more
)

func (o *order) base() *order { return o }

// take is the runner's claim, off that of everybody else. Only one succeeds.
func (o *order) take() bool { return o.state.CompareAndSwap(orderWaits, orderTaken) }
func (o *order) off() bool {
	if !o.state.CompareAndSwap(orderWaits, orderOff) {
		return false
	}
	// Its place in the queue stays until a runner comes by, which may be never; the
	// loop's inbox is for others.
	o.loop.Release(o.size)
	return true
}

// deflater brings errands to the pool. Its methods are safe from any goroutine.
type deflater struct {
	server    *Server
	submit    func(int, func()) bool
	threshold int
	workers   int
	limit     int // of bytes

	mu      sync.Mutex
	queue   []errand
	at      int // of the first
	bytes   int
	runners int
	idle    []*tools // at most workers

	told pace.Seldom
}

func newDeflater(s *Server, o Deflate, processors int) *deflater {
	if o.Submit == nil {
		return nil
	}
	d := &deflater{server: s, submit: o.Submit, threshold: o.Threshold, workers: o.Workers, limit: deflateQueue}
	for _, p := range s.ports {
		for _, e := range p.endpoints {
			d.limit = max(d.limit, 2*packedMost(e.MessageSize))
		}
	}
	if d.threshold <= 0 {
		d.threshold = defaultThreshold
	}
	if d.workers <= 0 {
		d.workers = max(1, min(processors, maxDeflaters))
	}
	return d
}

// put queues an errand, on its loop; false: there is no room for it in the queue,
// in the pool or in the loop's inbox.
func (d *deflater) put(e errand) bool {
	o := e.base()
	if !o.loop.Reserve(o.size) {
		return false
	}
	if !d.enqueue(e, o) {
		o.loop.Release(o.size)
		return false
	}
	o.loop.press.add(e)
	return true
}

func (d *deflater) enqueue(e errand, o *order) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bytes > 0 && d.bytes+o.size > o.most {
		return false
	}
	if d.runners < d.workers {
		// Under the lock: an errand is queued only where a runner will come.
		if d.submit(session.PostOverhead, d.run) {
			d.runners++
		} else if d.runners == 0 {
			return false
		}
	}
	d.queue = append(d.queue, e)
	d.bytes += o.size
	return true
}

// next is the next errand that is still wanted; nil ends the runner, which leaves
// its tools to others.
func (d *deflater) next(t *tools, began time.Time) errand {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.at < len(d.queue) {
		if time.Since(began) > runFor && d.submit(session.PostOverhead, d.run) {
			// The worker is for others now; the place among the runners is passed on.
			d.idle = append(d.idle, t)
			return nil
		}
		e := d.queue[d.at]
		d.queue[d.at] = nil
		d.at++
		o := e.base()
		d.bytes -= o.size
		if o.take() {
			return e
		}
	}
	d.at = 0
	if d.queue = d.queue[:0]; cap(d.queue) > idleItems {
		d.queue = nil
	}
	d.runners--
	d.idle = append(d.idle, t)
	return nil
}

// run is a runner: a job of the pool.
func (d *deflater) run() {
	d.mu.Lock()
	var t *tools
	if n := len(d.idle); n > 0 {
		t = d.idle[n-1]
		d.idle[n-1] = nil
		d.idle = d.idle[:n-1]
	} else {
		t = &tools{}
	}
	d.mu.Unlock()
	began := time.Now()
	for e := d.next(t, began); e != nil; e = d.next(t, began) {
		d.do(e, t)
		o := e.base()
		o.loop.PostTask(o.size+o.room, e)
	}
}

// do runs one errand; a panic costs that one only, and the tools.
func (d *deflater) do(e errand, t *tools) {
	defer func() {
		if p := recover(); p != nil {
			d.server.panicked(p)
			*t = tools{}
			e.broken()
		}
	}()
	e.work(t)
}

// tellRefused logs that messages of peers find no room, now and then.
func (d *deflater) tellRefused() {
	if _, ok := d.told.Pass(tellEvery); ok {
		d.server.log.Warn("compressed messages are refused: the pool can't keep up; give it more workers and processors, or turn compression off",
			slog.Int("queued", d.queued()))
	}
}

// queued is how many bytes wait for a runner.
func (d *deflater) queued() int {
	if d == nil {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bytes
}

// tools are what one runner has. They are made when they are needed and kept:
// at most one set for each runner there may be.
type tools struct {
	full   *flate.Writer
	narrow [fullWindow]*flate.Writer // by the bits of the window
	reader io.ReadCloser
	source bytes.Reader
	packed bytes.Buffer
	buf    []byte
}

// writer is a deflater that refers back no further than 2^bits bytes, for a
// message of n.
func (t *tools) writer(bits uint8, n int) *flate.Writer {
	if !narrows(bits, n) {
		if t.full == nil {
			t.full, _ = flate.NewWriter(nil, deflateLevel) // fails for unknown levels only
		}
		return t.full
	}
	if t.narrow[bits] == nil {
		t.narrow[bits], _ = flate.NewWriterWindow(nil, 1<<bits) // from 32 to 32,768
	}
	return t.narrow[bits]
}

// narrows tells whether a window of so many bits is less than what a message of n
// bytes could refer back to.
func narrows(bits uint8, n int) bool { return bits < fullWindow && n > 1<<bits }

// pack deflates a message; nil where that saves nothing. What it returns is valid
// until the next call.
func (t *tools) pack(payload []byte, bits uint8) []byte {
	t.packed.Reset()
	w := t.writer(bits, len(payload))
	w.Reset(&t.packed)
	_, err := w.Write(payload)
	if err == nil {
		err = w.Flush()
	}
	w.Reset(io.Discard) // no reference to our output
	b, ok := bytes.CutSuffix(t.packed.Bytes(), []byte(tail[:4]))
	if err != nil || !ok || len(b) >= len(payload) {
		return nil
	}
	return b
}

// repack deflates those of a slice of server frames that are long enough, and
// returns frames itself where that saves nothing. n messages of from bytes have
// become to bytes.
func (t *tools) repack(frames []byte, bits uint8, threshold int) (out []byte, n, from, to int) {
	b := t.buf[:0]
	for f := frames; len(f) > 0; {
		head, size := frameSize(f)
		if whole := f[:head+size]; deflatable(f[0], size, threshold) {
			if p := t.pack(whole[head:], bits); p != nil {
				b = appendHeader(b, ws.OpCode(f[0]&0x0f)|rsv1, len(p))
				b = append(b, p...)
				n, from, to = n+1, from+size, to+len(p)
			} else {
				b = append(b, whole...)
			}
		} else {
			b = append(b, whole...)
		}
		f = f[head+size:]
	}
	out = frames
	if n > 0 {
		out = bytes.Clone(b)
	}
	t.keep(b)
	return out, n, from, to
}

// keep keeps the scratch buffers unless they have grown large.
func (t *tools) keep(b []byte) {
	if t.buf = b[:0]; cap(b) > scratchMax {
		t.buf = nil
	}
	if t.packed.Cap() > scratchMax {
		t.packed = bytes.Buffer{}
	}
}

// unpack inflates a message, which has tail behind it, to at most limit bytes.
//
// Blocks may follow one that is the last by its header (section 7.2.3.4); a
// message that ends with such a one, without the octet behind it that the section
// asks for, is taken too, as zlib's users do. Each of them costs a set-up, so there
// may be one for 64 bytes.
//
// compress/flate inflates: it forgets the codes of the message before, which may be
// another peer's. The faster one of klauspost/compress lets a block without codes of
// its own be read with them.
func (t *tools) unpack(in []byte, limit int) (out []byte, bad session.Reason) {
	t.source.Reset(in)
	defer t.source.Reset(nil)
	if t.reader == nil {
		t.reader = stdflate.NewReader(&t.source)
	}
	b := t.buf[:0]
	defer func() { t.keep(b) }()
	for streams := 0; ; streams++ {
		if streams > 16+len(in)/64 {
			return nil, session.ReasonInvalidPayload
		}
		if err := t.reader.(stdflate.Resetter).Reset(&t.source, nil); err != nil {
			return nil, session.ReasonServerError
		}
		for {
			if len(b) == cap(b) {
				b = slices.Grow(b, max(min(len(b), limit+1-len(b)), 512))
			}
			n, err := t.reader.Read(b[len(b):min(cap(b), limit+1)])
			b = b[:len(b)+n]
			if len(b) > limit {
				return nil, session.ReasonMessageTooBig
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, session.ReasonInvalidPayload
			}
		}
		if left := t.source.Len(); left == 0 || left == len(tail) {
			return bytes.Clone(b), session.ReasonNone
		}
	}
}
