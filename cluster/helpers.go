package cluster

import "sync"

// helpers run what other nodes ask for, on a bounded number of goroutines, which
// are there while there is work.
type helpers struct {
	most  int // goroutines
	queue int // jobs that wait
	bytes int // of them

	mu      sync.Mutex
	row     []chore
	waiting int // bytes
	running int
	closed  bool
	done    sync.WaitGroup
}

type chore struct {
	run  func()
	size int
}

// do never blocks; false: there is no room.
func (h *helpers) do(size int, run func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	if h.running < h.most {
		h.running++
		h.done.Go(func() { h.work(run) })
		return true
	}
	if len(h.row) >= h.queue || h.waiting+size > h.bytes {
		return false
	}
	h.row = append(h.row, chore{run, size})
	h.waiting += size
	return true
}

func (h *helpers) work(run func()) {
	for {
		run()
		h.mu.Lock()
		if len(h.row) == 0 || h.closed {
			h.running--
			h.mu.Unlock()
			return
		}
		next := h.row[0]
		h.row[0] = chore{}
		if h.row = h.row[1:]; len(h.row) == 0 {
			h.row = nil
		}
		h.waiting -= next.size
		h.mu.Unlock()
		run = next.run
	}
}

// close takes no more, drops what waits, and waits for what runs.
func (h *helpers) close() {
	h.mu.Lock()
	h.closed = true
	h.row = nil
	h.mu.Unlock()
	h.done.Wait()
}
