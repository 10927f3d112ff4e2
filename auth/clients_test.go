package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// cheapHash is a hash that tests can afford many times.
func cheapHash(t testing.TB, secret string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func TestSecretHashes(t *testing.T) {
	made, err := HashSecret("hunter2")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := HashSecret("hunter2"); again == made {
		t.Error("no salt")
	}
	b64 := rawStd(argon2.IDKey([]byte("hunter2"), []byte("saltsaltsalt"), 1, 64, 2, 24))
	long := strings.Repeat("x", 100)
	tests := []struct {
		name, hash, right, wrong string
	}{
		{"made", made, "hunter2", "hunter3"},
		{"bcrypt", cheapHash(t, "hunter2"), "hunter2", "hunter"},
		{"bcrypt 2y", strings.Replace(cheapHash(t, "hunter2"), "$2a$", "$2y$", 1), "hunter2", ""},
		{"bcrypt reads 72 bytes", cheapHash(t, long[:72]), long[:72], long},
		{"argon2id of other parameters", "$argon2id$v=19$m=64,t=1,p=2$" + rawStd([]byte("saltsaltsalt")) + "$" + b64, "hunter2", "x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, err := parseSecretHash(tt.hash)
			if err != nil {
				t.Fatal(err)
			}
			if !h.matches(tt.right) || h.matches(tt.wrong) {
				t.Error("wrong answer")
			}
		})
	}
	salt, sum := rawStd(make([]byte, 16)), rawStd(make([]byte, 32))
	for name, bad := range map[string]string{
		"empty": "", "plain": "hunter2", "md5": "$1$x$y", "argon2i": "$argon2i$v=19$m=64,t=1,p=1$" + salt + "$" + sum,
		"bcrypt cut": cheapHash(t, "x")[:40], "bcrypt cost": "$2a$31$" + strings.Repeat("a", 53),
		"memory": "$argon2id$v=19$m=99999999,t=1,p=1$" + salt + "$" + sum,
		"time":   "$argon2id$v=19$m=64,t=1000,p=1$" + salt + "$" + sum,
		"lanes":  "$argon2id$v=19$m=64,t=1,p=0$" + salt + "$" + sum,
		"more":   "$argon2id$v=19$m=64,t=1,p=1,k=2$" + salt + "$" + sum,
		"no sum": "$argon2id$v=19$m=64,t=1,p=1$" + salt + "$", "version": "$argon2id$v=16$m=64,t=1,p=1$" + salt + "$" + sum,
		"salt": "$argon2id$v=19$m=64,t=1,p=1$??$" + sum,
	} {
		if err := CheckSecretHash(bad); !errors.Is(err, ErrSecretHash) || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", maxSecret+1)} {
		if _, err := HashSecret(bad); err == nil {
			t.Errorf("secret of %d bytes is hashed", len(bad))
		}
	}
}

func rawStd(b []byte) string {
	return strings.NewReplacer("-", "+", "_", "/").Replace(rawURL.EncodeToString(b))
}

func FuzzSecretHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=64,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$2a$04$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseSecretHash(s)
		if err == nil && h.bcrypt == nil && (h.memory > argonMaxMemory || h.time > argonMaxTime || h.threads == 0 || len(h.sum) < 16) {
			t.Fatalf("%q is taken", s)
		}
	})
}

func known(t testing.TB, c *Clients, id, secret string) *Client {
	t.Helper()
	cl, err := c.Known(t.Context(), id, secret)
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func TestAuthenticate(t *testing.T) {
	c, err := NewClients([]ClientOptions{{ID: "dev", SecretHash: cheapHash(t, "s")}, {ID: "back", SecretHash: cheapHash(t, "t"), User: "u"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := newClock()
	c.now = now.now
	for _, tt := range []struct {
		id, secret string
		ok         bool
	}{{"dev", "s", true}, {"dev", "t", false}, {"back", "t", true}, {"nobody", "s", false}, {"", "", false}, {"dev", "", false}, {"dev", strings.Repeat("s", 2000), false}} {
		got, err := c.Authenticate(t.Context(), tt.id, tt.secret)
		if (err == nil) != tt.ok || tt.ok && got.ID != tt.id || !tt.ok && !errors.Is(err, ErrClientUnknown) {
			t.Errorf("%q %q: %v, %v", tt.id, tt.secret, got, err)
		}
	}
	if c.byID["dev"].User != "dev" || c.byID["back"].User != "u" {
		t.Error("user")
	}
	if known(t, c, "dev", "s") == nil || known(t, c, "dev", "t") != nil || known(t, c, "de", "vs") != nil {
		t.Error("cache")
	}
	now.add(secretCacheTTL)
	if known(t, c, "dev", "s") != nil {
		t.Error("the cache does not forget")
	}
	for i := range secretCacheSize + 100 {
		c.remember(c.key("dev", fmt.Sprint(i)), "hash")
	}
	if len(c.known) > secretCacheSize {
		t.Errorf("%d in the cache", len(c.known))
	}

	// Both slots taken, and all places to wait.
	for range cap(c.slot) {
		c.slot <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Authenticate(ctx, "dev", "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("gone: %v", err)
	}
	for range cap(c.wait) {
		c.wait <- struct{}{}
	}
	if _, err := c.Authenticate(t.Context(), "dev", "x"); !errors.Is(err, ErrBusy) {
		t.Errorf("busy: %v", err)
	}
}

func TestClientOptionErrors(t *testing.T) {
	h := cheapHash(t, "s")
	for name, list := range map[string][]ClientOptions{
		"no id":   {{SecretHash: h}},
		"twice":   {{ID: "a", SecretHash: h}, {ID: "a", SecretHash: h}},
		"no hash": {{ID: "a"}},
	} {
		if _, err := NewClients(list, nil); err == nil || !strings.Contains(err.Error(), "clients[") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

var (
	here  = netip.MustParseAddr("192.0.2.1")
	there = netip.MustParseAddr("192.0.2.2")
)

// guess tries a wrong secret, and says whether it was let through.
func guess(l *Limiter, addr netip.Addr, client string) bool {
	if l.Wait(addr, client) > 0 {
		return false
	}
	l.Wrong(addr, client)
	return true
}

func newLimiter(c *clock) *Limiter {
	l := NewLimiter()
	l.now = c.now
	return l
}

func TestLimiterSlowsOneAddress(t *testing.T) {
	c := newClock()
	l := newLimiter(c)
	n := 0
	for range 3600 {
		if guess(l, here, "dev") {
			n++
		}
		c.add(time.Second)
	}
	if n < pairFree || n > 100 {
		t.Errorf("%d guesses in an hour", n)
	}
	if l.Wait(there, "dev") > 0 {
		t.Fatal("the owner is locked out at another address")
	}
	l.Right(there, "dev")
	if w := l.Wait(here, "dev"); w > failureLimit {
		t.Errorf("waits %v", w)
	}
	c.add(time.Hour)
	if w := l.Wait(here, "dev"); w > 0 {
		t.Errorf("waits %v an hour later", w)
	}
}

func TestLimiterSpraying(t *testing.T) {
	c := newClock()
	l := newLimiter(c)
	n := 0
	for i := range 1000 { // one address, many clients
		if guess(l, here, fmt.Sprint("dev-", i)) {
			n++
		}
	}
	if n != addrFree {
		t.Errorf("%d guesses at once", n)
	}
	// Who is known at that address comes in; a stranger there waits.
	l2 := newLimiter(c)
	l2.Wait(here, "known")
	l2.Right(here, "known")
	for i := range 100 {
		guess(l2, here, fmt.Sprint("dev-", i))
	}
	if l2.Wait(here, "known") > 0 || l2.Wait(here, "stranger") == 0 {
		t.Error("known and stranger")
	}
	// A right secret does not wash the address.
	l2.Right(here, "known")
	if guess(l2, here, "dev-next") {
		t.Error("washed clean")
	}
}

func TestLimiterBotnet(t *testing.T) {
	c := newClock()
	l := newLimiter(c)
	n := 0
	for i := range 1000 { // many addresses, each trying as often as it may
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		for guess(l, addr, "dev") {
			n++
		}
	}
	if n > 1000+clientHot*pairFree {
		t.Errorf("%d guesses by 1000 addresses at once", n)
	}
	if l.Wait(here, "dev") > 0 {
		t.Error("an address that was never wrong is locked out")
	}
}

func TestLimiterAtOnce(t *testing.T) {
	l := newLimiter(newClock())
	n := 0
	for range 100 { // all before the first answer
		if l.Wait(here, "dev") == 0 {
			n++
		}
	}
	if n != pairFree {
		t.Errorf("%d tries at once", n)
	}
}

func TestLimiterAddresses(t *testing.T) {
	l := newLimiter(newClock())
	same := [][2]string{{"2001:db8::1", "2001:db8::ffff:2"}, {"192.0.2.7", "::ffff:192.0.2.7"}, {"fe80::1%eth0", "fe80::1"}}
	for _, p := range same {
		a, _, _ := l.keys(netip.MustParseAddr(p[0]), "x")
		b, _, _ := l.keys(netip.MustParseAddr(p[1]), "x")
		if a != b {
			t.Errorf("%v are two", p)
		}
	}
	a, _, _ := l.keys(netip.MustParseAddr("2001:db8::1"), "x")
	b, _, _ := l.keys(netip.MustParseAddr("2001:db8:0:1::1"), "x")
	if a == b {
		t.Error("two networks are one")
	}
	l.keys(netip.Addr{}, "x") // an address nobody could parse
}

func TestLimiterBound(t *testing.T) {
	c := newClock()
	l := newLimiter(c)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range limiterSize / 4 {
				guess(l, netip.AddrFrom4([4]byte{byte(g), byte(i >> 16), byte(i >> 8), byte(i)}), fmt.Sprint(i))
			}
		})
	}
	wg.Wait()
	if n := len(l.table); n > limiterSize {
		t.Errorf("%d entries", n)
	}
}
