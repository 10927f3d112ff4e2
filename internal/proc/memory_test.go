package proc

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	n, _, err := MemoryLimit()
	if err != nil || n < 32<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// The group is found in the hierarchy of either version, or at the top of what a
// container sees; that of the whole machine is none.
func TestOwnGroup(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		files      []string
		want       string
	}{
		{"version 2", "0::/system.slice/perch.service\n", []string{"system.slice/perch.service/memory.max"}, "system.slice/perch.service/memory.current"},
		{"version 2 in a container", "0::/\n", []string{"memory.max"}, "memory.current"},
		{"version 2, seen from outside its namespace", "0::/docker/1\n", []string{"memory.max"}, "memory.current"},
		{"version 2, the machine's", "0::/\n", []string{"memory.stat"}, ""},
		{"version 1", "5:devices:/\n4:cpu,memory:/a\n0::/\n", []string{"memory/a/memory.limit_in_bytes"}, "memory/a/memory.usage_in_bytes"},
		{"version 1 in a container", "4:memory:/docker/1\n", []string{"memory/memory.limit_in_bytes"}, "memory/memory.usage_in_bytes"},
		{"none", "", []string{"memory.max"}, ""},
		{"garbage", "::\n0\nx:y\n", []string{"memory.max"}, ""},
	} {
		root := t.TempDir()
		for _, f := range tt.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		g, ok := ownGroup(tt.text, root)
		if got := strings.TrimPrefix(g.usage, root+"/"); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, ok, tt.want)
		}
	}
}

func TestParseSockstat(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       int64
		ok         bool
	}{
		{"a kernel's", "sockets: used 13\nTCP: inuse 1 orphan 0 tw 3 alloc 1 mem 17\nUDP: inuse 0 mem 9\n", 17 * 4096, true},
		{"IPv6 has none", "TCP6: inuse 3\n", 0, false},
		{"no value", "TCP: inuse 1 mem\n", 0, false},
		{"no number", "TCP: mem x\n", 0, false},
		{"empty", "", 0, false},
	} {
		if n, err := parseSockstat(tt.text, 4096); n != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: %d, %v", tt.name, n, err)
		}
	}
}

// Memory says what status says, and allocates nothing.
func TestMemoryUsed(t *testing.T) {
	m := OpenMemory()
	defer m.Close()
	ballast := make([]byte, 64<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	want, err := RssAnon(os.Getpid())
	if got := m.Used(); err != nil || got < want-16<<20 || got > want+16<<20 || got < 64<<20 {
		t.Errorf("%d bytes, status says %d, %v", got, want, err)
	}
	runtime.KeepAlive(ballast)
	if n := testing.AllocsPerRun(100, func() { m.Used(); m.Group() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLineOf(t *testing.T) {
	for text, want := range map[string]int64{
		"anon 123\nfile 9\nsock 40960\nshmem 0\n": 40960, "sockets 7\n": 0, "": 0, "sock x\n": 0,
	} {
		if got := lineOf([]byte(text), []byte("sock ")); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// This machine's kernel says what its sockets take.
func TestSocketMemory(t *testing.T) {
	if n, err := SocketMemory(); err != nil || n < 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
}
