package netpoll

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
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
	overDrain           // with 503: the server ends
	overHTTP            // with 503: net/http has no room
	verdictCount
)

// verdictCauses are the labels of connections turned away.
var verdictCauses = [verdictCount]string{
	overFull: "soft_cap", overMemory: "memory", overRate: "rate", overAddress: "address", overSubnet: "subnet",
	overPace: "address_rate", overDrain: "drain", overHTTP: "http",
}

// AddressLimits bound the connections of one address, or of one subnet: how many
// there are at once, and how many come in a second. 0: no bound.
type AddressLimits struct {
	Connections int
	Rate        int
}

// admission decides about new connections beside the cap on all of them. Safe
// from any goroutine.
type admission struct {
	scopes [2]scope    // the address, its subnet
	looks  atomic.Bool // some scope has a bound

	mu   sync.Mutex
	all  pace.Limiter
	wait time.Duration
}

// scope counts connections by the first bits of their addresses.
type scope struct {
	counts       bool         // connections are counted: from the start, or not at all
	most         atomic.Int64 // of them; 0: no bound
	rate         atomic.Int64 // in a second; 0: no bound
	bits4, bits6 int
	over         verdict
	shards       [16]scopeShard
}

type scopeShard struct {
	mu    sync.Mutex
	count map[netip.Addr]int
	rates pace.Table[netip.Addr]
}

func newAdmission(l *Limits) *admission {
	a := &admission{}
	// Of IPv6 a /64 is what one host can have all of, and a /48 what one site has.
	address, subnet := &a.scopes[0], &a.scopes[1]
	address.bits4, address.bits6, address.over, address.counts = 32, 64, overAddress, l.PerAddress.Connections > 0
	subnet.bits4, subnet.bits6, subnet.over, subnet.counts = 24, 48, overSubnet, l.PerSubnet.Connections > 0
	for i := range a.scopes {
		for j := range a.scopes[i].shards {
			a.scopes[i].shards[j].count = make(map[netip.Addr]int)
		}
	}
	a.set(l)
	return a
}

// set changes the bounds. Connections that were not counted when they came can't
// be taken out of the count: a bound on addresses holds only where there was one
// at the start.
func (a *admission) set(l *Limits) {
	for i, limits := range []AddressLimits{l.PerAddress, l.PerSubnet} {
		sc := &a.scopes[i]
		sc.most.Store(int64(limits.Connections))
		sc.rate.Store(int64(limits.Rate))
		for j := range sc.shards {
			sh := &sc.shards[j]
			sh.mu.Lock()
			if sh.rates.Rate.Count = limits.Rate; limits.Rate == 0 {
				sh.rates = pace.Table[netip.Addr]{}
			}
			sh.mu.Unlock()
		}
	}
	looks := false
	for i := range a.scopes {
		looks = looks || a.scopes[i].counts || a.scopes[i].rate.Load() > 0
	}
	a.looks.Store(looks)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all.Rate.Count, a.wait = l.ConnectionRate, l.ConnectionWait
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

// enter counts a connection of a in the scopes that it returns, until leave. Who
// is refused as one of its address takes nothing of its subnet's. now is in
// nanoseconds of a clock that does not go back.
func (a *admission) enter(addr netip.Addr, now int64) (v verdict, entered via) {
	if !addr.IsValid() {
		return admitted, 0
	}
	for i := range a.scopes {
		if v != admitted {
			break
		}
		sc := &a.scopes[i]
		if !sc.counts && sc.rate.Load() == 0 {
			continue
		}
		key := sc.key(addr)
		sh := sc.shard(key)
		sh.mu.Lock()
		n := 0
		if sc.counts {
			sh.count[key]++
			n = sh.count[key]
			entered |= viaAddress << i
		}
		paced := sh.rates.Allow(key, now)
		sh.mu.Unlock()
		switch {
		case n > 0 && sc.most.Load() > 0 && int64(n) > sc.most.Load():
			v = sc.over
		case !paced:
			v = overPace
		}
	}
	return v, entered
}

// leave takes a connection of addr out of the scopes that it has entered.
func (a *admission) leave(addr netip.Addr, entered via) {
	for i := range a.scopes {
		sc := &a.scopes[i]
		if entered&(viaAddress<<i) == 0 {
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
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all.Reserve(now, a.wait)
}

// clock is the time that the limits go by: it does not jump.
func (s *Server) clock() int64 { return int64(time.Since(s.made)) }

// greet decides what becomes of a new connection, the n-th that is open; false: it
// is closed at once. Those that wait for their refusal have places of their own,
// those between the two caps, so that they keep nobody else out.
func (c *conn) greet(n int64) bool {
	s := c.loop.server
	limits := s.limits.Load()
	c.meet()
	switch {
	case c.refuse != admitted:
	case s.draining.Load():
		c.refuseAs(overDrain)
	case n-s.refusing.Load() > int64(limits.Connections):
		c.refuseAs(overFull)
	case s.tight.Load():
		c.refuseAs(overMemory)
	case c.via&viaAdopted == 0 && limits.ConnectionRate > 0:
		wait, ok := s.admission.turn(s.clock())
		if !ok {
			c.refuseAs(overRate)
		} else if wait > 0 {
			c.pinged = c.loop.present() + ticks(wait)
		}
	}
	if c.refuse == admitted {
		return true
	}
	c.setDeadline(min(lingerFor, limits.HandshakeTimeout))
	return s.refusing.Load() <= int64(limits.HardConnections-limits.Connections)
}

// welcome takes in a session of another server, whatever the bounds say: it has
// been let in once.
func (c *conn) welcome() {
	c.meet()
	if c.refuse != admitted {
		c.refuse = admitted
		c.loop.server.refusing.Add(-1)
	}
}

// refuseAs notes that c is to be turned away, and why.
func (c *conn) refuseAs(v verdict) {
	if c.refuse == admitted && v != admitted {
		c.refuse = v
		c.loop.server.refusing.Add(1)
	}
}

// enter counts c as a connection of the address that it comes from.
func (c *conn) enter(from netip.Addr) {
	s := c.loop.server
	v, entered := s.admission.enter(from, s.clock())
	c.via |= viaEntered | entered
	if v == overPace && c.via&viaAdopted != 0 {
		v = admitted // it has come once already
	}
	c.refuseAs(v)
}

// leave takes it out of all counts.
func (c *conn) leave() {
	s := c.loop.server
	if c.refuse != admitted {
		s.refusing.Add(-1)
	}
	if c.via&(viaAddress|viaSubnet) != 0 {
		s.admission.leave(c.client().Addr(), c.via)
	}
	c.via &^= viaEntered | viaAddress | viaSubnet
}

// tellEvery is how often refused connections are logged at the most: an
// operator must hear of it, and a flood must not fill the log.
const tellEvery = 10 * time.Second

// tellRefused logs that connections are refused, now and then. Safe from any
// goroutine.
func (s *Server) tellRefused(why string) {
	if s.draining.Load() {
		return
	}
	if _, ok := s.refusals.Pass(tellEvery); !ok {
		return
	}
	s.log.Warn("connections are refused", slog.String("reason", why), slog.Int64("open", s.open.Load()))
}
