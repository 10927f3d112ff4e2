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
// and keeps its place: a seventh of the server's CPU. Other goroutines that can
// run get their turn before each wait, and the runtime's own wishes (a
// collection, a turn that has lasted too long) end it by a signal. Those that
// wait for the network, net/http's among them, are found when a wait in stormRow
// is left to gnet: nobody looks for them while all places are kept.
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
	stormRow   = 16
)

// storm is what a loop knows of one.
type storm struct {
	epfd   int32  // gnet's epoll set of this loop
	sought bool   // epfd has been looked for
	found  bool   // and found
	even   bool   // there is a place in the scheduler for each loop, and no more
	on     bool   // the storm goes on
	from   uint64 // connections in a tick that make one
	seen   uint64 // connections taken at the last tick
	skips  int    // events to go by
	waits  uint64 // so far
}

// prepare finds gnet's epoll set of l by a descriptor that is in it, once.
func (t *storm) prepare(l *loop, fd int) {
	if t.sought {
		return
	}
	t.sought, t.from = true, stormConnects
	if from := l.server.opts.stormFrom; from > 0 {
		t.from = from
	}
	t.count(l.server.opts.Loops)
	epfd, err := epollOf(fd)
	if err != nil {
		l.server.log.Debug("storms cost more", "loop", l.index, "err", err)
		return
	}
	t.epfd, t.found = int32(epfd), true
}

// count compares the loops with the places, whose number the runtime changes
// with the quota of the cgroup. Where there are more places, the watchdog leaves
// loops that wait alone, and there is nothing to save; where there are fewer, a
// loop that keeps its place keeps another from working.
func (t *storm) count(loops int) { t.even = loops == runtime.GOMAXPROCS(0) }

// accepted is told of each connection, with their number so far and how many of
// them are open. With the first one open there may have been no ticks.
func (t *storm) accepted(n uint64, open int64) {
	if open <= 1 {
		t.seen, t.on = n, false
	}
	if n-t.seen >= t.from {
		t.on = true
	}
}

// tick is told of each tick.
func (t *storm) tick(n uint64, loops int) {
	t.on = n-t.seen >= t.from
	t.seen = n
	t.count(loops)
}

// await returns when gnet has an event for this loop, at the latest after
// stormWait. It is called between two events of one turn as well: what has not
// been read yet ends it at once, since gnet's set is level-triggered for
// sockets. For wake-ups it is not: those of the inbox are asked for, and gnet's
// own tasks may have to wait.
func (t *storm) await(in *inbox) {
	if !t.on || !t.even || !t.found || in.due() {
		return
	}
	if t.skips > 0 {
		t.skips--
		return
	}
	if readable(t.epfd, 0) {
		return
	}
	if t.waits++; t.waits%stormRow == 0 {
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
