package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// KeyOptions name a PEM file: a public key, a certificate or a private key.
type KeyOptions struct {
	ID   string // kid; empty: the RFC 7638 thumbprint
	File string
}

// KeySetOptions say which keys there are. Where neither an HMAC secret nor a
// key file nor a remote key set is given, an Ed25519 key is made in DataDir
// once, and used again.
type KeySetOptions struct {
	DataDir string
	// HMACSecret verifies HS256, HS384 and HS512. It signs (HS256) where no private
	// key is configured.
	HMACSecret string
	// Keys are PEM files. The first private one signs; all verify.
	Keys []KeyOptions
	// JWKSURL is a remote key set, asked again every JWKSRefresh (0: 5 minutes).
	JWKSURL     string
	JWKSRefresh time.Duration
	// NeedSigner: tokens are to be issued, so a key is made also where the
	// configured ones only verify.
	NeedSigner bool
	// Logger; nil: slog.Default().
	Logger *slog.Logger

	// before, where set, gives its remote set on, if that is asked for as before.
	before *KeySet
}

// shortSecret is where an HMAC secret begins to be guessable offline by whoever
// holds one token (RFC 7518 section 3.2 asks for the size of the hash).
const shortSecret = 32

// KeySet holds the keys that verify and the one that signs. Safe from any
// goroutine; Close ends the refreshing of the remote set.
type KeySet struct {
	hmacSecret []byte
	keys       []*key
	signer     *key // nil: HMAC signs, or nothing does
	remote     *remoteKeys
	jwks       []byte
}

// NewKeySet reads or makes the keys. A remote key set that does not answer is
// no error: it is asked again in the background.
func NewKeySet(opts KeySetOptions) (*KeySet, error) {
	log := opts.Logger
	if log == nil {
		log = slog.Default()
	}
	ks := &KeySet{hmacSecret: []byte(opts.HMACSecret)}
	if n := len(ks.hmacSecret); n > 0 && n < shortSecret {
		log.Warn("hmac secret is short", "bytes", n, "advised", shortSecret)
	}
	for i, o := range opts.Keys {
		k, err := loadKey(o)
		if err != nil {
			return nil, fmt.Errorf("auth: keys[%d]: %w", i, err)
		}
		if ks.find(k.kid) != nil {
			return nil, fmt.Errorf("auth: keys[%d]: key id %q is taken", i, k.kid)
		}
		ks.keys = append(ks.keys, k)
		if k.private != nil && ks.signer == nil {
			ks.signer = k
		}
	}
	none := opts.HMACSecret == "" && len(opts.Keys) == 0 && opts.JWKSURL == ""
	if none || opts.NeedSigner && !ks.CanSign() {
		k, err := ownKey(opts.DataDir, log)
		if err != nil {
			return nil, fmt.Errorf("auth: own key: %w", err)
		}
		ks.keys = append(ks.keys, k)
		ks.signer = k
	}
	set := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	for _, k := range ks.keys {
		set.Keys = append(set.Keys, k.jwk)
	}
	var err error
	if ks.jwks, err = json.Marshal(set); err != nil {
		return nil, fmt.Errorf("auth: encode key set: %w", err)
	}
	if b := opts.before; b != nil && b.remote != nil && b.remote.url == opts.JWKSURL && b.remote.refresh == refreshOf(opts.JWKSRefresh) {
		ks.remote = b.remote
	} else if opts.JWKSURL != "" {
		if ks.remote, err = newRemoteKeys(opts.JWKSURL, opts.JWKSRefresh, log); err != nil {
			return nil, fmt.Errorf("auth: jwks_url: %w", err)
		}
	}
	return ks, nil
}

// CheckKeyFile reports whether a key file can be used, without using it.
func CheckKeyFile(o KeyOptions) error {
	_, err := loadKey(o)
	return err
}

func loadKey(o KeyOptions) (*key, error) {
	data, err := os.ReadFile(o.File)
	if err != nil {
		return nil, err
	}
	public, private, err := parsePEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	return newKey(o.ID, public, private)
}

// ownKey reads the signing key of the data directory, or makes it.
func ownKey(dir string, log *slog.Logger) (*key, error) {
	if dir == "" {
		return nil, errors.New("no data directory to keep it in")
	}
	made := false
	data, err := loadOrCreate(dir, signingKeyFile, func() ([]byte, error) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, err
		}
		made = true
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
	})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, signingKeyFile)
	if made {
		log.Info("signing key made", "file", path)
	} else if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
		log.Warn("signing key can be read by others", "file", path)
	}
	public, private, err := parsePEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if private == nil {
		return nil, fmt.Errorf("%s: not a private key", path)
	}
	return newKey("", public, private)
}

// Close ends the background work and waits for it.
func (ks *KeySet) Close() {
	if ks.remote != nil {
		ks.remote.close()
	}
}

// CanSign reports whether tokens can be issued.
func (ks *KeySet) CanSign() bool { return ks.signer != nil || len(ks.hmacSecret) > 0 }

// JWKS is the JSON Web Key Set of our own public keys; the HMAC secret is never
// in it, nor are the keys of the remote set. It must not be changed.
func (ks *KeySet) JWKS() []byte { return ks.jwks }

func (ks *KeySet) find(kid string) *key {
	for _, k := range ks.keys {
		if k.kid == kid {
			return k
		}
	}
	return nil
}

// candidates are the keys that may have signed a token. A kid that we know
// names its key; any other is looked for in the remote set, and tried with the
// keys that have no configured id: whoever made the token may call them as they
// like. The error, ErrKeysUnavailable, can come together with keys.
func (ks *KeySet) candidates(ctx context.Context, h header, t *jwt.Token) ([]jwt.VerificationKey, error) {
	var out []jwt.VerificationKey
	if h.kid != "" {
		if k := ks.find(h.kid); k != nil {
			if fits(h.alg, k.public) {
				out = append(out, k.public)
			}
			return out, nil
		}
	}
	for _, k := range ks.keys {
		if (h.kid == "" || !k.named) && fits(h.alg, k.public) {
			out = append(out, k.public)
		}
	}
	if ks.remote == nil {
		return out, nil
	}
	remote, err := ks.remote.candidates(ctx, h, t)
	return append(out, remote...), err
}

// sign makes a token of the claims. Callers make sure that CanSign.
func (ks *KeySet) sign(claims jwt.Claims) (string, error) {
	if k := ks.signer; k != nil {
		method := jwt.GetSigningMethod(algorithmNames[signingAlgorithm(k.public)])
		t := jwt.NewWithClaims(method, claims)
		t.Header["kid"] = k.kid
		return t.SignedString(k.private)
	}
	if len(ks.hmacSecret) == 0 {
		return "", ErrNoSigningKey
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(ks.hmacSecret)
}
