package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"perch/auth"
)

// staleRegistry is one that has not heard of some changes.
type staleRegistry struct {
	*Registry
	stale map[string]*auth.ClientRecord
}

func (s *staleRegistry) Get(ctx context.Context, id string) (*auth.ClientRecord, error) {
	if r := s.stale[id]; r != nil {
		return r, nil
	}
	return s.Registry.Get(ctx, id)
}

// TestStaleRecord: a node that has not heard that a client is disabled issues what
// nobody takes.
func TestStaleRecord(t *testing.T) {
	l := linkTo(t, Options{URL: registryBroker(t)})
	m := &staleRegistry{Registry: startRegistry(t, l), stale: make(map[string]*auth.ClientRecord)}
	a, err := auth.Open(auth.Options{HMACSecret: strings.Repeat("s", 32), Registry: m, Store: m.tokens, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, anywhere, yes, no := t.Context(), netip.MustParseAddr("192.0.2.9"), true, false
	r, secret, err := a.CreateClient(ctx, "dev", auth.ClientChange{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(ctx, anywhere, "dev", secret); err != nil { // from here on a record at hand will do
		t.Fatal(err)
	}
	m.stale["dev"] = r
	disabled, _, err := a.ChangeClient(ctx, "dev", 0, auth.ClientChange{Disabled: &yes})
	if err != nil || disabled.Floor != r.Revision+1 {
		t.Fatal(disabled, err)
	}
	old, err := a.Authenticate(ctx, anywhere, "dev", secret)
	if err != nil {
		t.Fatal(err)
	}
	late, err := a.Grant(old, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Verifier.Connect(late.AccessToken); !errors.Is(err, auth.ErrTokenRevoked) {
		t.Errorf("access token: %v", err)
	}
	delete(m.stale, "dev")
	if _, err := a.Authenticate(ctx, anywhere, "dev", secret); !errors.Is(err, auth.ErrClientDisabled) {
		t.Errorf("disabled: %v", err)
	}
	if _, err := a.Authenticate(ctx, anywhere, "dev", secret+"x"); errors.Is(err, auth.ErrClientDisabled) || !errors.Is(err, auth.ErrClientUnknown) {
		t.Errorf("disabled, with a wrong secret: %v", err)
	}
	if _, _, err := a.ChangeClient(ctx, "dev", 0, auth.ClientChange{Disabled: &no}); err != nil {
		t.Fatal(err)
	}
	c, err := a.Authenticate(ctx, anywhere, "dev", secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Refresh(c, late.RefreshToken); !errors.Is(err, auth.ErrGrant) {
		t.Errorf("a refresh token of before: %v", err)
	}
	fresh, err := a.Grant(c, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Verifier.Connect(fresh.AccessToken); err != nil {
		t.Errorf("a token of after: %v", err)
	}
	if fresh, err = a.Refresh(c, fresh.RefreshToken); err != nil {
		t.Fatal(err)
	}
	claims, err := a.Verifier.Connect(fresh.AccessToken)
	if err != nil || claims.ClientRevision != c.Revision {
		t.Errorf("%+v %v", claims, err)
	}
}
