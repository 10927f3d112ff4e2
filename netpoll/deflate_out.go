package netpoll

import (
	"encoding/binary"
	"slices"

	"github.com/gobwas/ws"

	"perch/session"
)

const (
	// rsv1 marks the first frame of a deflated message (RFC 7692, section 6), in the
	// byte of the opcode.
	rsv1 = 0x40
	// lineBytes is what may stand in a conn's line. More leaves as it is.
	lineBytes = turnBytes
	// deflateSlice is how many conns a turn serves that wait for one deflation.
	deflateSlice = 64
	// recentMost and recentBytes bound what a loop remembers of deflations that are
	// done, for recentTicks: a long fan-out comes back for them.
	recentMost  = 64
	recentBytes = 1 << 20
	recentTicks = 2
)

// press is what a loop knows of errands: nothing, unless there are some.
type press struct {
	shared map[pressKey]*deflation // of frames that many get
	recent []*deflation            // of shared, those that are done, the oldest first
	held   int                     // bytes of recent
	// orders are those that may not have been taken yet, from first on, the oldest
	// first.
	orders []errand
	first  int
	// resumed is what the conn reads that has just got its message.
	resumed resumed
}

// pressKey names a shared frame: the deflation that is kept keeps its address
// from being used again.
type pressKey struct {
	frame *byte
	n     int
	bits  byte
}

// deflation is an errand: server frames that are to be deflated.
type deflation struct {
	order

	// Fixed.
	key    pressKey
	frames []byte
	shared bool

	// The runner's, then the loop's.
	out         []byte
	n, from, to int

	// The loop's.
	done    bool
	doneAt  uint32
	waiters []session.ID
	cursor  int
}

// standing is a place in line.
type standing struct {
	frames []byte
	job    *deflation // nil: what stands here just keeps its place
	own    bool       // frames may grow
}

// frameSize is the length of the header and of the payload of the server's frame
// at the front of f.
func frameSize(f []byte) (head, size int) {
	switch n := int(f[1]); n {
	case 126:
		return 4, int(binary.BigEndian.Uint16(f[2:]))
	case 127:
		return 10, int(binary.BigEndian.Uint64(f[2:]))
	default:
		return 2, n
	}
}

// deflatable tells whether a server's frame, by its first byte and the length of
// its payload, is a data message that is long enough.
func deflatable(first byte, size, threshold int) bool {
	return size >= threshold && (first == 0x80|byte(ws.OpText) || first == 0x80|byte(ws.OpBinary))
}

// keyOf names frames for the cache; ok is false where there is nothing to deflate.
// What a narrow window changes nothing about is the same for all windows.
func (c *conn) keyOf(frames []byte) (key pressKey, ok bool) {
	threshold := c.loop.server.deflater.threshold
	if len(frames) < threshold {
		return key, false
	}
	bits := c.deflate & windowBits
	key.bits = fullWindow
	for f := frames; len(f) > 0; {
		head, size := frameSize(f)
		if deflatable(f[0], size, threshold) {
			ok = true
			if narrows(bits, size) {
				key.bits = bits
			}
		}
		f = f[head+size:]
	}
	key.frame, key.n = &frames[0], len(frames)
	return key, ok
}

// deflateShared is what to send for frames that others get as well; waits says
// that they have got a place in line instead.
func (c *conn) deflateShared(frames []byte) (out []byte, waits bool) {
	l := c.loop
	var j *deflation
	if key, ok := c.keyOf(frames); ok {
		if j = l.press.shared[key]; j == nil {
			j = l.order(key, frames, true)
		}
		if j.done {
			frames, j = j.out, nil
		}
	}
	if j == nil && (c.out == nil || len(c.out.line) == 0) {
		return frames, false
	}
	c.stand(standing{frames: frames, job: j})
	return nil, true
}

// deflateOwn takes a message of this conn's own, or a control frame, that has to be
// deflated or to keep its place in line; false: it may leave at once.
func (c *conn) deflateOwn(op ws.OpCode, payload []byte) bool {
	inLine := c.out != nil && len(c.out.line) > 0
	long := deflatable(0x80|byte(op), len(payload), c.loop.server.deflater.threshold)
	if !long && !inLine {
		return false
	}
	frame := append(appendHeader(make([]byte, 0, len(payload)+maxServerHeader), op, len(payload)), payload...)
	s := standing{frames: frame, own: true}
	if long {
		key, _ := c.keyOf(frame)
		if j := c.loop.order(key, frame, false); !j.done {
			s.job = j
		} else if !inLine {
			return false
		}
	}
	c.stand(s)
	return true
}

// order makes an errand of frames. Where there is no room for it, it is done: they
// leave as they are.
func (l *loop) order(key pressKey, frames []byte, shared bool) *deflation {
	j := &deflation{key: key, frames: frames, shared: shared}
	j.loop, j.size, j.most = l, session.PostOverhead+len(frames), l.server.deflater.limit/2
	j.since, j.patience = l.present(), deflatePatience
	if shared {
		if l.press.shared == nil {
			l.press.shared = make(map[pressKey]*deflation)
		}
		l.press.shared[key] = j
	}
	if !l.server.deflater.put(j) {
		l.stats.DeflateRefused.Add(1)
		j.finish()
	}
	return j
}

// stand gives frames a place in line.
func (c *conn) stand(s standing) {
	o := c.outbound()
	o.bytes += len(s.frames)
	if n := len(o.line); n > 0 && o.standing+len(s.frames) > lineBytes {
		// The pool is slow, not the peer.
		o.line = append(o.line, s)
		o.standing += len(s.frames)
		c.letGo()
		return
	}
	o.standing += len(s.frames)
	if s.job != nil {
		s.job.waiters = append(s.job.waiters, c.id())
	} else if last := len(o.line) - 1; s.own && o.line[last].own && o.line[last].job == nil {
		o.line[last].frames = append(o.line[last].frames, s.frames...)
		s.frames = nil
	}
	if s.frames != nil {
		if o.line == nil {
			o.line = o.place[:0]
		}
		o.line = append(o.line, s)
	}
	if o.blocked {
		c.account()
	}
}

// move takes off the line what is ready, or all of it, as it is where it is not;
// false: nothing was.
func (o *outbound) move(all bool) bool {
	n := 0
	for ; n < len(o.line); n++ {
		s := &o.line[n]
		f, ready := s.ready()
		if !ready && !all {
			break
		}
		s.abandon()
		o.seal()
		o.parts = append(o.parts, f)
		o.standing -= len(s.frames)
		o.bytes += len(f) - len(s.frames)
	}
	o.leave(n)
	return n > 0
}

// ready is what to send for s; false: as it is, the pool has not done with it.
func (s *standing) ready() (frames []byte, ok bool) {
	switch {
	case s.job == nil:
		return s.frames, true
	case s.job.done:
		return s.job.out, true
	}
	return s.frames, false
}

// abandon spares the pool what nobody else waits for.
func (s *standing) abandon() {
	if s.job != nil && !s.job.shared {
		s.job.off()
	}
}

// leave ends the first n places in line.
func (o *outbound) leave(n int) {
	rest := copy(o.line, o.line[n:])
	clear(o.line[rest:])
	if o.line = o.line[:rest]; rest == 0 {
		o.line, o.standing = nil, 0
	}
}

// disperse ends the line: what stands in it is not sent.
func (o *outbound) disperse() {
	for i := range o.line {
		o.line[i].abandon()
	}
	o.bytes -= o.standing
	o.leave(len(o.line))
}

// endLine puts what stands in line where it leaves next, as it is.
func (c *conn) endLine() {
	if c.out != nil && len(c.out.line) > 0 {
		c.out.move(true)
	}
}

// letGo sends what stands in line as it is: what comes next does not wait for the
// pool.
func (c *conn) letGo() {
	c.endLine()
	c.list()
	c.early()
}

// Run implements session.Task. Runs on the loop: the deflation is done, for all who
// wait.
func (j *deflation) Run() (more bool) {
	l := j.loop
	if !j.done {
		j.finish()
	}
	stop := min(j.cursor+deflateSlice, len(j.waiters))
	for j.cursor < stop {
		id := j.waiters[j.cursor]
		j.cursor++
		if c := l.at(id); c != nil && c.out != nil && c.out.move(false) {
			l.guard(c, func() {
				c.list()
				c.early()
			})
		}
	}
	if j.cursor < len(j.waiters) {
		return true
	}
	j.waiters, j.cursor = nil, 0
	return false
}

// finish notes what has become of the frames.
func (j *deflation) finish() {
	l := j.loop
	j.done, j.doneAt = true, l.present()
	l.press.taken()
	if j.out == nil {
		j.out = j.frames
	}
	l.stats.Deflated.Add(uint64(j.n))
	l.stats.DeflatedFrom.Add(uint64(j.from))
	l.stats.DeflatedTo.Add(uint64(j.to))
	if !j.shared {
		return
	}
	p := &l.press
	p.recent = append(p.recent, j)
	p.held += len(j.frames) + len(j.out)
	for len(p.recent) > 1 && (len(p.recent) > recentMost || p.held > recentBytes) {
		p.forget(1)
	}
	if l.stats.Open.Load() == 0 {
		p.clear() // no tick comes for it
	}
}

func (j *deflation) work(t *tools) {
	j.out, j.n, j.from, j.to = t.repack(j.frames, j.key.bits, j.loop.server.deflater.threshold)
}

func (j *deflation) broken() { j.out = nil }

// giveUp lets the frames go as they are. Runs on the loop.
func (j *deflation) giveUp() {
	j.loop.stats.DeflateRefused.Add(1)
	j.loop.PostTask(0, j)
}

// forget lets go of the n oldest deflations that are done.
func (p *press) forget(n int) {
	for _, j := range p.recent[:n] {
		delete(p.shared, j.key)
		p.held -= len(j.frames) + len(j.out)
	}
	p.recent = slices.Delete(p.recent, 0, n)
}

// tick forgets what is old, and gives up what has waited too long for a runner.
func (p *press) tick(now uint32) {
	if p.shared == nil && len(p.orders) == 0 {
		return
	}
	n := 0
	for n < len(p.recent) && now-p.recent[n].doneAt >= recentTicks {
		n++
	}
	p.forget(n)
	if len(p.shared) == 0 {
		p.shared, p.recent = nil, nil
	}
	for _, e := range p.orders[p.first:] {
		if o := e.base(); now-o.since >= o.patience && o.off() {
			e.giveUp()
		}
	}
	p.taken()
}

// add notes an order.
func (p *press) add(e errand) {
	if p.first > idleItems && p.first > len(p.orders)/2 {
		p.orders = slices.Delete(p.orders, 0, p.first)
		p.first = 0
	}
	p.orders = append(p.orders, e)
}

// taken lets go of the oldest orders, as far as they wait no more.
func (p *press) taken() {
	for p.first < len(p.orders) && p.orders[p.first].base().state.Load() != orderWaits {
		p.orders[p.first] = nil
		p.first++
	}
	if p.first == len(p.orders) {
		p.first = 0
		if p.orders = p.orders[:0]; cap(p.orders) > idleItems {
			p.orders = nil
		}
	}
}

// clear forgets everything that is done: the loop's last conn has gone.
func (p *press) clear() {
	p.forget(len(p.recent))
	if p.recent = nil; len(p.shared) == 0 {
		p.shared = nil
	}
	p.taken()
}
