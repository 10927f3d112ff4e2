package deploy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// root is the main module.
	root = "../.."
	// patience is how long a test waits for what must come.
	patience = 30 * time.Second
	// stopGrace is what a node takes at the most to end after its drain, as
	// docs/operations.md says.
	stopGrace = 10 * time.Second
)

// perch is the built command.
var perch string

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "perch-deploy-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		perch = filepath.Join(dir, "perch")
		build := exec.Command("go", "build", "-o", perch, "./cmd/perch")
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building perch: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}()
	os.Exit(code)
}

// environment is that of a process, and nothing of the test's own.
type environment map[string]string

func (e environment) with(more environment) environment {
	out := maps.Clone(e)
	maps.Copy(out, more)
	return out
}

func (e environment) list() []string {
	out := make([]string, 0, len(e))
	for _, k := range slices.Sorted(maps.Keys(e)) {
		out = append(out, k+"="+e[k])
	}
	return out
}

// run runs perch to its end.
func run(t *testing.T, env environment, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, perch, args...)
	cmd.Dir, cmd.Env = t.TempDir(), env.list()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// checkConfig has perch check a configuration.
func checkConfig(t *testing.T, env environment) {
	t.Helper()
	if out, err := run(t, env, "check"); err != nil || out != "ok\n" {
		t.Errorf("perch check: %v\n%s", err, out)
	}
}

// node is a perch that runs.
type node struct {
	env           environment
	public, admin string
	done          chan error
	cmd           *exec.Cmd
	said          *output
}

// output is what a process has written; it goes on while it is read.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// serve starts perch as a container would, on ports and in a directory of the
// test, and waits for nothing. It drains at the end of the test.
func serve(t *testing.T, env environment) *node {
	t.Helper()
	n := &node{public: freePort(t), admin: freePort(t), done: make(chan error, 1), said: &output{}}
	n.env = env.with(environment{
		"PERCH_LISTEN": n.public, "PERCH_ADMIN": n.admin, "PERCH_DATA_DIR": t.TempDir(), "PERCH_DRAIN_DELAY": "1ms",
	})
	n.cmd = exec.Command(perch, "serve")
	n.cmd.Dir, n.cmd.Env, n.cmd.Stdout, n.cmd.Stderr = t.TempDir(), n.env.list(), n.said, n.said
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { n.done <- n.cmd.Wait() }()
	t.Cleanup(func() {
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-n.done:
			if err != nil {
				t.Errorf("perch ends with %v:\n%s", err, n.said)
			}
		case <-time.After(patience):
			_ = n.cmd.Process.Kill()
			<-n.done
			t.Errorf("perch does not end:\n%s", n.said)
		}
	})
	return n
}

// answers waits until a path of the admin port is answered with 200.
func (n *node) answers(t *testing.T, path string) {
	t.Helper()
	await(t, "perch answers on "+path, func() bool {
		select {
		case err := <-n.done:
			n.done <- err
			t.Fatalf("perch has ended: %v\n%s", err, n.said)
		default:
		}
		status, _ := get("http://" + n.admin + path)
		return status == http.StatusOK
	}, n.said)
}

// last is text that changes.
type last string

func (l *last) String() string { return string(*l) }

// freePort is an address of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// get is a GET; the status is 0 where nobody answers.
func get(url string) (int, string) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// await polls until ok; detail is what was seen last.
func await(t *testing.T, what string, ok func() bool, detail ...fmt.Stringer) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(patience)
	defer end.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("not so: %s %v", what, detail)
		}
	}
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// write makes a file of the test, as secrets are: its owner's alone.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// secret is a password of digits: NATS would take it for a number, if it stood
// without quotes.
func secret(name string) string {
	sum := sha256.Sum256([]byte(name))
	digits := make([]byte, 0, 2*len(sum))
	for _, b := range sum {
		digits = append(digits, '0'+b>>4%10, '0'+b%10)
	}
	return string(digits)
}

// settings are what the tests look at of a perch.yaml.
type settings struct {
	Admin string `json:"admin"`
	NATS  struct {
		URL      string `json:"url"`
		Replicas int    `json:"replicas"`
	} `json:"nats"`
	Drain struct {
		Delay  string `json:"delay"`
		Budget string `json:"budget"`
	} `json:"drain"`
}

// drain is how long a node takes to end by its configuration.
func (s *settings) drain(t *testing.T) (delay, all time.Duration) {
	t.Helper()
	delay, err := time.ParseDuration(s.Drain.Delay)
	budget, e := time.ParseDuration(s.Drain.Budget)
	if err := errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	return delay, delay + budget + stopGrace
}

// imageEnv is the environment that the Dockerfile sets.
func imageEnv(t *testing.T) environment {
	t.Helper()
	env := environment{}
	for line := range strings.Lines(read(t, root, "Dockerfile")) {
		if list, ok := strings.CutPrefix(line, "ENV "); ok {
			for _, pair := range strings.Fields(list) {
				k, v, _ := strings.Cut(pair, "=")
				env[k] = v
			}
		}
	}
	if env["PERCH_LISTEN"] == "" {
		t.Fatal("the Dockerfile sets no PERCH_LISTEN")
	}
	return env
}
