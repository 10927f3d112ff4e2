package handler

import (
	"context"
	"sync"
)

// apiGather waits for answers that come from loops and brokers, from any
// goroutine and in any order.
type apiGather[T any] struct {
	mu      sync.Mutex
	answers []T
	left    int
	done    chan struct{}
}

// newAPIGather expects n answers; unanswered stands in the place of each until
// it comes.
func newAPIGather[T any](n int, unanswered T) *apiGather[T] {
	g := &apiGather[T]{answers: make([]T, n), left: n, done: make(chan struct{})}
	for i := range g.answers {
		g.answers[i] = unanswered
	}
	if n == 0 {
		close(g.done)
	}
	return g
}

// set takes the answer i, which comes once. It does not block.
func (g *apiGather[T]) set(i int, v T) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.answers != nil {
		g.answers[i] = v
	}
	if g.left--; g.left == 0 {
		close(g.done)
	}
}

// wait gives out the answers when all are there or ctx ends. It is called once;
// what comes later is dropped.
func (g *apiGather[T]) wait(ctx context.Context) []T {
	select {
	case <-g.done:
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	answers := g.answers
	g.answers = nil
	return answers
}
