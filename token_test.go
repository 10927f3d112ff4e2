package perch_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"perch"
	"perch/auth"
)

// verifier reads tokens with the keys of a server of these options.
func verifier(t *testing.T, o perch.Options) *auth.Verifier {
	t.Helper()
	keys, err := auth.NewKeySet(auth.KeySetOptions{DataDir: o.DataDir, HMACSecret: o.Auth.HMACSecret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return auth.NewVerifier(auth.VerifierOptions{Keys: keys, Issuer: o.Auth.Issuer, Audience: o.Auth.Audience})
}

func TestIssueToken(t *testing.T) {
	tests := []struct {
		name string
		set  func(*perch.Options)
	}{
		{"own key", func(*perch.Options) {}},
		{"hmac", func(o *perch.Options) { o.Auth.HMACSecret = "0123456789abcdef0123456789abcdef" }},
		{"issuer and audience", func(o *perch.Options) { o.Auth.Issuer, o.Auth.Audience = "me", "you" }},
		{"dev", func(o *perch.Options) { o.Dev = true }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := perch.Options{DataDir: filepath.Join(t.TempDir(), "data")}
			tt.set(&o)
			before := time.Now()
			token, err := perch.IssueToken(o, perch.TokenRequest{
				Subject: "alice", TTL: time.Minute, Channels: []string{"news"}, Info: []byte(`{"name":"Alice"}`),
			})
			if err != nil {
				t.Fatal(err)
			}
			c, err := verifier(t, o).Connect(token)
			if err != nil {
				t.Fatal(err)
			}
			if c.Subject != "alice" || len(c.Channels) != 1 || c.Channels[0] != "news" || string(c.Info) != `{"name":"Alice"}` {
				t.Errorf("claims %+v", c)
			}
			if life := c.TokenExpiresAt - before.Unix(); life < 60 || life > 70 {
				t.Errorf("it lives for %d s", life)
			}
		})
	}
}

func TestIssueTokenDefaultTTL(t *testing.T) {
	o := perch.Options{DataDir: t.TempDir(), Auth: perch.AuthOptions{TokenTTL: 2 * time.Hour}}
	token, err := perch.IssueToken(o, perch.TokenRequest{Subject: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := verifier(t, o).Connect(token)
	if err != nil {
		t.Fatal(err)
	}
	if c.TokenExpiresAt-c.IssuedAt != 7200 {
		t.Errorf("it lives for %d s", c.TokenExpiresAt-c.IssuedAt)
	}
}

func TestIssueTokenErrors(t *testing.T) {
	const jwks = "http://127.0.0.1:1/jwks.json" // never asked
	client := []perch.ClientOptions{{ID: "a"}}
	tests := []struct {
		name string
		auth perch.AuthOptions
		req  perch.TokenRequest
		want error
	}{
		{"ttl below zero", perch.AuthOptions{}, perch.TokenRequest{TTL: -1}, perch.ErrTokenTTL},
		{"info that is not JSON", perch.AuthOptions{}, perch.TokenRequest{Info: []byte("{")}, auth.ErrIssueRequest},
		{"only a remote key set", perch.AuthOptions{JWKSURL: jwks}, perch.TokenRequest{}, auth.ErrNoSigningKey},
		{"a remote key set and clients", perch.AuthOptions{JWKSURL: jwks, Clients: client}, perch.TokenRequest{}, nil},
		{"a remote key set and a secret", perch.AuthOptions{JWKSURL: jwks, HMACSecret: "s"}, perch.TokenRequest{}, nil},
		{"a key that is not there", perch.AuthOptions{Keys: []perch.KeyOptions{{File: "none.pem"}}}, perch.TokenRequest{}, os.ErrNotExist},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token, err := perch.IssueToken(perch.Options{DataDir: t.TempDir(), Auth: tt.auth}, tt.req)
			if !errors.Is(err, tt.want) || (token == "") != (tt.want != nil) {
				t.Errorf("got %q, %v, want %v", token, err, tt.want)
			}
		})
	}
}
