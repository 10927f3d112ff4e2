package perch_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"perch"
	"perch/internal/testkit"
)

// outsideNATS is a NATS server that is no part of a node. Its port stays the same
// where it is stopped and started again.
type outsideNATS struct {
	*natsserver.Server
	url string
	dir string
}

func startNATS(t testing.TB) *outsideNATS {
	t.Helper()
	n := &outsideNATS{dir: t.TempDir()}
	n.start(t, natsserver.RANDOM_PORT)
	t.Cleanup(n.stop)
	return n
}

func (n *outsideNATS) start(t testing.TB, port int) {
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

func (n *outsideNATS) stop() {
	n.Shutdown()
	n.WaitForShutdown()
}

// node starts a server of engine nats.
func node(t testing.TB, n *outsideNATS, change func(*perch.Options)) *server {
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

// clients calls the endpoints of the registry.
func (s *server) clients(t testing.TB, method, path, body string) (int, string, shownClient) {
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
	status, answer, c := s.clients(t, http.MethodPost, "", body)
	if status != http.StatusCreated || c.Secret == "" && !strings.Contains(body, `"secret"`) {
		t.Fatalf("create: %d %s", status, answer)
	}
	return c
}

func (s *server) patch(t testing.TB, id, body string) shownClient {
	t.Helper()
	status, answer, c := s.clients(t, http.MethodPatch, "/"+id, body)
	if status != http.StatusOK {
		t.Fatalf("patch %s: %d %s", body, status, answer)
	}
	return c
}

// tokens asks the token endpoint.
func (s *server) tokens(t testing.TB, c shownClient, form url.Values) (int, http.Header, deviceTokens) {
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

func (s *server) grant(t testing.TB, c shownClient) deviceTokens {
	t.Helper()
	status, _, tokens := s.tokens(t, c, clientGrant)
	if status != http.StatusOK {
		t.Fatalf("grant: %d %+v", status, tokens)
	}
	return tokens
}

func refreshGrant(token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
}

// open is a session of a token.
func (s *server) open(t *testing.T, token string) *peer {
	t.Helper()
	p := s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand(token))
	p.reply(1)
	return p
}

// TestClientDisabledEverywhere: what a client got ends on all nodes as soon as one
// is told to disable it, and what it gets later lives.
func TestClientDisabledEverywhere(t *testing.T) {
	n := startNATS(t)
	a, b := node(t, n, nil), node(t, n, nil)
	c := a.newClient(t, `{"id":"sensor-1","channels":["news"],"metadata":{"site":"north"}}`)
	other := a.newClient(t, `{"id":"sensor-2"}`)
	for _, revoke := range []string{http.MethodPatch, http.MethodDelete} {
		onA, onB := a.grant(t, c), b.grant(t, c)
		sessions := []*peer{a.open(t, onB.Access), b.open(t, onA.Access)}
		bystander := b.open(t, a.grant(t, other).Access)
		foreign := b.open(t, token("sensor-1", time.Hour)) // the same user, by another way
		if revoke == http.MethodPatch {
			if got := a.patch(t, c.ID, `{"disabled":true}`); !got.Disabled {
				t.Fatalf("%+v", got)
			}
		} else if status, answer, _ := a.clients(t, http.MethodDelete, "/"+c.ID, ""); status != http.StatusNoContent || answer != "" {
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
				status, _, _ := s.tokens(t, c, clientGrant)
				return status == http.StatusUnauthorized
			})
			for _, tokens := range []deviceTokens{onA, onB} {
				p := s.dial(t, "/connection/websocket")
				p.send(testkit.ConnectCommand(tokens.Access))
				p.closes(3500)
			}
		}
		if revoke == http.MethodPatch {
			if got := b.patch(t, c.ID, `{"disabled":false}`); got.Disabled || string(got.Metadata) != `{"site":"north"}` {
				t.Fatalf("%+v", got)
			}
		} else {
			c = b.newClient(t, `{"id":"sensor-1"}`)
		}
		for name, s := range map[string]*server{"a": a, "b": b} {
			// What it had stays revoked, what it gets now is good: in the same second.
			eventually(t, "the client is back at "+name, func() bool {
				status, _, _ := s.tokens(t, c, clientGrant)
				return status == http.StatusOK
			})
			for _, tokens := range []deviceTokens{onA, onB} {
				if status, _, answer := s.tokens(t, c, refreshGrant(tokens.Refresh)); status != http.StatusBadRequest || answer.Code != "invalid_grant" {
					t.Errorf("%s at %s: an old refresh token: %d %+v", revoke, name, status, answer)
				}
				p := s.dial(t, "/connection/websocket")
				p.send(testkit.ConnectCommand(tokens.Access))
				p.closes(3500)
			}
			fresh := s.grant(t, c)
			if status, _, again := s.tokens(t, c, refreshGrant(fresh.Refresh)); status != http.StatusOK {
				t.Errorf("refresh: %d %+v", status, again)
			} else {
				s.open(t, again.Access)
			}
		}
	}
}
