package handler

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"

	"perch/internal/stats"
)

// newAdminTest serves the admin port as the server does, deadlines included.
func newAdminTest(t *testing.T, o AdminOptions) (*httptest.Server, *bytes.Buffer) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	log := new(bytes.Buffer)
	o.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.API.Key = apiTestKey
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = NewHTTPServer(NewAdmin(o), o.Logger)
	srv.Start()
	t.Cleanup(func() {
		srv.Client().CloseIdleConnections()
		srv.Close()
		goleak.VerifyNone(t, before)
	})
	return srv, log
}

func adminAsk(t *testing.T, srv *httptest.Server, method, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestAdminHealth(t *testing.T) {
	var state atomic.Value
	state.Store(AdminStarting)
	srv, _ := newAdminTest(t, AdminOptions{State: func() AdminState { return state.Load().(AdminState) }})
	for _, c := range []struct {
		state  AdminState
		status int
		body   string
	}{
		{AdminStarting, 503, `{"ready":false,"state":"starting"}`},
		{AdminReady, 200, `{"ready":true,"state":"ready"}`},
		{AdminDraining, 503, `{"ready":false,"state":"draining"}`},
	} {
		state.Store(c.state)
		resp, body := adminAsk(t, srv, "GET", "/readyz")
		if resp.StatusCode != c.status {
			t.Errorf("%s: /readyz answers %d, want %d", c.state, resp.StatusCode, c.status)
		}
		wantJSON(t, "/readyz", body, c.body)
		if resp, _ := adminAsk(t, srv, "HEAD", "/readyz"); resp.StatusCode != c.status {
			t.Errorf("%s: HEAD /readyz answers %d, want %d", c.state, resp.StatusCode, c.status)
		}
		resp, body = adminAsk(t, srv, "GET", "/healthz")
		if resp.StatusCode != 200 {
			t.Errorf("%s: /healthz answers %d", c.state, resp.StatusCode)
		}
		wantJSON(t, "/healthz", body, `{"status":"ok"}`)
	}
}

func TestAdminRoutes(t *testing.T) {
	srv, _ := newAdminTest(t, AdminOptions{})
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"POST", "/api/info", 401},
		{"POST", "/api/nosuch", 401},
		{"GET", "/api/info", 405},
		{"POST", "/api/", 404},
		{"GET", "/", 404},
		{"GET", "/metrics", 404}, // none given
		{"POST", "/healthz", 405},
		{"GET", "/readyz", 200},
	} {
		resp, body := adminAsk(t, srv, c.method, c.path)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: status %d, want %d", c.method, c.path, resp.StatusCode, c.status)
		}
		if c.status >= 400 && !strings.HasPrefix(body, `{"error":{"code":`) {
			t.Errorf("%s %s: body %q", c.method, c.path, body)
		}
	}
}

func TestAdminMetrics(t *testing.T) {
	registry := stats.NewRegistry(func() stats.Snapshot { return stats.Snapshot{Connections: 5, Insecure: true} })
	srv, _ := newAdminTest(t, AdminOptions{Metrics: stats.Handler(registry, slog.New(slog.DiscardHandler))})
	_, body := adminAsk(t, srv, "GET", "/metrics")
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"perch_connections": 5, "perch_insecure": 1} {
		if f := families[name]; f == nil || f.GetMetric()[0].GetGauge().GetValue() != want {
			t.Errorf("%s = %v, want %v", name, f, want)
		}
	}
}

func TestAdminProfiles(t *testing.T) {
	srv, _ := newAdminTest(t, AdminOptions{})
	for _, path := range []string{
		"goroutine", "heap", "heap?gc=1", "allocs", "block", "mutex", "threadcreate", "profile?seconds=0.05",
	} {
		resp, body := adminAsk(t, srv, "GET", "/debug/pprof/"+path)
		if resp.StatusCode != 200 {
			t.Errorf("%s: status %d", path, resp.StatusCode)
			continue
		}
		// A profile is a gzipped protobuf.
		r, err := gzip.NewReader(strings.NewReader(body))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil {
			t.Errorf("%s is no profile: %v", path, err)
		}
	}
	for path, want := range map[string]string{
		"":                       "goroutine",
		"goroutine?debug=2":      "goroutine ",
		"heap?debug=1":           "heap profile",
		"cmdline":                "handler.test",
		"trace?seconds=0.02":     "go 1.",
		"goroutine?debug=1&gc=x": "goroutine profile",
	} {
		resp, body := adminAsk(t, srv, "GET", "/debug/pprof/"+path)
		if resp.StatusCode != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: status %d, %.60q lacks %q", path, resp.StatusCode, body, want)
		}
	}
	for path, status := range map[string]int{
		"nosuch": 404, "heap?debug=x": 400, "heap?seconds=1": 400, "profile?seconds=0": 400,
		"profile?seconds=-1": 400, "profile?seconds=NaN": 400, "profile?seconds=1e9": 400, "trace?seconds=x": 400,
	} {
		if resp, _ := adminAsk(t, srv, "GET", "/debug/pprof/"+path); resp.StatusCode != status {
			t.Errorf("%s: status %d, want %d", path, resp.StatusCode, status)
		}
	}
}

func TestAdminProfileOneAtATime(t *testing.T) {
	srv, _ := newAdminTest(t, AdminOptions{})
	req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/debug/pprof/profile?seconds=300", nil)
	if err != nil {
		t.Fatal(err)
	}
	long := make(chan struct{})
	tr := &http.Transport{}
	go func() {
		defer close(long)
		if resp, err := tr.RoundTrip(req); err == nil {
			resp.Body.Close()
		}
	}()
	// It records when it waits. Asking for a profile to find out could take its
	// place.
	deadline := time.Now().Add(10 * time.Second)
	for stacks := make([]byte, 1<<20); ; time.Sleep(time.Millisecond) {
		all := string(stacks[:runtime.Stack(stacks, true)])
		if at := strings.Index(all, "handler.adminTimed("); at >= 0 &&
			strings.Contains(all[strings.LastIndex(all[:at], "goroutine "):at], "[select]") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the profile does not begin")
		}
	}
	resp, body := adminAsk(t, srv, "GET", "/debug/pprof/profile?seconds=0.01")
	if resp.StatusCode != http.StatusConflict || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		t.Errorf("a second profile: status %d, %q", resp.StatusCode, resp.Header)
	}
	wantJSON(t, "conflict", body, apiErrorJSON(111))
	// Its peer gone, the long one ends; else Close in the cleanup would hang.
	srv.CloseClientConnections()
	<-long
	for {
		if resp, _ := adminAsk(t, srv, "GET", "/debug/pprof/profile?seconds=0.01"); resp.StatusCode == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the profile goes on without its peer")
		}
	}
}

// The deadlines for ordinary requests must not end a profile that is meant to
// take longer.
func TestAdminProfileOutlivesDeadlines(t *testing.T) {
	h := NewAdmin(AdminOptions{Logger: slog.New(slog.DiscardHandler)})
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = NewHTTPServer(h, slog.New(slog.DiscardHandler))
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	srv.Start()
	defer srv.Close()
	start := time.Now()
	resp, body := adminAsk(t, srv, "GET", "/debug/pprof/profile?seconds=0.4")
	if resp.StatusCode != 200 || len(body) == 0 || time.Since(start) < 400*time.Millisecond {
		t.Errorf("status %d, %d bytes after %v", resp.StatusCode, len(body), time.Since(start))
	}
}

func TestAdminRecovers(t *testing.T) {
	srv, log := newAdminTest(t, AdminOptions{
		State: func() AdminState { panic("boom") },
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("abort") {
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, "half")
			panic("late")
		}),
	})
	resp, body := adminAsk(t, srv, "GET", "/readyz?secret=5")
	if resp.StatusCode != 500 {
		t.Errorf("status %d, want 500", resp.StatusCode)
	}
	wantJSON(t, "panic", body, apiErrorJSON(100))
	if !strings.Contains(log.String(), "boom") || strings.Contains(log.String(), "secret") {
		t.Errorf("log:\n%s", log)
	}
	for _, path := range []string{"/metrics", "/metrics?abort"} {
		resp, err := srv.Client().Get(srv.URL + path)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: half an answer came as a whole one", path)
		}
	}
}

func TestNewHTTPServer(t *testing.T) {
	var log bytes.Buffer
	s := NewHTTPServer(gin.New(), slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 0 || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 {
		t.Errorf("a bound is missing: %+v", s)
	}
	s.ErrorLog.Printf("http: %v", errors.New("bad peer"))
	if got := log.String(); !strings.Contains(got, "level=DEBUG") || !strings.Contains(got, `err="http: bad peer"`) {
		t.Errorf("log: %s", got)
	}
	if NewHTTPServer(gin.New(), nil).ErrorLog == nil {
		t.Error("no log without a logger")
	}
}
