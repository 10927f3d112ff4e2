package auth

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// fuzzKey is the same in every process, so that tokens of the corpus in
// testdata are signed by it.
func fuzzKey() ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("perch fuzz key"))
	return ed25519.NewKeyFromSeed(seed[:])
}

// FuzzToken gives whole tokens to a verifier of HMAC secrets and a public key:
// what it takes, golang-jwt takes as well, with the same subject; what it
// refuses, it refuses by a name.
func FuzzToken(f *testing.F) {
	key := fuzzKey()
	public := key.Public().(ed25519.PublicKey)
	v := NewVerifier(VerifierOptions{
		Keys: newKeys(f, KeySetOptions{HMACSecret: testSecret, Keys: []KeyOptions{{File: writeFile(f, pkixPEM(f, key))}}}),
		Now:  func() time.Time { return time.Unix(1, 0) },
	})
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256", "HS384", "HS512", "EdDSA"}),
		jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	f.Add(hs(f, jwt.MapClaims{"sub": "alice", "exp": 9999999999}))
	f.Fuzz(func(t *testing.T, token string) {
		claims, err := v.Connect(token)
		sub, subErr := v.Subscription(token)
		cheap := v.Cheap(token)
		for _, err := range []error{err, subErr} {
			if err != nil && !errors.Is(err, ErrTokenInvalid) && !errors.Is(err, ErrTokenExpired) {
				t.Fatalf("%q: %v", token, err)
			}
		}
		if err != nil && subErr != nil {
			return
		}
		var p payloadOf
		parsed, refErr := parser.ParseWithClaims(token, &p, func(t *jwt.Token) (any, error) {
			if t.Method.Alg() == "EdDSA" {
				return public, nil
			}
			return []byte(testSecret), nil
		})
		if refErr != nil {
			t.Fatalf("accepted %q, golang-jwt: %v", token, refErr)
		}
		if hmac := strings.HasPrefix(parsed.Method.Alg(), "HS"); hmac != cheap && len(token) <= maxCheapToken {
			t.Fatalf("%q is cheap: %v", token, cheap)
		}
		var want map[string]json.RawMessage
		if e := json.Unmarshal(p.raw, &want); e != nil {
			t.Fatalf("accepted %q, encoding/json: %v", token, e)
		}
		var subject string
		_ = json.Unmarshal(want["sub"], &subject) // none and null are empty
		if err == nil && claims.Subject != subject || subErr == nil && sub.Subject != subject {
			t.Fatalf("%q: subjects %+v and %+v, want %q", token, claims, sub, subject)
		}
	})
}
