package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"perch/auth"
)

const (
	familiesPerClient = 100_000
	// keepLonger is for how long more than it holds something is kept: clocks differ.
	keepLonger = time.Minute
	sweepEvery = time.Minute
	// casTries is how often a change is made anew on what another node has written
	// meanwhile.
	casTries = 16
	// maxTTL is the longest that a key is kept: what does not end is revoked for as
	// long.
	maxTTL = 20 * 365 * 24 * time.Hour
)

// The keys of the bucket of tokens: f.CLIENT.SID is a family, r.f.SID, r.t.HASH and
// r.c.CLIENT are revocations of a family, a token and a client.
const (
	familyKeys     = "f."
	revocationKeys = "r."
	revokedFamily  = revocationKeys + "f."
	revokedToken   = revocationKeys + "t."
	revokedClient  = revocationKeys + "c."
)

// TokensOptions are of a Tokens; its zero value is what a server wants.
type TokensOptions struct {
	// FamiliesPerClient bounds the refresh-token families of one client; over it
	// those that were used the longest ago are forgotten, some at a time. 0: 100,000.
	FamiliesPerClient int
	// MaxRevocations bounds the revocations in force. 0: 1,000,000.
	MaxRevocations int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

var _ auth.TokenStore = (*Tokens)(nil)

// Tokens keeps refresh-token families and revocations in a key-value bucket, for
// all nodes: an auth.TokenStore. A family changes by its revision: of two nodes
// that are shown the same refresh token one wins. Each node has the revocations,
// and only them, in memory.
type Tokens struct {
	*auth.Revocations
	opts   TokensOptions
	bucket *bucket
	log    *slog.Logger

	life   context.Context
	end    context.CancelFunc
	group  sync.WaitGroup
	closed atomic.Bool

	failing  atomic.Bool
	failures atomic.Uint64
}

// NewTokens makes the store on a link; Start has it work.
func NewTokens(l *Link, o TokensOptions) *Tokens {
	if o.FamiliesPerClient <= 0 {
		o.FamiliesPerClient = familiesPerClient
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	t := &Tokens{Revocations: auth.NewRevocations(o.MaxRevocations, o.Now), opts: o, bucket: newBucket(l, "tokens"), log: l.log}
	t.life, t.end = context.WithCancel(context.Background())
	return t
}

// Start opens the bucket and reads the revocations: when it returns, all that were
// in force are known here. It waits as long as ctx lasts, and is called once.
func (t *Tokens) Start(ctx context.Context) error {
	if err := t.bucket.open(ctx); err != nil {
		return err
	}
	read := make(chan struct{})
	first := sync.OnceFunc(func() { close(read) })
	t.group.Go(func() {
		t.bucket.watch(t.life, watching{
			pattern: revocationKeys + ">",
			begin:   func() uint64 { return 1 }, // what is known already costs some microseconds
			each:    func(key string, m jetstream.Msg, _ *jetstream.MsgMetadata) { t.heard(key, m) },
			caught:  first,
			batch:   500,
			// Nobody else writes there.
			once: t.bucket.link.Alone(),
		})
	})
	t.group.Go(t.sweep)
	select {
	case <-read:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.life.Done():
		return auth.ErrStoreClosed
	}
}

func (t *Tokens) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.Sweep()
		case <-t.life.Done():
			return
		}
	}
}

// Close ends the work of the store; what is under way fails.
func (t *Tokens) Close() error {
	t.closed.Store(true)
	t.end()
	t.group.Wait()
	return nil
}

// Failures implements auth.TokenStore.
func (t *Tokens) Failures() (n uint64, failing bool) { return t.failures.Load(), t.failing.Load() }

// done counts what became of a change, and says so once each time that it begins
// to fail or ceases to.
func (t *Tokens) done(err error) error {
	if err == nil || errors.Is(err, errRevision) || errors.Is(err, errNoKey) {
		if t.failing.Swap(false) {
			t.log.Info("token bucket is written again")
		}
		return err
	}
	if t.closed.Load() {
		return auth.ErrStoreClosed
	}
	t.failures.Add(1)
	if !t.failing.Swap(true) {
		t.log.Error("token bucket can't be used: tokens are neither issued with refresh tokens nor revoked", "err", err)
	}
	return fmt.Errorf("%w: %w", auth.ErrStoreWrite, err)
}

// storedFamily is a family in the bucket.
type storedFamily struct {
	Client     string `json:"client"`
	Subject    string `json:"subject"`
	Revision   uint64 `json:"client_rev,omitempty"`
	Hash       []byte `json:"hash"`
	Generation uint64 `json:"generation"`
	Expires    int64  `json:"expires"`
	Access     int64  `json:"access"`
}

var errFamily = errors.New("cluster: bad family record")

func encodeFamily(f *auth.Family) []byte {
	b, _ := json.Marshal(storedFamily{f.Client, f.Subject, f.Revision, f.Hash[:], f.Generation, f.Expires, f.Access}) // does not fail
	return b
}

func decodeFamily(data []byte) (f auth.Family, err error) {
	var s storedFamily
	if json.Unmarshal(data, &s) != nil || len(s.Hash) != sha256.Size || s.Client == "" {
		return f, errFamily
	}
	return auth.Family{Client: s.Client, Subject: s.Subject, Revision: s.Revision, Hash: [sha256.Size]byte(s.Hash),
		Generation: s.Generation, Expires: s.Expires, Access: s.Access}, nil
}

func familyKey(client, sid string) string { return familyKeys + keyOf(client) + "." + sid }

// ttl is for how long what holds until then is kept.
func (t *Tokens) ttl(until int64) time.Duration {
	left := until - t.opts.Now().Unix()
	if left >= int64(maxTTL/time.Second) {
		return maxTTL
	}
	return time.Duration(left)*time.Second + keepLonger
}

// NewFamily implements auth.TokenStore.
func (t *Tokens) NewFamily(f auth.Family) (token string, info auth.FamilyInfo, err error) {
	first := auth.NewRefreshToken()
	f.Hash = first.Hash
	sid := first.Family()
	_, err = t.bucket.put(t.life, familyKey(f.Client, sid), encodeFamily(&f), 0, t.ttl(f.Expires))
	if err = t.done(err); err != nil {
		return "", info, err
	}
	// Counting the families of a client for each one more would cost more than they
	// do: a sixteenth of the bound more is the price.
	if most := t.opts.FamiliesPerClient; rand.IntN(max(1, most/16)) == 0 {
		if err := t.bucket.drop(t.life, familyKeys+keyOf(f.Client)+".*", most); err != nil {
			t.log.Warn("old refresh tokens of a client not forgotten", "client", f.Client, "err", err)
		}
	}
	return first.Text, f.Info(sid), nil
}

// read returns the family of a refresh token of client.
func (t *Tokens) read(client, sid string) (f auth.Family, revision uint64, err error) {
	data, revision, err := t.bucket.get(t.life, familyKey(client, sid))
	if err != nil {
		return f, revision, err
	}
	if f, err = decodeFamily(data); err != nil {
		t.log.Error("record of a refresh token can't be read", "client", client, "err", err)
		return f, revision, errNoKey
	}
	return f, revision, nil
}

// Rotate implements auth.TokenStore.
func (t *Tokens) Rotate(token, client string, expires, access int64, check func(auth.FamilyInfo) error) (next string, info auth.FamilyInfo, err error) {
	shown, ok := auth.ReadRefreshToken(token)
	if !ok {
		return "", info, auth.ErrGrant
	}
	following, sid := shown.Next(), shown.Family()
	key := familyKey(client, sid)
	now := t.opts.Now().Unix()
	for range casTries {
		f, revision, err := t.read(client, sid)
		if errors.Is(err, errNoKey) {
			_ = t.done(nil)
			return "", info, auth.ErrGrant
		}
		if err != nil {
			return "", info, t.done(err)
		}
		if f.Shows(&following) {
			return following.Text, f.Info(sid), t.done(nil) // written, but the answer was lost
		}
		after, err := f.Rotate(&shown, &following, client, now, expires, access, check)
		if errors.Is(err, auth.ErrReused) {
			t.log.Warn(auth.ReuseMessage, "client", client)
			if e := t.endFamily(client, sid); e != nil {
				return "", info, e
			}
		}
		if err != nil {
			return "", info, err
		}
		_, err = t.bucket.put(t.life, key, encodeFamily(&after), revision, t.ttl(expires))
		switch {
		case err == nil:
			return following.Text, after.Info(sid), t.done(nil)
		case errors.Is(err, errRevision):
		case errors.Is(err, ErrUnavailable) && t.bucket.link.Connected() && t.life.Err() == nil:
			// Nobody knows whether it was written: the next reading tells.
			_ = t.done(err)
		default:
			return "", info, t.done(err)
		}
	}
	return "", info, t.done(ErrUnavailable)
}

// endFamily revokes a family, as it is when it goes.
func (t *Tokens) endFamily(client, sid string) error {
	now := t.opts.Now().Unix()
	for range casTries {
		f, revision, err := t.read(client, sid)
		if errors.Is(err, errNoKey) {
			return t.done(nil) // another node was faster
		}
		if err != nil {
			return t.done(err)
		}
		r, told := auth.Revocation{Family: sid, Client: client, Until: f.Access}, false
		// The revocation comes first: a family that is gone, whose access tokens live
		// on, would be found by nobody who tries again.
		switch {
		case r.Until <= now:
		case t.Full():
			t.log.Error(auth.FullMessage)
		default:
			if err := t.revokeFamily(sid, client, r.Until); err != nil {
				return err
			}
			told = true
		}
		if err = t.bucket.remove(t.life, familyKey(client, sid), revision); errors.Is(err, errRevision) {
			continue // it was rotated meanwhile: its access tokens live longer now
		} else if err != nil {
			return t.done(err)
		}
		if !told {
			t.Tell(r)
		}
		return t.done(nil)
	}
	return t.done(ErrUnavailable)
}

// Lookup implements auth.TokenStore.
func (t *Tokens) Lookup(token, client string) (info auth.FamilyInfo, ok bool, err error) {
	shown, ok := auth.ReadRefreshToken(token)
	if !ok {
		return info, false, nil
	}
	sid := shown.Family()
	f, _, err := t.read(client, sid)
	if errors.Is(err, errNoKey) {
		return info, false, nil
	}
	if err != nil {
		return info, false, t.done(err)
	}
	if f.Client != client || f.Expires <= t.opts.Now().Unix() || !f.Shows(&shown) {
		return info, false, nil
	}
	return f.Info(sid), true, nil
}

// RevokeToken implements auth.TokenStore. It fails with auth.ErrStoreFull.
func (t *Tokens) RevokeToken(token, client string) (found bool, err error) {
	shown, ok := auth.ReadRefreshToken(token)
	if !ok {
		return false, nil
	}
	if t.Full() {
		return false, auth.ErrStoreFull
	}
	sid := shown.Family()
	if _, _, err := t.read(client, sid); errors.Is(err, errNoKey) {
		return false, nil
	} else if err != nil {
		return false, t.done(err)
	}
	return true, t.endFamily(client, sid)
}

// RevokeID implements auth.TokenStore.
func (t *Tokens) RevokeID(client, jti string, until int64) error {
	if jti == "" || until <= t.opts.Now().Unix() {
		return nil
	}
	if t.Full() {
		return auth.ErrStoreFull
	}
	sum := sha256.Sum256([]byte(jti))
	return t.revoke(revokedToken+base64.RawURLEncoding.EncodeToString(sum[:]), auth.Revocation{ID: jti, Client: client, Until: until})
}

// RevokeClient revokes until then what client got for a record older than
// revision, and forgets its refresh tokens.
func (t *Tokens) RevokeClient(client string, revision uint64, until int64) error {
	key := revokedClient + keyOf(client)
	r := auth.Revocation{Client: client, Revision: revision, Until: until}
	if until > t.opts.Now().Unix() {
		if t.Full() && !t.ClientRevoked(client, 0) {
			return auth.ErrStoreFull
		}
		if err := t.merge(key, r); err != nil {
			return err
		}
	}
	return t.done(t.bucket.drop(t.life, familyKeys+keyOf(client)+".*", 0))
}

// revokeFamily revokes what was issued with a family, until the last of it is over.
// Another node may have seen a later rotation.
func (t *Tokens) revokeFamily(sid, client string, until int64) error {
	return t.merge(revokedFamily+sid, auth.Revocation{Family: sid, Client: client, Until: until})
}

// merge writes a revocation that says no less than the one that stands there.
func (t *Tokens) merge(key string, r auth.Revocation) error {
	for range casTries {
		data, at, err := t.bucket.get(t.life, key)
		if err != nil && !errors.Is(err, errNoKey) {
			return t.revoked(r, err)
		}
		if err == nil {
			if old, e := decodeRevocation(key, data); e == nil {
				r.Revision, r.Until = max(r.Revision, old.Revision), max(r.Until, old.Until)
			}
		}
		if _, err = t.bucket.put(t.life, key, encodeRevocation(r), at, t.ttl(r.Until)); errors.Is(err, errRevision) {
			continue
		}
		return t.revoked(r, err)
	}
	return t.revoked(r, ErrUnavailable)
}

func (t *Tokens) revoke(key string, r auth.Revocation) error {
	_, err := t.bucket.write(t.life, key, encodeRevocation(r), t.ttl(r.Until))
	return t.revoked(r, err)
}

// revoked notes a revocation here, where it is asked for, before the bucket tells
// of it. It holds in this node also where it could not be written.
func (t *Tokens) revoked(r auth.Revocation, err error) error {
	if t.Add(r) {
		t.Tell(r)
	}
	return t.done(err)
}

// storedRevocation is a revocation in the bucket.
type storedRevocation struct {
	Family   string `json:"family,omitempty"`
	ID       string `json:"jti,omitempty"`
	Client   string `json:"client,omitempty"`
	Revision uint64 `json:"client_rev,omitempty"`
	Until    int64  `json:"until"`
}

var errRevocation = errors.New("cluster: bad revocation record")

func encodeRevocation(r auth.Revocation) []byte {
	b, _ := json.Marshal(storedRevocation(r)) // does not fail
	return b
}

// decodeRevocation reads what stands at a key, which has to be of its kind: a
// record in a wrong place must not end the tokens of others.
func decodeRevocation(key string, data []byte) (r auth.Revocation, err error) {
	var s storedRevocation
	if json.Unmarshal(data, &s) != nil {
		return r, errRevocation
	}
	kind := ""
	switch {
	case s.ID != "" && s.Family == "":
		kind = revokedToken
	case s.Family != "" && s.ID == "":
		kind = revokedFamily
	case s.Client != "" && s.Family == "" && s.ID == "" && s.Revision > 0:
		kind = revokedClient
	}
	if kind == "" || !strings.HasPrefix(key, kind) {
		return r, errRevocation
	}
	return auth.Revocation(s), nil
}

// heard takes in a revocation that the bucket tells of.
func (t *Tokens) heard(key string, m jetstream.Msg) {
	if marked(m.Headers()) {
		return // it is over: that is known here
	}
	r, err := decodeRevocation(key, m.Data())
	if err != nil {
		t.log.Error("record of a revocation can't be read", "key", key, "err", err)
		return
	}
	if t.Full() && !t.known(r) {
		t.log.Error(auth.FullMessage)
	} else if t.Add(r) {
		t.Tell(r)
	}
}

// known tells whether a revocation takes no more room.
func (t *Tokens) known(r auth.Revocation) bool {
	return t.Revoked(r.ID, r.Family) || r.ID == "" && r.Family == "" && t.ClientRevoked(r.Client, 0)
}
