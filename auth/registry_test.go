package auth

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// memRegistry is a Registry in memory.
type memRegistry struct {
	store *Store

	mu       sync.Mutex
	records  map[string]ClientRecord
	revision uint64
	ended    []Revocation
	conflict int   // writes that come too late
	err      error // of all
}

func (m *memRegistry) Get(ctx context.Context, id string) (*ClientRecord, error) {
	return m.Load(ctx, id)
}

func (m *memRegistry) Load(_ context.Context, id string) (*ClientRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[id]
	if m.err != nil {
		return nil, m.err
	}
	if !ok {
		return nil, ErrClientUnknown
	}
	return &r, nil
}

func (m *memRegistry) List(_ context.Context, after string, limit int) (list []*ClientRecord, more bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.records)) {
		if r := m.records[id]; id > after {
			if len(list) == limit {
				return list, true, m.err
			}
			list = append(list, &r)
		}
	}
	return list, false, m.err
}

func (m *memRegistry) Put(_ context.Context, r *ClientRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.records[r.ID]
	switch {
	case m.err != nil:
		return m.err
	case r.Revision == 0 && ok:
		return ErrClientExists
	case m.conflict > 0:
		m.conflict--
		m.revision++
		old.Revision = m.revision
		m.records[r.ID] = old
		return ErrClientChanged
	case old.Revision != r.Revision:
		return ErrClientChanged
	}
	m.revision++
	r.Revision = m.revision
	m.records[r.ID] = *r
	return nil
}

func (m *memRegistry) Remove(_ context.Context, id string, revision uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[id].Revision != revision {
		return ErrClientChanged
	}
	delete(m.records, id)
	return m.err
}

func (m *memRegistry) EndTokens(_ context.Context, client string, revision uint64, until int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Revocation{Client: client, Revision: revision, Until: until}
	m.ended = append(m.ended, r)
	m.store.Add(r)
	return m.err
}

func newRegistry(t *testing.T, clients ...ClientOptions) (*Authority, *memRegistry) {
	t.Helper()
	m := &memRegistry{store: openStore(t, StoreOptions{}), records: make(map[string]ClientRecord)}
	a, err := Open(Options{HMACSecret: testSecret, Clients: clients, Registry: m, Store: m.store, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a, m
}

func ptr[T any](v T) *T { return &v }

var anywhere = netip.MustParseAddr("192.0.2.9")

// TestRegistryRevocationTime: it lasts as long as any token that the client may
// have, also where its lifetime was longer once.
func TestRegistryRevocationTime(t *testing.T) {
	a, m := newRegistry(t)
	now := newClock()
	a.now = now.now
	if _, _, err := a.CreateClient(t.Context(), "dev", ClientChange{TokenTTL: ptr(int64(7200)), RefreshTTL: ptr(int64(-1))}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.ChangeClient(t.Context(), "dev", 0, ClientChange{TokenTTL: ptr(int64(60))}); err != nil {
		t.Fatal(err)
	}
	m.ended = nil
	if _, _, err := a.ChangeClient(t.Context(), "dev", 0, ClientChange{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	if len(m.ended) != 1 || m.ended[0].Until < now.in(2*time.Hour) || m.ended[0].Until > now.in(3*time.Hour) {
		t.Errorf("%+v", m.ended)
	}
}

func TestRegistryConflicts(t *testing.T) {
	a, m := newRegistry(t, ClientOptions{ID: "mine", SecretHash: cheapHash(t, "s")})
	ctx := t.Context()
	r, secret, err := a.CreateClient(ctx, "", ClientChange{User: ptr("u")})
	if err != nil || r.ID == "" || len(secret) < 43 {
		t.Fatal(r, err)
	}
	m.conflict = 3
	next, _, err := a.ChangeClient(ctx, r.ID, 0, ClientChange{AnyUser: ptr(true)})
	if err != nil || !next.AnyUser || next.User != "u" {
		t.Fatal(next, err)
	}
	if _, _, err := a.ChangeClient(ctx, r.ID, r.Revision, ClientChange{}); !errors.Is(err, ErrClientChanged) {
		t.Errorf("an old revision: %v", err)
	}
	m.conflict = 100
	if _, _, err := a.ChangeClient(ctx, r.ID, 0, ClientChange{}); !errors.Is(err, ErrClientChanged) {
		t.Errorf("conflicts without end: %v", err)
	}
	m.conflict = 0
	m.err = ErrUnavailable
	if _, err := a.Authenticate(ctx, anywhere, r.ID, "guess"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("away: %v", err)
	}
	if c, err := a.Authenticate(ctx, anywhere, "mine", "s"); err != nil || c.Revision != 0 {
		t.Errorf("a configured client: %v", err)
	}
	// A disable that fails half way is repeated, and is not done with as long as the
	// tokens have not ended.
	m.err = nil
	m.ended = nil
	for range 2 {
		if _, _, err := a.ChangeClient(ctx, r.ID, 0, ClientChange{Disabled: ptr(true)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.ended) != 2 || m.ended[1].Revision <= m.ended[0].Revision {
		t.Errorf("%+v", m.ended)
	}
}

// TestRegistrySecretForgotten: a right secret that was remembered is none any more
// once it has changed; guesses at clients that are not there cost as much as
// others.
func TestRegistrySecretForgotten(t *testing.T) {
	a, _ := newRegistry(t)
	ctx := t.Context()
	_, secret, err := a.CreateClient(ctx, "dev", ClientChange{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(ctx, anywhere, "dev", secret); err != nil {
		t.Fatal(err)
	}
	if known(t, a.Clients, "dev", secret) == nil {
		t.Error("not remembered")
	}
	_, next, err := a.ChangeClient(ctx, "dev", 0, ClientChange{RotateSecret: true})
	if err != nil || next == secret {
		t.Fatal(err)
	}
	if known(t, a.Clients, "dev", secret) != nil {
		t.Error("remembered after it has changed")
	}
	if _, err := a.Authenticate(ctx, anywhere, "dev", secret); !errors.Is(err, ErrClientUnknown) {
		t.Errorf("the old secret: %v", err)
	}
	kinds := make(map[uint32]bool)
	for _, d := range a.Clients.decoys {
		kinds[d.memory] = true
	}
	if !kinds[madeCost.memory] || !kinds[givenCost.memory] {
		t.Errorf("decoys of %v", kinds)
	}
}

// countingRegistry counts what it is asked.
type countingRegistry struct {
	*memRegistry
	gets, loads int
}

func (c *countingRegistry) Get(ctx context.Context, id string) (*ClientRecord, error) {
	c.gets++
	return c.memRegistry.Load(ctx, id)
}

func (c *countingRegistry) Load(ctx context.Context, id string) (*ClientRecord, error) {
	c.loads++
	return c.memRegistry.Load(ctx, id)
}

// TestRegistryGuesses: a guess asks the registry as often, and for the same, where
// there is such a client and where there is none: the time that it takes would tell.
func TestRegistryGuesses(t *testing.T) {
	a, m := newRegistry(t)
	r, secret, err := a.CreateClient(t.Context(), "dev", ClientChange{})
	if err != nil || r.ID != "dev" {
		t.Fatal(err)
	}
	c := &countingRegistry{memRegistry: m}
	clients, err := NewClients(nil, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"dev", "none"} {
		*c = countingRegistry{memRegistry: m}
		for range 3 {
			if _, err := clients.Authenticate(t.Context(), id, "a wrong one"); !errors.Is(err, ErrClientUnknown) {
				t.Fatal(err)
			}
		}
		if c.gets != 0 || c.loads != 3 {
			t.Errorf("%s: %d for a record at hand, %d for the record", id, c.gets, c.loads)
		}
	}
	*c = countingRegistry{memRegistry: m}
	for range 3 {
		if _, err := clients.Authenticate(t.Context(), "dev", secret); err != nil {
			t.Fatal(err)
		}
	}
	if c.gets != 2 || c.loads != 1 {
		t.Errorf("who has the secret: %d, %d", c.gets, c.loads)
	}
}

// TestRegistryToConfiguration: a client that was deleted and now stands in the
// configuration gets tokens that are good; those of before stay revoked.
func TestRegistryToConfiguration(t *testing.T) {
	a, m := newRegistry(t)
	_, secret, err := a.CreateClient(t.Context(), "dev", ClientChange{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := a.Authenticate(t.Context(), anywhere, "dev", secret)
	if err != nil {
		t.Fatal(err)
	}
	old, err := a.Grant(before, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.DeleteClient(t.Context(), "dev", 0); err != nil {
		t.Fatal(err)
	}
	hash, err := HashSecret("sesame-1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(Options{HMACSecret: testSecret, Clients: []ClientOptions{{ID: "dev", SecretHash: hash}}, Registry: m, Store: m.store, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Authenticate(t.Context(), anywhere, "dev", "sesame-1")
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := b.Grant(c, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Verifier.Connect(fresh.AccessToken); err != nil {
		t.Errorf("a token of the configured client: %v", err)
	}
	if fresh, err = b.Refresh(c, fresh.RefreshToken); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Verifier.Connect(fresh.AccessToken); err != nil {
		t.Errorf("refreshed: %v", err)
	}
	if _, err := b.Verifier.Connect(old.AccessToken); !errors.Is(err, ErrTokenRevoked) {
		t.Errorf("a token of before: %v", err)
	}
}
