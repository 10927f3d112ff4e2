package perch_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
	"perch/topic"
)

const (
	uniPath = "/connection/uni_websocket"
	ssePath = "/connection/uni_sse"
)

// uniTopics are namespaces with and without recovery.
func uniTopics(o *perch.Options) {
	o.Topics.Namespaces = append(o.Topics.Namespaces, topic.NamespaceOptions{
		Name: "kept", HistorySize: 300, HistoryTTL: time.Hour, AllowRecovery: true,
	})
}

func uniToken(topics ...string) string {
	return testkit.Token(testSecret, "alice", time.Hour, map[string]any{"channels": topics})
}

// push is what a client that only listens gets.
type push struct {
	Channel string
	Pub     *uniPub
	Connect *struct {
		Client string
		Ping   int
		Data   json.RawMessage
		Subs   map[string]struct {
			Recoverable, Recovered bool
			WasRecovering          bool `json:"was_recovering"`
			Publications           []uniPub
			Offset                 uint64
			Epoch                  string
		}
	}
	Subscribe, Unsubscribe, Refresh *struct{ TTL int }
	Disconnect                      *struct {
		Code   int
		Reason string
	}
	id string
}

type uniPub struct {
	Data   json.RawMessage
	Offset uint64
}

// eventReader reads a stream as the HTML standard says, and notes the last id.
type eventReader struct {
	r      *bufio.Reader
	lastID string
	pings  int
}

// next is the next event that has data.
func (e *eventReader) next() (p push, err error) {
	var data []string
	id, seen := "", false
	for {
		line, err := e.r.ReadString('\n')
		if err != nil {
			return p, err
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "":
			// The end of the event.
			if seen {
				e.lastID = id
			}
			if len(data) == 0 {
				continue
			}
			p.id = id
			return p, json.Unmarshal([]byte(strings.Join(data, "\n")), &p)
		case "id":
			id, seen = value, true
		case "data":
			data = append(data, value)
		case ":":
			e.pings++
		case "retry":
			if n, err := strconv.Atoi(value); err != nil || n < 1000 || n >= 5000 {
				return p, fmt.Errorf("a line %q", line)
			}
		default:
			return p, fmt.Errorf("a line %q", line)
		}
	}
}

// stream opens an event stream; lines are of its head.
func (s *server) stream(t testing.TB, query string, lines ...string) (*testkit.Conn, *eventReader) {
	t.Helper()
	c, err := testkit.Dial(s.public)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Reset() })
	head := append([]string{"GET " + ssePath + "?" + query + " HTTP/1.1", "Host: " + s.public}, lines...)
	if err := c.Send([]byte(testkit.HeadOf(head...))); err != nil {
		t.Fatal(err)
	}
	return c, streamOf(t, c)
}

func streamOf(t testing.TB, c *testkit.Conn) *eventReader {
	t.Helper()
	resp, err := c.Response(http.MethodGet)
	if err != nil {
		t.Fatal(err)
	}
	h := resp.Header
	if resp.StatusCode != http.StatusOK || h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" ||
		h.Get("X-Accel-Buffering") != "no" || !resp.Close || resp.ContentLength != -1 || len(resp.TransferEncoding) > 0 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		t.Fatalf("answered %s %v %s", resp.Status, h, body)
	}
	return &eventReader{r: bufio.NewReader(resp.Body)}
}

func (e *eventReader) want(t testing.TB) push {
	t.Helper()
	p, err := e.next()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestEventStreamCut: however the request is cut, a session begins, hears what is
// published, and its stream ends in order.
func TestEventStreamCut(t *testing.T) {
	s := start(t, uniTopics)
	head := testkit.HeadOf("GET "+ssePath+" HTTP/1.1", "Host: "+s.public, "Authorization: Bearer "+uniToken("kept:a"), "Accept: text/event-stream")
	try := func(how string, send func(c *testkit.Conn) error) {
		t.Helper()
		c, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Reset()
		if err := send(c); err != nil {
			t.Fatal(err)
		}
		e := streamOf(t, c)
		hello := e.want(t)
		if hello.Connect == nil || hello.Connect.Client == "" || !hello.Connect.Subs["kept:a"].Recoverable || hello.id == "" {
			t.Fatalf("%s: the first event is %+v", how, hello)
		}
	}
	try("whole", func(c *testkit.Conn) error { return c.Send([]byte(head)) })
	try("byte by byte", func(c *testkit.Conn) error { return c.SendEach([]byte(head)) })
	for i := 1; i < len(head); i++ {
		try(fmt.Sprint("cut at ", i), func(c *testkit.Conn) error { return c.SendCut([]byte(head), i) })
	}
}

// TestUniWebSocketCut is the same for a WebSocket whose first message names it.
func TestUniWebSocketCut(t *testing.T) {
	s := start(t, nil)
	sent := append([]byte(testkit.Head(s.public, uniPath)), testkit.Wire(testkit.Client(testkit.OpText, []byte(`{"token":"`+uniToken("news")+`"}`)))...)
	try := func(how string, send func(c *testkit.Conn) error) {
		t.Helper()
		c, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Reset()
		if err := send(c); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Upgraded(); err != nil {
			t.Fatal(err)
		}
		if p := nextPush(t, c); p.Connect == nil || len(p.Connect.Subs) != 1 {
			t.Fatalf("%s: the first push is %+v", how, p)
		}
	}
	try("whole", func(c *testkit.Conn) error { return c.Send(sent) })
	try("byte by byte", func(c *testkit.Conn) error { return c.SendEach(sent) })
	for i := 1; i < len(sent); i++ {
		try(fmt.Sprint("cut at ", i), func(c *testkit.Conn) error { return c.SendCut(sent, i) })
	}
}

func nextPush(t testing.TB, c *testkit.Conn) (p push) {
	t.Helper()
	m, err := c.Message()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(m, &p); err != nil {
		t.Fatalf("%s: %v", m, err)
	}
	return p
}

// TestUniWebSocketHandshake: where the token may stand, and what a bad one gets.
func TestUniWebSocketHandshake(t *testing.T) {
	good, bad := uniToken("news"), "x.y.z"
	expired := testkit.Token(testSecret, "alice", -time.Hour, nil)
	connect := func(request string) string { return "?cf_connect=" + url.QueryEscape(request) }
	for _, tt := range []struct {
		name   string
		change func(*perch.Options)
		query  string
		line   string
		first  string // message
		status int    // 0: 101
		code   uint16 // 0: it begins
	}{
		{name: "header", line: "Authorization: Bearer " + good},
		{name: "subprotocol", line: "Sec-WebSocket-Protocol: bearer." + good},
		{name: "query", query: "?token=" + good},
		{name: "cf_connect", query: connect(`{"token":"` + good + `"}`)},
		{name: "cf_connect beside a token", query: connect(`{"name":"x"}`) + "&access_token=" + good},
		{name: "first message", first: `{"token":"` + good + `"}`},
		{name: "insecure", change: func(o *perch.Options) { o.Insecure = true }},
		{name: "none needed", change: func(o *perch.Options) { o.Auth.Require = "none" }},

		{name: "bad in the query", query: "?token=" + bad, status: 401},
		{name: "bad in cf_connect", query: connect(`{"token":"` + bad + `"}`), status: 401},
		{name: "expired in cf_connect", query: connect(`{"token":"` + expired + `"}`), status: 401},
		{name: "malformed cf_connect", query: connect(`{"token"`), status: 400},
		{name: "malformed query", query: "?%zz", status: 400},
		{name: "Protobuf", query: "?format=protobuf&token=" + good, status: 400},
		{name: "Protobuf by subprotocol", line: "Sec-WebSocket-Protocol: centrifuge-protobuf", status: 400},
		{name: "of another page", line: "Origin: https://elsewhere.example", status: 403},
		{name: "before the upgrade, none", change: func(o *perch.Options) { o.Auth.Require = "handshake" }, status: 401},
		{name: "before the upgrade, in cf_connect", change: func(o *perch.Options) { o.Auth.Require = "handshake" },
			query: connect(`{"token":"` + good + `"}`)},

		{name: "bad in the first message", first: `{"token":"` + bad + `"}`, code: 3500},
		{name: "expired in the first message", first: `{"token":"` + expired + `"}`, code: 3005},
		{name: "none in the first message", first: `{}`, code: 3501},
		{name: "none in cf_connect", query: connect(`{}`), code: 3501},
		{name: "nothing said", code: 3502, change: func(o *perch.Options) { o.Limits.ConnectTimeout = 200 * time.Millisecond }},
		{name: "something else said", first: `{"id":1,"connect":{}}x`, code: 3501},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, tt.change)
			c, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Reset() })
			var lines []string
			if tt.line != "" {
				lines = append(lines, tt.line)
			}
			if err := c.Send([]byte(testkit.Head(s.public, uniPath+tt.query, lines...))); err != nil {
				t.Fatal(err)
			}
			resp, err := c.Response(http.MethodGet)
			if err != nil {
				t.Fatal(err)
			}
			if want := max(tt.status, 101); tt.status == 0 && resp.StatusCode != 101 || tt.status > 0 && resp.StatusCode != want {
				t.Fatalf("answered %s, want %d", resp.Status, want)
			}
			if tt.status > 0 {
				return
			}
			if tt.first != "" {
				if err := c.SendFrames(testkit.Client(testkit.OpText, []byte(tt.first))); err != nil {
					t.Fatal(err)
				}
			}
			if tt.code != 0 {
				if code, reason, err := c.Closed(); err != nil || code != tt.code {
					t.Errorf("closed with %d %q, %v", code, reason, err)
				}
				return
			}
			if p := nextPush(t, c); p.Connect == nil || p.Connect.Ping != 0 { // none that a page could see
				t.Errorf("the first push is %+v", p)
			}
		})
	}
}

// TestEventStreamAnswers: what gets no stream, over the loop and over net/http, and
// what a page of another origin may read.
func TestEventStreamAnswers(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.WebSocket.AllowedOrigins = []string{"https://app.example"} })
	good, bad := uniToken("news"), "x.y.z"
	expired := testkit.Token(testSecret, "alice", -time.Hour, nil)
	host := "Host: " + s.public
	get := func(query string) string { return "GET " + ssePath + query + " HTTP/1.1" }
	for _, tt := range []struct {
		name   string
		lines  []string
		status int
		header map[string]string
		says   string
	}{
		{"good", []string{get("?token=" + good), host}, 200, map[string]string{"Access-Control-Allow-Origin": ""}, ""},
		{"in cf_connect", []string{get("?cf_connect=" + url.QueryEscape(`{"token":"`+good+`"}`)), host}, 200, nil, ""},
		{"of a proxy", []string{"GET " + ssePath + "?token=" + good + " HTTP/1.0"}, 200, nil, ""},
		{"of a page", []string{get("?token=" + good), host, "Origin: https://app.example"}, 200,
			map[string]string{"Access-Control-Allow-Origin": "https://app.example", "Vary": "Origin"}, ""},
		{"of another page", []string{get("?token=" + good), host, "Origin: https://elsewhere.example"}, 403,
			map[string]string{"Access-Control-Allow-Origin": ""}, "origin not allowed"},
		{"no token", []string{get(""), host}, 401, map[string]string{"Www-Authenticate": "Bearer"}, "a token is needed"},
		{"bad token", []string{get("?token=" + bad), host}, 401, nil, "invalid token"},
		{"bad token of a page", []string{get("?token=" + bad), host, "Origin: https://app.example"}, 401,
			map[string]string{"Access-Control-Allow-Origin": "https://app.example"}, "invalid token"},
		{"expired token", []string{get("?token=" + expired), host}, 401, nil, "token expired"},
		{"bad cf_connect", []string{get("?cf_connect=x"), host}, 400, nil, "malformed cf_connect"},
		{"bad query", []string{get("?%zz"), host}, 400, nil, "malformed query"},
		{"Protobuf", []string{get("?format=protobuf&token=" + good), host}, 400, nil, "JSON only"},
		{"no Host", []string{get("?token=" + good)}, 400, nil, ""},
		{"POST", []string{"POST " + ssePath + " HTTP/1.1", host, "Content-Length: 0"}, 405, map[string]string{"Allow": "GET"}, ""},
		{"HEAD", []string{"HEAD " + ssePath + " HTTP/1.1", host}, 405, map[string]string{"Allow": "GET"}, ""},
		{"preflight", []string{"OPTIONS " + ssePath + " HTTP/1.1", host, "Origin: https://app.example", "Access-Control-Request-Method: GET"}, 204,
			map[string]string{"Access-Control-Allow-Methods": "GET", "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID"}, ""},
	} {
		for _, kept := range []bool{false, true} {
			name := tt.name
			if kept {
				if strings.HasSuffix(tt.lines[0], "1.0") || tt.name == "no Host" {
					continue // net/http keeps no connection of these, or answers for itself
				}
				// The connection is with net/http already.
				name += ", second on its connection"
			}
			t.Run(name, func(t *testing.T) {
				c, err := testkit.Dial(s.public)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Reset() })
				if kept {
					if err := c.Send([]byte(testkit.HeadOf("GET /nowhere HTTP/1.1", host))); err != nil {
						t.Fatal(err)
					}
					resp, err := c.Response(http.MethodGet)
					if err != nil {
						t.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
				}
				if err := c.Send([]byte(testkit.HeadOf(tt.lines...))); err != nil {
					t.Fatal(err)
				}
				method, _, _ := strings.Cut(tt.lines[0], " ")
				resp, err := c.Response(method)
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode != tt.status {
					t.Fatalf("answered %s", resp.Status)
				}
				for k, v := range tt.header {
					if got := resp.Header.Get(k); got != v {
						t.Errorf("%s: %q, want %q", k, got, v)
					}
				}
				if tt.status == 200 {
					if p := (&eventReader{r: bufio.NewReader(resp.Body)}).want(t); p.Connect == nil {
						t.Errorf("the first event is %+v", p)
					}
					return
				}
				if tt.says == "" {
					return
				}
				var problem struct {
					Error       string `json:"error"`
					Description string `json:"error_description"`
				}
				if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil || problem.Description != tt.says ||
					resp.Header.Get("Content-Type") != "application/json" {
					t.Errorf("said %+v, %v, %v", problem, resp.Header, err)
				}
			})
		}
	}
}

// TestUniServerAPI: what the server API does to sessions that only listen.
func TestUniServerAPI(t *testing.T) {
	for _, kind := range []string{"websocket", "events"} {
		t.Run(kind, func(t *testing.T) {
			s := start(t, uniTopics)
			var next func() push
			var ended func() (int, string)
			var hangUp func()
			tok := testkit.Token(testSecret, "alice", time.Hour, map[string]any{"channels": []string{"news"}, "jti": "j1"})
			if kind == "events" {
				c, e := s.stream(t, "token="+tok)
				next, hangUp = func() push { return e.want(t) }, func() { c.Reset() }
				ended = func() (int, string) {
					p := e.want(t)
					if _, err := e.next(); !errors.Is(err, io.EOF) || p.Disconnect == nil {
						t.Fatalf("the last event is %+v, then %v", p, err)
					}
					return p.Disconnect.Code, p.Disconnect.Reason
				}
			} else {
				c, err := testkit.Open(s.public, uniPath, "Authorization: Bearer "+tok)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Reset() })
				next, hangUp = func() push { return nextPush(t, c) }, func() { c.Reset() }
				ended = func() (int, string) {
					code, reason, err := c.Closed()
					if err != nil {
						t.Fatal(err)
					}
					return int(code), reason
				}
			}
			hello := next()
			if hello.Connect == nil {
				t.Fatalf("the first push is %+v", hello)
			}
			s.api(t, "publish", `{"channel":"news","data":"hello"}`)
			if p := next(); p.Channel != "news" || p.Pub == nil || string(p.Pub.Data) != `"hello"` {
				t.Errorf("got %+v", p)
			}
			s.api(t, "subscribe", `{"user":"alice","channel":"kept:x"}`)
			if p := next(); p.Channel != "kept:x" || p.Subscribe == nil {
				t.Errorf("got %+v", p)
			}
			s.api(t, "publish", `{"channel":"kept:x","data":1}`)
			if p := next(); p.Pub == nil || !stands(p.Pub.Offset, 1) {
				t.Errorf("got %+v", p)
			}
			s.api(t, "unsubscribe", `{"client":"`+hello.Connect.Client+`","user":"alice","channel":"news"}`)
			if p := next(); p.Channel != "news" || p.Unsubscribe == nil {
				t.Errorf("got %+v", p)
			}
			s.api(t, "refresh", `{"user":"alice","expire_at":`+strconv.FormatInt(time.Now().Unix()+600, 10)+`}`)
			if p := next(); p.Refresh == nil || p.Refresh.TTL < 590 {
				t.Errorf("got %+v", p)
			}
			s.api(t, "disconnect", `{"user":"alice","disconnect":{"code":4321,"reason":"go \"away\"\n"}}`)
			if code, reason := ended(); code != 4321 || reason != "go \"away\"\n" {
				t.Errorf("ended with %d %q", code, reason)
			}
			eventually(t, "no session is left", func() bool {
				_, page := get(t, "http://"+s.admin+"/metrics")
				return strings.Contains(page, "\nperch_sessions 0\n") && strings.Contains(page, "\nperch_subscriptions 0\n")
			})
			_, page := get(t, "http://"+s.admin+"/metrics")
			outcome := "upgraded"
			if kind == "events" {
				outcome = "streamed"
			}
			for _, line := range []string{
				`perch_handshakes_total{outcome="` + outcome + `"} 1`, `perch_commands_total{command="connect"} 1`,
				`perch_messages_total{direction="out"} 6`,
			} {
				if !strings.Contains(page, "\n"+line+"\n") {
					t.Errorf("the metrics have no %s", line)
				}
			}
			hangUp()
			eventually(t, "the close is counted", func() bool {
				_, page := get(t, "http://"+s.admin+"/metrics")
				return strings.Contains(page, "\nperch_closes_total{reason=\"custom\"} 1\n")
			})
		})
	}
}

// TestUniEnds: a drain, a revocation and the token's end reach them.
func TestUniEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, s *server, token string)
		code int
	}{
		{"drain", func(_ *testing.T, s *server, _ string) { s.cancel() }, 3001},
		{"revocation", func(t *testing.T, s *server, token string) {
			resp, err := http.PostForm("http://"+s.public+"/v1/token/revoke", url.Values{
				"token": {token}, "client_id": {"demo"}, "client_secret": {"demo-secret"}})
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Fatal(resp.Status)
			}
		}, 3500},
		{"the API's refresh", func(t *testing.T, s *server, _ string) { s.api(t, "refresh", `{"user":"demo","expired":true}`) }, 3005},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, func(o *perch.Options) { o.Dev = true })
			resp, err := http.PostForm("http://"+s.public+"/v1/token", url.Values{
				"grant_type": {"client_credentials"}, "client_id": {"demo"}, "client_secret": {"demo-secret"}})
			if err != nil {
				t.Fatal(err)
			}
			var issued struct {
				Token string `json:"access_token"`
			}
			err = json.NewDecoder(resp.Body).Decode(&issued)
			_ = resp.Body.Close()
			if err != nil || issued.Token == "" {
				t.Fatalf("no token: %v", err)
			}
			w, err := testkit.Open(s.public, uniPath, "Authorization: Bearer "+issued.Token)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { w.Reset() })
			nextPush(t, w)
			c, e := s.stream(t, "token="+issued.Token)
			e.want(t)
			tt.end(t, s, issued.Token)
			if code, _, err := w.Closed(); err != nil || int(code) != tt.code {
				t.Errorf("the WebSocket ended with %d, %v", code, err)
			}
			if p := e.want(t); p.Disconnect == nil || p.Disconnect.Code != tt.code || p.id != "" {
				t.Errorf("the stream ended with %+v", p)
			}
			if err := c.Ended(testkit.Timeout); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUniLimits: the caps and the drain's 503 hold for them.
func TestUniLimits(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Limits.ConnectionsPerAddress = 1 })
	_, e := s.stream(t, "token="+uniToken("news"))
	e.want(t)
	status, _ := get(t, "http://"+s.public+ssePath+"?token="+uniToken())
	if status != http.StatusTooManyRequests {
		t.Errorf("status %d", status)
	}
}

// TestUniHeartbeat: a WebSocket that does not answer is ended; a stream is only
// told that it lives.
func TestUniHeartbeat(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Heartbeat.Interval, o.Heartbeat.Timeout = 200*time.Millisecond, 150*time.Millisecond
	})
	w, err := testkit.Open(s.public, uniPath, "Authorization: Bearer "+uniToken())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Reset() })
	nextPush(t, w)
	_, e := s.stream(t, "token="+uniToken("news"))
	e.want(t)
	f, err := w.Frame()
	if err != nil || f.Opcode != testkit.OpPing {
		t.Fatalf("%+v, %v", f, err)
	}
	if code, _, err := w.Closed(); err != nil || code != 3012 {
		t.Errorf("closed with %d, %v", code, err)
	}
	// Pings go on, well over the time that a WebSocket would have had.
	for e.pings < 6 {
		line, err := e.r.ReadString('\n')
		if err != nil {
			t.Fatalf("behind %d pings: %v", e.pings, err)
		}
		if line == ":\n" {
			e.pings++
		}
	}
	s.api(t, "publish", `{"channel":"news","data":1}`)
	if p := e.want(t); p.Pub == nil {
		t.Errorf("behind the pings: %+v", p)
	}
}

// TestUniOff: a path that is off is none, and one may be another.
func TestUniOff(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.WebSocket.UniPath, o.SSE.Path = perch.PathOff, "/events" })
	for path, want := range map[string]int{uniPath: 404, ssePath: 404, "/off": 404, "/events": 401} {
		if status, _ := get(t, "http://"+s.public+path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
}

// TestEventStreamSlow: who reads too slowly is told so behind whole events, and
// gets what it missed when it is back.
func TestEventStreamSlow(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		uniTopics(o)
		o.Limits.PendingBytes = 128 << 10
	})
	tok := uniToken("kept:a", "plain")
	_, e := s.stream(t, "token="+tok)
	if e.want(t).id == "" {
		t.Fatal("no id")
	}
	// It reads no more. What fills its buffers is not kept, so that what it missed
	// is small.
	big := strings.Repeat("x", 32<<10)
	published := 0
	for slow := false; !slow && published < 290; published++ {
		s.api(t, "publish", fmt.Sprintf(`{"channel":"plain","data":"%s"}`, big))
		s.api(t, "publish", fmt.Sprintf(`{"channel":"kept:a","data":%d}`, published))
		_, page := get(t, "http://"+s.admin+"/metrics")
		slow = strings.Contains(page, "\nperch_slow_consumers_total 1\n")
	}
	got := 0
	take := func(p uniPub) {
		if string(p.Data) != strconv.Itoa(got) || !stands(p.Offset, got+1) {
			t.Fatalf("publication %d is %s", got, p.Data)
		}
		got++
	}
	for {
		p, err := e.next()
		if err != nil {
			// On a busy machine the second is over that a peer has for the last event.
			t.Logf("ended by %v", err)
			break
		}
		if p.Disconnect != nil {
			if p.Disconnect.Code != 3008 || p.id != "" {
				t.Fatalf("%+v", p)
			}
			if _, err := e.next(); !errors.Is(err, io.EOF) {
				t.Errorf("then came %v", err)
			}
			break
		}
		switch p.Channel {
		case "kept:a":
			take(*p.Pub)
		case "plain":
			if string(p.Pub.Data) != `"`+big+`"` {
				t.Fatalf("a publication of %d bytes", len(p.Pub.Data))
			}
		}
	}
	if got == published {
		t.Fatal("nothing was missed")
	}
	_, e2 := s.stream(t, "token="+tok, "Last-Event-ID: "+e.lastID)
	sub := e2.want(t).Connect.Subs["kept:a"]
	if !sub.WasRecovering || !sub.Recovered {
		t.Fatalf("%d of %d came, and the rest is not recovered", got, published)
	}
	for _, p := range sub.Publications {
		take(p)
	}
	if got != published {
		t.Errorf("%d of %d came", got, published)
	}
}

// TestEventStreamResumes: readers whose connections break at any byte, while
// several topics are published to; each gets all, once, in order.
func TestEventStreamResumes(t *testing.T) {
	const readers, publications = 6, 240
	s := start(t, uniTopics)
	topics := []string{"kept:a", "kept:b", "kept:c"}
	tok := uniToken(append(topics, "plain")...)
	var began, wg sync.WaitGroup
	began.Add(readers)
	breaks := make([]int, readers)
	taken := make(chan struct{}, 1) // that somebody has got something
	for k := range readers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(k)))
			last, next := "", map[string]int{}
			first, vain := true, 0
			defer func() {
				if first {
					began.Done()
				}
			}()
			take := func(name string, p uniPub) bool {
				n := 0
				if _, err := fmt.Sscanf(string(p.Data), `"%d `, &n); err != nil || n != next[name] || !stands(p.Offset, n+1) {
					t.Errorf("reader %d: %s brings %.20s with offset %d, want %d", k, name, p.Data, p.Offset, next[name])
					return false
				}
				next[name]++
				select {
				case taken <- struct{}{}:
				default:
				}
				return true
			}
			done := func() bool {
				for _, name := range topics {
					if next[name] < publications {
						return false
					}
				}
				return true
			}
			for end := time.Now().Add(60 * time.Second); !done(); {
				if time.Now().After(end) {
					t.Errorf("reader %d stands at %v", k, next)
					return
				}
				c, err := testkit.Dial(s.public)
				if err != nil {
					t.Error(err)
					return
				}
				head := []string{"GET " + ssePath + "?token=" + tok + " HTTP/1.1", "Host: " + s.public}
				if last != "" {
					head = append(head, "Last-Event-ID: "+last)
				}
				_ = c.Send([]byte(testkit.HeadOf(head...)))
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				limit := int64(1) << 40
				if !first {
					// Who has fallen far behind gets more at once than a break would let pass.
					limit = 300 + rng.Int64N(20_000<<min(vain, 10))
					vain++
				}
				r := bufio.NewReader(io.LimitReader(c.R, limit))
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					c.Reset()
					continue
				}
				e := &eventReader{r: bufio.NewReader(resp.Body), lastID: last}
				left := 1 << 30
				if first {
					left = 1 + rng.IntN(20) // so that all are there before the first publication
				}
				for ; left > 0 && !done(); left-- {
					p, err := e.next()
					if err != nil {
						break
					}
					if p.Connect != nil {
						for _, name := range topics {
							sub := p.Connect.Subs[name]
							if !first && !sub.Recovered {
								t.Errorf("reader %d: %s is not recovered from %v", k, name, next)
								c.Reset()
								return
							}
							for _, m := range sub.Publications {
								if !take(name, m) {
									return
								}
							}
						}
						if first {
							first = false
							began.Done()
						}
						vain = 0
						continue
					}
					if p.Disconnect != nil {
						t.Errorf("reader %d: %+v", k, p.Disconnect)
						return
					}
					if p.Channel != "plain" && !take(p.Channel, *p.Pub) {
						return
					}
				}
				last = e.lastID
				breaks[k]++
				c.Reset()
			}
		})
	}
	began.Wait()
	ended := make(chan struct{}) // no reader is left
	go func() { wg.Wait(); close(ended) }()
	for i := range publications {
		for _, name := range append(topics, "plain") {
			data := fmt.Sprintf(`"%d %s"`, i, strings.Repeat("x", i%97*7))
			if err := s.Publish(t.Context(), name, []byte(data)); err != nil {
				t.Error(err)
			}
		}
		select { // readers and publisher keep pace
		case <-taken:
		case <-ended:
		}
	}
	wg.Wait()
	t.Logf("connections broke %v times", breaks)
	for k, n := range breaks {
		if n < 3 && !t.Failed() {
			t.Errorf("reader %d broke %d times: the test is of no use", k, n)
		}
	}
}
