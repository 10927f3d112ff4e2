package bench

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"perch/internal/proc"
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
	// ticks are those of all the machine's processors, and of them the stolen.
	ticks, stolen int64
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
		if r.rss, err = proc.RssAnon(s.pid); err != nil {
			return r, fmt.Errorf("bench: the server's memory: %w", err)
		}
		if r.cpu, err = proc.CPU(s.pid); err != nil {
			return r, fmt.Errorf("bench: the server's CPU: %w", err)
		}
	}
	if r.stolen, r.ticks, err = proc.Stolen(); err != nil {
		return r, fmt.Errorf("bench: the machine's processors: %w", err)
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
