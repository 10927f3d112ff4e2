package auth

import (
	"errors"
	"testing"
)

// TestLiveClosed: a reload that is under way at the end makes nothing that nobody
// would close.
func TestLiveClosed(t *testing.T) {
	o := Options{DataDir: t.TempDir(), HMACSecret: "a-secret-of-the-server-0123456789abc"}
	a, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	l := NewLive(a)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	apply, drop, err := l.Prepare(o)
	if !errors.Is(err, errClosed) || apply != nil || drop != nil {
		t.Fatalf("prepare after the end: %v", err)
	}
	// The lock was given back.
	if _, _, err := l.Prepare(o); !errors.Is(err, errClosed) {
		t.Errorf("once more: %v", err)
	}
}
