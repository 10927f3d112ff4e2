package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// binary is the built command: what operators run, with its exit codes and its
// real standard output.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "perch-cmd-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "perch")
	build := exec.Command("go", "build", "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building: %v\n%s", err, out)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// environ is that of the test without what would configure a perch.
func environ(extra ...string) []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, envPrefix) {
			out = append(out, e)
		}
	}
	return append(out, extra...)
}

type result struct {
	code           int
	stdout, stderr string
}

// perchIn runs the binary in a directory.
func perchIn(t *testing.T, dir string, env []string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, environ(env...), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func writeFile(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUsageErrors(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "perch: a command is missing, such as perch serve\nSee 'perch --help'.\n"},
		{"an unknown command", []string{"srve"}, "perch: unknown command \"srve\" (did you mean serve?)\nSee 'perch --help'.\n"},
		{"a command that is none", []string{"zzzzzz"}, "perch: unknown command \"zzzzzz\"\nSee 'perch --help'.\n"},
		{"an unknown flag", []string{"serve", "--prot", "1"}, "perch: unknown flag: --prot\nSee 'perch serve --help'.\n"},
		{"an unknown flag of the root", []string{"--prot"}, "perch: unknown flag: --prot\nSee 'perch --help'.\n"},
		{"a flag without its value", []string{"check", "--config"}, "perch: flag needs an argument: --config\nSee 'perch check --help'.\n"},
		{"an argument too many", []string{"serve", "now"}, "perch: unexpected argument \"now\"\nSee 'perch serve --help'.\n"},
		{"a token of nobody", []string{"token"}, "perch: --sub is missing: the user that the token is for\nSee 'perch token --help'.\n"},
		{"a life too short", []string{"token", "--sub", "a", "--ttl", "1ms"}, "perch: --ttl: 1ms must be at least 1s\nSee 'perch token --help'.\n"},
		{"info that is not JSON", []string{"token", "--sub", "a", "--info", "{"},
			"perch: --info: must be JSON, such as '{\"name\":\"Alice\"}'\nSee 'perch token --help'.\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			got := perchIn(t, dir, nil, tt.args...)
			if got.code != exitUsage || got.stdout != "" || got.stderr != tt.want {
				t.Errorf("got %+v, want %s", got, tt.want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("it left %v", left)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"help"}, {"serve", "--help"}, {"token", "-h"}} {
		got := perchIn(t, t.TempDir(), nil, args...)
		if got.code != 0 || !strings.Contains(got.stdout, "Usage:") || got.stderr != "" {
			t.Errorf("perch %v: %+v", args, got)
		}
	}
}

func TestVersion(t *testing.T) {
	got := perchIn(t, t.TempDir(), nil, "version")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "perch ") || strings.Count(got.stdout, "\n") != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestCheck(t *testing.T) {
	const bad = "listen: 127.0.0.1:8000\n" +
		"topics:\n  default:\n    allow_subscribe: true\n" +
		"heartbeat:\n  timeout: 30\n"
	const meaning = "auth:\n  require: foo\nheartbeat:\n  timeout: 30s\nwebsocket:\n  path: /echo\n"
	tests := []struct {
		name   string
		file   string
		env    []string
		args   []string
		code   int
		stderr []string // each line
	}{
		{"good", "listen: :9000\n", nil, []string{"--config", "perch.yaml"}, 0, nil},
		{"by the environment", "listen: :9000\n", []string{"PERCH_CONFIG=perch.yaml", "PERCH_ECHO=1"}, nil, 0, nil},
		{"a file that nobody named is not read", bad, nil, nil, 0, nil},
		{"the flag goes above the environment", "", []string{"PERCH_CONFIG=none.yaml"}, []string{"-c", "perch.yaml"}, 0, nil},
		{"all that can't be read", bad, []string{"PERCH_LISTNE=x", "PERCH_LOOPS=two"}, []string{"--config", "perch.yaml"}, 1, []string{
			"perch: perch.yaml:4: topics.default.allow_subscribe: unknown key (did you mean allow_subscribe_for_client?)",
			`perch: perch.yaml:6: heartbeat.timeout: "30" must be a duration with its unit, such as 25s or 1h30m`,
			"perch: PERCH_LISTNE: unknown variable (did you mean PERCH_LISTEN?)",
			`perch: PERCH_LOOPS: loops: "two" must be a whole number`,
		}},
		{"all that makes no sense", meaning, nil, []string{"--config", "perch.yaml"}, 1, []string{
			`perch: auth.require: "foo" must be one of connect, handshake, none`,
			`perch: websocket.path: "/echo" is served already (/echo): choose another, such as /connection/websocket`,
			"perch: heartbeat.timeout: 30s must be shorter than heartbeat.interval (25s)",
		}},
		{"no such file", "", nil, []string{"--config", "none.yaml"}, 1, []string{"perch: none.yaml: can't be read: no such file or directory"}},
		{"no such file in the environment", "", []string{"PERCH_CONFIG=none.yaml"}, nil, 1, []string{"perch: none.yaml: can't be read: no such file or directory"}},
		{"a directory", "", nil, []string{"--config", "."}, 1, []string{"perch: .: can't be read: is a directory"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, dir, "perch.yaml", tt.file)
			got := perchIn(t, dir, tt.env, append([]string{"check"}, tt.args...)...)
			want := ""
			for _, line := range tt.stderr {
				want += line + "\n"
			}
			stdout := "ok\n"
			if tt.code != 0 {
				stdout = ""
			}
			if got.code != tt.code || got.stdout != stdout || got.stderr != want {
				t.Errorf("got %d\n%s%s\nwant %d\n%s%s", got.code, got.stdout, got.stderr, tt.code, stdout, want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 1 {
				t.Errorf("it left %v", left)
			}
		})
	}
}

func TestSecretFileWarning(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "perch.yaml", "auth:\n  hmac_secret: 0123456789abcdef-0123456789abcdef\n")
	if err := os.Chmod(filepath.Join(dir, "perch.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := perchIn(t, dir, nil, "check", "--config", "perch.yaml")
	want := "perch: warning: perch.yaml holds secrets and can be read by others (mode 0644): chmod 600 perch.yaml\n"
	if got.code != 0 || got.stdout != "ok\n" || got.stderr != want {
		t.Errorf("got %+v", got)
	}
}

// claimsOf reads the payload of a token without its signature.
func claimsOf(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		t.Fatalf("no token: %q", token)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestToken(t *testing.T) {
	const secret = "PERCH_AUTH_HMAC_SECRET=0123456789abcdef0123456789abcdef"
	tests := []struct {
		name string
		env  []string
		args []string
		life float64
		made string // the directory that is made for it, and told
	}{
		{"own key", nil, nil, 3600, "perch-data"},
		{"another directory", nil, []string{"--data-dir", "keys"}, 3600, "keys"},
		{"hmac", []string{secret}, []string{"--ttl", "2m"}, 120, ""},
		{"a life of the configuration", []string{secret, "PERCH_AUTH_TOKEN_TTL=10m"}, nil, 600, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			args := append([]string{"token", "--sub", "alice", "--channels", "a,b", "--info", `{"n":1}`}, tt.args...)
			got := perchIn(t, dir, tt.env, args...)
			note := ""
			if tt.made != "" {
				note = "perch: " + tt.made + " was made, with a signing key: only a server with that data_dir takes the token\n"
			}
			if got.code != 0 || got.stderr != note || strings.Count(got.stdout, "\n") != 1 {
				t.Fatalf("got %+v", got)
			}
			c := claimsOf(t, got.stdout)
			if c["sub"] != "alice" || fmt.Sprint(c["channels"]) != "[a b]" || fmt.Sprint(c["info"]) != "map[n:1]" {
				t.Errorf("claims %v", c)
			}
			if life := c["exp"].(float64) - c["iat"].(float64); life != tt.life {
				t.Errorf("it lives for %v s, want %v", life, tt.life)
			}
		})
	}
}

func TestTokenKeepsItsKey(t *testing.T) {
	dir := t.TempDir()
	headers := map[string]bool{}
	for range 2 {
		got := perchIn(t, dir, nil, "token", "--sub", "alice")
		if got.code != 0 {
			t.Fatalf("got %+v", got)
		}
		header, _, _ := strings.Cut(got.stdout, ".")
		headers[header] = true // it holds the kid
	}
	if len(headers) != 1 {
		t.Error("the second token has another key")
	}
}

func TestTokenErrors(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "file", "")
	tests := []struct {
		name string
		env  []string
		args []string
		want string
	}{
		{"only keys that verify", []string{"PERCH_AUTH_JWKS_URL=http://127.0.0.1:1/x"}, nil, "perch: issue token: auth: no key to sign with\n"},
		{"a configuration with errors", []string{"PERCH_AUTH_REQUIRE=foo"}, nil, "perch: auth.require: \"foo\" must be one of connect, handshake, none\n"},
		{"a directory that is none", nil, []string{"--data-dir", "file"}, "perch: data_dir: \"file\" is not a directory\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := perchIn(t, dir, tt.env, append([]string{"token", "--sub", "alice"}, tt.args...)...)
			if got.code != exitError || got.stdout != "" || got.stderr != tt.want {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
		})
	}
}
