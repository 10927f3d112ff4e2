package topic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	fdelta "github.com/shadowspore/fossil-delta"

	"perch/session"
)

// The recovery model lets clients come, go and come back with their positions,
// over loops that the test steps and a broker that answers at once or later,
// while histories run over and end, and holds what they get against an oracle:
// never a gap, a duplicate or an inversion, and insufficient state only where
// the history did not have it.

var recoverSeeds = flag.Int("recover-seeds", 1, "times as many seeds for the recovery model")

const (
	recoverHeld  = 8 << 10
	recoverLimit = 9
	recoverMeta  = 3 * time.Minute
)

// documentOf is the payload with a number: a few of them have much in common.
func documentOf(number uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, number)
	b = append(b, bytes.Repeat([]byte("state of the device, "), 3)...)
	return fmt.Appendf(b, "%d", number/2)
}

func documentNumber(b []byte) (number uint32, whole bool) {
	if len(b) < 4 {
		return 0, false
	}
	number = binary.BigEndian.Uint32(b)
	return number, bytes.Equal(b, documentOf(number))
}

// recoverEncoders make frames that say what they are: topic, form, offset, length
// and payload or patch.
func recoverEncoders() Encoders {
	encode := func(name string, p *Publication, form Form, data []byte) ([]byte, error) {
		b := binary.BigEndian.AppendUint64([]byte{name[len(name)-1], byte(form)}, p.Offset)
		b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
		return append(b, data...), nil
	}
	return Encoders{session.EncodingJSON: encode, session.EncodingProtobuf: encode}
}

const recoverHeader = 14

type recoverPeer struct {
	fakePeer
	loop    *fakeLoop
	clients map[string]*modelClient
	asked   int // recoveries of this session without an answer
}

type recoverModel struct {
	fail   func(format string, args ...any)
	rng    *rand.Rand
	clock  *fakeClock
	broker *lateBroker
	topics *Topics
	loops  []*fakeLoop
	names  []string
	oracle map[string]*oracleTopic
	peers  []*recoverPeer
	next   uint32
	depth  int

	got, recovered, unrecovered, losses, refused, epochs int
}

type recoverConfig struct {
	name         string
	loops, peers int
	room         int // of each loop's inbox
	atOnce       int // of 10 answers
	pass         time.Duration
}

func newRecoverModel(t testing.TB, seed uint64, cfg recoverConfig) *recoverModel {
	m := &recoverModel{fail: t.Fatalf, rng: rand.New(rand.NewPCG(seed, 5)), clock: newFakeClock(), oracle: make(map[string]*oracleTopic)}
	m.broker = &lateBroker{Memory: NewMemory(MemoryOptions{Now: m.clock.now, MetaTTL: recoverMeta})}
	m.broker.now = func() bool { return m.rng.IntN(10) < cfg.atOnce }
	history := NamespaceOptions{HistorySize: 7, HistoryTTL: time.Minute, AllowedDeltaTypes: []string{DeltaFossil}}
	cached := history
	cached.Name, cached.ForceRecoveryMode = "cache", RecoverCache
	m.topics = newTopics(t, Options{
		Broker: m.broker, Default: history, Namespaces: []NamespaceOptions{cached}, Encoders: recoverEncoders(),
		HeldBytes: recoverHeld, RecoveryLimit: recoverLimit, PositionInterval: time.Hour, Lost: m.lost,
	})
	m.names = []string{"a", "b", "cache:c"}
	for _, name := range m.names {
		m.oracle[name] = &oracleTopic{}
	}
	for i := range cfg.loops {
		m.loops = append(m.loops, newFakeLoop(t, i))
		m.loops[i].limit = cfg.room
	}
	for i := range cfg.peers {
		p := &recoverPeer{loop: m.loops[i%cfg.loops], clients: make(map[string]*modelClient)}
		for _, name := range m.names {
			p.clients[name] = &modelClient{name: name}
		}
		p.topics = m.topics
		p.onWrite = func(frame []byte) { m.written(p, frame) }
		p.open(p.loop, session.EncodingJSON+session.Encoding(i%2))
		m.peers = append(m.peers, p)
	}
	return m
}

func (m *recoverModel) namespace(name string) *Namespace {
	ns, err := m.topics.Namespace(name)
	if err != nil {
		m.fail("%v", err)
	}
	return ns
}

// observe follows a topic's epoch: a new one is right only where nobody has used
// the topic for long and nobody but one who has just come is subscribed.
func (m *recoverModel) observe(name string, comer *modelClient) *oracleTopic {
	o := m.oracle[name]
	s := m.broker.find(name)
	if s == nil {
		return o
	}
	now := m.clock.now()
	if s.epoch != o.epoch {
		if o.epoch != "" {
			m.epochs++
			if now.Sub(o.used) < recoverMeta {
				m.fail("%s: a new epoch %s after its last use", name, now.Sub(o.used))
			}
			for _, p := range m.peers {
				if c := p.clients[name]; c != comer && c.state != subNone && !c.plain {
					m.fail("%s: a new epoch under a subscriber", name)
				}
			}
		}
		*o = oracleTopic{epoch: s.epoch}
	}
	o.used = now
	return o
}

func (m *recoverModel) subscribe(p *recoverPeer, name string) {
	c := p.clients[name]
	if c.state != subNone || p.s.Closed() {
		return
	}
	ns := m.namespace(name)
	c.attempt++
	c.delta, c.plain = m.rng.IntN(2) == 0, m.rng.IntN(8) == 0
	c.room, c.base, c.due = 0, nil, nil
	if err := m.topics.Subscribe(&p.s, name, SubscribeOptions{Position: !c.plain, Delta: c.delta}); err != nil {
		m.fail("subscribe: %v", err)
	}
	if c.plain {
		c.state = subLive
		return
	}
	c.state = subReading
	c.request = RecoverRequest{Recover: c.known && m.rng.IntN(10) > 0 || m.rng.IntN(3) == 0, Cache: ns.Cache()}
	if c.known {
		c.request.Since = c.at
		if m.rng.IntN(20) == 0 {
			c.request.Since.Epoch = ""
		}
	}
	attempt, id := c.attempt, p.s.ID()
	p.asked++
	// What the history is to answer is said as soon as it is asked.
	if p.loop.free() >= session.PostOverhead {
		m.ask(name, c)
	}
	m.topics.Recover(&p.s, name, c.request, func(s *session.Session, got Recovered, err error) {
		p.asked--
		m.answered(p, c, s, id, attempt, got, err)
	})
}

// ask lets the oracle say what must come of a recovery that begins now.
func (m *recoverModel) ask(name string, c *modelClient) {
	m.broker.Memory.History(name, Filter{}, func([]*Publication, Position, error) {})
	o := m.observe(name, c)
	c.top = o.top()
	c.numbers, c.ok = o.expect(c.request, m.namespace(name), recoverLimit, m.clock.now())
}

func (m *recoverModel) answered(p *recoverPeer, c *modelClient, s *session.Session, id session.ID, attempt int, got Recovered, err error) {
	ended := c.attempt != attempt
	switch {
	case s != &p.s || s.ID() != id:
		m.fail("the answer is for another session")
	case errors.Is(err, ErrFull) && !ended && p.loop.limit < fakeRoom:
		m.refused++
		c.end()
		return
	case ended != errors.Is(err, ErrNotAvailable) || !ended && err != nil:
		m.fail("recovery: %v, ended before: %v", err, ended)
	case ended:
		return
	case c.state != subReading:
		m.fail("a second answer")
	}
	if wrong := c.got(&got); wrong != "" {
		m.fail("%s since %+v of %+v: %s: %v at %+v, recovered %v; want %v", c.name, c.request.Since, c.top, wrong,
			offsets(got.Publications), got.Position, got.OK, c.numbers)
	}
	if got.OK {
		m.recovered++
	} else if c.request.Recover {
		m.unrecovered++
	}
	c.state = subTold
	if m.rng.IntN(2) == 0 {
		m.live(p, c)
	}
}

func (m *recoverModel) live(p *recoverPeer, c *modelClient) {
	if c.state == subTold {
		c.state = subLive
		m.topics.Live(&p.s, c.name)
	}
}

func (m *recoverModel) lost(s *session.Session, name string, _ bool) {
	for _, p := range m.peers {
		if &p.s != s {
			continue
		}
		c := p.clients[name]
		if c.state != subLive || c.room <= recoverHeld {
			m.fail("%s: a loss at %+v of %+v, %d bytes were to be held back", name, c.at, m.oracle[name].top(), c.room)
		}
		m.losses++
		c.end()
		m.topics.Unsubscribe(s, name)
	}
}

func (m *recoverModel) unsubscribe(p *recoverPeer, name string) {
	c := p.clients[name]
	if in := c.state != subNone; m.topics.Unsubscribe(&p.s, name) != in {
		m.fail("unsubscribe said %v", !in)
	}
	c.end()
}

// close ends a session; its client comes back for what it has.
func (m *recoverModel) close(p *recoverPeer) {
	p.s.Close(session.ReasonSlow)
	p.asked = 0
	for _, c := range p.clients {
		c.end()
	}
}

func (m *recoverModel) publish(name string) {
	m.next++
	number, o := m.next, m.oracle[name]
	p := &Publication{Data: documentOf(number)}
	skip := m.rng.IntN(12) == 0
	m.topics.Publish(m.namespace(name), name, p, PublishRequest{SkipHistory: skip, Delta: m.rng.IntN(5) > 0}, func(at Position, err error) {
		if !skip {
			o = m.observe(name, nil)
		}
		if err != nil {
			m.refused++
			return
		}
		if !skip {
			o.log = append(o.log, oracleEntry{number, m.clock.now()})
			if at != o.top() {
				m.fail("%s: published at %+v, want %+v", name, at, o.top())
			}
		}
		for _, peer := range m.peers {
			if c := peer.clients[name]; c.state != subNone {
				c.room += session.PostOverhead + p.weight()
				if c.plain || skip {
					c.due = append(c.due, number)
				}
			}
		}
	})
}

// written is the oracle's look at what a session gets, and then whatever may
// come of a write.
func (m *recoverModel) written(p *recoverPeer, frame []byte) {
	for len(frame) > 0 {
		name := m.names[frame[0]-'a']
		c, form, offset := p.clients[name], Form(frame[1]), binary.BigEndian.Uint64(frame[2:])
		n := recoverHeader + int(binary.BigEndian.Uint32(frame[10:]))
		data := frame[recoverHeader:n]
		frame = frame[n:]
		if form == FormPatch {
			whole, err := fdelta.Apply(c.base, data)
			if err != nil {
				m.fail("%s, offset %d: a patch of something else: %v", name, offset, err)
			}
			data = whole
		}
		number, whole := documentNumber(data)
		if !whole || c.delta != (form != FormPlain) {
			m.fail("%s, offset %d: form %d of %q", name, offset, form, data)
		}
		if wrong := c.live(m.oracle[name], offset, number); wrong != "" {
			m.fail("%s: publication %d, offset %d, at %+v of %+v: %s", name, number, offset, c.at, m.oracle[name].top(), wrong)
		}
		c.base = data
		m.got++
	}
	if m.depth > 2 || m.rng.IntN(25) != 0 {
		return
	}
	m.depth++
	defer func() { m.depth-- }()
	if m.rng.IntN(3) == 0 {
		m.close(p)
	}
	if m.rng.IntN(2) == 0 {
		m.act(p.loop)
	}
}

// act does something that code of loop may do; nil: code of no loop.
func (m *recoverModel) act(loop *fakeLoop) {
	name := m.names[m.rng.IntN(len(m.names))]
	p := m.peers[m.rng.IntN(len(m.peers))]
	if loop != nil && p.loop != loop {
		m.publish(name)
		return
	}
	switch k := m.rng.IntN(20); {
	case p.s.Closed():
		p.open(p.loop, session.EncodingJSON+session.Encoding(m.rng.IntN(2)))
		m.subscribe(p, name)
	case k < 5:
		m.subscribe(p, name)
	case k < 8:
		m.live(p, p.clients[name])
	case k < 9:
		m.unsubscribe(p, name)
	case k < 10:
		m.close(p)
	default:
		m.publish(name)
	}
}

// outside is what happens to no loop.
func (m *recoverModel) outside(pass time.Duration) {
	switch m.rng.IntN(30) {
	case 0:
		m.clock.add(time.Duration(m.rng.Int64N(int64(pass))))
	case 1:
		m.broker.sweep()
	case 2:
		name := m.names[m.rng.IntN(len(m.names))]
		m.topics.RemoveHistory(m.namespace(name), name, func(error) {})
		if o := m.oracle[name]; m.broker.find(name) != nil && m.broker.find(name).epoch == o.epoch {
			o.removed = o.top().Offset
		}
	case 3:
		// Nobody is there for long: topics are forgotten.
		if m.rng.IntN(10) == 0 {
			for _, p := range m.peers {
				m.close(p)
			}
			m.settle()
			m.clock.add(recoverMeta + time.Minute)
			m.broker.sweep()
		}
	default:
		m.broker.answer(m.rng.IntN(3))
	}
}

func (m *recoverModel) drain() {
	for more := true; more; {
		more = m.broker.answer(-1) > 0
		for _, l := range m.loops {
			more = l.step() || more
		}
	}
}

// settle lets all come to its end and compares.
func (m *recoverModel) settle() {
	m.depth = 3 // no more surprises
	m.drain()
	for _, p := range m.peers {
		for _, c := range p.clients {
			m.live(p, c)
		}
	}
	for i := range m.topics.shards {
		m.topics.checkShard(&m.topics.shards[i])
		m.topics.checkShard(&m.topics.shards[i])
	}
	m.drain()
	m.depth = 0
	for i, p := range m.peers {
		if p.asked != 0 {
			m.fail("peer %d: %d recoveries were never answered", i, p.asked)
		}
		for _, c := range p.clients {
			switch o := m.oracle[c.name]; {
			case c.state == subNone:
			case c.state != subLive:
				m.fail("peer %d, %s: in state %d", i, c.name, c.state)
			case len(c.due) > 0:
				m.fail("peer %d, %s: %v never came", i, c.name, c.due)
			case !c.plain && c.at != o.top():
				m.fail("peer %d, %s: at %+v of %+v", i, c.name, c.at, o.top())
			}
		}
	}
	for _, name := range m.names {
		m.observe(name, nil) // the check has used it
	}
}

func (m *recoverModel) run(steps int, pass time.Duration) {
	for i := range steps {
		switch k := m.rng.IntN(10); {
		case k < 4:
			m.act(nil)
		case k < 5:
			m.outside(pass)
		default:
			m.loops[m.rng.IntN(len(m.loops))].step()
		}
		if i%700 == 699 {
			m.settle()
		}
	}
	m.settle()
}

var recoverConfigs = []recoverConfig{
	{"all at once", 1, 6, fakeRoom, 10, 20 * time.Second},
	{"late answers", 2, 8, fakeRoom, 0, 20 * time.Second},
	{"some late", 3, 30, fakeRoom, 5, time.Minute},
	{"several slices", 2, 3 * sliceSubscribers, fakeRoom, 3, 30 * time.Second},
	{"little room", 2, 12, 2500, 3, 20 * time.Second},
	{"little time", 2, 8, fakeRoom, 3, 3 * time.Minute},
}

func TestRecoverModel(t *testing.T) {
	for _, cfg := range recoverConfigs {
		for seed := range uint64(4 * *recoverSeeds) {
			t.Run(fmt.Sprintf("%s, seed %d", cfg.name, seed), func(t *testing.T) {
				m := newRecoverModel(t, seed, cfg)
				m.run(40_000/raceDivisor, cfg.pass)
				checkQuiet(t, m.topics, m.loops...)
				t.Logf("%d publications, %d delivered, %d recovered, %d not, %d lost, %d refused, %d epochs",
					m.next, m.got, m.recovered, m.unrecovered, m.losses, m.refused, m.epochs)
				if m.got == 0 || m.recovered == 0 || m.unrecovered == 0 || cfg.room < fakeRoom && m.refused == 0 {
					t.Error("the run shows nothing")
				}
				for _, p := range m.peers {
					m.close(p)
				}
				m.drain()
				m.clock.add(24 * time.Hour)
				m.broker.sweep()
				if c := m.topics.Counts(); c.Topics != 0 || c.Subscriptions != 0 || m.broker.Counts() != (MemoryCounts{}) {
					t.Errorf("left when all have gone: %+v, %+v", c, m.broker.Counts())
				}
			})
		}
	}
}
