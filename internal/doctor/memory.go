package doctor

import (
	"errors"
	"fmt"
)

// The bytes of a session by layer, measured (docs/tuning.md, docs/memory.md).
const (
	sessionBytes   = 980 // RssAnon, with a topic of its own
	garbageBytes   = 900 // the heap doubles before the collector runs (GOGC=100)
	generatorBytes = 400
	processBytes   = 48 << 20 // the binary, the runtime, pools, inboxes in use
	descriptorPart = 8 + 1    // the table of descriptors and its bits
	securityBytes  = 32 + 24  // what a security module keeps of inode and file

	// One of so many sessions has a message under way.
	busyShare = 10
)

// cache is one of the kernel's, with what an object takes where the kernel does
// not say so.
type cache struct {
	name  string
	bytes int64
}

// One object of each is taken for a socket, and for its place in an epoll set.
var (
	socketCaches = []cache{{"TCP", 2520}, {"sock_inode_cache", 862}, {"filp", 195}, {"dentry", 195}}
	watchCaches  = []cache{{"eventpoll_epi", 128}, {"eventpoll_pwq", 64}, {"ep_head", 16}}
)

// objects is what one object of each cache takes.
func (s System) objects(slabs string, caches []cache) (bytes int64) {
	for _, c := range caches {
		bytes += s.slab(slabs, c.name, c.bytes)
	}
	return bytes
}

// layers are what the sessions take, in the order from us to the kernel.
func (e *exam) layers() []Layer {
	n := int64(e.Connections)
	slabs, _ := e.text("proc/slabinfo")
	socket := e.objects(slabs, socketCaches) + securityBytes + descriptorPart
	watch := e.objects(slabs, watchCaches)
	each := func(name string, bytes int64, what string) Layer {
		return Layer{Name: name, Each: bytes, Bytes: bytes * n, What: what}
	}
	ours := []Layer{
		{Name: "process", Bytes: processBytes, What: "binary, Go runtime, pools"},
		each("sessions", sessionBytes, "connection, session, topic of its own"),
		each("garbage", garbageBytes, "up to the next collection; a connect storm's peak"),
	}
	if e.Generator {
		ours = []Layer{
			{Name: "process", Bytes: processBytes, What: "binary, Go runtime"},
			each("connections", generatorBytes, "the generator's own"),
		}
	}
	return append(ours,
		each("kernel socket", socket, "TCP socket, inode, file, dentry"),
		each("epoll item", watch, "its place in the loop's epoll"),
		each("under way", int64(e.PageSize)/busyShare, fmt.Sprintf("one page for one session in %d", busyShare)),
	)
}

// total is what all layers take.
func (r *Report) total() int64 {
	var sum int64
	for _, l := range r.Memory {
		sum += l.Bytes
	}
	return sum
}

// own is the part that Go's runtime allocates.
func (r *Report) own() int64 {
	var sum int64
	for _, l := range r.Memory {
		if l.Name == "kernel socket" {
			break
		}
		sum += l.Bytes
	}
	return sum
}

// room compares what the sessions take with what there is: all of it is a
// failure, seven tenths a warning.
func room(total, have int64) Status {
	switch {
	case total > have:
		return Fail
	case total > have/10*7:
		return Warn
	}
	return OK
}

func systemMemory(e *exam) (Finding, bool) {
	total := e.report.total()
	f := Finding{
		Name: "memory available", Want: Size(total) + ", and three tenths to spare",
		Why: "Sessions, kernel sockets and messages under way all stay resident; what does not fit ends in the OOM killer.",
		Set: "more memory, or fewer sessions a node (limits.connections)",
	}
	info, err := e.meminfo()
	if err != nil {
		return f.unreadable(err)
	}
	have, ok := info["MemAvailable"]
	if !ok {
		return f.unreadable(fmt.Errorf("%w: /proc/meminfo", errFormat))
	}
	return f.as(room(total, have), Size(have))
}

func cgroupMemory(e *exam) (Finding, bool) {
	total := e.report.total()
	f := Finding{
		Name: "cgroup memory", Want: "no limit, or room for " + Size(total),
		Why: "The kernel's sockets count in the cgroup of the process too, and Go does not know its limit.",
		Set: fmt.Sprintf("MemoryMax=%dM in the systemd unit, or the container's limit; and GOMEMLIMIT=%dMiB for Perch",
			total/7*10>>20+1, e.report.own()>>20+1),
	}
	c, err := e.tightest()
	switch {
	case errors.Is(err, errNoLimit):
		return f.as(OK, "no limit")
	case err != nil:
		return f.unreadable(err)
	}
	return f.as(room(total, c.limit-c.used), fmt.Sprintf("%s of %s free", Size(max(0, c.limit-c.used)), Size(c.limit)))
}

func swap(e *exam) (Finding, bool) {
	f := Finding{
		Name: "swap", Want: "none, or vm.swappiness <= 10",
		Why: "Idle sessions are what the kernel swaps first, and each collection of the heap reads all of them back.",
		Set: "MemorySwapMax=0 in the systemd unit, or swapoff -a, or sysctl -w vm.swappiness=1",
	}
	info, err := e.meminfo()
	if err != nil {
		return f.unreadable(err)
	}
	size, ok := info["SwapTotal"]
	if !ok {
		return f.unreadable(fmt.Errorf("%w: /proc/meminfo", errFormat))
	}
	if size == 0 {
		return f.as(OK, "none")
	}
	v, err := e.one("vm.swappiness")
	if err != nil {
		return f.unreadable(err)
	}
	return f.as(either(v > 10, Warn), fmt.Sprintf("%s, swappiness %d", Size(size), v))
}

// Size is a number of bytes for people.
func Size(bytes int64) string {
	const units = "KMGT"
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	v, unit := float64(bytes), -1
	for v >= 1024 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}
