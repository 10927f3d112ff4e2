package perch

import (
	"net"
	"strings"
	"sync"
	"testing"
)

// Of many who ask for one port at once, one has it, and the next one when that
// has given it back; a free one is nobody else's.
func TestPortIsHeld(t *testing.T) {
	addr, held, err := listenAddr("listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, _, err := listenAddr("listen", addr); err == nil || !strings.Contains(err.Error(), "is taken") {
			t.Fatalf("a second one: %v", err)
		}
		if ln, err := net.Listen("tcp", addr); err == nil {
			_ = ln.Close()
			t.Fatal("somebody else listens there")
		}
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var won []func() error
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, h, err := listenAddr("listen", addr); err == nil {
				mu.Lock()
				defer mu.Unlock()
				won = append(won, h.Close)
			}
		})
	}
	all.Wait()
	if len(won) != 1 {
		t.Fatalf("%d of 20 have it", len(won))
	}
	if err := won[0](); err != nil {
		t.Fatal(err)
	}
	// Connections that the server has closed first are in TIME_WAIT.
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = far.Close()
	_, _ = c.Read(make([]byte, 1))
	_ = c.Close()
	_ = ln.Close()
	if _, held, err = listenAddr("listen", addr); err != nil {
		t.Fatalf("behind a server that has ended: %v", err)
	}
	_ = held.Close()
}
