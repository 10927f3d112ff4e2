package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
)

// A refresh token is a handle of 128 random bits, the same for its whole
// family, and 256 random bits of its own. Kept are the hash of the handle, which
// names the family (its base64url is the sid of the access tokens), and the hash
// of the token that is good now. So whoever reads the log or an access token
// cannot make anything that even looks like one of the family's tokens, and a
// token with the right handle but of another hash is one that was rotated.
//
// Rotation is strict (RFC 9700 section 4.14.2): a token that was rotated and
// comes again ends its family and everything issued with it, also where the
// client only repeats a request whose answer it never got. It has its secret to
// begin anew with, and a grace period would be the thief's as well.

// ErrGrant: the refresh token is unknown, expired, revoked, of another client,
// or was used before (then its family is revoked now).
var ErrGrant = errors.New("auth: refresh token is not good")

const (
	handleSize       = 16
	tokenSize        = handleSize + 32
	refreshTokenSize = tokenSize * 4 / 3 // in base64url, without a rest
)

type familyKey [16]byte

func (k familyKey) sid() string { return base64.RawURLEncoding.EncodeToString(k[:]) }

// family is a chain of refresh tokens, each made from the one before.
type family struct {
	key        familyKey
	owner      *owner
	subject    string
	hash       [sha256.Size]byte // of the token that is good now
	generation uint64            // rotations so far
	expires    int64             // of that token
	access     int64             // when the last access token issued with it expires
	older      *family
	newer      *family
}

// owner lists the families of one client by their last use.
type owner struct {
	client         string
	oldest, newest *family
	count          int
}

// FamilyInfo is what is known of a refresh token that is good.
type FamilyInfo struct {
	Family     string // sid
	Client     string
	Subject    string
	ExpiresAt  int64
	Generation uint64
}

func (f *family) info() FamilyInfo {
	return FamilyInfo{Family: f.key.sid(), Client: f.owner.client, Subject: f.subject,
		ExpiresAt: f.expires, Generation: f.generation}
}

func (f *family) record() *encoder {
	return record(recordFamily).bytes(f.key[:]).string(f.owner.client).string(f.subject).
		bytes(f.hash[:]).number(f.generation).time(f.expires).time(f.access)
}

func keyOf(handle []byte) (k familyKey) {
	sum := sha256.Sum256(append([]byte("perch refresh family\x00"), handle...))
	copy(k[:], sum[:])
	return k
}

// readRefreshToken takes a token apart; ok is false where it cannot be one.
func readRefreshToken(token string) (k familyKey, hash [sha256.Size]byte, ok bool) {
	if len(token) != refreshTokenSize {
		return k, hash, false
	}
	var raw [tokenSize]byte
	if n, err := rawURL.Decode(raw[:], []byte(token)); err != nil || n != tokenSize {
		return k, hash, false
	}
	return keyOf(raw[:handleSize]), sha256.Sum256(raw[:]), true
}

// nextRefreshToken makes a token of the family whose handle this is.
func nextRefreshToken(handle []byte) (token string, hash [sha256.Size]byte) {
	var raw [tokenSize]byte
	copy(raw[:], handle)
	rand.Read(raw[handleSize:])
	return base64.RawURLEncoding.EncodeToString(raw[:]), sha256.Sum256(raw[:])
}

// NewFamily begins a family and returns its first token. expires and access are
// when that token and the access token that goes with it expire, in seconds
// since 1970. Over the bound of the client's families, the one that was used the
// longest ago is forgotten: its access token lives out its time, its refresh
// token is not good any more.
func (s *Store) NewFamily(client, subject string, expires, access int64) (token string, info FamilyInfo, err error) {
	if err := s.writable(); err != nil {
		return "", info, err
	}
	var handle [handleSize]byte
	rand.Read(handle[:])
	token, hash := nextRefreshToken(handle[:])
	now := s.opts.Now().Unix()
	err = s.write(func() []byte {
		out := s.pending
		o := s.ownerLocked(client)
		for o.oldest != nil && (o.count >= s.opts.FamiliesPerClient || o.oldest.expires <= now) {
			oldest := o.oldest
			out = record(recordDropped).bytes(oldest.key[:]).appendTo(out)
			delete(s.families, oldest.key)
			s.unlinkLocked(oldest) // the owner stays, also with none for a moment
		}
		f := &family{key: keyOf(handle[:]), owner: o, subject: subject, hash: hash, expires: expires, access: access}
		s.insertLocked(f)
		info = f.info()
		return f.record().appendTo(out)
	})
	if err != nil {
		return "", FamilyInfo{}, err
	}
	return token, info, nil
}

// Rotate takes token in exchange for the next of its family, whose expiry and
// whose access token's is given. check, where set, may refuse a good token
// before it is used up. A token that was rotated before revokes its family. It
// fails with ErrGrant, check's error, ErrStoreClosed or the disk's error.
func (s *Store) Rotate(token, client string, expires, access int64, check func(FamilyInfo) error) (next string, info FamilyInfo, err error) {
	k, hash, ok := readRefreshToken(token)
	if !ok {
		return "", FamilyInfo{}, ErrGrant
	}
	if err := s.writable(); err != nil {
		return "", info, err
	}
	handle, _ := base64.RawURLEncoding.DecodeString(token[:refreshTokenSize])
	next, nextHash := nextRefreshToken(handle[:handleSize])
	now := s.opts.Now().Unix()
	var refused error
	var reused *Revocation
	var undo func()
	err = s.write(func() []byte {
		f := s.families[k]
		if f == nil || f.owner.client != client || f.expires <= now {
			refused = ErrGrant
			return s.pending
		}
		if subtle.ConstantTimeCompare(f.hash[:], hash[:]) != 1 {
			refused = fmt.Errorf("%w: used before", ErrGrant)
			r := s.revokeLocked(f, now)
			reused = &r
			return record(recordRevoke).bytes(k[:]).time(r.Until).appendTo(s.pending)
		}
		if check != nil {
			if refused = check(f.info()); refused != nil {
				return s.pending
			}
		}
		before := *f
		undo = func() { s.unrotate(f, &before, nextHash) }
		f.hash, f.expires, f.access = nextHash, expires, max(f.access, access)
		f.generation++
		s.touchLocked(f)
		info = f.info()
		return record(recordRotate).bytes(k[:]).bytes(f.hash[:]).number(f.generation).
			time(f.expires).time(f.access).appendTo(s.pending)
	})
	if reused != nil {
		s.log.Warn("refresh token used twice, family revoked", "client", client)
		s.tell(*reused)
	}
	if err != nil && undo != nil {
		undo()
	}
	if err == nil {
		err = refused
	}
	if err != nil {
		return "", FamilyInfo{}, err
	}
	return next, info, nil
}

// unrotate takes a rotation back that is not on disk: the client comes again
// with the token that it has, and that must not look like one used twice. A
// later write may have brought the rotation to the disk after all, with all of
// the state, so the old state is written behind it.
func (s *Store) unrotate(f, before *family, hash [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.families[f.key] != f || f.hash != hash {
		return // revoked meanwhile
	}
	f.hash, f.generation, f.expires, f.access = before.hash, before.generation, before.expires, before.access
	if s.closed {
		return
	}
	s.pending = record(recordRotate).bytes(f.key[:]).bytes(f.hash[:]).number(f.generation).
		time(f.expires).time(f.access).appendTo(s.pending)
}

// Lookup returns what is known of a refresh token; ok is false where it is not
// good. It does not use it up.
func (s *Store) Lookup(token string) (info FamilyInfo, ok bool) {
	k, hash, ok := readRefreshToken(token)
	if !ok {
		return info, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.families[k]
	if f == nil || f.expires <= s.opts.Now().Unix() || subtle.ConstantTimeCompare(f.hash[:], hash[:]) != 1 {
		return info, false
	}
	return f.info(), true
}

// RevokeToken revokes the family of a refresh token of client, with everything
// issued with it; also where the token is one that was rotated: who holds it
// wants the family ended. found is false where there is no such family.
func (s *Store) RevokeToken(token, client string) (found bool, err error) {
	k, _, ok := readRefreshToken(token)
	if !ok {
		return false, nil
	}
	return s.revoke(k, client)
}

// RevokeFamily revokes the family that an access token names by its sid. A sid
// that is not a family's does nothing.
func (s *Store) RevokeFamily(sid string) error {
	var k familyKey
	raw, err := rawURL.DecodeString(sid)
	if err != nil || copy(k[:], raw) != len(k) || len(raw) != len(k) {
		return nil
	}
	_, err = s.revoke(k, "")
	return err
}

// revoke ends a family; client, where set, must be its own.
func (s *Store) revoke(k familyKey, client string) (found bool, err error) {
	if s.full() {
		return false, ErrStoreFull
	}
	now := s.opts.Now().Unix()
	var r Revocation
	err = s.write(func() []byte {
		f := s.families[k]
		if f == nil || client != "" && f.owner.client != client {
			return s.pending
		}
		found = true
		r = s.revokeLocked(f, now)
		return record(recordRevoke).bytes(k[:]).time(r.Until).appendTo(s.pending)
	})
	if found {
		s.tell(r)
	}
	return found, err
}

// revokeLocked ends f. Its access tokens are revoked until the last of them has
// expired, as long as there is room for that: a client that makes families only
// to have them revoked must not take the memory. Without room its refresh token
// is gone all the same, and the listeners still end its sessions.
func (s *Store) revokeLocked(f *family, now int64) Revocation {
	s.removeLocked(f)
	r := Revocation{Family: f.key.sid(), Until: f.access}
	switch {
	case r.Until <= now:
	case s.full():
		s.log.Error("no room for a revocation, access tokens of a revoked family live on")
		r.Until = now
	default:
		s.setRevoked(s.revoked, r.Family, r.Until)
	}
	return r
}

func (s *Store) ownerLocked(client string) *owner {
	o := s.owners[client]
	if o == nil {
		o = &owner{client: client}
		s.owners[client] = o
	}
	return o
}

func (s *Store) insertLocked(f *family) {
	s.families[f.key] = f
	o := f.owner
	f.older, f.newer = o.newest, nil
	if o.newest != nil {
		o.newest.newer = f
	} else {
		o.oldest = f
	}
	o.newest = f
	o.count++
}

// removeLocked forgets f.
func (s *Store) removeLocked(f *family) {
	delete(s.families, f.key)
	s.unlinkLocked(f)
	if f.owner.count == 0 {
		delete(s.owners, f.owner.client)
	}
}

func (s *Store) unlinkLocked(f *family) {
	o := f.owner
	if f.older != nil {
		f.older.newer = f.newer
	} else {
		o.oldest = f.newer
	}
	if f.newer != nil {
		f.newer.older = f.older
	} else {
		o.newest = f.older
	}
	f.older, f.newer = nil, nil
	o.count--
}

// touchLocked makes f the one that was used last.
func (s *Store) touchLocked(f *family) {
	if f.owner.newest != f {
		s.unlinkLocked(f)
		s.insertLocked(f)
	}
}

// apply brings a record of the log into memory. Only a start calls it.
func (s *Store) apply(payload []byte) error {
	d := &decoder{b: payload[1:]}
	var k familyKey
	var hash [sha256.Size]byte
	switch payload[0] {
	case recordFamily:
		d.fill(k[:])
		client, subject := d.string(), d.string()
		d.fill(hash[:])
		f := &family{key: k, subject: subject, hash: hash, generation: d.number(), expires: d.time(), access: d.time()}
		if !d.done() {
			return errRecord
		}
		if old := s.families[k]; old != nil {
			s.removeLocked(old)
		}
		f.owner = s.ownerLocked(client)
		s.insertLocked(f)
	case recordRotate:
		d.fill(k[:])
		d.fill(hash[:])
		generation, expires, access := d.number(), d.time(), d.time()
		if !d.done() {
			return errRecord
		}
		// A compaction can leave a rotation that its state holds already, behind it;
		// never one from before.
		if f := s.families[k]; f != nil && generation >= f.generation {
			f.hash, f.generation, f.expires, f.access = hash, generation, expires, access
			s.touchLocked(f)
		}
	case recordRevoke:
		d.fill(k[:])
		until := d.time()
		if !d.done() {
			return errRecord
		}
		if f := s.families[k]; f != nil {
			s.removeLocked(f)
		}
		s.setRevoked(s.revoked, k.sid(), until)
	case recordToken:
		jti, until := d.string(), d.time()
		if !d.done() {
			return errRecord
		}
		s.setRevoked(s.tokens, jti, until)
	case recordSID:
		sid, until := d.string(), d.time()
		if !d.done() {
			return errRecord
		}
		s.setRevoked(s.revoked, sid, until)
	case recordDropped:
		d.fill(k[:])
		if !d.done() {
			return errRecord
		}
		if f := s.families[k]; f != nil {
			s.removeLocked(f)
		}
	default:
		return errRecord
	}
	return nil
}
