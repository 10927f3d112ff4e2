package handler

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"perch/auth"
)

// TokenOptions are of the token endpoints. Authority must be set.
type TokenOptions struct {
	// Authority is asked once for each request.
	Authority func() *auth.Authority
	// Address is whose a request is, seen through the proxies that are trusted; nil:
	// the peer's of the connection, since a forwarded one is the sender's to choose.
	Address func(*gin.Context) string
	// Logger; nil: slog.Default().
	Logger *slog.Logger
}

// tokenBodyMax is the largest body taken, in bytes.
const tokenBodyMax = 64 << 10

// tokenEndpoints serve a request of RFC 6749 (token), RFC 7009 (revocation), RFC 7662
// (introspection) and RFC 7517 (keys).
type tokenEndpoints struct {
	auth    *auth.Authority
	address func(*gin.Context) string
	log     *slog.Logger
}

// RegisterToken adds POST /v1/token, /v1/token/revoke and /v1/token/introspect
// and GET /.well-known/jwks.json to r. They wait for password hashes and for the
// disk: they belong on net/http's goroutines.
func RegisterToken(r gin.IRoutes, opts TokenOptions) {
	log, address := opts.Logger, opts.Address
	if log == nil {
		log = slog.Default()
	}
	if address == nil {
		address = (*gin.Context).RemoteIP
	}
	serve := func(f func(*tokenEndpoints, *gin.Context)) gin.HandlerFunc {
		return func(c *gin.Context) { f(&tokenEndpoints{auth: opts.Authority(), address: address, log: log}, c) }
	}
	r.POST("/v1/token", serve((*tokenEndpoints).token))
	r.POST("/v1/token/revoke", serve((*tokenEndpoints).revoke))
	r.POST("/v1/token/introspect", serve((*tokenEndpoints).introspect))
	r.GET("/.well-known/jwks.json", serve((*tokenEndpoints).jwks))
}

// oauthError is an answer of RFC 6749 section 5.2.
type oauthError struct {
	status      int
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
	retryAfter  int    // seconds; 0: none
	challenge   bool   // with WWW-Authenticate
}

func badRequest(code, description string) *oauthError {
	return &oauthError{status: http.StatusBadRequest, Code: code, Description: description}
}

func invalidRequest(description string) *oauthError {
	return badRequest("invalid_request", description)
}

// unavailable asks the client to come again within seconds: which, is left to
// chance, so that a fleet does not come again at once.
func unavailable(description string) *oauthError {
	return &oauthError{status: http.StatusServiceUnavailable, Code: "temporarily_unavailable",
		Description: description, retryAfter: 1 + rand.IntN(8)}
}

// noStore keeps answers with tokens out of caches (RFC 6749 section 5.1).
func noStore(c *gin.Context) {
	c.Header("Cache-Control", "no-store")
	c.Header("Pragma", "no-cache")
}

func (t *tokenEndpoints) fail(c *gin.Context, e *oauthError) {
	if e.challenge {
		c.Header("WWW-Authenticate", `Basic realm="perch", charset="UTF-8"`)
	}
	if e.retryAfter > 0 {
		c.Header("Retry-After", strconv.Itoa(e.retryAfter))
	}
	c.JSON(e.status, e)
}

// internal is the answer to an error of ours, which it logs.
func (t *tokenEndpoints) internal(err error) *oauthError {
	t.log.Error("token request failed", "err", err)
	return &oauthError{status: http.StatusInternalServerError, Code: "server_error"}
}

// token is POST /v1/token.
func (t *tokenEndpoints) token(c *gin.Context) {
	noStore(c)
	p, e := readParams(c)
	if e != nil {
		t.fail(c, e)
		return
	}
	grant := p["grant_type"]
	switch grant {
	case "client_credentials", "refresh_token":
	case "":
		t.fail(c, invalidRequest("grant_type is missing"))
		return
	default:
		t.fail(c, badRequest("unsupported_grant_type", "grant_type is client_credentials or refresh_token"))
		return
	}
	client, e := t.client(c, p)
	if e != nil {
		t.fail(c, e)
		return
	}
	if p["scope"] != "" {
		t.fail(c, badRequest("invalid_scope", "there are no scopes"))
		return
	}
	var tokens auth.Tokens
	var err error
	if grant == "refresh_token" {
		if p["refresh_token"] == "" {
			t.fail(c, invalidRequest("refresh_token is missing"))
			return
		}
		tokens, err = t.auth.Refresh(client, p["refresh_token"])
	} else {
		tokens, err = t.auth.Grant(client, p["sub"])
	}
	if err != nil {
		t.fail(c, t.grantError(err))
		return
	}
	answer := struct {
		AccessToken  string `json:"access_token"`
		TokenType    string `json:"token_type"`
		ExpiresIn    int64  `json:"expires_in"`
		RefreshToken string `json:"refresh_token,omitempty"`
	}{tokens.AccessToken, "Bearer", int64(tokens.ExpiresIn.Seconds()), tokens.RefreshToken}
	c.JSON(http.StatusOK, answer)
}

func (t *tokenEndpoints) grantError(err error) *oauthError {
	switch {
	case errors.Is(err, auth.ErrGrant):
		return badRequest("invalid_grant", "refresh token is unknown, expired, revoked or was used before")
	case errors.Is(err, auth.ErrSubject):
		return badRequest("unauthorized_client", "this client may not ask for another sub")
	case errors.Is(err, auth.ErrBadSubject):
		return invalidRequest("sub is not a name of 1 to 255 bytes")
	case errors.Is(err, auth.ErrStoreClosed):
		return unavailable("shutting down")
	case errors.Is(err, auth.ErrStoreWrite):
		return unavailable("the token can't be stored, try again")
	}
	return t.internal(err)
}

// revoke is POST /v1/token/revoke: 200 for whatever is not good any more, also
// where it never was.
func (t *tokenEndpoints) revoke(c *gin.Context) {
	noStore(c)
	p, client, e := t.tokenRequest(c)
	if e != nil {
		t.fail(c, e)
		return
	}
	switch err := t.auth.Revoke(client, p["token"]); {
	case err == nil:
		c.Status(http.StatusOK)
	case errors.Is(err, auth.ErrForeignToken):
		// RFC 7009 section 2.1: refused, and the client told of it.
		t.fail(c, badRequest("unauthorized_client", "the token was not issued to this client"))
	case errors.Is(err, auth.ErrStoreFull), errors.Is(err, auth.ErrKeysUnavailable), errors.Is(err, auth.ErrStoreClosed),
		errors.Is(err, auth.ErrStoreWrite):
		t.fail(c, unavailable("the token is not revoked, try again"))
	default:
		t.fail(c, t.internal(err))
	}
}

// introspect is POST /v1/token/introspect.
func (t *tokenEndpoints) introspect(c *gin.Context) {
	noStore(c)
	p, client, e := t.tokenRequest(c)
	if e != nil {
		t.fail(c, e)
		return
	}
	in, err := t.auth.Introspect(client, p["token"])
	if err != nil {
		t.fail(c, unavailable("the token can't be looked up"))
		return
	}
	c.JSON(http.StatusOK, struct {
		Active    bool   `json:"active"`
		TokenType string `json:"token_type,omitempty"`
		ClientID  string `json:"client_id,omitempty"`
		Subject   string `json:"sub,omitempty"`
		ExpiresAt int64  `json:"exp,omitempty"`
		IssuedAt  int64  `json:"iat,omitempty"`
		Issuer    string `json:"iss,omitempty"`
		Audience  string `json:"aud,omitempty"`
		ID        string `json:"jti,omitempty"`
	}(in))
}

// jwks is GET /.well-known/jwks.json. Keys seldom change: a verifier may keep
// them for minutes.
func (t *tokenEndpoints) jwks(c *gin.Context) {
	c.Header("Cache-Control", "public, max-age=300")
	c.Data(http.StatusOK, "application/jwk-set+json", t.auth.Keys.JWKS())
}

// tokenRequest reads a request about a token from a client that authenticates.
func (t *tokenEndpoints) tokenRequest(c *gin.Context) (params, *auth.Client, *oauthError) {
	p, e := readParams(c)
	if e != nil {
		return nil, nil, e
	}
	client, e := t.client(c, p)
	if e != nil {
		return nil, nil, e
	}
	if p["token"] == "" {
		return nil, nil, invalidRequest("token is missing")
	}
	return p, client, nil
}

// client authenticates the client, by Basic or by the parameters client_id and
// client_secret, never both (RFC 6749 section 2.3).
func (t *tokenEndpoints) client(c *gin.Context, p params) (*auth.Client, *oauthError) {
	id, secret, basic, e := credentials(c.Request.Header, p)
	if e != nil {
		return nil, e
	}
	refused := &oauthError{status: http.StatusUnauthorized, Code: "invalid_client",
		Description: "client authentication failed", challenge: basic}
	if id == "" || secret == "" {
		return nil, refused
	}
	addr, _ := netip.ParseAddr(t.address(c))
	client, err := t.auth.Authenticate(c.Request.Context(), addr, id, secret)
	var slow *auth.SlowDownError
	switch {
	case err == nil:
		return client, nil
	case errors.As(err, &slow):
		return nil, &oauthError{status: http.StatusTooManyRequests, Code: "slow_down",
			Description: "too many wrong secrets", retryAfter: int(math.Ceil(slow.After.Seconds()))}
	case errors.Is(err, auth.ErrBusy), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, unavailable("too many requests at once")
	case errors.Is(err, auth.ErrUnavailable):
		return nil, unavailable("the registry of clients can't be reached, try again")
	case errors.Is(err, auth.ErrClientDisabled):
		refused.Description = "the client is disabled"
	case !errors.Is(err, auth.ErrClientUnknown):
		return nil, t.internal(err)
	}
	t.log.Debug("client authentication failed", "remote", t.address(c))
	return nil, refused
}

// credentials finds the client's id and secret. basic says that Authorization
// was used.
func credentials(h http.Header, p params) (id, secret string, basic bool, e *oauthError) {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return p["client_id"], p["client_secret"], false, nil
	}
	refused := &oauthError{status: http.StatusUnauthorized, Code: "invalid_client",
		Description: "Authorization is not of Basic", challenge: true}
	if len(values) > 1 {
		return "", "", true, invalidRequest("more than one Authorization")
	}
	if _, ok := p["client_secret"]; ok {
		return "", "", true, invalidRequest("more than one way of client authentication")
	}
	scheme, rest, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", true, refused
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
	if err != nil {
		return "", "", true, refused
	}
	id, secret, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", true, refused
	}
	// RFC 6749 section 2.3.1: both are form-encoded before they are joined.
	if id, err = url.QueryUnescape(id); err != nil {
		return "", "", true, refused
	}
	if secret, err = url.QueryUnescape(secret); err != nil {
		return "", "", true, refused
	}
	if other, ok := p["client_id"]; ok && other != id {
		return "", "", true, invalidRequest("client_id is not that of Authorization")
	}
	return id, secret, true, nil
}

// params are the parameters of a request; one without a value is not there (RFC
// 6749 section 3.1).
type params map[string]string

// readParams reads the body: a form, or a JSON object whose parameters are
// strings. A parameter that comes twice makes the request invalid.
func readParams(c *gin.Context) (params, *oauthError) {
	if q := c.Request.URL.RawQuery; q != "" {
		// What stands in an address ends up in logs.
		if v, err := url.ParseQuery(q); err != nil || v.Has("client_secret") || v.Has("refresh_token") || v.Has("token") {
			return nil, invalidRequest("parameters belong into the body")
		}
	}
	media, _, err := mime.ParseMediaType(c.GetHeader("Content-Type"))
	if err != nil {
		media = ""
	}
	if media != "application/x-www-form-urlencoded" && media != "application/json" {
		return nil, invalidRequest("content type is neither application/x-www-form-urlencoded nor application/json")
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, tokenBodyMax))
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		return nil, &oauthError{status: http.StatusRequestEntityTooLarge, Code: "invalid_request", Description: "body is too large"}
	}
	if err != nil {
		return nil, invalidRequest("body is not readable")
	}
	if !utf8.Valid(body) {
		return nil, invalidRequest("body is not UTF-8")
	}
	if media == "application/json" {
		return jsonParams(body)
	}
	return formParams(body)
}

func formParams(body []byte) (params, *oauthError) {
	values, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, invalidRequest("body is not a form")
	}
	p := make(params, len(values))
	for name, v := range values {
		if len(v) > 1 {
			return nil, invalidRequest("a parameter is given twice")
		}
		if v[0] != "" {
			p[name] = v[0]
		}
	}
	return p, nil
}

func jsonParams(body []byte) (params, *oauthError) {
	malformed := invalidRequest("body is not a JSON object")
	dec := json.NewDecoder(bytes.NewReader(body))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return nil, malformed
	}
	p := make(params)
	seen := make(map[string]bool)
	for dec.More() {
		key, err := dec.Token()
		name, ok := key.(string)
		if err != nil || !ok {
			return nil, malformed
		}
		if seen[name] {
			return nil, invalidRequest("a parameter is given twice")
		}
		seen[name] = true
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, malformed
		}
		var value string
		switch name {
		case "grant_type", "client_id", "client_secret", "refresh_token", "scope", "sub", "token", "token_type_hint":
			if json.Unmarshal(raw, &value) != nil { // null stands for a missing one
				return nil, invalidRequest(name + " is not a string")
			}
		}
		if value != "" {
			p[name] = value
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, malformed
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, malformed
	}
	return p, nil
}
