package perch_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"perch/internal/testkit"
)

// stayers are the sessions of the soak that stay: each follows one topic.
type stayers struct {
	k            *soak
	dense        *testkit.Dense
	n            int
	closed       bool
	at           []uint64 // the last publication of each
	acknowledged [soakNames]atomic.Uint64
}

func stayTopic(i int) string { return fmt.Sprintf("stay:%d", i) }

func newStayers(k *soak, n int) *stayers {
	k.t.Helper()
	s := &stayers{k: k, n: n, at: make([]uint64, n)}
	token := token("stayer", 24*time.Hour)
	var err error
	s.dense, err = testkit.NewDense(testkit.DenseOptions{
		Addr: k.server.public, Path: "/connection/websocket", Replies: 2, Seen: s.line,
		First: func(i int) []byte {
			return testkit.Commands(testkit.ConnectCommand(token), testkit.SubscribeCommand(2, stayTopic(i%soakNames)))
		},
	})
	if err != nil {
		k.t.Fatal(err)
	}
	if err := s.dense.Open(k.t.Context(), n); err != nil {
		k.t.Fatal(err)
	}
	return s
}

// line takes a publication: its number is its offset, and one more than the last.
func (s *stayers) line(i int, line []byte) {
	if !bytes.HasPrefix(line, []byte(`{"push"`)) {
		return
	}
	_, rest, ok := bytes.Cut(line, []byte(`"data":`))
	end := bytes.IndexAny(rest, ",}")
	if !ok || end < 0 {
		s.k.complain("session %d: %.100q", i, line)
		return
	}
	number, err := strconv.ParseUint(string(rest[:end]), 10, 64)
	if err != nil || number != s.at[i]+1 {
		s.k.complain("session %d: behind %d came %.100q", i, s.at[i], line)
	}
	s.at[i] = number
}

// follow reads until ctx ends.
func (s *stayers) follow(ctx context.Context) {
	_ = s.dense.Until(context.WithoutCancel(ctx), func() bool { return ctx.Err() != nil })
}

// complete reads until everybody has all, and ended.
func (s *stayers) complete(ended <-chan struct{}) {
	s.k.t.Helper()
	ctx, cancel := context.WithTimeout(s.k.t.Context(), 2*soakPatience)
	defer cancel()
	over := false
	err := s.dense.Until(ctx, func() bool {
		select {
		case <-ended:
			over = true
		default:
		}
		return over && s.behind() == 0
	})
	if st := s.dense.Stats(); err != nil || st.Closed > 0 {
		s.k.t.Errorf("of those who stay, %d are behind, %d have been closed: %v", s.behind(), st.Closed, err)
	}
	<-ended
}

// behind is how many have not got all that was acknowledged.
func (s *stayers) behind() (n int) {
	for i, at := range s.at {
		if at != s.acknowledged[i%soakNames].Load() {
			n++
		}
	}
	return n
}

// hold lets d go by, in which pings are answered.
func (s *stayers) hold(d time.Duration) {
	s.k.t.Helper()
	if s.closed {
		<-time.After(d)
	} else if err := s.dense.Hold(s.k.t.Context(), d); err != nil {
		s.k.t.Fatal(err)
	}
}

func (s *stayers) close() {
	if !s.closed {
		s.closed = true
		_ = s.dense.Close(true)
	}
}

// soakVisitors come and go at once.
const soakVisitors = 64

// visit is one connection of somebody who does not stay.
func (k *soak) visit(rng *rand.Rand) {
	k.visits.Add(1)
	dial := testkit.Dial
	if rng.IntN(3) == 0 {
		dial = dialSmall
	}
	c, err := dial(k.server.public)
	if err != nil {
		k.complain("visit: %v", err)
		return
	}
	defer func() {
		if rng.IntN(2) == 0 {
			_ = c.Reset()
		}
		_ = c.Close()
	}()
	soakVisits[rng.IntN(len(soakVisits))](k, rng, c)
}

var soakGarbage = [][]byte{
	testkit.Wire(testkit.Text("x").Unmasked()),
	testkit.Wire(testkit.Text("x").Reserved(4)),
	testkit.Wire(testkit.Client(3, nil)),
	testkit.Wire(testkit.Ping("x").More()),
	testkit.Wire(testkit.Continuation("x")),
	testkit.Wire(testkit.Text("x").Length(testkit.Length64)),
	testkit.Wire(testkit.Text("\xff\xfe")),
	testkit.Wire(testkit.Text("x").Declare(1 << 40)),
	testkit.Wire(testkit.Text("not json")),
	testkit.Wire(testkit.Text("{}")),
	testkit.Wire(testkit.Binary([]byte("x"))),
	testkit.Wire(testkit.Close(1005, "")),
	testkit.Wire(testkit.Text(`{"id":9,"connect":{}}`)),
}

// soakVisits are what they do. What they send may fail: they may be ended.
var soakVisits = []func(k *soak, rng *rand.Rand, c *testkit.Conn){
	// A handshake, cut off anywhere.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		head := testkit.Head(k.server.public, "/connection/websocket")
		_ = c.Send([]byte(head[:rng.IntN(len(head))]))
	},
	// A session, cut off anywhere.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		wire := append([]byte(testkit.Head(k.server.public, "/connection/websocket")), k.first(rng)...)
		_ = c.Send(wire[:rng.IntN(len(wire))])
		k.read(rng, c)
	},
	// One that listens for a while.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		k.session(rng, c)
		k.read(rng, c)
		if rng.IntN(2) == 0 {
			_ = c.SendFrames(testkit.Close(1000, ""))
			k.read(rng, c)
		}
	},
	// Garbage.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		k.session(rng, c)
		_ = c.Send(soakGarbage[rng.IntN(len(soakGarbage))])
		k.read(rng, c)
	},
	// A method that is stuck, with commands behind it.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		k.session(rng, c)
		_ = c.Send(testkit.Wire(testkit.Text(`{"id":7,"rpc":{"method":"stuck","data":1}}`), testkit.Text(`{"id":8,"rpc":{"method":"echo","data":1}}`),
			testkit.Text(`{"id":9,"unsubscribe":{"channel":"fill:1"}}`)))
		k.read(rng, c)
	},
	// A flood of commands, and away.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		k.session(rng, c)
		_ = c.Send(bytes.Repeat(testkit.Wire(testkit.Text(testkit.SubscribeCommand(7, "x")), testkit.Text(`{"id":8,"unsubscribe":{"channel":"x"}}`)), 50+rng.IntN(500)))
		if rng.IntN(2) == 0 {
			k.read(rng, c)
		}
	},
	// A peer that reads nothing, and is pushed at.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		k.session(rng, c)
		_ = c.SendFrames(testkit.Text(testkit.SubscribeCommand(8, "flood")))
		k.pause(rng)
	},
	// One that publishes, with history and presence.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		k.session(rng, c)
		name := fmt.Sprintf("fill:%d", rng.IntN(8))
		_ = c.SendFrames(testkit.Client(testkit.OpText, testkit.Commands(
			testkit.SubscribeCommand(6, name), testkit.PublishCommand(7, name, `"hello"`), `{"id":8,"presence":{"channel":"`+name+`"}}`, `{"send":{"data":1}}`)))
		k.read(rng, c)
	},
	// An event stream.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		head := testkit.HeadOf("GET "+ssePath+" HTTP/1.1", "Host: "+k.server.public, "Authorization: Bearer "+k.token, "Accept: text/event-stream")
		_ = c.Send([]byte(head[:len(head)-rng.IntN(2)*rng.IntN(len(head))]))
		k.read(rng, c)
	},
	// HTTP, of which half may be missing.
	func(k *soak, rng *rand.Rand, c *testkit.Conn) {
		body := "grant_type=client_credentials"
		post := testkit.HeadOf("POST /v1/token HTTP/1.1", "Host: "+k.server.public, "Content-Type: application/x-www-form-urlencoded",
			"Content-Length: "+strconv.Itoa(len(body))) + body
		for range 1 + rng.IntN(3) {
			_ = c.Send([]byte(post[:len(post)-rng.IntN(2)*rng.IntN(len(post))]))
		}
		k.read(rng, c)
	},
}

// first is the first message of a visitor.
func (k *soak) first(rng *rand.Rand) []byte {
	commands := []string{testkit.ConnectCommand(k.token)}
	for i := range rng.IntN(4) {
		commands = append(commands, testkit.SubscribeCommand(2+i, fmt.Sprintf("fill:%d", i+rng.IntN(2)*rng.IntN(1000))))
	}
	return testkit.Wire(testkit.Client(testkit.OpText, testkit.Commands(commands...)))
}

func (k *soak) session(rng *rand.Rand, c *testkit.Conn) {
	_ = c.Send(append([]byte(testkit.Head(k.server.public, "/connection/websocket")), k.first(rng)...))
	if resp, err := c.Response("GET"); err != nil || resp.StatusCode != 101 {
		if err == nil || !strings.Contains(err.Error(), "reset") {
			k.complain("visit: upgrade: %v, %v", resp, err)
		}
	}
}

// read takes what comes, for a moment.
func (k *soak) read(rng *rand.Rand, c *testkit.Conn) {
	_ = c.Ended(time.Duration(1+rng.IntN(100)) * time.Millisecond)
}

// pause does nothing for a moment.
func (k *soak) pause(rng *rand.Rand) {
	<-time.After(time.Duration(rng.IntN(600)) * time.Millisecond)
}
