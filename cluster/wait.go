package cluster

import (
	"context"
	"time"
)

// poke wakes the one who waits on c, which has room for one; it does not block.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// waitFor waits for the answer, for as long as ctx lasts; then the error is its cause.
func waitFor[T any](ctx context.Context, do func(func(T, error))) (T, error) {
	type answer struct {
		v   T
		err error
	}
	c := make(chan answer, 1)
	do(func(v T, err error) {
		select {
		case c <- answer{v, err}:
		default:
		}
	})
	select {
	case a := <-c:
		return a.v, a.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// pauseFor waits; false: ctx has ended. What comes on wake, if it is not nil, ends it
// early.
func pauseFor(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-wake:
	}
	return true
}
