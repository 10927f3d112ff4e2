package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// MemoryLimit is what the process may take, in bytes: the limit of its cgroup,
// of either version, which group says, or else the memory of the machine.
func MemoryLimit() (limit int64, group bool, err error) {
	n, err := memlimit.FromCgroup()
	if group = err == nil; !group {
		n, err = memlimit.FromSystem()
	}
	if err != nil {
		return 0, false, fmt.Errorf("memory limit: %w", err)
	}
	if n > 1<<62 {
		return 0, false, errors.New("memory limit: there is none")
	}
	return int64(n), group, nil
}

// groupFiles are where a cgroup says what is charged to it, and how much of that
// the kernel can take back: the files that nobody has used lately.
type groupFiles struct{ usage, stat, inactive string }

// ownGroup finds the files of the process's cgroup: in the hierarchy, or, in a
// container that sees its own group as the root, at the top. text is that of
// /proc/self/cgroup, root stands for /sys/fs/cgroup. The root group of the machine is
// nobody's own.
func ownGroup(text, root string) (g groupFiles, ok bool) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		v2 := f[0] == "0" && f[1] == ""
		if !v2 && !slices.Contains(strings.Split(f[1], ","), "memory") {
			continue
		}
		dir := root
		g = groupFiles{"memory.current", "memory.stat", "inactive_file "}
		bound := "memory.max" // the root group has none
		if !v2 {
			dir = filepath.Join(root, "memory")
			g = groupFiles{"memory.usage_in_bytes", "memory.stat", "total_inactive_file "}
			bound = "memory.limit_in_bytes"
		}
		for _, at := range []string{filepath.Join(dir, f[2]), dir} {
			if _, err := os.Stat(filepath.Join(at, bound)); err == nil {
				g.usage, g.stat = filepath.Join(at, g.usage), filepath.Join(at, g.stat)
				return g, true
			}
		}
	}
	return g, false
}

// Memory looks at what this process takes, as often as somebody likes: it keeps
// its files open and allocates nothing. It belongs to one goroutine.
type Memory struct {
	statm, usage, stat *os.File // nil where there is none
	inactive           []byte
	page               int64
	buf                [8 << 10]byte
}

// OpenMemory opens what there is.
func OpenMemory() *Memory {
	m := &Memory{page: int64(os.Getpagesize())}
	m.statm, _ = os.Open("/proc/self/statm")
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		if g, ok := ownGroup(string(text), "/sys/fs/cgroup"); ok {
			m.usage, _ = os.Open(g.usage)
			m.stat, _ = os.Open(g.stat)
			m.inactive = []byte(g.inactive)
		}
	}
	return m
}

// Close closes the files.
func (m *Memory) Close() {
	for _, f := range []*os.File{m.statm, m.usage, m.stat} {
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

// Used is the process's own memory in RAM, without the pages of files, in bytes; 0
// where it can't be read.
func (m *Memory) Used() int64 {
	statm := m.read(m.statm)
	_, statm = number(statm) // all that is mapped
	resident, statm := number(statm)
	shared, _ := number(statm)
	return (resident - shared) * m.page
}

// Group is what is charged to the process's cgroup, the kernel's side of its
// sockets too, without the pages of files that the kernel can take back; 0 where
// that is not to be had.
func (m *Memory) Group() int64 {
	usage, _ := number(m.read(m.usage))
	return max(0, usage-lineOf(m.read(m.stat), m.inactive))
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

// lineOf is the number behind a name that begins a line, as in memory.stat.
func lineOf(text, name []byte) int64 {
	for len(text) > 0 {
		if rest, ok := bytes.CutPrefix(text, name); ok {
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
