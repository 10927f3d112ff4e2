package netpoll

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws/wsutil"

	"perch/session"
)

// holdLoops has every loop that is known wait until release is called.
func holdLoops(t *testing.T, s *Server) (release func()) {
	t.Helper()
	goOn := make(chan struct{})
	held := make(chan struct{}, session.MaxLoops)
	n := 0
	s.each(func(l *loop) {
		n++
		l.Post(0, 0, func(*session.Session) { held <- struct{}{}; <-goOn })
	})
	for range n {
		<-held
	}
	return func() { close(goOn) }
}

// TestUnlisten: who waits in the kernel's queue when the listening ends is
// answered, who comes later is reset, who is there stays; and no loop watches
// the sockets any more, whose hang-up would never end.
func TestUnlisten(t *testing.T) {
	s, addr := start(t, func(o *Options) { o.Loops = 1 })
	stays := dial(t, addr, "/echo")
	release := holdLoops(t, s)
	var queued []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(upgradeHead)); err != nil {
			t.Fatal(err)
		}
		queued = append(queued, c)
	}
	done := make(chan error, 1)
	go func() { done <- s.Unlisten(context.Background()) }()
	for !s.draining.Load() {
		<-time.After(time.Millisecond)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i, c := range queued {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("connection %d, which was in the queue: %v", i, err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("connection %d: %s %v", i, resp.Status, resp.Header)
		}
	}
	if c, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("afterwards: %v", err)
		if err == nil {
			c.Close()
		}
	}
	if l, err := net.Listen("tcp", addr); err != nil {
		t.Errorf("the port can't be bound: %v", err)
	} else {
		l.Close()
	}
	if err := wsutil.WriteClientText(stays, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if b, err := wsutil.ReadServerText(stays); err != nil || string(b) != "x" {
		t.Errorf("who was there: %q, %v", b, err)
	}
	for _, l := range s.listening.sockets {
		if watches(l.epfd, l.fd) {
			t.Errorf("descriptor %d is watched still", l.fd)
		}
	}
	if err := s.Unlisten(context.Background()); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// TestLag: a loop that stands still is named, and it is over when it goes on.
func TestLag(t *testing.T) {
	s, addr := start(t, func(o *Options) { o.Loops = 1 })
	dial(t, addr, "/echo")
	release := holdLoops(t, s)
	for {
		if lag, index := s.Lag(); lag > 3*tick {
			if index != 0 {
				t.Errorf("loop %d stands still", index)
			}
			break
		}
		<-time.After(tick)
	}
	release()
	for end := time.Now().Add(10 * time.Second); ; <-time.After(tick) {
		if lag, _ := s.Lag(); lag < 2*tick {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the lag does not end")
		}
	}
}
