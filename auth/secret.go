package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// ErrSecretHash: not a bcrypt or argon2id hash, or one of parameters out of
// bounds.
var ErrSecretHash = errors.New("auth: bad secret hash")

// Parameters of the hashes we make: OWASP's smallest for argon2id. What is
// verified may differ, within the bounds below: they keep a configured hash from
// taking the machine's memory, or a second of its time, for each request.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16
	argonHash    = 32

	argonMaxMemory  = 256 << 10 // KiB
	argonMaxTime    = 16
	argonMaxThreads = 16
	bcryptMaxCost   = 15 // about 2 s
	maxSecret       = 1024
	bcryptMaxSecret = 72 // bytes; bcrypt reads no further
)

// cost is what one hash of argon2id takes.
type cost struct {
	memory, time uint32
	threads      uint8
}

var (
	givenCost = cost{argonMemory, argonTime, argonThreads}
	// madeCost is of secrets that are 256 random bits: nobody tries those out, so
	// nothing is won with a slow hash, and a fleet that logs in costs 20 µs each
	// instead of 20 ms.
	madeCost = cost{memory: 8, time: 1, threads: 1}
)

// decoyHash is of no secret, and costs as much as one.
func decoyHash(c cost) *secretHash {
	return &secretHash{memory: c.memory, time: c.time, threads: c.threads, salt: make([]byte, argonSalt), sum: make([]byte, argonHash)}
}

// secretHash is a parsed hash of a client's secret.
type secretHash struct {
	bcrypt       []byte // nil: argon2id
	memory, time uint32
	threads      uint8
	salt, sum    []byte
}

// HashSecret makes the argon2id hash of a secret, for secret_hash. It takes
// about 20 ms and 19 MiB.
func HashSecret(secret string) (string, error) {
	if secret == "" || len(secret) > maxSecret {
		return "", fmt.Errorf("auth: secret is not of 1 to %d bytes", maxSecret)
	}
	return hashSecret(secret, givenCost), nil
}

func hashSecret(secret string, c cost) string {
	salt := make([]byte, argonSalt)
	rand.Read(salt)
	sum := argon2.IDKey([]byte(secret), salt, c.time, c.memory, c.threads, argonHash)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s",
		argon2.Version, c.memory, c.time, c.threads, b64(salt), b64(sum))
}

// CheckSecretHash reports whether hash can be a client's secret_hash: bcrypt
// ($2a$, $2b$, $2y$; cost up to 15) or argon2id in PHC form. The error is
// ErrSecretHash and does not repeat the hash.
func CheckSecretHash(hash string) error {
	_, err := parseSecretHash(hash)
	return err
}

func parseSecretHash(s string) (*secretHash, error) {
	switch {
	case strings.HasPrefix(s, "$2a$"), strings.HasPrefix(s, "$2b$"), strings.HasPrefix(s, "$2y$"):
		cost, err := bcrypt.Cost([]byte(s))
		if err != nil || len(s) != 60 {
			return nil, fmt.Errorf("%w: malformed bcrypt", ErrSecretHash)
		}
		if cost > bcryptMaxCost {
			return nil, fmt.Errorf("%w: bcrypt cost %d over %d", ErrSecretHash, cost, bcryptMaxCost)
		}
		return &secretHash{bcrypt: []byte(s)}, nil
	case strings.HasPrefix(s, "$argon2id$"):
		return parseArgon(s)
	}
	return nil, fmt.Errorf("%w: neither bcrypt nor argon2id", ErrSecretHash)
}

func parseArgon(s string) (*secretHash, error) {
	malformed := fmt.Errorf("%w: malformed argon2id", ErrSecretHash)
	parts := strings.Split(s, "$")
	if len(parts) != 6 {
		return nil, malformed
	}
	if parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return nil, fmt.Errorf("%w: argon2id version is not %d", ErrSecretHash, argon2.Version)
	}
	var h secretHash
	var threads uint32
	n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &threads)
	if err != nil || n != 3 || parts[3] != fmt.Sprintf("m=%d,t=%d,p=%d", h.memory, h.time, threads) {
		return nil, malformed
	}
	if threads < 1 || threads > argonMaxThreads || h.time < 1 || h.time > argonMaxTime ||
		h.memory < 8*threads || h.memory > argonMaxMemory {
		return nil, fmt.Errorf("%w: argon2id parameters out of bounds (m up to %d, t up to %d, p up to %d)",
			ErrSecretHash, argonMaxMemory, argonMaxTime, argonMaxThreads)
	}
	h.threads = uint8(threads)
	if h.salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4]); err != nil || len(h.salt) < 8 || len(h.salt) > 64 {
		return nil, malformed
	}
	if h.sum, err = base64.RawStdEncoding.Strict().DecodeString(parts[5]); err != nil || len(h.sum) < 16 || len(h.sum) > 64 {
		return nil, malformed
	}
	return &h, nil
}

// matches takes the time and memory of the hash, whatever the answer.
func (h *secretHash) matches(secret string) bool {
	if h.bcrypt != nil {
		b := []byte(secret)
		// A longer secret is refused, not cut: two that begin alike are not one. The
		// time is spent all the same.
		long := len(b) > bcryptMaxSecret
		if long {
			b = b[:bcryptMaxSecret]
		}
		return bcrypt.CompareHashAndPassword(h.bcrypt, b) == nil && !long
	}
	sum := argon2.IDKey([]byte(secret), h.salt, h.time, h.memory, h.threads, uint32(len(h.sum)))
	return subtle.ConstantTimeCompare(sum, h.sum) == 1
}
