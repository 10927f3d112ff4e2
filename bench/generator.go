package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The phases of a run. At each the generators stop until all have come so far
// and the server has been looked at.
const (
	phaseStart  = "start"  // no connection of the measurement is there
	phaseStep   = "step"   // idle: as many as the step wants, settled
	phaseBegin  = "begin"  // the measured part begins
	phaseEnd    = "end"    // and ends
	phaseReport = "report" // nothing more comes
)

// generator runs a scenario, or a process's share of it, on one goroutine.
type generator struct {
	o     Options // the share
	whole Options // of all processes
	index int     // of this process
	base  int     // the number of its first connection, among those of all
	c     *conns
	m     *meter
	// phase is called by the scenario; it returns when the run may go on.
	phase func(name string, connections int) error
	ctx   context.Context

	// What the scenario does about its connections; none may be nil.
	onReady func(i int, at int64)
	onReply func(i int, p []byte, at int64)
	onLost  func(i int, why string)

	speaker
	peers []peer
	ready int // sessions that are
	// commands numbers the publish commands; delivered is when the last stamped
	// publication came.
	commands  int
	delivered int64
	// answerLimit is how long answers are waited for at the end.
	answerLimit time.Duration

	cpu     time.Duration // of the process, at begin
	began   int64
	usedCPU time.Duration
	wall    time.Duration
}

// peer is what the generator keeps of a connection beside the socket.
type peer struct {
	due   int64   // of the connect, or of the one message under way
	more  []int64 // of further messages under way, in their order
	want  int32   // replies to come before the session is ready, or before the next batch
	ready bool
	tries uint8
}

func newGenerator(ctx context.Context, whole Options, index int, phase func(string, int) error) (*generator, error) {
	t, err := whole.target()
	if err != nil {
		return nil, err
	}
	o := whole.share(index)
	t.sources, t.first = o.Sources, o.FirstSource
	g := &generator{o: o, whole: whole, index: index, m: newMeter(), phase: phase, ctx: ctx, answerLimit: drainLimit}
	for k := range index {
		g.base += whole.share(k).Connections
	}
	if g.speaker, err = newSpeaker(o); err != nil {
		return nil, err
	}
	if g.c, err = newConns(t, g); err != nil {
		return nil, err
	}
	g.onReady = func(int, int64) {}
	g.onReply = func(int, []byte, int64) {}
	g.onLost = func(int, string) {}
	return g, nil
}

// run is the whole scenario.
func (g *generator) run() (shareResult, error) {
	defer g.c.close()
	err := scenarios[g.o.Scenario](g)
	if err == nil {
		err = g.phase(phaseReport, g.ready)
	}
	if err != nil {
		return shareResult{}, err
	}
	r, err := g.m.result()
	r.CPU, r.Wall = g.usedCPU, g.wall
	return r, err
}

// begin starts the measured part.
func (g *generator) begin() error {
	if err := g.phase(phaseBegin, g.ready); err != nil {
		return err
	}
	g.began, g.cpu = now(), ownCPU()
	g.m.start(g.began)
	return nil
}

// end ends it.
func (g *generator) end() error {
	t := now()
	g.usedCPU, g.wall = ownCPU()-g.cpu, time.Duration(t-g.began)
	g.m.end(t, g.ready)
	return g.phase(phaseEnd, g.ready)
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	// RUSAGE_SELF does not fail.
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// loop polls until the moment given. next, where there is one, is called each
// time round and says when it wants to be called again.
func (g *generator) loop(until int64, next func(t int64) int64) error {
	for {
		t := now()
		if t >= until {
			return nil
		}
		if err := g.ctx.Err(); err != nil {
			return context.Cause(g.ctx)
		}
		// Not longer than this, for the sake of ctx and of the seconds.
		wake := min(until, t+int64(100*time.Millisecond))
		if next != nil {
			wake = min(wake, next(t))
		}
		if err := g.c.poll(wake); err != nil {
			return err
		}
		g.m.tick(now(), g.ready)
	}
}

// openTimeout is how long connecting may stand still.
const openTimeout = 30 * time.Second

// open adds n connections, the window's number at once, and returns when each
// is ready or has failed.
func (g *generator) open(n int) error {
	first := g.grow(n)
	ready, failed, started := g.ready, g.m.failed, 0
	moved, seen := now(), -1
	for {
		t := now()
		finished := g.ready - ready + int(g.m.failed-failed)
		for started < n && started-finished < g.o.Window {
			if err := g.dial(first+started, t); err != nil {
				return err
			}
			started++
		}
		if finished >= n {
			break
		}
		if finished != seen {
			seen, moved = finished, t
		}
		if t-moved > int64(openTimeout) {
			return fmt.Errorf("bench: no session became ready for %s; %d of %d are", openTimeout, g.ready-ready, n)
		}
		if err := g.ctx.Err(); err != nil {
			return context.Cause(g.ctx)
		}
		if err := g.c.poll(t + int64(100*time.Millisecond)); err != nil {
			return err
		}
		g.m.tick(now(), g.ready)
	}
	if g.ready == 0 {
		return fmt.Errorf("bench: none of %d connections became a session, first: %s", n, g.m.first)
	}
	return nil
}

// grow makes room for n more connections.
func (g *generator) grow(n int) int {
	g.peers = append(g.peers, make([]peer, n)...)
	return g.c.add(n)
}

// dial starts the connect that was due at the moment given.
func (g *generator) dial(i int, due int64) error {
	g.peers[i] = peer{due: due, tries: g.peers[i].tries}
	return g.c.dial(i)
}

// number is that of a connection among those of all processes.
func (g *generator) number(i int) int { return g.base + i }

func (g *generator) upgraded(i int) {
	frame, replies := g.first(g.number(i))
	if frame != nil {
		g.c.send(i, frame)
	}
	if g.peers[i].want = int32(replies); replies == 0 {
		g.becomeReady(i, now())
	}
}

func (g *generator) becomeReady(i int, at int64) {
	g.peers[i].ready = true
	g.peers[i].tries = 0
	g.ready++
	g.onReady(i, at)
}

func (g *generator) lost(i int, why string) {
	if g.peers[i].ready {
		g.ready--
		g.peers[i].ready = false
	}
	g.m.fail(why)
	g.onLost(i, why)
}

// leave ends a session of the scenario's own will.
func (g *generator) leave(i int) {
	if g.peers[i].ready {
		g.ready--
		g.peers[i].ready = false
	}
	g.c.drop(i, true)
}

func (g *generator) message(i int, opcode byte, p []byte, at int64) {
	switch {
	case opcode == opPing:
		g.pong(i, appendFrame(nil, opPong, p))
		return
	case opcode == opPong:
		return
	case !g.lines:
		g.reply(i, p, at)
		return
	case len(p) == 2 && p[0] == '{' && p[1] == '}':
		g.pong(i, pongFrame)
		return
	}
	for line := range splitLines(p) {
		g.reply(i, line, at)
		if g.c.all[i].state != stateOpen {
			return // refused: what stands behind it must not count once more
		}
	}
}

// pong answers a ping. A server that pings and does not read goes without.
func (g *generator) pong(i int, frame []byte) {
	if g.c.full(i) {
		return
	}
	g.m.pings++
	g.c.send(i, frame)
}

// reply is one message of the server, or one line of one.
func (g *generator) reply(i int, p []byte, at int64) {
	q := &g.peers[i]
	if !q.ready {
		if g.lines && isPush(p) {
			return
		}
		if why, bad := g.refused(p); bad {
			g.c.drop(i, true)
			g.m.fail(why)
			g.onLost(i, why)
			return
		}
		if q.want--; q.want <= 0 {
			g.becomeReady(i, at)
		}
		return
	}
	g.onReply(i, p, at)
}

// speaker makes the frames of a protocol.
type speaker struct {
	o     Options
	lines bool // messages are lines of JSON
}

func newSpeaker(o Options) (speaker, error) {
	if o.Secret != "" && o.Token != "" {
		return speaker{}, errors.New("bench: give a secret or a token, not both")
	}
	return speaker{o: o, lines: o.Protocol == ProtocolCentrifuge}, nil
}

// topic is what connection number n subscribes; empty: nothing.
func (s *speaker) topic(n int) string {
	if s.o.Topic == "-" {
		return ""
	}
	return strings.ReplaceAll(s.o.Topic, "{i}", strconv.Itoa(n))
}

// first is the first frame of connection number n, and how many replies make
// its session ready.
func (s *speaker) first(n int) (frame []byte, replies int) {
	switch s.o.Protocol {
	case ProtocolCentrifuge:
		text := `{"id":1,"connect":{}}`
		if token := s.token(n); token != "" {
			text = `{"id":1,"connect":{"token":"` + token + `"}}`
		}
		replies = 1
		if topic := s.topic(n); topic != "" {
			text += "\n" + `{"id":2,"subscribe":{"channel":` + strconv.Quote(topic) + `}}`
			replies = 2
		}
		if s.o.Scenario == Mixed {
			text += "\n" + `{"id":3,"subscribe":{"channel":"` + defaultTopic + `"}}`
			replies++
		}
		return appendFrame(nil, opText, []byte(text)), replies
	case ProtocolFirst:
		text := strings.ReplaceAll(s.o.First, "{i}", strconv.Itoa(n))
		return appendFrame(nil, opText, []byte(text)), 1
	}
	return nil, 0
}

// tokenTTL is longer than any run.
const tokenTTL = 24 * time.Hour

func (s *speaker) token(n int) string {
	if s.o.Secret == "" {
		return s.o.Token
	}
	// A map of strings and a number can be signed with HS256.
	token, _ := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"sub": user(n), "exp": time.Now().Add(tokenTTL).Unix(),
	}).SignedString([]byte(s.o.Secret))
	return token
}

func user(n int) string { return "bench" + strconv.Itoa(n) }
