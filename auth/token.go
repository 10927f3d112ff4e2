package auth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

var (
	// ErrTokenExpired: the token was good once (protocol error 109).
	ErrTokenExpired = errors.New("auth: token expired")
	// ErrTokenInvalid: malformed, of a wrong signature, issuer or audience, or not
	// valid yet (the session is closed with 3500).
	ErrTokenInvalid = errors.New("auth: token invalid")
	// ErrTokenRevoked is an ErrTokenInvalid, by errors.Is.
	ErrTokenRevoked = fmt.Errorf("auth: token revoked: %w", ErrTokenInvalid)
	// ErrKeysUnavailable: the token's key is not known and the remote key set
	// cannot be asked now. It says nothing about the token: the peer should come
	// again.
	ErrKeysUnavailable = errors.New("auth: remote keys unavailable")
)

// Tokens that fail cost an attacker nothing, so their errors are made once.
var (
	errMalformed         = fmt.Errorf("%w: malformed", ErrTokenInvalid)
	errHeader            = fmt.Errorf("%w: header", ErrTokenInvalid)
	errAlgorithm         = fmt.Errorf("%w: algorithm not allowed", ErrTokenInvalid)
	errSignature         = fmt.Errorf("%w: signature", ErrTokenInvalid)
	errClaims            = fmt.Errorf("%w: claims", ErrTokenInvalid)
	errIssuer            = fmt.Errorf("%w: issuer", ErrTokenInvalid)
	errAudience          = fmt.Errorf("%w: audience", ErrTokenInvalid)
	errNotYet            = fmt.Errorf("%w: not valid yet", ErrTokenInvalid)
	errSubscriptionToken = errors.New("a subscription token does not connect")
	errNoTopic           = errors.New("no channel claim")
)

const (
	// maxToken is the largest token looked at, in bytes.
	maxToken = 64 << 10
	// maxHeader is the largest JOSE header, in characters of base64url.
	maxHeader = 1 << 10
	// maxCheapToken is the largest token verified on a loop: about 60 µs.
	maxCheapToken = 8 << 10
)

// algorithm is a JWS algorithm that is verified at all. "none" has none.
type algorithm uint8

const (
	algUnknown algorithm = iota
	algHS256
	algHS384
	algHS512
	algRS256
	algRS384
	algRS512
	algES256
	algES384
	algES512
	algEdDSA
)

var algorithmNames = [...]string{
	algHS256: "HS256", algHS384: "HS384", algHS512: "HS512",
	algRS256: "RS256", algRS384: "RS384", algRS512: "RS512",
	algES256: "ES256", algES384: "ES384", algES512: "ES512",
	algEdDSA: "EdDSA",
}

func (a algorithm) hmac() bool { return a >= algHS256 && a <= algHS512 }

// VerifierOptions are of a Verifier. Keys must be set.
type VerifierOptions struct {
	Keys *KeySet
	// Issuer and Audience, where set, are demanded of every token.
	Issuer   string
	Audience string
	// Revoked reports whether a jti or a family is revoked. nil: nothing is.
	Revoked func(jti, family string) bool
	// ClientRevoked reports whether what a client got for a record of that revision
	// is revoked. nil: nothing is.
	ClientRevoked func(client string, revision uint64) bool
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Verifier decides whether a token is good. Safe from any goroutine.
type Verifier struct {
	opts    VerifierOptions
	parser  *jwt.Parser
	scratch sync.Pool
}

// scratch is what one verification needs for its time.
type scratch struct {
	macs  [3]hash.Hash // HS256, HS384, HS512; made when first needed
	input []byte       // the signed part of the token, then the decoded payload
	sum   [sha512.Size]byte
	sig   [sha512.Size + 2]byte
	head  [maxHeader]byte

	seen       string
	seenHeader header
}

// NewVerifier makes a Verifier.
func NewVerifier(opts VerifierOptions) *Verifier {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	v := &Verifier{opts: opts}
	v.parser = jwt.NewParser(
		jwt.WithValidMethods(algorithmNames[algHS256:]),
		jwt.WithStrictDecoding(),
		// The claims are checked by check, for the fast path and the slow alike.
		jwt.WithoutClaimsValidation(),
	)
	v.scratch.New = func() any { return &scratch{input: make([]byte, 0, 1024)} }
	return v
}

// release gives s back; the buffer of a large token is not kept.
func (v *Verifier) release(s *scratch) {
	if cap(s.input) > maxCheapToken {
		s.input = make([]byte, 0, 1024)
	}
	v.scratch.Put(s)
}

// Connect verifies a connect token. The errors are ErrTokenExpired,
// ErrTokenInvalid, ErrTokenRevoked and ErrKeysUnavailable. Where Cheap is false
// it may take long: not on a loop then. Safe from any goroutine.
func (v *Verifier) Connect(token string) (*Claims, error) {
	s := v.scratch.Get().(*scratch)
	defer v.release(s)
	var f fields
	if err := v.read(s, token, &f); err != nil {
		return nil, err
	}
	c, err := f.connect()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errClaims, err)
	}
	if v.opts.Revoked != nil && v.opts.Revoked(c.ID, c.Family) ||
		v.opts.ClientRevoked != nil && v.opts.ClientRevoked(c.ClientID, c.ClientRevision) {
		return nil, ErrTokenRevoked
	}
	return c, nil
}

// Subscription verifies a subscription token. Errors and goroutines are those
// of Connect; whose token it is and for which topic, the caller compares.
func (v *Verifier) Subscription(token string) (*SubscriptionClaims, error) {
	s := v.scratch.Get().(*scratch)
	defer v.release(s)
	var f fields
	if err := v.read(s, token, &f); err != nil {
		return nil, err
	}
	c, err := f.subscription()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errClaims, err)
	}
	if v.opts.Revoked != nil && v.opts.Revoked(c.ID, c.Family) {
		return nil, ErrTokenRevoked
	}
	return c, nil
}

// Cheap reports whether verifying token is light enough for a loop: its
// algorithm is HS256, HS384 or HS512 and it is at most 8 KiB long. A token that
// names no known algorithm is cheap as well: it is refused at once. Allocates
// nothing. Safe from any goroutine.
func (v *Verifier) Cheap(token string) bool {
	if len(token) > maxCheapToken {
		return false
	}
	dot := strings.IndexByte(token, '.')
	if dot < 0 || dot > maxHeader {
		return true
	}
	s := v.scratch.Get().(*scratch)
	defer v.release(s)
	h, err := s.header(token[:dot])
	return err != nil || h.alg.hmac()
}

// read verifies the signature, decodes the payload into f (whose slices live as
// long as s is held) and checks the claims that say whether the token holds.
func (v *Verifier) read(s *scratch, token string, f *fields) error {
	payload, err := v.signed(s, token)
	if err != nil {
		return err
	}
	if !validJSON(payload) || f.decode(payload) != nil {
		return errClaims
	}
	return v.check(f)
}

func (v *Verifier) check(f *fields) error {
	if v.opts.Issuer != "" && !equalsString(f.iss, v.opts.Issuer) {
		return errIssuer
	}
	if v.opts.Audience != "" && !f.audience(v.opts.Audience) {
		return errAudience
	}
	now := v.opts.Now()
	if f.nbf.set && f.nbf.at > now.Unix() {
		return errNotYet
	}
	if f.expired(now) {
		return ErrTokenExpired
	}
	return nil
}

// signed returns the payload of a token whose signature holds.
func (v *Verifier) signed(s *scratch, token string) ([]byte, error) {
	if len(token) > maxToken {
		return nil, errMalformed
	}
	first := strings.IndexByte(token, '.')
	if first <= 0 || first > maxHeader {
		return nil, errMalformed
	}
	second := strings.IndexByte(token[first+1:], '.') + first + 1
	if second <= first || strings.IndexByte(token[second+1:], '.') >= 0 {
		return nil, errMalformed
	}
	// Decoders of base64 pass over line ends; in a token they have no place.
	if strings.IndexByte(token, '\n') >= 0 || strings.IndexByte(token, '\r') >= 0 {
		return nil, errMalformed
	}
	h, err := s.header(token[:first])
	if err != nil {
		return nil, err
	}
	if h.alg.hmac() {
		return v.signedHMAC(s, h.alg, token, first, second)
	}
	return v.signedKey(h, token)
}

var rawURL = base64.RawURLEncoding.Strict()

// signedHMAC is the way of the connect storm: no allocation but what the pool
// gives.
func (v *Verifier) signedHMAC(s *scratch, alg algorithm, token string, first, second int) ([]byte, error) {
	secret := v.opts.Keys.hmacSecret
	if len(secret) == 0 {
		return nil, errAlgorithm
	}
	sig := token[second+1:]
	if rawURL.DecodedLen(len(sig)) > len(s.sig) {
		return nil, errSignature
	}
	s.input = append(s.input[:0], sig...)
	n, err := rawURL.Decode(s.sig[:], s.input)
	if err != nil {
		return nil, errMalformed
	}
	mac := s.mac(alg, secret)
	s.input = append(s.input[:0], token[:second]...)
	mac.Write(s.input)
	if !hmac.Equal(mac.Sum(s.sum[:0]), s.sig[:n]) {
		return nil, errSignature
	}
	// Decoding in place: base64 never writes past where it reads.
	n, err = rawURL.Decode(s.input[first+1:], s.input[first+1:])
	if err != nil {
		return nil, errMalformed
	}
	return s.input[first+1 : first+1+n], nil
}

func (s *scratch) mac(alg algorithm, secret []byte) hash.Hash {
	i := alg - algHS256
	if s.macs[i] == nil {
		switch alg {
		case algHS256:
			s.macs[i] = hmac.New(sha256.New, secret)
		case algHS384:
			s.macs[i] = hmac.New(sha512.New384, secret)
		default:
			s.macs[i] = hmac.New(sha512.New, secret)
		}
	} else {
		s.macs[i].Reset()
	}
	return s.macs[i]
}

// header is what of a JOSE header counts here.
type header struct {
	alg algorithm
	kid string
}

// header decodes a JOSE header. kid is read for public-key algorithms only:
// there is one HMAC secret.
func (s *scratch) header(enc string) (h header, err error) {
	// A fleet's tokens have one header: the last good one is known by its text.
	if enc == s.seen {
		return s.seenHeader, nil
	}
	if h, err = s.readHeader(enc); err == nil {
		s.seen, s.seenHeader = strings.Clone(enc), h
	}
	return h, err
}

func (s *scratch) readHeader(enc string) (h header, err error) {
	s.input = append(s.input[:0], enc...)
	n, err := rawURL.Decode(s.head[:], s.input)
	if err != nil {
		return h, errHeader
	}
	raw := s.head[:n]
	if !validJSON(raw) {
		return h, errHeader
	}
	m, ok := walkObject(raw)
	if !ok {
		return h, errHeader
	}
	var alg, kid []byte
	for {
		name, value, ok := m.next()
		if !ok {
			break
		}
		switch string(name) {
		case "alg":
			if alg != nil {
				return h, errHeader
			}
			alg = value
		case "kid":
			if kid != nil {
				return h, errHeader
			}
			kid = value
		case "crit":
			// RFC 7515 section 4.1.11: extensions that must be understood. None is.
			return h, errHeader
		}
	}
	for a := algHS256; int(a) < len(algorithmNames); a++ {
		if equalsString(alg, algorithmNames[a]) {
			h.alg = a
			break
		}
	}
	if h.alg == algUnknown {
		return h, errAlgorithm
	}
	if kid != nil && !h.alg.hmac() {
		if h.kid, err = unquote(kid); err != nil {
			return h, errHeader
		}
	}
	return h, nil
}

// payloadOf takes the payload out of golang-jwt, as it stands in the token.
type payloadOf struct {
	jwt.MapClaims
	raw []byte
}

// UnmarshalJSON keeps a copy of the payload.
func (p *payloadOf) UnmarshalJSON(b []byte) error {
	p.raw = append(p.raw[:0], b...)
	return nil
}

// signedKey verifies the signature of a key pair, by golang-jwt.
func (v *Verifier) signedKey(h header, token string) ([]byte, error) {
	var p payloadOf
	var unavailable error
	_, err := v.parser.ParseWithClaims(token, &p, func(t *jwt.Token) (any, error) {
		keys, err := v.opts.Keys.candidates(context.Background(), h, t)
		unavailable = err
		if len(keys) == 0 {
			if err == nil {
				err = errAlgorithm
			}
			return nil, err
		}
		return jwt.VerificationKeySet{Keys: keys}, nil
	})
	switch {
	case err == nil && p.raw != nil:
		return p.raw, nil
	case errors.Is(unavailable, ErrKeysUnavailable):
		return nil, ErrKeysUnavailable
	}
	return nil, errSignature
}
