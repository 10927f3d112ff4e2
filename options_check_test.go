package perch_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"perch"
	"perch/topic"
)

const argon2idExample = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g"

func bcryptHash(t *testing.T) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(hash)
}

func TestCheckGood(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		set  func(*perch.Options)
	}{
		{"defaults", func(*perch.Options) {}},
		{"zero", func(o *perch.Options) { *o = perch.Options{} }},
		{"every address", func(o *perch.Options) { o.Listen, o.Admin = ":8000", "[::]:8001" }},
		{"port 0 twice", func(o *perch.Options) { o.Listen, o.Admin = "127.0.0.1:0", "127.0.0.1:0" }},
		{"one port on two addresses", func(o *perch.Options) { o.Listen, o.Admin = "127.0.0.1:80", "127.0.0.2:80" }},
		{"a name", func(o *perch.Options) { o.Listen = "localhost:8000" }},
		{"dev", func(o *perch.Options) { o.Dev = true }},
		{"dev on IPv6", func(o *perch.Options) { o.Dev, o.Listen = true, "[::1]:8000" }},
		{"keys", func(o *perch.Options) {
			o.Auth.Keys = []perch.KeyOptions{{File: key}}
			o.Auth.JWKSURL = "https://id.example.com/jwks.json"
		}},
		{"clients and namespaces", func(o *perch.Options) {
			o.Topics.Namespaces = []topic.NamespaceOptions{{Name: "chat"}, {Name: "alerts"}}
			o.Topics.UserPersonal, o.Topics.PersonalNamespace = true, "alerts"
			o.Auth.Clients = []perch.ClientOptions{
				{ID: "one", SecretHash: bcryptHash(t), Channels: []string{"news", "chat:1", "$chat:2"}, TokenTTL: time.Minute},
				{ID: "two", SecretHash: argon2idExample, TokenTTL: 1000 * time.Hour},
				{ID: "three", SecretHash: argon2idExample, RefreshTTL: -1},
			}
		}},
		{"no refresh tokens", func(o *perch.Options) { o.Auth.RefreshTTL = -1 }},
		{"origins", func(o *perch.Options) {
			o.WebSocket.AllowedOrigins = []string{"*", "https://*.example.com", "http://localhost:3000", "capacitor://localhost"}
		}},
		{"a backend", func(o *perch.Options) {
			o.Backend.Connect, o.Backend.Subscribe, o.Backend.Publish = "https://app.example.com/connect", "http://10.0.0.1:8080", "http://[::1]/x?y"
			o.Topics.Default.SubscribeProxyEnabled, o.Topics.Default.PublishProxyEnabled = true, true
			o.Backend.Headers, o.Backend.StaticHeaders = []string{"Cookie", "authorization"}, []string{"X-Env: test"}
			o.Backend.Retries, o.Backend.BreakerFailures = -1, -1
		}},
		{"a path beside ours", func(o *perch.Options) { o.WebSocket.Path = "/v1socket" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := perch.DefaultOptions()
			tt.set(&o)
			if errs := o.Check(); errs != nil {
				t.Errorf("got %v", errs)
			}
		})
	}
}

func TestCheckErrors(t *testing.T) {
	dir := t.TempDir()
	notPEM := filepath.Join(dir, "not.pem")
	if err := os.WriteFile(notPEM, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	hash := bcryptHash(t)
	tests := []struct {
		name string
		set  func(*perch.Options)
		want []string // what each error begins with
	}{
		{"addresses", func(o *perch.Options) { o.Listen, o.Admin = "8000", "localhost:http" }, []string{
			`listen: "8000" must be host:port, such as 127.0.0.1:8000 or :8000`,
			`admin: "localhost:http" must end in a port from 0 to 65535`,
		}},
		{"odd addresses", func(o *perch.Options) { o.Listen, o.Admin = "http://x:80", "*:08001" }, []string{
			`listen: "http://x:80" must be host:port`,
			`admin: "*:08001" must have its port written as 8001`,
		}},
		{"an address that is none", func(o *perch.Options) { o.Listen = "*:8000" }, []string{
			`listen: "*:8000" must have an address or a host name before the port`,
		}},
		{"the same address", func(o *perch.Options) { o.Listen, o.Admin = ":8000", "127.0.0.1:8000" }, []string{
			"admin: 127.0.0.1:8000 is taken by listen (:8000): give it a port of its own",
		}},
		{"dev from outside", func(o *perch.Options) { o.Dev, o.Listen, o.Admin = true, ":8000", "192.0.2.1:8001" }, []string{
			"listen: :8000 can be reached from outside, which dev mode's known secret forbids: use 127.0.0.1:8000, or leave dev out",
			"admin: 192.0.2.1:8001 can be reached from outside",
		}},
		{"data_dir", func(o *perch.Options) { o.DataDir = notPEM }, []string{"data_dir: "}},
		{"choices", func(o *perch.Options) {
			o.Log.Level, o.Log.Format, o.Auth.Require, o.Pool.Overflow = "verbose", "xml", "foo", "drop"
		}, []string{
			`log.level: "verbose" must be one of debug, info, warn, error`,
			`log.format: "xml" must be one of text, json`,
			`auth.require: "foo" must be one of connect, handshake, none`,
			`pool.overflow: "drop" must be one of reply, close`,
		}},
		{"numbers", func(o *perch.Options) {
			o.Loops, o.Topics.MaxSubscriptions, o.Topics.MaxLength = 257, -1, 1<<16
			o.WebSocket.MessageSize, o.Heartbeat.Misses = 100, 101
			o.Limits.Connections, o.Limits.HTTPConnections, o.Limits.PendingBytes, o.Limits.InboxBytes = -1, -1, 1, 1
			o.Pool.Workers, o.Pool.QueueBytes, o.Pool.SessionBytes = -5, 10, 10
		}, []string{
			"loops: 257 must be from 0 to 256", "topics.max_subscriptions: -1 must be from 1", "topics.max_length: 65536 must be from 1 to 65535",
			"websocket.message_size: 100 must be from 1024", "heartbeat.misses: 101 must be from 1 to 100",
			"limits.connections: -1 ", "limits.http_connections: -1 ", "limits.pending_bytes: 1 ", "limits.inbox_bytes: 1 ",
			"pool.workers: -5 ", "pool.queue_bytes: 10 ", "pool.session_bytes: 10 ",
		}},
		{"backend", func(o *perch.Options) {
			b := &o.Backend
			b.Connect, b.RPC, b.Refresh = "app.example.com", "http://user:hunter2@app/", "http://app/"
			o.Auth.Require = "handshake"
			b.Headers, b.StaticHeaders, b.Secret = []string{"Host", "a b"}, []string{"X-Key hunter2", "Content-Length: hunter2"}, " hunter2"
			b.Timeout, b.Connections, b.IdleTimeout, b.Wait = 8*time.Second, -1, -1, 2*time.Minute
			b.ResponseSize, b.Retries, b.BreakerFailures, b.BreakerOpen = 10, 11, -2, -1
			o.Topics.Default.SubscribeProxyEnabled = true
			o.Topics.Namespaces = []topic.NamespaceOptions{{Name: "chat", PublishProxyEnabled: true, SubRefreshProxyEnabled: true}}
		}, []string{
			"backend.connect: must be an http or https URL", "backend.rpc: must hold no user and password: put a secret into backend.secret",
			"backend.connect: is never asked with auth.require: handshake",
			"backend.headers[0]: Host can't go with calls", `backend.headers[1]: "a b" must be the name of a header`,
			`backend.static_headers[0]: must be "Name: value"`, "backend.static_headers[1]: Content-Length can't go with calls",
			"backend.secret: must be printable ASCII",
			"backend.timeout: 8s must not be above 7.5s: a client waits 10s at the most, and three quarters of limits.connect_timeout (10s)",
			"backend.connections: -1 ", "backend.idle_timeout: ", "backend.wait: 2m ", "backend.response_size: 10 ", "backend.retries: 11 ",
			"backend.breaker_failures: -2 ", "backend.breaker_open: ",
			"topics.default.subscribe_proxy_enabled: needs the URL to ask at: set backend.subscribe",
			"topics.namespaces[0].sub_refresh_proxy_enabled: needs the URL", "topics.namespaces[0].publish_proxy_enabled: needs the URL",
		}},
		{"durations", func(o *perch.Options) {
			o.Auth.JWKSRefresh, o.Limits.HandshakeTimeout, o.Limits.ConnectTimeout, o.Limits.HTTPTimeout, o.Drain.Budget = time.Millisecond, -1, 2*time.Hour, time.Millisecond, -time.Second
			o.Auth.TokenTTL, o.Auth.RefreshTTL = 2*time.Hour, time.Hour
		}, []string{
			"auth.jwks_refresh: 1ms must be from 1s to 24h", "auth.refresh_ttl: 1h must not be shorter than auth.token_ttl (2h)",
			"limits.handshake_timeout: -1ns ", "limits.connect_timeout: 2h must be from 10ms to 1h", "limits.http_timeout: 1ms must be from 10ms to 1h", "drain.budget: -1s must be from 0s to 1h",
		}},
		{"the heartbeat", func(o *perch.Options) { o.Heartbeat.Timeout = 30 * time.Second }, []string{
			"heartbeat.timeout: 30s must be shorter than heartbeat.interval (25s)",
		}},
		{"keys", func(o *perch.Options) {
			o.Auth.Keys = []perch.KeyOptions{{ID: "a"}, {ID: "a", File: filepath.Join(dir, "none.pem")}, {File: notPEM}}
			o.Auth.JWKSURL = "id.example.com"
			o.API.Key = "two\nlines"
		}, []string{
			"api.key: must be printable ASCII",
			"auth.keys[0].file: is missing",
			`auth.keys[1].id: "a" is the id of auth.keys[0] already`,
			"auth.keys[1].file: open " + filepath.Join(dir, "none.pem") + ": no such file or directory",
			"auth.keys[2].file: " + notPEM,
			"auth.jwks_url: must be an http or https URL",
		}},
		{"clients", func(o *perch.Options) {
			o.Auth.Clients = []perch.ClientOptions{
				{},
				{ID: "a", SecretHash: "plain-secret", Channels: []string{"", "chat:1", strings.Repeat("x", 256)}},
				{ID: "a", SecretHash: "$argon2id$v=19$m=0,t=1,p=1$x$y"},
				{ID: "ä", SecretHash: hash, TokenTTL: time.Hour, RefreshTTL: time.Minute},
				{ID: "cut", SecretHash: hash[:59]},
			}
		}, []string{
			"auth.clients[0].id: is missing", "auth.clients[0].secret_hash: is missing",
			"auth.clients[1].secret_hash: must be a bcrypt", "auth.clients[1].channels[0]: is empty",
			`auth.clients[1].channels[1]: "chat:1" is of the namespace "chat", which is not in topics.namespaces`,
			"auth.clients[1].channels[2]: is longer than topics.max_length (255 bytes)",
			`auth.clients[2].id: "a" is the id of auth.clients[1] already`, "auth.clients[2].secret_hash: must be a bcrypt",
			`auth.clients[3].id: "ä" must be printable ASCII`, "auth.clients[3].refresh_ttl: 1m must not be shorter than auth.clients[3].token_ttl (1h)",
			"auth.clients[4].secret_hash: must be a bcrypt",
		}},
		{"topics", func(o *perch.Options) {
			o.Topics.Default.Name = "x"
			o.Topics.Namespaces = []topic.NamespaceOptions{{Name: "chat"}, {Name: "chat"}, {}, {Name: "a b"}, {Name: "ok", ChannelRegex: "("}}
			o.Topics.PersonalNamespace = "none"
		}, []string{
			"topics.default.name: must be empty", `topics.namespaces[1].name: "chat" is the name of topics.namespaces[0] already`,
			"topics.namespaces[2].name: is missing", `topics.namespaces[3].name: "a b" must be`, "topics.namespaces[4].channel_regex: ",
			`topics.personal_namespace: "none" is not in topics.namespaces`,
		}},
		{"the default's pattern", func(o *perch.Options) { o.Topics.Default.ChannelRegex = "[" }, []string{"topics.default.channel_regex: "}},
		{"origins", func(o *perch.Options) {
			o.WebSocket.AllowedOrigins = []string{"example.com", "https://example.com/", "https://", "null", "https://a,https://b", "https://[a"}
		}, []string{
			`websocket.allowed_origins[0]: "example.com" must be scheme://host`, "websocket.allowed_origins[1]: ", "websocket.allowed_origins[2]: ",
			"websocket.allowed_origins[3]: ", "websocket.allowed_origins[4]: ",
			"websocket.allowed_origins[5]: ",
		}},
		{"paths of listeners", func(o *perch.Options) { o.WebSocket.UniPath, o.SSE.Path = "/v1/x", "events" },
			[]string{"websocket.uni_path: ", `sse.path: "events" must begin with /`}},
		{"one path twice", func(o *perch.Options) { o.WebSocket.UniPath = o.WebSocket.Path },
			[]string{`websocket.uni_path: "/connection/websocket" is websocket.path already`}},
		{"one path three times", func(o *perch.Options) { o.WebSocket.Path, o.WebSocket.UniPath, o.SSE.Path = "/a", "/a", "/a" },
			[]string{"websocket.uni_path: ", "sse.path: "}},
		{"no listeners", func(o *perch.Options) { o.WebSocket.UniPath, o.SSE.Path = perch.PathOff, perch.PathOff }, nil},
		{"NATS that nobody asks", func(o *perch.Options) { o.NATS.URL = "nats://127.0.0.1:4222" }, []string{
			"nats.url: is of engine: nats, and engine is memory: set engine: nats, or leave it out",
		}},
		{"a server that is not started", func(o *perch.Options) {
			o.NATS.Listen = "127.0.0.1:4222"
		}, []string{"nats.listen: is of engine: nats, and engine is memory"}},
		{"a leaf that is none", func(o *perch.Options) { o.NATS.Leaf.URL, o.NATS.Leaf.Site = "tls://hub:7422", "berlin" }, []string{
			"nats.leaf.url: is of engine: nats, and engine is memory",
		}},
		{"no clients", func(o *perch.Options) { o.WebSocket.Path = perch.PathOff }, []string{"websocket.path: "}},
	}
	for _, p := range []string{"ws", "/", "/echo", "/demo", "/demo/ws", "/v1", "/v1/token", "/.well-known/jwks.json", "/a/", "/a//b", "/a/../b", "/a?b", "/ä"} {
		tests = append(tests, struct {
			name string
			set  func(*perch.Options)
			want []string
		}{"path " + p, func(o *perch.Options) { o.WebSocket.Path = p }, []string{"websocket.path: "}})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := perch.DefaultOptions()
			tt.set(&o)
			errs := o.Check()
			for i := range max(len(errs), len(tt.want)) {
				switch {
				case i >= len(errs):
					t.Errorf("missing: %s", tt.want[i])
				case i >= len(tt.want):
					t.Errorf("not expected: %v", errs[i])
				case !strings.HasPrefix(errs[i].Error(), tt.want[i]):
					t.Errorf("got  %v\nwant %s…", errs[i], tt.want[i])
				case strings.Contains(errs[i].Error(), "\n"):
					t.Errorf("more than one line: %q", errs[i])
				}
			}
		})
	}
}

// TestCheckNATSAddresses: an address that can't be read is not shown, as the
// password is in it.
func TestCheckNATSAddresses(t *testing.T) {
	for _, address := range []string{"tls://berlin:s3cr/et@hub:7422", "nats://a:4222,nats://perch:s3cr%et@b:4222"} {
		for key, set := range map[string]func(*perch.Options){
			"nats.url":      func(o *perch.Options) { o.NATS.URL = address },
			"nats.leaf.url": func(o *perch.Options) { o.NATS.Leaf.URL, o.NATS.Leaf.Site = address, "berlin" },
		} {
			o := perch.DefaultOptions()
			o.Engine = perch.EngineNATS
			set(&o)
			errs := o.Check()
			if want := key + ": not an address; escape"; len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), want) || strings.Contains(errs[0].Error(), "s3cr") {
				t.Errorf("%s %q: %v, want %s…", key, address, errs, want)
			}
		}
	}
}

func TestCheckShowsNoSecret(t *testing.T) {
	o := perch.DefaultOptions()
	o.API.Key = "hunter2\x00"
	o.Auth.HMACSecret = "hunter2"
	o.Auth.Clients = []perch.ClientOptions{{ID: "a", SecretHash: "hunter2"}, {ID: "b", SecretHash: "$argon2id$hunter2"}}
	errs := o.Check()
	if len(errs) != 3 {
		t.Errorf("got %d errors: %v", len(errs), errs)
	}
	for _, err := range errs {
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a secret is shown: %v", err)
		}
	}
}

func TestWithDefaults(t *testing.T) {
	if got := (perch.Options{}).WithDefaults(); !reflect.DeepEqual(got, perch.DefaultOptions()) {
		t.Errorf("zero options became %+v", got)
	}
	o := perch.Options{Listen: ":1", Heartbeat: perch.HeartbeatOptions{Interval: time.Minute}}.WithDefaults()
	if o.Listen != ":1" || o.Heartbeat.Interval != time.Minute || o.Heartbeat.Timeout != 8*time.Second {
		t.Errorf("got %+v", o)
	}
}

func TestWithDev(t *testing.T) {
	base := perch.DefaultOptions()
	base.Topics.Namespaces = []topic.NamespaceOptions{{Name: "chat"}}
	base.Auth.Clients = make([]perch.ClientOptions, 1, 4)
	base.Auth.Clients[0] = perch.ClientOptions{ID: "mine"}
	o := base.WithDev()
	d := o.Topics.Default
	if !o.Dev || !o.Echo || !o.Demo || !d.AllowSubscribeForClient || !d.AllowPublishForClient || !d.AllowSubscribeForAnonymous {
		t.Errorf("not permissive: %+v", o)
	}
	if o.Insecure {
		t.Error("insecure is on: the way of the token would not be seen")
	}
	if o.Topics.Namespaces[0].AllowSubscribeForClient {
		t.Error("the rules of a namespace were changed")
	}
	if len(o.Auth.Clients) != 2 || o.Auth.Clients[1].ID != perch.DevClient || !o.Auth.Clients[1].AnyUser {
		t.Fatalf("clients %+v", o.Auth.Clients)
	}
	if err := bcrypt.CompareHashAndPassword([]byte(o.Auth.Clients[1].SecretHash), []byte(perch.DevSecret)); err != nil {
		t.Error(err)
	}
	if spare := base.Auth.Clients[:2][1]; spare.ID != "" {
		t.Error("the caller's array was written to")
	}
	if again := o.WithDev(); !reflect.DeepEqual(again, o) {
		t.Error("twice is not once")
	}
	own := perch.Options{Auth: perch.AuthOptions{Clients: []perch.ClientOptions{{ID: perch.DevClient, SecretHash: "h"}}}}
	if got := own.WithDev().Auth.Clients; len(got) != 1 || got[0].SecretHash != "h" {
		t.Errorf("a configured client was replaced: %+v", got)
	}
}
