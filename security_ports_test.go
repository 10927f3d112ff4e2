package perch_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"perch"
	"perch/internal/testkit"
)

// spellings are ways in which a path is asked for by somebody who hopes that
// two parts of a server read it differently. ADMIN and PUBLIC stand for the
// addresses.
var spellings = []struct{ name, line string }{
	{"plain", "GET PATH HTTP/1.1"},
	{"POST", "POST PATH HTTP/1.1"},
	{"HEAD", "HEAD PATH HTTP/1.1"},
	{"OPTIONS", "OPTIONS PATH HTTP/1.1"},
	{"HTTP/1.0", "GET PATH HTTP/1.0"},
	{"absolute", "GET http://ADMINPATH HTTP/1.1"},
	{"absolute, the public port", "GET http://PUBLICPATH HTTP/1.1"},
	{"two slashes", "GET /PATH HTTP/1.1"},
	{"a host behind two slashes", "GET //ADMINPATH HTTP/1.1"},
	{"a dot segment", "GET /.PATH HTTP/1.1"},
	{"above the root", "GET /..PATH HTTP/1.1"},
	{"out of a path that is served", "GET /demo/..PATH HTTP/1.1"},
	{"out of the WebSocket path", "GET /connection/websocket/../..PATH HTTP/1.1"},
	{"out of a path, escaped", "GET /demo/%2e%2ePATH HTTP/1.1"},
	{"out of a path, slash escaped", "GET /demo/..%2fPATH HTTP/1.1"},
	{"out of a path, with backslashes", `GET /demo\..PATH HTTP/1.1`},
	{"a parameter before it", "GET /;xPATH HTTP/1.1"},
	{"a parameter behind it", "GET PATH;x HTTP/1.1"},
	{"a slash behind it", "GET PATH/ HTTP/1.1"},
	{"a fragment before it", "GET /#PATH HTTP/1.1"},
	{"a query before it", "GET /x?PATH HTTP/1.1"},
	{"an escaped query behind it", "GET PATH%3fx HTTP/1.1"},
	{"NUL behind it", "GET PATH%00 HTTP/1.1"},
}

// TestSecurityPorts: what the admin port serves is not to be had from the
// public one, in any spelling and with any header, and the other way round.
func TestSecurityPorts(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Demo, o.Echo, o.Insecure = true, true, true
		o.Auth.Require = "none"
	})
	fill := strings.NewReplacer("ADMIN", s.admin, "PUBLIC", s.public)
	admin := []string{"/metrics", "/healthz", "/readyz", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/api/info", "/api/publish", "/api/disconnect"}
	public := []string{"/demo", "/v1/token", "/v1/token/revoke", "/v1/token/introspect", "/.well-known/jwks.json", "/connection/websocket", "/connection/uni_websocket", "/connection/uni_sse", "/echo"}
	key := "X-API-Key: " + s.apiKey
	for _, side := range []struct {
		name, addr, other string
		own, foreign      []string
	}{
		{"admin paths on the public port", s.public, s.admin, public, admin},
		{"public paths on the admin port", s.admin, s.public, admin, public},
	} {
		t.Run(side.name, func(t *testing.T) {
			// The paths are right: on their own port they are answered.
			for _, path := range side.foreign {
				if got := statusOf(t, side.other, testkit.HeadOf("GET "+path+" HTTP/1.1", "Host: "+side.other, key)); got == 404 || got == 0 {
					t.Errorf("%s is not served: %d", path, got)
				}
			}
			for _, sp := range spellings {
				t.Run(sp.name, func(t *testing.T) {
					t.Parallel()
					for _, path := range side.foreign {
						line := strings.Replace(fill.Replace(sp.line), "PATH", path, 1)
						for _, host := range []string{side.addr, side.other, "localhost"} {
							head := testkit.HeadOf(line, "Host: "+host, key, "X-Original-URL: "+path, "X-Rewrite-URL: "+path,
								"X-Forwarded-Host: "+side.other, "X-Forwarded-Prefix: "+path, "X-HTTP-Method-Override: GET",
								"Forwarded: for=127.0.0.1;host="+side.other, "Connection: close", "Content-Length: 0")
							status, body := ask(t, side.addr, head)
							// 204 answers OPTIONS of paths that are served; none is.
							if !slices.Contains([]int{400, 404, 405}, status) {
								t.Errorf("%s, Host %s: %d %.100q", line, host, status, body)
							}
						}
					}
				})
			}
		})
	}
	t.Run("an upgrade on the admin port", func(t *testing.T) {
		for _, path := range []string{"/connection/websocket", "/connection/uni_websocket", "/echo", "/metrics", "/healthz"} {
			status, _ := ask(t, s.admin, testkit.Head(s.admin, path, key))
			if status == http.StatusSwitchingProtocols {
				t.Errorf("%s: upgraded", path)
			}
		}
	})
	t.Run("the API wants its key", func(t *testing.T) {
		for _, lines := range [][]string{
			nil, {"X-API-Key:"}, {"X-API-Key: " + s.apiKey + "x"}, {"X-API-Key: " + s.apiKey[1:]}, {"X-API-Key: " + strings.ToUpper(s.apiKey)},
			{"X-Api-Key: wrong", "X-API-Key: " + s.apiKey}, {"Cookie: X-API-Key=" + s.apiKey}, {"Authorization: Bearer " + s.apiKey},
		} {
			status, body := ask(t, s.admin, testkit.HeadOf(append([]string{"POST /api/info HTTP/1.1", "Host: " + s.admin, "Content-Length: 2"}, lines...)...)+"{}")
			if status != http.StatusUnauthorized {
				t.Errorf("%q: %d %s", lines, status, body)
			}
		}
		if status, body := ask(t, s.admin, testkit.HeadOf("POST /api/info?api_key="+s.apiKey+" HTTP/1.1", "Host: "+s.admin, "Content-Length: 2")+"{}"); status != http.StatusUnauthorized {
			t.Errorf("a key in the address: %d %s", status, body)
		}
	})
}

// ask sends a request and reads the answer, which may be none.
func ask(t testing.TB, addr, head string) (int, string) {
	t.Helper()
	w, err := testkit.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	if err := w.Send([]byte(head)); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(head, " ")
	resp, err := w.Response(method)
	if err != nil {
		return 0, err.Error()
	}
	if resp.StatusCode == http.StatusSwitchingProtocols || strings.Contains(resp.Header.Get("Content-Type"), "event-stream") {
		return resp.StatusCode, ""
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return resp.StatusCode, string(body)
}

// TestSecurityAdminFromPages: what a page of elsewhere makes the browser of an
// operator send to the admin port does nothing (Fetch Metadata), and no answer
// may be put into such a page.
func TestSecurityAdminFromPages(t *testing.T) {
	s := start(t, nil)
	for _, c := range []struct {
		name   string
		line   string
		lines  []string
		status int
	}{
		{"a script", "GET /debug/pprof/cmdline HTTP/1.1", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"}, 403},
		{"an image", "GET /debug/pprof/profile?seconds=1 HTTP/1.1", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"}, 403},
		{"a fetch", "GET /metrics HTTP/1.1", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty", "Origin: https://evil.net"}, 403},
		{"a fetch of another port", "GET /metrics HTTP/1.1", []string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty"}, 403},
		{"a frame", "GET /debug/pprof/ HTTP/1.1", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"}, 403},
		{"a form", "POST /api/info HTTP/1.1", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "X-API-Key: " + s.apiKey, "Content-Length: 0"}, 403},
		{"a preflight", "OPTIONS /api/info HTTP/1.1", []string{"Origin: https://evil.net", "Access-Control-Request-Method: POST"}, 405},
		{"a link that is followed", "GET /healthz HTTP/1.1", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}, 200},
		{"typed in", "GET /healthz HTTP/1.1", []string{"Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}, 200},
		{"of the port itself", "GET /metrics HTTP/1.1", []string{"Sec-Fetch-Site: same-origin"}, 200},
		{"no browser", "GET /metrics HTTP/1.1", nil, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := attemptStatus(t, s.admin, testkit.HeadOf(append([]string{c.line, "Host: " + s.admin}, c.lines...)...), c.status)
			for k := range resp.Header {
				if strings.HasPrefix(k, "Access-Control-") {
					t.Errorf("%s: %v", k, resp.Header[k])
				}
			}
		})
	}
}

// TestSecurityHeaders lists what stands on every answer: of pages, of
// endpoints, of refusals, whoever makes them.
func TestSecurityHeaders(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Demo, o.Echo = true, true })
	get := func(path string) string { return testkit.HeadOf("GET "+path+" HTTP/1.1", "Host: "+s.public) }
	const (
		nosniff  = "X-Content-Type-Options: nosniff"
		referrer = "Referrer-Policy: no-referrer"
		noStore  = "Cache-Control: no-store"
		nothing  = "Content-Security-Policy: default-src 'none'; connect-src 'self'; frame-ancestors 'none'"
		admin    = "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'"
		same     = "Cross-Origin-Resource-Policy: same-origin"
	)
	page := []string{nosniff, referrer, same, "Cross-Origin-Opener-Policy: same-origin",
		"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
	for _, c := range []struct {
		name, addr, send string
		status           int
		want             []string
	}{
		{"the demo page", s.public, get("/demo"), 200, page},
		{"keys", s.public, get("/.well-known/jwks.json"), 200, []string{nosniff, referrer, nothing}},
		{"no such path", s.public, get("/nowhere"), 404, []string{nosniff, referrer, nothing}},
		{"no such method", s.public, testkit.HeadOf("DELETE /demo HTTP/1.1", "Host: "+s.public), 405, []string{nosniff, referrer, nothing}},
		{"a WebSocket path without an upgrade", s.public, get("/echo"), 426, []string{nosniff, referrer, nothing, "Sec-WebSocket-Version: 13"}},
		{"a token refused", s.public, testkit.HeadOf("POST /v1/token HTTP/1.1", "Host: "+s.public, "Content-Length: 0"), 400, []string{nosniff, referrer, noStore, nothing}},
		{"an upgrade refused", s.public, testkit.Head(s.public, "/echo", "Origin: https://evil.net"), 403, []string{nosniff, noStore, "Connection: close"}},
		{"a version refused", s.public, handshake(s.public).set("Sec-WebSocket-Version", "8").String(), 426, []string{nosniff, noStore, "Sec-WebSocket-Version: 13"}},
		{"an upgrade without its token", s.public, testkit.Head(s.public, "/connection/websocket", "Authorization: Bearer x"), 401, []string{nosniff, noStore, "WWW-Authenticate: Bearer"}},
		{"an event stream refused", s.public, get("/connection/uni_sse"), 401, []string{nosniff, noStore, "Content-Type: application/json"}},
		{"a malformed head", s.public, "GET\r\n\r\n", 400, []string{nosniff, noStore, "Connection: close"}},
		{"a head too large", s.public, get("/" + strings.Repeat("x", 9<<10)), 431, []string{nosniff, noStore, "Connection: close"}},
		{"metrics", s.admin, get("/metrics"), 200, []string{nosniff, referrer, noStore, admin, same}},
		{"health", s.admin, get("/healthz"), 200, []string{nosniff, referrer, noStore, admin, same}},
		{"profiles", s.admin, get("/debug/pprof/"), 200, []string{nosniff, referrer, noStore, admin, same}},
		{"the API without its key", s.admin, testkit.HeadOf("POST /api/info HTTP/1.1", "Host: "+s.admin, "Content-Length: 0"), 401, []string{nosniff, referrer, noStore, admin, same}},
		{"no such path of the admin port", s.admin, get("/nowhere"), 404, []string{nosniff, referrer, noStore, admin, same}},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := attemptStatus(t, c.addr, c.send, c.status)
			for _, line := range c.want {
				k, v, _ := strings.Cut(line, ": ")
				got := resp.Header.Get(k)
				if k == "Connection" && resp.Close {
					got = "close" // net/http's client takes it out
				}
				if got != v {
					t.Errorf("%s: got %q, want %q", k, got, v)
				}
			}
			for _, k := range []string{"Server", "X-Powered-By", "Set-Cookie", "Access-Control-Allow-Origin"} {
				if v := resp.Header.Get(k); v != "" {
					t.Errorf("%s: %q", k, v)
				}
			}
		})
	}
}
