package perch_test

import (
	"context"
	"testing"
	"time"

	"perch"
	"perch/handler"
	"perch/session"
)

// A session that is being looked at when the time of a drain is over is told as
// well: what its loop has not got round to yet is nowhere else.
func TestDrainForcesWhoIsLookedAt(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Drain.Budget, o.Loops = time.Minute, 1 })
	entered, release := make(chan struct{}), make(chan struct{})
	s.HandleRPC("stuck", func(context.Context, handler.RPCRequest) ([]byte, error) {
		close(entered)
		<-release
		return nil, nil
	})
	p := s.session(t, "alice")
	p.send(rpcCommand(2, "stuck", "1"))
	await(t, "the call", entered)
	defer close(release)
	ids := s.SessionIDs(t.Context())
	held, gate := make(chan struct{}), make(chan struct{})
	s.Net().Loop(0).Post(0, 0, func(*session.Session) {
		close(held)
		<-gate
	})
	await(t, "the loop", held)
	forced := s.ForceDrain(t.Context(), ids)
	select {
	case n := <-forced:
		t.Errorf("%d forced, before the loop could say who is left", n)
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if n := await(t, "the end", forced); n != 1 {
		t.Errorf("%d forced", n)
	}
	p.closes(3001)
}
