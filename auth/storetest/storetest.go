// Package storetest holds the tests that every auth.TokenStore has to pass,
// wherever it keeps what it keeps.
package storetest

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"perch/auth"
)

// Options are what a test wants of a store.
type Options struct {
	FamiliesPerClient int
	MaxRevocations    int
	Now               func() time.Time
}

// Open opens a store. All that one Open opens keep their state in the same place,
// and none is opened before the one before it was closed.
type Open func(Options) auth.TokenStore

// Run runs the tests; place makes a new place for each.
func Run(t *testing.T, place func(t *testing.T) Open) {
	for name, test := range map[string]func(*testing.T, Open){
		"rotate": rotates, "refuse": refuses, "reopen": reopens, "families are bounded": boundsFamilies,
		"revocations are bounded": boundsRevocations, "rotate at once": rotatesOnce, "asking allocates nothing": asksFree,
	} {
		t.Run(name, func(t *testing.T) { test(t, place(t)) })
	}
}

// Clock is a clock that only a test moves.
type Clock struct {
	mu sync.Mutex
	at time.Time
}

// NewClock makes a clock that stands at the present.
func NewClock() *Clock { return &Clock{at: time.Now().Truncate(time.Second)} }

// Now is its time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// Add moves it.
func (c *Clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// In is a time in seconds since 1970.
func (c *Clock) In(d time.Duration) int64 { return c.Now().Add(d).Unix() }

// Begin begins a family of client that holds for an hour, its access token for a
// minute.
func Begin(t testing.TB, s auth.TokenStore, c *Clock, client string) (string, auth.FamilyInfo) {
	t.Helper()
	token, info, err := s.NewFamily(auth.Family{Client: client, Subject: "user", Expires: c.In(time.Hour), Access: c.In(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	return token, info
}

// Rotate exchanges a token for one that holds for an hour.
func Rotate(s auth.TokenStore, c *Clock, token, client string) (string, auth.FamilyInfo, error) {
	return s.Rotate(token, client, c.In(time.Hour), c.In(time.Minute), nil)
}

func good(t testing.TB, s auth.TokenStore, token, client string) bool {
	t.Helper()
	_, ok, err := s.Lookup(token, client)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func rotates(t *testing.T, open Open) {
	c := NewClock()
	s := open(Options{Now: c.Now})
	var mu sync.Mutex
	var told []auth.Revocation
	s.OnRevoke(func(r auth.Revocation) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, r)
	})
	first, info := Begin(t, s, c, "dev")
	if info.Subject != "user" || info.Client != "dev" || info.Family == "" || info.ExpiresAt != c.In(time.Hour) {
		t.Fatalf("%q %+v", first, info)
	}
	second, again, err := Rotate(s, c, first, "dev")
	if err != nil || again.Family != info.Family || again.Generation != 1 || second == first || len(second) != len(first) {
		t.Fatalf("%+v %v", again, err)
	}
	if good(t, s, first, "dev") || good(t, s, second, "other") || !good(t, s, second, "dev") {
		t.Error("a rotated token, or that of another client, is looked up")
	}
	if _, _, err := Rotate(s, c, second, "other"); !errors.Is(err, auth.ErrGrant) {
		t.Errorf("of another client: %v", err)
	}
	refusal := errors.New("no")
	if _, _, err := s.Rotate(second, "dev", 0, 0, func(auth.FamilyInfo) error { return refusal }); !errors.Is(err, refusal) {
		t.Errorf("check: %v", err)
	}
	if !good(t, s, second, "dev") {
		t.Fatal("a refused token was used up")
	}
	// The first token again: a thief, or the owner after a thief.
	if _, _, err := Rotate(s, c, first, "dev"); !errors.Is(err, auth.ErrGrant) {
		t.Errorf("reuse: %v", err)
	}
	if _, _, err := Rotate(s, c, second, "dev"); !errors.Is(err, auth.ErrGrant) {
		t.Errorf("the family lives on after reuse: %v", err)
	}
	if !s.Revoked("", info.Family) {
		t.Error("the family's access tokens are not revoked")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 1 || told[0].Family != info.Family || told[0].Client != "dev" || told[0].Until != c.In(time.Minute) {
		t.Errorf("told %+v", told)
	}
	c.Add(2 * time.Minute)
	if s.Revoked("", info.Family) {
		t.Error("revoked for longer than the last access token lives")
	}
}

func refuses(t *testing.T, open Open) {
	c := NewClock()
	s := open(Options{Now: c.Now})
	token, _ := Begin(t, s, c, "dev")
	unknown := make([]byte, 48)
	rand.Read(unknown)
	for name, bad := range map[string]string{
		"empty": "", "short": token[:len(token)-1], "long": token + "A", "not base64": "!" + token[1:],
		"unknown": base64.RawURLEncoding.EncodeToString(unknown),
	} {
		if _, _, err := Rotate(s, c, bad, "dev"); !errors.Is(err, auth.ErrGrant) {
			t.Errorf("%s: %v", name, err)
		}
		if found, err := s.RevokeToken(bad, "dev"); found || err != nil {
			t.Errorf("revoke %s: %v %v", name, found, err)
		}
	}
	if !good(t, s, token, "dev") {
		t.Fatal("a wrong token ended the family of another")
	}
	c.Add(time.Hour)
	if _, _, err := Rotate(s, c, token, "dev"); !errors.Is(err, auth.ErrGrant) || good(t, s, token, "dev") {
		t.Errorf("expired: %v", err)
	}
}

func reopens(t *testing.T, open Open) {
	c := NewClock()
	s := open(Options{Now: c.Now})
	kept, _ := Begin(t, s, c, "dev")
	kept, _, _ = Rotate(s, c, kept, "dev")
	ended, endedInfo := Begin(t, s, c, "dev")
	if found, err := s.RevokeToken(ended, "dev"); !found || err != nil {
		t.Fatal(found, err)
	}
	if found, _ := s.RevokeToken(kept, "other"); found {
		t.Error("a client revoked a token of another")
	}
	if err := s.RevokeID("dev", "jti-1", c.In(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.Close()
		if err := s.RevokeID("dev", "x", c.In(time.Minute)); !errors.Is(err, auth.ErrStoreClosed) {
			t.Errorf("after close: %v", err)
		}
		s = open(Options{Now: c.Now})
		if info, ok, err := s.Lookup(kept, "dev"); !ok || err != nil || info.Subject != "user" || info.Client != "dev" || info.Generation != 1 {
			t.Fatalf("kept family: %+v %v %v", info, ok, err)
		}
		if good(t, s, ended, "dev") || !s.Revoked("", endedInfo.Family) || !s.Revoked("jti-1", "") || s.Revoked("jti-2", "") {
			t.Fatal("a revocation is lost")
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error("closed twice:", err)
	}
}

func boundsFamilies(t *testing.T, open Open) {
	c := NewClock()
	o := Options{Now: c.Now, FamiliesPerClient: 3}
	s := open(o)
	var tokens []string
	for range 3 {
		token, _ := Begin(t, s, c, "dev")
		tokens = append(tokens, token)
	}
	other, _ := Begin(t, s, c, "other")
	tokens[0], _, _ = Rotate(s, c, tokens[0], "dev") // now the second is the oldest
	newest, info := Begin(t, s, c, "dev")
	for range 2 {
		for i, want := range []bool{true, false, true} {
			if good(t, s, tokens[i], "dev") != want {
				t.Errorf("family %d: want %v", i, want)
			}
		}
		if !good(t, s, newest, "dev") || !good(t, s, other, "other") {
			t.Error("the wrong family is forgotten")
		}
		s.Close()
		s = open(o)
	}
	if s.Revoked("", info.Family) {
		t.Error("revoked")
	}
}

func boundsRevocations(t *testing.T, open Open) {
	c := NewClock()
	s := open(Options{Now: c.Now, MaxRevocations: 2})
	for i := range 2 {
		if err := s.RevokeID("dev", fmt.Sprint(i), c.In(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RevokeID("dev", "x", c.In(time.Minute)); !errors.Is(err, auth.ErrStoreFull) {
		t.Fatalf("got %v", err)
	}
	if !s.Revoked("0", "") || !s.Revoked("1", "") {
		t.Error("an old revocation made room")
	}
	first, info := Begin(t, s, c, "dev")
	if _, err := s.RevokeToken(first, "dev"); !errors.Is(err, auth.ErrStoreFull) {
		t.Errorf("a family: %v", err)
	}
	second, _, err := Rotate(s, c, first, "dev")
	if err != nil {
		t.Fatal(err)
	}
	var told atomic.Int32
	s.OnRevoke(func(auth.Revocation) { told.Add(1) })
	Rotate(s, c, first, "dev") // reuse ends the family, room or not
	if good(t, s, second, "dev") || told.Load() != 1 || s.Revoked("", info.Family) {
		t.Errorf("reuse without room: told %d", told.Load())
	}
	c.Add(time.Hour)
	s.(interface{ Sweep() }).Sweep()
	if err := s.RevokeID("dev", "x", c.In(time.Minute)); err != nil {
		t.Errorf("after expiry: %v", err)
	}
	if err := s.RevokeID("dev", "past", c.In(0)); err != nil || s.Revoked("past", "") {
		t.Errorf("what has expired: %v", err)
	}
}

// rotatesOnce: of many who show the same token at once one wins, and its family
// ends, for one of them stole it.
func rotatesOnce(t *testing.T, open Open) {
	c := NewClock()
	s := open(Options{Now: c.Now})
	RotateAtOnce(t, c, s)
}

// RotateAtOnce shows one token to all of the stores, which keep their state in the
// same place: one of them takes it, once.
func RotateAtOnce(t *testing.T, c *Clock, stores ...auth.TokenStore) {
	t.Helper()
	token, info := Begin(t, stores[0], c, "dev")
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if _, _, err := Rotate(stores[i%len(stores)], c, token, "dev"); err == nil {
				won.Add(1)
			} else if !errors.Is(err, auth.ErrGrant) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := won.Load(); n != 1 {
		t.Errorf("%d won", n)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		missing := 0
		for _, s := range stores {
			if !s.Revoked("", info.Family) {
				missing++
			}
		}
		if missing == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d stores do not know that the family is revoked", missing)
		}
	}
}

func asksFree(t *testing.T, open Open) {
	c := NewClock()
	s := open(Options{Now: c.Now})
	check := func() { s.Revoked("a-token-of-some-length", "a-family-of-some-length"); s.ClientRevoked("sensor-1", 7) }
	if n := testing.AllocsPerRun(100, check); n != 0 {
		t.Errorf("%v allocations with nothing revoked", n)
	}
	if err := s.RevokeID("dev", "x", c.In(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, check); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
