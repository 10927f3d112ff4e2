package perch_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"perch"
	"perch/internal/proc"
	"perch/internal/testkit"
)

const testTTL = time.Hour

// hoard asks /echo for messages of 512 KiB and never reads: what it is owed waits.
// It ends early where the server does not take them any more.
func hoard(w *testkit.Conn, messages int) {
	message := testkit.Client(testkit.OpBinary, make([]byte, 512<<10))
	for range messages {
		if w.SendFrames(message) != nil {
			return
		}
	}
}

// hoarder is a peer that hoards.
func (s *server) hoarder(t *testing.T, messages int) *peer {
	t.Helper()
	p := s.dial(t, "/echo")
	hoard(p.Conn, messages)
	return p
}

// TestMemoryBudget: near the budget new connections are refused, then the slowest
// consumers go, the slowest first; who reads stays, and when there is room again
// all is as before.
func TestMemoryBudget(t *testing.T) {
	const budget = 128 << 20
	var used atomic.Int64
	told := &logBuffer{}
	s := start(t, func(o *perch.Options) {
		o.Memory.Budget, o.Dev = budget, true
		o.Logger = slog.New(slog.NewMultiHandler(o.Logger.Handler(), slog.NewTextHandler(told, nil)))
		perch.SetUsed(o, func() int64 {
			// The next look comes soon: were the memory still short, the next one went.
			if strings.Contains(told.String(), "the slowest consumers are closed") {
				return budget / 100 * 50
			}
			return used.Load()
		})
	})
	status := func() int {
		c, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Reset() }()
		if err := c.Send([]byte(testkit.Head(s.public, "/echo"))); err != nil {
			t.Fatal(err)
		}
		resp, err := c.Response(http.MethodGet)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	good := s.session(t, "good")
	// All that they send has to be with the server: it says for whom the most waits.
	hoarder := func(messages int) *peer {
		before := s.metric(t, `perch_messages_total{direction="in"}`)
		p := s.hoarder(t, messages)
		eventually(t, "all messages are taken", func() bool {
			return s.metric(t, `perch_messages_total{direction="in"}`) >= before+float64(messages)
		})
		return p
	}
	most, less := hoarder(60), hoarder(36)
	if n := s.metric(t, `perch_memory_bytes{layer="pending_out"}`); n < 10<<20 {
		t.Fatalf("%v bytes wait", n)
	}

	used.Store(budget / 100 * 84)
	if got := status(); got != http.StatusSwitchingProtocols {
		t.Errorf("below the bound: %d", got)
	}
	used.Store(budget / 100 * 88)
	eventually(t, "connections are refused", func() bool { return status() == http.StatusServiceUnavailable })
	if n := s.metric(t, "perch_memory_refusing"); n != 1 {
		t.Errorf("perch_memory_refusing %v", n)
	}
	if n := s.metric(t, `perch_closes_total{reason="memory_plain"}`); n != 0 {
		t.Errorf("%v closed before they had to", n)
	}
	good.send(`{"id":7,"rpc":{"method":"echo","data":1}}`)
	good.reply(7)

	used.Store(budget/100*92 + 1<<20) // the one for whom the most waits is enough
	eventually(t, "the slowest goes", func() bool { return s.metric(t, "perch_slow_consumers_total") >= 1 })
	most.closes(1013)
	for range 36 {
		if m, err := less.Message(); err != nil || len(m) != 512<<10 {
			t.Fatalf("who had less: %d bytes, %v", len(m), err)
		}
	}
	if n := s.metric(t, `perch_slow_consumers_total`); n != 1 {
		t.Errorf("%v closed, one was enough", n)
	}
	good.send(`{"id":8,"rpc":{"method":"echo","data":1}}`)
	good.reply(8)
	eventually(t, "connections are taken again", func() bool { return status() == http.StatusSwitchingProtocols })
	if log := s.log.String(); strings.Count(log, "memory is short: new connections are refused") != 1 ||
		!strings.Contains(log, "memory is short: the slowest consumers are closed") || !strings.Contains(log, "memory is back") {
		t.Error("the log does not tell")
	}
}

// TestMemoryWarning: what may wait is held against the budget at the start, and
// histories only where they are in the memory.
func TestMemoryWarning(t *testing.T) {
	for _, tt := range []struct {
		engine        string
		history, nats int
		want          string // empty: nothing is said
	}{
		{perch.EngineMemory, 128 << 20, 1 << 20, "lower topics.history_bytes,"},
		{perch.EngineMemory, 32 << 20, 128 << 20, ""},
		{perch.EngineNATS, 128 << 20, 1 << 20, ""},
		{perch.EngineNATS, 8 << 20, 128 << 20, "lower nats.queue_bytes,"},
	} {
		s := start(t, func(o *perch.Options) {
			o.Engine, o.Loops, o.Memory.Budget = tt.engine, 1, 256<<20
			o.Limits.InboxBytes, o.Pool.QueueBytes = 16<<20, 16<<20
			o.Topics.HistoryBytes, o.NATS.QueueBytes = tt.history, tt.nats
		})
		log := s.log.String()
		if said := strings.Contains(log, "more than half of the memory"); said != (tt.want != "") || !strings.Contains(log, tt.want) {
			t.Errorf("%+v: the log says\n%s", tt, log)
		}
	}
}

// TestMemoryBudgetOfAProcess: a server whose clients would take several times its
// budget lives on within it, and serves who reads.
func TestMemoryBudgetOfAProcess(t *testing.T) {
	ctx := t.Context() // it may take long to build
	_, bin, err := testkit.Perch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	public, err := testkit.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	admin, err := testkit.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	const budget = 112 << 20
	cmd := exec.CommandContext(ctx, bin, "serve", "--dev", "--listen", public, "--admin", admin, "--data-dir", t.TempDir())
	cmd.Env = append(os.Environ(), "PERCH_MEMORY_BUDGET=112MiB", "PERCH_AUTH_HMAC_SECRET="+testSecret,
		"PERCH_LIMITS_INBOX_BYTES=16MiB", "PERCH_TOPICS_HISTORY_BYTES=8MiB",
		"PERCH_HEARTBEAT_INTERVAL=1h")
	log := &logBuffer{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("server log:\n%s", log)
		}
	}()
	eventually(t, "the server is ready", func() bool {
		resp, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	s := &server{public: public, admin: admin}
	good := s.session(t, "good")
	// Each lets some 15 MiB wait, all of them together more than the budget.
	var hoarders []*testkit.Conn
	for range 10 {
		hoarders = append(hoarders, s.dial(t, "/echo").Conn)
	}
	for i, p := range hoarders {
		hoard(p, 36)
		good.send(fmt.Sprintf(`{"id":%d,"rpc":{"method":"echo","data":1}}`, i+2))
		good.reply(i + 2)
		if n, err := proc.RssAnon(cmd.Process.Pid); err != nil || n > budget {
			t.Fatalf("the process takes %d bytes of %d, %v", n, int64(budget), err)
		}
	}
	if n := s.metric(t, "perch_slow_consumers_total"); n == 0 {
		t.Error("nobody was closed for it")
	}
	for _, p := range hoarders {
		_ = p.Reset()
	}
	eventually(t, "there is room again", func() bool { return s.metric(t, "perch_memory_refusing") == 0 })
	s.session(t, "late")
}
