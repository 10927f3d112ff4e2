package perch

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"perch/internal/proc"
)

// The memory budget of the process. The kernel ends a process that takes more
// than its cgroup may, and all of its sessions with it; so long before that new
// connections are refused, and then those go for whom the most waits: they are
// told to come back, and recover.
const (
	memoryEvery = 100 * time.Millisecond
	// memoryPause is how many of these go by between two looks for garbage, which cost
	// a collection each.
	memoryPause = 2
	// memoryLeast is below what a server takes that does nothing.
	memoryLeast = 48 << 20
	// Of the budget, in hundredths: from where on no connection is taken, from where
	// on the slowest are closed, where either is over, and what Go's runtime is given
	// as its limit, by which the collector works harder before that, and beyond which the connections
	// get no room from one look to the next.
	memoryTight = 85
	memoryShed  = 92
	memoryEased = 80
	memoryFull  = 97
	memoryGo    = 80
)

// budget watches the process's memory.
type budget struct {
	limit int64
	log   *slog.Logger
	// used is what the process takes now; nil: what the kernel says. tight makes the loops refuse connections,
	// or take them again. shed closes those for whom most bytes are held, until want
	// bytes are let go, and says how many it closed. collect gives garbage back to
	// the kernel.
	used  func() int64
	tight func(bool)
	// kernel is about what the kernel holds for the connections. group: the budget is
	// that of a cgroup.
	kernel func() int64
	group  bool
	// room is how much more the connections may hold until the next step.
	shed    func(want int64) (closed int, bytes int64)
	collect func()
	room    func(int64)

	isTight  bool
	rest     int          // steps until garbage is looked for again
	last     atomic.Int64 // used, at the last step
	refusing atomic.Bool
}

// step looks at the memory once.
func (b *budget) step() {
	used := b.measure()
	// What grows leaves garbage of its own size behind.
	b.room(max(0, b.part(memoryFull)-used) / 2)
	if used >= b.part(memoryShed) {
		// Part of it may be garbage. Nobody is let in while that is looked at, nor
		// until it is looked at again.
		if b.rest > 0 {
			b.rest--
			b.tighten(used)
			return
		}
		b.rest = memoryPause
		b.collect()
		used = b.measure()
	} else {
		b.rest = 0
	}
	switch {
	case used >= b.part(memoryTight):
		b.tighten(used)
	case used < b.part(memoryEased) && b.isTight:
		b.isTight = false
		b.refusing.Store(false)
		b.tight(false)
		b.log.Info("memory is back: connections are taken again", "used", used, "budget", b.limit)
	}
	if used < b.part(memoryShed) {
		return
	}
	if closed, bytes := b.shed(used - b.part(memoryTight)); closed > 0 {
		b.log.Warn("memory is short: the slowest consumers are closed", "used", used, "budget", b.limit,
			"sessions", closed, "bytes", bytes)
	}
}

func (b *budget) tighten(used int64) {
	if !b.isTight {
		b.isTight = true
		b.refusing.Store(true)
		b.tight(true)
		b.log.Warn("memory is short: new connections are refused", "used", used, "budget", b.limit)
	}
}

func (b *budget) part(hundredths int64) int64 { return b.limit / 100 * hundredths }

func (b *budget) measure() int64 {
	used := b.used()
	b.last.Store(used)
	return used
}

// run watches until ctx ends.
func (b *budget) run(ctx context.Context) {
	if b.used == nil {
		m := proc.OpenMemory()
		defer m.Close()
		b.used = func() int64 { return b.taken(m) }
	}
	t := time.NewTicker(memoryEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			b.step()
		}
	}
}

// taken is what the process takes: its own memory, and what the kernel holds for
// its connections. Where the budget is the limit of a cgroup, it is what is charged
// to the group where that is more: the kernel goes by it.
func (b *budget) taken(m *proc.Memory) int64 {
	used := m.Used() + b.kernel()
	if b.group {
		used = max(used, m.Group())
	}
	return used
}

// wireMemory finds the budget.
func (s *Server) wireMemory() error {
	limit, group := int64(s.opts.Memory.Budget), false
	if limit == 0 {
		var err error
		if limit, group, err = proc.MemoryLimit(); err != nil {
			s.log.Warn("memory is not bounded: set memory.budget", "err", err)
			return nil
		}
	}
	if limit < memoryLeast {
		return fmt.Errorf("memory.budget: %d bytes are below what a server takes, %d: raise the cgroup's limit or set memory.budget",
			limit, memoryLeast)
	}
	o := &s.opts
	topics, say := o.Topics.HistoryBytes, "histories and queues may take more than half of the memory: lower topics.history_bytes, limits.inbox_bytes or pool.queue_bytes"
	if o.Engine == EngineNATS {
		// Histories are not in the memory then.
		topics, say = o.NATS.QueueBytes, "queues may take more than half of the memory: lower nats.queue_bytes, limits.inbox_bytes or pool.queue_bytes"
	}
	queues := int64(topics) + int64(o.Pool.QueueBytes) + int64(o.Limits.InboxBytes)*int64(s.loops)
	if queues > limit/2 {
		s.log.Warn(say, "bytes", queues, "budget", limit)
	}
	s.memory = &budget{
		limit: limit, group: group, log: s.log, used: o.used, kernel: s.net.KernelBytes, collect: debug.FreeOSMemory,
		tight: s.net.SetTight, shed: s.net.Shed, room: s.net.SetRoom,
	}
	return nil
}

// MemoryLimit is what GOMEMLIMIT should be beside the memory budget, in bytes; 0
// where there is no budget. The server does not set it: it is the process's.
func (s *Server) MemoryLimit() int64 {
	if s.memory == nil {
		return 0
	}
	return s.memory.part(memoryGo)
}

// memoryLayers is what is accounted, by who holds it.
func (s *Server) memoryLayers() map[string]int64 {
	n, p, t := s.net.Stats(), s.pool.Stats(), s.topics.Counts()
	sample := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(sample)
	own, _ := proc.RssAnon(os.Getpid())
	sockets, _ := proc.SocketMemory()
	return map[string]int64{
		"connections": n.TableBytes, "pending_out": n.PendingBytes, "partial_in": n.PartialBytes + n.PutOffBytes, "inboxes": n.InboxBytes,
		"history": t.History.Bytes, "pool": int64(p.Bytes),
		"go_heap": int64(sample[0].Value.Uint64()), "go": int64(sample[1].Value.Uint64() - sample[2].Value.Uint64()),
		"process": own, "kernel_connections": s.net.KernelBytes(), "kernel_sockets": sockets,
	}
}
