package perch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"perch"
	"perch/internal/testkit"
)

// peer is a raw connection of the JSON protocol.
type peer struct {
	*testkit.Conn
	t *testing.T
}

// dial upgrades, with extra header lines, and sends nothing.
func (s *server) dial(t *testing.T, path string, lines ...string) *peer {
	t.Helper()
	w, err := testkit.Open(s.public, path, lines...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Reset() })
	return &peer{w, t}
}

// session is a peer that has connected as user.
func (s *server) session(t *testing.T, user string) *peer {
	t.Helper()
	p := s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand(token(user, time.Hour)))
	p.reply(1)
	return p
}

func (p *peer) send(commands ...string) {
	p.t.Helper()
	if err := p.SendFrames(testkit.Client(testkit.OpText, testkit.Commands(commands...))); err != nil {
		p.t.Fatal(err)
	}
}

// reply skips pings and pushes up to the reply with the id, which must be no
// error.
func (p *peer) reply(id int) map[string]any {
	p.t.Helper()
	for {
		for _, r := range p.lines() {
			if r["id"] != float64(id) {
				continue
			}
			if r["error"] != nil {
				p.t.Fatalf("reply %v", r)
			}
			return r
		}
	}
}

// lines reads the next message and decodes its lines.
func (p *peer) lines() (all []map[string]any) {
	p.t.Helper()
	msg, err := p.Message()
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(msg)) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			p.t.Fatalf("%q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

// closes waits for the close frame and checks its code.
func (p *peer) closes(code uint16) {
	p.t.Helper()
	got, reason, err := p.Closed()
	if err != nil || got != code {
		p.t.Fatalf("got close %d %q, %v, want %d", got, reason, err, code)
	}
}

// TestTokenBeforeUpgrade: a token in the opening handshake is verified before
// the answer to it; a bad one gets 401 and no session.
func TestTokenBeforeUpgrade(t *testing.T) {
	s := start(t, nil)
	const path = "/connection/websocket"
	for _, c := range []struct {
		name string
		path string
		line string
	}{
		{"header", path, "Authorization: Bearer %s"},
		{"header, scheme in lower case", path, "Authorization: bearer %s"},
		{"query token", path + "?token=%s", ""},
		{"query access_token", path + "?access_token=%s", ""},
		{"subprotocol entry", path, "Sec-WebSocket-Protocol: centrifuge-json, bearer.%s"},
		{"subprotocol entry alone", path, "Sec-WebSocket-Protocol: bearer.%s"},
	} {
		head := func(tok string) string {
			target, line := c.path, c.line
			if strings.Contains(target, "%s") {
				target = fmt.Sprintf(target, tok)
			}
			if line == "" {
				return testkit.Head(s.public, target)
			}
			return testkit.Head(s.public, target, fmt.Sprintf(line, tok))
		}
		t.Run(c.name, func(t *testing.T) {
			w, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Reset()
			if err := w.Send([]byte(head(token("alice", time.Hour)))); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Upgraded(); err != nil {
				t.Fatal(err)
			}
			p := &peer{w, t}
			p.send(testkit.ConnectCommand(""), testkit.SubscribeCommand(2, "news"))
			p.reply(1)
			p.reply(2)
			for what, tok := range map[string]string{
				"forged": testkit.Token("another secret, not the server's, at all", "alice", time.Hour, nil), "expired": token("alice", -time.Hour),
				"garbage": "garbage", "no signature": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.",
			} {
				resp := attemptStatus(t, s.public, head(tok), http.StatusUnauthorized)
				if resp.Header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s: 401 without WWW-Authenticate", what)
				}
			}
		})
	}
}

func TestRequireHandshake(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Auth.Require = "handshake" })
	attemptStatus(t, s.public, testkit.Head(s.public, "/connection/websocket"), http.StatusUnauthorized)
	p := s.dial(t, "/connection/websocket", "Authorization: Bearer "+token("alice", time.Hour))
	p.send(testkit.ConnectCommand(""))
	p.reply(1)
}

func TestRequireNone(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Auth.Require = "none" })
	p := s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand(""))
	p.reply(1)
	// A token that is sent is verified all the same.
	p = s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand("garbage"))
	p.closes(3500)
}

// TestStale: a peer that upgrades and does not connect is closed.
func TestStale(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Limits.ConnectTimeout = 300 * time.Millisecond })
	stale := s.dial(t, "/connection/websocket")
	busy := s.dial(t, "/connection/websocket")
	good := s.session(t, "alice")
	if err := busy.Send(frames(testkit.Ping("x"))); err != nil {
		t.Fatal(err)
	}
	if err := gotPong("x").check(busy.Conn); err != nil {
		t.Fatal(err)
	}
	stale.closes(3502)
	busy.closes(3502)
	if err := good.Quiet(600 * time.Millisecond); err != nil {
		t.Errorf("a connected session: %v", err)
	}
}

// TestCommandBeforeConnect: nothing but connect comes first.
func TestCommandBeforeConnect(t *testing.T) {
	s := start(t, nil)
	for _, first := range []string{testkit.SubscribeCommand(1, "news"), "{}", "nonsense", "[]", `{"id":1}`} {
		t.Run(first, func(t *testing.T) {
			p := s.dial(t, "/connection/websocket")
			p.send(first)
			p.closes(3501)
		})
	}
	t.Run("connect twice", func(t *testing.T) {
		p := s.session(t, "alice")
		p.send(`{"id":2,"connect":{}}`)
		p.closes(3501)
	})
	t.Run("binary on a JSON session", func(t *testing.T) {
		p := s.dial(t, "/connection/websocket")
		if err := p.SendFrames(testkit.Binary([]byte(testkit.ConnectCommand(token("a", time.Hour))))); err != nil {
			t.Fatal(err)
		}
		code, reason, err := p.Closed()
		if err != nil || code != 1003 {
			t.Errorf("got close %d %q, %v, want 1003", code, reason, err)
		}
	})
}

// TestOneFrame: connect and what follows it in the same frame, or behind it
// before the answer, keep their order.
func TestOneFrame(t *testing.T) {
	s := start(t, nil)
	p := s.dial(t, "/connection/websocket")
	commands := []string{testkit.ConnectCommand(token("alice", time.Hour))}
	for i := 2; i <= 20; i++ {
		commands = append(commands, testkit.SubscribeCommand(i, fmt.Sprintf("t%d", i)))
	}
	p.send(commands...)
	p.send(testkit.PublishCommand(21, "t2", `1`))
	for i := 1; i <= 21; i++ {
		p.reply(i)
	}
}

func TestHeartbeat(t *testing.T) {
	const interval, timeout = 300 * time.Millisecond, 200 * time.Millisecond
	t.Run("no pong", func(t *testing.T) {
		s := start(t, func(o *perch.Options) {
			o.Heartbeat.Interval, o.Heartbeat.Timeout = interval, timeout
		})
		p := s.session(t, "alice")
		if msg, err := p.Message(); err != nil || string(msg) != "{}" {
			t.Fatalf("got %q, %v, want a ping", msg, err)
		}
		p.closes(3012)
	})
	t.Run("only a pong is one", func(t *testing.T) {
		s := start(t, func(o *perch.Options) {
			o.Heartbeat.Interval, o.Heartbeat.Timeout = interval, timeout
		})
		p := s.session(t, "alice")
		if msg, err := p.Message(); err != nil || string(msg) != "{}" {
			t.Fatalf("got %q, %v, want a ping", msg, err)
		}
		p.send(testkit.SubscribeCommand(2, "news"))
		p.closes(3012)
	})
	t.Run("answered", func(t *testing.T) {
		s := start(t, func(o *perch.Options) {
			o.Heartbeat.Interval, o.Heartbeat.Timeout = interval, timeout
		})
		p := s.session(t, "alice")
		for i := range 5 {
			if msg, err := p.Message(); err != nil || string(msg) != "{}" {
				t.Fatalf("ping %d: got %q, %v", i, msg, err)
			}
			p.send("{}")
		}
	})
	t.Run("a miss is retried", func(t *testing.T) {
		s := start(t, func(o *perch.Options) {
			o.Heartbeat.Interval, o.Heartbeat.Timeout, o.Heartbeat.Misses = interval, timeout, 3
		})
		p := s.session(t, "alice")
		for round := range 2 {
			for i := range 3 {
				if msg, err := p.Message(); err != nil || string(msg) != "{}" {
					t.Fatalf("round %d, ping %d: got %q, %v", round, i, msg, err)
				}
			}
			if round == 0 {
				p.send("{}") // the last of the three is answered, and the count begins anew
			}
		}
		p.closes(3012)
	})
	t.Run("echo has pings of RFC 6455", func(t *testing.T) {
		s := start(t, func(o *perch.Options) {
			o.Echo = true
			o.Heartbeat.Interval, o.Heartbeat.Timeout = interval, timeout
		})
		p := s.dial(t, "/echo")
		for range 3 {
			f, err := p.Frame()
			if err != nil || f.Opcode != testkit.OpPing {
				t.Fatalf("got %s, %v, want a ping", f, err)
			}
			if err := p.SendFrames(testkit.Client(testkit.OpPong, f.Payload)); err != nil {
				t.Fatal(err)
			}
		}
		if f, err := p.Frame(); err != nil || f.Opcode != testkit.OpPing {
			t.Fatalf("got %s, %v, want a ping", f, err)
		}
		if _, _, err := p.Closed(); err != nil {
			t.Errorf("unanswered: %v", err)
		}
	})
	t.Run("frame pings where asked for", func(t *testing.T) {
		s := start(t, func(o *perch.Options) {
			o.Heartbeat.Interval, o.Heartbeat.Timeout = interval, timeout
		})
		p := s.dial(t, "/connection/websocket?cf_ws_frame_ping_pong=true")
		p.send(testkit.ConnectCommand(token("alice", time.Hour)))
		p.reply(1)
		for range 3 {
			f, err := p.Frame()
			if err != nil || f.Opcode != testkit.OpPing {
				t.Fatalf("got %s, %v, want a ping", f, err)
			}
			if err := p.SendFrames(testkit.Client(testkit.OpPong, f.Payload)); err != nil {
				t.Fatal(err)
			}
		}
		p.closes(3012)
	})
}

// TestExpiry: a session ends when its token does, unless it is refreshed.
func TestExpiry(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	p := s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand(token("alice", 2*time.Second)))
	r := p.reply(1)
	connect, _ := r["connect"].(map[string]any)
	if connect["expires"] != true || connect["ttl"] == nil {
		t.Errorf("reply does not tell that the session expires: %v", r)
	}
	start := time.Now()
	code := make(chan uint16, 1)
	go func() {
		c, _, _ := p.ended(40 * time.Second)
		code <- c
	}()
	select {
	case c := <-code:
		if c != 3005 {
			t.Errorf("got close %d, want 3005", c)
		}
		if d := time.Since(start); d < 900*time.Millisecond {
			t.Errorf("closed after %s, before the token expired", d)
		}
	case <-time.After(45 * time.Second):
		t.Error("still open long after the token expired")
	}
}

// ended waits for the close frame, and answers pings meanwhile, within d.
func (p *peer) ended(d time.Duration) (uint16, string, error) {
	for end := time.Now().Add(d); ; {
		f, err := p.FrameWithin(time.Until(end))
		switch {
		case err != nil:
			return 0, "", err
		case f.Opcode == testkit.OpClose:
			return f.CloseCode(), f.CloseReason(), nil
		case string(f.Payload) == "{}":
			if err := p.SendFrames(testkit.Text("{}")); err != nil {
				return 0, "", err
			}
		}
	}
}

// TestRevocation: revoking a refresh token ends what lives of it, and only
// that.
func TestRevocation(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("sesame"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, func(o *perch.Options) {
		o.Auth.Clients = []perch.ClientOptions{{ID: "device", SecretHash: string(hash)}}
	})
	type issued struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	form := func(path string, v url.Values) string {
		req, err := http.NewRequest(http.MethodPost, "http://"+s.public+path, strings.NewReader(v.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth("device", "sesame")
		status, body := do(t, req)
		if status != http.StatusOK {
			t.Fatalf("%s: %d %s", path, status, body)
		}
		return body
	}
	fetch := func() (i issued) {
		body := form("/v1/token", url.Values{"grant_type": {"client_credentials"}})
		if err := json.Unmarshal([]byte(body), &i); err != nil || i.Access == "" || i.Refresh == "" {
			t.Fatalf("token: %s, %v", body, err)
		}
		return i
	}
	connect := func(i issued) *peer {
		p := s.dial(t, "/connection/websocket")
		p.send(testkit.ConnectCommand(i.Access))
		p.reply(1)
		return p
	}
	first, second := fetch(), fetch()
	a, b := connect(first), connect(second)
	form("/v1/token/revoke", url.Values{"token": {first.Refresh}})
	if code, reason, err := a.Closed(); err != nil || code < 3000 {
		t.Errorf("revoked: close %d %q, %v", code, reason, err)
	}
	if err := b.Quiet(200 * time.Millisecond); err != nil {
		t.Errorf("the other family's session: %v", err)
	}
	p := s.dial(t, "/connection/websocket")
	p.send(testkit.ConnectCommand(first.Access))
	p.closes(3500)
	form("/v1/token/revoke", url.Values{"token": {second.Access}})
	if code, reason, err := b.Closed(); err != nil || code < 3000 {
		t.Errorf("revoked by its access token: close %d %q, %v", code, reason, err)
	}
}

// TestSlowConsumer: a peer that stops reading is closed when its pending bytes
// pass the bound; others get everything.
func TestSlowConsumer(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Limits.PendingBytes = 256 << 10 })
	slow, fast := s.session(t, "slow"), s.session(t, "fast")
	for _, p := range []*peer{slow, fast} {
		p.send(testkit.SubscribeCommand(2, "flood"))
		p.reply(2)
	}
	const n = 400
	blob := testkit.Blob(32 << 10)
	got := make(chan error, 1)
	go func() {
		for range n {
			if _, err := fast.Message(); err != nil {
				got <- err
				return
			}
		}
		got <- nil
	}()
	for range n {
		s.api(t, "publish", `{"channel":"flood","data":`+blob+`}`)
	}
	if err := await(t, "all at the fast one", got); err != nil {
		t.Errorf("fast: %v", err)
	}
	// What was written before the bound is still delivered, then the connection
	// ends, by the close frame where there was room for it.
	if code, reason, err := slow.Closed(); err == nil && code != 3008 {
		t.Errorf("slow: close %d %q, want 3008", code, reason)
	} else if ne := (interface{ Timeout() bool })(nil); errors.As(err, &ne) && ne.Timeout() {
		t.Error("slow: still connected")
	}
	eventually(t, "the slow session is counted", func() bool {
		_, m := get(t, "http://"+s.admin+"/metrics")
		return strings.Contains(m, `reason="slow"} 1`)
	})
}

// TestDrain: the end of the server tells every session to come back.
func TestDrain(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo, o.Drain.Budget = true, 5*time.Second })
	var sessions []*peer
	for i := range 20 {
		sessions = append(sessions, s.session(t, fmt.Sprint("user", i)))
	}
	idle, err := testkit.Dial(s.public)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Reset()
	s.cancel()
	for _, p := range sessions {
		p.closes(3001)
		if err := p.SendFrames(testkit.Close(3001, "")); err != nil {
			t.Error(err)
		}
	}
	begin := time.Now()
	s.stop(t)
	if d := time.Since(begin); d > 8*time.Second {
		t.Errorf("the drain took %s, its budget is 5 s", d)
	}
	if _, err := testkit.Dial(s.public); err == nil {
		t.Error("the port still takes connections")
	}
}

// TestDrainBudget: peers that take no notice do not hold the server.
func TestDrainBudget(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Drain.Budget = 500 * time.Millisecond })
	for i := range 5 {
		s.session(t, fmt.Sprint("deaf", i))
	}
	begin := time.Now()
	s.stop(t)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the drain took %s, its budget is 0.5 s", d)
	}
}

// TestConnectionCap: above the cap a request is told when to come back; below
// it again all is as before.
func TestConnectionCap(t *testing.T) {
	const bound = 20
	s := start(t, func(o *perch.Options) { o.Echo, o.Limits.Connections = true, bound })
	var held []*peer
	for range bound {
		held = append(held, s.dial(t, "/echo"))
	}
	for range 5 {
		resp := attemptStatus(t, s.public, testkit.Head(s.public, "/echo"), http.StatusServiceUnavailable)
		if resp.Header.Get("Retry-After") == "" {
			t.Errorf("503 without Retry-After: %v", resp.Header)
		}
	}
	for _, p := range held {
		if err := p.SendFrames(testkit.Text("x")); err != nil {
			t.Fatal(err)
		}
		if err := gotText("x").check(p.Conn); err != nil {
			t.Fatal(err)
		}
	}
	held[0].Reset()
	eventually(t, "a place is free again", func() bool {
		w, err := testkit.Open(s.public, "/echo")
		if err != nil {
			return false
		}
		w.Reset()
		return true
	})
}

// TestDescriptorLimit: more connections than the process has descriptors for
// do not end it, and it serves again when they are gone.
func TestDescriptorLimit(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	s := startProcess(ctx, t, 256, "PERCH_ECHO=true")
	var held []*testkit.Conn
	defer func() {
		for _, w := range held {
			w.Reset()
		}
	}()
	upgraded := 0
	for range 600 {
		w, err := testkit.Dial(s.Public)
		if err != nil {
			continue // refused, which is an answer too
		}
		held = append(held, w)
		if w.Send([]byte(testkit.Head(s.Public, "/echo"))) != nil {
			continue
		}
		if _, err := w.Upgraded(); err == nil {
			upgraded++
		} else if ne := (interface{ Timeout() bool })(nil); errors.As(err, &ne) && ne.Timeout() {
			t.Fatalf("connection %d hangs: %v", len(held), err)
		}
	}
	t.Logf("%d of %d upgraded", upgraded, len(held))
	if upgraded < 100 || upgraded > 256 {
		t.Errorf("%d upgraded with 256 descriptors", upgraded)
	}
	// The admin port must answer, or nobody learns why.
	if status, _ := get(t, "http://"+s.Admin+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
	select {
	case <-s.Exited():
		t.Fatalf("the process ended:\n%s", s.Output())
	default:
	}
	for _, w := range held {
		w.Reset()
	}
	held = nil
	eventually(t, "connections are taken again", func() bool {
		w, err := testkit.Open(s.Public, "/echo")
		if err != nil {
			return false
		}
		defer w.Reset()
		return w.SendFrames(testkit.Text("x")) == nil && gotText("x").check(w) == nil
	})
	if err := s.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Exited():
	case <-time.After(20 * time.Second):
		t.Errorf("SIGTERM did not end it:\n%s", s.Output())
	}
}

// startProcess builds and runs the server as it ships, until the test ends.
func startProcess(ctx context.Context, t *testing.T, descriptors int, env ...string) *testkit.Server {
	t.Helper()
	_, bin, err := testkit.Perch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, err := testkit.StartServer(ctx, bin, descriptors, env...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(20 * time.Second); err != nil {
			t.Errorf("stop: %v\n%s", err, s.Output())
		}
	})
	return s
}

// TestChurn: sockets that come and go in every rude way leave nothing behind.
func TestChurn(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo, o.Demo = true, true })
	head := []byte(testkit.Head(s.public, "/connection/websocket"))
	first := testkit.Wire(testkit.Text(string(testkit.Commands(
		testkit.ConnectCommand(token("alice", time.Hour)), testkit.SubscribeCommand(2, "news")))))
	all := append(append([]byte{}, head...), first...)
	for i := range 200 {
		w, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		at := i * len(all) / 200
		if err := w.Send(all[:at]); err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 0:
			w.Reset()
		case 1:
			w.Close()
		case 2:
			w.CloseWrite()
			if err := w.Ended(testkit.Timeout); err != nil {
				t.Fatalf("cut at %d: %v", at, err)
			}
			w.Close()
		}
	}
	eventually(t, "no session is left", func() bool {
		_, m := get(t, "http://"+s.admin+"/metrics")
		return strings.Contains(m, "\nperch_sessions 0\n")
	})
	p := s.session(t, "bob")
	p.send(testkit.SubscribeCommand(2, "news"))
	p.reply(2)
}
