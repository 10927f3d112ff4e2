package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"perch/bench"
	"perch/internal/testkit"
)

// perchServer is a server of the real binary.
func perchServer(t *testing.T, ctx context.Context, env ...string) (*bench.Server, string) {
	t.Helper()
	_, bin, err := testkit.Perch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, err := bench.StartPerch(ctx, bin, env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s, bin
}

// TestScenarios runs every scenario, small, against a real Perch.
func TestScenarios(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	s, bin := perchServer(t, ctx, "PERCH_HEARTBEAT_INTERVAL=500ms", "PERCH_HEARTBEAT_TIMEOUT=400ms")
	small := bench.Options{Connections: 100, Duration: time.Second, Warmup: 200 * time.Millisecond, Settle: 200 * time.Millisecond}
	with := func(change func(o *bench.Options)) bench.Options {
		o := small
		change(&o)
		return o
	}
	for _, c := range []struct {
		name string
		o    bench.Options
		// least is how many units there must be, of those counted.
		least int64
	}{
		{"idle", with(func(o *bench.Options) { o.Scenario = bench.Idle }), 100},
		{"connect, storm", with(func(o *bench.Options) { o.Scenario = bench.Connect }), 100},
		{"connect, ramp", with(func(o *bench.Options) { o.Scenario, o.Rate = bench.Connect, 200 }), 100},
		{"echo", with(func(o *bench.Options) { o.Scenario = bench.Echo }), 1000},
		{"echo, 16 at once", with(func(o *bench.Options) { o.Scenario, o.Depth = bench.Echo, 16 }), 1000},
		{"echo, at a rate", with(func(o *bench.Options) { o.Scenario, o.Rate = bench.Echo, 500 }), 400},
		{"fanout", with(func(o *bench.Options) { o.Scenario, o.Rate = bench.Fanout, 10 }), 800},
		{"fanout, 20 at once", with(func(o *bench.Options) { o.Scenario, o.Rate, o.Burst = bench.Fanout, 5, 20 }), 4000},
		{"push", with(func(o *bench.Options) { o.Scenario, o.Rate = bench.Push, 100 }), 80},
		{"churn", with(func(o *bench.Options) { o.Scenario, o.Rate = bench.Churn, 50 }), 35},
		{"reconnect", with(func(o *bench.Options) { o.Scenario = bench.Reconnect }), 100},
		{"mixed", with(func(o *bench.Options) { o.Scenario, o.Rate = bench.Mixed, 100 }), 100},
		{"hostile", with(func(o *bench.Options) {
			o.Scenario, o.Rate, o.Rounds, o.Flood, o.Hostile = bench.Beset, 200, 1, 300, map[string]int{"all": 2, "pings": 5}
		}), 80},
		{"echo of two processes", with(func(o *bench.Options) { o.Scenario, o.Processes = bench.Echo, 2 }), 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := bench.Run(ctx, s.Options(c.o), bench.Command{Path: bin, Args: []string{"bench", "worker"}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if r.Failed > 0 {
				t.Errorf("%d failed, first: %s", r.Failed, r.FirstError)
			}
			if r.Count < c.least {
				t.Errorf("%d %ss, want %d at least", r.Count, r.Unit, c.least)
			}
			if r.Usage == nil || r.Usage.CPU <= 0 || r.Usage.RssAfter <= 0 || r.Usage.Goroutines <= 0 {
				t.Errorf("what the server used is missing: %+v", r.Usage)
			}
			if c.o.Scenario != bench.Idle && (r.Latency == nil || r.Latency.Count != r.Count) {
				t.Errorf("latency %+v of %d", r.Latency, r.Count)
			}
			if w := c.o.Processes; r.Generator.Processes != max(w, 1) || r.Generator.CPU <= 0 {
				t.Errorf("generator %+v", r.Generator)
			}
			var page bytes.Buffer
			if err := bench.NewReport("test", "perch bench "+c.o.Scenario, r).WriteHTML(&page); err != nil || !strings.Contains(page.String(), "<svg") {
				t.Errorf("the page: %v, %d bytes", err, page.Len())
			}
		})
	}
}

// TestServerOutlivesThread: the kernel kills a child with the thread that
// started it, not with the process.
func TestServerOutlivesThread(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	thread := make(chan int)
	started := make(chan *bench.Server, 1)
	var begin func()
	begin = func() {
		runtime.LockOSThread() // and never unlocked: it ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			go begin() // the process's first thread would stay
			<-ctx.Done()
			return
		}
		defer close(started)
		thread <- unix.Gettid()
		s, _ := perchServer(t, ctx)
		started <- s
	}
	go begin()
	path := fmt.Sprintf("/proc/self/task/%d", <-thread)
	s := <-started
	if s == nil {
		t.FailNow() // it has said why
	}
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(path); err != nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the thread goes on")
		}
	}
	resp, err := http.Get(s.Admin + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
}

// TestRefused: a server that takes no such session makes a run fail with the
// reason, not with a number.
func TestRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, _ := perchServer(t, ctx)
	for _, c := range []struct {
		name, want string
		change     func(*bench.Options)
	}{
		{"a wrong secret", "3500", func(o *bench.Options) { o.Secret = "not the server's secret, but long enough" }},
		{"no such path", "404", func(o *bench.Options) { o.URL = "ws://" + s.Addr + "/nowhere"; o.Protocol = bench.ProtocolCentrifuge }},
		{"nobody listens", "connection refused", func(o *bench.Options) { o.URL = "ws://127.0.0.1:1/connection/websocket" }},
		{"no such process", "the server's memory", func(o *bench.Options) { o.PID = 1 << 30 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := s.Options(bench.Options{Scenario: bench.Connect, Connections: 3, Settle: time.Millisecond})
			c.change(&o)
			_, err := bench.Run(ctx, o, bench.Command{}, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestPeersBuild: the folders of bench/peers are the servers that a comparison
// names.
func TestPeersBuild(t *testing.T) {
	root, err := testkit.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range bench.PeerNames() {
		if found, err := filepath.Glob(filepath.Join(root, "bench", "peers", name, "main.go")); err != nil || len(found) != 1 {
			t.Errorf("bench/peers/%s is missing", name)
		}
	}
}
