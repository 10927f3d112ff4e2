package main

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
)

// TestHealth asks servers in every state, and where there is none.
func TestHealth(t *testing.T) {
	answers := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/healthz" {
				return
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	hung := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(hung.Close)
	gone := httptest.NewServer(nil)
	gone.Close()
	starting := answers(503, `{"ready":false,"state":"starting"}`)
	_, port, _ := strings.Cut(answers(200, `{"ready":true,"state":"ready"}`), ":")

	tests := []struct {
		name   string
		env    []string
		args   []string
		code   int
		stdout string
		stderr string // the beginning
	}{
		{"ready", []string{"PERCH_ADMIN=0.0.0.0:" + port}, nil, 0, "ready\n", ""},
		{"on every address", nil, []string{"--admin", ":" + port}, 0, "ready\n", ""},
		{"behind a proxy of the environment", []string{"PERCH_ADMIN=localhost:" + port, "HTTP_PROXY=http://" + gone.Listener.Addr().String()}, nil, 0, "ready\n", ""},
		{"starting", nil, []string{"--admin", starting}, 1, "", "perch: not ready: starting\n"},
		{"starting, but alive", nil, []string{"--admin", starting, "--live"}, 0, "alive\n", ""},
		{"something else", nil, []string{"--admin", answers(404, "what?")}, 1, "", "perch: not ready: 127.0.0.1:"},
		{"nobody", nil, []string{"--admin", gone.Listener.Addr().String()}, 1, "", "perch: no answer on 127.0.0.1:"},
		{"it hangs", nil, []string{"--admin", hung.Listener.Addr().String(), "--timeout", "50ms"}, 1, "", "perch: no answer on 127.0.0.1:"},
		{"no time", nil, []string{"--timeout", "0s"}, 2, "", "perch: --timeout: 0s must be above zero\n"},
		{"a configuration that can't be read", []string{"PERCH_LOOPS=two"}, nil, 1, "", "perch: PERCH_LOOPS:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := perchIn(t, t.TempDir(), tt.env, append([]string{"health"}, tt.args...)...)
			if got.code != tt.code || got.stdout != tt.stdout || !strings.HasPrefix(got.stderr, tt.stderr) || tt.stderr == "" && got.stderr != "" {
				t.Errorf("got %+v", got)
			}
			if got.code == exitError && strings.Count(got.stderr, "\n") != 1 {
				t.Errorf("not one line: %s", got.stderr)
			}
		})
	}
}

// TestHealthOfServer asks a server by its own configuration, until it is gone.
func TestHealthOfServer(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(binary, "serve")
	cmd.Dir, cmd.Env = dir, environ("PERCH_LISTEN=127.0.0.1:0", "PERCH_ADMIN=127.0.0.1:0")
	p := start(t, cmd)
	admin := "PERCH_ADMIN=" + after(t, p.greet, "and its backends on http://")
	admin = strings.TrimSuffix(admin, ".")
	if got := perchIn(t, dir, []string{admin}, "health"); got.code != 0 || got.stdout != "ready\n" {
		t.Errorf("running: %+v", got)
	}
	p.drain(t)
	if got := perchIn(t, dir, []string{admin}, "health"); got.code != 1 {
		t.Errorf("ended: %+v", got)
	}
}
