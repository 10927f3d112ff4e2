package proc

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestMemoryGrows(t *testing.T) {
	before, err := RssAnon(os.Getpid())
	if err != nil || before <= 0 {
		t.Fatalf("%d, %v", before, err)
	}
	const size = 64 << 20
	p := bytes.Repeat([]byte{7}, size) // touches each page
	after, err := RssAnon(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Something else may have been given back meanwhile.
	if after-before < size/2 {
		t.Fatalf("from %d to %d", before, after)
	}
	if p[1] != 7 {
		t.Fatal("the memory is kept until here")
	}
}

// used is the same by another way.
func used() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // of itself it does not fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestCPUGrows(t *testing.T) {
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const burn = 100 * time.Millisecond
	for start := used(); used()-start < burn; {
	}
	after, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// A running thread is accounted at its next tick.
	if d := after - before; d < burn/2 || d > 100*burn {
		t.Fatalf("%s for %s", d, burn)
	}
}

func TestDeadProcess(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if _, err := RssAnon(pid); err == nil {
		t.Error("memory of a dead process")
	}
	if _, err := CPU(pid); err == nil {
		t.Error("CPU of a dead process")
	}
}

func TestKiB(t *testing.T) {
	const status = "Name:\tperch\nVmRSS:\t    9 kB\nRssAnon:\t   1234 kB\n"
	if n, err := KiB(status, "RssAnon:"); n != 1234<<10 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, s := range []string{"", "Name:\tx\n", "RssAnon:\tmany kB\n"} {
		if _, err := KiB(s, "RssAnon:"); err == nil {
			t.Errorf("%q: no error", s)
		}
	}
}
