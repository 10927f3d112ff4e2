package bench

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestMetrics(t *testing.T) {
	text := "# HELP go_goroutines Number of goroutines.\n# TYPE go_goroutines gauge\ngo_goroutines 17\n" +
		"go_goroutines_other 99\ngo_gc_duration_seconds{quantile=\"1\"} 0.5\ngo_gc_duration_seconds_sum 0.25\n" +
		"go_gc_duration_seconds_count 1.2e+01\nperch_label{a=\"b c\"} 4\nnot a number\n"
	status := http.StatusOK
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			status = http.StatusNotFound
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}))
	for _, admin := range []string{h.URL, h.URL + "/"} {
		s, err := server{pid: os.Getpid(), admin: admin}.sample()
		if err != nil {
			t.Fatal(err)
		}
		if s.goroutines != 17 || s.gcs != 12 || s.gcPause != 250*time.Millisecond || s.rss <= 0 || s.cpu <= 0 || s.at <= 0 || s.kernel < 0 {
			t.Fatalf("%+v", s)
		}
	}
	status = http.StatusForbidden
	if _, err := (server{admin: h.URL}).sample(); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("%v", err)
	}
	h.Close()
	if _, err := (server{admin: h.URL}).sample(); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestUsage(t *testing.T) {
	before, begin := sample{rss: 1000}, sample{cpu: time.Second, gcs: 3, gcPause: 10}
	end, after := sample{cpu: 3 * time.Second, gcs: 5, gcPause: 30}, sample{rss: 51000, kernel: 7, goroutines: 8}
	s := server{pid: 1}
	want := Usage{CPU: 2 * time.Second, CPUPer: 2 * time.Millisecond, RssBefore: 1000, RssAfter: 51000, PerConnection: 500,
		KernelSockets: 7, Goroutines: 8, GCs: 2, GCPause: 20}
	if got := usage(before, begin, end, after, s, 1000, 100); *got != want {
		t.Errorf("%+v", *got)
	}
	if got := usage(before, begin, end, after, s, 0, 0); got.CPUPer != 0 || got.PerConnection != 0 {
		t.Errorf("of nothing: %+v", *got)
	}
	if got := usage(before, begin, end, after, server{}, 1, 1); got != nil {
		t.Errorf("of nobody: %+v", *got)
	}
}

// TestDeadProcess: a server that has ended is an error, not a row of zeros.
func TestDeadProcess(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if _, err := (server{pid: pid}).sample(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	_, err := Run(t.Context(), Options{Scenario: Connect, URL: newEchoServer(t).url(), Connections: 1, Settle: time.Millisecond, PID: pid}, Command{}, nil)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a run: %v", err)
	}
}
