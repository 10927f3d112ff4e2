package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"perch/internal/testkit"
)

// lineBuffer takes what a process writes, while it is read.
type lineBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lineBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lineBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// supervised is a perch serve under a service manager: a socket that it tells
// of itself.
type supervised struct {
	*process
	socket        *net.UnixConn
	stderr        *lineBuffer
	public, admin string
}

func supervise(t *testing.T, dir string, env []string, args ...string) *supervised {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	cmd := exec.Command(binary, append([]string{"serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, args...)...)
	cmd.Dir, cmd.Env = dir, environ(append(env, "NOTIFY_SOCKET="+path)...)
	s := &supervised{socket: socket, stderr: &lineBuffer{}}
	cmd.Stderr = s.stderr
	s.process = start(t, cmd)
	s.public = after(t, s.greet, "Perch serves http://")
	admin := regexp.MustCompile(`http://([0-9.:]+)/api/publish`).FindStringSubmatch(s.greet)
	if admin == nil {
		t.Fatalf("no admin port in %s", s.greet)
	}
	s.admin = admin[1]
	return s
}

// told is the next message to the service manager that is no ping of the
// watchdog's.
func (s *supervised) told(t *testing.T) string {
	t.Helper()
	for {
		text := s.datagram(t)
		if text != "WATCHDOG=1" {
			return text
		}
	}
}

func (s *supervised) datagram(t *testing.T) string {
	t.Helper()
	buf := make([]byte, 4096)
	_ = s.socket.SetReadDeadline(time.Now().Add(testkit.Timeout))
	n, err := s.socket.Read(buf)
	if err != nil {
		t.Fatalf("the service manager is told nothing: %v\n%s", err, s.stderr)
	}
	return string(buf[:n])
}

func (s *supervised) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// ends waits for the process and checks its exit code.
func (s *supervised) ends(t *testing.T, code int) {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(testkit.Timeout):
		t.Fatalf("it does not end:\n%s", s.stderr)
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d:\n%s", got, code, s.stderr)
	}
}

// status asks for a page; 0: nobody answers.
func status(url string) int {
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testkit.Timeout}).Get(url)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// page is what a page says.
func page(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// field is a field of a message to the service manager.
func field(t *testing.T, message, name string) string {
	t.Helper()
	for line := range strings.SplitSeq(message, "\n") {
		if v, ok := strings.CutPrefix(line, name+"="); ok {
			return v
		}
	}
	t.Fatalf("no %s in %q", name, message)
	return ""
}

// TestNotify: what systemd is told, from the start over a reload to the end.
func TestNotify(t *testing.T) {
	s := supervise(t, t.TempDir(), []string{"PERCH_DRAIN_DELAY=7s", "PERCH_DRAIN_BUDGET=4s"})
	if m := s.told(t); field(t, m, "READY") != "1" || field(t, m, "STATUS") == "" {
		t.Errorf("at the start: %q", m)
	}
	s.signal(t, syscall.SIGHUP)
	m := s.told(t)
	if usec, err := strconv.ParseInt(field(t, m, "MONOTONIC_USEC"), 10, 64); err != nil || usec <= 0 || field(t, m, "RELOADING") != "1" {
		t.Errorf("at a reload: %q", m)
	}
	if m := s.told(t); field(t, m, "READY") != "1" {
		t.Errorf("after a reload: %q", m)
	}
	s.signal(t, syscall.SIGTERM)
	m = s.told(t)
	// The delay and the budget, and what the end takes beside.
	if usec, err := strconv.ParseInt(field(t, m, "EXTEND_TIMEOUT_USEC"), 10, 64); err != nil || usec < 11e6 || usec > 30e6 || field(t, m, "STOPPING") != "1" {
		t.Errorf("at the end: %q", m)
	}
	// It is not ready at once, and serves on.
	eventually(t, "readyz says no", func() bool { return status("http://"+s.admin+"/readyz") == http.StatusServiceUnavailable })
	if got := status("http://" + s.public + "/.well-known/jwks.json"); got != http.StatusOK {
		t.Errorf("the public port, in the delay: %d", got)
	}
	// A SIGHUP has nothing to change any more; a second SIGTERM is an end at once.
	s.signal(t, syscall.SIGHUP)
	s.signal(t, syscall.SIGTERM)
	s.ends(t, exitError)
	if !strings.Contains(s.stderr.String(), "second signal") {
		t.Errorf("it says %s", s.stderr)
	}
}

// TestNotifyNobody: without a service manager nothing is told, and where it does
// not listen, the server serves all the same.
func TestNotifyNobody(t *testing.T) {
	cmd := exec.Command(binary, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	cmd.Dir, cmd.Env = t.TempDir(), environ("NOTIFY_SOCKET=/nonexistent/notify")
	p := start(t, cmd)
	p.drain(t)
}

// TestWatchdog: the watchdog is pinged while the loops turn. With one that
// stands still it is not, and it is again when the loop goes on.
func TestWatchdog(t *testing.T) {
	s := supervise(t, t.TempDir(), []string{"WATCHDOG_USEC=400000", "PERCH_ECHO=true", "PERCH_LOOPS=1", "PERCH_HEARTBEAT_INTERVAL=1h"})
	ping := func() {
		t.Helper()
		for s.datagram(t) != "WATCHDOG=1" {
		}
	}
	for range 3 {
		ping()
	}
	w, err := testkit.Open(s.public, "/echo")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	for range 3 {
		ping()
	}
	// The loop waits for long in each of its system calls on a message.
	log := &lineBuffer{}
	trace := exec.Command("strace", "-f", "-p", strconv.Itoa(s.cmd.Process.Pid), "-o", "/dev/null", "-e", "trace=sendto", "-e", "inject=sendto:delay_enter=3000000")
	trace.Stderr = log
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	traced := make(chan struct{})
	go func() { _ = trace.Wait(); close(traced) }()
	t.Cleanup(func() { _ = trace.Process.Kill(); <-traced })
	eventually(t, "strace has the process", func() bool { return strings.Contains(log.String(), "attached") })
	if err := w.SendFrames(testkit.Text("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says that a loop stands still", func() bool { return strings.Contains(s.stderr.String(), "has stood still") })
	// What was sent before is read; from then on there is silence until the loop
	// goes on, which the echo tells.
	silent := 0
	echoed := make(chan error, 1)
	go func() { _, err := w.Message(); echoed <- err }()
	buf := make([]byte, 64)
	for done := false; !done; {
		_ = s.socket.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := s.socket.Read(buf); err != nil {
			silent++
		}
		select {
		case err := <-echoed:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
	}
	// In the time in which the loop stood still, four pings of 100 ms fit in each
	// period of the watchdog; that it missed one period at least is the point.
	if silent < 5 {
		t.Errorf("the watchdog was pinged while a loop stood still: %d times nothing", silent)
	}
	ping()
}

// TestReloadBySignal: SIGHUP reads the file again; a file with an error is said
// in one line, and changes nothing.
func TestReloadBySignal(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("sesame"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFile(t, dir, "perch.yaml", "drain:\n  budget: 2s\n")
	s := supervise(t, dir, nil, "--config", "perch.yaml")
	s.told(t)
	ask := func() int {
		req, err := http.NewRequest(http.MethodPost, "http://"+s.public+"/v1/token", strings.NewReader("grant_type=client_credentials"))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("device", "sesame")
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	reload := func(text string) {
		t.Helper()
		writeFile(t, dir, "perch.yaml", text)
		s.signal(t, syscall.SIGHUP)
		s.told(t) // RELOADING
		s.told(t) // READY
	}
	if got := ask(); got != http.StatusUnauthorized {
		t.Fatalf("before: %d", got)
	}
	client := fmt.Sprintf("auth:\n  clients:\n    - id: device\n      secret_hash: %q\n", hash)
	reload(client)
	if got := ask(); got != http.StatusOK {
		t.Errorf("with the client: %d\n%s", got, s.stderr)
	}
	before := ""
	said := func() string { return strings.TrimPrefix(s.stderr.String(), before) }
	// What it says has been written by then, and is read a little later.
	lines := func(n int) {
		t.Helper()
		eventually(t, "what it says", func() bool { return strings.Count(said(), "\n") >= n })
	}
	eventually(t, "the reload is logged", func() bool { return strings.Contains(said(), "configuration reloaded") })
	before = s.stderr.String()
	reload("auth:\n  require: foo\nheartbeat:\n  timeout: 30s\n")
	lines(1)
	if said := said(); strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "perch: configuration not reloaded: ") ||
		!strings.Contains(said, "auth.require") || !strings.Contains(said, "heartbeat.timeout") {
		t.Errorf("a file that makes no sense: %q", said)
	}
	before = s.stderr.String()
	reload("auth:\n  requier: foo\n")
	lines(1)
	if said := said(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "perch.yaml:2: auth.requier: unknown key") {
		t.Errorf("a file that can't be read: %q", said)
	}
	before = s.stderr.String()
	reload("dev: true\n" + client)
	lines(1)
	if said := said(); strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "perch: configuration not reloaded: dev: ") {
		t.Errorf("a file that turns dev mode on: %q", said)
	}
	if got := ask(); got != http.StatusOK {
		t.Errorf("after files with errors: %d", got)
	}
	// Counted wherever they failed, in the reading or in the taking over.
	if m := page(t, "http://"+s.admin+"/metrics"); !strings.Contains(m, "\nperch_config_reloads_total{outcome=\"failed\"} 3\n") ||
		!strings.Contains(m, "\nperch_config_reloads_total{outcome=\"ok\"} 1\n") {
		t.Error("the metrics do not tell of the reloads")
	}
	// A flag stands above the file, so listen is as it was; loops differs.
	before = s.stderr.String()
	reload("listen: 127.0.0.1:1\nloops: 7\n" + client)
	eventually(t, "the reload is logged", func() bool { return strings.Contains(said(), "configuration reloaded") })
	if said := said(); strings.Count(said, "needs a restart") != 1 || !strings.Contains(said, "key=loops") {
		t.Errorf("keys that need a restart: %s", said)
	}
	s.signal(t, syscall.SIGTERM)
	s.ends(t, 0)
}
