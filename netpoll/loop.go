package netpoll

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/panjf2000/gnet/v2"

	"perch/internal/pace"
	"perch/session"
)

const (
	// chunkSize conns fill 64 KiB, a whole number of the allocator's pages.
	chunkSize = 64 << 10 / uint32(unsafe.Sizeof(conn{}))
	// flushAt is how many conns may have frames that wait for the turn's end.
	flushAt = 256
	// spareOutbounds is how many idle outbounds a loop keeps.
	spareOutbounds = flushAt
)

// loop is one gnet event loop with its conns. It implements session.Loop.
type loop struct {
	// Fixed.
	server *Server
	index  int
	events gnet.EventLoop
	start  time.Time
	drain  drainTask

	inbox inbox
	// asked is since when a turn of the wheel is in the inbox, in nanoseconds of the
	// server's life; 0: none is.
	asked atomic.Int64

	// The loop's.
	chunks [][]conn // conns never move, and a slot's memory is used again
	free   []uint32
	wheel  wheel
	// stalled is the tick at which the wheel was last found far behind.
	stalled uint32
	dirty   []*conn // with frames that leave at the end of the turn
	spare   []*outbound
	join    []byte // where a turn's frames are put together
	first   []byte // where the first bytes of a new connection are read
	random  uint64
	storm   storm
	// paces are the sessions' rates of frames.
	paces pace.Table[session.ID]
	// clients are those of the conns that come through a proxy, by slot.
	clients map[uint32]netip.AddrPort
	press   press
	// share is how many frames and commands of one peer have been handled in this
	// go, of limit. late are the conns whose input is put off, from lateAt on;
	// serving is the one that is at it.
	share, limit int
	late         []session.ID
	lateAt       int
	serving      *conn
	// request is what Check is given, used again for each.
	request Request

	stats loopStats
}

func (s *Server) newLoop(index int, events gnet.EventLoop) *loop {
	l := &loop{server: s, index: index, events: events, start: time.Now(), random: uint64(index+1) * 0x9e3779b97f4a7c15}
	l.drain = drainTask{l}
	l.inbox.limit = int64(s.opts.InboxBytes)
	return l
}

// Index implements session.Loop.
func (l *loop) Index() int { return l.index }

// conn is the conn of a slot, in use or not.
func (l *loop) conn(slot uint32) *conn {
	return &l.chunks[slot/chunkSize][slot%chunkSize]
}

// take finds a free slot and begins its next generation.
func (l *loop) take() *conn {
	if len(l.free) == 0 {
		first := uint32(len(l.chunks)) * chunkSize
		l.chunks = append(l.chunks, make([]conn, chunkSize))
		l.stats.Chunks.Add(1)
		for i := chunkSize; i > 0; i-- {
			l.free = append(l.free, first+i-1)
		}
	}
	slot := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	c := l.conn(slot)
	gen := (c.gen + 1) & session.GenerationMask
	if gen == 0 {
		gen = 1
	}
	*c = conn{loop: l, slot: slot, gen: gen}
	return c
}

// give makes the slot of c free. Its generation stays, so that old IDs find
// nothing.
func (l *loop) give(c *conn) {
	slot, gen := c.slot, c.gen
	*c = conn{loop: l, slot: slot, gen: gen, mode: modeFree}
	l.free = append(l.free, slot)
}

// at is the conn of an ID, or nil when its slot has gone on.
func (l *loop) at(id session.ID) *conn {
	slot := id.Slot()
	if int(slot/chunkSize) >= len(l.chunks) {
		return nil
	}
	c := l.conn(slot)
	if c.mode == modeFree || c.gen != id.Generation() {
		return nil
	}
	return c
}

// find is the conn of a live session, or nil.
func (l *loop) find(id session.ID) *conn {
	c := l.at(id)
	if c == nil || !c.live() || c.sess.Closed() {
		return nil
	}
	return c
}

// guard runs f, a step of c's, and ends c where f panics: no one else notices.
func (l *loop) guard(c *conn, f func()) {
	defer func() {
		if p := recover(); p != nil {
			l.panicked(p)
			l.scuttle(c)
		}
	}()
	f()
}

// scuttle ends a conn whose code has panicked, even where ending it panics too.
func (l *loop) scuttle(c *conn) {
	defer func() {
		if p := recover(); p != nil {
			l.panicked(p)
			c.drop()
		}
	}()
	c.fail(session.ReasonServerError)
}

func (l *loop) panicked(p any) {
	l.stats.Panics.Add(1)
	l.server.log.Error("panic on a loop", slog.Int("loop", l.index), slog.String("err", fmt.Sprint(p)),
		slog.String("stack", string(debug.Stack())))
}

// rand is a cheap pseudo-random number (splitmix64), for spreading pings.
func (l *loop) rand() uint64 {
	l.random += 0x9e3779b97f4a7c15
	z := l.random
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// tick asks for a turn of the wheel, unless one waits already. Safe from any
// goroutine.
func (l *loop) tick() {
	if l.stats.Open.Load() > 0 && l.asked.CompareAndSwap(0, max(1, int64(time.Since(l.server.made)))) {
		l.PostTask(0, turnWheel{l})
	}
}
