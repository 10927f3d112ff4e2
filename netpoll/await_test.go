package netpoll

import (
	"errors"
	"io/fs"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"perch/session"
)

// epollSet makes a set with the read ends of n pipes in it.
func epollSet(t *testing.T, n int) (epfd int, read, write []int) {
	t.Helper()
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(epfd) })
	for range n {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
		if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, p[0], &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p[0])}); err != nil {
			t.Fatal(err)
		}
		read, write = append(read, p[0]), append(write, p[1])
	}
	return epfd, read, write
}

func TestEpollOf(t *testing.T) {
	one, in, _ := epollSet(t, 3)
	two, other, out := epollSet(t, 30)
	for _, fd := range in {
		if got, err := epollOf(fd); got != one || err != nil {
			t.Errorf("descriptor %d: %d, %v, want %d", fd, got, err, one)
		}
	}
	for _, fd := range other {
		if got, err := epollOf(fd); got != two || err != nil {
			t.Errorf("descriptor %d: %d, %v, want %d", fd, got, err, two)
		}
	}
	if got, err := epollOf(out[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a descriptor in no set: %d, %v", got, err)
	}
}

func TestReadable(t *testing.T) {
	epfd, _, out := epollSet(t, 2)
	if readable(int32(epfd), time.Millisecond) {
		t.Error("nothing to read, and readable")
	}
	// An hour would be noticed.
	if _, err := unix.Write(out[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	if !readable(int32(epfd), time.Hour) {
		t.Error("not readable")
	}
	// The set is level-triggered: who has waited has taken nothing.
	var ev [4]unix.EpollEvent
	if n, err := unix.EpollWait(epfd, ev[:], 0); n != 1 || err != nil {
		t.Errorf("%d events, %v", n, err)
	}
}

// A collection needs every goroutine to stop: it does not wait for an event.
func TestReadableGivesWay(t *testing.T) {
	epfd, _, out := epollSet(t, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for !readable(int32(epfd), time.Hour) { // a signal is no event
		}
	})
	for range 10 {
		runtime.GC()
	}
	if _, err := unix.Write(out[0], []byte("x")); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
}

func TestStorm(t *testing.T) {
	epfd, in0, out := epollSet(t, 1)
	loops := runtime.GOMAXPROCS(0)
	s := storm{epfd: int32(epfd), sought: true, found: true, even: true, from: stormConnects}
	var in inbox
	n := uint64(0)
	take := func(k int) {
		for range k {
			n++
			s.accepted(n, 2)
		}
	}
	if take(stormConnects - 1); s.on {
		t.Error("on too early")
	}
	if s.tick(n, loops); s.on {
		t.Error("a calm tick is a storm")
	}
	if take(stormConnects); !s.on {
		t.Error("not on")
	}
	if s.tick(n, loops); !s.on {
		t.Error("off while it goes on")
	}
	in.awake = true
	if s.await(&in); s.skips != 0 {
		t.Error("waits although the inbox is due")
	}
	in.awake = false
	// A wait that comes to nothing is not repeated at once.
	if s.await(&in); s.skips != stormSkips {
		t.Errorf("%d to go by", s.skips)
	}
	for range stormSkips {
		s.await(&in)
	}
	if s.skips != 0 {
		t.Errorf("%d to go by", s.skips)
	}
	if _, err := unix.Write(out[0], []byte("x")); err != nil {
		t.Fatal(err)
	}
	if s.await(&in); s.skips != 0 {
		t.Error("an event was there, and the wait came to nothing")
	}
	waits := s.waits
	if _, err := unix.Read(in0[0], make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// One in a row is gnet's, however many come to nothing.
	left := 0
	for range stormRow {
		s.skips = 0
		s.await(&in)
		if s.skips == 0 {
			left++
		}
	}
	if left != 1 || s.waits != waits+stormRow {
		t.Errorf("%d of %d waits left to gnet", left, s.waits-waits)
	}
	s.skips = 0
	if s.tick(n, loops); s.on {
		t.Error("on when it is over")
	}
	// Loops without a place of their own, or places without a loop.
	for _, k := range []int{loops - 1, loops + 1} {
		s.tick(n-stormConnects, loops)
		s.tick(n, k)
		if s.await(&in); !s.on || s.skips != 0 {
			t.Errorf("waits with %d loops on %d places", k, loops)
		}
	}
	// A hundred connections of an hour are no storm.
	s.tick(n, loops)
	for range 3 * stormConnects {
		n++
		if s.accepted(n, 1); s.on {
			t.Fatal("one connection at a time is a storm")
		}
	}
	s.skips = 1
	if s.await(&in); s.skips != 1 {
		t.Error("waits without a storm")
	}
}

// In a storm on every loop there is, each connection is answered, and the
// goroutines that have no loop get their turn.
func TestStormServed(t *testing.T) {
	const loops = 2
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(loops))
	var pool sync.WaitGroup
	s, addr := start(t, func(o *Options) {
		o.Loops = loops
		o.stormFrom = 1 // however slow the machine is
		o.Listeners[0].Endpoints[0].Check = func(r *Request) (Decision, bool) {
			later := r.Later()
			pool.Go(func() { later(Decision{}) })
			return Decision{}, false
		}
	})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range loops * stormConnects {
				c := raw(t, addr)
				_, _ = c.Write(append([]byte(upgradeHead), hello...))
				b := make([]byte, len(switching))
				for got := 0; got < len(b); {
					n, err := c.Read(b[got:])
					if err != nil {
						t.Error(err)
						break
					}
					got += n
				}
				if string(b) != switching {
					t.Errorf("answered %q", b)
				}
				_ = c.Close()
			}
		})
	}
	clients.Wait()
	pool.Wait()
	waits := make(chan uint64, loops)
	asked := 0
	s.each(func(l *loop) {
		asked++
		l.Post(0, 0, func(*session.Session) {
			if !l.storm.found {
				t.Errorf("loop %d: the epoll set was not found", l.index)
			}
			waits <- l.storm.waits
		})
	})
	sum := uint64(0)
	for range asked {
		sum += <-waits
	}
	if sum == 0 {
		t.Error("no loop has waited for itself")
	}
}
