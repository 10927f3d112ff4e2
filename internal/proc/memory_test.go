package proc

import (
	"os"
	"runtime"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	n, err := MemoryLimit()
	if err != nil || n < 32<<20 {
		t.Errorf("%d bytes, %v", n, err)
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
	m.stat, m.tcp = nil, nil
	ballast := make([]byte, 64<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	want, err := RssAnon(os.Getpid())
	if got := m.Used(); err != nil || got < want-16<<20 || got > want+16<<20 || got < 64<<20 {
		t.Errorf("%d bytes, status says %d, %v", got, want, err)
	}
	runtime.KeepAlive(ballast)
	if n := testing.AllocsPerRun(100, func() { m.Used() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCgroupSock(t *testing.T) {
	for text, want := range map[string]int64{
		"anon 123\nfile 9\nsock 40960\nshmem 0\n": 40960, "sockets 7\n": 0, "": 0, "sock x\n": 0,
	} {
		if got := cgroupSock([]byte(text)); got != want {
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
