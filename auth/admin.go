package auth

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// casTries is how often a change is made anew on what another node has written
// meanwhile.
const casTries = 8

// ClientChange is what a request says of a client; nil leaves a field as it is.
type ClientChange struct {
	User       *string
	AnyUser    *bool
	Channels   *[]string
	TokenTTL   *int64 // seconds, as in ClientRecord
	RefreshTTL *int64
	Metadata   json.RawMessage // nil leaves it; null takes it away
	Disabled   *bool
	// Secret is the new one; RotateSecret makes one.
	Secret       *string
	RotateSecret bool
}

// apply changes r, and returns the secret that was made for it.
func (ch *ClientChange) apply(r *ClientRecord) (secret string, err error) {
	set(&r.User, ch.User)
	set(&r.AnyUser, ch.AnyUser)
	set(&r.Channels, ch.Channels)
	set(&r.TokenTTL, ch.TokenTTL)
	set(&r.RefreshTTL, ch.RefreshTTL)
	set(&r.Disabled, ch.Disabled)
	if ch.Metadata != nil {
		if r.Metadata = ch.Metadata; bytes.Equal(bytes.TrimSpace(ch.Metadata), []byte("null")) {
			r.Metadata = nil
		}
	}
	if e := r.check(); e != nil {
		return "", e
	}
	switch {
	case ch.Secret != nil && ch.RotateSecret:
		return "", &FieldError{"secret", "and rotate_secret: give one of them"}
	case ch.Secret != nil:
		if n := len(*ch.Secret); n < minSecret || n > maxSecret || strings.ContainsFunc(*ch.Secret, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
			return "", &FieldError{"secret", "must be 8 to 1024 printable ASCII characters"}
		}
		r.SecretHash = hashSecret(*ch.Secret, givenCost)
	case ch.RotateSecret:
		secret = randomText(madeSecret)
		r.SecretHash = hashSecret(secret, madeCost)
	}
	return secret, nil
}

func set[T any](dst *T, to *T) {
	if to != nil {
		*dst = *to
	}
}

func printableName(s string) bool {
	return s != "" && len(s) <= maxSubject && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}

// configured tells whether the client stands in the configuration.
func (a *Authority) configured(id string) bool { return a.Clients.byID[id] != nil }

// Configured returns the configured client of that id.
func (a *Authority) Configured(id string) (ClientOptions, bool) {
	c := a.Clients.byID[id]
	if c == nil {
		return ClientOptions{}, false
	}
	return c.ClientOptions, true
}

// Registered returns the record of a client as it is now. It fails with
// ErrNoRegistry, ErrClientUnknown and the registry's errors. Not for a loop.
func (a *Authority) Registered(ctx context.Context, id string) (*ClientRecord, error) {
	reg := a.opts.Registry
	switch {
	case reg == nil:
		return nil, ErrNoRegistry
	case !registryID.MatchString(id):
		return nil, ErrClientUnknown
	}
	return reg.Load(ctx, id)
}

// CreateClient adds a client to the registry; an empty id is made, and so is a
// secret that change does not give: it is returned, and never again. It fails
// with a *FieldError, ErrNoRegistry, ErrClientExists, ErrClientConfigured and the
// registry's errors. Not for a loop.
func (a *Authority) CreateClient(ctx context.Context, id string, change ClientChange) (r *ClientRecord, secret string, err error) {
	reg := a.opts.Registry
	if reg == nil {
		return nil, "", ErrNoRegistry
	}
	if id == "" {
		// A leading letter: what is made is as good as what may be given.
		id = "c" + randomText(madeID)
	}
	if a.configured(id) {
		return nil, "", ErrClientConfigured
	}
	change.RotateSecret = change.RotateSecret || change.Secret == nil
	now := a.now().Unix()
	r = &ClientRecord{ID: id, Created: now, Updated: now}
	if secret, err = change.apply(r); err != nil {
		return nil, "", err
	}
	if e := a.checkTTLs(r); e != nil {
		return nil, "", e
	}
	r.LongestTTL = a.accessTTL(r)
	// What an earlier client of the id has left must not be the new one's.
	if _, err = reg.Load(ctx, id); err == nil {
		return nil, "", ErrClientExists
	} else if !errors.Is(err, ErrClientUnknown) {
		return nil, "", err
	}
	if err = reg.EndTokens(ctx, id, 0, 0); err != nil {
		return nil, "", err
	}
	if err = reg.Put(ctx, r); err != nil {
		return nil, "", err
	}
	return r, secret, nil
}

// checkTTLs tells where a refresh token would not outlive its access token.
func (a *Authority) checkTTLs(r *ClientRecord) *FieldError {
	access := cmp.Or(r.TokenTTL, int64(a.opts.TokenTTL/time.Second))
	if r.RefreshTTL > 0 && r.RefreshTTL < access || r.TokenTTL > 0 && r.RefreshTTL == 0 && a.opts.RefreshTTL > 0 &&
		int64(a.opts.RefreshTTL/time.Second) < access {
		return &FieldError{"refresh_ttl", fmt.Sprintf("is shorter than token_ttl (%d)", access)}
	}
	return nil
}

// accessTTL is the life of an access token of r, in seconds.
func (a *Authority) accessTTL(r *ClientRecord) int64 {
	return max(r.LongestTTL, cmp.Or(r.TokenTTL, int64(a.opts.TokenTTL/time.Second)))
}

// ChangeClient changes a client of the registry; revision, where not 0, is what it
// has to be of. A secret that is made is returned, and never again. Who is
// disabled loses all that was issued to it, live sessions too: also where it was
// disabled before, so that a request which failed on its way can be repeated. It
// fails with a *FieldError, ErrNoRegistry, ErrClientUnknown, ErrClientChanged,
// ErrClientConfigured and the registry's errors. Not for a loop.
func (a *Authority) ChangeClient(ctx context.Context, id string, revision uint64, change ClientChange) (r *ClientRecord, secret string, err error) {
	reg := a.opts.Registry
	switch {
	case reg == nil:
		return nil, "", ErrNoRegistry
	case a.configured(id):
		return nil, "", ErrClientConfigured
	}
	for range casTries {
		var old *ClientRecord
		if old, err = a.Registered(ctx, id); err != nil {
			return nil, "", err
		}
		if revision != 0 && old.Revision != revision {
			return nil, "", ErrClientChanged
		}
		next := *old
		if secret, err = change.apply(&next); err != nil {
			return nil, "", err
		}
		// Where they are left as they are, they are not in the way of a change.
		if change.TokenTTL != nil || change.RefreshTTL != nil {
			if e := a.checkTTLs(&next); e != nil {
				return nil, "", e
			}
		}
		next.Updated = max(a.now().Unix(), old.Updated)
		next.LongestTTL = max(a.accessTTL(old), a.accessTTL(&next))
		disables := change.Disabled != nil && *change.Disabled
		if disables {
			// All that was issued until now, by any node, was for a record of at most
			// this revision; a node that has not heard of the change may go on with it.
			next.Floor = old.Revision + 1
		}
		if err = reg.Put(ctx, &next); errors.Is(err, ErrClientChanged) {
			continue
		} else if err != nil {
			return nil, "", err
		}
		if disables {
			err = a.endTokens(ctx, &next)
		}
		return &next, secret, err
	}
	return nil, "", ErrClientChanged
}

// endTokens ends what the client got before its floor. A minute more than its
// tokens live is for clocks that differ.
func (a *Authority) endTokens(ctx context.Context, r *ClientRecord) error {
	const clocks = 60
	return a.opts.Registry.EndTokens(ctx, r.ID, r.Floor, a.now().Unix()+a.accessTTL(r)+clocks)
}

// DeleteClient takes a client out of the registry, with all that was issued to it;
// revision and errors are as in ChangeClient. Not for a loop.
func (a *Authority) DeleteClient(ctx context.Context, id string, revision uint64) error {
	// First it is disabled: of a request that fails half way something is left that
	// can be repeated, and nobody who could still log in.
	yes := true
	r, _, err := a.ChangeClient(ctx, id, revision, ClientChange{Disabled: &yes})
	if err != nil {
		return err
	}
	return a.opts.Registry.Remove(ctx, id, r.Revision)
}

// ListedClient is a client of a list: one of the two is set.
type ListedClient struct {
	Configured *ClientOptions
	Registered *ClientRecord
}

// ID is the client's.
func (l ListedClient) ID() string {
	if l.Configured != nil {
		return l.Configured.ID
	}
	return l.Registered.ID
}

// ListClients returns up to limit clients whose ids come after an id, those of the
// configuration and of the registry in one order; more: there are others behind
// them. It fails with ErrNoRegistry and the registry's errors. Not for a loop.
func (a *Authority) ListClients(ctx context.Context, after string, limit int) (list []ListedClient, more bool, err error) {
	if a.opts.Registry == nil {
		return nil, false, ErrNoRegistry
	}
	records, more, err := a.opts.Registry.List(ctx, after, limit)
	if err != nil {
		return nil, false, err
	}
	for _, c := range a.Clients.list {
		// What comes after the last of the registry's page comes with a later one.
		if c.ID > after && (!more || len(records) == 0 || c.ID <= records[len(records)-1].ID) {
			list = append(list, ListedClient{Configured: &c.ClientOptions})
		}
	}
	for _, r := range records {
		if !a.configured(r.ID) { // it is out of use while the configuration has its id
			list = append(list, ListedClient{Registered: r})
		}
	}
	slices.SortFunc(list, func(x, y ListedClient) int { return strings.Compare(x.ID(), y.ID()) })
	if len(list) > limit {
		list, more = list[:limit], true
	}
	return list, more, nil
}
