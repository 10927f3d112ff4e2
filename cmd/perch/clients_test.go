package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// TestClients drives perch clients against a perch serve, both as processes.
func TestClients(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "perch.yaml", "engine: nats\nlisten: 127.0.0.1:0\nadmin: 127.0.0.1:0\nnats:\n  sync: 1s\n"+
		"auth:\n  clients:\n    - id: fixed\n      secret_hash: \"$2a$04$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui\"\n")
	p := startServe(t, dir, "--config", "perch.yaml")
	admin, public := adminOf(t, p.greet), after(t, p.greet, "Perch serves http://")
	run := func(args ...string) result {
		return perchIn(t, dir, nil, append([]string{"clients", args[0], "--config", "perch.yaml", "--admin", admin}, args[1:]...)...)
	}
	ok := func(args ...string) result {
		t.Helper()
		got := run(args...)
		if got.code != 0 {
			t.Fatalf("%v: %+v", args, got)
		}
		return got
	}
	decode := func(text string) (c registeredClient) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		return c
	}
	grant := func(id, secret string) int {
		t.Helper()
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}}
		resp, err := http.PostForm("http://"+public+"/v1/token", form)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}

	c := decode(ok("create", "sensor-1", "--json", "--channels", "news", "--token-ttl", "10m", "--metadata", `{"site":"north"}`).stdout)
	if c.Secret == "" || c.TokenTTL != 600 || grant(c.ID, c.Secret) != http.StatusOK {
		t.Fatalf("%+v", c)
	}
	made := ok("create")
	if !strings.Contains(made.stdout, "\nsecret ") || made.stderr != "perch: the secret is shown this once: keep it now\n" {
		t.Errorf("%+v", made)
	}
	shown := ok("show", "sensor-1")
	for _, want := range []string{"id         sensor-1\n", "state      enabled\n", "channels   news\n", "token_ttl  10m0s\n", `{"site":"north"}`} {
		if !strings.Contains(shown.stdout, want) {
			t.Errorf("no %q in %s", want, shown.stdout)
		}
	}
	if strings.Contains(shown.stdout, c.Secret) || strings.Contains(shown.stdout, "argon2id") {
		t.Error("it shows a secret")
	}
	list := ok("list").stdout
	if lines := strings.Split(strings.TrimSpace(list), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[0], "ID ") ||
		!strings.Contains(list, "fixed") || !strings.Contains(list, "configuration") {
		t.Errorf("list:\n%s", list)
	}
	if got := ok("list", "--json", "--limit", "2").stdout; strings.Count(got, "\n") != 2 {
		t.Errorf("two of the list:\n%s", got)
	}
	ok("disable", "sensor-1")
	if got := grant(c.ID, c.Secret); got != http.StatusUnauthorized {
		t.Errorf("disabled: %d", got)
	}
	ok("enable", "sensor-1")
	rotated := decode(ok("update", "sensor-1", "--rotate-secret", "--json").stdout)
	if got := grant(c.ID, c.Secret); got != http.StatusUnauthorized {
		t.Errorf("the old secret: %d", got)
	}
	if got := grant(c.ID, rotated.Secret); got != http.StatusOK {
		t.Errorf("the new secret: %d", got)
	}
	if got := ok("delete", "sensor-1").stdout; got != "deleted sensor-1\n" {
		t.Errorf("delete: %q", got)
	}

	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"unknown":          {[]string{"show", "sensor-1"}, exitError, "perch: unknown client\n"},
		"an odd id":        {[]string{"show", "a/b ?"}, exitError, "perch: unknown client\n"},
		"configured":       {[]string{"disable", "fixed"}, exitError, "perch: the client stands in the configuration (auth.clients), and changes there\n"},
		"taken":            {[]string{"create", "fixed"}, exitError, "perch: the client stands in the configuration (auth.clients), and changes there\n"},
		"a bad id":         {[]string{"create", "a b"}, exitError, "perch: id must be 1 to 128 of letters, digits and . _ : @ + ~ -, the first a letter or a digit\n"},
		"no id":            {[]string{"show"}, exitUsage, "perch: the client's id is missing\nSee 'perch clients show --help'.\n"},
		"nothing to do":    {[]string{"update", "x"}, exitUsage, "perch: nothing to change was given, such as --user\nSee 'perch clients update --help'.\n"},
		"half a second":    {[]string{"create", "--token-ttl", "500ms"}, exitUsage, "perch: --token-ttl: 500ms must be whole seconds\nSee 'perch clients create --help'.\n"},
		"metadata":         {[]string{"create", "--metadata", "{"}, exitUsage, "perch: --metadata: must be a JSON object, such as '{\"site\":\"north\"}'\nSee 'perch clients create --help'.\n"},
		"a wrong metadata": {[]string{"create", "--metadata", "[]"}, exitError, "perch: metadata must be a JSON object of at most 8192 bytes\n"},
	} {
		if got := run(tt.args...); got.code != tt.code || got.stderr != tt.want || got.stdout != "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := perchIn(t, dir, []string{"PERCH_API_KEY=wrong"}, "clients", "list", "--admin", admin); got.code != exitError ||
		got.stderr != "perch: the server refuses the key: give its api.key (PERCH_API_KEY), or the data_dir that the key is in\n" {
		t.Errorf("a wrong key: %+v", got)
	}
	if got := perchIn(t, t.TempDir(), nil, "clients", "list", "--admin", admin); got.code != exitError || !strings.Contains(got.stderr, "no api.key") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("no key: %+v", got)
	}
	p.drain(t)
	if got := run("list"); got.code != exitError || !strings.Contains(got.stderr, "does not answer: is the server running there?") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("nobody there: %+v", got)
	}
}

// TestClientsInMemory: a server without a registry says what one needs.
func TestClientsInMemory(t *testing.T) {
	dir := t.TempDir()
	p := startServe(t, dir, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	got := perchIn(t, dir, nil, "clients", "create", "--admin", adminOf(t, p.greet))
	if got.code != exitError || got.stderr != "perch: clients stand in the configuration alone: a registry needs engine: nats\n" {
		t.Errorf("%+v", got)
	}
	if got := perchIn(t, dir, nil, "clients"); got.code != exitUsage || !strings.Contains(got.stderr, "perch clients list") {
		t.Errorf("%+v", got)
	}
}

// adminOf is the admin port that a server says at its start.
func adminOf(t *testing.T, greet string) string {
	t.Helper()
	before, _, ok := strings.Cut(greet, "/api/publish")
	i := strings.LastIndex(before, "http://")
	if !ok || i < 0 {
		t.Fatalf("no admin port in %s", greet)
	}
	return before[i+len("http://"):]
}
