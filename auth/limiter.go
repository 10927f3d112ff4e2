package auth

import (
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"
)

// Limiter slows the guessing of clients' secrets. A wrong secret counts thrice:
// for the address it came from, for the client it named, and for the pair of
// both. What is over the free tries waits, twice as long with each further one,
// up to a minute; counts fall by one a minute.
//
// Nobody can be locked out by another's guessing:
//   - The client's count never refuses anyone by itself. It takes away the free
//     tries of pairs: while a client is under attack, an address gets one wrong
//     try for it instead of five. So an address that was never wrong always gets
//     its try, and a right secret gets in from there; what a botnet can do is
//     one guess an address and then a guess a minute.
//   - A pair that was right within a day is not held to the count of its
//     address: behind a shared address (NAT, a proxy) those who are known come in
//     while a neighbour guesses. A right secret does not lower the address's
//     count, else a guesser with one good client could wash his address clean.
//   - A secret that is still in the cache of right ones (Clients.Known) does not
//     ask the limiter at all.
//
// The table is bounded; IPv6 addresses count by their /64. Safe from any
// goroutine.
type Limiter struct {
	now  func() time.Time
	seed maphash.Seed

	mu    sync.Mutex
	table map[limitKey]*guesses
}

type limitKind uint8

const (
	limitAddr limitKind = iota
	limitClient
	limitPair
)

// limitKey holds hashes, not names: what is asked for is the attacker's to
// choose, and may be long.
type limitKey struct {
	kind limitKind
	hash uint64
}

// guesses is a leaking count of failures.
type guesses struct {
	failed float64
	at     time.Time // when failed was right
	until  time.Time // no try before
	good   time.Time // a pair: when it was right last
}

const (
	limiterSize   = 64 << 10
	addrFree      = 10
	pairFree      = 5
	pairFreeHot   = 1
	clientHot     = 20 // failures from which a client counts as under attack
	failureLeak   = time.Minute
	failureMax    = 40
	failureWait   = time.Second
	failureLimit  = time.Minute
	goodPairHolds = 24 * time.Hour
)

// NewLimiter makes an empty Limiter.
func NewLimiter() *Limiter {
	return &Limiter{now: time.Now, seed: maphash.MakeSeed(), table: make(map[limitKey]*guesses)}
}

func (l *Limiter) keys(addr netip.Addr, client string) (a, c, p limitKey) {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil {
			addr = prefix.Addr()
		}
	}
	h := func(parts ...string) uint64 {
		var m maphash.Hash
		m.SetSeed(l.seed)
		for _, s := range parts {
			m.WriteString(s)
			m.WriteByte(0)
		}
		return m.Sum64()
	}
	raw := addr.As16()
	from := string(raw[:])
	return limitKey{limitAddr, h(from)}, limitKey{limitClient, h(client)}, limitKey{limitPair, h(client, from)}
}

// Wait returns how long the address must wait before it may try a secret of the
// client; 0: it may now. A try that is let through counts as failed for its pair
// until Right says otherwise, so that tries at once do not all come before the
// first failure.
func (l *Limiter) Wait(addr netip.Addr, client string) time.Duration {
	a, c, p := l.keys(addr, client)
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	pair := l.getLocked(p, now)
	known := !pair.good.IsZero() && now.Sub(pair.good) < goodPairHolds
	if wait := pair.until.Sub(now); wait > 0 {
		return wait
	}
	if !known {
		if g := l.table[a]; g != nil {
			if wait := g.until.Sub(now); wait > 0 {
				return wait
			}
		}
	}
	free := float64(pairFree)
	if g := l.table[c]; g != nil && g.leaked(now) >= clientHot && !known {
		free = pairFreeHot
	}
	pair.add(now, free)
	return 0
}

// Wrong counts a secret that was wrong, after Wait let it through.
func (l *Limiter) Wrong(addr netip.Addr, client string) {
	a, c, _ := l.keys(addr, client)
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.getLocked(a, now).add(now, addrFree)
	l.getLocked(c, now).add(now, failureMax)
}

// Right forgives the pair, after Wait let it through.
func (l *Limiter) Right(addr netip.Addr, client string) {
	_, _, p := l.keys(addr, client)
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	*l.getLocked(p, now) = guesses{at: now, good: now}
}

// Undo takes back a try that Wait let through and that was not made.
func (l *Limiter) Undo(addr netip.Addr, client string) {
	_, _, p := l.keys(addr, client)
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.table[p]; g != nil {
		g.failed = max(0, g.failed-1)
		g.until = time.Time{}
	}
}

func (g *guesses) leaked(now time.Time) float64 {
	return max(0, g.failed-float64(now.Sub(g.at))/float64(failureLeak))
}

// add counts one failure more. Failures over the free ones set a wait.
func (g *guesses) add(now time.Time, free float64) {
	g.failed = min(g.leaked(now)+1, failureMax)
	g.at = now
	if over := g.failed - free; over >= 0 {
		wait := time.Duration(float64(failureWait) * math.Exp2(math.Floor(min(over, 10))))
		g.until = now.Add(min(wait, failureLimit))
	}
}

// idle reports whether nothing would change if g were forgotten.
func (g *guesses) idle(now time.Time) bool {
	return g.leaked(now) == 0 && now.After(g.until) && now.Sub(g.good) > goodPairHolds
}

func (l *Limiter) getLocked(k limitKey, now time.Time) *guesses {
	if g := l.table[k]; g != nil {
		return g
	}
	if len(l.table) >= limiterSize {
		l.shrinkLocked(now)
	}
	g := &guesses{at: now}
	l.table[k] = g
	return g
}

// shrinkLocked makes room for a sixteenth of the table: what is idle first, then
// whatever the map names first. An attacker who fills the table needs as many
// addresses, and forgets himself no sooner than others.
func (l *Limiter) shrinkLocked(now time.Time) {
	const target = limiterSize - limiterSize/16
	for k, g := range l.table {
		if g.idle(now) {
			delete(l.table, k)
		}
	}
	for k := range l.table {
		if len(l.table) <= target {
			return
		}
		delete(l.table, k)
	}
}
