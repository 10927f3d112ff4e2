package handler

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
)

// PoolOptions configure a Pool.
type PoolOptions struct {
	// Workers bounds the goroutines; 0 means 64. They are started when there is
	// work for them, and kept.
	Workers int
	// QueueBytes bounds the jobs that wait; 0 means 16 MiB.
	QueueBytes int
	Logger     *slog.Logger
}

const (
	defaultWorkers    = 64
	defaultQueueBytes = 16 << 20
)

// Pool runs what may block on a bounded number of goroutines. Jobs wait in
// lanes. The pool's own lane is for the server's work; each method that users
// registered has a lane of its own, which may hold only a part of the workers
// and of the queue: one that blocks fills its lane and nothing else. What is
// reserved for the own lane the others never get. Jobs of one lane start in
// order. Safe from any goroutine.
type Pool struct {
	workers int // the bound
	guests  int // how many of them lanes may have at once
	bytes   int // the bound
	log     *slog.Logger

	mu      sync.Mutex
	wake    sync.Cond
	own     lane
	ready   []*lane // lanes that have a job and may run it, in turns
	ownTurn bool
	started int
	idle    int
	hosting int // workers that run a lane's job
	depth   int
	queued  int // bytes
	ran     uint64
	panics  uint64
	refused uint64
	closed  bool
	done    sync.WaitGroup
}

// lane is a queue of the pool. All of it is under the pool's lock.
type lane struct {
	pool       *Pool
	head, tail *job
	running    int
	queued     int // bytes
	limit      int // of running
	bytes      int // bound of queued
	listed     bool
}

// job is one piece of work.
type job struct {
	run        func()
	lane       *lane
	prev, next *job
	size       int
	waiting    bool
}

// NewPool makes a pool that has no goroutine yet.
func NewPool(o PoolOptions) *Pool {
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.QueueBytes <= 0 {
		o.QueueBytes = defaultQueueBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pool{workers: o.Workers, bytes: o.QueueBytes, log: o.Logger}
	p.guests = max(1, o.Workers-max(1, o.Workers/8))
	p.wake.L = &p.mu
	p.own = lane{pool: p, limit: o.Workers, bytes: o.QueueBytes}
	return p
}

// lane makes a queue for one method.
func (p *Pool) lane() *lane { return p.lanes(1)[0] }

// lanes makes n queues that together leave workers for others: were all their
// jobs stuck, one lane's part of the workers would be free.
func (p *Pool) lanes(n int) []*lane {
	all := make([]*lane, n)
	for i := range all {
		all[i] = &lane{pool: p, limit: max(1, p.guests/(n+1)), bytes: max(1, p.bytes/4)}
	}
	return all
}

// Submit gives the pool a job that counts size bytes while it waits. It never
// blocks: false means that the queue is full or the pool is closed.
func (p *Pool) Submit(size int, run func()) bool {
	return p.own.submit(size, run) != nil
}

// submit returns nil where there is no room.
func (l *lane) submit(size int, run func()) *job {
	p := l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.queued+size > p.bytes || l.queued+size > l.bytes {
		p.refused++
		return nil
	}
	j := &job{run: run, lane: l, size: size, waiting: true}
	if j.prev = l.tail; j.prev != nil {
		j.prev.next = j
	} else {
		l.head = j
	}
	l.tail = j
	l.queued += size
	p.queued += size
	p.depth++
	p.listLocked(l)
	if p.idle > 0 {
		p.wake.Signal()
	} else if p.started < p.workers {
		p.started++
		p.done.Add(1)
		go p.work()
	}
	return j
}

// cancel takes a job out that has not begun; false: it has.
func (p *Pool) cancel(j *job) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !j.waiting {
		return false
	}
	p.unlinkLocked(j)
	return true
}

func (p *Pool) unlinkLocked(j *job) {
	l := j.lane
	if j.prev != nil {
		j.prev.next = j.next
	} else {
		l.head = j.next
	}
	if j.next != nil {
		j.next.prev = j.prev
	} else {
		l.tail = j.prev
	}
	j.prev, j.next, j.waiting = nil, nil, false
	l.queued -= j.size
	p.queued -= j.size
	p.depth--
}

// listLocked puts a lane in turn if it may run a job.
func (p *Pool) listLocked(l *lane) {
	if l != &p.own && !l.listed && l.head != nil && l.running < l.limit {
		l.listed = true
		p.ready = append(p.ready, l)
	}
}

// pickLocked takes the next job: the own lane and the others in turns.
func (p *Pool) pickLocked() *job {
	for len(p.ready) > 0 && p.ready[0].head == nil {
		p.ready[0].listed = false // its jobs were cancelled
		p.ready = p.ready[1:]
	}
	guest := len(p.ready) > 0 && p.hosting < p.guests
	var l *lane
	switch {
	case p.own.head != nil && (p.ownTurn || !guest):
		l = &p.own
		p.ownTurn = false
	case guest:
		l = p.ready[0]
		l.listed = false
		p.ready[0] = nil
		if p.ready = p.ready[1:]; len(p.ready) == 0 {
			p.ready = nil
		}
		p.hosting++
		p.ownTurn = true
	default:
		return nil
	}
	j := l.head
	p.unlinkLocked(j)
	l.running++
	p.listLocked(l)
	return j
}

func (p *Pool) work() {
	defer p.done.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		j := p.pickLocked()
		if j == nil {
			if p.closed {
				return
			}
			p.idle++
			p.wake.Wait()
			p.idle--
			continue
		}
		if p.idle > 0 && p.depth > 0 {
			// The signal of another job may have been for a worker that found this
			// one; nobody sleeps while there is something to do.
			p.wake.Signal()
		}
		p.mu.Unlock()
		ok := p.run(j)
		p.mu.Lock()
		p.ran++
		if !ok {
			p.panics++
		}
		j.lane.running--
		if j.lane != &p.own {
			p.hosting--
		}
		p.listLocked(j.lane)
	}
}

func (p *Pool) run(j *job) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			p.log.Error("panic in pool", "err", r, "stack", string(debug.Stack()))
		}
	}()
	j.run()
	return true
}

// PoolStats is what a Pool tells of itself.
type PoolStats struct {
	Workers int // goroutines that exist
	Idle    int // of them
	Depth   int // jobs that wait
	Bytes   int // of them
	Done    uint64
	Refused uint64
	Panics  uint64
}

// Stats reads the pool's numbers.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PoolStats{Workers: p.started, Idle: p.idle, Depth: p.depth, Bytes: p.queued, Done: p.ran, Refused: p.refused, Panics: p.panics}
}

// Close takes no more jobs, lets those that wait run, and returns when the
// workers have ended, or with ctx's error when it ends first (a job that never
// returns can't be ended from outside).
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.wake.Broadcast()
	p.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		p.done.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
