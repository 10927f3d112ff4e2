package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"perch/auth"
	"perch/auth/storetest"
)

// brokerOf starts a NATS server for a test.
func registryBroker(t testing.TB) string {
	t.Helper()
	s, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server does not start")
	}
	return s.ClientURL()
}

func linkTo(t testing.TB, o Options) *Link {
	t.Helper()
	o.Timeout = 2 * time.Second
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func startTokens(t testing.TB, l *Link, o TokensOptions) *Tokens {
	t.Helper()
	s := NewTokens(l, o)
	t.Cleanup(func() { s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := l.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func startRegistry(t testing.TB, l *Link) *Registry {
	t.Helper()
	r := NewRegistry(l, startTokens(t, l, TokensOptions{}))
	t.Cleanup(r.Close)
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTokens: the bucket passes what the log does, with a server outside and with
// one in the process.
func TestTokens(t *testing.T) {
	for name, link := range map[string]func(t *testing.T) func() *Link{
		"outside": func(t *testing.T) func() *Link {
			url := registryBroker(t)
			return func() *Link { return linkTo(t, Options{URL: url}) }
		},
		"embedded": func(t *testing.T) func() *Link {
			dir := t.TempDir()
			var last *Link
			return func() *Link {
				if last != nil {
					last.Close()
				}
				last = linkTo(t, Options{Server: ServerOptions{Dir: dir, SyncInterval: time.Minute}})
				return last
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Open {
				link := link(t)
				return func(o storetest.Options) auth.TokenStore {
					return startTokens(t, link(), TokensOptions(o))
				}
			})
		})
	}
}

// TestTokensOfTwoNodes: what one node does holds on the other.
func TestTokensOfTwoNodes(t *testing.T) {
	url := registryBroker(t)
	c := storetest.NewClock()
	a := startTokens(t, linkTo(t, Options{URL: url}), TokensOptions{Now: c.Now})
	b := startTokens(t, linkTo(t, Options{URL: url}), TokensOptions{Now: c.Now})
	var told atomic.Int32
	b.OnRevoke(func(auth.Revocation) { told.Add(1) })
	for range 10 {
		storetest.RotateAtOnce(t, c, a, b)
	}
	told.Store(0)
	token, info := storetest.Begin(t, a, c, "dev")
	next, _, err := storetest.Rotate(b, c, token, "dev")
	if err != nil {
		t.Fatal(err)
	}
	if found, err := a.RevokeToken(next, "dev"); !found || err != nil {
		t.Fatal(found, err)
	}
	if err := a.RevokeID("dev", "jti", c.In(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := a.RevokeClient("sensor", 7, c.In(time.Minute)); err != nil {
		t.Fatal(err)
	}
	until(t, "b hears of three revocations", func() bool { return told.Load() == 3 })
	if !b.Revoked("", info.Family) || !b.Revoked("jti", "") || !b.ClientRevoked("sensor", 6) || b.ClientRevoked("sensor", 7) {
		t.Error("b knows something else")
	}
	// Said again, it says no less.
	if err := b.RevokeClient("sensor", 5, c.In(time.Hour)); err != nil {
		t.Fatal(err)
	}
	late := startTokens(t, linkTo(t, Options{URL: url}), TokensOptions{Now: c.Now})
	c.Add(10 * time.Minute)
	if !late.ClientRevoked("sensor", 6) || late.Revoked("jti", "") {
		t.Error("a node that comes later knows something else")
	}
}

// TestRevokeClient: the refresh tokens of a client, and no others, are forgotten;
// also where its id looks like a pattern.
func TestRevokeClient(t *testing.T) {
	c := storetest.NewClock()
	s := startTokens(t, linkTo(t, Options{URL: registryBroker(t)}), TokensOptions{Now: c.Now})
	ids := []string{"a", "*", "a.b", ">", "a:b", "=41", strings.Repeat("long", 100), strings.Repeat("long", 100) + "er"}
	for i, id := range ids {
		tokens := make(map[string]string)
		for _, other := range ids {
			tokens[other], _ = storetest.Begin(t, s, c, other)
		}
		if err := s.RevokeClient(id, uint64(i+1), c.In(time.Minute)); err != nil {
			t.Fatal(err)
		}
		for other, token := range tokens {
			if _, ok, err := s.Lookup(token, other); err != nil || ok != (other != id) {
				t.Errorf("%q revoked: token of %q: %v %v", id, other, ok, err)
			}
		}
	}
}

// TestTokensExpire: what is over is forgotten by the broker.
func TestTokensExpire(t *testing.T) {
	c := storetest.NewClock()
	l := linkTo(t, Options{URL: registryBroker(t)})
	s := startTokens(t, l, TokensOptions{Now: c.Now})
	c.Add(-keepLonger)
	if _, _, err := s.NewFamily(auth.Family{Client: "dev", Subject: "u", Expires: c.In(time.Second), Access: c.In(time.Second)}); err != nil {
		t.Fatal(err)
	}
	stream, err := s.bucket.opened()
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetMsg(t.Context(), 1)
	if err != nil || m.Header.Get("Nats-TTL") != (time.Second+keepLonger).String() {
		t.Errorf("kept for %q, %v", m.Header.Get("Nats-TTL"), err)
	}
	// A second is the least that the broker takes.
	if _, err := s.bucket.write(t.Context(), "f.dev.x", []byte("{}"), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	until(t, "the broker forgets", func() bool {
		_, _, err := s.bucket.get(t.Context(), "f.dev.x")
		return errors.Is(err, errNoKey)
	})
}

func sampleClient(id string) *auth.ClientRecord {
	hash := "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	return &auth.ClientRecord{ID: id, SecretHash: hash, Created: 1, Updated: 1}
}

func TestRegistry(t *testing.T) {
	url := registryBroker(t)
	a, b := startRegistry(t, linkTo(t, Options{URL: url})), startRegistry(t, linkTo(t, Options{URL: url}))
	a.keep, b.keep = time.Hour, time.Hour // what is changed is known by the watch alone
	ctx := t.Context()
	if _, err := a.Get(ctx, "x"); !errors.Is(err, auth.ErrClientUnknown) {
		t.Fatalf("unknown: %v", err)
	}
	r := sampleClient("x")
	if err := a.Put(ctx, r); err != nil || r.Revision == 0 {
		t.Fatal(r, err)
	}
	if err := b.Put(ctx, sampleClient("x")); !errors.Is(err, auth.ErrClientExists) {
		t.Fatalf("twice: %v", err)
	}
	got, err := b.Get(ctx, "x")
	if err != nil || got.Revision != r.Revision || got.SecretHash != r.SecretHash {
		t.Fatalf("%+v %v", got, err)
	}
	until(t, "b has the record at hand", func() bool {
		hits := b.Stats().Hits
		_, _ = b.Get(ctx, "x")
		return b.Stats().Hits > hits
	})
	// Of two who change the same revision one wins.
	one, two := *r, *r
	one.User, two.User = "one", "two"
	if err := a.Put(ctx, &one); err != nil {
		t.Fatal(err)
	}
	until(t, "b sees the change of a", func() bool {
		got, err := b.Get(ctx, "x")
		return err == nil && got.User == "one"
	})
	if err := b.Put(ctx, &two); !errors.Is(err, auth.ErrClientChanged) {
		t.Fatalf("an old revision: %v", err)
	}
	if err := b.Remove(ctx, "x", r.Revision); !errors.Is(err, auth.ErrClientChanged) {
		t.Fatalf("remove an old revision: %v", err)
	}
	if err := b.Remove(ctx, "x", one.Revision); err != nil {
		t.Fatal(err)
	}
	until(t, "a sees that it is gone", func() bool {
		_, err := a.Get(ctx, "x")
		return errors.Is(err, auth.ErrClientUnknown)
	})
	again := sampleClient("x")
	if err := a.Put(ctx, again); err != nil || again.Revision <= one.Revision {
		t.Fatalf("again: %+v %v", again, err)
	}
	stats := b.Stats()
	if stats.Found == 0 || stats.Failed != 0 {
		t.Errorf("%+v", stats)
	}
}

// TestRegistryCache: a record is asked for once, and again after a change that
// came while it was asked for.
func TestRegistryCache(t *testing.T) {
	r := startRegistry(t, linkTo(t, Options{URL: registryBroker(t)}))
	if err := r.Put(t.Context(), sampleClient("x")); err != nil {
		t.Fatal(err)
	}
	until(t, "the record is at hand", func() bool {
		before := r.Stats().Hits
		if _, err := r.Get(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		return r.Stats().Hits > before
	})
	r.remember("y", sampleClient("y"), r.changes-1)
	if _, ok := r.cache["y"]; ok {
		t.Error("a record is kept that may be older than a change")
	}
	for i := range cacheSize + 10 {
		r.remember(fmt.Sprint(i), sampleClient("z"), r.changes)
	}
	if len(r.cache) > cacheSize {
		t.Errorf("%d records at hand", len(r.cache))
	}
}

func TestRegistryPages(t *testing.T) {
	r := startRegistry(t, linkTo(t, Options{URL: registryBroker(t)}))
	var want []string
	var group sync.WaitGroup
	for i := range 250 {
		id := fmt.Sprintf("c%c.%03d", "Zaz:~"[i%5], i)
		want = append(want, id)
		group.Go(func() {
			if err := r.Put(t.Context(), sampleClient(id)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	gone, err := r.Load(t.Context(), want[7])
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(t.Context(), gone.ID, gone.Revision); err != nil {
		t.Fatal(err)
	}
	want = slices.Delete(want, 7, 8)
	slices.Sort(want)
	for _, limit := range []int{1000, 249, 100, 83, 7} {
		var got []string
		for after, more := "", true; more; {
			var list []*auth.ClientRecord
			if list, more, err = r.List(t.Context(), after, limit); err != nil {
				t.Fatal(err)
			}
			if len(list) == 0 || len(list) > limit {
				t.Fatalf("a page of %d", len(list))
			}
			for _, c := range list {
				got = append(got, c.ID)
			}
			after = got[len(got)-1]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("limit %d: %d ids, want %d", limit, len(got), len(want))
		}
	}
	if list, more, err := r.List(t.Context(), "zz", 10); len(list) != 0 || more || err != nil {
		t.Errorf("behind the last: %v %v %v", list, more, err)
	}
}

// TestListing: between two pages of a list clients come and go; the next page knows.
func TestListing(t *testing.T) {
	url := registryBroker(t)
	r, other := startRegistry(t, linkTo(t, Options{URL: url})), startRegistry(t, linkTo(t, Options{URL: url}))
	ctx := t.Context()
	put := func(r *Registry, id string) *auth.ClientRecord {
		t.Helper()
		c := sampleClient(id)
		if err := r.Put(ctx, c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	list := func(after string, limit int) string {
		t.Helper()
		records, more, err := r.List(ctx, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		out := ""
		for _, c := range records {
			out += c.ID
		}
		if more {
			out += "+"
		}
		return out
	}
	b := put(r, "b")
	for _, id := range []string{"d", "f", "h"} {
		put(other, id)
	}
	until(t, "a walk is kept", func() bool {
		if got := list("", 2); got != "bd+" {
			t.Fatal(got)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.listed != nil
	})
	walked := r.listed
	put(r, "e")
	if got := list("d", 2); got != "ef+" {
		t.Errorf("after its own: %s", got)
	}
	put(other, "a")
	put(other, "i")
	until(t, "what another node has put is listed", func() bool { return list("f", 3) == "hi" && list("", 1) == "a+" })
	if err := other.Remove(ctx, "b", b.Revision); err != nil {
		t.Fatal(err)
	}
	if got := list("", 3); got != "ad+" {
		t.Errorf("one is gone: %s", got)
	}
	// A page of which nothing is left is none.
	r.mu.Lock()
	r.listed.add("da")
	r.listed.add("db")
	r.mu.Unlock()
	if got := list("d", 2); got != "ef+" {
		t.Errorf("two are gone: %s", got)
	}
	if r.listed != walked {
		t.Error("it was walked through again")
	}
	r.forgetAll()
	if got := list("", 3); got != "ade+" {
		t.Errorf("a new walk: %s", got)
	}

	// A listing that ends before the last id knows no page behind its end.
	l := &listing{after: "b", ids: []string{"c", "d"}, more: true, until: time.Now().Add(time.Minute)}
	l.add("a")
	l.add("e")
	for _, tt := range []struct {
		after string
		limit int
		ok    bool
	}{{"a", 1, false}, {"b", 1, true}, {"b", 2, false}, {"c", 1, false}, {"x", 1, false}} {
		if ids, more, ok := l.page(tt.after, tt.limit, time.Now()); ok != tt.ok || ok && (len(ids) != 1 || ids[0] != "c" || !more) {
			t.Errorf("%+v: %v %v %v", tt, ids, more, ok)
		}
	}
	if _, _, ok := l.page("b", 1, time.Now().Add(time.Hour)); ok {
		t.Error("it is kept without end")
	}
}

// TestUnavailable: without a broker everything says that it is not there.
func TestUnavailable(t *testing.T) {
	l := linkTo(t, Options{URL: "nats://127.0.0.1:1", Logger: slog.New(slog.DiscardHandler)})
	s := NewTokens(l, TokensOptions{})
	r := NewRegistry(l, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v", err)
	}
	if _, err := r.Get(t.Context(), "x"); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if err := r.Put(t.Context(), sampleClient("x")); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	if _, _, err := r.List(t.Context(), "", 10); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("list: %v", err)
	}
	if _, _, err := s.NewFamily(auth.Family{Client: "dev"}); !errors.Is(err, auth.ErrStoreWrite) {
		t.Errorf("new family: %v", err)
	}
	if n, failing := s.Failures(); n != 1 || !failing {
		t.Errorf("%d failures, %v", n, failing)
	}
	if err := s.RevokeID("dev", "j", time.Now().Add(time.Minute).Unix()); !errors.Is(err, auth.ErrStoreWrite) || !s.Revoked("j", "") {
		t.Errorf("a revocation holds here all the same: %v", err)
	}
	s.Close()
	r.Close()
}

func FuzzBucketKey(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "=", "=4", "=41", "=h", "ä", "*", ">", " "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		unkey(s) // whatever stands in a bucket
		if s == "" || len(s) > 128 {
			return
		}
		key := keyOf(s)
		if strings.ContainsAny(key, ".*> \t\r\n") {
			t.Fatalf("%q is not one token", key)
		}
		if back, ok := unkey(key); !ok || back != s {
			t.Fatalf("%q became %q, then %q", s, key, back)
		}
	})
}

// FuzzRecords: nothing that may stand in a bucket makes a node panic, or is taken
// for something else than it is.
func FuzzRecords(f *testing.F) {
	family := auth.Family{Client: "c", Subject: "s", Generation: 1, Expires: 2, Access: 3}
	r, _ := sampleClient("x").Encode()
	f.Add("f.c.s", encodeFamily(&family))
	f.Add("r.t.h", encodeRevocation(auth.Revocation{ID: "j", Client: "c", Until: 1}))
	f.Add("r.f.s", encodeRevocation(auth.Revocation{Family: "f", Until: 1}))
	f.Add("r.c.c", encodeRevocation(auth.Revocation{Client: "c", Revision: 1, Until: 1}))
	f.Add("x", r)
	f.Add("", []byte(`{"hash":null}`))
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		if f, err := decodeFamily(data); err == nil {
			if again, err := decodeFamily(encodeFamily(&f)); err != nil || again != f {
				t.Fatalf("%+v became %+v, %v", f, again, err)
			}
		}
		if r, err := decodeRevocation(key, data); err == nil {
			if again, err := decodeRevocation(key, encodeRevocation(r)); err != nil || again != r {
				t.Fatalf("%+v became %+v, %v", r, again, err)
			}
		}
		if c, err := auth.DecodeClientRecord(data); err == nil {
			b, err := c.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := auth.DecodeClientRecord(b); err != nil {
				t.Fatalf("%q can't be read again: %v", b, err)
			}
		}
	})
}
