package bench

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// taken is how many events are due at t, all turns together.
func taken(p *pacer, t int64) (n int) {
	for {
		due, ok := p.take(t)
		if ok {
			n++
		} else if due > t {
			return n
		}
	}
}

func TestPacerRate(t *testing.T) {
	const start = 1234567890
	for _, rate := range []float64{0.5, 1, 3, 999, 20000, 77777.7} {
		p := pacer{start: start, rate: rate}
		n := 0
		for at := int64(start); at <= start+int64(10*time.Second); at += int64(7 * time.Millisecond) {
			n += taken(&p, at)
			// No event is early, and none is left behind.
			if due := p.due(); due <= at {
				t.Fatalf("%g/s: due at %d is left at %d", rate, due, at)
			}
		}
		if want := 10 * rate; float64(n) < want-rate*0.007-1 || float64(n) > want+1 {
			t.Fatalf("%g/s: %d in 10 s", rate, n)
		}
	}
}

func TestPacerDoesNotDrift(t *testing.T) {
	p := pacer{rate: 3}
	// A day of thirds of a second: each is where it belongs, to the nanosecond.
	p.n = 3 * 86400
	if due := p.due(); due != 86400*int64(time.Second) {
		t.Fatalf("due at %d", due)
	}
}

func TestPacerCatchesUp(t *testing.T) {
	p := pacer{rate: 10000}
	if n := taken(&p, 0); n != 1 {
		t.Fatalf("%d at the start", n)
	}
	stall := int64(time.Second)
	last := int64(0)
	for n := 1; n <= 10000; n++ {
		due, ok := p.take(stall)
		if !ok {
			if (n-1)%turnMost != 0 || due > stall {
				t.Fatalf("event %d, due at %d, is not given out", n, due)
			}
			due, ok = p.take(stall)
		}
		if !ok || due <= last || due > stall {
			t.Fatalf("event %d: due at %d after %d, %v", n, due, last, ok)
		}
		last = due
	}
	if due, ok := p.take(stall); ok || due <= stall {
		t.Fatalf("one too many, due at %d", due)
	}
}

// A generator that can't keep up still comes back to its sockets.
func TestPacerLeavesTheTurn(t *testing.T) {
	p := pacer{rate: 1e9}
	for n := 0; ; n++ {
		if _, ok := p.take(int64(time.Hour)); !ok {
			if n != turnMost {
				t.Fatalf("%d in a turn", n)
			}
			return
		}
		if n > turnMost {
			t.Fatal("the turn does not end")
		}
	}
}

func TestWait(t *testing.T) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ep)
	if err := wait(ep, now()-1); err != nil {
		t.Fatal(err)
	}
	// Signals of the runtime may wake it early, so it is asked until it is time.
	for until := now() + int64(300*time.Microsecond); now() < until; {
		if err := wait(ep, until); err != nil {
			t.Fatal(err)
		}
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, p[0], &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLHUP}); err != nil {
		t.Fatal(err)
	}
	unix.Close(p[1]) // an event: the end of the pipe
	if err := wait(ep, now()+int64(time.Hour)); err != nil {
		t.Fatal(err)
	}
}
