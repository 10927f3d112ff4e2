package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"github.com/spf13/cobra"

	"perch"
)

// fakeServer ends when it is told how.
type fakeServer struct {
	ready   chan struct{}
	err     error
	ends    chan struct{} // closed: Run returns err
	drains  bool          // Run returns when its context ends
	aborted sync.Once
	abort   chan struct{}

	reloads   chan perch.Options
	reloadErr error
	failed    atomic.Int32
}

func newFake() *fakeServer {
	return &fakeServer{ready: make(chan struct{}), ends: make(chan struct{}), abort: make(chan struct{}), reloads: make(chan perch.Options, 1)}
}

func (f *fakeServer) Run(ctx context.Context) error {
	close(f.ready)
	drained := ctx.Done()
	if !f.drains {
		drained = nil
	}
	select {
	case <-f.ends:
	case <-drained:
	case <-f.abort:
		return perch.ErrAborted
	}
	return f.err
}
func (f *fakeServer) Reload(o perch.Options) error {
	f.reloads <- o
	return f.reloadErr
}
func (f *fakeServer) ReloadFailed()            { f.failed.Add(1) }
func (f *fakeServer) Lag() time.Duration       { return 0 }
func (f *fakeServer) DrainTime() time.Duration { return time.Second }
func (f *fakeServer) Ready() <-chan struct{}   { return f.ready }
func (f *fakeServer) Abort()                   { f.aborted.Do(func() { close(f.abort) }) }

func interrupt(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), sig); err != nil {
		t.Fatal(err)
	}
}

func TestServeEnds(t *testing.T) {
	// On a busy machine a signal can come after serve has returned, and would then
	// end the tests: this takes it, up to their end.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM)
	errBroken := errors.New("broken")
	tests := []struct {
		name string
		make func() *fakeServer
		then func(*testing.T, *fakeServer) // once it is ready
		want error
	}{
		{"by itself", func() *fakeServer { f := newFake(); f.err = errBroken; return f },
			func(_ *testing.T, f *fakeServer) { close(f.ends) }, errBroken},
		{"SIGTERM drains", func() *fakeServer { f := newFake(); f.drains = true; return f },
			func(t *testing.T, _ *fakeServer) { interrupt(t, syscall.SIGTERM) }, nil},
		{"SIGINT drains", func() *fakeServer { f := newFake(); f.drains = true; return f },
			func(t *testing.T, _ *fakeServer) { interrupt(t, syscall.SIGINT) }, nil},
		{"a second signal aborts", newFake, func(t *testing.T, f *fakeServer) {
			interrupt(t, syscall.SIGTERM)
			// Two signals of one kind that are pending at once are one: send until it
			// has come through.
			go func() {
				for {
					select {
					case <-f.abort:
						return
					case <-time.After(5 * time.Millisecond):
						_ = syscall.Kill(os.Getpid(), syscall.SIGINT)
					}
				}
			}()
		}, errAborted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.make()
			cmd := &cobra.Command{}
			cmd.SetContext(t.Context())
			cmd.SetErr(io.Discard)
			greeted := 0
			err := serve(cmd, f, hooks{greet: func() { greeted++; tt.then(t, f) }})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if greeted != 1 {
				t.Errorf("greeted %d times", greeted)
			}
		})
	}
}

type fakeAddresses struct{ public, admin string }

func (f fakeAddresses) PublicAddr() string { return f.public }
func (f fakeAddresses) AdminAddr() string  { return f.admin }

func TestGreet(t *testing.T) {
	loop := fakeAddresses{"127.0.0.1:8000", "127.0.0.1:8001"}
	wide := fakeAddresses{"0.0.0.0:8000", "127.0.0.1:8001"}
	tests := []struct {
		name    string
		set     func(*perch.Options)
		addrs   fakeAddresses
		file    string
		want    []string
		wantNot []string
		token   bool // a whole one is shown
	}{
		{"nothing configured", func(*perch.Options) {}, loop, "", []string{
			"http://127.0.0.1:8000", `new WebSocket("ws://127.0.0.1:8000/connection/websocket")`, "perch token --sub alice --channels news",
			"http://127.0.0.1:8001/api/publish", "X-API-Key: $(cat ", "Files: ",
		}, []string{"subscribe", "/demo", "Insecure"}, true},
		{"dev", func(o *perch.Options) { *o = o.WithDev() }, loop, "", []string{
			`{"id":2,"subscribe":{"channel":"news"}}`, "http://127.0.0.1:8000/demo",
			"curl -u demo:demo-secret -d grant_type=client_credentials -d sub=alice http://127.0.0.1:8000/v1/token",
		}, []string{"Insecure"}, true},
		{"dev with a client of one's own", func(o *perch.Options) {
			o.Auth.Clients = []perch.ClientOptions{{ID: perch.DevClient, SecretHash: "other"}}
			*o = o.WithDev()
		}, loop, "", nil, []string{perch.DevSecret}, true},
		{"on every address", func(*perch.Options) {}, wide, "", []string{
			"http://127.0.0.1:8000", "A token for alice:\n  perch token --sub alice --channels news", `"token":"TOKEN"`,
		}, []string{"0.0.0.0"}, false},
		{"insecure", func(o *perch.Options) { o.Insecure = true }, loop, "", []string{"Insecure mode:", `{"connect":{},"id":1}`}, []string{"A token"}, false},
		{"only keys that verify", func(o *perch.Options) { o.Auth.JWKSURL = "http://127.0.0.1:1/" }, loop, "",
			[]string{"No token to show:\n  issue token: auth: no key to sign with"}, nil, false},
		{"a key and a file", func(o *perch.Options) { o.API.Key = "very-secret" }, loop, "my perch.yaml",
			[]string{"X-API-Key: $PERCH_API_KEY", "--config 'my perch.yaml'"}, []string{"very-secret", "api_key"}, false},
		{"dev with a file", func(o *perch.Options) { *o = o.WithDev() }, loop, "perch.yaml", nil, nil, true},
		{"another path", func(o *perch.Options) { o.WebSocket.Path = "/ws" }, loop, "", []string{"ws://127.0.0.1:8000/ws"}, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := perch.DefaultOptions()
			opts.DataDir = t.TempDir()
			tt.set(&opts)
			var out strings.Builder
			greet(&out, opts, tt.addrs, tt.file)
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("misses %s", want)
				}
			}
			for _, not := range tt.wantNot {
				if strings.Contains(out.String(), not) {
					t.Errorf("has %s", not)
				}
			}
			if has := strings.Contains(out.String(), "eyJ"); has != tt.token {
				t.Errorf("a token is shown: %v, want %v", has, tt.token)
			}
			if t.Failed() {
				t.Log(out.String())
			}
		})
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"perch.yaml": "perch.yaml", "/a/b-c_d": "/a/b-c_d", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'",
	} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestVersionLine(t *testing.T) {
	info := &debug.BuildInfo{Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef0123"}, {Key: "vcs.modified", Value: "true"},
	}}
	tests := []struct {
		name, version string
		info          *debug.BuildInfo
		want          string
	}{
		{"by flag", "v1.2.3", nil, "perch v1.2.3 (go"},
		{"by nobody", "", nil, "perch dev (go"},
		{"by the build", "", &debug.BuildInfo{Main: debug.Module{Version: "v1.0.0"}}, "perch v1.0.0 (go"},
		{"with a commit", "", info, "perch dev (0123456789ab+changes, go"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := versionLine(tt.version, tt.info); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %s, want %s…", got, tt.want)
			}
		})
	}
}

// process is a perch serve that runs.
type process struct {
	cmd    *exec.Cmd
	greet  string
	stderr *strings.Builder
	done   chan struct{}
}

// startServe runs perch serve and waits for what it prints at start.
func startServe(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"serve"}, args...)...)
	cmd.Dir, cmd.Env = dir, environ()
	return start(t, cmd)
}

func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, stderr: &strings.Builder{}, done: make(chan struct{})}
	if cmd.Stderr == nil {
		cmd.Stderr = p.stderr
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.done })
	greeted := make(chan string, 1)
	go func() {
		var text strings.Builder
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			fmt.Fprintln(&text, lines.Text())
			if strings.HasPrefix(lines.Text(), "Files: ") {
				greeted <- text.String()
			}
		}
		_ = p.cmd.Wait()
		close(p.done)
	}()
	select {
	case p.greet = <-greeted:
	case <-p.done:
		t.Fatalf("it ended: %s", p.stderr)
	case <-time.After(20 * time.Second):
		t.Fatal("it does not get ready")
	}
	return p
}

// after is the text behind a mark, to the end of its word.
func after(t *testing.T, text, mark string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, mark)
	if !ok {
		t.Fatalf("no %q in %s", mark, text)
	}
	return strings.FieldsFunc(rest, func(r rune) bool { return strings.ContainsRune(" \n,);", r) })[0]
}

// TestServe runs the server with nothing but free ports, does by hand what it
// prints at start, and drains it.
func TestServe(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		dev  bool
	}{
		{"nothing configured", nil, false},
		{"dev", []string{"--dev"}, true},
		{"insecure", []string{"--insecure"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			p := startServe(t, dir, append(tt.args, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")...)
			public := after(t, p.greet, "Perch serves http://")
			if host, port, err := net.SplitHostPort(public); err != nil || host != "127.0.0.1" || port == "0" {
				t.Errorf("it serves %q", public)
			}
			if tt.dev {
				tryExampleClient(t, public)
			}
			messages := tryConsoleLine(t, p.greet)
			tryPush(t, p.greet, filepath.Join(dir, "perch-data", apiKeyFile))
			for text := range messages {
				if strings.Contains(text, `"hello"`) {
					p.drain(t)
					return
				}
			}
			t.Error("the push did not arrive")
		})
	}
}

// tryConsoleLine does what the line for a browser's console does, and waits
// until it is subscribed.
func tryConsoleLine(t *testing.T, greet string) <-chan string {
	t.Helper()
	_, rest, _ := strings.Cut(greet, "ws.send('")
	commands, _, ok := strings.Cut(rest, "');")
	if !ok {
		t.Fatalf("no commands in %s", greet)
	}
	// As JavaScript reads the text.
	commands = strings.ReplaceAll(commands, `\n`, "\n")
	address := strings.Trim(after(t, greet, "new WebSocket("), `";`)
	conn, _, _, err := ws.Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := wsutil.WriteClientText(conn, []byte(commands)); err != nil {
		t.Fatal(err)
	}
	messages := make(chan string, 16)
	go func() {
		defer close(messages)
		for {
			text, err := wsutil.ReadServerText(conn)
			if err != nil {
				return
			}
			messages <- string(text)
		}
	}()
	for text := range messages {
		if strings.Contains(text, `"error"`) {
			t.Fatalf("answer: %s", text)
		}
		if strings.Contains(text, `"subs"`) || strings.Contains(text, `"subscribe"`) {
			return messages
		}
	}
	t.Fatal("not subscribed")
	return nil
}

// tryExampleClient does the line with the example client's credentials.
func tryExampleClient(t *testing.T, public string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+public+"/v1/token",
		strings.NewReader("grant_type=client_credentials&sub=alice"))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(perch.DevClient, perch.DevSecret)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("token: %s, %v", resp.Status, err)
	}
	if c := claimsOf(t, answer.Token); c["sub"] != "alice" {
		t.Errorf("claims %v", c)
	}
}

// tryPush does the line for a backend: the key is where it is said to be.
func tryPush(t *testing.T, greet, keyFile string) {
	t.Helper()
	data, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(string(data))
	if strings.Contains(greet, key) {
		t.Error("the API key is shown")
	}
	_, rest, _ := strings.Cut(greet, "-d '{\"channel\"")
	body, api, ok := strings.Cut(rest, "' ")
	if !ok {
		t.Fatalf("no line for a push in %s", greet)
	}
	api, _, _ = strings.Cut(api, "\n")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api, strings.NewReader(`{"channel"`+body))
	if err != nil {
		t.Fatal(err)
	}
	// What curl sends with -d; the server must not insist on JSON's type.
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("X-API-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"result"`) {
		t.Fatalf("publish: %s %s", resp.Status, body)
	}
}

// drain ends it as a supervisor does.
func (p *process) drain(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr)
	}
}

// TestServeTakenPort: a port of someone else is said in one line, for both
// ports.
func TestServeTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	for _, args := range [][]string{
		{"--listen", taken, "--admin", "127.0.0.1:0"},
		{"--listen", "127.0.0.1:0", "--admin", taken},
	} {
		got := perchIn(t, t.TempDir(), nil, append([]string{"serve", "--log-level", "error"}, args...)...)
		lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
		if got.code != exitError || len(lines) != 1 || !strings.HasPrefix(lines[0], "perch: ") || !strings.Contains(lines[0], taken) {
			t.Errorf("%v: got %+v", args, got)
		}
	}
}

// TestServeTwice: a second process of the same user could bind a port with
// SO_REUSEPORT and take half of the connections, silently.
func TestServeTwice(t *testing.T) {
	p := startServe(t, t.TempDir(), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	public := after(t, p.greet, "Perch serves http://")
	got := perchIn(t, t.TempDir(), nil, "serve", "--listen", public, "--admin", "127.0.0.1:0", "--log-level", "error")
	if got.code != exitError || !strings.Contains(got.stderr, public) {
		t.Errorf("got %+v", got)
	}
}
