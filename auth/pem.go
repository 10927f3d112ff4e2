package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
)

// key is a key of our own: from a PEM file or made in the data directory.
type key struct {
	kid string
	// named: kid was configured, so a token that names another kid is not tried
	// with it.
	named   bool
	public  crypto.PublicKey
	private crypto.Signer // nil: verifies only
	jwk     jwk
}

// jwk is a public JSON Web Key (RFC 7517).
type jwk struct {
	KTY string `json:"kty"`
	Use string `json:"use"`
	Alg string `json:"alg,omitempty"`
	KID string `json:"kid"`
	CRV string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
}

const (
	minRSABits = 2048 // RFC 7518 section 3.3
	maxRSABits = 8192 // a larger one makes each token cost milliseconds
)

var errKeyType = errors.New("not an RSA, EC (P-256, P-384, P-521) or Ed25519 key")

// parsePEM returns the first key of a PEM file: a private key (PKCS#1, PKCS#8,
// SEC 1), a public key (PKIX, PKCS#1) or a certificate.
func parsePEM(data []byte) (public crypto.PublicKey, private crypto.Signer, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, nil, errors.New("no PEM key in file")
		}
		var k any
		switch block.Type {
		case "PRIVATE KEY":
			k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			k, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			k, err = x509.ParseECPrivateKey(block.Bytes)
		case "PUBLIC KEY":
			k, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			k, err = x509.ParsePKCS1PublicKey(block.Bytes)
		case "CERTIFICATE":
			var cert *x509.Certificate
			if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
				k = cert.PublicKey
			}
		case "ENCRYPTED PRIVATE KEY":
			err = errors.New("encrypted keys are not supported")
		default: // EC PARAMETERS stands before a SEC 1 key
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if signer, ok := k.(crypto.Signer); ok {
			private, k = signer, signer.Public()
		}
		return k, private, checkPublic(k)
	}
}

// checkPublic refuses keys that no allowed algorithm is for, and weak ones.
func checkPublic(public crypto.PublicKey) error {
	switch k := public.(type) {
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return nil
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("RSA key of %d bits, not %d to %d", n, minRSABits, maxRSABits)
		}
		if k.E < 3 || k.E&1 == 0 {
			return errors.New("RSA key of a wrong exponent")
		}
		return nil
	}
	return errKeyType
}

// fits reports whether alg is one of the algorithms of public's type. It is
// what keeps a token from choosing how its key is read: each algorithm takes one
// type of key, and no public key is ever an HMAC secret.
func fits(alg algorithm, public crypto.PublicKey) bool {
	switch k := public.(type) {
	case ed25519.PublicKey:
		return alg == algEdDSA
	case *rsa.PublicKey:
		return alg == algRS256 || alg == algRS384 || alg == algRS512
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return alg == algES256
		case elliptic.P384():
			return alg == algES384
		case elliptic.P521():
			return alg == algES512
		}
	}
	return false
}

// signingAlgorithm is what a private key signs with.
func signingAlgorithm(public crypto.PublicKey) algorithm {
	for _, a := range []algorithm{algEdDSA, algES256, algES384, algES512, algRS256} {
		if fits(a, public) {
			return a
		}
	}
	return algUnknown
}

// newKey fills in kid (the RFC 7638 thumbprint where id is empty) and JWK.
func newKey(id string, public crypto.PublicKey, private crypto.Signer) (*key, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	k := &key{kid: id, named: id != "", public: public, private: private}
	var canonical string // RFC 7638 section 3.2: required members, in order
	switch p := public.(type) {
	case ed25519.PublicKey:
		k.jwk = jwk{KTY: "OKP", CRV: "Ed25519", X: b64(p)}
		canonical = fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":"%s"}`, k.jwk.X)
	case *ecdsa.PublicKey:
		point, err := p.Bytes() // 4 ‖ x ‖ y, both padded to the size of the field
		if err != nil {
			return nil, err
		}
		n := (len(point) - 1) / 2
		k.jwk = jwk{KTY: "EC", CRV: p.Curve.Params().Name, X: b64(point[1 : 1+n]), Y: b64(point[1+n:])}
		canonical = fmt.Sprintf(`{"crv":"%s","kty":"EC","x":"%s","y":"%s"}`, k.jwk.CRV, k.jwk.X, k.jwk.Y)
	case *rsa.PublicKey:
		e := big.NewInt(int64(p.E)).Bytes()
		k.jwk = jwk{KTY: "RSA", N: b64(p.N.Bytes()), E: b64(e)}
		canonical = fmt.Sprintf(`{"e":"%s","kty":"RSA","n":"%s"}`, k.jwk.E, k.jwk.N)
	default:
		return nil, errKeyType
	}
	if k.kid == "" {
		sum := sha256.Sum256([]byte(canonical))
		k.kid = b64(sum[:])
	}
	k.jwk.KID, k.jwk.Use = k.kid, "sig"
	if k.jwk.KTY != "RSA" { // an RSA key verifies three algorithms
		k.jwk.Alg = algorithmNames[signingAlgorithm(public)]
	}
	return k, nil
}
