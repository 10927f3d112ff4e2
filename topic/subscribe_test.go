package topic

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"
	"weak"

	"perch/session"
)

var errBroker = errors.New("no broker there")

// recordingBroker writes down what it is told.
type recordingBroker struct {
	*Memory
	fail  error
	calls []string
}

func (b *recordingBroker) Start(r Receiver) error {
	if b.fail != nil {
		return b.fail
	}
	b.Memory = NewMemory(MemoryOptions{})
	return b.Memory.Start(r)
}

func (b *recordingBroker) Subscribe(name string, done func(error)) {
	b.calls = append(b.calls, "+"+name)
	done(nil)
}

func (b *recordingBroker) Unsubscribe(name string, done func(error)) {
	b.calls = append(b.calls, "-"+name)
	done(nil)
}

func (b *recordingBroker) Close() error {
	b.calls = append(b.calls, "close")
	return b.Memory.Close()
}

// each lists the topics of p as Each gives them; a '*' marks those by the
// server.
func each(topics *Topics, p *fakePeer) []string {
	var out []string
	topics.Each(&p.s, func(sub Subscription) {
		name := sub.Topic
		if sub.Server {
			name += "*"
		}
		out = append(out, name)
	})
	slices.Sort(out)
	return out
}

func TestSubscribeAndUnsubscribe(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps string // +x: subscribe, *x: by the server, -x: unsubscribe, !: leave; a following ? wants a refusal
		want  []string
	}{
		{"one", "+a", []string{"a"}},
		{"by the server", "*a +b", []string{"a*", "b"}},
		{"twice", "+a +a? *a?", []string{"a"}},
		{"twice, not the first", "+a +b +c +b? +c?", []string{"a", "b", "c"}},
		{"out", "+a -a", nil},
		{"out twice", "+a -a -a?", nil},
		{"never in", "-a?", nil},
		{"the first of three", "+a +b +c -a", []string{"b", "c"}},
		{"the middle of three", "+a *b +c -b", []string{"a", "c"}},
		{"the last of three", "+a +b *c -c", []string{"a", "b"}},
		{"in the order of coming", "+a +b +c -a -b -c", nil},
		{"in the other order", "+a +b +c -c -b -a", nil},
		{"and again", "+a -a *a -a +a", []string{"a"}},
		{"the server's after the client's", "+a +b -a *a", []string{"a*", "b"}},
		{"as many as allowed", "+a +b +c +d +e?", []string{"a", "b", "c", "d"}},
		{"room again", "+a +b +c +d -b +e +f?", []string{"a", "c", "d", "e"}},
		{"leave", "+a +b +c !", nil},
		{"leave without any", "!", nil},
		{"leave, and come again", "+a +b ! ! +b", []string{"b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topics := newTopics(t, Options{MaxSubscriptions: 4})
			l := newFakeLoop(t, 0)
			p, other := newFakePeer(topics, l, 1), newFakePeer(topics, l, 1)
			mustSubscribe(t, topics, other, "b") // its places must hold
			for step := range strings.FieldsSeq(tt.steps) {
				refused := strings.HasSuffix(step, "?")
				name := strings.TrimSuffix(step[1:], "?")
				ok := true
				switch step[0] {
				case '+', '*':
					ok = topics.Subscribe(&p.s, name, SubscribeOptions{Server: step[0] == '*'}) == nil
				case '-':
					ok = topics.Unsubscribe(&p.s, name)
				case '!':
					topics.Leave(&p.s)
				}
				if ok == refused {
					t.Fatalf("%s: done %v", step, ok)
				}
			}
			if got := each(topics, p); !slices.Equal(got, tt.want) {
				t.Errorf("subscribed to %v, want %v", got, tt.want)
			}
			if n := topics.Count(&p.s); n != len(tt.want) {
				t.Errorf("counts %d, want %d", n, len(tt.want))
			}
			for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
				want := slices.Contains(tt.want, name) || slices.Contains(tt.want, name+"*")
				if topics.Subscribed(&p.s, name) != want {
					t.Errorf("%s: subscribed %v", name, !want)
				}
			}
			if (p.s.Topics == nil) != (len(tt.want) == 0) {
				t.Errorf("the session keeps %+v", p.s.Topics)
			}
			checkQuiet(t, topics, l)
			topics.Leave(&p.s)
			topics.Leave(&other.s)
			if c := topics.Counts(); c.Topics != 0 || c.Subscriptions != 0 {
				t.Errorf("left: %+v", c)
			}
		})
	}
}

func TestSubscribeErrors(t *testing.T) {
	topics := newTopics(t, Options{MaxSubscriptions: 1})
	l := newFakeLoop(t, 0)
	p := newFakePeer(topics, l, 1)
	if err := topics.Subscribe(&p.s, "nope:1", SubscribeOptions{}); !errors.Is(err, ErrUnknownTopic) {
		t.Errorf("unknown namespace: %v", err)
	}
	if p.s.Topics != nil {
		t.Error("the session keeps something of a refusal")
	}
	mustSubscribe(t, topics, p, "a")
	if err := topics.Subscribe(&p.s, "a", SubscribeOptions{}); !errors.Is(err, ErrAlreadySubscribed) {
		t.Errorf("twice, with no room for more: %v", err)
	}
	if err := topics.Subscribe(&p.s, "b", SubscribeOptions{}); !errors.Is(err, ErrTooMany) {
		t.Errorf("too many: %v", err)
	}
	if c := topics.Counts(); c.Topics != 1 || c.Subscriptions != 1 {
		t.Errorf("counts %+v", c)
	}
}

// The memory of an ended session is its next peer's: a subscription that comes
// too late would be that one's.
func TestSubscribeAfterClose(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	p := newFakePeer(topics, l, 1)
	p.s.Close(session.ReasonNormal)
	if err := topics.Subscribe(&p.s, "a", SubscribeOptions{}); !errors.Is(err, ErrNotAvailable) {
		t.Errorf("subscribe: %v, want ErrNotAvailable", err)
	}
	if c := topics.Counts(); c.Topics != 0 || c.Subscriptions != 0 {
		t.Errorf("counts %+v", c)
	}
}

func TestMaxSubscriptionsDefault(t *testing.T) {
	topics := newTopics(t, Options{})
	p := newFakePeer(topics, newFakeLoop(t, 0), 1)
	for i := range 128 {
		mustSubscribe(t, topics, p, fmt.Sprint(i))
	}
	if err := topics.Subscribe(&p.s, "one more", SubscribeOptions{}); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
}

// A decoded name dies with the command: the table keeps a copy.
func TestSubscribeKeepsNoSlice(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	p := newFakePeer(topics, l, session.EncodingJSON)
	frame := []byte("news")
	mustSubscribe(t, topics, p, unsafe.String(&frame[0], len(frame)))
	copy(frame, "xxxx")
	if !topics.Subscribed(&p.s, "news") {
		t.Errorf("subscribed to %v", each(topics, p))
	}
	mustPublish(t, topics, "news", "1")
	l.drain()
	if p.text() != "j1;" {
		t.Errorf("got %q", p.text())
	}
	if !topics.Unsubscribe(&p.s, "news") || topics.Counts().Topics != 0 {
		t.Error("the topic stays")
	}
}

func TestTopicsPattern(t *testing.T) {
	topics := newTopics(t, Options{Namespaces: []NamespaceOptions{{Name: "chat"}}})
	for i := range 2 {
		l := newFakeLoop(t, i)
		for k := range 2 {
			p := newFakePeer(topics, l, 1)
			mustSubscribe(t, topics, p, "chat:1")
			if k == 0 {
				mustSubscribe(t, topics, p, "chat:2")
			}
			if i == 1 && k == 1 {
				mustSubscribe(t, topics, p, "news")
				mustSubscribe(t, topics, p, "$a/b")
				mustSubscribe(t, topics, p, "gone")
				topics.Unsubscribe(&p.s, "gone")
			}
		}
	}
	all := map[string]int{"chat:1": 4, "chat:2": 2, "news": 1, "$a/b": 1}
	for _, tt := range []struct {
		pattern string
		want    map[string]int
	}{
		{"", all},
		{"*", map[string]int{"chat:1": 4, "chat:2": 2, "news": 1}},
		{"chat:*", map[string]int{"chat:1": 4, "chat:2": 2}},
		{"chat:[2-9]", map[string]int{"chat:2": 2}},
		{"news", map[string]int{"news": 1}},
		{"new", map[string]int{}},
		{"$*/*", map[string]int{"$a/b": 1}},
		{"gone", map[string]int{}},
	} {
		t.Run(tt.pattern, func(t *testing.T) {
			if got, err := topics.Topics(tt.pattern); err != nil || !maps.Equal(got, tt.want) {
				t.Errorf("%v, %v, want %v", got, err, tt.want)
			}
		})
	}
	for _, bad := range []string{"[", "news[", `\`} {
		if _, err := topics.Topics(bad); !errors.Is(err, path.ErrBadPattern) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if c := topics.Counts(); c.Topics != len(all) || c.Subscriptions != 8 {
		t.Errorf("counts %+v", c)
	}
}

// The broker hears of a topic's first subscriber on this node and of its last,
// whatever the loops.
func TestBrokerHearsOfInterest(t *testing.T) {
	b := &recordingBroker{}
	topics, err := New(Options{Broker: b})
	if err != nil {
		t.Fatal(err)
	}
	first := newFakePeer(topics, newFakeLoop(t, 0), 1)
	second := newFakePeer(topics, newFakeLoop(t, 1), 1)
	mustSubscribe(t, topics, first, "a")
	mustSubscribe(t, topics, second, "a")
	topics.Unsubscribe(&first.s, "a")
	mustSubscribe(t, topics, first, "a")
	topics.Leave(&second.s)
	mustSubscribe(t, topics, first, "b")
	topics.Leave(&first.s)
	mustSubscribe(t, topics, first, "a")
	topics.Leave(&first.s)
	if err := topics.Close(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"+a", "+b", "-a", "-b", "+a", "-a", "close"}; !slices.Equal(b.calls, want) {
		t.Errorf("told %v, want %v", b.calls, want)
	}
}

// A list gets its memory back while its subscribers leave, in whatever order.
func TestListShrinks(t *testing.T) {
	const n = 4096
	for _, order := range []string{"first in first out", "last in first out", "during a round"} {
		t.Run(order, func(t *testing.T) {
			topics := newTopics(t, Options{})
			l := newFakeLoop(t, 0)
			peers := fakePeers(topics, l, n)
			for _, p := range peers {
				p.onWrite = func([]byte) {}
				mustSubscribe(t, topics, p, "a")
			}
			list := &topics.shard("a").topics["a"].first
			switch order {
			case "last in first out":
				slices.Reverse(peers)
			case "during a round":
				mustPublish(t, topics, "a", "1")
				l.step()
				l.step()
			}
			for i, p := range peers[:n-1] {
				topics.Leave(&p.s)
				if c := cap(list.subs); order != "during a round" && c > 64 && n-1-i < c/4-1 {
					t.Fatalf("%d subscribers, room for %d", n-1-i, c)
				}
			}
			l.drain()
			if c := cap(list.subs); c > 64 {
				t.Errorf("one subscriber, room for %d", c)
			}
			checkQuiet(t, topics, l)
			topics.Leave(&peers[n-1].s)
			if list.subs != nil {
				t.Errorf("nobody there, room for %d", cap(list.subs))
			}
		})
	}
}

// What a session has left is not kept by the room of its subscriptions.
func TestNothingHoldsATopicThatWasLeft(t *testing.T) {
	topics := newTopics(t, Options{})
	p := newFakePeer(topics, newFakeLoop(t, 0), 1)
	var left []weak.Pointer[Topic]
	for _, name := range []string{"stays", "one", "two", "three"} {
		mustSubscribe(t, topics, p, name)
		if name != "stays" {
			left = append(left, weak.Make(topics.shard(name).topics[name]))
		}
	}
	mustSubscribe(t, topics, p, "stays too")
	for _, name := range []string{"two", "three", "one"} {
		topics.Unsubscribe(&p.s, name)
	}
	runtime.GC()
	for i, w := range left {
		if w.Value() != nil {
			t.Errorf("topic %d is still reachable", i)
		}
	}
	if got := each(topics, p); !slices.Equal(got, []string{"stays", "stays too"}) {
		t.Errorf("left in %v", got)
	}
	runtime.KeepAlive(p)
}

// The count of joins goes around after 2^31 of them. One who was there all the
// time is still older than what was published a moment ago.
func TestJoinsGoAround(t *testing.T) {
	for _, ago := range []uint32{1 << 29, 1 << 30, 1<<31 - 8, 1 << 31, 1<<32 - 8} {
		topics := newTopics(t, Options{})
		l := newFakeLoop(t, 0)
		old, late := newFakePeer(topics, l, session.EncodingJSON), newFakePeer(topics, l, session.EncodingJSON)
		mustSubscribe(t, topics, old, "a")
		topics.shard("a").topics["a"].first.joins += ago
		mustPublish(t, topics, "a", "1")
		mustSubscribe(t, topics, late, "a")
		l.drain()
		if old.text() != "j1;" || late.text() != "" {
			t.Errorf("joined %d ago: got %q; a moment ago: %q", ago, old.text(), late.text())
		}
	}
}
