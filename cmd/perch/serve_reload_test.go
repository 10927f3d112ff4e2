package main

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"perch"
	"perch/internal/testkit"
)

// slowReloads is a server whose reloads end when they are told to.
type slowReloads struct {
	*fakeServer
	begun chan struct{} // one for each reload
	end   chan struct{} // one ends one; closed: all
	now   atomic.Int32
	most  atomic.Int32
	count atomic.Int32
}

func newSlowReloads(drains bool) *slowReloads {
	f := newFake()
	f.drains = drains
	return &slowReloads{fakeServer: f, begun: make(chan struct{}, 32), end: make(chan struct{})}
}

func (s *slowReloads) Reload(perch.Options) error {
	s.count.Add(1)
	s.most.Store(max(s.most.Load(), s.now.Add(1)))
	s.begun <- struct{}{}
	<-s.end
	s.now.Add(-1)
	return nil
}

// runs is a serve that goes on in the background.
func (s *slowReloads) runs(t *testing.T) <-chan error {
	t.Helper()
	// A signal that comes after serve has returned would end the tests.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	cmd.SetErr(io.Discard)
	greeted, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- serve(cmd, s, hooks{
			greet:  func() { close(greeted) },
			reload: func() (perch.Options, error) { return perch.Options{}, nil },
		})
	}()
	await(t, "the greeting", greeted)
	return done
}

func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(testkit.Timeout):
		t.Fatalf("%s does not come", what)
		panic("unreachable")
	}
}

// deliver sends a signal and returns when serve's own queue has it, or had no room
// for it: signal.Stop returns when what was on its way has been handed out.
func deliver(t *testing.T, sig syscall.Signal) {
	t.Helper()
	seen := make(chan os.Signal, 1)
	signal.Notify(seen, sig)
	defer signal.Stop(seen)
	interrupt(t, sig)
	await(t, sig.String(), seen)
}

// TestServeEndsInReload: an end does not wait for a reload that hangs, and a crowd
// of SIGHUP takes no place from SIGTERM; nor does the second signal wait.
func TestServeEndsInReload(t *testing.T) {
	for _, tt := range []struct {
		name   string
		drains bool
		want   error
	}{{"drains", true, nil}, {"aborts", false, errAborted}} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSlowReloads(tt.drains)
			defer close(s.end)
			done := s.runs(t)
			deliver(t, syscall.SIGHUP)
			await(t, "the reload", s.begun)
			for range 4 {
				deliver(t, syscall.SIGHUP)
			}
			deliver(t, syscall.SIGTERM)
			if !tt.drains {
				deliver(t, syscall.SIGTERM)
			}
			if err := await(t, "the end", done); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestServeReloadsOneByOne: what asks for a reload during one is not lost, comes
// after it, and is one however often it asks.
func TestServeReloadsOneByOne(t *testing.T) {
	s := newSlowReloads(true)
	done := s.runs(t)
	deliver(t, syscall.SIGHUP)
	await(t, "the first reload", s.begun)
	for range 8 {
		deliver(t, syscall.SIGHUP)
	}
	s.end <- struct{}{}
	await(t, "the reload that was asked for in the first", s.begun)
	close(s.end)
	deliver(t, syscall.SIGTERM)
	if err := await(t, "the end", done); err != nil {
		t.Error(err)
	}
	if count, most := s.count.Load(), s.most.Load(); count != 2 || most != 1 {
		t.Errorf("%d reloads, %d at once", count, most)
	}
}

// TestServeCountsFailedReloads: a configuration that can't be read never gets to
// the server, and is counted all the same.
func TestServeCountsFailedReloads(t *testing.T) {
	f := newFake()
	cmd := &cobra.Command{}
	cmd.SetErr(io.Discard)
	reload(cmd, f, hooks{reload: func() (perch.Options, error) { return perch.Options{}, os.ErrNotExist }})
	if n := f.failed.Load(); n != 1 || len(f.reloads) != 0 {
		t.Errorf("%d counted, %d handed in", n, len(f.reloads))
	}
	f.reloadErr = os.ErrInvalid // Reload counts those itself
	reload(cmd, f, hooks{reload: func() (perch.Options, error) { return perch.Options{}, nil }})
	if n := f.failed.Load(); n != 1 || len(f.reloads) != 1 {
		t.Errorf("%d counted, %d handed in", n, len(f.reloads))
	}
}
