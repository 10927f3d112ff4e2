package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownBench is a bench of a Perch of its own, shared by two processes, in a
// process group as a shell makes one.
type ownBench struct {
	cmd      *exec.Cmd
	said     string // the file of its standard error
	children []int  // that Perch and the generators
	ended    chan struct{}
}

// startBench runs it until it measures.
func startBench(t *testing.T, tmp string) *ownBench {
	t.Helper()
	b := &ownBench{said: filepath.Join(t.TempDir(), "stderr"), ended: make(chan struct{})}
	stderr, err := os.Create(b.said)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	b.cmd = exec.Command(binary, "bench", "echo", "-n", "2", "--processes", "2", "-d", "1h", "--warmup", "1ms", "--rate", "10")
	b.cmd.Dir, b.cmd.Env, b.cmd.Stderr = tmp, environ("TMPDIR="+tmp), stderr
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = b.cmd.Wait()
		close(b.ended)
	}()
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		<-b.ended
	})
	eventually(t, "the measured part", func() bool { return strings.Contains(b.stderr(), "measuring") })
	if b.children = childrenOf(t, b.cmd.Process.Pid); len(b.children) != 3 {
		t.Fatalf("children %v, want a server and two generators", b.children)
	}
	return b
}

func (b *ownBench) stderr() string {
	text, _ := os.ReadFile(b.said)
	return string(text)
}

func (b *ownBench) wait(t *testing.T) {
	t.Helper()
	select {
	case <-b.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
}

// childrenOf are the processes whose parent is pid.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var children []int
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		var child, parent int
		var state string
		_, rest, _ := strings.Cut(string(text), ") ") // the name before may hold anything
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil || parent != pid {
			continue
		}
		if _, err := fmt.Sscan(string(text), &child); err == nil {
			children = append(children, child)
		}
	}
	return children
}

// gone tells whether a process runs no more; one that nobody waits for may be
// left as a zombie.
func gone(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !so(); {
		if time.Now().After(limit) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestBenchInterrupted: Ctrl-C, which reaches the whole process group, is the
// bench's: it stops what it started in order, and leaves nothing behind.
func TestBenchInterrupted(t *testing.T) {
	tmp := t.TempDir()
	b := startBench(t, tmp)
	for _, child := range b.children {
		if group, err := unix.Getpgid(child); err != nil || group != child {
			t.Errorf("process %d is in the group %d, not in its own: %v", child, group, err)
		}
	}
	if err := unix.Kill(-b.cmd.Process.Pid, unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	b.wait(t)
	if code := b.cmd.ProcessState.ExitCode(); code != exitError {
		t.Errorf("exit code %d: %s", code, b.stderr())
	}
	for _, child := range b.children {
		if !gone(child) {
			t.Errorf("process %d is left", child)
		}
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
	if text := b.stderr(); strings.Contains(text, "process 0") || strings.Contains(text, "killed") {
		t.Errorf("the interrupt reads as a failure: %s", text)
	}
}

// TestBenchKilled: what the bench started never outlives it.
func TestBenchKilled(t *testing.T) {
	b := startBench(t, t.TempDir())
	if err := b.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.wait(t)
	for _, child := range b.children {
		eventually(t, fmt.Sprintf("the end of process %d", child), func() bool { return gone(child) })
	}
}
