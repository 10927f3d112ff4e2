package session

import (
	"hash/maphash"
	"sync"
)

const (
	registryShards     = 64
	registryMinBuckets = 16
)

// Registry finds the sessions of a user. It costs 24 to 32 bytes a session: the
// chains run through the sessions themselves, both ways, since a fleet may have
// one user. It gives out IDs, never
// pointers. All methods are safe from any goroutine, save where they say
// otherwise.
type Registry struct {
	seed   maphash.Seed
	shards [registryShards]registryShard

	// clients finds the sessions that came with the client id of another server.
	clientsMu sync.RWMutex
	clients   map[string]ID
}

type registryShard struct {
	mu      sync.Mutex
	buckets []*Session
	count   int
	_       [24]byte // a cache line for each shard
}

// NewRegistry makes an empty registry.
func NewRegistry() *Registry {
	return &Registry{seed: maphash.MakeSeed()}
}

// ByClient finds the session of a client id: one that node made, or one that a
// session came with.
func (r *Registry) ByClient(node Node, client string) (ID, bool) {
	// The table comes first: a session may be back here, under another ID than its
	// client id was made of.
	r.clientsMu.RLock()
	id, ok := r.clients[client]
	r.clientsMu.RUnlock()
	if ok {
		return id, true
	}
	return node.Session(client)
}

// Welcome lists the client id that s came with from another server, in
// s.Extra.Client. Runs on the loop of s.
func (r *Registry) Welcome(s *Session) {
	r.clientsMu.Lock()
	defer r.clientsMu.Unlock()
	if r.clients == nil {
		r.clients = make(map[string]ID)
	}
	r.clients[s.Extra.Client] = s.id
}

func (r *Registry) shard(user string) (*registryShard, uint64) {
	h := maphash.String(r.seed, user)
	return &r.shards[h%registryShards], h / registryShards
}

// Identify gives s its user and lists it, unless the user has as many sessions as
// most already (0: no bound). It is called once a session. Runs on the loop of s.
func (r *Registry) Identify(s *Session, user string, most int) bool {
	if s.listed {
		return true
	}
	sh, h := r.shard(user)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if most > 0 && sh.hasLocked(user, h, most) {
		return false
	}
	s.user = user
	s.listed = true
	if sh.count >= len(sh.buckets) {
		r.growLocked(sh)
	}
	i := h % uint64(len(sh.buckets))
	sh.pushLocked(s, i)
	sh.count++
	return true
}

// hasLocked tells whether a user has n sessions. It looks no further than the
// n-th.
func (sh *registryShard) hasLocked(user string, hash uint64, n int) bool {
	if len(sh.buckets) == 0 {
		return false
	}
	for s := sh.buckets[hash%uint64(len(sh.buckets))]; s != nil; s = s.next {
		if s.user == user {
			if n--; n == 0 {
				return true
			}
		}
	}
	return false
}

// pushLocked puts s at the head of a bucket's chain.
func (sh *registryShard) pushLocked(s *Session, i uint64) {
	s.prev, s.next = nil, sh.buckets[i]
	if s.next != nil {
		s.next.prev = s
	}
	sh.buckets[i] = s
}

func (r *Registry) growLocked(sh *registryShard) {
	n := max(registryMinBuckets, len(sh.buckets)*2)
	r.rehashLocked(sh, n)
}

func (r *Registry) rehashLocked(sh *registryShard, n int) {
	old := sh.buckets
	sh.buckets = make([]*Session, n)
	for _, s := range old {
		for s != nil {
			next := s.next
			i := maphash.String(r.seed, s.user) / registryShards % uint64(n)
			sh.pushLocked(s, i)
			s = next
		}
	}
}

// Remove takes s out. It may be called for a session that is not listed. Runs
// on the loop of s.
func (r *Registry) Remove(s *Session) {
	if s.Extra != nil && s.Extra.Client != "" {
		r.clientsMu.Lock()
		if r.clients[s.Extra.Client] == s.id {
			delete(r.clients, s.Extra.Client)
		}
		r.clientsMu.Unlock()
	}
	if !s.listed {
		return
	}
	sh, h := r.shard(s.user)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s.listed = false
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		sh.buckets[h%uint64(len(sh.buckets))] = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
	sh.count--
	if n := len(sh.buckets); n > registryMinBuckets && sh.count < n/8 {
		r.rehashLocked(sh, n/2)
	}
}

// ByUser appends the IDs of the user's sessions to ids.
func (r *Registry) ByUser(user string, ids []ID) []ID {
	sh, h := r.shard(user)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if len(sh.buckets) == 0 {
		return ids
	}
	for s := sh.buckets[h%uint64(len(sh.buckets))]; s != nil; s = s.next {
		if s.user == user {
			ids = append(ids, s.id)
		}
	}
	return ids
}

// Count is how many sessions are listed.
func (r *Registry) Count() int {
	n := 0
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		n += sh.count
		sh.mu.Unlock()
	}
	return n
}

// Users is how many users have a session, counted by going through all of
// them: for the API's info, not for a hot path.
func (r *Registry) Users() int {
	n := 0
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		seen := make(map[string]struct{}, sh.count)
		for _, s := range sh.buckets {
			for ; s != nil; s = s.next {
				seen[s.user] = struct{}{}
			}
		}
		n += len(seen)
		sh.mu.Unlock()
	}
	return n
}
