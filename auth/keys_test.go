package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func TestOwnKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first := newKeys(t, KeySetOptions{DataDir: dir})
	token, err := NewIssuer(IssuerOptions{Keys: first}).Issue(IssueRequest{Subject: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	again := newKeys(t, KeySetOptions{DataDir: dir})
	if c, err := NewVerifier(VerifierOptions{Keys: again}).Connect(token); err != nil || c.Subject != "alice" {
		t.Fatalf("after a restart: %v, %v", c, err)
	}
	if !bytes.Equal(first.JWKS(), again.JWKS()) {
		t.Error("another key set after a restart")
	}
	st, err := os.Stat(filepath.Join(dir, signingKeyFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if d, _ := os.Stat(dir); d.Mode().Perm() != 0o700 {
		t.Errorf("directory of mode %v", d.Mode())
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".*"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestOwnKeyRace: processes that start together in an empty directory have one
// key and one api key.
func TestOwnKeyRace(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	kids, apiKeys := make(map[string]bool), make(map[string]bool)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			k, err := ownKey(dir, quiet())
			api, err2 := LoadOrCreateAPIKey(dir)
			if err != nil || err2 != nil {
				t.Error(err, err2)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			kids[k.kid], apiKeys[api] = true, true
		})
	}
	wg.Wait()
	if len(kids) != 1 || len(apiKeys) != 1 {
		t.Errorf("%d keys, %d api keys", len(kids), len(apiKeys))
	}
}

func TestAPIKey(t *testing.T) {
	dir := t.TempDir()
	a, err := LoadOrCreateAPIKey(dir)
	if err != nil || len(a) != 43 {
		t.Fatalf("%q %v", a, err)
	}
	if b, err := LoadOrCreateAPIKey(dir); err != nil || b != a {
		t.Errorf("%q %v", b, err)
	}
	if st, _ := os.Stat(filepath.Join(dir, apiKeyFile)); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	os.WriteFile(filepath.Join(dir, apiKeyFile), []byte(" \n"), 0o600)
	if _, err := LoadOrCreateAPIKey(dir); err == nil {
		t.Error("an empty api key")
	}
}

func TestWhichKeySigns(t *testing.T) {
	private := writeFile(t, pkcs8(t, testKeys()["ES256"]))
	public := writeFile(t, pkixPEM(t, testKeys()["RS256"]))
	tests := []struct {
		name string
		opts KeySetOptions
		alg  string // empty: nothing signs
	}{
		{"nothing configured", KeySetOptions{}, "EdDSA"},
		{"hmac", KeySetOptions{HMACSecret: testSecret}, "HS256"},
		{"private key over hmac", KeySetOptions{HMACSecret: testSecret, Keys: []KeyOptions{{File: private}}}, "ES256"},
		{"first private key", KeySetOptions{Keys: []KeyOptions{{File: public}, {File: private}}}, "ES256"},
		{"public key", KeySetOptions{Keys: []KeyOptions{{File: public}}}, ""},
		{"public key, signer needed", KeySetOptions{Keys: []KeyOptions{{File: public}}, NeedSigner: true}, "EdDSA"},
		{"public key and hmac", KeySetOptions{HMACSecret: testSecret, Keys: []KeyOptions{{File: public}}, NeedSigner: true}, "HS256"},
		{"remote keys", KeySetOptions{JWKSURL: "http://127.0.0.1:1/"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.DataDir = t.TempDir()
			ks := newKeys(t, tt.opts)
			token, err := NewIssuer(IssuerOptions{Keys: ks}).Issue(IssueRequest{Subject: "a"})
			if tt.alg == "" {
				if !errors.Is(err, ErrNoSigningKey) || ks.CanSign() {
					t.Fatalf("got %v", err)
				}
				if left, _ := os.ReadDir(tt.opts.DataDir); len(left) != 0 {
					t.Error("a key was made that nobody needs")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			parsed, _, _ := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
			if parsed.Method.Alg() != tt.alg {
				t.Errorf("signed by %s", parsed.Method.Alg())
			}
			if _, err := NewVerifier(VerifierOptions{Keys: ks}).Connect(token); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPEM(t *testing.T) {
	rsaKey := testKeys()["RS256"].(*rsa.PrivateKey)
	ecKey := testKeys()["ES384"].(*ecdsa.PrivateKey)
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	sec1, _ := x509.MarshalECPrivateKey(ecKey)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, rsaKey.Public(), rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	weak, _ := rsa.GenerateKey(rand.Reader, 1024)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	tests := []struct {
		name    string
		data    []byte
		private bool
		err     bool
	}{
		{"PKCS#1", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), true, false},
		{"PKCS#1 public", block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)), false, false},
		{"SEC 1", block("EC PRIVATE KEY", sec1), true, false},
		{"SEC 1 behind its parameters", append(block("EC PARAMETERS", []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22}), block("EC PRIVATE KEY", sec1)...), true, false},
		{"PKCS#8", pkcs8(t, ecKey), true, false},
		{"PKIX", pkixPEM(t, ecKey), false, false},
		{"certificate", block("CERTIFICATE", cert), false, false},
		{"weak RSA", pkcs8(t, weak), false, true},
		{"P-224", pkcs8(t, p224), false, true},
		{"encrypted", block("ENCRYPTED PRIVATE KEY", []byte{1}), false, true},
		{"broken", block("PRIVATE KEY", []byte{1, 2}), false, true},
		{"no PEM", []byte("hello"), false, true},
		{"empty", nil, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			public, private, err := parsePEM(tt.data)
			if (err != nil) != tt.err {
				t.Fatalf("got %v", err)
			}
			if err == nil && (public == nil || (private != nil) != tt.private) {
				t.Errorf("public %T, private %T", public, private)
			}
			if err := CheckKeyFile(KeyOptions{File: writeFile(t, tt.data)}); (err != nil) != tt.err {
				t.Errorf("CheckKeyFile: %v", err)
			}
		})
	}
	same := KeyOptions{ID: "same", File: writeFile(t, pkixPEM(t, ecKey))}
	if _, err := NewKeySet(KeySetOptions{Keys: []KeyOptions{same, same}, Logger: quiet()}); err == nil {
		t.Error("one key id for two keys")
	}
	if _, err := NewKeySet(KeySetOptions{Keys: []KeyOptions{{File: "/nonexistent"}}, Logger: quiet()}); err == nil || !strings.Contains(err.Error(), "keys[0]") {
		t.Errorf("missing file: %v", err)
	}
}

// TestThumbprint: the example of RFC 7638 section 3.1 and that of RFC 8037
// appendix A.3.
func TestThumbprint(t *testing.T) {
	n, err := rawURL.DecodeString("0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw")
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKey("", &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}, nil)
	if err != nil || k.kid != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" {
		t.Errorf("RSA: %v %v", k, err)
	}
	x, _ := rawURL.DecodeString("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
	if k, err = newKey("", ed25519.PublicKey(x), nil); err != nil || k.kid != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("Ed25519: %v %v", k, err)
	}
}

func TestJWKS(t *testing.T) {
	var keys []KeyOptions
	for _, alg := range []string{"RS256", "ES256", "ES384", "ES512", "EdDSA"} {
		keys = append(keys, KeyOptions{ID: alg, File: writeFile(t, pkcs8(t, testKeys()[alg]))})
	}
	ks := newKeys(t, KeySetOptions{HMACSecret: testSecret, Keys: keys})
	if bytes.Contains(ks.JWKS(), []byte(testSecret)) || bytes.Contains(ks.JWKS(), []byte(`"d"`)) {
		t.Fatal("the key set holds a secret")
	}
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(ks.JWKS(), &set); err != nil || len(set.Keys) != len(keys) {
		t.Fatalf("%v, %d keys", err, len(set.Keys))
	}
	// Another reader finds the same keys in it.
	read, err := usableKeys(ks.JWKS())
	if err != nil || len(read) != len(keys) {
		t.Fatalf("%d keys, %v", len(read), err)
	}
	for i, r := range read {
		if !ks.keys[i].public.(interface{ Equal(crypto.PublicKey) bool }).Equal(r.Key()) || r.Marshal().KID != keys[i].ID {
			t.Errorf("key %q is read as another", r.Marshal().KID)
		}
	}
	empty := newKeys(t, KeySetOptions{HMACSecret: testSecret})
	if string(empty.JWKS()) != `{"keys":[]}` {
		t.Errorf("got %s", empty.JWKS())
	}
}

// TestSecretsNotLogged: with everything logged, no secret is.
func TestSecretsNotLogged(t *testing.T) {
	var log bytes.Buffer
	ks, err := NewKeySet(KeySetOptions{HMACSecret: "short-secret", DataDir: t.TempDir(),
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	defer ks.Close()
	if !strings.Contains(log.String(), "hmac secret is short") || strings.Contains(log.String(), "short-secret") {
		t.Errorf("logged: %s", log.String())
	}
}
