package auth

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func openAuthority(t *testing.T, change func(*Options)) *Authority {
	t.Helper()
	o := Options{
		DataDir: t.TempDir(), HMACSecret: testSecret, Issuer: "iss", Audience: "aud", Logger: quiet(),
		Clients: []ClientOptions{
			{ID: "dev", SecretHash: cheapHash(t, "s"), Channels: []string{"news", "dev:1"}},
			{ID: "back", SecretHash: cheapHash(t, "t"), User: "backend", AnyUser: true, TokenTTL: time.Minute, RefreshTTL: -1},
			{ID: "brief", SecretHash: cheapHash(t, "u"), RefreshTTL: time.Hour},
		},
	}
	if change != nil {
		change(&o)
	}
	a, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func TestIssue(t *testing.T) {
	now := newClock()
	ks := newKeys(t, KeySetOptions{HMACSecret: testSecret})
	i := NewIssuer(IssuerOptions{Keys: ks, Issuer: "iss", Audience: "aud", Now: now.now})
	v := NewVerifier(VerifierOptions{Keys: ks, Issuer: "iss", Audience: "aud", Now: now.now})
	at := now.now().Unix()
	token, err := i.Issue(IssueRequest{Subject: `al"ice`, TTL: time.Minute, Channels: []string{"a"}, Info: []byte(`{"x":1}`),
		Meta: []byte(`{}`), ClientID: "c", Family: "f", ID: "j"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Connect(token)
	want := &Claims{Subject: `al"ice`, ID: "j", Family: "f", ClientID: "c", ExpiresAt: at + 60, TokenExpiresAt: at + 60, IssuedAt: at,
		Info: []byte(`{"x":1}`), Meta: []byte(`{}`), Channels: []string{"a"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for name, tt := range map[string]struct {
		ttl  time.Duration
		want int64
	}{"default": {0, at + 3600}, "never": {-1, 0}} {
		token, _ := i.Issue(IssueRequest{TTL: tt.ttl})
		if c, err := v.Connect(token); err != nil || c.ExpiresAt != tt.want || len(c.ID) != 22 {
			t.Errorf("%s: %+v %v", name, c, err)
		}
	}
	sub, err := i.IssueSubscription(SubscriptionRequest{Subject: "a", Topic: "news", Info: []byte(`1`)})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := v.Subscription(sub); err != nil || c.Topic != "news" || c.Subject != "a" || string(c.Info) != "1" {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := v.Connect(sub); !errors.Is(err, ErrTokenInvalid) {
		t.Errorf("a subscription token connects: %v", err)
	}
	for name, r := range map[string]IssueRequest{"info": {Info: []byte("{")}, "meta": {Meta: []byte("1")}} {
		if _, err := i.Issue(r); !errors.Is(err, ErrIssueRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := i.IssueSubscription(SubscriptionRequest{}); !errors.Is(err, ErrIssueRequest) {
		t.Errorf("no topic: %v", err)
	}
}

func TestGrantAndRefresh(t *testing.T) {
	a := openAuthority(t, nil)
	dev, err := a.Authenticate(t.Context(), here, "dev", "s")
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.Grant(dev, "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Verifier.Connect(first.AccessToken)
	if err != nil || c.Subject != "dev" || c.ClientID != "dev" || c.Family == "" || !reflect.DeepEqual(c.Channels, dev.Channels) {
		t.Fatalf("%+v %v", c, err)
	}
	if first.ExpiresIn != tokenTTL || c.ExpiresAt-c.IssuedAt > 3600 {
		t.Errorf("%v", first.ExpiresIn)
	}
	second, err := a.Refresh(dev, first.RefreshToken)
	if err != nil || second.RefreshToken == first.RefreshToken {
		t.Fatal(err)
	}
	c2, err := a.Verifier.Connect(second.AccessToken)
	if err != nil || c2.Family != c.Family || c2.ID == c.ID {
		t.Fatalf("%+v %v", c2, err)
	}
	var told []Revocation
	a.Store.OnRevoke(func(r Revocation) { told = append(told, r) })
	if _, err := a.Refresh(dev, first.RefreshToken); !errors.Is(err, ErrGrant) {
		t.Fatalf("reuse: %v", err)
	}
	for _, token := range []string{first.AccessToken, second.AccessToken} {
		if _, err := a.Verifier.Connect(token); !errors.Is(err, ErrTokenRevoked) {
			t.Errorf("after reuse: %v", err)
		}
	}
	if len(told) != 1 || told[0].Family != c.Family {
		t.Errorf("told %+v", told)
	}
}

func TestSubjects(t *testing.T) {
	a := openAuthority(t, nil)
	dev, back := a.Clients.byID["dev"], a.Clients.byID["back"]
	tests := []struct {
		name    string
		client  *Client
		subject string
		err     error
	}{
		{"own", dev, "dev", nil}, {"another", dev, "alice", ErrSubject},
		{"default", back, "", nil}, {"any", back, "alice", nil}, {"unicode", back, "ålice 1", nil},
		{"long", back, strings.Repeat("x", maxSubject+1), ErrBadSubject}, {"control", back, "a\nb", ErrBadSubject},
		{"not UTF-8", back, "\xff", ErrBadSubject},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := a.Grant(tt.client, tt.subject)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v", err)
			}
			if err == nil && tt.client == back && (got.RefreshToken != "" || got.ExpiresIn != time.Minute) {
				t.Errorf("%+v", got)
			}
		})
	}
	// What the configuration takes away, a refresh token does not keep.
	full := *back
	full.RefreshTTL = time.Hour
	granted, err := a.Grant(&full, "alice")
	if err != nil {
		t.Fatal(err)
	}
	less := full
	less.AnyUser = false
	if _, err := a.Refresh(&less, granted.RefreshToken); !errors.Is(err, ErrGrant) {
		t.Errorf("got %v", err)
	}
	if _, err := a.Refresh(back, granted.RefreshToken); !errors.Is(err, ErrGrant) {
		t.Errorf("without refresh tokens: %v", err)
	}
}

func TestRevokeAndIntrospect(t *testing.T) {
	a := openAuthority(t, nil)
	dev, back := a.Clients.byID["dev"], a.Clients.byID["back"]
	tokens, _ := a.Grant(dev, "")
	in, err := a.Introspect(back, tokens.AccessToken)
	if err != nil || !in.Active || in.TokenType != "Bearer" || in.ClientID != "dev" || in.Subject != "dev" || in.Issuer != "iss" ||
		in.Audience != "aud" || in.ID == "" || in.ExpiresAt <= in.IssuedAt {
		t.Errorf("%+v %v", in, err)
	}
	if in, _ = a.Introspect(dev, tokens.RefreshToken); !in.Active || in.TokenType != "refresh_token" || in.ExpiresAt == 0 {
		t.Errorf("%+v", in)
	}
	if in, _ = a.Introspect(back, tokens.RefreshToken); in != (Introspection{}) {
		t.Errorf("another's refresh token: %+v", in)
	}
	if in, _ = a.Introspect(dev, "junk"); in != (Introspection{}) {
		t.Errorf("junk: %+v", in)
	}
	if err := a.Revoke(back, tokens.AccessToken); !errors.Is(err, ErrForeignToken) {
		t.Errorf("another's token: %v", err)
	}
	if err := a.Revoke(back, tokens.RefreshToken); err != nil {
		t.Errorf("another's refresh token: %v", err)
	}
	if in, _ = a.Introspect(dev, tokens.RefreshToken); !in.Active {
		t.Fatal("another client revoked it")
	}
	if err := a.Revoke(dev, tokens.AccessToken); err != nil {
		t.Fatal(err)
	}
	if in, _ = a.Introspect(dev, tokens.AccessToken); in.Active {
		t.Error("a revoked token is active")
	}
	next, err := a.Refresh(dev, tokens.RefreshToken)
	if err != nil {
		t.Fatalf("the family ended with one access token: %v", err)
	}
	if err := a.Revoke(dev, next.RefreshToken); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Verifier.Connect(next.AccessToken); !errors.Is(err, ErrTokenRevoked) {
		t.Errorf("issued with a revoked family: %v", err)
	}
	for _, token := range []string{"", "junk", tokens.AccessToken, next.RefreshToken} {
		if err := a.Revoke(dev, token); err != nil {
			t.Errorf("again: %v", err)
		}
	}
}

func TestAuthenticateSlowsDown(t *testing.T) {
	a := openAuthority(t, nil)
	if _, err := a.Authenticate(t.Context(), there, "dev", "s"); err != nil {
		t.Fatal(err)
	}
	var slow *SlowDownError
	for i := range 20 {
		_, err := a.Authenticate(t.Context(), here, "dev", "wrong")
		if errors.As(err, &slow) {
			if i < pairFree {
				t.Errorf("slowed at try %d", i)
			}
			break
		}
		if !errors.Is(err, ErrClientUnknown) {
			t.Fatal(err)
		}
	}
	if slow == nil || slow.After <= 0 {
		t.Fatal("not slowed")
	}
	for _, addr := range []string{"192.0.2.2", "192.0.2.3"} {
		if _, err := a.Authenticate(t.Context(), netip.MustParseAddr(addr), "dev", "s"); err != nil {
			t.Errorf("the owner at %s: %v", addr, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	a := openAuthority(t, nil)
	if _, err := Open(Options{DataDir: a.opts.DataDir, HMACSecret: testSecret, Logger: quiet()}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second process: %v", err)
	}
	for name, o := range map[string]Options{
		"client": {Clients: []ClientOptions{{ID: "x"}}},
		"key":    {Keys: []KeyOptions{{File: "/nonexistent"}}},
		"dir":    {DataDir: "/dev/null/x", HMACSecret: testSecret},
		"no dir": {},
	} {
		o.Logger = quiet()
		if a, err := Open(o); err == nil {
			a.Close()
			t.Errorf("%s: opened", name)
		}
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("twice: %v", err)
	}
}
