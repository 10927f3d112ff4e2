package netpoll

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A storm of connections leaves a loop a few dozen microseconds between two
// events. gnet then gives the loop's place in the scheduler back and asks for it
// again, for every one of them: a thread is woken to look for work that isn't
// there, or the scheduler's watchdog takes the place away and a thread is woken
// to have it. So while a storm goes on, the loop waits for its next event itself
// and keeps its place: a sixth of the server's CPU. Other goroutines get their
// turn before each wait, and the runtime's own wishes (a collection, a turn that
// has lasted too long) end it by a signal.
//
// Outside storms the events are too far apart: the timer of a wait that comes to
// nothing costs more than it saves.
const (
	// stormConnects is how many connections a loop takes in a tick of the wheel
	// from where on it is a storm.
	stormConnects = 100
	stormWait     = time.Millisecond
	// stormSkips is how many events go by after a wait that came to nothing.
	stormSkips = 64
)

// storm is what a loop knows of one.
type storm struct {
	epfd   int32  // gnet's epoll set of this loop
	sought bool   // epfd has been looked for
	found  bool   // and found
	on     bool   // the storm goes on
	seen   uint64 // connections taken at the last tick
	skips  int    // events to go by
}

// prepare finds gnet's epoll set of l by a descriptor that is in it, once.
// Where there are places in the scheduler without a loop, the watchdog leaves
// loops that wait alone, and there is nothing to save.
func (t *storm) prepare(l *loop, fd int) {
	if t.sought {
		return
	}
	t.sought = true
	if l.server.opts.Loops < runtime.GOMAXPROCS(0) {
		return
	}
	epfd, err := epollOf(fd)
	if err != nil {
		l.server.log.Debug("storms cost more", "loop", l.index, "err", err)
		return
	}
	t.epfd, t.found = int32(epfd), true
}

// accepted is told of each connection, with their number so far.
func (t *storm) accepted(n uint64) {
	if n-t.seen >= stormConnects {
		t.on = true
	}
}

// tick is told of each tick.
func (t *storm) tick(n uint64) {
	t.on = n-t.seen >= stormConnects
	t.seen = n
}

// await returns when gnet has an event for this loop, at the latest after
// stormWait. It is called between two events of one turn as well: what has not
// been read yet ends it at once, since gnet's set is level-triggered.
func (t *storm) await() {
	if !t.on || !t.found {
		return
	}
	if t.skips > 0 {
		t.skips--
		return
	}
	runtime.Gosched()
	if !readable(t.epfd, stormWait) {
		t.skips = stormSkips
	}
}

// readable waits until fd can be read or d has gone by, without telling the
// scheduler. A signal ends it, too.
func readable(fd int32, d time.Duration) bool {
	p := unix.PollFd{Fd: fd, Events: unix.POLLIN}
	t := unix.NsecToTimespec(d.Nanoseconds())
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	return n == 1
}

// epollOf is the epoll set of this process that fd is in, of which the kernel
// tells in /proc/self/fdinfo (proc(5)). gnet has no way to it.
func epollOf(fd int) (int, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("netpoll: epoll set: %w", err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || to != "anon_inode:[eventpoll]" {
			continue
		}
		epfd, err := strconv.Atoi(e.Name())
		if err == nil && watches(epfd, fd) {
			return epfd, nil
		}
	}
	return 0, fmt.Errorf("netpoll: epoll set: %w", os.ErrNotExist)
}

// watches tells whether fd is in the epoll set epfd.
func watches(epfd, fd int) bool {
	f, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", epfd))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Fields(s.Text())
		if len(field) > 1 && field[0] == "tfd:" && field[1] == strconv.Itoa(fd) {
			return true
		}
	}
	return false
}
