package perch_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"math/rand/v2"
	"time"

	pb "github.com/centrifugal/protocol"
	fdelta "github.com/shadowspore/fossil-delta"

	"perch/internal/testkit"
	"perch/topic"
)

// modelClient is a client of the model. It keeps its positions as an SDK does.
type modelClient struct {
	m        *recoveryModel
	rng      *rand.Rand
	rest     <-chan struct{}
	protobuf bool
	topics   map[string]*modelPlace

	// Of the connection.
	conn   *testkit.Conn
	r      *bufio.Reader
	id     uint32
	asks   map[uint32]string // the topic of a subscribe that is not answered, by id
	failed bool              // a command was refused, or a subscription ended: it begins anew
}

// modelPlace is where a client stands in a topic.
type modelPlace struct {
	modelTopic
	at    topic.Position // of the last publication taken
	since topic.Position // what was asked for
	known bool           // at is something
	live  bool           // subscribed: what comes is taken
	base  []byte         // the payload before, where deltas are agreed on
}

func newModelClient(m *recoveryModel, k int, rest <-chan struct{}) *modelClient {
	c := &modelClient{m: m, rng: rand.New(rand.NewPCG(m.seed, uint64(k))), rest: rest, protobuf: k%2 == 1, topics: map[string]*modelPlace{}}
	for _, mt := range m.topics {
		mt.delta = mt.delta && k%3 > 0
		c.topics[mt.name] = &modelPlace{modelTopic: mt}
	}
	return c
}

// modelPatience is how long a client may take to get all when nothing more is
// published.
const modelPatience = 20 * time.Second

func (c *modelClient) run(ctx context.Context) {
	var resting time.Time
	for {
		if c.resting() {
			if resting.IsZero() {
				resting = time.Now()
			}
			if c.complete() {
				return
			}
			if time.Since(resting) > modelPatience {
				for _, p := range c.topics {
					c.m.complain("%s: a client stands at %v for good, the topic at %v", p.name, p.at, c.m.top(p.name))
				}
				return
			}
		}
		c.session(ctx)
	}
}

func (c *modelClient) resting() bool {
	select {
	case <-c.rest:
		return true
	default:
		return false
	}
}

// complete tells whether the client has all that was published.
func (c *modelClient) complete() bool {
	for _, p := range c.topics {
		top := c.m.top(p.name)
		forgotten := p.options.HistoryMetaTTL > 0 && p.at.Epoch != top.Epoch
		// What is not known to be stored may stand behind the top.
		further := c.m.fleet != nil && p.at.Epoch == top.Epoch && p.at.Offset > top.Offset
		if p.at != top && !forgotten && !further {
			return false
		}
	}
	return true
}

// session is one connection, cut off at any byte or ended otherwise.
func (c *modelClient) session(ctx context.Context) {
	path := "/connection/websocket"
	if c.protobuf {
		path += "?format=protobuf"
	}
	conn, err := testkit.Open(c.m.address(c.rng), path)
	if err != nil {
		c.m.fault("connect: %v", err)
		c.pause(ctx, 50*time.Millisecond)
		return
	}
	defer conn.Close()
	limit := int64(1) << 40
	if !c.resting() && c.rng.IntN(2) == 0 {
		limit = c.rng.Int64N(30000)
	}
	c.failed = false
	c.conn, c.r, c.id, c.asks = conn, bufio.NewReader(io.LimitReader(conn.R, limit)), 0, map[uint32]string{}
	identity := token("model", time.Hour)
	commands := []*pb.Command{{Connect: &pb.ConnectRequest{Token: identity}}}
	for name, p := range c.topics {
		p.live = false
		if c.resting() || c.rng.IntN(4) > 0 {
			commands = append(commands, c.subscribe(name))
		}
	}
	if !c.send(commands...) {
		return
	}
	for {
		if c.resting() && c.complete() {
			return
		}
		if err := conn.SetReadDeadline(time.Now().Add(400 * time.Millisecond)); err != nil {
			return
		}
		f, err := testkit.ReadFrame(c.r)
		if err != nil {
			if c.rng.IntN(2) == 0 {
				_ = conn.Reset() // else FIN
			}
			return
		}
		if f.Opcode == testkit.OpClose {
			c.m.fault("closed with %d %s", f.CloseCode(), f.CloseReason())
			return
		}
		c.message(f.Payload)
		if c.failed {
			c.pause(ctx, 50*time.Millisecond)
			return
		}
		if !c.resting() && !c.act(ctx) {
			return
		}
	}
}

// act does something that clients do; false: the connection has ended.
func (c *modelClient) act(ctx context.Context) bool {
	name := c.m.topics[c.rng.IntN(len(c.m.topics))].name
	p := c.topics[name]
	switch c.rng.IntN(150) {
	case 0:
		c.pause(ctx, 100*time.Millisecond)
	case 1, 2: // changes its mind
		if p.live {
			p.live = false
			return c.send(&pb.Command{Unsubscribe: &pb.UnsubscribeRequest{Channel: name}}, c.subscribe(name))
		}
	case 3:
		if p.live {
			p.live = false
			return c.send(&pb.Command{Unsubscribe: &pb.UnsubscribeRequest{Channel: name}})
		}
	case 4, 5:
		if !p.live && !c.asked(name) {
			return c.send(c.subscribe(name))
		}
	case 6: // half a frame, and gone
		_ = c.conn.Send([]byte{0x81, 0xfe, 0x01})
		return false
	}
	return true
}

// pause reads nothing for a while.
func (c *modelClient) pause(ctx context.Context, most time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(c.rng.Int64N(int64(most)))):
	}
}

func (c *modelClient) asked(name string) bool {
	for _, n := range c.asks {
		if n == name {
			return true
		}
	}
	return false
}

// subscribe asks for a topic from where the client stands.
func (c *modelClient) subscribe(name string) *pb.Command {
	p := c.topics[name]
	req := &pb.SubscribeRequest{Channel: name}
	if p.delta {
		req.Delta = topic.DeltaFossil
	}
	if p.since = p.at; p.known {
		req.Recover, req.Offset, req.Epoch = true, p.at.Offset, p.at.Epoch
	}
	return &pb.Command{Subscribe: req}
}

// send writes commands in one message, and numbers them.
func (c *modelClient) send(commands ...*pb.Command) bool {
	var out []byte
	for _, cmd := range commands {
		c.id++
		if cmd.Id = c.id; cmd.Subscribe != nil {
			c.asks[c.id] = cmd.Subscribe.Channel
		}
		if c.protobuf {
			raw, err := cmd.MarshalCF()
			if err != nil {
				c.m.complain("%v", err)
				return false
			}
			out = append(binary.AppendUvarint(out, uint64(len(raw))), raw...)
		} else {
			out = append(cmd.AppendJSON(out), '\n')
		}
	}
	opcode := byte(testkit.OpText)
	if c.protobuf {
		opcode = testkit.OpBinary
	}
	return c.conn.SendFrames(testkit.Client(opcode, out)) == nil
}

func (c *modelClient) message(p []byte) {
	if string(p) == "{}" || string(p) == "\x00" {
		opcode := byte(testkit.OpText)
		if c.protobuf {
			opcode = testkit.OpBinary
		}
		_ = c.conn.SendFrames(testkit.Client(opcode, p)) // the pong
		return
	}
	var d pb.ReplyDecoder = pb.NewJSONReplyDecoder(p)
	if c.protobuf {
		d = pb.NewProtobufReplyDecoder(p)
	}
	for {
		r, err := d.Decode()
		if r != nil {
			c.reply(r)
		}
		if err != nil {
			if err != io.EOF {
				c.m.complain("reply: %v: %.100q", err, p)
			}
			return
		}
	}
}

func (c *modelClient) reply(r *pb.Reply) {
	switch {
	case r.Error != nil:
		c.m.fault("%s: error %d %s", c.asks[r.Id], r.Error.Code, r.Error.Message)
		c.failed = true
	case r.Subscribe != nil:
		name := c.asks[r.Id]
		delete(c.asks, r.Id)
		if !c.asked(name) { // else it is asked for once more
			c.subscribed(c.topics[name], r.Subscribe)
		}
	case r.Push != nil && r.Push.Pub != nil:
		if p := c.topics[r.Push.Channel]; p.live {
			c.take(p, r.Push.Pub)
		}
	case r.Push != nil && r.Push.Unsubscribe != nil:
		p := c.topics[r.Push.Channel]
		c.m.fault("%s: unsubscribed at %v with %d", p.name, p.at, r.Push.Unsubscribe.Code)
		p.live, c.failed = false, true
	}
}

func (c *modelClient) subscribed(p *modelPlace, r *pb.SubscribeResult) {
	top := topic.Position{Offset: r.Offset, Epoch: r.Epoch}
	c.m.mu.Lock()
	if r.WasRecovering != p.known {
		c.m.wrong = append(c.m.wrong, p.name+": recovery was not tried")
	}
	if r.Recovered {
		c.m.recovered++
	} else {
		c.m.begun = append(c.m.begun, modelRefusal{name: p.name, top: top, at: time.Now()})
		if p.known {
			c.m.refusals = append(c.m.refusals, modelRefusal{p.name, p.since, top, time.Now()})
		}
	}
	c.m.mu.Unlock()
	if r.Recovered && top != p.since {
		c.m.complain("%s: recovered from %v, asked from %v", p.name, top, p.since)
	}
	if !r.Recovered && len(r.Publications) > 0 {
		c.m.complain("%s: publications without recovery", p.name)
	}
	p.at, p.known, p.live, p.base = top, true, true, nil
	for _, pub := range r.Publications {
		c.take(p, pub)
	}
}

// take is the next publication of a subscription.
func (c *modelClient) take(p *modelPlace, pub *pb.Publication) {
	if !c.m.follows(p, pub.Offset) {
		c.m.complain("%s: offset %d behind %d", p.name, pub.Offset, p.at.Offset)
	}
	p.at.Offset = pub.Offset
	data := pub.Data
	if p.delta {
		if !c.protobuf {
			var text string
			if err := json.Unmarshal(data, &text); err != nil {
				c.m.complain("%s: %v: %.60s", p.name, err, data)
			}
			data = []byte(text)
		}
		if pub.Delta {
			var err error
			if data, err = fdelta.Apply(p.base, data); err != nil {
				c.m.complain("%s: delta: %v", p.name, err)
			}
		}
		p.base = bytes.Clone(data)
	} else if pub.Delta {
		c.m.complain("%s: a delta that nobody has asked for", p.name)
	}
	c.m.saw(p.name, p.at, string(data))
}
