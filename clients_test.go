package perch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"perch"
	"perch/internal/testkit"
)

// clientsBroker is a NATS server that is no part of a node. Its port stays the same
// where it is stopped and started again.
type clientsBroker struct {
	*natsserver.Server
	url string
	dir string
}

func startClientsBroker(t testing.TB) *clientsBroker {
	t.Helper()
	n := &clientsBroker{dir: t.TempDir()}
	n.start(t, natsserver.RANDOM_PORT)
	t.Cleanup(n.stop)
	return n
}

func (n *clientsBroker) start(t testing.TB, port int) {
	t.Helper()
	s, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: n.dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(testkit.Timeout) {
		t.Fatal("nats-server does not start")
	}
	n.Server, n.url = s, s.ClientURL()
}

func (n *clientsBroker) stop() {
	n.Shutdown()
	n.WaitForShutdown()
}

// clientsNode starts a server of engine nats.
func clientsNode(t testing.TB, n *clientsBroker, change func(*perch.Options)) *server {
	t.Helper()
	return start(t, func(o *perch.Options) {
		o.Engine, o.NATS.URL, o.NATS.Timeout = perch.EngineNATS, n.url, time.Second
		if change != nil {
			change(o)
		}
	})
}

type shownClient struct {
	ID       string          `json:"id"`
	Source   string          `json:"source"`
	User     string          `json:"user"`
	Secret   string          `json:"secret"`
	Disabled bool            `json:"disabled"`
	Metadata json.RawMessage `json:"metadata"`
	Revision uint64          `json:"revision"`
}

// callClients calls the endpoints of the registry.
func (s *server) callClients(t testing.TB, method, path, body string) (int, string, shownClient) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+s.admin+"/api/clients"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.apiKey)
	status, answer := do(t, req)
	var a struct{ Result shownClient }
	if answer != "" {
		if err := json.Unmarshal([]byte(answer), &a); err != nil {
			t.Fatalf("%s: %v", answer, err)
		}
	}
	return status, answer, a.Result
}

// newClient creates a client of the registry.
func (s *server) newClient(t testing.TB, body string) shownClient {
	t.Helper()
	status, answer, c := s.callClients(t, http.MethodPost, "", body)
	if status != http.StatusCreated || c.Secret == "" && !strings.Contains(body, `"secret"`) {
		t.Fatalf("create: %d %s", status, answer)
	}
	return c
}

func (s *server) patchClient(t testing.TB, id, body string) shownClient {
	t.Helper()
	status, answer, c := s.callClients(t, http.MethodPatch, "/"+id, body)
	if status != http.StatusOK {
		t.Fatalf("patch %s: %d %s", body, status, answer)
	}
	return c
}

// askToken asks the token endpoint.
func (s *server) askToken(t testing.TB, c shownClient, form url.Values) (int, http.Header, deviceTokens) {
	t.Helper()
	client := &http.Client{Timeout: testkit.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequest(http.MethodPost, "http://"+s.public+"/v1/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(c.ID, c.Secret)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var tokens deviceTokens
	if err := json.NewDecoder(resp.Body).Decode(&tokens); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, tokens
}

var clientGrant = url.Values{"grant_type": {"client_credentials"}}

func (s *server) grantClient(t testing.TB, c shownClient) deviceTokens {
	t.Helper()
	status, _, tokens := s.askToken(t, c, clientGrant)
	if status != http.StatusOK {
		t.Fatalf("grant: %d %+v", status, tokens)
	}
	return tokens
}

func refreshGrant(token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
}

// openSession is a session of a token.
func (s *server) openSession(t *testing.T, token string) *peer {
	t.Helper()
	p := s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand(token))
	p.reply(1)
	return p
}

// TestClientDisabledEverywhere: what a client got ends on all nodes as soon as one
// is told to disable it, and what it gets later lives.
func TestClientDisabledEverywhere(t *testing.T) {
	n := startClientsBroker(t)
	a, b := clientsNode(t, n, nil), clientsNode(t, n, nil)
	c := a.newClient(t, `{"id":"sensor-1","channels":["news"],"metadata":{"site":"north"}}`)
	other := a.newClient(t, `{"id":"sensor-2"}`)
	for _, revoke := range []string{http.MethodPatch, http.MethodDelete} {
		onA, onB := a.grantClient(t, c), b.grantClient(t, c)
		sessions := []*peer{a.openSession(t, onB.Access), b.openSession(t, onA.Access)}
		bystander := b.openSession(t, a.grantClient(t, other).Access)
		foreign := b.openSession(t, token("sensor-1", time.Hour)) // the same user, by another way
		if revoke == http.MethodPatch {
			if got := a.patchClient(t, c.ID, `{"disabled":true}`); !got.Disabled {
				t.Fatalf("%+v", got)
			}
		} else if status, answer, _ := a.callClients(t, http.MethodDelete, "/"+c.ID, ""); status != http.StatusNoContent || answer != "" {
			t.Fatalf("delete: %d %s", status, answer)
		}
		for i, p := range sessions {
			if code, reason, err := p.Closed(); err != nil || code != 3500 {
				t.Errorf("%s: session %d: %d %q, %v", revoke, i, code, reason, err)
			}
		}
		for _, p := range []*peer{bystander, foreign} {
			p.send(testkit.SubscribeCommand(9, "lives"))
			p.reply(9)
		}
		for name, s := range map[string]*server{"a": a, "b": b} {
			eventually(t, "the client is refused at "+name, func() bool {
				status, _, _ := s.askToken(t, c, clientGrant)
				return status == http.StatusUnauthorized
			})
			for _, tokens := range []deviceTokens{onA, onB} {
				p := s.dial(t, "/connection/websocket")
				p.send(testkit.ConnectCommand(tokens.Access))
				p.closes(3500)
			}
		}
		if revoke == http.MethodPatch {
			if got := b.patchClient(t, c.ID, `{"disabled":false}`); got.Disabled || string(got.Metadata) != `{"site":"north"}` {
				t.Fatalf("%+v", got)
			}
		} else {
			c = b.newClient(t, `{"id":"sensor-1"}`)
		}
		for name, s := range map[string]*server{"a": a, "b": b} {
			// What it had stays revoked, what it gets now is good: in the same second.
			eventually(t, "the client is back at "+name, func() bool {
				status, _, _ := s.askToken(t, c, clientGrant)
				return status == http.StatusOK
			})
			for _, tokens := range []deviceTokens{onA, onB} {
				if status, _, answer := s.askToken(t, c, refreshGrant(tokens.Refresh)); status != http.StatusBadRequest || answer.Code != "invalid_grant" {
					t.Errorf("%s at %s: an old refresh token: %d %+v", revoke, name, status, answer)
				}
				p := s.dial(t, "/connection/websocket")
				p.send(testkit.ConnectCommand(tokens.Access))
				p.closes(3500)
			}
			fresh := s.grantClient(t, c)
			if status, _, again := s.askToken(t, c, refreshGrant(fresh.Refresh)); status != http.StatusOK {
				t.Errorf("refresh: %d %+v", status, again)
			} else {
				s.openSession(t, again.Access)
			}
		}
	}
}

// TestClientsWithoutBroker: while NATS is away the token endpoint and the registry
// say so, and whoever has a token connects; when it is back all goes on.
func TestClientsWithoutBroker(t *testing.T) {
	n := startClientsBroker(t)
	s := clientsNode(t, n, nil)
	c := s.newClient(t, `{}`)
	tokens := s.grantClient(t, c)
	// What this node has at hand is not good enough either.
	bare := s.newClient(t, `{"refresh_ttl":-1}`)
	s.grantClient(t, bare)
	port := n.Addr().(*net.TCPAddr).Port
	n.stop()
	for name, form := range map[string]url.Values{"grant": clientGrant, "refresh": refreshGrant(tokens.Refresh)} {
		status, header, answer := s.askToken(t, c, form)
		if status != http.StatusServiceUnavailable || answer.Code != "temporarily_unavailable" || header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %+v %v", name, status, answer, header)
		}
	}
	if status, _, answer := s.askToken(t, bare, clientGrant); status != http.StatusServiceUnavailable {
		t.Errorf("a client without refresh tokens: %d %+v", status, answer)
	}
	for method, path := range map[string]string{http.MethodGet: "", http.MethodPatch: "/" + c.ID, http.MethodDelete: "/" + c.ID, http.MethodPost: ""} {
		if status, answer, _ := s.callClients(t, method, path, `{}`); status != http.StatusServiceUnavailable {
			t.Errorf("%s %s: %d %s", method, path, status, answer)
		}
	}
	p := s.openSession(t, tokens.Access)
	n.start(t, port)
	eventually(t, "tokens are issued again", func() bool {
		status, _, _ := s.askToken(t, c, clientGrant)
		return status == http.StatusOK
	})
	if status, _, answer := s.askToken(t, c, refreshGrant(tokens.Refresh)); status != http.StatusOK {
		t.Errorf("a refresh token of before: %d %+v", status, answer)
	}
	s.patchClient(t, c.ID, `{"disabled":true}`)
	p.closes(3500)
}

// TestRevocationWhileAway: what was revoked while a node could not reach the broker
// is revoked there when it can.
func TestRevocationWhileAway(t *testing.T) {
	n := startClientsBroker(t)
	link := newProxy(t, n.Addr().String())
	a, b := clientsNode(t, n, nil), clientsNode(t, n, func(o *perch.Options) { o.NATS.URL = "nats://" + link.Addr() })
	c := a.newClient(t, `{}`)
	tokens := a.grantClient(t, c)
	p := b.openSession(t, tokens.Access)
	link.Cut()
	eventually(t, "b knows that the broker is away", func() bool {
		status, _, _ := b.askToken(t, c, clientGrant)
		return status == http.StatusServiceUnavailable
	})
	a.patchClient(t, c.ID, `{"disabled":true}`)
	link.Heal()
	p.closes(3500)
	again := b.dial(t, "/connection/websocket")
	again.send(testkit.ConnectCommand(tokens.Access))
	again.closes(3500)
	if status, _, _ := b.askToken(t, c, clientGrant); status != http.StatusUnauthorized {
		t.Errorf("grant: %d", status)
	}
}

// TestRevocationAfterRestart: a broker that was started anew, and knows nothing of
// who listens, tells of revocations as before.
func TestRevocationAfterRestart(t *testing.T) {
	n := startClientsBroker(t)
	a, b := clientsNode(t, n, nil), clientsNode(t, n, nil)
	c := a.newClient(t, `{}`)
	p := b.openSession(t, b.grantClient(t, c).Access)
	port := n.Addr().(*net.TCPAddr).Port
	n.stop()
	n.start(t, port)
	for _, s := range []*server{a, b} {
		eventually(t, "tokens are issued again", func() bool {
			status, _, _ := s.askToken(t, c, clientGrant)
			return status == http.StatusOK
		})
	}
	a.patchClient(t, c.ID, `{"disabled":true}`)
	p.closes(3500)
}

// TestClientsOutlive: a node with the broker in its process has its clients,
// families and revocations after a restart.
func TestClientsOutlive(t *testing.T) {
	dir := t.TempDir()
	embedded := func(o *perch.Options) { o.Engine, o.DataDir = perch.EngineNATS, dir }
	s := start(t, embedded)
	c, gone := s.newClient(t, `{"token_ttl":600}`), s.newClient(t, `{"secret":"a secret of mine"}`)
	gone.Secret = "a secret of mine"
	kept, lost := s.grantClient(t, c), s.grantClient(t, gone)
	p := s.openSession(t, lost.Access)
	s.patchClient(t, gone.ID, `{"disabled":true}`)
	p.closes(3500)
	if _, err := perch.New(lockedOptions(s, dir)); err == nil || !strings.Contains(err.Error(), "in use by another server") {
		t.Errorf("a second server of the directory: %v", err)
	}
	s.stop(t)
	s = start(t, embedded)
	s.openSession(t, kept.Access)
	if status, _, answer := s.askToken(t, c, refreshGrant(kept.Refresh)); status != http.StatusOK {
		t.Errorf("refresh: %d %+v", status, answer)
	}
	again := s.dial(t, "/connection/websocket")
	again.send(testkit.ConnectCommand(lost.Access))
	again.closes(3500)
	if status, _, answer := s.askToken(t, gone, clientGrant); status != http.StatusUnauthorized || !strings.Contains(answer.Description, "disabled") {
		t.Errorf("disabled: %d %+v", status, answer)
	}
}

func lockedOptions(s *server, dir string) perch.Options {
	o := perch.DefaultOptions()
	o.Listen, o.Admin, o.DataDir, o.Engine = "127.0.0.1:0", "127.0.0.1:0", dir, perch.EngineNATS
	o.Logger = slog.New(slog.NewTextHandler(s.log, nil))
	return o
}

// TestSecretsShownOnce: no secret and no hash is in a log, in what can be asked
// for, or in what the broker keeps.
func TestSecretsShownOnce(t *testing.T) {
	n := startClientsBroker(t)
	s := clientsNode(t, n, func(o *perch.Options) {
		o.Auth.Clients = []perch.ClientOptions{{ID: "mine", SecretHash: hashOf(t, "sesame")}}
	})
	made := s.newClient(t, `{"id":"made"}`)
	given := s.newClient(t, `{"id":"given","secret":"open-sesame-please"}`)
	if given.Secret != "" {
		t.Error("a secret that was given comes back")
	}
	given.Secret = "open-sesame-please"
	rotated := s.patchClient(t, "made", `{"rotate_secret":true}`)
	if rotated.Secret == "" || rotated.Secret == made.Secret {
		t.Fatalf("rotated: %+v", rotated)
	}
	if status, _, _ := s.askToken(t, made, clientGrant); status != http.StatusUnauthorized {
		t.Errorf("the old secret: %d", status)
	}
	tokens := []deviceTokens{s.grantClient(t, rotated), s.grantClient(t, given)}
	var seen strings.Builder
	for _, path := range []string{"", "/made", "/given", "/mine"} {
		status, answer, _ := s.callClients(t, http.MethodGet, path, "")
		if status != http.StatusOK {
			t.Fatalf("%s: %d %s", path, status, answer)
		}
		seen.WriteString(answer)
	}
	for name, text := range map[string]string{"an answer": seen.String(), "the log": s.log.String()} {
		for _, secret := range []string{made.Secret, rotated.Secret, given.Secret, "argon2id", "$2a$", tokens[0].Access, tokens[0].Refresh, tokens[1].Refresh} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds a secret: %s", name, secret)
			}
		}
	}
	err := filepath.WalkDir(n.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, secret := range []string{made.Secret, rotated.Secret, given.Secret, tokens[0].Refresh, tokens[1].Refresh} {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s holds a secret", path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if status, answer, _ := s.callClients(t, http.MethodPatch, "/mine", `{"disabled":true}`); status != http.StatusConflict {
		t.Errorf("a configured client: %d %s", status, answer)
	}
}

// TestNoBrokerAtStart: a node whose broker is not there lives, says that it is not
// ready, lets nobody in, and ends when it is told to.
func TestNoBrokerAtStart(t *testing.T) {
	n := startClientsBroker(t)
	port := n.Addr().(*net.TCPAddr).Port
	n.stop()
	for _, comes := range []bool{false, true} {
		log := &logBuffer{}
		o := perch.DefaultOptions()
		o.Listen, o.Admin, o.DataDir, o.Engine, o.NATS.URL = "127.0.0.1:0", "127.0.0.1:0", t.TempDir(), perch.EngineNATS, n.url
		o.Logger = slog.New(slog.NewTextHandler(log, nil))
		s, err := perch.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		eventually(t, "the admin port answers that the node is starting", func() bool {
			status, answer := get(t, "http://"+s.AdminAddr()+"/readyz")
			return status == http.StatusServiceUnavailable && strings.Contains(answer, "starting")
		})
		if c, err := net.Dial("tcp", s.PublicAddr()); err == nil {
			c.Close()
			t.Error("connections are taken before it is known what is revoked")
		}
		if comes {
			n.start(t, port)
			await(t, "the node is ready", s.Ready())
		} else {
			eventually(t, "the log says what it waits for", func() bool { return strings.Contains(log.String(), "the broker can't be reached") })
			if strings.Contains(log.String(), "<nil>") {
				t.Errorf("the log names no reason as one:\n%s", log)
			}
		}
		cancel()
		if err := await(t, "the end", done); err != nil {
			t.Error(err)
		}
	}
}
