package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Connections are opened in rounds, each end in an epoll set.
	kernelRounds = 8
	kernelPairs  = 512 // of a round
	kernelEnds   = 2 * kernelPairs
	// The caches are the machine's: what others do to them is seen too. So the
	// median of the rounds counts, and of the attempts the first that is right.
	kernelAttempts = 30
	// kernelStrangers is how many sockets of others may come or go in a round.
	kernelStrangers = kernelEnds / 50
	// What the doctor takes from the sizes of the running kernel is to be right to
	// 5%. All slabs together grow by pages, not objects; and the sizes that the
	// doctor knows by heart are of one kernel.
	kernelNear, kernelFar = 0.05, 0.15
)

// TestKernelLayers opens thousands of connections and compares what the kernel
// takes for them with the layers of the report. Who may not read slabinfo sees
// the growth of all slabs, and compares the sizes known by heart with that.
func TestKernelLayers(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < kernelRounds*kernelEnds+64 {
		t.Fatalf("needs %d descriptors, there are %d: %v", kernelRounds*kernelEnds+64, limit.Cur, err)
	}
	known := layersOf(System{})
	// Where slabinfo is closed to the doctor.
	blind := layersOf(System{FS: fstest.MapFS{}})
	var wrong error
	for attempt := range kernelAttempts {
		if attempt > 0 {
			t.Log(wrong)
			time.Sleep(time.Second) // also for the sockets, which are freed late
		}
		var got kernelUse
		if got, wrong = kernelGrowth(); wrong == nil {
			wrong = errors.Join(
				compare("kernel socket", got.socket, known["kernel socket"]-descriptorPart, kernelNear),
				compare("epoll item", got.watch, known["epoll item"], kernelNear),
				compare("kernel socket, sizes known by heart", got.socket, blind["kernel socket"]-descriptorPart, kernelFar),
				compare("epoll item, sizes known by heart", got.watch, blind["epoll item"], kernelFar),
				compare("slabs in all", got.slabs, known["kernel socket"]-descriptorPart+known["epoll item"], kernelFar),
			)
		}
		if wrong == nil {
			t.Logf("bytes of a socket: %.0f and %.0f in epoll, all slabs grew by %.0f", got.socket, got.watch, got.slabs)
			return
		}
	}
	t.Error(wrong)
}

// layersOf are the layers of a session on sys, by name.
func layersOf(sys System) map[string]float64 {
	out := map[string]float64{}
	for _, l := range Examine(sys, Load{Connections: 1000}).Memory {
		out[l.Name] = float64(l.Each)
	}
	return out
}

func compare(what string, got, want, tolerance float64) error {
	if math.Abs(got-want) > tolerance*want {
		return fmt.Errorf("%s: the kernel takes %.0f B, the doctor says %.0f", what, got, want)
	}
	return nil
}

// kernelUse is what the kernel takes, in bytes: in all, or for a socket.
type kernelUse struct {
	socket, watch, slabs float64
	alloc                int // sockets
}

// kernelGrowth is what the kernel takes for a socket in an epoll set.
func kernelGrowth() (kernelUse, error) {
	h, err := newHeld()
	if err != nil {
		return kernelUse{}, err
	}
	defer h.close()
	var rounds []kernelUse
	before, err := kernelNow()
	for range kernelRounds {
		if err == nil {
			err = h.open(kernelPairs)
		}
		if err != nil {
			return kernelUse{}, err
		}
		var now kernelUse
		if now, err = kernelNow(); err != nil {
			return kernelUse{}, err
		}
		sockets := now.alloc - before.alloc
		if sockets >= kernelEnds-kernelStrangers && sockets <= kernelEnds+kernelStrangers {
			n := float64(sockets)
			rounds = append(rounds, kernelUse{
				socket: (now.socket - before.socket) / n, watch: (now.watch - before.watch) / n, slabs: (now.slabs - before.slabs) / n,
			})
		}
		before = now
	}
	if len(rounds) <= kernelRounds/2 {
		return kernelUse{}, fmt.Errorf("%d of %d rounds were disturbed", kernelRounds-len(rounds), kernelRounds)
	}
	median := func(of func(kernelUse) float64) float64 {
		slices.SortFunc(rounds, func(a, b kernelUse) int { return cmp.Compare(of(a), of(b)) })
		return of(rounds[len(rounds)/2])
	}
	return kernelUse{
		socket: median(func(u kernelUse) float64 { return u.socket }),
		watch:  median(func(u kernelUse) float64 { return u.watch }),
		slabs:  median(func(u kernelUse) float64 { return u.slabs }),
	}, nil
}

// securityCaches are those of securityBytes.
var securityCaches = []cache{{"lsm_inode_cache", 32}, {"lsm_file_cache", 24}}

// kernelNow reads the kernel's caches.
func kernelNow() (u kernelUse, err error) {
	text, err := os.ReadFile("/proc/slabinfo")
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return u, err
	}
	stat, err := os.ReadFile("/proc/self/net/sockstat")
	if err != nil {
		return u, err
	}
	_, tcp, _ := strings.Cut(string(stat), "\nTCP: ")
	if _, err := fmt.Sscanf(tcp, "inuse %d orphan %d tw %d alloc %d", new(int), new(int), new(int), &u.alloc); err != nil {
		return u, err
	}
	sys := System{}.withDefaults()
	info, err := sys.meminfo()
	if err != nil {
		return u, err
	}
	u.slabs = float64(info["Slab"])
	taken := func(caches []cache) (sum float64) {
		for _, c := range caches {
			n, ok := active(string(text), c.name)
			if !ok {
				n = u.alloc // not to be seen: taken at the doctor's word
			}
			sum += float64(n) * float64(sys.slab(string(text), c.name, c.bytes))
		}
		return sum
	}
	u.socket = taken(socketCaches) + taken(securityCaches)
	u.watch = taken(watchCaches)
	return u, nil
}

// active is how many objects of a cache are in use. One that is merged with
// others of its size stands in /sys only, and counts those too.
func active(slabs, name string) (int, bool) {
	text := ""
	for line := range strings.Lines(slabs) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			text = f[1]
		}
	}
	if text == "" {
		b, err := fs.ReadFile(os.DirFS("/sys/kernel/slab"), name+"/objects")
		if err != nil {
			return 0, false
		}
		text, _, _ = strings.Cut(strings.TrimSpace(string(b)), " ")
	}
	n, err := strconv.Atoi(text)
	return n, err == nil
}

// held are connections of this process with itself. They are between few
// addresses and ports, since the kernel has something for each of these too: of a
// server, all have the same.
type held struct {
	listener, epoll int
	to, from        unix.SockaddrInet4
	pairs           int
	fds             []int
}

// heldPeers is how many addresses each side has.
const heldPeers = 64

func newHeld() (*held, error) {
	h := &held{listener: -1, epoll: -1}
	var err error
	if h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if h.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if err = unix.Bind(h.listener, &h.to); err == nil {
			err = unix.Listen(h.listener, 16)
		}
	}
	if err == nil {
		h.to.Port, err = portOf(h.listener)
	}
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func portOf(fd int) (int, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	return sa.(*unix.SockaddrInet4).Port, nil
}

func (h *held) close() {
	for _, fd := range append(h.fds, h.listener, h.epoll) {
		_ = unix.Close(fd) // -1 is none
	}
}

// open adds n connections.
func (h *held) open(n int) error {
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		h.fds = append(h.fds, fd)
		// A reset at the end leaves no TIME_WAIT.
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		)
		h.from.Addr = [4]byte{127, 1, 0, byte(1 + h.pairs%heldPeers)}
		h.to.Addr = [4]byte{127, 2, 0, byte(1 + h.pairs/heldPeers)}
		if err == nil {
			err = unix.Bind(fd, &h.from)
		}
		if err == nil && h.from.Port == 0 {
			h.from.Port, err = portOf(fd)
		}
		if err == nil {
			err = unix.Connect(fd, &h.to)
		}
		if err != nil {
			return err
		}
		peer, _, err := unix.Accept4(h.listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		h.fds = append(h.fds, peer)
		h.pairs++
		for _, end := range []int{fd, peer} {
			if err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, end, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
				return err
			}
		}
	}
	return nil
}
