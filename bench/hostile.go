package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The kinds of hostile peers.
const (
	hostileSlowHead   = "slow-head"   // a byte of the request's head a second
	hostileSlowFrame  = "slow-frame"  // a byte of a frame a second
	hostileUnfinished = "unfinished"  // a frame's header, and nothing behind it
	hostileFragments  = "fragments"   // a fragment a second, and no end
	hostileSilent     = "silent"      // a session that says nothing, not to pings either
	hostileUnread     = "unread"      // asks for answers, and reads none
	hostilePongs      = "pongs"       // answers pings that it never got
	hostileTiny       = "tiny-frames" // bursts of messages of one command each
	hostilePings      = "pings"       // bursts of pings
	hostileCommands   = "commands"    // messages of many subscribes and unsubscribes
)

// HostileKinds are all kinds of hostile peers, in the order of the documents.
func HostileKinds() []string {
	return []string{hostileSlowHead, hostileSlowFrame, hostileUnfinished, hostileFragments, hostileSilent, hostileUnread,
		hostilePongs, hostileTiny, hostilePings, hostileCommands}
}

// Hostile is what the hostile scenario found: how the good sessions fared
// without the hostile peers and beside them, in turns.
type Hostile struct {
	Kinds map[string]int `json:"kinds"` // how many of each there were
	Flood int            `json:"flood"` // frames, or commands, of a burst
	// Ended is how many connections of theirs the server ended; each came back.
	Ended  int64          `json:"ended"`
	Rounds []HostileRound `json:"rounds"`
	P50    HostileRatio   `json:"p50"`
	P99    HostileRatio   `json:"p99"`
	// Tenth is of the p99 of a tenth of a second (see Tenths): what holds everything
	// up now and then is not in it. Missing where too little was answered.
	Tenth *HostileRatio `json:"tenth_p99,omitempty"`
}

// HostileRound is one turn without them and one beside them.
type HostileRound struct {
	Without HostileTurn `json:"without"`
	Beside  HostileTurn `json:"beside"`
}

// HostileTurn is what the good sessions saw.
type HostileTurn struct {
	Count int64         `json:"count"`
	P50   time.Duration `json:"p50_ns"`
	P99   time.Duration `json:"p99_ns"`
	Tenth time.Duration `json:"tenth_p99_ns,omitempty"`
}

// HostileRatio compares a percentile: medians of the rounds, and the median of
// the rounds' ratios with its 95 % interval, which fewer than three rounds have
// not.
type HostileRatio struct {
	Without time.Duration `json:"without_ns"`
	Beside  time.Duration `json:"beside_ns"`
	Ratio   float64       `json:"ratio"`
	Low     float64       `json:"ratio_low,omitempty"`
	High    float64       `json:"ratio_high,omitempty"`
}

func (h *Hostile) reckon() {
	h.P50 = h.ratio(func(t HostileTurn) time.Duration { return t.P50 })
	h.P99 = h.ratio(func(t HostileTurn) time.Duration { return t.P99 })
	if tenth := h.ratio(func(t HostileTurn) time.Duration { return t.Tenth }); tenth.Ratio > 0 {
		h.Tenth = &tenth
	}
}

func (h *Hostile) ratio(of func(HostileTurn) time.Duration) (r HostileRatio) {
	var without, beside []float64
	for _, round := range h.Rounds {
		without = append(without, float64(of(round.Without)))
		beside = append(beside, float64(of(round.Beside)))
	}
	r.Without, r.Beside = time.Duration(Median(without)), time.Duration(Median(beside))
	r.Ratio, r.Low, r.High = RatioCI(beside, without)
	return r
}

// text is a ratio in a line.
func (r HostileRatio) text() string {
	line := fmt.Sprintf("%s without, %s beside: %s times", humanDuration(r.Without), humanDuration(r.Beside), digits(r.Ratio))
	if r.High > 0 {
		line += fmt.Sprintf(" (%s to %s)", digits(r.Low), digits(r.High))
	}
	return line
}

// who names the peers.
func (h *Hostile) who() string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(h.Kinds)) {
		if n := h.Kinds[kind]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", humanCount(int64(n)), printable(kind)))
		}
	}
	return strings.Join(parts, ", ")
}

const (
	defaultHostile = 100
	defaultFlood   = 512
	defaultRounds  = 5
	// hostileEvery is how often each of them does what it does.
	hostileEvery = time.Second
	// pairsMost are the commands of one message, in pairs: servers bound them.
	pairsMost = 250
	// hostileSettle is from their coming, or going, to a turn's first message.
	hostileSettle = 500 * time.Millisecond
)

// hostileDefaults fills in who comes.
func (o *Options) hostileDefaults() error {
	if o.Protocol != ProtocolCentrifuge {
		return errors.New("bench: hostile speaks centrifuge only: give a URL with /connection/websocket")
	}
	if o.Processes > 1 {
		return errors.New("bench: hostile runs in one process")
	}
	def(&o.Rate, 2500) // a tenth of a second has enough for a p99
	def(&o.Flood, defaultFlood)
	def(&o.Rounds, defaultRounds)
	kinds := make(map[string]int)
	for _, kind := range HostileKinds() {
		kinds[kind] = defaultHostile
	}
	for kind, n := range o.Hostile {
		if _, ok := kinds[kind]; !ok && kind != "all" {
			return fmt.Errorf("bench: unknown hostile kind %q; there are %s, and all", kind, strings.Join(HostileKinds(), ", "))
		}
		if n < 0 {
			return fmt.Errorf("bench: hostile %s: must not be below 0", kind)
		}
	}
	if n, ok := o.Hostile["all"]; ok {
		for kind := range kinds {
			kinds[kind] = n
		}
	}
	for kind, n := range o.Hostile {
		if kind != "all" {
			kinds[kind] = n
		}
	}
	o.Hostile = kinds
	return nil
}

// hostile measures the good sessions in turns, without hostile peers and beside
// them. The good ones each have a topic and publish to it, at a rate over all.
func (g *generator) hostile() error {
	if err := g.open(g.o.Connections); err != nil {
		return err
	}
	h := &Hostile{Kinds: g.o.Hostile, Flood: g.o.Flood}
	g.m.hostile = h
	turn := newHistogram(digitsWhole)
	var parts tenths
	parts.start(now())
	beside, under := false, 0 // under way
	g.onReply = func(_ int, p []byte, at int64) {
		due, ok := stamp(p)
		switch {
		case ok:
			record(turn, at-due)
			record(parts.current, at-due)
			parts.tick(at)
			under--
			if beside {
				g.m.observe(due, at)
			}
		default:
			if why, bad := g.refused(p); bad {
				g.m.fail(why)
			}
		}
	}
	whole := g.o.Duration / time.Duration(2*g.o.Rounds)
	run := func(lasts time.Duration) error {
		p := pacer{start: now(), rate: g.o.Rate}
		next := func(t int64) int64 {
			for {
				due, ok := p.take(t)
				if !ok {
					return due
				}
				switch i := spread(p.n, len(g.peers)); {
				case !g.peers[i].ready:
					g.m.fail("a good session is lost")
				case g.c.full(i):
					g.m.miss(1)
				default:
					under++
					g.m.sent(due, t)
					g.single(i, g.topic(g.number(i)), due)
				}
			}
		}
		if err := g.loop(now()+int64(lasts), next); err != nil {
			return err
		}
		err := g.answered(&under)
		under = 0
		return err
	}
	measured := func(lasts time.Duration) (t HostileTurn, err error) {
		turn = newHistogram(digitsWhole)
		parts.start(now())
		err = run(lasts)
		t = HostileTurn{Count: turn.TotalCount(), P50: time.Duration(turn.ValueAtPercentile(50)), P99: time.Duration(turn.ValueAtPercentile(99))}
		if all := tenthsOf(parts.all); all != nil {
			t.Tenth = all.P99
		}
		return t, err
	}
	turns := func(round int) (r HostileRound, err error) {
		for k := range 2 {
			// Each goes first as often as the other.
			if beside = (k+round)%2 == 1; !beside {
				if r.Without, err = measured(whole); err != nil {
					return r, err
				}
				continue
			}
			v, err := g.summon()
			if err != nil {
				return r, err
			}
			if err = g.loop(now()+int64(hostileSettle), nil); err == nil {
				r.Beside, err = measured(whole)
			}
			ended, verr := v.dismiss()
			h.Ended += ended
			if err = errors.Join(err, verr); err != nil {
				return r, err
			}
			if err := g.loop(now()+int64(hostileSettle), nil); err != nil {
				return r, err
			}
		}
		return r, nil
	}
	if err := run(g.o.Warmup); err != nil {
		return err
	}
	if err := g.begin(); err != nil {
		return err
	}
	for round := range g.o.Rounds {
		r, err := turns(round)
		if err != nil {
			return err
		}
		h.Rounds = append(h.Rounds, r)
	}
	h.reckon()
	return g.end()
}

// villains are the hostile peers of a turn, on a goroutine of their own: what
// they read must not hold up what the good ones do.
type villains struct {
	g      *generator
	c      *conns
	kinds  []string // by place
	turn   []int    // what each has done so far
	due    []int64  // when each does the next, or comes back
	ended  int64
	cancel context.CancelFunc
	done   chan error
	bursts map[string][]byte
	head   []byte
}

// summon connects them all.
func (g *generator) summon() (*villains, error) {
	v := &villains{g: g, done: make(chan error, 1), bursts: make(map[string][]byte)}
	t := g.c.target
	v.head = t.head
	var err error
	if v.c, err = newConns(t, v); err != nil {
		return nil, err
	}
	for _, kind := range HostileKinds() {
		for range g.o.Hostile[kind] {
			v.kinds = append(v.kinds, kind)
		}
	}
	v.turn, v.due = make([]int, len(v.kinds)), make([]int64, len(v.kinds))
	v.c.add(len(v.kinds))
	v.c.deaf = func(i int) bool { return v.kinds[i] == hostileUnread && v.turn[i] > 0 }
	v.c.silent = func(i int) bool { return v.kinds[i] == hostileSlowHead }
	for i := range v.kinds {
		if err := v.c.dial(i); err != nil {
			v.c.close()
			return nil, err
		}
		if i%g.o.Window == g.o.Window-1 {
			if err := v.c.poll(now() + int64(10*time.Millisecond)); err != nil {
				v.c.close()
				return nil, err
			}
		}
	}
	ctx, cancel := context.WithCancel(g.ctx)
	v.cancel = cancel
	go func() { v.done <- v.run(ctx) }()
	return v, nil
}

// dismiss ends them, and says how many connections the server had ended.
func (v *villains) dismiss() (ended int64, err error) {
	v.cancel()
	err = <-v.done
	v.c.close()
	return v.ended, err
}

func (v *villains) run(ctx context.Context) error {
	for ctx.Err() == nil {
		t := now()
		for i := range v.kinds {
			due := v.due[i]
			if due == 0 || due > t {
				continue
			}
			if v.c.all[i].state == stateGone {
				v.turn[i], v.due[i] = 0, 0
				if err := v.c.dial(i); err != nil {
					return err
				}
				continue
			}
			v.due[i] = max(due+int64(hostileEvery), t)
			v.act(i)
		}
		if err := v.c.poll(t + int64(10*time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// upgraded, message and lost implement events.
func (v *villains) upgraded(i int) {
	if v.kinds[i] == hostileSlowHead {
		v.begin(i)
		return
	}
	frame, _ := v.g.first(v.g.o.Connections + i)
	v.c.send(i, frame)
	v.begin(i)
}

// begin has a peer act, each of a kind at another moment of the second.
func (v *villains) begin(i int) {
	v.due[i] = now() + int64(hostileEvery)*int64(i%100)/100
}

func (v *villains) message(i int, opcode byte, p []byte, _ int64) {
	if v.kinds[i] == hostileSilent {
		return
	}
	// Floods are floods by peers that live.
	switch {
	case opcode == opPing:
		v.c.send(i, appendFrame(nil, opPong, p))
	case len(p) == 2 && p[0] == '{' && p[1] == '}' && v.kinds[i] != hostileSlowFrame:
		v.c.send(i, pongFrame)
	}
}

func (v *villains) lost(i int, _ string) {
	v.ended++
	v.due[i] = now() + int64(hostileEvery)
}

// act does what a peer does once a second.
func (v *villains) act(i int) {
	n := v.turn[i]
	v.turn[i]++
	if v.c.full(i) {
		return
	}
	switch v.kinds[i] {
	case hostileSlowHead:
		if n < len(v.head)-1 {
			v.c.send(i, v.head[n:n+1])
		}
	case hostileSlowFrame:
		long := v.burst("slow", func() []byte { return appendFrame(nil, opText, publish(nil, 9, "slow", stamped(0, 8000))) })
		if n < len(long)-1 {
			v.c.send(i, long[n:n+1])
		}
	case hostileUnfinished:
		if n == 0 {
			v.c.send(i, appendFrame(nil, opText, make([]byte, 60000))[:8])
		}
	case hostileFragments:
		op := byte(opContinuation)
		if n == 0 {
			op = opText
		}
		f := appendFrame(nil, op, []byte(" "))
		f[0] &^= finBit
		v.c.send(i, append(f, appendFrame(nil, opPong, nil)...))
	case hostileUnread:
		// Each publication comes back, to nobody.
		topic := v.g.topic(v.g.o.Connections + i)
		v.c.send(i, v.burst(topic, func() []byte {
			return slices.Repeat(appendFrame(nil, opText, publish(nil, 9, topic, stamped(0, 4000))), 10)
		}))
	case hostilePongs:
		v.c.send(i, pongFrame)
	case hostileTiny:
		// An unsubscribe of nothing is the smallest command that is answered.
		v.c.send(i, v.burst(hostileTiny, func() []byte {
			return slices.Repeat(appendFrame(nil, opText, []byte(`{"id":9,"unsubscribe":{"channel":"x"}}`)), v.g.o.Flood)
		}))
	case hostilePings:
		v.c.send(i, v.burst(hostilePings, func() []byte { return slices.Repeat(appendFrame(nil, opPing, nil), v.g.o.Flood) }))
	case hostileCommands:
		v.c.send(i, v.burst(hostileCommands, func() []byte {
			pair := `{"id":9,"subscribe":{"channel":"come and go"}}` + "\n" + `{"id":10,"unsubscribe":{"channel":"come and go"}}` + "\n"
			var b []byte
			for left := max(1, v.g.o.Flood/2); left > 0; left -= pairsMost {
				b = appendFrame(b, opText, []byte(strings.Repeat(pair, min(left, pairsMost))))
			}
			return b
		}))
	}
}

// burst is made once for all that send it.
func (v *villains) burst(name string, make func() []byte) []byte {
	b, ok := v.bursts[name]
	if !ok {
		b = make()
		v.bursts[name] = b
	}
	return b
}
