package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sample is what a server's process has used so far.
type sample struct {
	at         int64
	cpu        time.Duration
	rss        int64
	kernel     int64
	goroutines int
	gcs        int
	gcPause    time.Duration
}

// server is the process that is measured; the zero value is one that is not
// known.
type server struct {
	pid   int
	admin string
}

var metricsClient = &http.Client{Timeout: 5 * time.Second}

// sample reads what it can. A server that can't be read is an error: a number
// that is silently missing would look like a measurement.
func (s server) sample() (sample, error) {
	r := sample{at: now()}
	var err error
	if s.pid > 0 {
		if r.rss, err = rssAnon(s.pid); err != nil {
			return r, fmt.Errorf("bench: the server's memory: %w", err)
		}
		if r.cpu, err = cpuTime(s.pid); err != nil {
			return r, fmt.Errorf("bench: the server's CPU: %w", err)
		}
	}
	if r.kernel, err = kernelSockets(); err != nil {
		return r, fmt.Errorf("bench: kernel socket memory: %w", err)
	}
	if s.admin != "" {
		if err := s.metrics(&r); err != nil {
			return r, fmt.Errorf("bench: the server's metrics: %w", err)
		}
	}
	return r, nil
}

// usage is what was used between two samples for n units.
func usage(before, begin, end, after sample, s server, units int64, connections int) *Usage {
	if s == (server{}) {
		return nil
	}
	u := &Usage{CPU: end.cpu - begin.cpu, RssBefore: before.rss, RssAfter: after.rss, KernelSockets: after.kernel,
		Goroutines: after.goroutines, GCs: end.gcs - begin.gcs, GCPause: end.gcPause - begin.gcPause}
	if units > 0 {
		u.CPUPer = u.CPU / time.Duration(units)
	}
	if connections > 0 && s.pid > 0 {
		u.PerConnection = float64(after.rss-before.rss) / float64(connections)
	}
	return u
}

func rssAnon(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return field(string(b), "RssAnon:")
}

// field reads a line of the form "name  123 kB".
func field(text, name string) (int64, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("%s is missing", strings.TrimSuffix(name, ":"))
}

// cpuTime is the time that the process's threads ran, from the scheduler's
// accounting: in nanoseconds, where /proc/PID/stat counts ticks of 10 ms.
// Threads that have ended are missing.
func cpuTime(pid int) (time.Duration, error) {
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

// kernelSockets is the memory of the kernel's TCP buffers, in bytes.
func kernelSockets() (int64, error) {
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "TCP:")
		if !ok {
			continue
		}
		words := strings.Fields(rest)
		for i := 0; i+1 < len(words); i += 2 {
			if words[i] == "mem" {
				pages, err := strconv.ParseInt(words[i+1], 10, 64)
				return pages * int64(os.Getpagesize()), err
			}
		}
	}
	return 0, errors.New("sockstat has no TCP line")
}

// metrics reads the Go runtime's own from /metrics.
func (s server) metrics(r *sample) error {
	resp, err := metricsClient.Get(strings.TrimSuffix(s.admin, "/") + "/metrics")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch name {
		case "go_goroutines":
			r.goroutines = int(v)
		case "go_gc_duration_seconds_count":
			r.gcs = int(v)
		case "go_gc_duration_seconds_sum":
			r.gcPause = time.Duration(v * float64(time.Second))
		}
	}
	return lines.Err()
}
