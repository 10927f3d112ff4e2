// Package proc reads what Linux says of a process: its memory and its CPU time.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// RssAnon is a process's own memory in RAM, in bytes: heap, stacks and the
// runtime's tables, without the pages of files. Safe from any goroutine.
func RssAnon(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return KiB(string(b), "RssAnon:")
}

// KiB reads the line "name  123 kB" of text, as status and meminfo have, and
// returns bytes. name ends with a colon.
func KiB(text, name string) (int64, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("%s is missing", strings.TrimSuffix(name, ":"))
}

// CPU is the time that a process's threads ran, from the scheduler's
// accounting: in nanoseconds, where /proc/PID/stat counts ticks of 10 ms.
// Threads that have ended are missing, which Go's seldom do. Safe from any
// goroutine.
func CPU(pid int) (time.Duration, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	read := 0
	for _, t := range tasks {
		b, err := os.ReadFile(filepath.Join(dir, t.Name(), "schedstat"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return 0, err
		}
		ran, _, _ := bytes.Cut(b, []byte(" "))
		ns, err := strconv.ParseInt(string(ran), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
		read++
	}
	if read == 0 {
		return 0, errors.New("no thread has a schedstat: the process has ended, or the kernel keeps none")
	}
	return sum, nil
}
