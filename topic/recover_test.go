package topic

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"perch/session"
)

// lateBroker answers History when the test says so, from another goroutine. What
// it answers is of the time of the call.
type lateBroker struct {
	*Memory
	mu      sync.Mutex
	waiting []func()
	// fail, where set, is what History says.
	fail error
	// now, where set, says whether an answer comes at once.
	now func() bool
	// spoil, where set, may change what History answers.
	spoil func(all []*Publication, at Position) ([]*Publication, Position)
}

func (b *lateBroker) History(name string, f Filter, done func([]*Publication, Position, error)) {
	b.Memory.History(name, f, func(all []*Publication, at Position, err error) {
		if b.fail != nil {
			all, at, err = nil, Position{}, b.fail
		}
		if b.spoil != nil {
			all, at = b.spoil(all, at)
		}
		if b.now != nil && b.now() {
			done(all, at, err)
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.waiting = append(b.waiting, func() { done(all, at, err) })
	})
}

// answer answers the first n questions (-1: all), and tells how many there were.
func (b *lateBroker) answer(n int) int {
	b.mu.Lock()
	if n < 0 || n > len(b.waiting) {
		n = len(b.waiting)
	}
	now := b.waiting[:n]
	b.waiting = b.waiting[n:]
	b.mu.Unlock()
	var answering sync.WaitGroup
	answering.Go(func() {
		for _, f := range now {
			f()
		}
	})
	answering.Wait()
	return n
}

// recoverRig is topics with a history, whose losses are written down.
type recoverRig struct {
	*Topics
	t     testing.TB
	clock *fakeClock
	late  *lateBroker // nil: the broker answers at once
	lost  []string    // topics; a '*' marks the server's
	onEnd func(s *session.Session, name string)
}

func newRecoverRig(t testing.TB, late bool, o Options) *recoverRig {
	r := &recoverRig{t: t, clock: newFakeClock()}
	if !o.Default.History() {
		o.Default.HistorySize, o.Default.HistoryTTL = 10, time.Minute
	}
	o.Memory.Now = r.clock.now
	if late {
		r.late = &lateBroker{Memory: NewMemory(o.Memory)}
		o.Broker = r.late
	}
	o.Lost = func(s *session.Session, name string, server bool) {
		if server {
			name += "*"
		}
		r.lost = append(r.lost, name)
		if r.onEnd != nil {
			r.onEnd(s, name)
			return
		}
		r.Unsubscribe(s, strings.TrimSuffix(name, "*"))
	}
	r.Topics = newTopics(t, o)
	return r
}

func (r *recoverRig) publish(data string) Position {
	r.t.Helper()
	at, err := publishAs(r.Topics, "a", data, PublishRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return at
}

// recovery is what became of one.
type recovery struct {
	Recovered
	err   error
	calls int
}

func (r *recovery) data() (out string) {
	for _, p := range r.Publications {
		out += string(p.Data)
	}
	return out
}

var positioned = SubscribeOptions{Position: true}

// recover subscribes p to "a" and recovers; the result is filled in when it is
// known.
func (r *recoverRig) recover(p *fakePeer, o SubscribeOptions, req RecoverRequest) *recovery {
	r.t.Helper()
	o.Position = true
	if err := r.Subscribe(&p.s, "a", o); err != nil {
		r.t.Fatal(err)
	}
	out := &recovery{}
	r.Recover(&p.s, "a", req, func(s *session.Session, got Recovered, err error) {
		if s != &p.s {
			r.t.Error("the answer is of another session")
		}
		out.Recovered, out.err = got, err
		out.calls++
	})
	return out
}

// live is recover without a past, and Live.
func (r *recoverRig) live(p *fakePeer, o SubscribeOptions) {
	r.t.Helper()
	if got := r.recover(p, o, RecoverRequest{}); got.calls != 1 || got.err != nil {
		r.t.Fatalf("recover: %d answers, %v", got.calls, got.err)
	}
	r.Live(&p.s, "a")
}

func TestRecover(t *testing.T) {
	for _, tt := range []struct {
		name    string
		publish string // a letter each; '.': 40 s pass; '!': the history is removed
		request func(epoch string) RecoverRequest
		want    string
		ok      bool
	}{
		{"nothing asked", "abc", func(string) RecoverRequest { return RecoverRequest{} }, "", false},
		{"what was missed", "abcd", since(2), "cd", true},
		{"the last", "abcd", since(3), "d", true},
		{"nothing missed", "abcd", since(4), "", true},
		{"all", "abcd", since(0), "abcd", true},
		{"nothing ever published", "", since(0), "", true},
		{"of no epoch", "abcd", sinceOf("", 2), "cd", true},
		{"of no epoch, at the top", "abcd", sinceOf("", 4), "", true},
		{"of no epoch, from the beginning", "abcd", sinceOf("", 0), "abcd", true},
		{"of another epoch", "abcd", sinceOf("other", 2), "", false},
		{"of another epoch, at the top", "abcd", sinceOf("other", 4), "", false},
		{"beyond the top", "abcd", since(5), "", false},
		{"the oldest kept", "abcdefghijkl", since(2), "cdefghijkl", true},
		{"one before the oldest kept", "abcdefghijkl", since(1), "", false},
		{"all, of which some are gone", "abcdefghijkl", since(0), "", false},
		{"the rest of what is over", "ab.cd.", since(2), "cd", true},
		{"what is over", "ab.cd.", since(1), "", false},
		{"all over, at the top", "abcd..", since(4), "", true},
		{"all over", "abcd..", since(3), "", false},
		{"removed", "abc!", since(2), "", false},
		{"removed, at the top", "abc!", since(3), "", true},
		{"removed, and more", "abc!de", since(3), "de", true},
		{"removed, and more, from before", "abc!de", since(2), "", false},
		{"cache", "abc", cache("", 0), "c", true},
		{"cache, of an older position", "abc", cache("e", 1), "c", true},
		{"cache, the same position", "abc", cache("e", 3), "", true},
		{"cache, the same offset of another epoch", "abc", cache("other", 3), "c", true},
		{"cache, of nothing", "", cache("", 0), "", false},
		{"cache, over", "abc..", cache("", 0), "", false},
		{"cache, over, the same position", "abc..", cache("e", 3), "", true},
		{"cache, over, another position", "abc..", cache("e", 2), "", false},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late %v", tt.name, late), func(t *testing.T) {
				r := newRecoverRig(t, late, Options{})
				var at Position
				r.History(r.rules.Load().fallback, "a", Filter{}, func(_ []*Publication, p Position, _ error) { at = p })
				if late {
					r.late.answer(-1)
				}
				for _, c := range tt.publish {
					switch c {
					case '.':
						r.clock.add(40 * time.Second)
					case '!':
						r.RemoveHistory(r.rules.Load().fallback, "a", func(error) {})
					default:
						at = r.publish(string(c))
					}
				}
				l := newFakeLoop(t, 0)
				p := newFakePeer(r.Topics, l, session.EncodingJSON)
				got := r.recover(p, SubscribeOptions{}, tt.request(at.Epoch))
				if late {
					l.drain()
					if got.calls != 0 {
						t.Fatal("answered before the broker was")
					}
					if n := r.late.answer(-1); n != 1 {
						t.Fatalf("%d questions", n)
					}
					l.drain()
				}
				if got.calls != 1 || got.err != nil {
					t.Fatalf("%d answers, %v", got.calls, got.err)
				}
				if got.data() != tt.want || got.OK != tt.ok || got.Position != at {
					t.Errorf("%q, recovered %v, at %+v; want %q, %v, at %+v", got.data(), got.OK, got.Position, tt.want, tt.ok, at)
				}
				r.Live(&p.s, "a")
				r.publish("x")
				l.drain()
				if p.text() != "jx;" || len(r.lost) > 0 {
					t.Errorf("live: %q, lost %v", p.text(), r.lost)
				}
				asked := tt.request("").Recover
				if c := r.Counts(); (c.Recoveries == 1) != (asked && tt.ok) || (c.Unrecovered == 1) != (asked && !tt.ok) {
					t.Errorf("counts %+v", c)
				}
				checkQuiet(t, r.Topics, l)
			})
		}
	}
}

func since(offset uint64) func(string) RecoverRequest {
	return func(epoch string) RecoverRequest {
		return RecoverRequest{Recover: true, Since: Position{offset, epoch}}
	}
}

func sinceOf(epoch string, offset uint64) func(string) RecoverRequest {
	return func(string) RecoverRequest {
		return RecoverRequest{Recover: true, Since: Position{offset, epoch}}
	}
}

// cache is for a position of an epoch; "e" is that of the topic.
func cache(epoch string, offset uint64) func(string) RecoverRequest {
	return func(of string) RecoverRequest {
		at := Position{offset, epoch}
		if epoch == "e" {
			at.Epoch = of
		}
		return RecoverRequest{Recover: true, Cache: true, Since: at}
	}
}

// Who has missed more than RecoveryLimit can't recover, though it is all there.
func TestRecoveryLimit(t *testing.T) {
	r := newRecoverRig(t, false, Options{RecoveryLimit: 3})
	var at Position
	for range 9 {
		at = r.publish("x")
	}
	l := newFakeLoop(t, 0)
	for _, tt := range []struct {
		offset uint64
		ok     bool
	}{{9, true}, {8, true}, {6, true}, {5, false}, {0, false}} {
		got := r.recover(newFakePeer(r.Topics, l, session.EncodingJSON), SubscribeOptions{}, since(tt.offset)(at.Epoch))
		if got.OK != tt.ok || got.OK != (len(got.Publications) == int(9-tt.offset)) || got.Position != at {
			t.Errorf("since %d: %d publications, recovered %v, at %+v", tt.offset, len(got.Publications), got.OK, got.Position)
		}
	}
}

// Nothing that a broker may answer makes a gap, a duplicate or an inversion.
func TestRecoverFromSpoiltHistory(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(all []*Publication, at Position) ([]*Publication, Position)
	}{
		{"without the first", func(all []*Publication, at Position) ([]*Publication, Position) { return all[1:], at }},
		{"without the last", func(all []*Publication, at Position) ([]*Publication, Position) { return all[:len(all)-1], at }},
		{"without one between", func(all []*Publication, at Position) ([]*Publication, Position) { return slices.Delete(all, 1, 2), at }},
		{"the last twice", func(all []*Publication, at Position) ([]*Publication, Position) {
			return append(all, all[len(all)-1]), at
		}},
		{"the first twice", func(all []*Publication, at Position) ([]*Publication, Position) {
			return append(all[:1:1], all...), at
		}},
		{"two in the wrong order", func(all []*Publication, at Position) ([]*Publication, Position) {
			all[0], all[1] = all[1], all[0]
			return all, at
		}},
		{"one from before", func(all []*Publication, at Position) ([]*Publication, Position) {
			return append([]*Publication{{Offset: 2, Previous: 1}}, all...), at
		}},
		{"a top too high", func(all []*Publication, at Position) ([]*Publication, Position) { at.Offset++; return all, at }},
		{"a top too low", func(all []*Publication, at Position) ([]*Publication, Position) { at.Offset--; return all, at }},
		{"of another epoch", func(all []*Publication, at Position) ([]*Publication, Position) { at.Epoch = "other"; return all, at }},
		{"nothing", func(_ []*Publication, at Position) ([]*Publication, Position) { return nil, at }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRecoverRig(t, true, Options{})
			var at Position
			for _, c := range "abcde" {
				at = r.publish(string(c))
			}
			r.late.spoil = tt.spoil
			l := newFakeLoop(t, 0)
			got := r.recover(newFakePeer(r.Topics, l, session.EncodingJSON), SubscribeOptions{}, since(2)(at.Epoch))
			r.late.answer(-1)
			l.drain()
			if got.calls != 1 || got.OK || got.Publications != nil {
				t.Errorf("%d answers: %q, recovered %v", got.calls, got.data(), got.OK)
			}
		})
	}
}

// Whatever ends a subscription while its history is read, the answer says so, to
// nobody where the session has ended, and gives back what it took.
func TestEndWhileHistoryIsRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func(r *recoverRig, p *fakePeer)
		calls int
		err   error
	}{
		{"unsubscribed", func(r *recoverRig, p *fakePeer) { r.Unsubscribe(&p.s, "a") }, 1, ErrNotAvailable},
		{"closed", func(r *recoverRig, p *fakePeer) { p.s.Close(session.ReasonNormal) }, 0, nil},
		{"closed, and another in its place", func(r *recoverRig, p *fakePeer) {
			p.s.Close(session.ReasonNormal)
			p.open(p.s.Loop(), session.EncodingJSON)
			mustSubscribe(r.t, r.Topics, p, "a")
		}, 0, nil},
		{"subscribed again", func(r *recoverRig, p *fakePeer) {
			r.Unsubscribe(&p.s, "a")
			mustSubscribe(r.t, r.Topics, p, "a")
		}, 1, ErrNotAvailable},
	} {
		for _, posted := range []bool{false, true} { // the answer waits in the inbox already
			t.Run(fmt.Sprintf("%s, posted %v", tt.name, posted), func(t *testing.T) {
				r := newRecoverRig(t, true, Options{})
				r.publish("a")
				l := newFakeLoop(t, 0)
				p := newFakePeer(r.Topics, l, session.EncodingJSON)
				got := r.recover(p, SubscribeOptions{}, since(0)(""))
				r.publish("b")
				if posted {
					r.late.answer(-1)
				}
				tt.end(r, p)
				r.late.answer(-1)
				l.drain()
				if got.calls != tt.calls || !errors.Is(got.err, tt.err) {
					t.Errorf("%d answers, %v; want %d, %v", got.calls, got.err, tt.calls, tt.err)
				}
				if p.text() != "" {
					t.Errorf("%q is written", p.text())
				}
				r.publish("c")
				l.drain()
				want := ""
				if r.Subscribed(&p.s, "a") {
					want = "jc;"
				}
				if p.text() != want {
					t.Errorf("then: %q, want %q", p.text(), want)
				}
				checkQuiet(t, r.Topics, l)
			})
		}
	}
}

// An old recovery's answer is not that of a new one.
func TestRecoverAgainWhileHistoryIsRead(t *testing.T) {
	r := newRecoverRig(t, true, Options{})
	at := r.publish("a")
	r.publish("b")
	l := newFakeLoop(t, 0)
	p := newFakePeer(r.Topics, l, session.EncodingJSON)
	first := r.recover(p, SubscribeOptions{}, since(0)(at.Epoch))
	r.Unsubscribe(&p.s, "a")
	r.publish("c")
	second := r.recover(p, SubscribeOptions{}, since(1)(at.Epoch))
	r.late.answer(1)
	l.drain()
	if first.calls != 1 || !errors.Is(first.err, ErrNotAvailable) || second.calls != 0 {
		t.Fatalf("the first: %d answers, %v; the second: %d", first.calls, first.err, second.calls)
	}
	r.Live(&p.s, "nothing")
	r.late.answer(1)
	l.drain()
	if second.calls != 1 || second.err != nil || second.data() != "bc" {
		t.Errorf("%d answers, %v: %q", second.calls, second.err, second.data())
	}
	checkQuiet(t, r.Topics, l)
}

func TestRecoverFails(t *testing.T) {
	t.Run("broker", func(t *testing.T) {
		r := newRecoverRig(t, true, Options{})
		r.late.fail = errBroker
		l := newFakeLoop(t, 0)
		p := newFakePeer(r.Topics, l, session.EncodingJSON)
		got := r.recover(p, SubscribeOptions{}, since(0)(""))
		r.late.answer(-1)
		l.drain()
		if got.calls != 1 || !errors.Is(got.err, errBroker) || r.Subscribed(&p.s, "a") {
			t.Errorf("%d answers, %v; subscribed %v", got.calls, got.err, r.Subscribed(&p.s, "a"))
		}
		checkQuiet(t, r.Topics, l)
	})
	t.Run("no room", func(t *testing.T) {
		r := newRecoverRig(t, false, Options{})
		l := newFakeLoop(t, 0)
		l.limit = session.PostOverhead - 1
		p := newFakePeer(r.Topics, l, session.EncodingJSON)
		got := r.recover(p, SubscribeOptions{}, since(0)(""))
		if got.calls != 1 || !errors.Is(got.err, ErrFull) || r.Subscribed(&p.s, "a") {
			t.Errorf("%d answers, %v; subscribed %v", got.calls, got.err, r.Subscribed(&p.s, "a"))
		}
		checkQuiet(t, r.Topics, l)
	})
	t.Run("not subscribed", func(t *testing.T) {
		r := newRecoverRig(t, false, Options{})
		p := newFakePeer(r.Topics, newFakeLoop(t, 0), session.EncodingJSON)
		var err error
		r.Recover(&p.s, "a", RecoverRequest{}, func(_ *session.Session, _ Recovered, e error) { err = e })
		if !errors.Is(err, ErrNotAvailable) {
			t.Error(err)
		}
	})
}
