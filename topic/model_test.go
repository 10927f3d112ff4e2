package topic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"perch/session"
)

// The model test lets sessions come, go, subscribe, unsubscribe and publish at
// any moment, also from within a write, and holds what they get against an
// oracle: whoever is subscribed when a publication is handed in, and stays, gets
// it once and in order; nobody else gets it.

const (
	modelHeader = 10 // format, topic, number, length of the padding
	modelBig    = roundBytes / 3
)

var errModelFormat = errors.New("not in this format")

// modelEncoders make frames that say what they are.
func modelEncoders() Encoders {
	var t Encoders
	for _, e := range []session.Encoding{session.EncodingJSON, session.EncodingProtobuf} {
		t[e] = func(name string, p *Publication, _ Form, _ []byte) ([]byte, error) {
			if p.Tags["not"] == fmt.Sprint(e) {
				return nil, errModelFormat
			}
			b := []byte{byte(e), name[len(name)-1]}
			b = append(b, p.Data[:4]...)
			b = binary.BigEndian.AppendUint32(b, uint32(len(p.Data)-4))
			return append(b, p.Data[4:]...), nil
		}
	}
	return t
}

type modelPeer struct {
	fakePeer
	loop *fakeLoop
	// expect holds, for each topic subscribed to, what must still come.
	expect map[string][]uint32
}

type model struct {
	t      *testing.T
	rng    *rand.Rand
	topics *Topics
	loops  []*fakeLoop
	names  []string
	peers  []*modelPeer
	next   uint32
	depth  int // writes within writes
	big    []byte

	got, refused int
}

func newModel(t *testing.T, seed uint64, loops, peers, names int) *model {
	m := &model{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), big: make([]byte, modelBig),
		topics: newTopics(t, Options{Encoders: modelEncoders(), MaxSubscriptions: names}),
	}
	for i := range loops {
		m.loops = append(m.loops, newFakeLoop(t, i))
	}
	for i := range names {
		m.names = append(m.names, fmt.Sprintf("topic-%c", 'a'+i))
	}
	for i := range peers {
		p := &modelPeer{loop: m.loops[i%loops]}
		p.topics = m.topics
		p.onWrite = func(frame []byte) { m.written(p, frame) }
		m.open(p)
		m.peers = append(m.peers, p)
	}
	return m
}

func (m *model) open(p *modelPeer) {
	p.fakePeer.open(p.loop, session.EncodingJSON+session.Encoding(m.rng.IntN(2)))
	p.expect = make(map[string][]uint32)
}

func (m *model) close(p *modelPeer) {
	p.s.Close(session.ReasonSlow)
	p.expect = nil
}

func (m *model) subscribe(p *modelPeer, name string) {
	if p.s.Closed() {
		return
	}
	_, in := p.expect[name]
	err := m.topics.Subscribe(&p.s, name, SubscribeOptions{})
	if in != errors.Is(err, ErrAlreadySubscribed) || !in && err != nil {
		m.t.Fatalf("subscribe: %v, subscribed before: %v", err, in)
	}
	if !in {
		p.expect[name] = nil
	}
}

func (m *model) unsubscribe(p *modelPeer, name string) {
	_, in := p.expect[name]
	if m.topics.Unsubscribe(&p.s, name) != in {
		m.t.Fatalf("unsubscribe said %v", !in)
	}
	delete(p.expect, name)
}

func (m *model) publish(name string) {
	m.next++
	data := binary.BigEndian.AppendUint32(nil, m.next)
	if m.rng.IntN(40) == 0 {
		data = append(data, m.big...)
	}
	pub := &Publication{Data: data}
	not := session.EncodingNone
	if m.rng.IntN(20) == 0 {
		not = session.EncodingJSON + session.Encoding(m.rng.IntN(2))
		pub.Tags = map[string]string{"not": fmt.Sprint(not)}
	}
	number := m.next
	m.topics.Publish(m.topics.rules.Load().fallback, name, pub, PublishRequest{}, func(_ Position, err error) {
		if err != nil {
			m.refused++
			return
		}
		for _, p := range m.peers {
			if waits, in := p.expect[name]; in && p.s.Encoding != not {
				p.expect[name] = append(waits, number)
			}
		}
	})
}

// written is the oracle's look at what a session gets, and then whatever may
// come of a write.
func (m *model) written(p *modelPeer, frame []byte) {
	for len(frame) > 0 {
		name := fmt.Sprintf("topic-%c", frame[1])
		number := binary.BigEndian.Uint32(frame[2:])
		if session.Encoding(frame[0]) != p.s.Encoding {
			m.t.Fatalf("format %d written to a session of format %d", frame[0], p.s.Encoding)
		}
		waits, in := p.expect[name]
		switch {
		case !in:
			m.t.Fatalf("%s: publication %d for a session that is not subscribed", name, number)
		case len(waits) == 0:
			m.t.Fatalf("%s: publication %d is from before the subscription, or comes twice", name, number)
		case waits[0] != number:
			m.t.Fatalf("%s: publication %d where %d was due", name, number, waits[0])
		}
		p.expect[name] = waits[1:]
		m.got++
		frame = frame[modelHeader+binary.BigEndian.Uint32(frame[6:]):]
	}
	if m.depth > 2 || m.rng.IntN(25) != 0 {
		return
	}
	m.depth++
	defer func() { m.depth-- }()
	if m.rng.IntN(3) == 0 {
		m.close(p) // the slow consumer
	}
	if m.rng.IntN(2) == 0 {
		m.act(p.loop)
	}
}

// act does something that code of loop may do; nil: code of no loop.
func (m *model) act(loop *fakeLoop) {
	name := m.names[m.rng.IntN(len(m.names))]
	p := m.peers[m.rng.IntN(len(m.peers))]
	if loop != nil && p.loop != loop {
		m.publish(name)
		return
	}
	switch k := m.rng.IntN(20); {
	case p.s.Closed():
		m.open(p)
		m.subscribe(p, name)
	case k < 9:
		m.subscribe(p, name)
	case k < 12:
		m.unsubscribe(p, name)
	case k < 14:
		m.close(p)
	case k < 15 && loop == nil:
		m.close(p)
		m.open(p) // another peer, in the same place
	default:
		m.publish(name)
	}
}

func (m *model) drain() {
	for more := true; more; {
		more = false
		for _, l := range m.loops {
			more = l.step() || more
		}
	}
}

// settle runs all loops to their end and compares.
func (m *model) settle() {
	m.depth = 3 // no more surprises
	m.drain()
	m.depth = 0
	subscriptions := 0
	for i, p := range m.peers {
		subscriptions += len(p.expect)
		for name, waits := range p.expect {
			if len(waits) > 0 {
				m.t.Fatalf("peer %d never got publications %v of %s", i, waits, name)
			}
		}
		if n := m.topics.Count(&p.s); n != len(p.expect) {
			m.t.Fatalf("peer %d has %d subscriptions, counted %d", i, len(p.expect), n)
		}
	}
	if c := m.topics.Counts(); c.Subscriptions != subscriptions {
		m.t.Fatalf("%d subscriptions, counted %d", subscriptions, c.Subscriptions)
	}
	checkQuiet(m.t, m.topics, m.loops...)
}

func TestModel(t *testing.T) {
	for _, tt := range []struct {
		name                string
		loops, peers, names int
		steps               int
		room                int // of each loop's inbox
		seeds               uint64
	}{
		{"few sessions", 2, 8, 3, 20000, fakeRoom, 4},
		{"one long fan-out", 1, 3 * sliceSubscribers, 1, 6000, fakeRoom, 2},
		{"several slices", 3, 6 * sliceSubscribers, 4, 4000, fakeRoom, 2},
		{"little room", 3, 3 * sliceSubscribers, 2, 6000, 2 * modelBig, 2},
	} {
		for seed := range tt.seeds {
			t.Run(fmt.Sprintf("%s, seed %d", tt.name, seed), func(t *testing.T) {
				m := newModel(t, seed, tt.loops, tt.peers, tt.names)
				for _, l := range m.loops {
					l.limit = tt.room
				}
				// Most are subscribed to begin with, so that rounds are long.
				for _, p := range m.peers {
					for _, name := range m.names {
						if m.rng.IntN(3) > 0 {
							m.subscribe(p, name)
						}
					}
				}
				for i := range tt.steps {
					if m.rng.IntN(5) < 2 {
						m.act(nil)
					} else {
						m.loops[m.rng.IntN(len(m.loops))].step()
					}
					if i%1500 == 1499 {
						m.settle()
					}
				}
				m.settle()
				t.Logf("%d publications, %d refused, %d delivered", m.next, m.refused, m.got)
				if m.got == 0 || tt.room < fakeRoom && m.refused == 0 {
					t.Errorf("the run shows nothing: %d delivered, %d refused", m.got, m.refused)
				}
				for _, p := range m.peers {
					m.close(p)
				}
				m.drain()
				if c := m.topics.Counts(); c.Topics != 0 || c.Subscriptions != 0 {
					t.Errorf("left when all have gone: %d topics, %d subscriptions", c.Topics, c.Subscriptions)
				}
			})
		}
	}
}
