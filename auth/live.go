package auth

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"
)

var (
	// errDataDir: the store can't move.
	errDataDir = errors.New("auth: another data directory needs a restart")
	errClosed  = errors.New("auth: closed")
)

// Live is the authority that holds now. Whoever serves a request loads it once,
// so that a request meets one configuration, whole. Connect, Subscription and
// Cheap are those of the verifier that holds when they are called. Safe from
// any goroutine.
type Live struct {
	current atomic.Pointer[Authority]
	change  sync.Mutex
	closed  bool // under change
}

// NewLive makes a Live of an authority, which it closes in the end.
func NewLive(a *Authority) *Live {
	l := &Live{}
	l.current.Store(a)
	return l
}

// Load is the authority that holds now.
func (l *Live) Load() *Authority { return l.current.Load() }

// Connect is Verifier.Connect.
func (l *Live) Connect(token string) (*Claims, error) { return l.Load().Verifier.Connect(token) }

// Revoked reports whether what a token says is revoked now. It allocates nothing.
func (l *Live) Revoked(c *Claims) bool {
	s := l.Load().Store
	return s.Revoked(c.ID, c.Family) || s.ClientRevoked(c.ClientID, c.ClientRevision)
}

// Subscription is Verifier.Subscription.
func (l *Live) Subscription(token string) (*SubscriptionClaims, error) {
	return l.Load().Verifier.Subscription(token)
}

// Cheap is Verifier.Cheap.
func (l *Live) Cheap(token string) bool { return l.Load().Verifier.Cheap(token) }

// Prepare makes the authority that o asks for, of the same data directory, and
// returns what puts it in the place of the one that holds, or drops it: one of
// the two is called. Key files are read again. What was revoked, the refresh
// tokens, the count of wrong secrets and the secrets that were found right stay,
// and so does a remote key set that is asked for as before. It fails as Open
// does, and then nothing has changed.
func (l *Live) Prepare(o Options) (apply, drop func(), err error) {
	l.change.Lock()
	if l.closed {
		// Nobody would end the work of what is made now.
		l.change.Unlock()
		return nil, nil, errClosed
	}
	old := l.Load()
	next, err := old.with(o)
	if err != nil {
		l.change.Unlock()
		return nil, nil, err
	}
	apply = func() {
		l.current.Store(next)
		old.Keys.closeUnless(next.Keys)
		l.change.Unlock()
	}
	drop = func() {
		next.Keys.closeUnless(old.Keys)
		l.change.Unlock()
	}
	return apply, drop, nil
}

// Close closes the authority that holds.
func (l *Live) Close() error {
	l.change.Lock()
	defer l.change.Unlock()
	l.closed = true
	return l.Load().Close()
}

// with is an authority of other options that goes on with what a knows.
func (a *Authority) with(o Options) (*Authority, error) {
	if o.DataDir != a.opts.DataDir {
		return nil, errDataDir
	}
	o.Store, o.Registry = a.opts.Store, a.opts.Registry
	o = o.withDefaults()
	clients, err := NewClients(o.Clients, o.Registry)
	if err != nil {
		return nil, err
	}
	ko := o.KeySetOptions()
	ko.before = a.Keys
	keys, err := NewKeySet(ko)
	if err != nil {
		return nil, err
	}
	clients.inherit(a.Clients)
	next := newAuthority(o, keys, clients, a.Store, a.Limiter)
	next.now, next.Clients.now = a.now, a.Clients.now
	return next, nil
}

// closeUnless ends the background work of ks that is not other's as well.
func (ks *KeySet) closeUnless(other *KeySet) {
	if ks.remote != other.remote {
		ks.Close()
	}
}

// inherit takes over the right secrets. One that has changed since is none: Known
// compares the hashes.
func (c *Clients) inherit(old *Clients) {
	c.seed = old.seed
	old.mu.Lock()
	defer old.mu.Unlock()
	maps.Copy(c.known, old.known)
}
