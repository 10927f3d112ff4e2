package bench

import (
	"sync"
	"time"
)

// Watch shows the phases of a run as progress. Phase may be called from any
// goroutine; Close ends it.
type Watch struct {
	mu    sync.Mutex
	p     *Progress
	title string
	lasts time.Duration
	begun time.Time
	stop  chan struct{}
	done  sync.WaitGroup
}

// NewWatch draws with p, to which nobody else may write meanwhile. title stands
// before each phase.
func NewWatch(p *Progress, title string) *Watch {
	w := &Watch{p: p, title: title, stop: make(chan struct{})}
	w.done.Go(func() {
		t := time.NewTicker(redrawEvery)
		defer t.Stop()
		for {
			select {
			case <-w.stop:
				return
			case <-t.C:
				w.draw()
			}
		}
	})
	return w
}

// Phase begins a step of the run.
func (w *Watch) Phase(what string, lasts time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun, w.lasts = time.Now(), lasts
	if lasts > 0 {
		w.p.StartTimed(w.title+": "+what, lasts)
		return
	}
	w.p.Start(w.title+": "+what, 0)
}

func (w *Watch) draw() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun.IsZero() {
		return
	}
	w.p.Update(int64(min(time.Since(w.begun), max(w.lasts, time.Nanosecond))), int64(w.lasts), "")
}

// Close ends the last step.
func (w *Watch) Close() {
	close(w.stop)
	w.done.Wait()
	w.p.Done()
}
