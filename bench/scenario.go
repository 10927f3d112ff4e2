package bench

import (
	"container/heap"
	"time"
)

// scenarios are what a generator can run. Each calls the phases in their order.
var scenarios = map[string]func(*generator) error{
	Idle:      (*generator).idle,
	Connect:   (*generator).connect,
	Echo:      (*generator).echo,
	Fanout:    (*generator).fanout,
	Push:      (*generator).push,
	Churn:     (*generator).churn,
	Reconnect: (*generator).reconnect,
	Mixed:     (*generator).mixed,
	Beset:     (*generator).hostile,
}

// units are what each counts.
var units = map[string]string{
	Idle: "ping", Connect: "connection", Echo: "message", Fanout: "delivery", Push: "delivery",
	Churn: "connection", Reconnect: "connection", Mixed: "delivery", Beset: "delivery",
}

// warmConnections come and go before anything is measured: what a server makes
// once and keeps is not what a connection costs.
const warmConnections = 200

func (g *generator) warm() error {
	n := max(1, min(warmConnections/g.whole.Processes, g.o.Connections))
	first := len(g.peers)
	if err := g.open(n); err != nil {
		return err
	}
	for i := first; i < first+n; i++ {
		g.leave(i)
	}
	if err := g.loop(now()+int64(g.o.Settle), nil); err != nil {
		return err
	}
	return g.phase(phaseStart, g.ready)
}

// idle holds sessions.
func (g *generator) idle() error {
	if err := g.warm(); err != nil {
		return err
	}
	held := 0
	for _, n := range g.o.Steps {
		if n > held {
			if err := g.open(n - held); err != nil {
				return err
			}
			held = n
		}
		if err := g.loop(now()+int64(g.o.Settle), nil); err != nil {
			return err
		}
		if err := g.phase(phaseStep, g.ready); err != nil {
			return err
		}
	}
	if err := g.begin(); err != nil {
		return err
	}
	seen := g.m.pings
	count := func(t int64) int64 {
		g.m.add(g.m.pings - seen)
		seen = g.m.pings
		return t + int64(time.Second)
	}
	if err := g.loop(g.began+int64(g.o.Duration), count); err != nil {
		return err
	}
	count(0)
	return g.end()
}

// connect opens sessions, in a storm or at a rate.
func (g *generator) connect() error {
	if err := g.warm(); err != nil {
		return err
	}
	if err := g.begin(); err != nil {
		return err
	}
	g.onReady = func(i int, at int64) { g.m.observe(g.peers[i].due, at) }
	var err error
	if g.o.Rate > 0 {
		err = g.ramp(g.o.Connections)
	} else {
		err = g.open(g.o.Connections)
	}
	if err != nil {
		return err
	}
	if err := g.end(); err != nil {
		return err
	}
	if err := g.loop(now()+int64(g.o.Settle), nil); err != nil {
		return err
	}
	return g.phase(phaseStep, g.ready)
}

// ramp opens n sessions at the rate.
func (g *generator) ramp(n int) error {
	first := g.grow(n)
	p := pacer{start: g.began, rate: g.o.Rate}
	var failure error
	dial := func(t int64) int64 {
		for int(p.n) < n {
			due, ok := p.take(t)
			if !ok {
				return due
			}
			g.m.sent(due, t)
			if err := g.dial(first+int(p.n)-1, due); err != nil && failure == nil {
				failure = err
			}
		}
		return t + int64(time.Second)
	}
	whole := time.Duration(float64(n) / g.o.Rate * float64(time.Second))
	limit := g.began + int64(whole+openTimeout)
	for failure == nil && (int(p.n) < n || g.c.under > 0 || g.waiting(first)) && now() < limit {
		if err := g.loop(now()+int64(10*time.Millisecond), dial); err != nil {
			return err
		}
	}
	for i := first; failure == nil && i < len(g.peers); i++ {
		if s := g.c.all[i].state; s != stateGone && !g.peers[i].ready {
			g.m.fail("not a session in time")
		}
	}
	return failure
}

// waiting tells whether an upgraded connection is not a session yet.
func (g *generator) waiting(first int) bool { return g.c.open > g.ready && len(g.peers) > first }

// echo sends messages that come back.
func (g *generator) echo() error {
	payload := make([]byte, g.o.Size)
	for i := range payload {
		payload[i] = 'a' + byte(i%26)
	}
	one := appendFrame(nil, opText, payload)
	var batch []byte
	for range g.o.Depth {
		batch = append(batch, one...)
	}
	if err := g.open(g.o.Connections); err != nil {
		return err
	}
	stopped := false
	stop := func() error {
		stopped = true
		return nil
	}
	var next func(int64) int64
	for i := range g.peers {
		g.peers[i].due = 0 // it was that of the connect
	}
	if g.o.Rate > 0 {
		under := 0 // messages that are not answered
		g.onReply = func(i int, _ []byte, at int64) {
			if due, ok := g.peers[i].take(); ok {
				under--
				g.m.observe(due, at)
			}
		}
		g.onLost = func(i int, _ string) {
			for _, ok := g.peers[i].take(); ok; _, ok = g.peers[i].take() {
				under--
				g.m.fail("not answered: the connection was lost")
			}
		}
		stop = func() error { return g.answered(&under) }
		p := pacer{start: now(), rate: g.o.Rate}
		turn := 0
		next = func(t int64) int64 {
			for {
				due, ok := p.take(t)
				if !ok {
					return due
				}
				// A connection that is lost is not waited for.
				for range g.peers {
					if turn++; g.peers[turn%len(g.peers)].ready {
						break
					}
				}
				i := turn % len(g.peers)
				if !g.peers[i].ready {
					g.m.fail("no session is left to send on")
					continue
				}
				if g.c.full(i) {
					g.m.miss(1)
					continue
				}
				under++
				g.peers[i].push(due)
				g.m.sent(due, t)
				g.c.send(i, one)
			}
		}
	} else {
		send := func(i int, at int64) {
			q := &g.peers[i]
			q.due, q.want = at, int32(g.o.Depth)
			g.c.send(i, batch)
		}
		g.onReply = func(i int, _ []byte, at int64) {
			q := &g.peers[i]
			g.m.observe(q.due, at)
			if q.want--; q.want == 0 && !stopped {
				send(i, at)
			}
		}
		for i := range g.peers {
			if g.peers[i].ready {
				send(i, now())
			}
		}
	}
	return g.measure(next, stop)
}

// answered waits for what is under way. What is not answered then has failed:
// without that, a server that stalls at the end of a run would hide it.
func (g *generator) answered(under *int) error {
	for limit := now() + int64(g.answerLimit); *under > 0 && now() < limit; {
		if err := g.loop(now()+int64(5*time.Millisecond), nil); err != nil {
			return err
		}
	}
	for range *under {
		g.m.fail("not answered")
	}
	return nil
}

// measure warms up, and runs the measured part.
func (g *generator) measure(next func(int64) int64, stop func() error) error {
	if err := g.loop(now()+int64(g.o.Warmup), next); err != nil {
		return err
	}
	if err := g.begin(); err != nil {
		return err
	}
	if err := g.loop(g.began+int64(g.o.Duration), next); err != nil {
		return err
	}
	if err := stop(); err != nil {
		return err
	}
	return g.end()
}

// push and take keep the moments at which a connection's messages were due.
func (p *peer) push(due int64) {
	if p.due == 0 {
		p.due = due
		return
	}
	p.more = append(p.more, due)
}

func (p *peer) take() (due int64, ok bool) {
	if due = p.due; due == 0 {
		return 0, false
	}
	if p.due = 0; len(p.more) > 0 {
		p.due = p.more[0]
		if p.more = p.more[1:]; len(p.more) == 0 {
			p.more = nil
		}
	}
	return due, true
}

// churn lets sessions come and go beside those that stay.
func (g *generator) churn() error {
	if err := g.open(g.o.Connections); err != nil {
		return err
	}
	g.onReady = func(i int, at int64) { g.m.observe(g.peers[i].due, at) }
	p := pacer{start: now(), rate: g.o.Rate}
	var failure error
	next := func(t int64) int64 {
		for failure == nil {
			due, ok := p.take(t)
			if !ok {
				return due
			}
			g.m.sent(due, t)
			failure = g.replace(int(p.n)%len(g.peers), due)
		}
		return t + int64(time.Second)
	}
	if err := g.measure(next, func() error { return nil }); err != nil {
		return err
	}
	return failure
}

// replace ends the session in a place and starts another there. One that is
// still connecting has missed its turn, and fails.
func (g *generator) replace(i int, due int64) error {
	if s := g.c.all[i].state; s != stateGone && !g.peers[i].ready {
		g.m.fail("not connected when its turn came again")
	}
	g.leave(i)
	return g.dial(i, due)
}

// later is a connection that is to be made at a moment.
type later struct {
	at int64
	i  int
}

type schedule []later

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(a, b int) bool { return s[a].at < s[b].at }
func (s schedule) Swap(a, b int)      { s[a], s[b] = s[b], s[a] }
func (s *schedule) Push(x any)        { *s = append(*s, x.(later)) }
func (s *schedule) Pop() any {
	old := *s
	x := old[len(old)-1]
	*s = old[:len(old)-1]
	return x
}

// reconnect loses all sessions at once; each comes back as an SDK does.
func (g *generator) reconnect() error {
	if err := g.open(g.o.Connections); err != nil {
		return err
	}
	if err := g.loop(now()+int64(g.o.Settle), nil); err != nil {
		return err
	}
	if err := g.begin(); err != nil {
		return err
	}
	var s schedule
	g.onReady = func(i int, at int64) { g.m.observe(g.peers[i].due, at) }
	again := func(i int) {
		heap.Push(&s, later{now() + int64(backoff(int(g.peers[i].tries))), i})
		g.peers[i].tries = min(g.peers[i].tries+1, 200)
	}
	g.onLost = func(i int, _ string) { again(i) }
	all := 0
	for i := range g.peers {
		if g.peers[i].ready {
			g.leave(i)
			again(i)
			all++
		}
	}
	var failure error
	next := func(t int64) int64 {
		for len(s) > 0 && s[0].at <= t && failure == nil {
			l := heap.Pop(&s).(later)
			g.m.sent(l.at, t)
			failure = g.dial(l.i, l.at)
		}
		if len(s) == 0 {
			return t + int64(time.Second)
		}
		return s[0].at
	}
	limit := g.began + int64(g.o.Duration) + int64(2*time.Minute)
	for g.ready < all && failure == nil && now() < limit {
		if err := g.loop(now()+int64(5*time.Millisecond), next); err != nil {
			return err
		}
	}
	if failure != nil {
		return failure
	}
	for range all - g.ready {
		g.m.fail("did not come back in time")
	}
	return g.end()
}
