package perch_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"perch"
	"perch/internal/testkit"
)

// originCase is an Origin as a page of somewhere, or somebody who pretends to
// be one, sends it. HOST stands for the server's own.
type originCase struct {
	name, origin string
	ok           bool
}

// originCases hold with https://*.example.com, https://app.test:8443 and
// https://xn--bcher-kva.example allowed.
var originCases = []originCase{
	{"the own host", "http://HOST", true},
	{"the own host over TLS, which a proxy ends", "https://HOST", true},
	{"the own host in capitals", "HTTP://HOST", true},
	{"exact", "https://app.test:8443", true},
	{"exact, in capitals", "HTTPS://App.Test:8443", true},
	{"a subdomain", "https://a.example.com", true},
	{"a subdomain of a subdomain", "https://a.b.example.com", true},
	{"the punycode of a name", "https://xn--bcher-kva.example", true},

	{"null", "null", false},
	{"null in capitals", "NULL", false},
	{"null with a scheme", "https://null", false},
	{"nothing but a scheme", "https://", false},
	{"no scheme", "a.example.com", false},
	{"no scheme, the own host", "HOST", false},
	{"slashes and no scheme", "//a.example.com", false},
	{"the own host without slashes", "http:HOST", false},
	{"another scheme", "http://a.example.com", false},
	{"a scheme that ends alike", "xhttps://a.example.com", false},
	{"a file", "file://", false},
	{"an extension", "chrome-extension://abcdefghijklmnop", false},
	{"javascript", "javascript:alert(1)", false},
	{"data", "data:text/html,x", false},
	{"the domain itself, without a subdomain", "https://example.com", false},
	{"another port", "https://a.example.com:8443", false},
	{"the default port, spelled out", "https://a.example.com:443", false},
	{"an exact name without its port", "https://app.test", false},
	{"an exact name with another port", "https://app.test:8444", false},
	{"an exact port with more behind", "https://app.test:84430", false},
	{"the domain as a prefix", "https://a.example.com.evil.net", false},
	{"the domain as a suffix of a name", "https://evilexample.com", false},
	{"the domain with a dot behind", "https://a.example.com.", false},
	{"a dash for the dot", "https://a-example.com", false},
	{"the domain as a user", "https://a.example.com@evil.net", false},
	{"the domain as a secret", "https://u:a.example.com@evil.net", false},
	{"a user before the domain", "https://evil.net@a.example.com", false},
	{"a user before the own host", "http://evil.net@HOST", false},
	{"the domain in the path", "https://evil.net/a.example.com", false},
	{"the domain in the query", "https://evil.net?.example.com", false},
	{"the domain in the fragment", "https://evil.net#.example.com", false},
	{"the domain behind a backslash", `https://evil.net\.example.com`, false},
	{"the domain as a port", "https://evil.net:.example.com", false},
	{"the domain behind an escape", "https://evil.net%2f.example.com", false},
	{"the domain behind NUL, escaped", "https://evil.net%00.example.com", false},
	{"a path behind the own host", "http://HOST/", false},
	{"a query behind the own host", "http://HOST?", false},
	{"the own host and more", "http://HOST.evil.net", false},
	{"the own host's beginning", "http://127.0.0.1", false},
	{"another name of the own host", "http://localhost:PORT", false},
	{"the own address, spelled otherwise", "http://127.1:PORT", false},
	{"the own address as a number", "http://2130706433:PORT", false},
	{"a list of origins", "https://evil.net https://a.example.com", false},
	{"a list with a comma", "https://a.example.com,https://evil.net", false},
	{"blanks inside", "https://a.example.com x", false},
	{"a name that is not in ASCII", "https://bücher.example", false},
	{"a letter whose lower case is ASCII", "https://a.exam\u212ale.com", false},
	{"a dot that is none", "https://a\u3002example.com", false},
	{"bytes that are no text", "https://\xff.example.com", false},
	{"an asterisk", "*", false},
	{"the pattern", "https://*", false},
}

// TestSecurityOrigins: RFC 6455, section 10.2; RFC 6454, section 4 and 7: a
// page of an origin that is not allowed opens no WebSocket, reads no event
// stream and calls no token endpoint, whatever its browser sends along.
func TestSecurityOrigins(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Insecure, o.Echo = true, true
		o.Auth.Require = "none"
		o.WebSocket.AllowedOrigins = []string{"https://*.example.com", "https://app.test:8443", "https://xn--bcher-kva.example"}
	})
	_, port, _ := strings.Cut(s.public, ":")
	fill := strings.NewReplacer("HOST", s.public, "PORT", port)
	for _, c := range originCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			origin := fill.Replace(c.origin)
			line := "Origin: " + origin
			want := func(ok int) int {
				if c.ok {
					return ok
				}
				return http.StatusForbidden
			}
			for _, path := range []string{"/connection/websocket", "/connection/uni_websocket", "/echo"} {
				resp := attemptStatus(t, s.public, testkit.Head(s.public, path, line), want(101))
				if h := resp.Header.Get("Access-Control-Allow-Origin"); h != "" {
					t.Errorf("%s: Access-Control-Allow-Origin: %s", path, h)
				}
			}
			cross := func(what string, resp *http.Response) {
				t.Helper()
				allowed := resp.Header.Get("Access-Control-Allow-Origin")
				if c.ok != (allowed != "") || c.ok && allowed != origin || resp.Header.Get("Access-Control-Allow-Credentials") != "" {
					t.Errorf("%s: %v", what, resp.Header)
				}
				if c.ok && !strings.Contains(strings.Join(resp.Header["Vary"], ","), "Origin") {
					t.Errorf("%s: an answer for one origin must say Vary: %v", what, resp.Header)
				}
			}
			cross("event stream", attemptStatus(t, s.public, testkit.HeadOf("GET /connection/uni_sse HTTP/1.1", "Host: "+s.public, line), want(200)))
			cross("token", attemptStatus(t, s.public, testkit.HeadOf("POST /v1/token HTTP/1.1", "Host: "+s.public, line, "Content-Length: 0"), http.StatusBadRequest))
			cross("keys", attemptStatus(t, s.public, testkit.HeadOf("GET /.well-known/jwks.json HTTP/1.1", "Host: "+s.public, line), http.StatusOK))
			for _, path := range []string{"/v1/token", "/v1/token/revoke", "/v1/token/introspect", "/connection/uni_sse"} {
				method := "POST"
				if strings.HasSuffix(path, "sse") {
					method = "GET"
				}
				resp := attemptStatus(t, s.public, testkit.HeadOf("OPTIONS "+path+" HTTP/1.1", "Host: "+s.public, line,
					"Access-Control-Request-Method: "+method, "Access-Control-Request-Headers: authorization"), want(http.StatusNoContent))
				cross("preflight of "+path, resp)
				if resp.Header.Get("Access-Control-Allow-Private-Network") != "" || !c.ok && resp.Header.Get("Access-Control-Allow-Headers") != "" {
					t.Errorf("preflight of %s: %v", path, resp.Header)
				}
			}
		})
	}
}

// TestSecurityOriginLines: what is no single Origin is never none.
func TestSecurityOriginLines(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Insecure = true
		o.Auth.Require = "none"
	})
	own := "Origin: http://" + s.public
	for _, c := range []struct {
		name   string
		lines  []string
		status int
	}{
		{"none", nil, 0},
		{"one", []string{own}, 0},
		{"two that are allowed", []string{own, own}, 400},
		{"another behind an allowed one", []string{own, "Origin: https://evil.net"}, 400},
		{"an allowed one behind another", []string{"Origin: https://evil.net", own}, 400},
		{"an empty one", []string{"Origin:"}, 400},
		{"a blank one", []string{"Origin: \t "}, 400},
		{"an empty one behind an allowed one", []string{own, "Origin:"}, 400},
		{"another in capitals", []string{"ORIGIN: https://evil.net"}, 403},
		{"an allowed Sec-WebSocket-Origin", []string{"Origin: https://evil.net", "Sec-WebSocket-Origin: http://" + s.public}, 403},
		{"a Referer that is allowed", []string{"Origin: https://evil.net", "Referer: http://" + s.public + "/"}, 403},
		{"a forwarded host", []string{"Origin: https://evil.net", "X-Forwarded-Host: evil.net"}, 403},
		{"a Forwarded host", []string{"Origin: https://evil.net", "Forwarded: host=evil.net"}, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			status := func(ok int) int {
				if c.status == 0 {
					return ok
				}
				return c.status
			}
			attemptStatus(t, s.public, testkit.Head(s.public, "/connection/websocket", c.lines...), status(101))
			attemptStatus(t, s.public, testkit.Head(s.public, "/connection/uni_websocket", c.lines...), status(101))
			attemptStatus(t, s.public, testkit.HeadOf(append([]string{"GET /connection/uni_sse HTTP/1.1", "Host: " + s.public}, c.lines...)...), status(200))
		})
	}
	t.Run("behind another request", func(t *testing.T) {
		for _, c := range []struct {
			origin string
			status int
		}{{own, 101}, {"Origin: https://evil.net", 403}, {"Origin: null", 403}, {"Origin:", 400}} {
			w, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Reset()
			if err := w.Send([]byte(testkit.HeadOf("GET /.well-known/jwks.json HTTP/1.1", "Host: "+s.public) + testkit.Head(s.public, "/connection/websocket", c.origin))); err != nil {
				t.Fatal(err)
			}
			readPage(t, w)
			resp, err := w.Response("GET")
			if err != nil || resp.StatusCode != c.status {
				t.Errorf("%s: got %v, %v, want %d", c.origin, resp, err, c.status)
			}
		}
	})
	t.Run("the host of an absolute target", func(t *testing.T) {
		for _, c := range []struct {
			line, host, origin string
			status             int
		}{
			// RFC 9112, section 3.2.2: the authority counts, Host does not.
			{"GET http://a.test/connection/websocket HTTP/1.1", "b.test", "http://a.test", 101},
			{"GET http://a.test/connection/websocket HTTP/1.1", "b.test", "http://b.test", 403},
			{"GET http://a.test:81/connection/websocket HTTP/1.1", "a.test", "http://a.test", 403},
			{"GET /connection/websocket HTTP/1.1", "b.test", "http://a.test", 403},
		} {
			attemptStatus(t, s.public, handshake(s.public).start(c.line).set("Host", c.host).with("Origin: "+c.origin).String(), c.status)
		}
	})
}

// TestSecurityOriginPatterns: what a pattern of websocket.allowed_origins
// matches at its edges.
func TestSecurityOriginPatterns(t *testing.T) {
	for _, c := range []struct {
		patterns []string
		yes, no  []string
	}{
		{nil, nil, []string{"https://a.test", "null"}},
		{[]string{"*"}, []string{"https://a.test", "null", "file://", "http://u@a.test"}, nil},
		{[]string{"https://*"}, []string{"https://a.test", "https://a.b:1"}, []string{"http://a.test", "https://a.test/", "https://u@a.test", "null"}},
		{[]string{"http://localhost:*"}, []string{"http://localhost:1", "http://localhost:65535"}, []string{"http://localhost", "http://localhost:1@evil.net", "http://localhost:1.evil.net", "http://localhost.evil.net:1"}},
		{[]string{"https://app-?.test"}, []string{"https://app-1.test"}, []string{"https://app-12.test", "https://app-.test", "https://app-/.test"}},
		{[]string{"https://[ab].test"}, []string{"https://a.test"}, []string{"https://c.test", "https://[ab].test"}},
		{[]string{"HTTPS://App.Test"}, []string{"https://app.test"}, []string{"http://app.test"}},
		{[]string{"http://a.test", "https://b.test"}, []string{"http://a.test", "https://b.test"}, []string{"https://a.test", "http://b.test"}},
	} {
		t.Run(fmt.Sprint(c.patterns), func(t *testing.T) {
			allow := perch.Origins(c.patterns)
			for _, o := range c.yes {
				if !allow(o, "own.test") {
					t.Errorf("%s is not allowed", o)
				}
			}
			for _, o := range c.no {
				if allow(o, "own.test") {
					t.Errorf("%s is allowed", o)
				}
			}
		})
	}
}
