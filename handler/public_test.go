package handler

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gin-gonic/gin"
)

const testSocketPath = "/connection/websocket"

func newPublicServer(t *testing.T, o PublicOptions) *httptest.Server {
	t.Helper()
	o.WebSocketPaths = append(o.WebSocketPaths, testSocketPath)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := httptest.NewServer(NewPublic(o))
	t.Cleanup(s.Close)
	s.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s
}

// ask sends one request; header holds pairs of name and value.
func ask(t *testing.T, s *httptest.Server, method, path string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func wantHeader(t *testing.T, resp *http.Response, name, want string) {
	t.Helper()
	if got := strings.Join(resp.Header.Values(name), ", "); got != want {
		t.Errorf("%s: got %q, want %q", name, got, want)
	}
}

func wantProblem(t *testing.T, body, code string) {
	t.Helper()
	var p struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Error != code || p.Description == "" {
		t.Errorf("body %q (%v), want error %q with a description", body, err, code)
	}
}

func tokenRoutes(r gin.IRouter) {
	r.POST("/v1/token", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"access_token": "x"}) })
	r.GET("/.well-known/jwks.json", func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"keys": []int{}}) })
	r.POST("/v1/panic", func(*gin.Context) { panic("at the disco") })
	r.POST("/v1/late", func(c *gin.Context) {
		c.Writer.WriteHeaderNow()
		c.Writer.Flush()
		panic("too late for an answer")
	})
}

func TestPublicUnknownPathsAndMethods(t *testing.T) {
	s := newPublicServer(t, PublicOptions{Routes: tokenRoutes})
	for _, tc := range []struct {
		name, method, path string
		status             int
		code, allow        string
	}{
		{"unknown path", "GET", "/nothing", 404, "not_found", ""},
		{"root without demo", "GET", "/", 404, "not_found", ""},
		{"demo is off", "GET", "/demo", 404, "not_found", ""},
		{"demo's settings are off", "GET", "/demo/config.json", 404, "not_found", ""},
		{"no redirect to a slash", "POST", "/v1/token/", 404, "not_found", ""},
		{"no health on the public port", "GET", "/healthz", 404, "not_found", ""},
		{"token by GET", "GET", "/v1/token", 405, "method_not_allowed", "POST"},
		{"keys by POST", "POST", "/.well-known/jwks.json", 405, "method_not_allowed", "GET, HEAD"},
		{"socket by POST", "POST", testSocketPath, 405, "method_not_allowed", "GET, HEAD"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := ask(t, s, tc.method, tc.path)
			if resp.StatusCode != tc.status {
				t.Fatalf("status %d, want %d", resp.StatusCode, tc.status)
			}
			wantProblem(t, body, tc.code)
			wantHeader(t, resp, "Allow", tc.allow)
			wantHeader(t, resp, "Content-Type", "application/json; charset=utf-8")
			wantHeader(t, resp, "X-Content-Type-Options", "nosniff")
			wantHeader(t, resp, "Content-Security-Policy", defaultPolicy)
		})
	}
}

func TestPublicUpgradeRequired(t *testing.T) {
	s := newPublicServer(t, PublicOptions{Adopt: func(http.ResponseWriter, *http.Request) {
		t.Error("a plain request was adopted")
	}})
	for _, tc := range []struct {
		name   string
		header []string
	}{
		{"plain", nil},
		{"another protocol", []string{"Connection", "Upgrade", "Upgrade", "h2c"}},
		{"upgrade not hop by hop", []string{"Upgrade", "websocket"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := ask(t, s, "GET", testSocketPath, tc.header...)
			if resp.StatusCode != http.StatusUpgradeRequired {
				t.Fatalf("status %d, want 426", resp.StatusCode)
			}
			wantHeader(t, resp, "Upgrade", "websocket")
			wantHeader(t, resp, "Connection", "Upgrade")
			wantHeader(t, resp, "Sec-WebSocket-Version", "13")
			wantProblem(t, body, "upgrade_required")
			if strings.Contains(strings.TrimSpace(body), "\n") {
				t.Errorf("body %q has more than one line", body)
			}
		})
	}
}

const upgradeRequest = "GET " + testSocketPath + " HTTP/1.1\r\nHost: perch.test\r\n" +
	"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

func TestPublicAdoptsLaterUpgrade(t *testing.T) {
	const answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
	adopted := make(chan []byte, 1)
	s := newPublicServer(t, PublicOptions{Routes: tokenRoutes, Adopt: func(w http.ResponseWriter, r *http.Request) {
		if len(w.Header()) != 0 {
			t.Errorf("headers before the handshake: %v", w.Header())
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
			return
		}
		defer conn.Close()
		early := make([]byte, buf.Reader.Buffered())
		_, _ = io.ReadFull(buf, early)
		adopted <- early
		_, _ = io.WriteString(conn, answer)
	}})
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// A token first, then the upgrade on the same connection with a frame close behind.
	_, err = io.WriteString(conn, "POST /v1/token HTTP/1.1\r\nHost: perch.test\r\nContent-Length: 0\r\n\r\n"+
		upgradeRequest+"frame")
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("token: %v, %v", resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	if early := <-adopted; string(early) != "frame" {
		t.Errorf("bytes behind the head: %q, want %q", early, "frame")
	}
	rest, err := io.ReadAll(r)
	if err != nil || string(rest) != answer {
		t.Errorf("after the hijack: %q, %v; want only what the adopter wrote", rest, err)
	}
}

func TestPublicUpgradeWithoutAdopter(t *testing.T) {
	s := newPublicServer(t, PublicOptions{})
	resp, body := ask(t, s, "GET", testSocketPath, "Connection", "Upgrade", "Upgrade", "websocket")
	if resp.StatusCode != http.StatusServiceUnavailable || !resp.Close {
		t.Errorf("status %d, close %v; want 503 and the end of the connection", resp.StatusCode, resp.Close)
	}
	wantProblem(t, body, "unavailable")
}

func TestPublicPanicIsAnsweredAndLogged(t *testing.T) {
	var log bytes.Buffer
	var panics atomic.Int64
	s := newPublicServer(t, PublicOptions{
		Routes: tokenRoutes, Logger: slog.New(slog.NewTextHandler(&log, nil)), Panicked: func() { panics.Add(1) },
	})
	resp, body := ask(t, s, "POST", "/v1/panic?token=secret")
	if resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("status %d, want 500", resp.StatusCode)
	}
	wantProblem(t, body, "server_error")
	for _, want := range []string{"level=ERROR", `msg="request panicked"`, "at the disco", "path=/v1/panic", "stack="} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %s", want)
		}
	}
	if strings.Contains(log.String(), "secret") || strings.Contains(body, "disco") {
		t.Error("the log holds the query, or the answer the panic")
	}
	// Half an answer ends with the connection, not as if it were whole.
	r, _ := http.NewRequest("POST", s.URL+"/v1/late", nil)
	late, err := s.Client().Do(r)
	if err == nil {
		_, err = io.ReadAll(late.Body)
		late.Body.Close()
	}
	if err == nil {
		t.Error("a panic behind the head was read as a whole answer")
	}
	if n := panics.Load(); n != 2 {
		t.Errorf("%d panics are told", n)
	}
}

func TestPublicCrossOrigin(t *testing.T) {
	const good, bad = "https://app.example.com", "https://evil.example.net"
	s := newPublicServer(t, PublicOptions{
		Routes: tokenRoutes, Demo: true,
		AllowOrigin: func(origin, host string) bool { return origin == good && host != "" },
	})
	preflight := []string{"Access-Control-Request-Method", "POST"}
	for _, tc := range []struct {
		name, method, path, origin string
		header                     []string
		status                     int
		allowOrigin, allowMethods  string
	}{
		{"request of an allowed origin", "POST", "/v1/token", good, nil, 200, good, ""},
		{"request of another origin", "POST", "/v1/token", bad, nil, 200, "", ""},
		{"request without origin", "POST", "/v1/token", "", nil, 200, "", ""},
		{"wrong method of an allowed origin", "GET", "/v1/token", good, nil, 405, good, ""},
		{"preflight of an allowed origin", "OPTIONS", "/v1/token", good, preflight, 204, good, "POST"},
		{"preflight for the keys", "OPTIONS", "/.well-known/jwks.json", good, preflight, 204, good, "GET, HEAD"},
		{"preflight of another origin", "OPTIONS", "/v1/token", bad, preflight, 403, "", ""},
		{"options without a preflight", "OPTIONS", "/v1/token", "", nil, 204, "", ""},
		{"preflight for the page", "OPTIONS", "/demo", good, preflight, 405, "", ""},
		{"preflight for nothing", "OPTIONS", "/nothing", good, preflight, 404, "", ""},
		{"the page's settings stay closed", "GET", "/demo/config.json", good, nil, 200, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			header := tc.header
			if tc.origin != "" {
				header = append([]string{"Origin", tc.origin}, header...)
			}
			resp, _ := ask(t, s, tc.method, tc.path, header...)
			if resp.StatusCode != tc.status {
				t.Errorf("status %d, want %d", resp.StatusCode, tc.status)
			}
			wantHeader(t, resp, "Access-Control-Allow-Origin", tc.allowOrigin)
			wantHeader(t, resp, "Access-Control-Allow-Methods", tc.allowMethods)
			wantHeader(t, resp, "Access-Control-Allow-Credentials", "")
			if strings.HasPrefix(tc.path, "/v1/") {
				wantHeader(t, resp, "Vary", "Origin")
			}
		})
	}
}

func TestPublicNoCrossOriginUnlessAllowed(t *testing.T) {
	s := newPublicServer(t, PublicOptions{Routes: tokenRoutes})
	resp, _ := ask(t, s, "OPTIONS", "/v1/token", "Origin", "https://a.example", "Access-Control-Request-Method", "POST")
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("status %d, want 403", resp.StatusCode)
	}
}

func TestPublicHead(t *testing.T) {
	s := newPublicServer(t, PublicOptions{Routes: tokenRoutes, Demo: true})
	for _, path := range []string{"/demo", "/demo/app.js", "/demo/config.json", "/.well-known/jwks.json", "/nothing"} {
		t.Run(path, func(t *testing.T) {
			get, body := ask(t, s, "GET", path)
			head, none := ask(t, s, "HEAD", path)
			if head.StatusCode != get.StatusCode || none != "" {
				t.Errorf("HEAD: status %d with %d bytes, GET: %d", head.StatusCode, len(none), get.StatusCode)
			}
			if len(body) < 2048 && head.ContentLength != int64(len(body)) {
				t.Errorf("content length %d, want %d", head.ContentLength, len(body))
			}
			wantHeader(t, head, "Content-Type", get.Header.Get("Content-Type"))
			wantHeader(t, head, "Etag", get.Header.Get("Etag"))
		})
	}
	if resp, _ := ask(t, s, "HEAD", "/v1/token"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("HEAD where there is no GET: status %d, want 405", resp.StatusCode)
	}
}

func TestDemoPage(t *testing.T) {
	s := newPublicServer(t, PublicOptions{Demo: true})
	for _, path := range []string{"/", "/demo/"} {
		resp, _ := ask(t, s, "GET", path)
		if resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "/demo" {
			t.Errorf("%s: status %d to %q, want 302 to /demo", path, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	resp, page := ask(t, s, "GET", "/demo")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d", resp.StatusCode)
	}
	wantHeader(t, resp, "Content-Type", "text/html; charset=utf-8")
	wantHeader(t, resp, "Content-Security-Policy", demoPolicy)
	wantHeader(t, resp, "Referrer-Policy", "no-referrer")
	wantHeader(t, resp, "Cross-Origin-Opener-Policy", "same-origin")
	if strings.Contains(demoPolicy, "unsafe") {
		t.Error("the policy allows unsafe sources")
	}
	if m := regexp.MustCompile(`(?i)<script>|\son[a-z]+=|\sstyle=|<style|https?://`).FindString(page); m != "" {
		t.Errorf("the page holds %q, which its policy forbids", m)
	}
	links := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page, -1)
	if len(links) < 4 {
		t.Fatalf("links: %v", links)
	}
	for _, l := range append(links, []string{"", "demo/vendor/centrifuge.protobuf.js"}, []string{"", "demo/vendor/LICENSE"}) {
		resp, body := ask(t, s, "GET", "/"+l[1])
		if resp.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: status %d, %d bytes", l[1], resp.StatusCode, len(body))
		}
		if got := resp.Header.Get("Content-Type"); got == "application/octet-stream" || got == "" {
			t.Errorf("%s: content type %q", l[1], got)
		}
	}
}

func TestDemoAssetsAreRevalidated(t *testing.T) {
	s := newPublicServer(t, PublicOptions{Demo: true})
	resp, body := ask(t, s, "GET", "/demo/app.js")
	wantHeader(t, resp, "Content-Type", "text/javascript; charset=utf-8")
	wantHeader(t, resp, "Cache-Control", "no-cache")
	tag := resp.Header.Get("Etag")
	for _, tc := range []struct {
		name, header, value string
		status, size        int
	}{
		{"same tag", "If-None-Match", tag, 304, 0},
		{"one of several tags", "If-None-Match", `"other", ` + tag, 304, 0},
		{"another tag", "If-None-Match", `"other"`, 200, len(body)},
		{"a range", "Range", "bytes=0-9", 206, 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, got := ask(t, s, "GET", "/demo/app.js", tc.header, tc.value)
			if resp.StatusCode != tc.status || len(got) != tc.size {
				t.Errorf("status %d with %d bytes, want %d with %d", resp.StatusCode, len(got), tc.status, tc.size)
			}
		})
	}
}

func TestDemoSettings(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    PublicOptions
		want string
	}{
		{"nothing is handed out", PublicOptions{Demo: true}, `{"client":null,"path":"/connection/websocket","topic":"news"}`},
		{"dev mode", PublicOptions{
			Demo: true, DemoClient: &DemoClient{ID: "demo", Secret: "demo-secret"},
			DemoTopic: "dev:all", DemoWebSocketPath: "/ws",
		}, `{"client":{"id":"demo","secret":"demo-secret"},"path":"/ws","topic":"dev:all"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := ask(t, newPublicServer(t, tc.o), "GET", "/demo/config.json")
			if body != tc.want {
				t.Errorf("got %s, want %s", body, tc.want)
			}
			wantHeader(t, resp, "Cache-Control", "no-store")
		})
	}
}

func TestDemoIsSmall(t *testing.T) {
	const budget = 25 << 10 // what is ours; the SDK is as published
	size := 0
	for _, name := range []string{"index.html", "app.js", "style.css", "icon.svg"} {
		b, err := demoFiles.ReadFile("demo/" + name)
		if err != nil {
			t.Fatal(err)
		}
		size += len(b)
	}
	if size > budget {
		t.Errorf("the page is %d bytes, more than %d", size, budget)
	}
}
