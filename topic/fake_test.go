package topic

import (
	"fmt"
	"sync"
	"testing"

	"perch/session"
)

// fakeLoop is an inbox that runs when the test says so: one item a step, in the
// order of the posts, a task with more to do behind what waits.
type fakeLoop struct {
	t     testing.TB
	index int
	wake  chan struct{} // for a loop that a goroutine drives

	mu    sync.Mutex
	limit int
	used  int // reserved and not given back
	inbox []fakeItem
	peers fakeTable
	slots uint32
}

type fakeItem struct {
	n    int
	task session.Task
	f    func()
}

// fakeTable is the peers of a loop, by the ids of their sessions: a post for one that has
// ended finds nobody.
type fakeTable map[session.ID]*fakePeer

const fakeRoom = 1 << 30

func newFakeLoop(t testing.TB, index int) *fakeLoop {
	return &fakeLoop{t: t, index: index, limit: fakeRoom, wake: make(chan struct{}, 1)}
}

func (l *fakeLoop) Index() int { return l.index }

func (l *fakeLoop) Reserve(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used+n > l.limit {
		return false
	}
	l.used += n
	return true
}

func (l *fakeLoop) Release(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used -= n; l.used < 0 {
		l.t.Errorf("loop %d: %d bytes more given back than reserved", l.index, -l.used)
	}
}

func (l *fakeLoop) put(it fakeItem) {
	l.mu.Lock()
	l.inbox = append(l.inbox, it)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *fakeLoop) PostTask(n int, t session.Task) { l.put(fakeItem{n: n, task: t}) }

// Post finds the session when the loop comes to it.
func (l *fakeLoop) Post(n int, id session.ID, f func(*session.Session)) {
	l.put(fakeItem{n: n, f: func() {
		l.mu.Lock()
		p := l.peers[id]
		l.mu.Unlock()
		if p == nil || p.s.ID() != id || p.s.Closed() {
			f(nil)
			return
		}
		f(&p.s)
	}})
}

// enter gives a peer its place; what was posted to the one before it there is
// for nobody.
func (l *fakeLoop) enter(p *fakePeer) session.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots++
	id := session.MakeID(l.index, 1, l.slots)
	if l.peers == nil {
		l.peers = make(fakeTable)
	}
	delete(l.peers, p.s.ID())
	l.peers[id] = p
	return id
}

func (l *fakeLoop) PostClose(session.ID, session.Reason, uint16, string) {
	l.t.Error("topic closes no session")
}

// do runs f as the loop's own code.
func (l *fakeLoop) do(f func()) { l.put(fakeItem{f: f}) }

// step runs the first item; false: there is none.
func (l *fakeLoop) step() bool {
	l.mu.Lock()
	if len(l.inbox) == 0 {
		l.inbox = nil
		l.mu.Unlock()
		return false
	}
	it := l.inbox[0]
	l.inbox = l.inbox[1:]
	l.mu.Unlock()
	if it.f != nil {
		it.f()
		l.Release(it.n)
		return true
	}
	if it.task.Run() {
		l.put(it)
	} else {
		l.Release(it.n)
	}
	return true
}

// stepInPlace is step for measurements: the inbox keeps its memory.
func (l *fakeLoop) stepInPlace() bool {
	if len(l.inbox) == 0 {
		return false
	}
	it := l.inbox[0]
	l.inbox = append(l.inbox[:0], l.inbox[1:]...)
	if it.task.Run() {
		l.inbox = append(l.inbox, it)
	} else {
		l.Release(it.n)
	}
	return true
}

// drain runs the loop until nothing is left, and tells in how many steps.
func (l *fakeLoop) drain() (steps int) {
	for l.step() {
		steps++
	}
	return steps
}

// serve drives the loop from a goroutine of its own until stop is closed and
// nothing is left.
func (l *fakeLoop) serve(stop <-chan struct{}) {
	for {
		if l.step() {
			continue
		}
		select {
		case <-l.wake:
		case <-stop:
			l.drain()
			return
		}
	}
}

// free is how much room is left.
func (l *fakeLoop) free() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limit - l.used
}

func (l *fakeLoop) room() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}

// fakePeer is a session and its transport. Like netpoll's conns, its memory is
// used again by the next peer.
type fakePeer struct {
	s       session.Session
	topics  *Topics
	frames  [][]byte
	onWrite func(frame []byte)
}

func newFakePeer(topics *Topics, l session.Loop, e session.Encoding) *fakePeer {
	p := &fakePeer{topics: topics}
	p.open(l, e)
	return p
}

func (p *fakePeer) open(l session.Loop, e session.Encoding) {
	p.s.Open(p, l, l.(*fakeLoop).enter(p))
	p.s.State = session.StateConnected
	p.s.Encoding = e
}

func (p *fakePeer) WriteFrame(frame []byte) {
	if p.onWrite != nil {
		p.onWrite(frame)
		return
	}
	p.frames = append(p.frames, frame)
}

// CloseWith does what netpoll and the handler do together.
func (p *fakePeer) CloseWith(session.Reason, uint16, string) {
	if p.s.State != session.StateClosed {
		p.s.State = session.StateClosed
		p.topics.Leave(&p.s)
	}
}

func (*fakePeer) WriteMessage([]byte, bool) {}
func (*fakePeer) Pending() int              { return 0 }
func (*fakePeer) StartHeartbeat()           {}
func (*fakePeer) Pong() bool                { return false }
func (*fakePeer) SetExpiry(int64)           {}
func (*fakePeer) Remote() string            { return "" }

// text is all that the peer got, a stroke between its writes.
func (p *fakePeer) text() string {
	out := ""
	for i, f := range p.frames {
		if i > 0 {
			out += "|"
		}
		out += string(f)
	}
	return out
}

// plainEncoders fill all wire formats: a frame is the format's letter, then '=' for
// a whole payload among deltas or '~' for a patch, the data and a semicolon.
func plainEncoders() Encoders {
	var t Encoders
	for e, letter := range map[session.Encoding]string{session.EncodingJSON: "j", session.EncodingProtobuf: "p"} {
		t[e] = func(_ string, _ *Publication, form Form, data []byte) ([]byte, error) {
			mark := [...]string{FormPlain: "", FormWhole: "=", FormPatch: "~"}[form]
			return fmt.Appendf(nil, "%s%s%s;", letter, mark, data), nil
		}
	}
	return t
}

func newTopics(t testing.TB, o Options) *Topics {
	t.Helper()
	if o.Encoders[session.EncodingJSON] == nil {
		o.Encoders = plainEncoders()
	}
	topics, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := topics.Close(); err != nil {
			t.Error(err)
		}
	})
	return topics
}

func mustSubscribe(t testing.TB, topics *Topics, p *fakePeer, name string) {
	t.Helper()
	if err := topics.Subscribe(&p.s, name, SubscribeOptions{}); err != nil {
		t.Fatalf("subscribe %q: %v", name, err)
	}
}

// publish publishes and returns what the publisher is told.
func publish(topics *Topics, name, data string) error {
	_, err := publishAs(topics, name, data, PublishRequest{})
	return err
}

func publishAs(topics *Topics, name, data string, r PublishRequest) (at Position, err error) {
	ns, err := topics.Namespace(name)
	if err != nil {
		return Position{}, err
	}
	called := 0
	topics.Publish(ns, name, &Publication{Data: []byte(data)}, r, func(p Position, e error) { called, at, err = called+1, p, e })
	if called != 1 {
		return Position{}, fmt.Errorf("done was called %d times", called)
	}
	return at, err
}

// checkQuiet verifies that nothing is under way, and that lists, members and
// counters say the same.
func checkQuiet(t testing.TB, topics *Topics, loops ...*fakeLoop) {
	t.Helper()
	for _, l := range loops {
		if n := l.room(); n != 0 {
			t.Errorf("loop %d: %d bytes stay reserved", l.index, n)
		}
	}
	total := 0
	for i := range topics.shards {
		for name, tp := range topics.shards[i].topics {
			active := 0
			for _, l := range append([]*local{&tp.first}, tp.moreLocked()...) {
				total += len(l.subs)
				if l.active {
					active++
				}
				checkList(t, name, l)
			}
			if active == 0 {
				t.Errorf("topic %q has no subscribers and is still there", name)
			}
		}
	}
	if c := topics.Counts(); c.Subscriptions != total {
		t.Errorf("%d subscriptions counted, %d in the lists", c.Subscriptions, total)
	}
}

func checkList(t testing.TB, name string, l *local) {
	t.Helper()
	if l.out != nil {
		t.Errorf("topic %q, loop %d: a fan-out is left", name, l.loop.Index())
	}
	if l.active != (len(l.subs) > 0) || int(l.count.Load()) != len(l.subs) {
		t.Errorf("topic %q, loop %d: %d subscribers, active %v, counted %d", name, l.loop.Index(), len(l.subs), l.active, l.count.Load())
	}
	if c := cap(l.subs); c > 64 && len(l.subs) < c/4-1 {
		t.Errorf("topic %q, loop %d: room for %d, %d subscribers", name, l.loop.Index(), c, len(l.subs))
	}
	if l.tracks != nil && len(*l.tracks) != len(l.subs) {
		t.Errorf("topic %q, loop %d: %d trackings for %d subscribers", name, l.loop.Index(), len(*l.tracks), len(l.subs))
	}
	for i, s := range l.subs {
		if s == nil {
			t.Errorf("topic %q, loop %d: a gap at %d", name, l.loop.Index(), i)
			continue
		}
		if sub := memberOf(s).findList(l); sub == nil || int(sub.index) != i || sub.track != l.track(i) {
			t.Errorf("topic %q, loop %d: the session at %d thinks %+v", name, l.loop.Index(), i, sub)
		}
	}
}
