package testkit

import (
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Token signs a connection token of the Centrifuge protocol with HS256. claims
// are added to sub and exp, and win over them; a ttl of 0 leaves exp out.
func Token(secret, sub string, ttl time.Duration, claims map[string]any) string {
	all := jwt.MapClaims{"sub": sub}
	if ttl != 0 {
		all["exp"] = time.Now().Add(ttl).Unix()
	}
	for k, v := range claims {
		all[k] = v
	}
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, all).SignedString([]byte(secret))
	if err != nil {
		panic(err) // HS256 over a map of JSON values does not fail
	}
	return s
}

// SubscriptionToken signs a token for a topic, HS256.
func SubscriptionToken(secret, sub, topic string, ttl time.Duration) string {
	return Token(secret, sub, ttl, map[string]any{"channel": topic})
}
