package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"time"
)

// Options are of an Authority; the fields are those of perch.yaml.
type Options struct {
	DataDir     string
	HMACSecret  string
	Keys        []KeyOptions
	JWKSURL     string
	JWKSRefresh time.Duration // 0: 5 minutes
	// Issuer and Audience, where set, are put into issued tokens and demanded of
	// tokens that are verified.
	Issuer     string
	Audience   string
	TokenTTL   time.Duration // 0: one hour
	RefreshTTL time.Duration // 0: 30 days; negative: no refresh tokens
	Clients    []ClientOptions
	// Registry is where clients stand that are not configured; nil: nowhere.
	Registry Registry
	// Store, where set, takes the place of the log in DataDir, which whoever gives
	// it has locked (LockDir). It is closed with the Authority.
	Store TokenStore
	// Logger; nil: slog.Default().
	Logger *slog.Logger
}

const (
	tokenTTL   = time.Hour
	refreshTTL = 30 * 24 * time.Hour
	maxSubject = 255 // bytes
)

var (
	// ErrSubject: the client may not ask for tokens of that sub.
	ErrSubject = errors.New("auth: sub not allowed for this client")
	// ErrBadSubject: a sub that is not a name: too long, or no printable UTF-8.
	ErrBadSubject = errors.New("auth: bad sub")
	// ErrForeignToken: a client wants to revoke a token of another.
	ErrForeignToken = errors.New("auth: token of another client")
)

// Authority is everything of auth, wired: what the token endpoint needs, and
// the Verifier that the server needs.
type Authority struct {
	Keys     *KeySet
	Verifier *Verifier
	Issuer   *Issuer
	Clients  *Clients
	Store    TokenStore
	Limiter  *Limiter

	opts Options
	now  func() time.Time
}

// KeySetOptions are what of the options a KeySet is made of.
func (o Options) KeySetOptions() KeySetOptions {
	return KeySetOptions{
		DataDir: o.DataDir, HMACSecret: o.HMACSecret, Keys: o.Keys,
		JWKSURL: o.JWKSURL, JWKSRefresh: o.JWKSRefresh,
		NeedSigner: len(o.Clients) > 0 || o.Registry != nil, Logger: o.Logger,
	}
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.TokenTTL <= 0 {
		o.TokenTTL = tokenTTL
	}
	if o.RefreshTTL == 0 {
		o.RefreshTTL = refreshTTL
	}
	return o
}

// Open reads or makes the keys and takes the data directory (ErrLocked where
// another process has it). Close gives it back.
func Open(o Options) (*Authority, error) {
	o = o.withDefaults()
	clients, err := NewClients(o.Clients, o.Registry)
	if err != nil {
		return nil, err
	}
	keys, err := NewKeySet(o.KeySetOptions())
	if err != nil {
		return nil, err
	}
	if o.Store != nil {
		return newAuthority(o, keys, clients, o.Store, NewLimiter()), nil
	}
	store, err := OpenStore(StoreOptions{Dir: o.DataDir, Logger: o.Logger})
	if err != nil {
		keys.Close()
		return nil, err
	}
	return newAuthority(o, keys, clients, store, NewLimiter()), nil
}

func newAuthority(o Options, keys *KeySet, clients *Clients, store TokenStore, limiter *Limiter) *Authority {
	return &Authority{
		Keys: keys, Clients: clients, Store: store, Limiter: limiter,
		Verifier: NewVerifier(VerifierOptions{Keys: keys, Issuer: o.Issuer, Audience: o.Audience,
			Revoked: store.Revoked, ClientRevoked: store.ClientRevoked}),
		Issuer: NewIssuer(IssuerOptions{Keys: keys, Issuer: o.Issuer, Audience: o.Audience, TTL: o.TokenTTL}),
		opts:   o, now: time.Now,
	}
}

// Close ends the background work and releases the data directory.
func (a *Authority) Close() error {
	a.Keys.Close()
	return a.Store.Close()
}

// SlowDownError: the address has to wait before it may try a secret again.
type SlowDownError struct{ After time.Duration }

func (e *SlowDownError) Error() string {
	return fmt.Sprintf("auth: too many wrong secrets, wait %s", e.After.Round(time.Second))
}

// Authenticate returns the client whose id and secret these are. It fails with
// ErrClientUnknown, a *SlowDownError, ErrBusy, ErrUnavailable, or the error of ctx.
// It takes as long as a password hash; not on a loop.
func (a *Authority) Authenticate(ctx context.Context, addr netip.Addr, id, secret string) (*Client, error) {
	if c, err := a.Clients.Known(ctx, id, secret); c != nil || err != nil {
		return c, err
	}
	if wait := a.Limiter.Wait(addr, id); wait > 0 {
		return nil, &SlowDownError{After: wait}
	}
	c, err := a.Clients.Authenticate(ctx, id, secret)
	switch {
	case err == nil, errors.Is(err, ErrClientDisabled): // the secret is right
		a.Limiter.Right(addr, id)
	case errors.Is(err, ErrClientUnknown):
		a.Limiter.Wrong(addr, id)
	default:
		a.Limiter.Undo(addr, id)
	}
	return c, err
}

// Tokens are what a grant gives.
type Tokens struct {
	AccessToken  string
	RefreshToken string // empty: none
	ExpiresIn    time.Duration
}

func (a *Authority) ttls(c *Client) (access, refresh time.Duration) {
	access, refresh = a.opts.TokenTTL, a.opts.RefreshTTL
	if c.TokenTTL > 0 {
		access = c.TokenTTL
	}
	if c.RefreshTTL != 0 {
		refresh = c.RefreshTTL
	}
	return access, refresh
}

// Grant is the client credentials grant (RFC 6749 section 4.4): tokens for c,
// which has authenticated. subject, where not empty, asks for another sub than
// the client's; it fails with ErrSubject or ErrBadSubject where it may not be.
// Other errors are ErrNoSigningKey and the disk's. Waits for the disk.
func (a *Authority) Grant(c *Client, subject string) (Tokens, error) {
	if subject == "" {
		subject = c.User
	}
	if err := checkSubject(c, subject); err != nil {
		return Tokens{}, err
	}
	if !a.Keys.CanSign() {
		return Tokens{}, ErrNoSigningKey
	}
	access, refresh := a.ttls(c)
	now := a.now()
	expires := now.Add(access).Unix()
	var refreshToken, sid string
	if refresh > 0 {
		token, info, err := a.Store.NewFamily(Family{Client: c.ID, Subject: subject, Revision: c.Revision,
			Expires: now.Add(refresh).Unix(), Access: expires})
		if err != nil {
			return Tokens{}, err
		}
		refreshToken, sid = token, info.Family
	}
	return a.issue(c, subject, sid, refreshToken, access, expires)
}

// Refresh exchanges a refresh token of c for new tokens (RFC 6749 section 6).
// It fails with ErrGrant, ErrNoSigningKey, or the disk's error. Waits for the
// disk.
func (a *Authority) Refresh(c *Client, refreshToken string) (Tokens, error) {
	if !a.Keys.CanSign() {
		return Tokens{}, ErrNoSigningKey
	}
	access, refresh := a.ttls(c)
	if refresh <= 0 {
		return Tokens{}, ErrGrant
	}
	now := a.now()
	expires := now.Add(access).Unix()
	next, info, err := a.Store.Rotate(refreshToken, c.ID, now.Add(refresh).Unix(), expires, func(f FamilyInfo) error {
		// The client has changed since, or it was disabled meanwhile.
		if checkSubject(c, f.Subject) != nil || f.Revision < c.Floor {
			return ErrGrant
		}
		return nil
	})
	if err != nil {
		return Tokens{}, err
	}
	return a.issue(c, info.Subject, info.Family, next, access, expires)
}

func (a *Authority) issue(c *Client, subject, sid, refreshToken string, ttl time.Duration, expires int64) (Tokens, error) {
	revision := c.Revision
	if revision == 0 {
		// What a client of the registry, whose id this was, has lost is not what the
		// configured one gets.
		revision = a.Store.ClientCut(c.ID)
	}
	token, err := a.Issuer.Issue(IssueRequest{Subject: subject, Channels: c.Channels, ClientID: c.ID, ClientRevision: revision, Family: sid, expiresAt: expires})
	if err != nil {
		return Tokens{}, err
	}
	return Tokens{AccessToken: token, RefreshToken: refreshToken, ExpiresIn: ttl}, nil
}

func checkSubject(c *Client, subject string) error {
	if subject == c.User {
		return nil
	}
	if !c.AnyUser {
		return ErrSubject
	}
	if !printableName(subject) {
		return ErrBadSubject
	}
	return nil
}

// Revoke ends a token of c (RFC 7009): a refresh token with its family and all
// access tokens issued with it, an access token alone. A token that is unknown,
// expired or revoked is no error. It fails with ErrForeignToken, ErrStoreFull,
// ErrKeysUnavailable or the disk's error. Waits for the disk.
func (a *Authority) Revoke(c *Client, token string) error {
	if _, ok := ReadRefreshToken(token); ok {
		_, err := a.Store.RevokeToken(token, c.ID)
		return err
	}
	claims, err := a.Verifier.Connect(token)
	switch {
	case errors.Is(err, ErrKeysUnavailable):
		return err
	case err != nil:
		return nil // it holds no longer, or never did
	case claims.ClientID != c.ID:
		return ErrForeignToken
	case claims.ID == "":
		return nil // none of ours
	}
	until := claims.TokenExpiresAt
	if until == 0 {
		until = math.MaxInt64
	}
	return a.Store.RevokeID(c.ID, claims.ID, until)
}

// Introspection is what RFC 7662 section 2.2 tells of a token. Where Active is
// false nothing else is set.
type Introspection struct {
	Active    bool
	TokenType string // Bearer, refresh_token
	ClientID  string
	Subject   string
	ExpiresAt int64 // seconds since 1970; 0: never
	IssuedAt  int64 // 0: not known
	Issuer    string
	Audience  string
	ID        string
}

// Introspect tells what an access token, or a refresh token of c itself, is
// worth. It fails with ErrKeysUnavailable, or where the store can't be asked.
func (a *Authority) Introspect(c *Client, token string) (Introspection, error) {
	f, ok, err := a.Store.Lookup(token, c.ID)
	if err != nil {
		return Introspection{}, err
	}
	if ok {
		return Introspection{Active: true, TokenType: "refresh_token", ClientID: f.Client, Subject: f.Subject,
			ExpiresAt: f.ExpiresAt, Issuer: a.opts.Issuer, Audience: a.opts.Audience}, nil
	}
	claims, err := a.Verifier.Connect(token)
	if errors.Is(err, ErrKeysUnavailable) {
		return Introspection{}, err
	}
	if err != nil {
		return Introspection{}, nil
	}
	return Introspection{Active: true, TokenType: "Bearer", ClientID: claims.ClientID, Subject: claims.Subject,
		ExpiresAt: claims.TokenExpiresAt, IssuedAt: claims.IssuedAt,
		// Demanded of every token where configured, so it is what the token says.
		Issuer: a.opts.Issuer, Audience: a.opts.Audience, ID: claims.ID}, nil
}
