package netpoll

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"perch/internal/pace"
)

// verdict is what becomes of a new connection.
type verdict uint8

const (
	admitted    verdict = iota
	overFull            // the head is answered with 503
	overMemory          // with 503: the process has used up its memory
	overRate            // with 503: too many in too short a time
	overAddress         // with 429: too many connections of one address
	overSubnet          // with 429: too many of one subnet
	overPace            // with 429: too many of either in too short a time
)

// AddressLimits bound the connections of one address, or of one subnet: how many
// there are at once, and how many come in a second. 0: no bound.
type AddressLimits struct {
	Connections int
	Rate        int
}

// admission decides about new connections beside the cap on all of them. Safe
// from any goroutine.
type admission struct {
	scopes [2]scope // the address, its subnet
	wait   time.Duration

	mu  sync.Mutex
	all pace.Limiter
}

// scope counts connections by the first bits of their addresses.
type scope struct {
	limits       AddressLimits
	bits4, bits6 int
	over         verdict
	shards       [16]scopeShard
}

type scopeShard struct {
	mu    sync.Mutex
	count map[netip.Addr]int
	rates pace.Table[netip.Addr]
}

func newAdmission(o *Options) *admission {
	a := &admission{wait: o.ConnectionWait, all: pace.Limiter{Rate: pace.Rate{Count: o.ConnectionRate}}}
	// Of IPv6 a /64 is what one host can have all of, and a /48 what one site has.
	a.scopes[0] = scope{limits: o.PerAddress, bits4: 32, bits6: 64, over: overAddress}
	a.scopes[1] = scope{limits: o.PerSubnet, bits4: 24, bits6: 48, over: overSubnet}
	for i := range a.scopes {
		sc := &a.scopes[i]
		for j := range sc.shards {
			sc.shards[j].count = make(map[netip.Addr]int)
			sc.shards[j].rates.Rate.Count = sc.limits.Rate
		}
	}
	return a
}

// addrOf is the address of a socket's peer; the zero one where it has none.
func addrOf(addr net.Addr) netip.AddrPort {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	a := tcp.AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// key is what of an address the scope looks at.
func (sc *scope) key(a netip.Addr) netip.Addr {
	bits := sc.bits6
	if a.Is4() {
		bits = sc.bits4
	}
	p, _ := a.WithZone("").Prefix(bits) // never more than the address has
	return p.Addr()
}

func (sc *scope) shard(key netip.Addr) *scopeShard {
	b := key.As16()
	return &sc.shards[(b[5]^b[7]^b[14]^b[15])%byte(len(sc.shards))]
}

func (sc *scope) none() bool { return sc.limits == AddressLimits{} }

// enter counts a connection of a, whatever the verdict is, until leave. now is in
// nanoseconds of a clock that does not go back.
func (a *admission) enter(addr netip.Addr, now int64) verdict {
	v := admitted
	if !addr.IsValid() {
		return v
	}
	for i := range a.scopes {
		sc := &a.scopes[i]
		if sc.none() {
			continue
		}
		key := sc.key(addr)
		sh := sc.shard(key)
		sh.mu.Lock()
		sh.count[key]++
		n := sh.count[key]
		paced := v != admitted || sh.rates.Allow(key, now) // who is refused takes nothing of its neighbours'
		sh.mu.Unlock()
		switch {
		case v != admitted:
		case sc.limits.Connections > 0 && n > sc.limits.Connections:
			v = sc.over
		case !paced:
			v = overPace
		}
	}
	return v
}

// leave takes a connection of addr out of the count.
func (a *admission) leave(addr netip.Addr) {
	if !addr.IsValid() {
		return
	}
	for i := range a.scopes {
		sc := &a.scopes[i]
		if sc.none() {
			continue
		}
		key := sc.key(addr)
		sh := sc.shard(key)
		sh.mu.Lock()
		if sh.count[key]--; sh.count[key] <= 0 {
			delete(sh.count, key)
		}
		sh.mu.Unlock()
	}
}

// turn is how long a new connection waits for its turn where too many come in a
// second; false: longer than it may.
func (a *admission) turn(now int64) (delay time.Duration, ok bool) {
	if a.all.Rate.Count == 0 {
		return 0, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all.Reserve(now, a.wait)
}

// clock is the time that the limits go by: it does not jump.
func (s *Server) clock() int64 { return int64(time.Since(s.began)) }

// greet decides what becomes of a new connection, the n-th that is open.
func (c *conn) greet(n int64) {
	s := c.loop.server
	switch {
	case n > int64(s.opts.Connections) || s.draining.Load():
		c.refuse = overFull
	case s.tight.Load():
		c.refuse = overMemory
	case c.via&viaAdopted == 0:
		wait, ok := s.admission.turn(s.clock())
		if !ok {
			c.refuse = overRate
		} else if wait > 0 {
			c.pinged = c.loop.present() + ticks(wait)
		}
	}
	c.meet()
}

// enter counts c as a connection of the address that it comes from.
func (c *conn) enter(from netip.Addr) {
	s := c.loop.server
	c.via |= viaEntered
	v := s.admission.enter(from, s.clock())
	if v == overPace && c.via&viaAdopted != 0 {
		v = admitted // it has come once already
	}
	if c.refuse == admitted {
		c.refuse = v
	}
}

// leave takes it out of the count.
func (c *conn) leave() {
	if c.via&viaEntered != 0 {
		c.via &^= viaEntered
		c.loop.server.admission.leave(c.client().Addr())
	}
}

// tellEvery is how often refused connections are logged at the most: an
// operator must hear of it, and a flood must not fill the log.
const tellEvery = 10 * time.Second

// tellRefused logs that connections are refused, now and then. Safe from any
// goroutine.
func (s *Server) tellRefused(why string) {
	now, last := time.Now().UnixNano(), s.told.Load()
	if now-last < int64(tellEvery) || s.draining.Load() || !s.told.CompareAndSwap(last, now) {
		return
	}
	s.log.Warn("connections are refused", slog.String("reason", why), slog.Int64("open", s.open.Load()))
}
