package perch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"perch"
	"perch/internal/testkit"
	"perch/topic"
)

// reloadable starts a server whose options a test can change and hand in again.
func reloadable(t *testing.T, change func(*perch.Options)) (*server, perch.Options) {
	t.Helper()
	var opts perch.Options
	s := start(t, func(o *perch.Options) {
		if change != nil {
			change(o)
		}
		opts = *o
	})
	return s, opts
}

func (s *server) reload(t *testing.T, o perch.Options) {
	t.Helper()
	if err := s.Reload(o); err != nil {
		t.Fatalf("reload: %v", err)
	}
}

const otherSecret = "another-secret-of-the-server-0123456789"

func hashOf(t *testing.T, secret string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

// connects tells how a connect with the token ends: 0 for a session, or the
// close code.
func (s *server) connects(t *testing.T, token string) uint16 {
	t.Helper()
	p := s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand(token))
	var end *testkit.CloseError
	switch _, err := p.Message(); {
	case err == nil:
		return 0
	case errors.As(err, &end):
		return end.Code
	default:
		t.Fatal(err)
		return 1
	}
}

// asks is the status of a request for a token.
func (s *server) asks(t *testing.T, client, secret string, form url.Values) (int, map[string]any) {
	t.Helper()
	if form == nil {
		form = url.Values{"grant_type": {"client_credentials"}}
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+s.public+"/v1/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(client, secret)
	status, body := do(t, req)
	var answer map[string]any
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	return status, answer
}

// TestReloadKeys: tokens of the new secret are good, those of the old one are
// not, and the sessions that they opened live on.
func TestReloadKeys(t *testing.T) {
	s, o := reloadable(t, nil)
	old := s.session(t, "alice")
	next := testkit.Token(otherSecret, "bob", time.Hour, nil)
	if code := s.connects(t, next); code != 3500 {
		t.Fatalf("the other secret's token: %d", code)
	}
	o.Auth.HMACSecret = otherSecret
	s.reload(t, o)
	if code := s.connects(t, next); code != 0 {
		t.Errorf("the new secret's token: %d", code)
	}
	if code := s.connects(t, token("alice", time.Hour)); code != 3500 {
		t.Errorf("the old secret's token: %d", code)
	}
	old.send(testkit.SubscribeCommand(2, "news"))
	old.reply(2)
	if logged(s, otherSecret) || logged(s, testSecret) {
		t.Error("a secret is logged")
	}
	if !logged(s, `changed=auth.hmac_secret`) {
		t.Error("the log does not say what has changed")
	}
}

// TestReloadKeyFiles: the content of key files is read again, their path being
// the same.
func TestReloadKeyFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key.pem")
	keyOf := func(name string) []byte {
		// The server makes keys where there are none: two of those.
		sub := filepath.Join(dir, name)
		if _, err := perch.IssueToken(perch.Options{DataDir: sub}, perch.TokenRequest{Subject: "x"}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(sub, "signing-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	write := func(data []byte) {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, b := keyOf("a"), keyOf("b")
	write(a)
	s, o := reloadable(t, func(o *perch.Options) {
		o.Auth.HMACSecret, o.Auth.Keys = "", []perch.KeyOptions{{File: file}}
	})
	sign := func() string {
		tok, err := perch.IssueToken(o, perch.TokenRequest{Subject: "alice"})
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	first := sign()
	write(b)
	second := sign()
	if got := s.connects(t, first); got != 0 {
		t.Fatalf("the first key's token: %d", got)
	}
	if got := s.connects(t, second); got != 3500 {
		t.Fatalf("the second key's token, before the reload: %d", got)
	}
	s.reload(t, o)
	if got := s.connects(t, second); got != 0 {
		t.Errorf("the second key's token: %d", got)
	}
	if got := s.connects(t, first); got != 3500 {
		t.Errorf("the first key's token: %d", got)
	}
}

// TestReloadClients: a client that is gone gets no token any more, neither by
// its secret nor by its refresh token; what it has lives until it ends. A new
// client gets one.
func TestReloadClients(t *testing.T) {
	s, o := reloadable(t, func(o *perch.Options) {
		o.Auth.Clients = []perch.ClientOptions{{ID: "old", SecretHash: hashOf(t, "a")}, {ID: "both", SecretHash: hashOf(t, "b")}}
	})
	status, tokens := s.asks(t, "old", "a", nil)
	if status != http.StatusOK {
		t.Fatalf("old: %d %v", status, tokens)
	}
	if status, _ := s.asks(t, "both", "b", nil); status != http.StatusOK {
		t.Fatalf("both: %d", status)
	}
	access, refresh := tokens["access_token"].(string), tokens["refresh_token"].(string)
	live := s.dial(t, "/connection/websocket")
	live.send(testkit.ConnectCommand(access))
	live.reply(1)

	o.Auth.Clients = []perch.ClientOptions{{ID: "both", SecretHash: hashOf(t, "changed")}, {ID: "new", SecretHash: hashOf(t, "n")}}
	s.reload(t, o)
	for _, tt := range []struct {
		client, secret string
		want           int
	}{
		{"old", "a", 401}, {"both", "b", 401}, {"both", "changed", 200}, {"new", "n", 200},
	} {
		if status, answer := s.asks(t, tt.client, tt.secret, nil); status != tt.want {
			t.Errorf("%s with %s: %d %v, want %d", tt.client, tt.secret, status, answer, tt.want)
		}
	}
	if status, _ := s.asks(t, "old", "a", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}); status != 401 {
		t.Errorf("refresh of a client that is gone: %d", status)
	}
	live.send(testkit.SubscribeCommand(2, "news"))
	live.reply(2)
	if code := s.connects(t, access); code != 0 {
		t.Errorf("a token that was issued: %d", code)
	}
}

// TestReloadRest: the API key, origins, limits, permissions and new namespaces.
func TestReloadRest(t *testing.T) {
	s, o := reloadable(t, func(o *perch.Options) {
		o.Topics.Namespaces = []topic.NamespaceOptions{{Name: "chat", AllowSubscribeForClient: true}}
	})
	p := s.session(t, "alice")
	refused := func(id int, commands string) bool {
		p.send(commands)
		for {
			for _, r := range p.lines() {
				if r["id"] == float64(id) {
					return r["error"] != nil
				}
			}
		}
	}
	head := testkit.Head(s.public, "/connection/websocket", "Origin: https://app.example.com")
	attemptStatus(t, s.public, head, http.StatusForbidden)
	if !refused(2, testkit.PublishCommand(2, "chat:a", "1")) || !refused(3, testkit.SubscribeCommand(3, "more:a")) {
		t.Fatal("what was not allowed is")
	}

	o.API.Key = "a-new-api-key"
	o.WebSocket.AllowedOrigins = []string{"https://app.example.com"}
	o.Topics.Namespaces = []topic.NamespaceOptions{
		{Name: "chat", AllowPublishForClient: true}, {Name: "more", AllowSubscribeForClient: true},
	}
	o.Limits.Connections = 3
	s.reload(t, o)

	if refused(4, testkit.PublishCommand(4, "chat:a", "1")) || refused(5, testkit.SubscribeCommand(5, "more:a")) {
		t.Error("what is allowed now is refused")
	}
	if !refused(6, testkit.SubscribeCommand(6, "chat:a")) {
		t.Error("what is not allowed any more is not refused")
	}
	if answer := s.apiAnswer("info", "{}"); !strings.Contains(answer, "401") {
		t.Errorf("the old API key: %s", answer)
	}
	s.apiKey = "a-new-api-key"
	s.api(t, "info", "{}")
	var held []*testkit.Conn
	for range 2 {
		w, err := testkit.Open(s.public, "/connection/websocket", "Origin: https://app.example.com")
		if err != nil {
			t.Fatalf("an origin that is allowed now: %v", err)
		}
		defer w.Reset()
		held = append(held, w)
	}
	attemptStatus(t, s.public, head, http.StatusServiceUnavailable)
	if _, m := get(t, "http://"+s.admin+"/metrics"); !strings.Contains(m, "\nperch_connections_limit 3\n") ||
		!strings.Contains(m, `perch_config_reloads_total{outcome="ok"} 1`) {
		t.Error("the metrics do not tell")
	}
	o.Limits.Connections = 10
	s.reload(t, o)
	w, err := testkit.Open(s.public, "/connection/websocket")
	if err != nil {
		t.Errorf("below the new limit: %v", err)
	} else {
		w.Reset()
	}
	_ = held
}

// TestReloadLeaves: what needs a restart is named, one line each, and stays as
// it is; so does everything where anything is wrong.
func TestReloadLeaves(t *testing.T) {
	s, o := reloadable(t, func(o *perch.Options) {
		o.Topics.Namespaces = []topic.NamespaceOptions{{Name: "chat", HistorySize: 5, HistoryTTL: time.Minute}, {Name: "gone"}}
	})
	changed := o
	changed.Listen, changed.Loops, changed.Pool.Workers = "127.0.0.1:1", 7, 3
	changed.WebSocket.Path = "/elsewhere"
	changed.Limits.ConnectionsPerAddress = 5
	changed.Limits.ConnectionRate = 1 << 20
	changed.Topics.Default.Presence = true
	changed.Topics.Namespaces = []topic.NamespaceOptions{{Name: "chat", HistorySize: 9, HistoryTTL: time.Minute, AllowPublishForClient: true}}
	s.reload(t, changed)
	for _, key := range []string{
		"listen", "loops", "pool.workers", "websocket.path", "limits.connections_per_address", "topics.default.presence",
		"topics.namespaces[chat].history_size", "topics.namespaces[gone]",
	} {
		if n := strings.Count(s.log.String(), "msg=\"key left as it is: it needs a restart\" key="+key+"\n"); n != 1 {
			t.Errorf("%s is named %d times", key, n)
		}
	}
	if n := strings.Count(s.log.String(), "key left as it is"); n != 8 {
		t.Errorf("%d keys are named", n)
	}
	if !logged(s, `changed="limits.connection_rate topics.namespaces[chat].allow_publish_for_client"`) {
		t.Error("the log does not say what has changed")
	}
	s.session(t, "alice")

	// One fault, and nothing changes.
	bad := o
	bad.Auth.HMACSecret = otherSecret
	bad.Heartbeat.Timeout = bad.Heartbeat.Interval
	if err := s.Reload(bad); err == nil || !strings.Contains(err.Error(), "heartbeat.timeout") {
		t.Errorf("reload: %v", err)
	}
	bad = o
	bad.Auth.HMACSecret = otherSecret
	bad.Auth.Keys = []perch.KeyOptions{{File: filepath.Join(t.TempDir(), "none.pem")}}
	if err := s.Reload(bad); err == nil || !strings.Contains(err.Error(), "auth.keys[0].file") {
		t.Errorf("reload: %v", err)
	}
	bad = o
	bad.Auth.HMACSecret = otherSecret
	bad.Limits.Connections = 1 << 29
	if err := s.Reload(bad); err == nil || !strings.Contains(err.Error(), "limits.connections") {
		t.Errorf("reload: %v", err)
	}
	s.session(t, "bob")
	if code := s.connects(t, testkit.Token(otherSecret, "bob", time.Hour, nil)); code != 3500 {
		t.Errorf("a token of a configuration that was refused: %d", code)
	}
	if _, m := get(t, "http://"+s.admin+"/metrics"); !strings.Contains(m, `perch_config_reloads_total{outcome="failed"} 3`) {
		t.Error("the metrics do not tell")
	}
}

// TestReloadUnderLoad: reloads while tokens are asked for, sessions come and go
// and publish: nobody is refused, no connection is dropped.
func TestReloadUnderLoad(t *testing.T) {
	clients := []perch.ClientOptions{{ID: "device", SecretHash: hashOf(t, "sesame")}}
	s, o := reloadable(t, func(o *perch.Options) { o.Auth.Clients = clients })
	o.Logger = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(t.Context())
	steady := s.session(t, "steady")
	steady.send(testkit.SubscribeCommand(2, "news"))
	steady.reply(2)
	var all sync.WaitGroup
	fail := make(chan error, 16)
	loop := func(f func(n int) error) {
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := f(n); err != nil {
					fail <- err
					return
				}
			}
		})
	}
	for range 2 {
		loop(func(int) error {
			w, err := testkit.Open(s.public, "/connection/websocket", "Authorization: Bearer "+token("alice", time.Hour))
			if err != nil {
				return err
			}
			defer w.Reset()
			if err := w.SendFrames(testkit.Text(string(testkit.Commands(testkit.ConnectCommand(""), testkit.PublishCommand(2, "news", "1"))))); err != nil {
				return err
			}
			msg, err := w.Message()
			if err == nil && strings.Contains(string(msg), `"error"`) {
				err = fmt.Errorf("answered %s", msg)
			}
			return err
		})
	}
	loop(func(int) error {
		req, _ := http.NewRequest(http.MethodPost, "http://"+s.public+"/v1/token", strings.NewReader("grant_type=client_credentials"))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth("device", "sesame")
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testkit.Timeout}).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("token: %s", resp.Status)
		}
		return nil
	})
	for n := range 60 {
		o.Auth.Clients = append(clients[:1:1], perch.ClientOptions{ID: fmt.Sprint("other", n), SecretHash: clients[0].SecretHash})
		o.WebSocket.AllowedOrigins = []string{fmt.Sprintf("https://%d.example.com", n)}
		o.Limits.Connections = 1000 + n
		o.Limits.ConnectionRate = 100000 + n
		o.Topics.Default.AllowHistoryForClient = n%2 == 0
		s.reload(t, o)
	}
	cancel()
	all.Wait()
	close(fail)
	for err := range fail {
		t.Error(err)
	}
	steady.send(testkit.PublishCommand(3, "news", "2"))
	steady.reply(3)
}
