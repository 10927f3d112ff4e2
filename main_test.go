package perch_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"perch"
	"perch/internal/testkit"
)

// TestMain fails the run when a server or a client of the tests leaves a
// goroutine behind.
func TestMain(m *testing.M) {
	waitTogether()
	code := m.Run()
	closeFleetNATS()
	if err := testkit.RemoveExecutables(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if code == 0 {
		if err := goleak.Find(ignoredGoroutines()...); err != nil {
			fmt.Fprintln(os.Stderr, "goleak:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// ignoredGoroutines are those that packages of others start once a process.
func ignoredGoroutines() []goleak.Option {
	return []goleak.Option{
		// gnet's default worker pool, which lives as long as the process.
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).purgeStaleWorkers"),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).ticktock"),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*goWorker).run.func1"),
	}
}

// testEngine is that of the servers that tests start, where they don't choose one:
// what holds for topics holds with each.
var testEngine = flag.String("engine", perch.EngineMemory, "engine of the servers under test")

// stands tells whether an offset can be that of a topic's nth publication: in memory
// they are counted, in a stream others come between.
func stands(offset uint64, n int) bool {
	if *testEngine == perch.EngineMemory {
		return offset == uint64(n)
	}
	return offset >= uint64(n)
}

// testSecret signs the tokens of the tests.
const testSecret = "perch-test-secret-0123456789abcdef"

// server is a running server of a test.
type server struct {
	*perch.Server
	public, admin string
	apiKey        string
	cancel        context.CancelFunc
	done          chan struct{}
	err           error // of Run; set before done is closed
	log           *logBuffer
}

// start runs a server for the test, on free ports, with a data directory of
// its own and HMAC tokens signed with testSecret; every topic may be
// subscribed and published to. change may change the options. The server is
// stopped when the test ends, and its log shown when the test failed.
func start(t testing.TB, change func(*perch.Options)) *server {
	t.Helper()
	s := &server{done: make(chan struct{}), log: &logBuffer{}, apiKey: "test-api-key"}
	o := perch.DefaultOptions()
	o.Listen, o.Admin, o.DataDir = "127.0.0.1:0", "127.0.0.1:0", t.TempDir()
	o.Logger = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.API.Key = s.apiKey
	o.Auth.HMACSecret = testSecret
	o.Topics.Default.AllowSubscribeForClient = true
	o.Topics.Default.AllowPublishForClient = true
	o.Drain.Budget = time.Second
	// A ping in between would be in the way; tests of pings set their own.
	o.Heartbeat.Interval = time.Hour
	o.Engine = *testEngine
	if change != nil {
		change(&o)
	}
	srv, err := perch.New(o)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.Server = srv
	go func() {
		s.err = srv.Run(ctx)
		close(s.done)
	}()
	t.Cleanup(func() {
		s.stop(t)
		if t.Failed() {
			t.Logf("server log:\n%s", s.log)
		}
	})
	select {
	case <-srv.Ready():
	case <-s.done:
		t.Fatalf("Run ended before the server was ready: %v", s.err)
	case <-time.After(20 * time.Second):
		t.Fatal("the server is not ready")
	}
	s.public, s.admin = srv.PublicAddr(), srv.AdminAddr()
	return s
}

// stop ends the server; it may be called again.
func (s *server) stop(t testing.TB) {
	t.Helper()
	s.cancel()
	select {
	case <-s.done:
		if s.err != nil {
			t.Errorf("Run: %v", s.err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the server did not stop; ending it at once")
		s.Abort()
		<-s.done
	}
}

// url is that of the client protocol's endpoint.
func (s *server) url() string { return "ws://" + s.public + "/connection/websocket" }

// api calls a method of the server API and returns the body of the answer.
func (s *server) api(t testing.TB, method, body string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+s.admin+"/api/"+method, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.apiKey)
	req.Header.Set("Content-Type", "application/json")
	status, answer := do(t, req)
	if status != http.StatusOK || strings.Contains(answer, `"error"`) {
		t.Fatalf("api %s: %d %s", method, status, answer)
	}
	return answer
}

// get fetches a URL and returns status and body.
func get(t testing.TB, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, req)
}

func do(t testing.TB, req *http.Request) (int, string) {
	t.Helper()
	client := &http.Client{
		Timeout: testkit.Timeout, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	return resp.StatusCode, string(b)
}

// metric is a counter or a gauge of the server's page, 0 where it is not there.
func (s *server) metric(t testing.TB, name string) float64 {
	t.Helper()
	status, page := get(t, "http://"+s.admin+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("metrics: %d", status)
	}
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(page)
	if m == nil {
		return 0
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// token is a connection token of user, good for ttl.
func token(user string, ttl time.Duration) string { return testkit.Token(testSecret, user, ttl, nil) }

// eventually polls ok until it is true. It is for what can only be seen from
// outside; what announces itself is awaited instead.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	within(t, testkit.Timeout, what, ok)
}

// within polls ok for so long.
func within(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// await receives from c, or fails the test.
func await[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(testkit.Timeout):
		t.Fatalf("not within %s: %s", testkit.Timeout, what)
		panic("unreachable")
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
