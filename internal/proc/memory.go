package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// MemoryLimit is what the process may take, in bytes: the limit of its cgroup,
// of either version, or else the memory of the machine.
func MemoryLimit() (int64, error) {
	n, err := memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)()
	if err != nil {
		return 0, fmt.Errorf("memory limit: %w", err)
	}
	if n > 1<<62 {
		return 0, errors.New("memory limit: there is none")
	}
	return int64(n), nil
}

// Where a process in a container sees the cgroup that it is in.
const (
	cgroup2Stat = "/sys/fs/cgroup/memory.stat"
	cgroup1TCP  = "/sys/fs/cgroup/memory/memory.kmem.tcp.usage_in_bytes"
)

// Memory looks at what this process takes, as often as somebody likes: it keeps
// its files open and allocates nothing. It belongs to one goroutine.
type Memory struct {
	statm, stat, tcp *os.File // nil where there is none
	page             int64
	buf              [8 << 10]byte
}

// OpenMemory opens what there is.
func OpenMemory() *Memory {
	m := &Memory{page: int64(os.Getpagesize())}
	m.statm, _ = os.Open("/proc/self/statm")
	if m.stat, _ = os.Open(cgroup2Stat); m.stat == nil {
		m.tcp, _ = os.Open(cgroup1TCP)
	}
	return m
}

// Close closes the files.
func (m *Memory) Close() {
	for _, f := range []*os.File{m.statm, m.stat, m.tcp} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (m *Memory) read(f *os.File) []byte {
	if f == nil {
		return nil
	}
	n, _ := f.ReadAt(m.buf[:], 0) // io.EOF behind the end
	return m.buf[:n]
}

// Used is the process's own memory in RAM, without the pages of files, and what
// the kernel holds in the socket buffers of its cgroup where that says so: what
// the kernel counts for the whole machine may be of others. In bytes; what can't
// be read counts nothing.
func (m *Memory) Used() int64 {
	statm := m.read(m.statm)
	_, statm = number(statm) // all that is mapped
	resident, statm := number(statm)
	shared, _ := number(statm)
	used := (resident - shared) * m.page
	if m.stat != nil {
		return used + cgroupSock(m.read(m.stat))
	}
	tcp, _ := number(m.read(m.tcp))
	return used + tcp
}

// number reads the decimal at the front of b, behind blanks.
func number(b []byte) (n int64, rest []byte) {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && b[0] >= '0' && b[0] <= '9' && n < 1<<59 {
		n = n*10 + int64(b[0]-'0')
		b = b[1:]
	}
	return n, b
}

// cgroupSock finds "sock 4096" on a line of a memory.stat.
func cgroupSock(text []byte) int64 {
	for len(text) > 0 {
		if rest, ok := bytes.CutPrefix(text, []byte("sock ")); ok {
			n, _ := number(rest)
			return n
		}
		i := bytes.IndexByte(text, '\n')
		if i < 0 {
			break
		}
		text = text[i+1:]
	}
	return 0
}

const sockstat = "/proc/net/sockstat"

// SocketMemory is what the kernel holds in the buffers of TCP sockets, in bytes,
// all of this machine's. Safe from any goroutine.
func SocketMemory() (int64, error) {
	b, err := os.ReadFile(sockstat)
	if err != nil {
		return 0, err
	}
	return parseSockstat(string(b), int64(os.Getpagesize()))
}

// parseSockstat finds "TCP: inuse 5 orphan 0 tw 0 alloc 8 mem 2": mem is in pages.
func parseSockstat(text string, page int64) (int64, error) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "TCP:")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		for i := 0; i+1 < len(f); i += 2 {
			if f[i] == "mem" {
				n, err := strconv.ParseInt(f[i+1], 10, 64)
				return n * page, err
			}
		}
	}
	return 0, fmt.Errorf("%s: no memory of TCP", sockstat)
}
