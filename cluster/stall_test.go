package cluster

import (
	"net"
	"strings"
	"sync"
	"testing"

	"perch/topic"
)

// stalling is a way to a server that can stop taking anything.
type stalling struct {
	listener net.Listener
	stop     chan struct{}
	done     sync.WaitGroup
}

func newStalling(t testing.TB, to string) *stalling {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &stalling{listener: l, stop: make(chan struct{})}
	end := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); close(end); p.done.Wait() })
	p.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			p.done.Go(func() { <-end; _ = c.Close(); _ = s.Close() })
			p.done.Go(func() { p.copy(s, c) })
			p.done.Go(func() { p.copy(c, s) })
		}
	})
	return p
}

func (p *stalling) copy(to, from net.Conn) {
	b := make([]byte, 4096)
	for {
		select {
		case <-p.stop:
			return
		default:
		}
		n, err := from.Read(b)
		if err != nil {
			_ = to.Close()
			return
		}
		select {
		case <-p.stop:
			return
		default:
		}
		if _, err := to.Write(b[:n]); err != nil {
			_ = from.Close()
			return
		}
	}
}

// TestStalled: a server that reads no more holds up neither publishers nor the end.
func TestStalled(t *testing.T) {
	srv := natsServer(t)
	p := newStalling(t, srv.Addr().String())
	n := newNode(t, Options{URL: "nats://" + p.listener.Addr().String(), Name: "n"}, news).waitReady()
	n.must("news:x", "1")
	close(p.stop)
	var answers sync.WaitGroup
	for range 100 {
		answers.Add(1)
		n.Publish("news:x", &topic.Publication{Data: []byte(strings.Repeat("x", 200<<10))}, stored, func(_ topic.Position, err error) {
			if err == nil {
				t.Error("stored by nobody")
			}
			answers.Done()
		})
	}
	closed := make(chan struct{})
	go func() { _ = n.Close(); n.link.Close(); close(closed) }()
	until(t, "closed", func() bool {
		select {
		case <-closed:
			return true
		default:
			return false
		}
	})
	answers.Wait()
	if q := n.Counts().Queued; q != 0 {
		t.Errorf("%d bytes wait", q)
	}
}
