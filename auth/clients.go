package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unicode/utf8"
)

var (
	// ErrClientUnknown: no such client, or not its secret: which, is not told.
	ErrClientUnknown = errors.New("auth: unknown client or wrong secret")
	// ErrClientDisabled is an ErrClientUnknown, by errors.Is. Only who has the right
	// secret is told.
	ErrClientDisabled = fmt.Errorf("%w: disabled", ErrClientUnknown)
	// ErrBusy: too many secrets wait to be verified.
	ErrBusy = errors.New("auth: too many verifications at once")
)

// ClientOptions are a device or backend that may ask for tokens.
type ClientOptions struct {
	ID string
	// SecretHash is a bcrypt or argon2id hash.
	SecretHash string
	// User is the sub of its tokens; empty: ID.
	User string
	// AnyUser: a request may name another sub.
	AnyUser bool
	// Channels are topics that the client is subscribed to by its token.
	Channels []string
	// TokenTTL and RefreshTTL take the place of those of Options; 0: they don't.
	// A negative RefreshTTL: no refresh tokens.
	TokenTTL   time.Duration
	RefreshTTL time.Duration
}

const (
	secretCacheSize = 16 << 10
	secretCacheTTL  = 5 * time.Minute
	hashWaiters     = 256
)

// Client is a client of the configuration, or of a registry as its record was when
// it was asked. It never changes.
type Client struct {
	ClientOptions
	// Revision is of its record, and goes into its tokens; Floor ends those of older
	// ones. 0: it is configured.
	Revision uint64
	Floor    uint64
	disabled bool
	hash     *secretHash
}

// Clients verify the secrets of the clients: those that are configured, then those
// of the registry, where there is one. Safe from any goroutine; Authenticate may
// take as long as a password hash, so not on a loop.
type Clients struct {
	byID     map[string]*Client
	list     []*Client
	registry Registry      // nil: none
	decoys   []*secretHash // one of them is what an unknown id costs
	seed     []byte        // of the process: names cache entries and picks dummy hashes
	slot     chan struct{} // hash computations under way
	wait     chan struct{} // and those that wait for one
	now      func() time.Time

	mu    sync.Mutex
	known map[[sha256.Size]byte]right
}

// right is a secret that was found right.
type right struct {
	hash  string // as it stood in secret_hash
	until time.Time
}

// NewClients checks the configuration; the error names the client by its place
// in the list. registry may be nil.
func NewClients(list []ClientOptions, registry Registry) (*Clients, error) {
	c := &Clients{
		byID:     make(map[string]*Client, len(list)),
		registry: registry,
		seed:     make([]byte, 32),
		slot:     make(chan struct{}, max(1, runtime.GOMAXPROCS(0))),
		wait:     make(chan struct{}, hashWaiters),
		now:      time.Now,
		known:    make(map[[sha256.Size]byte]right),
	}
	rand.Read(c.seed)
	for i, o := range list {
		if o.ID == "" || !utf8.ValidString(o.ID) {
			return nil, fmt.Errorf("auth: clients[%d]: no id", i)
		}
		if c.byID[o.ID] != nil {
			return nil, fmt.Errorf("auth: clients[%d]: id %q is taken", i, o.ID)
		}
		hash, err := parseSecretHash(o.SecretHash)
		if err != nil {
			return nil, fmt.Errorf("auth: clients[%d]: secret_hash: %w", i, err)
		}
		if o.User == "" {
			o.User = o.ID
		}
		cl := &Client{ClientOptions: o, hash: hash}
		c.byID[o.ID] = cl
		c.list = append(c.list, cl)
		c.decoys = append(c.decoys, hash)
	}
	// A registry holds secrets of both kinds: who measures an id that is not there
	// sees one or the other.
	if registry != nil {
		c.decoys = append(c.decoys, decoyHash(madeCost))
	}
	if registry != nil || len(list) == 0 {
		c.decoys = append(c.decoys, decoyHash(givenCost))
	}
	return c, nil
}

// find returns the client of that id; nil where there is none. now asks for its
// record as it is now. The errors are those of the registry.
func (c *Clients) find(ctx context.Context, id string, now bool) (*Client, error) {
	if cl := c.byID[id]; cl != nil || c.registry == nil {
		return cl, nil
	}
	if !registryID.MatchString(id) {
		return nil, nil
	}
	get := c.registry.Get
	if now {
		get = c.registry.Load
	}
	r, err := get(ctx, id)
	if errors.Is(err, ErrClientUnknown) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return r.client()
}

// key names a pair of id and secret in the cache, and in nothing else: without
// the process's seed it says nothing of the secret.
func (c *Clients) key(id, secret string) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, c.seed)
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(id)))
	mac.Write(n[:])
	mac.Write([]byte(id))
	mac.Write([]byte(secret))
	mac.Sum(sum[:0])
	return sum
}

// Known returns the client whose secret was found right within the last minutes:
// it takes no password hash. nil says nothing about the secret. It fails with
// ErrClientDisabled and with the errors of the registry.
func (c *Clients) Known(ctx context.Context, id, secret string) (*Client, error) {
	k := c.key(id, secret)
	c.mu.Lock()
	r, ok := c.known[k]
	c.mu.Unlock()
	if !ok || !c.now().Before(r.until) {
		return nil, nil
	}
	cl, err := c.find(ctx, id, false)
	if cl == nil || cl.SecretHash != r.hash {
		return nil, err
	}
	if cl.disabled {
		return nil, ErrClientDisabled
	}
	return cl, nil
}

// Authenticate returns the client whose id and secret these are. An unknown id
// takes as long as a wrong secret. It fails with ErrClientUnknown, ErrBusy, the
// error of ctx, or those of the registry.
func (c *Clients) Authenticate(ctx context.Context, id, secret string) (*Client, error) {
	if len(secret) > maxSecret || len(id) > maxSecret {
		return nil, ErrClientUnknown
	}
	if cl, err := c.Known(ctx, id, secret); cl != nil || err != nil {
		return cl, err
	}
	select {
	case c.wait <- struct{}{}:
		defer func() { <-c.wait }()
	default:
		return nil, ErrBusy
	}
	// Asked before the place for a hash is taken: a registry that does not answer
	// must not keep the others from theirs. It is asked each time: a record at hand
	// would be found faster than that there is none.
	cl, err := c.find(ctx, id, true)
	if err != nil {
		return nil, err
	}
	select {
	case c.slot <- struct{}{}:
		defer func() { <-c.slot }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if cl == nil {
		// A client's own hash, so that the time tells nothing; the same one whenever
		// this pair is asked for.
		pick := c.key(id, "")
		c.decoys[binary.LittleEndian.Uint64(pick[:8])%uint64(len(c.decoys))].matches(secret)
		return nil, ErrClientUnknown
	}
	if !cl.hash.matches(secret) {
		return nil, ErrClientUnknown
	}
	c.remember(c.key(id, secret), cl.SecretHash)
	if cl.disabled {
		return nil, ErrClientDisabled
	}
	return cl, nil
}

func (c *Clients) remember(k [sha256.Size]byte, hash string) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= secretCacheSize {
		for old, r := range c.known {
			if !now.Before(r.until) {
				delete(c.known, old)
			}
		}
		for old := range c.known { // any one: the next request of its owner pays for a hash
			if len(c.known) < secretCacheSize {
				break
			}
			delete(c.known, old)
		}
	}
	c.known[k] = right{hash, now.Add(secretCacheTTL)}
}
