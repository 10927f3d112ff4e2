package handler

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"golang.org/x/crypto/bcrypt"

	"perch/auth"
)

// tokenServer is a running server of the token endpoints.
type tokenServer struct {
	*httptest.Server
	auth *auth.Authority
}

func newTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	hash := func(secret string) string {
		h, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		return string(h)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	a, err := auth.Open(auth.Options{
		DataDir: t.TempDir(), Logger: log, Issuer: "https://iss.example", Audience: "perch",
		Clients: []auth.ClientOptions{
			{ID: "dev", SecretHash: hash("s3cret"), Channels: []string{"news"}},
			{ID: "odd: id+", SecretHash: hash("p%:ä +"), User: "odd"},
			{ID: "back", SecretHash: hash("backend"), AnyUser: true, TokenTTL: time.Minute, RefreshTTL: -1},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	RegisterToken(e, TokenOptions{Authority: func() *auth.Authority { return a }, Logger: log})
	s := &tokenServer{Server: httptest.NewServer(e), auth: a}
	t.Cleanup(s.Close)
	return s
}

type tokenAnswer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

func (a tokenAnswer) str(name string) string { s, _ := a.body[name].(string); return s }

func (s *tokenServer) send(t *testing.T, path, contentType, body string, header map[string]string) tokenAnswer {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := tokenAnswer{status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &a.body); err != nil {
			t.Fatalf("answer %q: %v", raw, err)
		}
	}
	if resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Pragma") != "no-cache" {
		t.Errorf("cacheable: %v", resp.Header)
	}
	return a
}

const formType = "application/x-www-form-urlencoded"

// form posts pairs of names and values as the client dev, save where pairs name
// another.
func (s *tokenServer) form(t *testing.T, path string, pairs ...string) tokenAnswer {
	t.Helper()
	v := url.Values{"client_id": {"dev"}, "client_secret": {"s3cret"}}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return s.send(t, path, formType, v.Encode(), nil)
}

func basicAuth(id, secret string) map[string]string {
	return map[string]string{"Authorization": "Basic " +
		base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))}
}

func TestTokenRequests(t *testing.T) {
	s := newTokenServer(t)
	const grant = "grant_type=client_credentials"
	const creds = "&client_id=dev&client_secret=s3cret"
	tests := []struct {
		name   string
		media  string
		body   string
		header map[string]string
		status int
		code   string
	}{
		{"form", formType, grant + creds, nil, 200, ""},
		{"form with charset", formType + "; charset=UTF-8", grant + creds, nil, 200, ""},
		{"basic", formType, grant, basicAuth("dev", "s3cret"), 200, ""},
		{"basic, form-encoded", formType, grant, basicAuth("odd: id+", "p%:ä +"), 200, ""},
		{"basic, scheme in capitals", formType, grant, map[string]string{"Authorization": "BASIC " + base64.StdEncoding.EncodeToString([]byte("dev:s3cret"))}, 200, ""},
		{"basic and its client_id", formType, grant + "&client_id=dev", basicAuth("dev", "s3cret"), 200, ""},
		{"json", "application/json", `{"grant_type":"client_credentials","client_id":"dev","client_secret":"s3cret","x":[1,{}],"scope":null}`, nil, 200, ""},
		{"json and basic", "application/json", `{"grant_type":"client_credentials"}`, basicAuth("dev", "s3cret"), 200, ""},
		{"own sub", formType, grant + creds + "&sub=dev", nil, 200, ""},
		{"empty values are not there", formType, grant + creds + "&scope=&sub=", nil, 200, ""},

		{"no grant_type", formType, creds[1:], nil, 400, "invalid_request"},
		{"unknown grant_type", formType, "grant_type=password" + creds, nil, 400, "unsupported_grant_type"},
		{"scope", formType, grant + creds + "&scope=a", nil, 400, "invalid_scope"},
		{"another sub", formType, grant + creds + "&sub=alice", nil, 400, "unauthorized_client"},
		{"twice", formType, grant + creds + "&sub=dev&sub=dev", nil, 400, "invalid_request"},
		{"twice in json", "application/json", `{"grant_type":"client_credentials","grant_type":"client_credentials"}`, nil, 400, "invalid_request"},
		{"both ways", formType, grant + "&client_secret=s3cret", basicAuth("dev", "s3cret"), 400, "invalid_request"},
		{"two clients", formType, grant + "&client_id=back", basicAuth("dev", "s3cret"), 400, "invalid_request"},
		{"number in json", "application/json", `{"grant_type":1}`, nil, 400, "invalid_request"},
		{"json array", "application/json", `[]`, nil, 400, "invalid_request"},
		{"json trailing", "application/json", `{} {}`, nil, 400, "invalid_request"},
		{"json cut", "application/json", `{"grant_type":"client`, nil, 400, "invalid_request"},
		{"json empty", "application/json", ``, nil, 400, "invalid_request"},
		{"not a form", formType, grant + "&a=%zz", nil, 400, "invalid_request"},
		{"not UTF-8", formType, "a=\xff", nil, 400, "invalid_request"},
		{"text", "text/plain", grant + creds, nil, 400, "invalid_request"},
		{"no type", "", grant + creds, nil, 400, "invalid_request"},
		{"too large", formType, grant + creds + "&x=" + strings.Repeat("x", tokenBodyMax), nil, 413, "invalid_request"},
		{"refresh without token", formType, "grant_type=refresh_token" + creds, nil, 400, "invalid_request"},
		{"refresh with junk", formType, "grant_type=refresh_token&refresh_token=junk" + creds, nil, 400, "invalid_grant"},

		{"no client", formType, grant, nil, 401, "invalid_client"},
		{"no secret", formType, grant + "&client_id=dev", nil, 401, "invalid_client"},
		{"wrong secret", formType, grant + "&client_id=dev&client_secret=x", nil, 401, "invalid_client"},
		{"unknown client", formType, grant + "&client_id=nobody&client_secret=x", nil, 401, "invalid_client"},
		{"wrong basic", formType, grant, basicAuth("dev", "x"), 401, "invalid_client"},
		{"bearer", formType, grant, map[string]string{"Authorization": "Bearer x"}, 401, "invalid_client"},
		{"basic no base64", formType, grant, map[string]string{"Authorization": "Basic ???"}, 401, "invalid_client"},
		{"basic without colon", formType, grant, map[string]string{"Authorization": "Basic ZGV2"}, 401, "invalid_client"},
		{"basic wrong escape", formType, grant, map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("dev:%zz"))}, 401, "invalid_client"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := s.send(t, "/v1/token", tt.media, tt.body, tt.header)
			if a.status != tt.status || a.str("error") != tt.code {
				t.Fatalf("%d %s", a.status, a.raw)
			}
			if got := a.header.Get("WWW-Authenticate") != ""; got != (tt.status == 401 && tt.header != nil) {
				t.Errorf("WWW-Authenticate %q", a.header.Get("WWW-Authenticate"))
			}
			if tt.status == 200 {
				if a.str("token_type") != "Bearer" || a.body["expires_in"] != 3600.0 || a.str("refresh_token") == "" {
					t.Errorf("%s", a.raw)
				}
				if _, err := s.auth.Verifier.Connect(a.str("access_token")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	a := s.send(t, "/v1/token?client_secret=s3cret", formType, grant, nil)
	if a.status != 400 || a.str("error") != "invalid_request" {
		t.Errorf("secret in the address: %d %s", a.status, a.raw)
	}
}

func TestTokenAnyUser(t *testing.T) {
	s := newTokenServer(t)
	a := s.form(t, "/v1/token", "grant_type", "client_credentials", "client_id", "back", "client_secret", "backend", "sub", "alice")
	c, err := s.auth.Verifier.Connect(a.str("access_token"))
	if err != nil || c.Subject != "alice" || c.ClientID != "back" || a.body["expires_in"] != 60.0 || a.body["refresh_token"] != nil {
		t.Fatalf("%s %+v %v", a.raw, c, err)
	}
	if a = s.form(t, "/v1/token", "grant_type", "client_credentials", "client_id", "back", "client_secret", "backend", "sub", "a\x00"); a.str("error") != "invalid_request" {
		t.Errorf("bad sub: %s", a.raw)
	}
}

func TestTokenRefresh(t *testing.T) {
	s := newTokenServer(t)
	refresh := func(token string) tokenAnswer {
		return s.form(t, "/v1/token", "grant_type", "refresh_token", "refresh_token", token)
	}
	first := s.form(t, "/v1/token", "grant_type", "client_credentials")
	second := refresh(first.str("refresh_token"))
	if second.status != 200 || second.str("refresh_token") == first.str("refresh_token") {
		t.Fatal(second.raw)
	}
	foreign := s.form(t, "/v1/token", "grant_type", "refresh_token", "refresh_token", second.str("refresh_token"),
		"client_id", "odd: id+", "client_secret", "p%:ä +")
	if foreign.status != 400 || foreign.str("error") != "invalid_grant" {
		t.Errorf("of another client: %d %s", foreign.status, foreign.raw)
	}
	for i, token := range []string{first.str("refresh_token"), second.str("refresh_token")} {
		if a := refresh(token); a.status != 400 || a.str("error") != "invalid_grant" {
			t.Errorf("%d after reuse: %d %s", i, a.status, a.raw)
		}
	}
	if a := s.form(t, "/v1/token/introspect", "token", second.str("access_token")); a.body["active"] != false || len(a.body) != 1 {
		t.Errorf("access token after reuse: %s", a.raw)
	}
}

func TestTokenRevokeAndIntrospect(t *testing.T) {
	s := newTokenServer(t)
	tok := s.form(t, "/v1/token", "grant_type", "client_credentials")
	access, refresh := tok.str("access_token"), tok.str("refresh_token")

	in := s.form(t, "/v1/token/introspect", "token", access)
	for name, want := range map[string]any{"active": true, "token_type": "Bearer", "client_id": "dev", "sub": "dev",
		"iss": "https://iss.example", "aud": "perch"} {
		if in.body[name] != want {
			t.Errorf("%s is %v", name, in.body[name])
		}
	}
	for _, name := range []string{"exp", "iat", "jti"} {
		if in.body[name] == nil {
			t.Errorf("no %s: %s", name, in.raw)
		}
	}
	if in = s.form(t, "/v1/token/introspect", "token", refresh); in.body["active"] != true || in.str("token_type") != "refresh_token" {
		t.Errorf("refresh token: %s", in.raw)
	}
	for _, path := range []string{"/v1/token/introspect", "/v1/token/revoke"} {
		if a := s.send(t, path, formType, "token="+access, nil); a.status != 401 {
			t.Errorf("%s without a client: %d", path, a.status)
		}
		if a := s.form(t, path); a.status != 400 || a.str("error") != "invalid_request" {
			t.Errorf("%s without a token: %d %s", path, a.status, a.raw)
		}
	}
	other := []string{"client_id", "back", "client_secret", "backend", "token"}
	if a := s.form(t, "/v1/token/revoke", append(other, access)...); a.status != 400 || a.str("error") != "unauthorized_client" {
		t.Errorf("another's access token: %d %s", a.status, a.raw)
	}
	if a := s.form(t, "/v1/token/revoke", append(other, refresh)...); a.status != 200 {
		t.Errorf("another's refresh token: %d", a.status)
	}
	if in = s.form(t, "/v1/token/introspect", "token", refresh); in.body["active"] != true {
		t.Fatal("another client revoked it")
	}
	for range 2 { // the second time it is unknown
		if a := s.form(t, "/v1/token/revoke", "token", refresh, "token_type_hint", "access_token"); a.status != 200 || a.raw != "" {
			t.Errorf("%d %q", a.status, a.raw)
		}
	}
	for _, token := range []string{access, refresh, "junk"} {
		if in = s.form(t, "/v1/token/introspect", "token", token); strings.TrimSpace(in.raw) != `{"active":false}` {
			t.Errorf("after revocation: %s", in.raw)
		}
	}
}

func TestTokenBruteForce(t *testing.T) {
	s := newTokenServer(t)
	var a tokenAnswer
	for range 30 {
		a = s.form(t, "/v1/token", "grant_type", "client_credentials", "client_secret", "wrong")
		if a.status != 401 {
			break
		}
	}
	after, _ := strconv.Atoi(a.header.Get("Retry-After"))
	if a.status != 429 || after < 1 || after > 60 {
		t.Fatalf("%d, Retry-After %q", a.status, a.header.Get("Retry-After"))
	}
	// A forwarded address is the sender's own word.
	forwarded := s.send(t, "/v1/token", formType, "grant_type=client_credentials&client_id=dev&client_secret=wrong",
		map[string]string{"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9"})
	if forwarded.status != 429 {
		t.Errorf("a forwarded address gets %d", forwarded.status)
	}
}

func TestTokenJWKS(t *testing.T) {
	s := newTokenServer(t)
	resp, err := s.Client().Get(s.URL + "/.well-known/jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/jwk-set+json" || !strings.Contains(resp.Header.Get("Cache-Control"), "max-age") {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if !bytes.Equal(body, s.auth.Keys.JWKS()) {
		t.Errorf("got %s", body)
	}
	// Another server that only knows the address of these keys takes the tokens.
	keys, err := auth.NewKeySet(auth.KeySetOptions{JWKSURL: s.URL + "/.well-known/jwks.json"})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	tok := s.form(t, "/v1/token", "grant_type", "client_credentials")
	if c, err := auth.NewVerifier(auth.VerifierOptions{Keys: keys}).Connect(tok.str("access_token")); err != nil || c.Subject != "dev" {
		t.Errorf("%v %v", c, err)
	}
}

// TestTokenAfterClose: a request that comes while the server ends.
func TestTokenAfterClose(t *testing.T) {
	s := newTokenServer(t)
	if a := s.form(t, "/v1/token", "grant_type", "client_credentials"); a.status != 200 {
		t.Fatal(a.raw)
	}
	s.auth.Close()
	if a := s.form(t, "/v1/token", "grant_type", "client_credentials"); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

func FuzzTokenParams(f *testing.F) {
	f.Add([]byte(`{"grant_type":"x","a":[1]}`))
	f.Add([]byte("a=b&a=%20"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if p, e := jsonParams(body); e == nil {
			var ref map[string]any
			if err := json.Unmarshal(body, &ref); err != nil {
				t.Fatalf("%q: %v", body, err)
			}
			for name, value := range p {
				if fmt.Sprint(ref[name]) != value {
					t.Fatalf("%q: %s is %q", body, name, value)
				}
			}
		}
		formParams(body)
	})
}
