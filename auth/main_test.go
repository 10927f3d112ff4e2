package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("PERCH_TEST_ROTATE_DIR"); dir != "" {
		rotateForever(dir) // killed by its parent
		return
	}
	goleak.VerifyTestMain(m)
}

const testSecret = "0123456789abcdef0123456789abcdef"

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// clock is a clock that only the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Unix(1_800_000_000, 0)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// testKeys are made once: RSA takes its time.
var testKeys = sync.OnceValue(func() map[string]crypto.Signer {
	keys := make(map[string]crypto.Signer)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	for _, alg := range []string{"RS256", "RS384", "RS512"} {
		keys[alg] = rsaKey
	}
	for alg, curve := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		keys[alg], _ = ecdsa.GenerateKey(curve, rand.Reader)
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	keys["EdDSA"] = ed
	return keys
})

func pkcs8(t testing.TB, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func pkixPEM(t testing.TB, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func writeFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newKeys(t testing.TB, o KeySetOptions) *KeySet {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet()
	}
	ks, err := NewKeySet(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ks.Close)
	return ks
}

func newHMAC(t testing.TB, o VerifierOptions) *Verifier {
	o.Keys = newKeys(t, KeySetOptions{HMACSecret: testSecret})
	return NewVerifier(o)
}

// hs signs claims with the test secret.
func hs(t testing.TB, claims jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(testSecret))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// hsRaw signs header and payload as they are.
func hsRaw(t testing.TB, header, payload string) string {
	t.Helper()
	text := rawURL.EncodeToString([]byte(header)) + "." + rawURL.EncodeToString([]byte(payload))
	sig, err := jwt.SigningMethodHS256.Sign(text, []byte(testSecret))
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + rawURL.EncodeToString(sig)
}
