package netpoll

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// verdict is what becomes of a new connection.
type verdict uint8

const (
	admitted    verdict = iota
	overFull            // the head is answered with 503
	overAddress         // with 429: too many connections of one address
	overRate            // with 503: too many in too short a time
)

// admission decides about new connections beside the cap on all of them. Safe
// from any goroutine.
type admission struct {
	counts     bool         // addresses are counted: from the start, or not at all
	perAddress atomic.Int64 // 0: no bound
	shards     [16]addressShard

	rate    atomic.Int64 // a second; 0: no bound
	rateMu  sync.Mutex
	tokens  float64
	updated time.Time
}

type addressShard struct {
	mu    sync.Mutex
	count map[netip.Addr]int
}

func newAdmission(perAddress, rate int) *admission {
	a := &admission{counts: perAddress > 0, tokens: float64(rate), updated: time.Now()}
	a.set(perAddress, rate)
	for i := range a.shards {
		a.shards[i].count = make(map[netip.Addr]int)
	}
	return a
}

// set changes the bounds. Connections that were not counted when they came can't
// be taken out of the count: a bound on addresses holds only where there was one
// at the start.
func (a *admission) set(perAddress, rate int) {
	a.perAddress.Store(int64(perAddress))
	a.rate.Store(int64(rate))
}

// subject is the address that is counted: of IPv6 the /64, which one host can
// have all of.
func subject(addr net.Addr) (netip.Addr, bool) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(tcp.IP)
	if !ok {
		return a, false
	}
	if a = a.Unmap(); a.Is6() {
		p, _ := a.Prefix(64) // of 128 bits always
		a = p.Addr()
	}
	return a, true
}

func (a *admission) shard(s netip.Addr) *addressShard {
	b := s.As16()
	return &a.shards[(b[7]^b[14]^b[15])%byte(len(a.shards))]
}

// enter counts a connection of addr, and says whether it is one too many. It
// is counted in any case, until leave.
func (a *admission) enter(addr net.Addr) verdict {
	if a.counts {
		if s, ok := subject(addr); ok {
			sh := a.shard(s)
			sh.mu.Lock()
			sh.count[s]++
			n := sh.count[s]
			sh.mu.Unlock()
			if most := a.perAddress.Load(); most > 0 && int64(n) > most {
				return overAddress
			}
		}
	}
	if a.rate.Load() > 0 && !a.spend(time.Now()) {
		return overRate
	}
	return admitted
}

// leave takes a connection of addr out of the count.
func (a *admission) leave(addr net.Addr) {
	if !a.counts {
		return
	}
	s, ok := subject(addr)
	if !ok {
		return
	}
	sh := a.shard(s)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.count[s]--; sh.count[s] <= 0 {
		delete(sh.count, s)
	}
}

// tellEvery is how often refused connections are logged at the most: an
// operator must hear of it, and a flood must not fill the log.
const tellEvery = 10 * time.Second

// tellRefused logs that connections are refused, now and then. Safe from any
// goroutine.
func (s *Server) tellRefused(why string) {
	if s.draining.Load() || !s.refusals.now() {
		return
	}
	s.log.Warn("connections are refused", slog.String("reason", why), slog.Int64("open", s.open.Load()))
}

// spend takes a token from the bucket, which holds a second's worth.
func (a *admission) spend(now time.Time) bool {
	a.rateMu.Lock()
	defer a.rateMu.Unlock()
	rate := float64(a.rate.Load())
	a.tokens = min(rate, a.tokens+now.Sub(a.updated).Seconds()*rate)
	a.updated = now
	if a.tokens < 1 {
		return false
	}
	a.tokens--
	return true
}
