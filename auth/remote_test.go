package auth

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

// keyServer serves a key set, or whatever a test makes of it.
type keyServer struct {
	*httptest.Server
	requests atomic.Int32
	mu       sync.Mutex
	answer   http.HandlerFunc
}

func newKeyServer(t *testing.T) *keyServer {
	s := &keyServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.mu.Lock()
		f := s.answer
		s.mu.Unlock()
		f(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) set(f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

func text200(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
}

// keySet is a JWKS of the test keys, their algorithm as kid behind a prefix.
func keySet(t *testing.T, prefix string, algs ...string) string {
	t.Helper()
	var keys []jwk
	for _, alg := range algs {
		k, err := newKey(prefix+alg, testKeys()[alg].Public(), nil)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k.jwk)
	}
	b, _ := json.Marshal(map[string]any{"keys": keys})
	return string(b)
}

func signedBy(t *testing.T, alg, kid string, key crypto.Signer) string {
	t.Helper()
	tok := jwt.NewWithClaims(jwt.GetSigningMethod(alg), jwt.MapClaims{"sub": "alice"})
	if kid != "" {
		tok.Header["kid"] = kid
	}
	s, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// remoteVerifier asks the server every refresh; unknown kids are not limited.
func remoteVerifier(t *testing.T, url string, refresh time.Duration) (*Verifier, *remoteKeys) {
	ks := newKeys(t, KeySetOptions{JWKSURL: url, JWKSRefresh: refresh, HMACSecret: testSecret})
	ks.remote.mu.Lock()
	ks.remote.unknown = rate.NewLimiter(rate.Inf, 1)
	ks.remote.mu.Unlock()
	return NewVerifier(VerifierOptions{Keys: ks}), ks.remote
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(what)
}

func TestRemoteKeys(t *testing.T) {
	srv := newKeyServer(t)
	srv.set(text200(keySet(t, "k-", "RS256", "ES256", "EdDSA")))
	v, _ := remoteVerifier(t, srv.URL, time.Hour)
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		for _, kid := range []string{"k-" + alg, ""} {
			if _, err := v.Connect(signedBy(t, alg, kid, testKeys()[alg])); err != nil {
				t.Errorf("%s kid %q: %v", alg, kid, err)
			}
		}
	}
	// RSA keys have no alg in the set: each of its three is good.
	if _, err := v.Connect(signedBy(t, "RS512", "k-RS256", testKeys()["RS256"])); err != nil {
		t.Error(err)
	}
	if _, err := v.Connect(signedBy(t, "ES256", "k-EdDSA", testKeys()["ES256"])); !errors.Is(err, ErrTokenInvalid) {
		t.Errorf("kid of another type of key: %v", err)
	}
	if n := srv.requests.Load(); n != 1 {
		t.Errorf("%d requests for known keys", n)
	}
	// Rotation at the issuer: the first token of the new key makes us ask.
	srv.set(text200(keySet(t, "new-", "ES384")))
	if _, err := v.Connect(signedBy(t, "ES384", "new-ES384", testKeys()["ES384"])); err != nil {
		t.Errorf("new key: %v", err)
	}
	if _, err := v.Connect(signedBy(t, "RS256", "k-RS256", testKeys()["RS256"])); !errors.Is(err, ErrTokenInvalid) {
		t.Errorf("a key that was withdrawn: %v", err)
	}
}

// TestRemoteSymmetric: no remote party gives us an HMAC secret.
func TestRemoteSymmetric(t *testing.T) {
	secret := []byte("a secret that the remote set names")
	set := fmt.Sprintf(`{"keys":[{"kty":"oct","kid":"o","alg":"HS256","k":"%s"},%s`,
		base64.RawURLEncoding.EncodeToString(secret), keySet(t, "k-", "ES256")[len(`{"keys":[`):])
	srv := newKeyServer(t)
	srv.set(text200(set))
	v, r := remoteVerifier(t, srv.URL, time.Hour)
	if _, err := v.Connect(signedBy(t, "ES256", "k-ES256", testKeys()["ES256"])); err != nil {
		t.Fatal(err)
	}
	tok := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{})
	tok.Header["kid"] = "o"
	s, _ := tok.SignedString(secret)
	if _, err := v.Connect(s); !errors.Is(err, ErrTokenInvalid) {
		t.Errorf("got %v", err)
	}
	if keys, _ := r.MemoryJWKSet.KeyReadAll(t.Context()); len(keys) != 1 {
		t.Errorf("%d keys", len(keys))
	}
}

// TestRemoteOutage: the last good set stays whatever the server does, and start
// does not need it.
func TestRemoteOutage(t *testing.T) {
	good := keySet(t, "k-", "ES256")
	tests := map[string]http.HandlerFunc{
		"error":         func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); io.WriteString(w, good) },
		"html":          text200("<html>login</html>"),
		"empty object":  text200("{}"),
		"no keys":       text200(`{"keys":[]}`),
		"only unusable": text200(`{"keys":[{"kty":"oct","k":"AAAA"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},7,{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`),
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"keys":[`)
			w.Write(bytes.Repeat([]byte(" "), 2*remoteBody))
			io.WriteString(w, good[len(`{"keys":[`):])
		},
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			io.WriteString(w, good)
		},
		"hangs up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			srv := newKeyServer(t)
			srv.set(text200(good))
			v, r := remoteVerifier(t, srv.URL, 20*time.Millisecond)
			token := signedBy(t, "ES256", "k-ES256", testKeys()["ES256"])
			if _, err := v.Connect(token); err != nil {
				t.Fatal(err)
			}
			srv.set(bad)
			eventually(t, "the failure is not seen", func() bool {
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.failing
			})
			if _, err := v.Connect(token); err != nil {
				t.Errorf("known key in the outage: %v", err)
			}
			if _, err := v.Connect(signedBy(t, "ES256", "unknown", testKeys()["ES256"])); !errors.Is(err, ErrKeysUnavailable) || errors.Is(err, ErrTokenInvalid) {
				t.Errorf("unknown key in the outage: %v", err)
			}
			srv.set(text200(keySet(t, "back-", "ES384")))
			eventually(t, "it does not come back", func() bool {
				_, err := v.Connect(signedBy(t, "ES384", "back-ES384", testKeys()["ES384"]))
				return err == nil
			})
		})
	}
}

func TestRemoteDownAtStart(t *testing.T) {
	srv := newKeyServer(t)
	url := srv.URL
	srv.Close()
	var log bytes.Buffer
	var mu sync.Mutex
	ks := newKeys(t, KeySetOptions{JWKSURL: url, HMACSecret: testSecret,
		Logger: slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), nil))})
	v := NewVerifier(VerifierOptions{Keys: ks})
	if _, err := v.Connect(signedBy(t, "ES256", "k", testKeys()["ES256"])); !errors.Is(err, ErrKeysUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := v.Connect(hs(t, jwt.MapClaims{})); err != nil {
		t.Errorf("hmac meanwhile: %v", err)
	}
	eventually(t, "no warning", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return bytes.Contains(log.Bytes(), []byte("level=WARN"))
	})
	for _, bad := range []string{"ftp://x/", "nonsense", "http://", ":"} {
		if _, err := NewKeySet(KeySetOptions{JWKSURL: bad, Logger: quiet()}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestRemoteSlow: tokens that come during a slow fetch wait for that one fetch,
// and only so many of them; close does not wait for the server.
func TestRemoteSlow(t *testing.T) {
	srv := newKeyServer(t)
	release := make(chan struct{})
	good := text200(keySet(t, "k-", "ES256"))
	srv.set(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
			return
		}
		good(w, r)
	})
	began := time.Now()
	v, r := remoteVerifier(t, srv.URL, time.Hour)
	if time.Since(began) > 2*time.Second {
		t.Error("start waits for the key set")
	}
	token := signedBy(t, "ES256", "k-ES256", testKeys()["ES256"])
	var fine, unavailable atomic.Int32
	var wg sync.WaitGroup
	for range 3 * remoteWaiters {
		wg.Go(func() {
			switch _, err := v.Connect(token); {
			case err == nil:
				fine.Add(1)
			case errors.Is(err, ErrKeysUnavailable):
				unavailable.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	eventually(t, "the rest is not told", func() bool { return unavailable.Load() == 2*remoteWaiters })
	close(release)
	wg.Wait()
	if fine.Load() != remoteWaiters || srv.requests.Load() != 1 {
		t.Errorf("%d verified, %d requests", fine.Load(), srv.requests.Load())
	}
	r.mu.Lock()
	waiters := r.waiters
	r.mu.Unlock()
	if waiters != 0 {
		t.Errorf("%d waiters are left", waiters)
	}
}

func TestRemoteUnknownIsLimited(t *testing.T) {
	srv := newKeyServer(t)
	srv.set(text200(keySet(t, "k-", "ES256")))
	ks := newKeys(t, KeySetOptions{JWKSURL: srv.URL, JWKSRefresh: time.Hour})
	v := NewVerifier(VerifierOptions{Keys: ks})
	for i := range 50 {
		if _, err := v.Connect(signedBy(t, "ES256", fmt.Sprint("junk-", i), testKeys()["ES256"])); err == nil {
			t.Fatal("verified")
		}
	}
	if n := srv.requests.Load(); n > 2 {
		t.Errorf("%d requests for 50 unknown kids", n)
	}
	if _, err := v.Connect(signedBy(t, "ES256", "k-ES256", testKeys()["ES256"])); err != nil {
		t.Error(err)
	}
}

func TestRemoteCloseWhileSlow(t *testing.T) {
	srv := newKeyServer(t)
	srv.set(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ks, err := NewKeySet(KeySetOptions{JWKSURL: srv.URL, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { ks.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		t.Fatal("close hangs on a slow server")
	}
}
