package auth

import (
	"sync"
	"sync/atomic"
	"time"
)

// Revocation names what holds no longer: a refresh-token family with
// everything issued with it, one token, or what a client got before it was
// disabled or deleted.
type Revocation struct {
	Family string // sid
	ID     string // jti
	// Client is whose the family or the token is, where that is known. Alone it
	// stands for all that the client got while its record was older than Revision.
	Client   string
	Revision uint64
	Until    int64 // seconds since 1970; by then all that it concerns has expired
}

// clientCut ends the tokens of a client that were issued for a record older than
// revision.
type clientCut struct {
	revision uint64
	until    int64
}

// Revocations are what is revoked now, in memory: a bounded table of which event
// loops ask. Where they are kept is their owner's business. Safe from any
// goroutine.
type Revocations struct {
	max int
	now func() time.Time

	// A connect asks for them, and must not wait for a disk.
	revMu   sync.RWMutex
	tokens  map[string]int64
	sids    map[string]int64
	clients map[string]clientCut
	count   atomic.Int64

	listenMu  sync.Mutex
	listeners []func(Revocation)
}

// NewRevocations makes an empty table of at most max revocations; 0: 1,000,000.
// now is the clock; nil: time.Now.
func NewRevocations(most int, now func() time.Time) *Revocations {
	if most <= 0 {
		most = maxRevocations
	}
	if now == nil {
		now = time.Now
	}
	return &Revocations{max: most, now: now,
		tokens: make(map[string]int64), sids: make(map[string]int64), clients: make(map[string]clientCut)}
}

// Revoked reports whether the token jti, or everything of family, is revoked.
// It waits for nothing and allocates nothing. Safe from any goroutine.
func (r *Revocations) Revoked(jti, family string) bool {
	if r.count.Load() == 0 {
		return false
	}
	now := r.now().Unix()
	r.revMu.RLock()
	defer r.revMu.RUnlock()
	return jti != "" && r.tokens[jti] > now || family != "" && r.sids[family] > now
}

// ClientRevoked reports whether what the client got for a record of that revision
// is revoked. It waits for nothing and allocates nothing. Safe from any goroutine.
func (r *Revocations) ClientRevoked(client string, revision uint64) bool {
	if client == "" || r.count.Load() == 0 {
		return false
	}
	now := r.now().Unix()
	r.revMu.RLock()
	defer r.revMu.RUnlock()
	cut := r.clients[client]
	return revision < cut.revision && cut.until > now
}

// ClientCut is the revision below which what the client got is revoked; 0: nothing
// is. Safe from any goroutine.
func (r *Revocations) ClientCut(client string) uint64 {
	now := r.now().Unix()
	r.revMu.RLock()
	defer r.revMu.RUnlock()
	if cut := r.clients[client]; cut.until > now {
		return cut.revision
	}
	return 0
}

// Full tells whether there is no room for one more.
func (r *Revocations) Full() bool { return r.count.Load() >= int64(r.max) }

// Count is how many there are.
func (r *Revocations) Count() int { return int(r.count.Load()) }

// Add puts x into the table; news is false where it, or more, stood there
// already, and where it is over.
func (r *Revocations) Add(x Revocation) (news bool) {
	if x.Until <= r.now().Unix() {
		return false
	}
	r.revMu.Lock()
	defer r.revMu.Unlock()
	switch {
	case x.ID != "":
		news = addUntil(r.tokens, x.ID, x.Until)
	case x.Family != "":
		news = addUntil(r.sids, x.Family, x.Until)
	case x.Client != "":
		cut := r.clients[x.Client]
		news = x.Revision > cut.revision
		r.clients[x.Client] = clientCut{max(cut.revision, x.Revision), max(cut.until, x.Until)}
	}
	r.countLocked()
	return news
}

func addUntil(m map[string]int64, name string, until int64) bool {
	old, had := m[name]
	m[name] = max(old, until)
	return !had
}

func (r *Revocations) countLocked() {
	r.count.Store(int64(len(r.tokens) + len(r.sids) + len(r.clients)))
}

// OnRevoke has f called with each revocation, once it is kept, on the goroutine
// that learned of it. f must not block for long.
func (r *Revocations) OnRevoke(f func(Revocation)) {
	r.listenMu.Lock()
	defer r.listenMu.Unlock()
	r.listeners = append(r.listeners, f)
}

// Tell calls whoever asked for it with OnRevoke.
func (r *Revocations) Tell(x Revocation) {
	r.listenMu.Lock()
	listeners := r.listeners
	r.listenMu.Unlock()
	for _, f := range listeners {
		f(x)
	}
}

// Sweep forgets what is over.
func (r *Revocations) Sweep() {
	if r.count.Load() == 0 {
		return
	}
	now := r.now().Unix()
	r.revMu.Lock()
	defer r.revMu.Unlock()
	for _, m := range []map[string]int64{r.tokens, r.sids} {
		for name, until := range m {
			if until <= now {
				delete(m, name)
			}
		}
	}
	for name, cut := range r.clients {
		if cut.until <= now {
			delete(r.clients, name)
		}
	}
	r.countLocked()
}
