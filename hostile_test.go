package perch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"perch"
	"perch/handler"
	"perch/internal/testkit"
)

// Hostile peers beside good ones: a hundred of each kind at once, and a thousand
// that do what clients do. Every good one gets every publication in order and an
// answer to each call, and what a loop handles of one peer in one go, or of its
// inbox in one turn, stays within its bound, counted in frames, commands, posts
// and bytes.

const (
	hostileGood   = 1000
	hostileOfKind = 100
	hostileRounds = 8 // at the least
	// The bounds of a turn: docs/metrics.md.
	turnWork  = 256
	turnPosts = 4096
	turnBytes = 64 << 10
)

// hostileTest is what the hostile peers share.
type hostileTest struct {
	server *server
	token  string
	set    sync.WaitGroup // who is not yet in its place
	over   chan struct{}  // closed when those that go on for ever shall end
	wrong  chan string

	mu    sync.Mutex
	round chan struct{}  // closed when the next one begins
	left  map[string]int // of those whom the server ends
}

func (h *hostileTest) complain(format string, args ...any) {
	select {
	case h.wrong <- fmt.Sprintf(format, args...):
	default:
	}
}

// next begins a round.
func (h *hostileTest) next() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.round)
	h.round = make(chan struct{})
}

// ends notes that n more, or fewer, of a kind are to be ended, and returns how
// many there are of all kinds.
func (h *hostileTest) ends(kind string, n int) (all int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left[kind] += n; h.left[kind] == 0 {
		delete(h.left, kind)
	}
	for _, n := range h.left {
		all += n
	}
	return all
}

// villain is one hostile peer. What it does at once, it does once a round: all
// of them together, as often as the good ones have what they want.
type villain struct {
	t    *hostileTest
	c    *testkit.Conn
	i    int
	kind string
}

// begin waits until all are in their places.
func (v *villain) begin() {
	v.t.set.Done()
	v.wait()
}

// wait is for the next round; false: it is over.
func (v *villain) wait() bool {
	v.t.mu.Lock()
	round := v.t.round
	v.t.mu.Unlock()
	select {
	case <-v.t.over:
		return false
	case <-round:
		return true
	}
}

// hostileKinds are what peers do. Each returns when the server has ended the
// connection, with true, or when all is over.
var hostileKinds = []struct {
	name string
	// reason is why the server ends it; empty: it doesn't.
	reason string
	run    func(v *villain) bool
}{
	{"slow handshake", "handshake_timeout", func(v *villain) bool {
		v.begin()
		v.dial()
		return v.dribble([]byte(testkit.Head(v.t.server.public, "/connection/websocket")))
	}},
	{"a head never finished", "handshake_timeout", func(v *villain) bool {
		v.begin()
		v.dial()
		v.send([]byte("GET /connection/websocket HTTP/1.1\r\nHost: x\r\nX-Long: "))
		return v.hangUp()
	}},
	{"slow frame", "message_timeout", func(v *villain) bool {
		v.connect()
		v.begin()
		return v.dribble(testkit.Wire(testkit.Text(testkit.PublishCommand(2, "slow", testkit.Blob(10_000)))))
	}},
	{"a frame never finished", "message_timeout", func(v *villain) bool {
		v.connect()
		v.begin()
		v.send(testkit.Wire(testkit.Text("").Declare(hostileMessage))[:8])
		return v.hangUp()
	}},
	{"fragments for ever", "message_timeout", func(v *villain) bool {
		v.open("/echo")
		v.begin()
		v.send(testkit.Wire(testkit.Text("begin").More()))
		for v.wait() {
			if !v.send(testkit.Wire(testkit.Continuation("-").More(), testkit.Pong(""))) {
				return true
			}
		}
		return false
	}},
	{"vanished", "no_pong", func(v *villain) bool {
		v.connect()
		v.begin()
		return v.hangUp()
	}},
	{"reads nothing that is pushed", "slow", func(v *villain) bool {
		v.small()
		v.connect(testkit.SubscribeCommand(2, "flood"))
		v.begin()
		// Sending fails when the server has ended the connection.
		return v.unread(testkit.Wire(testkit.Pong("")))
	}},
	{"calls and never reads", "slow", func(v *villain) bool {
		v.small()
		v.connect()
		v.begin()
		return v.unread(bytes.Repeat(testkit.Wire(testkit.Text(`{"id":2,"rpc":{"method":"echo","data":`+testkit.Blob(8000)+`}}`)), 30))
	}},
	{"publishes and never reads", "slow", func(v *villain) bool {
		v.small()
		name := fmt.Sprintf("own%d", v.i)
		v.connect(testkit.SubscribeCommand(2, name))
		v.begin()
		return v.unread(bytes.Repeat(testkit.Wire(testkit.Text(testkit.PublishCommand(3, name, testkit.Blob(8000)))), 30))
	}},
	{"pings and never reads", "pong_timeout", func(v *villain) bool {
		v.small()
		v.open("/echo")
		v.begin()
		return v.unread(bytes.Repeat(testkit.Wire(testkit.Ping(strings.Repeat("p", 125))), 300))
	}},
	{"pongs without pings", "bad_request", func(v *villain) bool {
		v.connect()
		v.begin()
		v.send(testkit.Wire(testkit.Text("{}"), testkit.Text("{}"), testkit.Text("{}\n{}")))
		if code, _, err := v.c.Closed(); err != nil || code != 3501 {
			v.t.complain("%s: closed with %d, %v", v.kind, code, err)
		}
		return true
	}},
}

// hostileFloods send bursts of frames or commands at once, once a round, each of
// which has an answer. They read, and answer pings.
var hostileFloods = []struct {
	name  string
	path  string
	first bool
	burst []byte
	count func(opcode byte, payload []byte) int // of answers
}{
	{"tiny frames", "/echo", false, bytes.Repeat(testkit.Wire(testkit.Text("")), hostileBurst), func(opcode byte, _ []byte) int {
		return int(opcode & testkit.OpText)
	}},
	{"pings", "/echo", false, bytes.Repeat(testkit.Wire(testkit.Ping("")), hostileBurst), func(opcode byte, _ []byte) int {
		return int(opcode & testkit.OpPong >> 3)
	}},
	{"subscribes and unsubscribes", "/connection/websocket", true,
		testkit.Wire(testkit.Client(testkit.OpText, bytes.Repeat([]byte(
			testkit.SubscribeCommand(2, "come and go")+"\n"+`{"id":3,"unsubscribe":{"channel":"come and go"}}`+"\n"), hostileBurst/2))),
		func(_ byte, payload []byte) int { return bytes.Count(payload, []byte(`"id":`)) },
	},
}

const (
	hostileMessage = 64 << 10
	// hostileBurst is how many frames, or commands, of a flood are sent at once.
	hostileBurst = turnWork + 32
)

func (v *villain) dial() {
	c, err := testkit.Dial(v.t.server.public)
	if err != nil {
		v.t.complain("%s: %v", v.kind, err)
		return
	}
	v.c.Conn, v.c.R = c.Conn, c.R
}

// small dials so that little fits into the connection before it is full.
func (v *villain) small() {
	c, err := dialSmall(v.t.server.public)
	if err != nil {
		v.t.complain("%s: %v", v.kind, err)
		return
	}
	v.c.Conn, v.c.R = c.Conn, c.R
}

func (v *villain) open(path string) {
	if v.c.Conn == nil {
		v.dial()
	}
	v.send([]byte(testkit.Head(v.t.server.public, path)))
	if _, err := v.c.Upgraded(); err != nil {
		v.t.complain("%s: %v", v.kind, err)
	}
}

// connect opens a session of the client protocol and reads the replies.
func (v *villain) connect(commands ...string) {
	v.open("/connection/websocket")
	all := append([]string{testkit.ConnectCommand(v.t.token)}, commands...)
	v.send(testkit.Wire(testkit.Client(testkit.OpText, testkit.Commands(all...))))
	for got := 0; got < len(all); {
		m, err := v.c.Message()
		if err != nil {
			v.t.complain("%s: %v", v.kind, err)
			return
		}
		got += bytes.Count(m, []byte(`"id":`))
	}
}

// send fails in silence: the connection may have been ended.
func (v *villain) send(p []byte) bool { return v.c.Send(p) == nil }

// dribble sends a byte at a time for as long as the server bears it.
func (v *villain) dribble(p []byte) bool {
	for i := range p {
		if !v.send(p[i : i+1]) {
			return true
		}
		if err := v.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			return true
		}
		if _, err := io.Copy(io.Discard, v.c.Conn); !errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		}
		select {
		case <-v.t.over:
			return false
		default:
		}
	}
	v.t.complain("%s: the whole was taken", v.kind)
	return false
}

// hangUp reads, and says nothing, until the server ends the connection.
func (v *villain) hangUp() bool {
	if err := v.c.Ended(hostilePatience); err != nil {
		v.t.complain("%s: %v", v.kind, err)
	}
	return true
}

// unread sends p once a round, and reads nothing, until the server ends the
// connection.
func (v *villain) unread(p []byte) bool {
	for rest := p; v.wait(); {
		_ = v.c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := v.c.Write(rest)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		}
		if rest = rest[n:]; len(rest) == 0 {
			rest = p
		}
	}
	return false
}

// flooders are a hundred of one flood.
type flooders struct {
	t       *hostileTest
	name    string
	dense   *testkit.Dense
	waits   []int // for answers, by flooder
	bursts  int
	answers int
}

func newFlooders(t *testing.T, h *hostileTest, kind int) *flooders {
	k := hostileFloods[kind]
	f := &flooders{t: h, name: k.name, waits: make([]int, hostileOfKind)}
	o := testkit.DenseOptions{Addr: h.server.public, Path: k.path, Frame: func(i int, opcode byte, payload []byte) {
		if f.waits[i] > 0 {
			n := k.count(opcode, payload)
			f.waits[i] -= n
			f.answers += n
		}
	}}
	if k.first {
		o.Replies, o.First = 1, func(int) []byte { return []byte(testkit.ConnectCommand(h.token)) }
	}
	var err error
	if f.dense, err = testkit.NewDense(o); err != nil {
		t.Fatal(err)
	}
	if err := f.dense.Open(t.Context(), hostileOfKind); err != nil {
		t.Fatal(err)
	}
	return f
}

// run sends the bursts, each round of who has all answers.
func (f *flooders) run(ctx context.Context, burst []byte) {
	defer func() { _ = f.dense.Close(true) }()
	for {
		f.t.mu.Lock()
		round := f.t.round
		f.t.mu.Unlock()
		over := false
		err := f.dense.Until(ctx, func() bool {
			select {
			case <-f.t.over:
				over = true
				return true
			case <-round:
				return true
			default:
				return false
			}
		})
		// A pong waits behind its own flood: on a slow machine it may come too late.
		if st := f.dense.Stats(); err != nil || st.Closed > st.Codes[1002]+st.Codes[3012] {
			f.t.complain("%s: %v, %+v", f.name, err, st)
			return
		}
		if over {
			return
		}
		for i := range f.waits {
			if f.waits[i] == 0 {
				f.waits[i] = hostileBurst
				f.bursts++
				f.dense.SendWire(i, burst)
			}
		}
	}
}

// hostilePatience is how long anything may take: it bounds a failing test.
const hostilePatience = time.Minute

func TestHostilePeers(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Loops, o.Echo = 2, true
		o.WebSocket.MessageSize = hostileMessage
		o.Limits.HandshakeTimeout = time.Second
		o.Limits.MessageTimeout = 2 * time.Second
		o.Limits.PendingBytes = 64 << 10
		o.Heartbeat.Interval, o.Heartbeat.Timeout, o.Heartbeat.Misses = 4*time.Second, 3*time.Second, 2
		o.Logger = nil
		o.Log.Level = "error"
	})
	s.HandleRPC("echo", func(_ context.Context, r handler.RPCRequest) ([]byte, error) { return r.Data, nil })
	h := &hostileTest{server: s, token: token("villain", time.Hour), over: make(chan struct{}), wrong: make(chan string, 20), left: map[string]int{}}
	h.round = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), hostilePatience)
	defer cancel()
	var villains sync.WaitGroup
	defer villains.Wait()
	end := sync.OnceFunc(func() { close(h.over) })
	defer end()

	good := newGoodOnes(t, s, hostileGood)
	defer good.close()
	good.round(ctx) // without the others

	for _, kind := range hostileKinds {
		for i := range hostileOfKind {
			h.set.Add(1)
			if kind.reason != "" {
				h.ends(kind.name, 1)
			}
			villains.Go(func() {
				v := &villain{t: h, c: &testkit.Conn{}, i: i, kind: kind.name}
				defer func() {
					if v.c.Conn != nil {
						_ = v.c.Reset()
					}
				}()
				if ended := kind.run(v); ended && kind.reason != "" {
					h.ends(kind.name, -1)
				}
			})
		}
	}
	var floods []*flooders
	for i := range hostileFloods {
		floods = append(floods, newFlooders(t, h, i))
	}
	h.set.Wait()
	for i, f := range floods {
		villains.Go(func() { f.run(ctx, hostileFloods[i].burst) })
	}
	good.round(ctx)
	flood := []byte(testkit.Blob(hostileMessage / 2))
	rounds := 0
	for ; rounds < hostileRounds || h.ends("", 0) > 0; rounds++ {
		if ctx.Err() != nil {
			h.mu.Lock()
			defer h.mu.Unlock()
			t.Fatalf("not ended: %v", h.left)
		}
		h.next()
		for range 4 {
			if err := s.Publish(ctx, "flood", flood); err != nil {
				t.Fatal(err)
			}
		}
		good.round(ctx)
	}
	st := s.NetStats()
	end()
	villains.Wait()
	good.round(ctx)
	close(h.wrong)
	for w := range h.wrong {
		t.Error(w)
	}
	t.Logf("%d rounds beside %d hostile peers; closed: %v", rounds, (len(hostileKinds)+len(floods))*hostileOfKind, st.Closes)
	for _, f := range floods {
		t.Logf("%s: %d bursts, %d answers", f.name, f.bursts, f.answers)
		if f.answers < hostileOfKind*hostileBurst {
			t.Error("that is no flood")
		}
	}
	putOffs := uint64(0)
	for i, l := range st.Loops {
		t.Logf("loop %d: at most %d frames and commands, %d bytes of one peer at once, %d posts a turn; put off %d times",
			i, l.MostWork, l.MostBytes, l.MostPosts, l.PutOffs)
		if l.MostWork > turnWork || l.MostBytes > turnBytes || l.MostPosts > turnPosts {
			t.Error("a turn has exceeded its bound")
		}
		putOffs += l.PutOffs
	}
	if putOffs == 0 {
		t.Error("nothing was put off: the floods were none")
	}
	// Who never reads is slow, or misses its pongs, or has half a frame in a write
	// that did not get through, or is given up by the kernel, whatever comes first;
	// and a flooder, or who sends half a frame, may miss its pongs.
	const neverRead, halfFrames = 4 * hostileOfKind, 3 * hostileOfKind
	bounds := map[string]struct{ least, most uint64 }{"peer_gone": {0, neverRead}}
	for _, kind := range hostileKinds {
		if kind.reason != "" {
			b := bounds[kind.reason]
			bounds[kind.reason] = struct{ least, most uint64 }{b.least + hostileOfKind, b.most + hostileOfKind}
		}
	}
	for reason, b := range bounds {
		switch reason {
		case "slow":
			b.least = 1
		case "message_timeout":
			b.least, b.most = 1, halfFrames+neverRead
		case "no_pong":
			b.most += neverRead + halfFrames + hostileOfKind
		case "pong_timeout":
			b.least, b.most = 0, neverRead+3*hostileOfKind
		}
		if n := st.Closes[reason]; n < b.least || n > b.most {
			t.Errorf("%d closed for %s, want %d to %d", n, reason, b.least, b.most)
		}
	}
	for reason := range st.Closes {
		if _, ok := bounds[reason]; !ok {
			t.Errorf("%d closed for %s", st.Closes[reason], reason)
		}
	}
	eventually(t, "the hostile ones leave nothing behind", func() bool {
		st := s.NetStats()
		waits := st.PendingBytes
		for _, l := range st.Loops {
			waits += l.PutOffBytes + l.InboxBytes
		}
		return st.Open == hostileGood && st.Sessions == hostileGood && waits == 0 && s.SessionRegistry().Count() == hostileGood
	})
}
