package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// System is where an examination looks.
type System struct {
	FS       fs.FS // the root of the file system; nil means the machine's
	PID      int   // the process whose limits, cgroup and network count; 0 means this one
	CPUs     int   // processors that the process may use; 0 means this process's
	PageSize int   // bytes; 0 means the machine's
	// Listeners asks the kernel for the sockets that listen on a port; nil means
	// this machine's, or nobody where FS is given.
	Listeners func(port int) ([]Listener, error)
}

func (s System) withDefaults() System {
	if s.FS == nil {
		s.FS = os.DirFS("/")
		if s.Listeners == nil {
			s.Listeners = askListeners
		}
	}
	if s.CPUs == 0 {
		s.CPUs = runtime.GOMAXPROCS(0)
	}
	if s.PageSize == 0 {
		s.PageSize = os.Getpagesize()
	}
	return s
}

// errFormat is a file of the kernel that reads otherwise than we know it.
var errFormat = errors.New("doctor: unknown format")

// reason is err in a few words, for Have.
func reason(err error) string {
	name := ""
	var at *fs.PathError
	if errors.As(err, &at) {
		name = "/" + at.Path + " "
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return name + "is not there"
	case errors.Is(err, fs.ErrPermission):
		return name + "may not be read"
	}
	return err.Error()
}

// proc is a file of the process that counts.
func (s System) proc(name string) string {
	if s.PID == 0 {
		return "proc/self/" + name
	}
	return "proc/" + strconv.Itoa(s.PID) + "/" + name
}

func (s System) text(name string) (string, error) {
	b, err := fs.ReadFile(s.FS, name)
	return string(b), err
}

// line is the text of a file that has one, or nothing.
func (s System) line(name string) string {
	text, _ := s.text(name)
	return strings.TrimSpace(text)
}

// exists tells whether a file is there. One that can't be looked at counts as
// there.
func (s System) exists(name string) bool {
	_, err := fs.Stat(s.FS, name)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

// ints reads a file of at least n whole numbers. What is larger than an int64
// is the largest one: the kernel says "no limit" so.
func (s System) ints(name string, n int) ([]int64, error) {
	text, err := s.text(name)
	if err != nil {
		return nil, err
	}
	var out []int64
	for _, f := range strings.Fields(text) {
		v, err := strconv.ParseInt(f, 10, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return nil, fmt.Errorf("%w: /%s", errFormat, name)
		}
		out = append(out, v)
	}
	if len(out) < n {
		return nil, fmt.Errorf("%w: /%s", errFormat, name)
	}
	return out, nil
}

// sysctlFile is where the kernel shows a key.
func sysctlFile(key string) string { return "proc/sys/" + strings.ReplaceAll(key, ".", "/") }

// sysctl reads n numbers of a key.
func (s System) sysctl(key string, n int) ([]int64, error) { return s.ints(sysctlFile(key), n) }

// one reads a key of one number.
func (s System) one(key string) (int64, error) {
	v, err := s.sysctl(key, 1)
	if err != nil {
		return 0, err
	}
	return v[0], nil
}

// meminfo is /proc/meminfo in bytes.
func (s System) meminfo() (map[string]int64, error) {
	text, err := s.text("proc/meminfo")
	if err != nil {
		return nil, err
	}
	out := make(map[string]int64)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if v, err := strconv.ParseInt(f[1], 10, 64); err == nil {
			out[strings.TrimSuffix(f[0], ":")] = v << 10
		}
	}
	return out, nil
}

// limits are the soft and the hard limit of descriptors.
func (s System) limits() (soft, hard int64, err error) {
	name := s.proc("limits")
	text, err := s.text(name)
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			break
		}
		soft, err1 := limit(f[0])
		hard, err2 := limit(f[1])
		if err1 != nil || err2 != nil {
			break
		}
		return soft, hard, nil
	}
	return 0, 0, fmt.Errorf("%w: /%s", errFormat, name)
}

func limit(text string) (int64, error) {
	if text == "unlimited" {
		return 1<<63 - 1, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

// tcpPages are the pages that all TCP sockets hold now.
func (s System) tcpPages() (int64, error) {
	const name = "proc/net/sockstat"
	text, err := s.text(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TCP:" {
			continue
		}
		for i := 1; i+1 < len(f); i += 2 {
			if f[i] == "mem" {
				return strconv.ParseInt(f[i+1], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("%w: /%s", errFormat, name)
}

// counter reads one of the TcpExt counters (see nstat).
func (s System) counter(name string) (int64, error) {
	file := s.proc("net/netstat")
	text, err := s.text(file)
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i := range min(len(names), len(f)) {
			if names[i] == name {
				return strconv.ParseInt(f[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("%w: /%s", errFormat, file)
}

// listeners finds the sockets that listen on a port in the process's network,
// and the connections that wait in their queues.
func (s System) listeners(port int) (inodes []uint32, waiting int64, err error) {
	seen := false
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		f, openErr := s.FS.Open(s.proc(name))
		if openErr != nil {
			err = openErr
			continue // a machine may have no IPv6
		}
		seen = true
		lines := bufio.NewScanner(f)
		lines.Scan() // the header
		for lines.Scan() {
			c := strings.Fields(lines.Text())
			// The kernel lists the listeners first. The rest may be a million
			// connections: it is left unread.
			if len(c) < 5 || c[3] != "0A" {
				break
			}
			_, at, _ := strings.Cut(c[1], ":")
			_, queue, _ := strings.Cut(c[4], ":")
			p, err1 := strconv.ParseInt(at, 16, 32)
			q, err2 := strconv.ParseInt(queue, 16, 64)
			if err1 == nil && err2 == nil && int(p) == port {
				waiting += q
				inode := uint64(0) // of none
				if len(c) > 9 {
					inode, _ = strconv.ParseUint(c[9], 10, 32)
				}
				inodes = append(inodes, uint32(inode))
			}
		}
		_ = f.Close()
	}
	if !seen {
		return nil, 0, err
	}
	return inodes, waiting, nil
}

// told is what the kernel tells of these sockets, nothing where it does not tell
// of each: the process may be in another network namespace than we are.
func (s System) told(port int, inodes []uint32) []Listener {
	if s.Listeners == nil {
		return nil
	}
	all, err := s.Listeners(port)
	if err != nil {
		return nil // the tables of the kernel without sock_diag are enough to go on
	}
	ours := slices.DeleteFunc(slices.Clone(all), func(l Listener) bool {
		return l.Inode == 0 || !slices.Contains(inodes, l.Inode)
	})
	if len(ours) != len(inodes) {
		return nil
	}
	return ours
}

// slab is what an object of a kernel cache takes of its pages, or fallback
// where the file is closed to us or the cache is merged with another.
func (s System) slab(text, name string, fallback int64) int64 {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 6 || f[0] != name {
			continue
		}
		objects, err1 := strconv.ParseInt(f[4], 10, 64)
		pages, err2 := strconv.ParseInt(f[5], 10, 64)
		if err1 == nil && err2 == nil && objects > 0 && pages > 0 {
			return pages * int64(s.PageSize) / objects
		}
	}
	return fallback
}

// cgroup is one memory limit on the way from the process's cgroup to the root.
type cgroup struct {
	file  string // that sets the limit
	limit int64
	used  int64 // without file pages that the kernel can drop
}

// errNoLimit is a process in no cgroup with a memory limit.
var errNoLimit = errors.New("doctor: no memory limit")

// tightest is the memory limit that leaves the least room, of v2 and v1.
func (s System) tightest() (cgroup, error) {
	text, err := s.text(s.proc("cgroup"))
	if err != nil {
		return cgroup{}, err
	}
	best, found := cgroup{}, false
	for line := range strings.Lines(strings.TrimSpace(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		var roots []string
		limitFile, usedFile := "memory.max", "memory.current"
		switch {
		case f[0] == "0" && f[1] == "":
			roots = []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}
		case strings.Contains(","+f[1]+",", ",memory,"):
			roots = []string{"sys/fs/cgroup/memory"}
			limitFile, usedFile = "memory.limit_in_bytes", "memory.usage_in_bytes"
		}
		for _, root := range roots {
			// A container may see the path of its host, and its own cgroup as the
			// root: the levels that are not there are passed over.
			for level := path.Clean("/" + f[2]); ; level = path.Dir(level) {
				dir := root + strings.TrimSuffix(level, "/")
				if c, ok := s.cgroupAt(dir, limitFile, usedFile); ok && (!found || c.limit-c.used < best.limit-best.used) {
					best, found = c, true
				}
				if level == "/" {
					break
				}
			}
		}
	}
	if !found {
		return cgroup{}, errNoLimit
	}
	return best, nil
}

func (s System) cgroupAt(dir, limitFile, usedFile string) (cgroup, bool) {
	c := cgroup{file: dir + "/" + limitFile}
	var err error
	c.limit, err = strconv.ParseInt(s.line(c.file), 10, 64)
	// v2 says "max"; v1 the largest number of whole pages.
	if err != nil || c.limit >= 1<<62 {
		return c, false
	}
	c.used, _ = strconv.ParseInt(s.line(dir+"/"+usedFile), 10, 64)
	stat, _ := s.text(dir + "/memory.stat")
	for line := range strings.Lines(stat) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "inactive_file" {
			v, _ := strconv.ParseInt(f[1], 10, 64)
			c.used = max(0, c.used-v)
		}
	}
	return c, true
}
