package handler

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func closePool(t *testing.T, p *Pool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestPoolStartsWorkersAsNeeded(t *testing.T) {
	p := NewPool(PoolOptions{Workers: 3})
	if s := p.Stats(); s.Workers != 0 {
		t.Fatalf("%+v", s)
	}
	gate, begun := make(chan struct{}), make(chan struct{})
	for range 3 {
		if !p.Submit(1, func() { begun <- struct{}{}; <-gate }) {
			t.Fatal("refused")
		}
	}
	for range 3 {
		<-begun
	}
	for range 5 {
		p.Submit(10, func() {})
	}
	if s := p.Stats(); s.Workers != 3 || s.Depth != 5 || s.Bytes != 50 || s.Idle != 0 {
		t.Errorf("%+v", s)
	}
	close(gate)
	closePool(t, p)
	if s := p.Stats(); s.Depth != 0 || s.Bytes != 0 {
		t.Errorf("%+v", s)
	}
	if p.Submit(1, func() {}) {
		t.Error("a closed pool takes jobs")
	}
}

func TestPoolKeepsAnIdleWorkerBusyFirst(t *testing.T) {
	p := NewPool(PoolOptions{Workers: 8})
	for range 50 {
		done := make(chan struct{})
		p.Submit(1, func() { close(done) })
		<-done
		waitFor(t, func() bool { return p.Stats().Idle > 0 })
	}
	if s := p.Stats(); s.Workers != 1 {
		t.Errorf("one job at a time made %d workers", s.Workers)
	}
	closePool(t, p)
}

func TestPoolBoundsItsQueue(t *testing.T) {
	p := NewPool(PoolOptions{Workers: 1, QueueBytes: 100})
	gate, begun := make(chan struct{}), make(chan struct{})
	p.Submit(100, func() { close(begun); <-gate })
	<-begun
	if !p.Submit(60, func() {}) || p.Submit(41, func() {}) || !p.Submit(40, func() {}) || p.Submit(1, func() {}) {
		t.Error("the bound is not 100")
	}
	if s := p.Stats(); s.Refused != 2 || s.Bytes != 100 {
		t.Errorf("%+v", s)
	}
	close(gate)
	closePool(t, p)
}

func TestPoolOrderOfALane(t *testing.T) {
	p := NewPool(PoolOptions{Workers: 1})
	l := p.lane()
	var mu sync.Mutex
	var got []int
	for i := range 100 {
		l.submit(1, func() {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, i)
		})
	}
	closePool(t, p)
	for i := range got {
		if got[i] != i {
			t.Fatalf("%v", got)
		}
	}
	if len(got) != 100 {
		t.Errorf("%d ran", len(got))
	}
}

func TestPoolLanes(t *testing.T) { synctest.Test(t, poolLanes) }

func poolLanes(t *testing.T) {
	p := NewPool(PoolOptions{Workers: 8, QueueBytes: 4000})
	gate := make(chan struct{})
	var a, b atomic.Int32
	la, lb := p.lane(), p.lane()
	for range 20 {
		la.submit(10, func() { a.Add(1); <-gate })
	}
	// A lane has a quarter of the queue.
	if la.submit(1000, func() {}) != nil {
		t.Error("a lane took more than its part")
	}
	for range 20 {
		lb.submit(10, func() { b.Add(1); <-gate })
	}
	synctest.Wait() // all that may run does, and blocks
	// Of 8 workers lanes have 7 together and one has 3; one is the server's own.
	if a.Load() != 3 || b.Load() != 3 {
		t.Errorf("%d and %d run", a.Load(), b.Load())
	}
	own := make(chan struct{})
	p.Submit(1, func() { close(own) })
	<-own
	close(gate)
	closePool(t, p)
	if a.Load() != 20 || b.Load() != 20 {
		t.Errorf("%d and %d ran", a.Load(), b.Load())
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("still waiting")
		}
	}
}

func TestPoolCancel(t *testing.T) {
	p := NewPool(PoolOptions{Workers: 2})
	l := p.lane()
	gate, begun := make(chan struct{}), make(chan struct{})
	first := l.submit(1, func() { close(begun); <-gate })
	<-begun
	ran := make(map[int]bool)
	var jobs []*job
	for i := range 5 {
		jobs = append(jobs, l.submit(10, func() { ran[i] = true }))
	}
	if p.cancel(first) {
		t.Error("a job that runs was cancelled")
	}
	for _, i := range []int{0, 2, 4} {
		if !p.cancel(jobs[i]) || p.cancel(jobs[i]) {
			t.Errorf("cancel of job %d", i)
		}
	}
	if s := p.Stats(); s.Depth != 2 || s.Bytes != 20 {
		t.Errorf("%+v", s)
	}
	close(gate)
	waitFor(t, func() bool { return p.Stats().Depth == 0 })
	// A lane that was emptied by cancelling is used again.
	block, on := make(chan struct{}), make(chan struct{})
	l.submit(1, func() { close(on); <-block })
	<-on
	if !p.cancel(l.submit(1, func() {})) {
		t.Error("not cancelled")
	}
	close(block)
	again := make(chan struct{})
	l.submit(1, func() { close(again) })
	<-again
	closePool(t, p)
	if len(ran) != 2 || !ran[1] || !ran[3] {
		t.Errorf("ran %v", ran)
	}
}

func TestPoolSurvivesPanics(t *testing.T) {
	var log bytes.Buffer
	p := NewPool(PoolOptions{Workers: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for range 3 {
		p.Submit(1, func() { panic("a bug") })
	}
	done := make(chan struct{})
	p.Submit(1, func() { close(done) })
	<-done
	closePool(t, p)
	if s := p.Stats(); s.Panics != 3 || s.Workers != 1 {
		t.Errorf("%+v", s)
	}
	if strings.Count(log.String(), "panic in pool") != 3 {
		t.Error(log.String())
	}
}

func TestPoolCloseDoesNotWaitForEver(t *testing.T) {
	p := NewPool(PoolOptions{Workers: 1})
	gate := make(chan struct{})
	p.Submit(1, func() { <-gate })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(gate)
	closePool(t, p)
}

// TestPoolLosesNothing gives a small pool jobs from many goroutines, through
// its own lane and others, some of them cancelled.
func TestPoolLosesNothing(t *testing.T) {
	p := NewPool(PoolOptions{Workers: 3, QueueBytes: 1 << 20})
	lanes := []*lane{p.lane(), p.lane(), &p.own}
	var ran, taken, cancelled atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				j := lanes[(g+i)%len(lanes)].submit(1, func() { ran.Add(1) })
				if j == nil {
					continue
				}
				taken.Add(1)
				if i%7 == 0 && p.cancel(j) {
					cancelled.Add(1)
				}
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool { return p.Stats().Depth == 0 })
	closePool(t, p)
	if ran.Load() != taken.Load()-cancelled.Load() || taken.Load() != 16000 {
		t.Errorf("%d taken, %d cancelled, %d ran", taken.Load(), cancelled.Load(), ran.Load())
	}
}

func BenchmarkPool(b *testing.B) {
	p := NewPool(PoolOptions{Workers: 4})
	b.ReportAllocs()
	var wg sync.WaitGroup
	for b.Loop() {
		wg.Add(1)
		if !p.Submit(100, wg.Done) {
			wg.Done()
		}
	}
	wg.Wait()
	_ = p.Close(context.Background())
}
