package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// runProcesses runs o in several processes of the test binary.
func runProcesses(t *testing.T, ctx context.Context, kind string, o Options) (Result, error) {
	t.Helper()
	t.Setenv(workerEnv, kind)
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	return Run(ctx, o, self, nil)
}

func TestProcesses(t *testing.T) {
	s := newEchoServer(t)
	r, err := runProcesses(t, t.Context(), workerRuns, Options{Scenario: Connect, URL: s.url(), Connections: 11, Processes: 2,
		Settle: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Count != 11 || r.Failed != 0 || r.Latency == nil || r.Latency.Count != 11 || r.Generator.Processes != 2 || r.Mode != ClosedLoop {
		t.Fatalf("%+v", r)
	}
	// Each opens as many before, to warm up.
	if n := s.accepted.Load(); n != 22 {
		t.Fatalf("%d connections came", n)
	}

	r, err = runProcesses(t, t.Context(), workerRuns, Options{Scenario: Echo, URL: s.url(), Connections: 5, Processes: 2, Rate: 200,
		Duration: 1100 * time.Millisecond, Warmup: -1})
	if err != nil {
		t.Fatal(err)
	}
	if r.Count < 210 || r.Count > 222 || r.Failed != 0 || r.Latency.Count != r.Count || r.Mode != OpenLoop || r.Want != 200 {
		t.Fatalf("%+v", r)
	}
	if len(r.Series) < 1 || r.Series[0].Connections != 5 || r.Series[0].Rate < 150 || r.Generator.CPU <= 0 {
		t.Fatalf("%+v, %+v", r.Series, r.Generator)
	}
}

func TestProcessesFail(t *testing.T) {
	s := newEchoServer(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	o := Options{Scenario: Echo, URL: s.url(), Connections: 2, Processes: 2, Duration: 100 * time.Millisecond}
	nobody := o
	nobody.URL = "ws://" + l.Addr().String() + "/"
	for _, test := range []struct {
		kind string
		o    Options
		want string
	}{
		{workerDies, o, "ended"},
		{workerTalk, o, "ended"},
		{workerSole, o, "not at the same phase"},
		{workerRuns, nobody, "connection refused"},
	} {
		t.Run(test.kind, func(t *testing.T) {
			_, err := runProcesses(t, t.Context(), test.kind, test.o)
			if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v", err)
			}
		})
	}
	if _, err := Run(t.Context(), o, Command{}, nil); err == nil || !strings.Contains(err.Error(), "no command") {
		t.Errorf("%v", err)
	}
	if _, err := Run(t.Context(), o, Command{Path: "/nonexistent"}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestProcessesInterrupted(t *testing.T) {
	s := newEchoServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		select {
		case <-s.answered:
		case <-ctx.Done():
		}
		cancel()
	}()
	for _, processes := range []int{2, 1} {
		_, err := runProcesses(t, ctx, workerRuns, Options{Scenario: Echo, URL: s.url(), Connections: 2, Processes: processes, Duration: time.Hour})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("%d processes: %v", processes, err)
		}
	}
}

func TestWorkerInput(t *testing.T) {
	for _, in := range []string{"", "{", "nonsense\n", `{"options":{"scenario":"echo","url":"ws://127.0.0.1:99999/"}}` + "\n"} {
		var out bytes.Buffer
		err := Worker(t.Context(), strings.NewReader(in), &out)
		var rep report
		if err == nil || json.Unmarshal(out.Bytes(), &rep) != nil || rep.Error != err.Error() {
			t.Errorf("%q: %v, says %q", in, err, out.String())
		}
	}
}
