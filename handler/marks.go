package handler

import (
	"perch/auth"
	"perch/session"
)

// What a session keeps of its token, so that a revocation finds it, are two
// numbers: of the family and of the token. Of each the upper bits say whose the
// token is, so that all sessions of a client are found by 48 bits without a
// field of their own: of a million sessions of others none is hit in 10⁸ times.
// Tokens that name no client, and the families of one, are told apart by 64 bits
// and by 40.
const (
	clientBits = 24
	nameBits   = 64 - clientBits
	nameMask   = 1<<nameBits - 1
)

// marks are the numbers of a token.
func marks(client, family, id string) (ofFamily, ofToken uint64) {
	ofFamily, ofToken = TokenHash(family), TokenHash(id)
	if client == "" {
		return ofFamily, ofToken
	}
	c := spread(TokenHash(client))
	return c>>nameBits<<nameBits | ofFamily&nameMask, c<<nameBits | ofToken&nameMask
}

// spread mixes the bits of a hash: the upper ones of FNV-1a hardly differ between
// short names (the finalizer of MurmurHash3).
func spread(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// mark notes in s whose and which its token is.
func mark(s *session.Session, claims *auth.Claims) {
	s.Family, s.Token = marks(claims.ClientID, claims.Family, claims.ID)
}

// mark notes in s whose and which its token is, and looks once more whether it is
// good: a token that was verified in the pool may have been revoked before it was
// noted, when no revocation could find s by it. false: s is closed.
func (c *Commands) mark(s *session.Session, claims *auth.Claims) bool {
	mark(s, claims)
	if c.opts.Revoked != nil && c.opts.Revoked(claims) {
		c.refuseToken(s, 0, auth.ErrTokenRevoked, nil)
		return false
	}
	return true
}
