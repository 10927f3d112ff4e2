package perch_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"perch"
	"perch/internal/config"
)

// loadText loads a file of the given text over the defaults.
func loadText(t *testing.T, text string) perch.Options {
	t.Helper()
	file := filepath.Join(t.TempDir(), "perch.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := perch.DefaultOptions()
	warnings, err := config.Load(&opts, config.Source{File: file, Prefix: "PERCH_"})
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 0 {
		t.Errorf("warnings %q", warnings)
	}
	return opts
}

func readText(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var (
	// commentedKey is a default in perch.yaml: "#key: value".
	commentedKey = regexp.MustCompile(`(?m)^( *)#([a-z_]+:.*)$`)
	// exampleLine is a line of an example in a section: "  #   key: value".
	exampleLine = regexp.MustCompile(`(?m)^  #   ( *\S.*)$`)
)

// TestExampleFile holds that perch.yaml says the truth: as it is, and with each
// commented key uncommented, it gives the defaults.
func TestExampleFile(t *testing.T) {
	text := readText(t, "perch.yaml")
	if got := loadText(t, text); !reflect.DeepEqual(got, perch.DefaultOptions()) {
		t.Errorf("as it is: %+v", got)
	}

	bare := commentedKey.ReplaceAllString(text, "$1$2")
	if got, want := loadText(t, bare), perch.DefaultOptions(); !reflect.DeepEqual(got, want) {
		t.Errorf("uncommented\n got  %+v\n want %+v", got, want)
	}

	// Every key is there, in its place: each one that is set to another value by
	// hand would be refused as unknown were it elsewhere.
	keys, err := config.Keys(perch.Options{}, "PERCH_")
	if err != nil {
		t.Fatal(err)
	}
	indented := regexp.MustCompile(`(?m)^( *)#? *(?:- )?([a-z_]+):`)
	found := map[string]bool{}
	for _, m := range indented.FindAllStringSubmatch(text, -1) {
		found[m[2]] = true
	}
	defaults := loadedPaths(t, bare)
	for _, k := range keys {
		name := k.Path[strings.LastIndex(k.Path, ".")+1:]
		if !found[name] || k.Env != "" && !defaults[k.Path] {
			t.Errorf("perch.yaml does not have %s", k.Path)
		}
	}
}

// loadedPaths are the paths of the keys in a file without lists of entries.
func loadedPaths(t *testing.T, text string) map[string]bool {
	t.Helper()
	paths := map[string]bool{}
	var stack []string
	for line := range strings.Lines(text) {
		m := regexp.MustCompile(`^( *)([a-z_]+):`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		stack = append(stack[:len(m[1])/2], m[2])
		paths[strings.Join(stack, ".")] = true
	}
	return paths
}

// TestExampleLists holds that the examples of lists in perch.yaml can be used.
func TestExampleLists(t *testing.T) {
	text := exampleLine.ReplaceAllString(readText(t, "perch.yaml"), "  $1")
	opts := loadText(t, text)
	if len(opts.Auth.Keys) != 2 || len(opts.Auth.Clients) != 1 || len(opts.Topics.Namespaces) != 1 {
		t.Fatalf("keys %d, clients %d, namespaces %d", len(opts.Auth.Keys), len(opts.Auth.Clients), len(opts.Topics.Namespaces))
	}
	if c := opts.Auth.Clients[0]; c.ID != "sensor-7" || c.TokenTTL == 0 || len(c.Channels) != 1 {
		t.Errorf("client %+v", c)
	}
	// What the example can't have is a real hash and real files.
	for _, err := range opts.Check() {
		if !strings.HasPrefix(err.Error(), "auth.keys[") && !strings.HasPrefix(err.Error(), "auth.clients[0].secret_hash") {
			t.Error(err)
		}
	}
}

// TestDocumentedKeys holds that docs/configuration.md has every key, and its
// default as perch.yaml has it.
func TestDocumentedKeys(t *testing.T) {
	text := readText(t, "docs/configuration.md")
	keys, err := config.Keys(perch.Options{}, "PERCH_")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, k := range keys {
		known[k.Path] = true
		if k.Section && k.Path != "auth.keys" && k.Path != "auth.clients" && k.Path != "topics.namespaces" {
			continue
		}
		if !strings.Contains(text, "\n| `"+k.Path+"` |") {
			t.Errorf("docs/configuration.md does not have %s", k.Path)
		}
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| (?:`([^`]+)`)?")
	want := perch.DefaultOptions()
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		path, value := m[1], m[2]
		if !known[path] {
			t.Errorf("docs/configuration.md has %s, which is no key", path)
			continue
		}
		if value == "" || strings.Contains(path, "clients.") || strings.Contains(path, "namespaces.") {
			continue
		}
		opts := perch.DefaultOptions()
		if _, err := config.Load(&opts, config.Source{Flags: map[string]any{path: value}}); err != nil {
			t.Error(err)
		} else if !reflect.DeepEqual(opts, want) {
			t.Errorf("docs/configuration.md: %s is not the default of %s", value, path)
		}
	}
}

// TestEnvironment sets every key that a variable can set, one by one, and
// looks for a change.
func TestEnvironment(t *testing.T) {
	keys, err := config.Keys(perch.Options{}, "PERCH_")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, k := range keys {
		if k.Env == "" {
			continue
		}
		names[k.Env] = true
		changed := false
		// One of these is of the key's type, and not its default.
		for _, value := range []string{"77m", "77", "true", "some text"} {
			opts := perch.DefaultOptions()
			_, err := config.Load(&opts, config.Source{Environ: []string{k.Env + "=" + value}, Prefix: "PERCH_"})
			if err == nil && !reflect.DeepEqual(opts, perch.DefaultOptions()) {
				changed = true
			}
		}
		if !changed {
			t.Errorf("%s does not set %s", k.Env, k.Path)
		}
	}
	for _, name := range []string{
		"PERCH_LISTEN", "PERCH_ADMIN", "PERCH_DATA_DIR", "PERCH_ECHO", "PERCH_INSECURE", "PERCH_API_KEY", "PERCH_AUTH_HMAC_SECRET",
		"PERCH_AUTH_REQUIRE", "PERCH_TOPICS_DEFAULT_ALLOW_SUBSCRIBE_FOR_CLIENT", "PERCH_WEBSOCKET_ALLOWED_ORIGINS",
		"PERCH_HEARTBEAT_INTERVAL", "PERCH_LIMITS_PENDING_BYTES",
	} {
		if !names[name] {
			t.Errorf("no key is set by %s", name)
		}
	}
}

func TestSizesAndSecretsAreMarked(t *testing.T) {
	opts := perch.DefaultOptions()
	for _, path := range []string{"websocket.message_size", "limits.pending_bytes", "limits.inbox_bytes", "pool.queue_bytes", "pool.session_bytes", "backend.response_size"} {
		if _, err := config.Load(&opts, config.Source{Flags: map[string]any{path: "1MiB"}}); err != nil {
			t.Error(err)
		}
	}
	if opts.WebSocket.MessageSize != 1<<20 || opts.Pool.SessionBytes != 1<<20 {
		t.Errorf("sizes %+v %+v", opts.WebSocket, opts.Pool)
	}
	for _, text := range []string{
		"auth: {hmac_secret: s}", "api: {key: s}", "auth: {clients: [{id: a, secret_hash: s}]}",
		"backend: {secret: s}", `backend: {static_headers: ["Authorization: s"]}`,
	} {
		file := filepath.Join(t.TempDir(), "perch.yaml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		opts := perch.DefaultOptions()
		if warnings, err := config.Load(&opts, config.Source{File: file}); err != nil || len(warnings) != 1 {
			t.Errorf("%s: warnings %q, %v", text, warnings, err)
		}
	}
}
