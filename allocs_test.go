package perch

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"perch/protocol"
	"perch/session"
)

// What a message may allocate. The loops allocate nothing for it; what is left
// is of the process, and comes with time: ten times a second a tick wakes each
// loop, for which gnet makes a closure and a node of its queue, and twice a
// second settle looks at the heap. That makes 50 allocations a second.
const (
	allocsPerEcho  = 0.005
	allocsPerFrame = 0.02
	// A wave of 64 and more lets gnet double its list of events, for a moment.
	allocsPerPing = 0.04
	// allocsPerPublication is what a publication costs on two loops, whoever it
	// goes to: 7 for itself and the frame, which all share, and on each loop 2 to
	// wake it and 3 for the way through the topic's list. That makes 17.
	allocsPerPublication = 20
	allocsPerSecond      = 100
	allocsLoops          = 2
)

// allocsServer is a server whose pings come at an interval.
func allocsServer(t *testing.T, pings time.Duration) *Server {
	return runServer(t, func(o *Options) {
		o.Echo, o.Loops = true, allocsLoops
		o.Heartbeat.Interval = pings
		o.Heartbeat.Timeout = min(o.Heartbeat.Timeout, pings*3/4)
		o.Heartbeat.Misses = 100 // a machine that stands still is not what is tested
	})
}

// allocated counts what the process allocates while f runs, and what of it came
// with time. A quarter of f's work should have been done before: what is made
// once, and kept, is not counted.
func allocated(f func()) (n, background float64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs - before.Mallocs), allocsPerSecond * took.Seconds()
}

// allocsTries is how often a bound may be missed before it counts: on a busy
// machine, what is made once for the largest wave so far is made late.
const allocsTries = 3

// bounded compares the allocations of n steps of f with a bound for one. Under
// the race detector, which makes sync.Pool drop at random, f runs once, small,
// for what it checks itself.
func bounded(t *testing.T, what string, n int, bound float64, f func(n int)) (each float64) {
	t.Helper()
	if raceEnabled {
		f(max(n/20, 1))
		return 0
	}
	f(max(n/4, 1))
	for range allocsTries {
		got, background := allocated(func() { f(n) })
		each = got / float64(n)
		t.Logf("%s: %.0f allocations in %d, %.4f each", what, got, n, each)
		if got <= bound*float64(n)+background {
			return each
		}
	}
	t.Errorf("%s: %.4f allocations each, want at most %v", what, each, bound)
	heapSites(t, func() { f(n) })
	return each
}

// TestEchoAllocates nothing: neither a message, nor those that come together.
func TestEchoAllocates(t *testing.T) {
	const peers, messages = 50, 20_000
	s := allocsServer(t, time.Hour)
	b := newBare(t, s, peers)
	for range peers {
		b.dial("/echo", "")
	}
	payload := []byte(strings.Repeat("m", 128))
	sent := bytes.Clone(b.frame(0x81, payload))
	back := append(protocol.AppendFrameHeader(nil, protocol.JSON, len(payload)), payload...)
	for _, c := range []struct {
		name     string
		together int
	}{{"one at a time", 1}, {"16 together", 16}, {"one at a time again", 1}} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			batch := bytes.Repeat(sent, c.together)
			bounded(t, "messages", messages, allocsPerEcho, func(n int) {
				for i := range n / c.together {
					fd := b.fds[i%peers]
					b.write(fd, batch)
					b.take(fd, back, c.together)
				}
			})
		})
	}
}

// TestDeliveryAllocates nothing for a frame, and little for a publication: the
// same for few subscribers as for many.
func TestDeliveryAllocates(t *testing.T) {
	const few, many, publications = 50, 1050, 100
	for _, c := range []struct {
		name     string
		encoding session.Encoding
		wire     protocol.Encoding
	}{{"JSON", session.EncodingJSON, protocol.JSON}, {"Protobuf", session.EncodingProtobuf, protocol.Protobuf}} {
		t.Run(c.name, func(t *testing.T) {
			s := allocsServer(t, time.Hour)
			b := newBare(t, s, many)
			data := []byte(`"` + strings.Repeat("m", 126) + `"`)
			want, err := protocol.PublicationFrame(c.wire, "news", &protocol.Publication{Data: data})
			if err != nil {
				t.Fatal(err)
			}
			publish := func(n int) {
				for range n {
					if err := s.Publish(t.Context(), "news", data); err != nil {
						t.Fatal(err)
					}
					for _, fd := range b.fds {
						b.take(fd, want, 1)
					}
				}
			}
			open := func(n int) {
				for len(b.fds) < n {
					b.session(c.encoding, "news")
				}
			}
			open(few)
			one := bounded(t, "publications to 50", publications, allocsPerPublication, publish)
			open(many)
			// A loop that is at it for 2 ms sees to its sockets and is woken again.
			all := bounded(t, "publications to 1,050", publications, allocsPerPublication+allocsPerFrame*(many-few), publish)
			if each := (all - one) / (many - few); each > allocsPerFrame {
				t.Errorf("%.4f allocations for a frame more, want at most %v", each, allocsPerFrame)
			} else {
				t.Logf("%.4f allocations for a frame more", each)
			}
		})
	}
}

// TestHeartbeatAllocates nothing: neither the ping, nor the pong.
func TestHeartbeatAllocates(t *testing.T) {
	const peers, rounds = 400, 2000
	s := allocsServer(t, 400*time.Millisecond)
	for _, c := range []struct {
		name string
		open func(b *bare) int
	}{
		{"frames", func(b *bare) int { return b.dial("/echo", "") }},
		{"JSON", func(b *bare) int { return b.session(session.EncodingJSON, "news") }},
		{"Protobuf", func(b *bare) int { return b.session(session.EncodingProtobuf, "news") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBare(t, s, peers+1)
			ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(ep) }()
			for range peers {
				fd := c.open(b)
				if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
					t.Fatal(err)
				}
			}
			ready := make([]unix.EpollEvent, 64)
			before, answered := s.net.Stats().Pongs, 0
			bounded(t, "heartbeats", rounds, allocsPerPing, func(n int) {
				for end := answered + n; answered < end; {
					m, err := unix.EpollWait(ep, ready, bareTimeout*1000)
					if err != nil && err != unix.EINTR || m == 0 {
						t.Fatalf("wait: %d, %v", m, err)
					}
					for i := range max(m, 0) {
						answered += b.take(int(ready[i].Fd), nil, 0)
					}
				}
			})
			// The server has seen each answer, or will.
			for end := time.Now().Add(bareTimeout * time.Second); s.net.Stats().Pongs-before != uint64(answered); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d pongs were seen of %d", s.net.Stats().Pongs-before, answered)
				}
			}
		})
	}
}
