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

// Client is a configured client. It never changes.
type Client struct {
	ClientOptions
	hash *secretHash
}

// Clients verify the secrets of the configured clients. Safe from any
// goroutine; Authenticate may take as long as a password hash, so not on a
// loop.
type Clients struct {
	byID map[string]*Client
	list []*Client
	none *secretHash   // what an unknown id costs where no client is configured
	seed []byte        // of the process: names cache entries and picks dummy hashes
	slot chan struct{} // hash computations under way
	wait chan struct{} // and those that wait for one
	now  func() time.Time

	mu    sync.Mutex
	known map[[sha256.Size]byte]right
}

// right is a secret that was found right.
type right struct {
	id    string
	until time.Time
}

// NewClients checks the configuration; the error names the client by its place
// in the list.
func NewClients(list []ClientOptions) (*Clients, error) {
	c := &Clients{
		byID:  make(map[string]*Client, len(list)),
		seed:  make([]byte, 32),
		slot:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0))),
		wait:  make(chan struct{}, hashWaiters),
		now:   time.Now,
		known: make(map[[sha256.Size]byte]right),
		none: &secretHash{memory: argonMemory, time: argonTime, threads: argonThreads,
			salt: make([]byte, argonSalt), sum: make([]byte, argonHash)},
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
	}
	return c, nil
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
// it takes microseconds, where Authenticate takes a password hash. nil says
// nothing about the secret.
func (c *Clients) Known(id, secret string) *Client {
	k := c.key(id, secret)
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.known[k]; ok && c.now().Before(r.until) {
		return c.byID[id]
	}
	return nil
}

// Authenticate returns the client whose id and secret these are. An unknown id
// takes as long as a wrong secret. It fails with ErrClientUnknown, ErrBusy, or
// the error of ctx.
func (c *Clients) Authenticate(ctx context.Context, id, secret string) (*Client, error) {
	if len(secret) > maxSecret || len(id) > maxSecret {
		return nil, ErrClientUnknown
	}
	if cl := c.Known(id, secret); cl != nil {
		return cl, nil
	}
	select {
	case c.wait <- struct{}{}:
		defer func() { <-c.wait }()
	default:
		return nil, ErrBusy
	}
	select {
	case c.slot <- struct{}{}:
		defer func() { <-c.slot }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	k := c.key(id, secret)
	cl := c.byID[id]
	if cl == nil {
		// A client's own hash, so that the time tells nothing; the same one whenever
		// this pair is asked for.
		h := c.none
		if len(c.list) > 0 {
			pick := c.key(id, "")
			h = c.list[binary.LittleEndian.Uint64(pick[:8])%uint64(len(c.list))].hash
		}
		h.matches(secret)
		return nil, ErrClientUnknown
	}
	if !cl.hash.matches(secret) {
		return nil, ErrClientUnknown
	}
	c.remember(k, id)
	return cl, nil
}

func (c *Clients) remember(k [sha256.Size]byte, id string) {
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
	c.known[k] = right{id, now.Add(secretCacheTTL)}
}
