package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

type testOptions struct {
	Listen  string        `koanf:"listen"`
	DataDir string        `koanf:"data_dir"`
	Loops   int           `koanf:"loops"`
	Small   int8          `koanf:"small"`
	Rate    float64       `koanf:"rate"`
	Echo    bool          `koanf:"echo"`
	Size    int           `koanf:"size" unit:"bytes"`
	Wait    time.Duration `koanf:"wait"`
	Auth    testAuth      `koanf:"auth"`
	Origins []string      `koanf:"origins"`
	Hidden  func()        `koanf:"-"`
	_       int
}

type testAuth struct {
	HMACSecret string        `koanf:"hmac_secret" secret:"true"`
	TTL        time.Duration `koanf:"ttl"`
	Clients    []testClient  `koanf:"clients"`
	Rules      testRules     `koanf:"rules"`
	URL        string        `koanf:"url" secret:"url"`
}

type testClient struct {
	ID       string        `koanf:"id"`
	Channels []string      `koanf:"channels"`
	TTL      time.Duration `koanf:"ttl"`
}

type testRules struct {
	AllowSubscribeForClient    bool `koanf:"allow_subscribe_for_client"`
	AllowSubscribeForAnonymous bool `koanf:"allow_subscribe_for_anonymous"`
}

func testDefaults() testOptions {
	return testOptions{
		Listen: "127.0.0.1:8000", Loops: 2, Size: 1024, Wait: time.Second,
		Origins: []string{"https://a", "https://b"},
		Auth:    testAuth{TTL: time.Hour, Clients: []testClient{{ID: "default", TTL: time.Minute}}},
	}
}

// write makes a file that only its owner can read.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "perch.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPrecedence(t *testing.T) {
	const file = "listen: file\nauth:\n  ttl: 2h\nsize: 2KiB\n"
	tests := []struct {
		name    string
		file    string
		environ []string
		flags   map[string]any
		want    func(*testOptions)
	}{
		{"defaults", "", nil, nil, func(*testOptions) {}},
		{"file over default", file, nil, nil, func(o *testOptions) {
			o.Listen, o.Auth.TTL, o.Size = "file", 2*time.Hour, 2048
		}},
		{"environment over file", file, []string{"PERCH_LISTEN=env", "PERCH_SIZE=3MiB"}, nil, func(o *testOptions) {
			o.Listen, o.Auth.TTL, o.Size = "env", 2*time.Hour, 3<<20
		}},
		{"flag over environment", file, []string{"PERCH_LISTEN=env", "PERCH_ECHO=1"},
			map[string]any{"listen": "flag", "echo": false, "auth.ttl": time.Minute}, func(o *testOptions) {
				o.Listen, o.Auth.TTL, o.Size = "flag", time.Minute, 2048
			}},
		{"empty variable is not set", file, []string{"PERCH_LISTEN=", "PERCH_LOOPS="}, nil, func(o *testOptions) {
			o.Listen, o.Auth.TTL, o.Size = "file", 2*time.Hour, 2048
		}},
		{"a list replaces the one before", "origins: [x]\nauth: {clients: [{id: one}]}", nil, nil, func(o *testOptions) {
			o.Origins, o.Auth.Clients = []string{"x"}, []testClient{{ID: "one"}}
		}},
		{"a longer list too", "auth:\n  clients:\n    - id: one\n    - id: two\n      channels: [news, alerts]\n      ttl: 5m\n", nil, nil,
			func(o *testOptions) {
				o.Auth.Clients = []testClient{{ID: "one"}, {ID: "two", Channels: []string{"news", "alerts"}, TTL: 5 * time.Minute}}
			}},
		{"an empty list clears", "origins: []\nauth: {clients: []}", nil, nil, func(o *testOptions) {
			o.Origins, o.Auth.Clients = nil, nil
		}},
		{"a comma separated list", "origins: [x]", []string{"PERCH_ORIGINS=https://c, https://d,"}, nil, func(o *testOptions) {
			o.Origins = []string{"https://c", "https://d"}
		}},
		{"sections and lists without content", "auth:\norigins:\n", nil, nil, func(*testOptions) {}},
		{"an empty file", "# nothing\n", nil, nil, func(*testOptions) {}},
		{"an alias", "listen: &a x\ndata_dir: *a\n", nil, nil, func(o *testOptions) { o.Listen, o.DataDir = "x", "x" }},
		{"every type", "echo: true\nloops: 0x10\nrate: 1.5\nwait: 1m30s\nsize: \"7\"\nsmall: -3\n", nil, nil, func(o *testOptions) {
			o.Echo, o.Loops, o.Rate, o.Wait, o.Size, o.Small = true, 16, 1.5, 90*time.Second, 7, -3
		}},
		{"what is not ours", "", []string{"HOME=/", "perch_listen=x", "PERCHED=1", "PERCH_CONFIG=f", "broken"}, nil, func(*testOptions) {}},
		{"links of Kubernetes services", "", []string{
			"PERCH_SERVICE_HOST=10.0.0.1", "PERCH_SERVICE_PORT=8000", "PERCH_SERVICE_PORT_PUBLIC=8000",
			"PERCH_PORT=tcp://10.0.0.1:8000", "PERCH_PORT_8000_TCP=tcp://10.0.0.1:8000", "PERCH_PORT_8000_TCP_ADDR=10.0.0.1",
			"PERCH_ADMIN_PORT=tcp://10.0.0.2:8001", "PERCH_ADMIN_SERVICE_HOST=10.0.0.2",
		}, nil, func(*testOptions) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := Source{Environ: tt.environ, Prefix: "PERCH_", Known: []string{"PERCH_CONFIG"}, Flags: tt.flags}
			if tt.file != "" {
				src.File = write(t, tt.file)
			}
			got, want := testDefaults(), testDefaults()
			tt.want(&want)
			warnings, err := Load(&got, src)
			if err != nil {
				t.Fatal(err)
			}
			if len(warnings) != 0 {
				t.Errorf("warnings %q", warnings)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// TestErrors holds that everything wrong is said, each with its place, and that
// nothing is changed then.
func TestErrors(t *testing.T) {
	tests := []struct {
		name    string
		file    string
		environ []string
		flags   map[string]any
		want    []string // F is the file's path
	}{
		{"unknown keys", "lisen: x\nauth:\n  rules:\n    allow_subscribe: true\n  hmac_secret: s\n  nonsense: 1\nhmac_secret: s\n", nil, nil, []string{
			"F:1: lisen: unknown key (did you mean listen?)",
			"F:4: auth.rules.allow_subscribe: unknown key (did you mean allow_subscribe_for_client?)",
			"F:6: auth.nonsense: unknown key",
			"F:7: hmac_secret: unknown key (did you mean auth.hmac_secret?)",
		}},
		{"duplicates", "listen: a\nloops: 1\nlisten: b\nauth:\n  ttl: 1h\n  ttl: 2h\n", nil, nil, []string{
			"F:3: listen: given twice (first in line 1)",
			"F:6: auth.ttl: given twice (first in line 5)",
		}},
		{"wrong types", "listen: 8000\nloops: two\nsmall: 300\nrate: fast\necho: \"yes\"\nsize: 5MB\nwait: 25\norigins: x\n" +
			"auth:\n  hmac_secret: 12345\n  ttl: [1h]\n  clients: {id: x}\n  rules: 5\ndata_dir:\n", nil, nil, []string{
			"F:1: listen: must be text: put it in quotes",
			`F:2: loops: "two" must be a whole number`,
			"F:3: small: 300 is too large",
			`F:4: rate: "fast" must be a number`,
			`F:5: echo: "yes" must be true or false`,
			`F:6: size: "5MB" must be a size such as 65536, 64KiB or 1MiB`,
			`F:7: wait: "25" must be a duration with its unit, such as 25s or 1h30m`,
			"F:8: origins: must be a list of texts, each behind a dash",
			"F:10: auth.hmac_secret: must be text: put it in quotes",
			"F:11: auth.ttl: must be a duration with its unit, such as 25s or 1h30m",
			"F:12: auth.clients: must be a list of entries, each behind a dash",
			"F:13: auth.rules: must be a section of keys, such as allow_subscribe_for_client: …",
			"F:14: data_dir: has no value: it must be text, or left out",
		}},
		{"inside lists", "origins: [a, 5, [b]]\nauth:\n  clients:\n    - id: one\n      chanels: [a]\n    -\n    - ttl: 5\n      channels: [1]\n", nil, nil, []string{
			"F:1: origins[1]: must be text: put it in quotes",
			"F:1: origins[2]: must be text",
			"F:5: auth.clients[0].chanels: unknown key (did you mean channels?)",
			"F:6: auth.clients[1]: is empty",
			`F:7: auth.clients[2].ttl: "5" must be a duration with its unit, such as 25s or 1h30m`,
			"F:8: auth.clients[2].channels[0]: must be text: put it in quotes",
		}},
		{"too large", "loops: 99999999999999999999\nsize: 9999999TiB\n", []string{"PERCH_LOOPS=99999999999999999999", "PERCH_SIZE=99999999999999999999"}, nil, []string{
			`F:1: loops: "99999999999999999999" must be a whole number`,
			"F:2: size: 9999999TiB is too large",
			"PERCH_LOOPS: loops: 99999999999999999999 is too large",
			"PERCH_SIZE: size: 99999999999999999999 is too large",
		}},
		{"not YAML", "listen: [a\n", nil, nil, []string{"F: not YAML: line 1: did not find expected ',' or ']'"}},
		{"not a mapping", "- a\n", nil, nil, []string{"F:1: must be a section of keys, such as listen: …"}},
		{"two documents", "listen: a\n---\nlisten: b\n", nil, nil, []string{"F:2: a second document: keep everything in one"}},
		{"a key that is none", "[a]: b\n? {x: y}\n: z\n", nil, nil, []string{"F:1: a key must be a plain word", "F:2: a key must be a plain word"}},
		{"an alias that holds itself", "auth: &a\n  rules: *a\n", nil, nil, []string{"F:2: auth.rules.rules: unknown key (did you mean auth.rules?)"}},
		{"the environment", "", []string{
			"PERCH_LISTNE=x", "PERCH_LOOPS=two", "PERCH_AUTH_CLIENTS=x", "PERCH_AUTH=x", "PERCH_WAIT=25", "PERCH_QQ=", "PERCH_PORT=9000",
			"PERCH_CONFIGG=x", "PERCH_AUTH_TTL_=1h",
		}, nil, []string{
			"PERCH_LISTNE: unknown variable (did you mean PERCH_LISTEN?)",
			`PERCH_LOOPS: loops: "two" must be a whole number`,
			"PERCH_AUTH_CLIENTS: unknown variable (auth.clients has keys of its own: set them in the file)",
			"PERCH_AUTH: unknown variable (auth is a section: add a key's name, as in PERCH_AUTH_HMAC_SECRET)",
			`PERCH_WAIT: wait: "25" must be a duration with its unit, such as 25s or 1h30m`,
			"PERCH_QQ: unknown variable",
			"PERCH_PORT: unknown variable",
			"PERCH_CONFIGG: unknown variable (did you mean PERCH_CONFIG?)",
			"PERCH_AUTH_TTL_: unknown variable (did you mean PERCH_AUTH_TTL?)",
		}},
		{"flags", "", nil, map[string]any{"loops": "x", "nothing": 1, "data_dir": 5}, []string{
			`--data-dir: data_dir: "5" must be text`,
			`--loops: loops: "x" must be a whole number`,
			"--nothing: nothing: unknown key",
		}},
		{"all sources at once", "lisen: x\n", []string{"PERCH_LOOPS=two"}, map[string]any{"echo": "maybe"}, []string{
			"F:1: lisen: unknown key (did you mean listen?)",
			`PERCH_LOOPS: loops: "two" must be a whole number`,
			`--echo: echo: "maybe" must be true or false`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := Source{Environ: tt.environ, Prefix: "PERCH_", Known: []string{"PERCH_CONFIG"}, Flags: tt.flags}
			if tt.file != "" {
				src.File = write(t, tt.file)
			}
			got := testDefaults()
			_, err := Load(&got, src)
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			want := tt.want
			for i := range want {
				if rest, ok := strings.CutPrefix(want[i], "F:"); ok {
					want[i] = src.File + ":" + rest
				}
			}
			for i := range max(len(lines), len(want)) {
				var l, w string
				if i < len(lines) {
					l = lines[i]
				}
				if i < len(want) {
					w = want[i]
				}
				if l != w {
					t.Errorf("line %d\n got  %s\n want %s", i, l, w)
				}
			}
			if !reflect.DeepEqual(got, testDefaults()) {
				t.Error("the destination was changed")
			}
			var first *Error
			if !errors.As(err, &first) {
				t.Error("not an *Error")
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	got := testDefaults()
	name := filepath.Join(t.TempDir(), "none.yaml")
	_, err := Load(&got, Source{File: name})
	if want := name + ": can't be read: no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestSecretsAreNotQuoted(t *testing.T) {
	const secret = "hunter2hunter2"
	file := write(t, "auth:\n  hmac_secret: ["+secret+"]\n")
	got := testDefaults()
	_, err := Load(&got, Source{File: file, Prefix: "PERCH_", Flags: map[string]any{"auth.hmac_secret": []string{secret}}})
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("got %v", err)
	}
}

func TestSecretFileWarning(t *testing.T) {
	tests := []struct {
		name, text string
		mode       os.FileMode
		want       bool
	}{
		{"secret, readable", "auth: {hmac_secret: s}", 0o644, true},
		{"secret, readable by the group", "auth: {hmac_secret: s}", 0o640, true},
		{"secret, private", "auth: {hmac_secret: s}", 0o600, false},
		{"empty secret, readable", `auth: {hmac_secret: ""}`, 0o644, false},
		{"no secret, readable", "listen: x", 0o644, false},
		{"address with a password, readable", `auth: {url: "nats://user:s@host"}`, 0o644, true},
		{"address with a password, private", `auth: {url: "nats://user:s@host"}`, 0o600, false},
		{"address without one, readable", `auth: {url: "nats://host"}`, 0o644, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := write(t, tt.text)
			if err := os.Chmod(file, tt.mode); err != nil {
				t.Fatal(err)
			}
			got := testDefaults()
			warnings, err := Load(&got, Source{File: file})
			if err != nil {
				t.Fatal(err)
			}
			if (len(warnings) == 1) != tt.want {
				t.Fatalf("warnings %q", warnings)
			}
			if tt.want && !strings.HasSuffix(warnings[0], ": chmod 600 "+file) {
				t.Errorf("warning %q does not say what to do", warnings[0])
			}
		})
	}
}

// fileOf is a file of a user.
type fileOf struct {
	fs.FileInfo
	user uint32
	mode fs.FileMode
}

func (f fileOf) Mode() fs.FileMode { return f.mode }
func (f fileOf) Sys() any          { return &syscall.Stat_t{Uid: f.user} }

func TestReadableByOthers(t *testing.T) {
	tests := []struct {
		name string
		user uint32
		mode fs.FileMode
		euid int
		want bool
	}{
		{"its own, private", 7, 0o600, 7, false},
		{"its own, for the group", 7, 0o640, 7, true},
		{"its own, for all", 7, 0o604, 7, true},
		{"root's, for the group", 0, 0o440, 7, false},
		{"root's, the group may write", 0, 0o460, 7, true},
		{"root's, for all", 0, 0o444, 7, true},
		{"root's, for the group, read by root", 0, 0o440, 0, true},
		{"another's, for the group, read by root", 7, 0o440, 0, true},
	}
	for _, tt := range tests {
		if got := readableByOthers(fileOf{user: tt.user, mode: tt.mode}, tt.euid); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// TestDestination refuses structs that no configuration can fill: the
// programmer's errors.
func TestDestination(t *testing.T) {
	tests := []struct {
		name string
		dst  any
		want string
	}{
		{"no pointer", testDefaults(), "want a pointer"},
		{"nil", (*testOptions)(nil), "want a pointer"},
		{"no struct", new(int), "want a struct"},
		{"no tag", &struct{ A int }{}, "has no koanf tag"},
		{"a type that can't be", &struct {
			A map[string]int `koanf:"a"`
		}{}, "can't be configured"},
		{"the same key twice", &struct {
			A int `koanf:"a"`
			B int `koanf:"a"`
		}{}, "is taken"},
		{"the same variable twice", &struct {
			A int `koanf:"a_b"`
			B struct {
				C int `koanf:"b"`
			} `koanf:"a"`
		}{}, "share the variable X_A_B"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(tt.dst, Source{Prefix: "X_"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	keys, err := Keys(&testOptions{}, "PERCH_")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Key{}
	for _, k := range keys {
		got[k.Path] = k
	}
	for _, want := range []Key{
		{"data_dir", "PERCH_DATA_DIR", false},
		{"auth", "", true},
		{"auth.hmac_secret", "PERCH_AUTH_HMAC_SECRET", false},
		{"auth.clients", "", true},
		{"auth.clients.id", "", false},
		{"auth.rules.allow_subscribe_for_client", "PERCH_AUTH_RULES_ALLOW_SUBSCRIBE_FOR_CLIENT", false},
	} {
		if got[want.Path] != want {
			t.Errorf("got %+v, want %+v", got[want.Path], want)
		}
	}
}

func TestParseSize(t *testing.T) {
	tests := []struct {
		text string
		want int64
		ok   bool
	}{
		{"0", 0, true}, {"65536", 65536, true}, {"64KiB", 65536, true}, {"1 MiB", 1 << 20, true},
		{"2GiB", 2 << 30, true}, {"1TiB", 1 << 40, true}, {"12B", 12, true}, {"-1KiB", -1024, true},
		{"8388607TiB", 8388607 << 40, true}, {"8388608TiB", 0, false},
		{"", 0, false}, {"KiB", 0, false}, {"1kb", 0, false}, {"1.5MiB", 0, false}, {"1MB", 0, false}, {"1KiBB", 0, false},
	}
	for _, tt := range tests {
		got, err := parseSize(tt.text)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("parseSize(%q) = %d, %v", tt.text, got, err)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add([]byte("listen: a\nauth:\n  clients:\n    - id: x\n"))
	f.Add([]byte("auth: &a\n  rules: *a\n"))
	f.Add([]byte("a: &a [*a]\norigins: *a\n"))
	f.Add([]byte("? [a]\n: b\n<<: {listen: x}\n---\n"))
	root, err := schemaOf(reflect.TypeFor[testOptions]())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &fileReader{name: "f", root: root}
		r.read(data)
		for _, err := range r.errs {
			if strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("an error of two lines: %q", err)
			}
		}
	})
}
