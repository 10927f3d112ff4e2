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

// ErrReused is an ErrGrant, by errors.Is: the token was used before.
var ErrReused = fmt.Errorf("%w: used before", ErrGrant)

const (
	handleSize       = 16
	tokenSize        = handleSize + 32
	refreshTokenSize = tokenSize * 4 / 3 // in base64url, without a rest
)

type familyKey [16]byte

func (k familyKey) sid() string { return base64.RawURLEncoding.EncodeToString(k[:]) }

// RefreshToken is a refresh token taken apart.
type RefreshToken struct {
	Text string
	Hash [sha256.Size]byte // of all of it
	raw  [tokenSize]byte
}

// NewRefreshToken makes the first token of a new family.
func NewRefreshToken() RefreshToken { return makeToken(nil) }

// Next makes another token of the same family.
func (t *RefreshToken) Next() RefreshToken { return makeToken(t.raw[:handleSize]) }

func makeToken(handle []byte) (t RefreshToken) {
	rand.Read(t.raw[:])
	copy(t.raw[:], handle)
	t.Text, t.Hash = base64.RawURLEncoding.EncodeToString(t.raw[:]), sha256.Sum256(t.raw[:])
	return t
}

// ReadRefreshToken takes a token apart; ok is false where it cannot be one.
func ReadRefreshToken(token string) (t RefreshToken, ok bool) {
	if len(token) != refreshTokenSize {
		return t, false
	}
	if n, err := rawURL.Decode(t.raw[:], []byte(token)); err != nil || n != tokenSize {
		return t, false
	}
	t.Text, t.Hash = token, sha256.Sum256(t.raw[:])
	return t, true
}

func (t *RefreshToken) key() (k familyKey) {
	sum := sha256.Sum256(append([]byte("perch refresh family\x00"), t.raw[:handleSize]...))
	copy(k[:], sum[:])
	return k
}

// Family is the sid of the token's family.
func (t *RefreshToken) Family() string { return t.key().sid() }

// Family is what is kept of a chain of refresh tokens, each made from the one
// before, wherever it is kept.
type Family struct {
	Client     string
	Subject    string
	Revision   uint64            // of the client's record when it began; 0: the client is configured
	Hash       [sha256.Size]byte // of the token that is good now
	Generation uint64            // rotations so far
	Expires    int64             // of that token
	Access     int64             // when the last access token issued with it expires
}

// Rotate is the family after shown was exchanged for next, by the client, at a
// time in seconds since 1970. It fails with ErrGrant, ErrReused (then the family
// has to end) and check's error; nil: nothing more is checked.
func (f Family) Rotate(shown, next *RefreshToken, client string, now, expires, access int64, check func(FamilyInfo) error) (Family, error) {
	if f.Client != client || f.Expires <= now {
		return f, ErrGrant
	}
	if !f.Shows(shown) {
		return f, ErrReused
	}
	if check != nil {
		if err := check(f.Info(shown.Family())); err != nil {
			return f, err
		}
	}
	f.Hash, f.Expires, f.Access = next.Hash, expires, max(f.Access, access)
	f.Generation++
	return f, nil
}

// Shows reports whether t is the family's token that is good now, but for its
// time.
func (f *Family) Shows(t *RefreshToken) bool {
	return subtle.ConstantTimeCompare(f.Hash[:], t.Hash[:]) == 1
}

// Info is what others are told of the family of that sid.
func (f *Family) Info(sid string) FamilyInfo {
	return FamilyInfo{Family: sid, Client: f.Client, Subject: f.Subject, Revision: f.Revision,
		ExpiresAt: f.Expires, Generation: f.Generation}
}

// family is a Family in the memory of a Store.
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
	Revision   uint64 // of the client's record when it began
	ExpiresAt  int64
	Generation uint64
}

func (f *family) state() Family {
	return Family{Client: f.owner.client, Subject: f.subject, Hash: f.hash, Generation: f.generation,
		Expires: f.expires, Access: f.access}
}

func (f *family) set(to *Family) {
	f.hash, f.generation, f.expires, f.access = to.Hash, to.Generation, to.Expires, to.Access
}

func (f *family) info() FamilyInfo {
	state := f.state()
	return state.Info(f.key.sid())
}

func (f *family) record() *encoder {
	return record(recordFamily).bytes(f.key[:]).string(f.owner.client).string(f.subject).
		bytes(f.hash[:]).number(f.generation).time(f.expires).time(f.access)
}

// NewFamily implements TokenStore. The revision of a record is not kept: there is
// no registry beside a log.
func (s *Store) NewFamily(n Family) (token string, info FamilyInfo, err error) {
	if err := s.writable(); err != nil {
		return "", info, err
	}
	first := NewRefreshToken()
	now := s.opts.Now().Unix()
	err = s.write(func() []byte {
		out := s.pending
		o := s.ownerLocked(n.Client)
		for o.oldest != nil && (o.count >= s.opts.FamiliesPerClient || o.oldest.expires <= now) {
			oldest := o.oldest
			out = record(recordDropped).bytes(oldest.key[:]).appendTo(out)
			delete(s.families, oldest.key)
			s.unlinkLocked(oldest) // the owner stays, also with none for a moment
		}
		f := &family{key: first.key(), owner: o, subject: n.Subject, hash: first.Hash, expires: n.Expires, access: n.Access}
		s.insertLocked(f)
		info = f.info()
		return f.record().appendTo(out)
	})
	if err != nil {
		return "", FamilyInfo{}, err
	}
	return first.Text, info, nil
}

// Rotate implements TokenStore.
func (s *Store) Rotate(token, client string, expires, access int64, check func(FamilyInfo) error) (next string, info FamilyInfo, err error) {
	shown, ok := ReadRefreshToken(token)
	if !ok {
		return "", FamilyInfo{}, ErrGrant
	}
	if err := s.writable(); err != nil {
		return "", info, err
	}
	k, following := shown.key(), shown.Next()
	now := s.opts.Now().Unix()
	var refused error
	var reused *Revocation
	var undo func()
	err = s.write(func() []byte {
		f := s.families[k]
		if f == nil {
			refused = ErrGrant
			return s.pending
		}
		before := f.state()
		var after Family
		if after, refused = before.Rotate(&shown, &following, client, now, expires, access, check); refused != nil {
			if !errors.Is(refused, ErrReused) {
				return s.pending
			}
			r := s.revokeLocked(f, now)
			reused = &r
			return record(recordRevoke).bytes(k[:]).time(r.Until).appendTo(s.pending)
		}
		undo = func() { s.unrotate(f, &before, following.Hash) }
		f.set(&after)
		s.touchLocked(f)
		info = f.info()
		return f.rotation().appendTo(s.pending)
	})
	if reused != nil {
		s.log.Warn(ReuseMessage, "client", client)
		s.Tell(*reused)
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
	return following.Text, info, nil
}

// ReuseMessage is the line of the log when a refresh token comes a second time.
const ReuseMessage = "refresh token used twice, family revoked"

func (f *family) rotation() *encoder {
	return record(recordRotate).bytes(f.key[:]).bytes(f.hash[:]).number(f.generation).time(f.expires).time(f.access)
}

// unrotate takes a rotation back that is not on disk: the client comes again
// with the token that it has, and that must not look like one used twice. A
// later write may have brought the rotation to the disk after all, with all of
// the state, so the old state is written behind it.
func (s *Store) unrotate(f *family, before *Family, hash [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.families[f.key] != f || f.hash != hash {
		return // revoked meanwhile
	}
	f.set(before)
	if s.closed {
		return
	}
	s.pending = f.rotation().appendTo(s.pending)
}

// Lookup implements TokenStore; its error is nil.
func (s *Store) Lookup(token, client string) (info FamilyInfo, ok bool, err error) {
	t, ok := ReadRefreshToken(token)
	if !ok {
		return info, false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.families[t.key()]
	if f == nil || f.owner.client != client || f.expires <= s.opts.Now().Unix() {
		return info, false, nil
	}
	if state := f.state(); !state.Shows(&t) {
		return info, false, nil
	}
	return f.info(), true, nil
}

// RevokeToken implements TokenStore. It fails with ErrStoreFull.
func (s *Store) RevokeToken(token, client string) (found bool, err error) {
	t, ok := ReadRefreshToken(token)
	if !ok {
		return false, nil
	}
	if s.Full() {
		return false, ErrStoreFull
	}
	k := t.key()
	now := s.opts.Now().Unix()
	var r Revocation
	err = s.write(func() []byte {
		f := s.families[k]
		if f == nil || f.owner.client != client {
			return s.pending
		}
		found = true
		r = s.revokeLocked(f, now)
		return record(recordRevoke).bytes(k[:]).time(r.Until).appendTo(s.pending)
	})
	if found {
		s.Tell(r)
	}
	return found, err
}

// revokeLocked ends f. Its access tokens are revoked until the last of them has
// expired, as long as there is room for that: a client that makes families only
// to have them revoked must not take the memory. Without room its refresh token
// is gone all the same, and the listeners still end its sessions.
func (s *Store) revokeLocked(f *family, now int64) Revocation {
	s.removeLocked(f)
	r := Revocation{Family: f.key.sid(), Client: f.owner.client, Until: f.access}
	switch {
	case r.Until <= now:
	case s.Full():
		s.log.Error(FullMessage)
		r.Until = now
	default:
		s.Add(r)
	}
	return r
}

// FullMessage is the line of the log when a family that ends finds no room among
// the revocations.
const FullMessage = "no room for a revocation, access tokens of a revoked family live on"

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
		s.Add(Revocation{Family: k.sid(), Until: until})
	case recordToken:
		jti, until := d.string(), d.time()
		if !d.done() {
			return errRecord
		}
		s.Add(Revocation{ID: jti, Until: until})
	case recordSID:
		sid, until := d.string(), d.time()
		if !d.done() {
			return errRecord
		}
		s.Add(Revocation{Family: sid, Until: until})
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
