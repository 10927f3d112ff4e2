package netpoll

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"perch/session"
)

// taskFunc is a session.Task of a function.
type taskFunc func() bool

func (f taskFunc) Run() bool { return f() }

// serve runs the loop on a goroutine of its own, as gnet would, with sockets
// that come up now and then. stop ends it.
func (r *rig) serve() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	r.server.background.Add(1)
	go r.server.kicker()
	wg.Go(func() {
		random := rand.New(rand.NewPCG(1, 1))
		for {
			select {
			case <-r.events.wakes:
				r.loop.turn(true)
			case <-done:
				return
			}
			for range random.IntN(3) {
				r.loop.turn(false) // between two sockets
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		wg.Wait()
		close(r.server.done)
	})
}

// within fails the test where c is not closed in time.
func within(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatal(what)
	}
}

// The posts of one sender run in their order, none is lost, and the loop is
// woken for the last one too.
func TestInboxOrder(t *testing.T) {
	r := newRig(t, nil)
	stop := r.serve()
	defer stop()
	const senders, posts = 8, 3000
	var next [senders]int // the loop's
	var left atomic.Int64
	left.Store(senders * posts)
	done := make(chan struct{})
	for sender := range senders {
		go func() {
			random := rand.New(rand.NewPCG(uint64(sender), 4))
			for i := range posts {
				check := func() {
					if next[sender] != i {
						t.Errorf("sender %d: post %d ran as number %d", sender, i, next[sender])
					}
					next[sender]++
					if left.Add(-1) == 0 {
						close(done)
					}
				}
				if random.IntN(2) == 0 {
					r.loop.Post(0, 0, func(*session.Session) { check() })
				} else {
					r.loop.PostTask(0, taskFunc(func() bool { check(); return false }))
				}
				switch random.IntN(200) {
				case 0:
					time.Sleep(time.Duration(random.IntN(300)) * time.Microsecond)
				case 1: // the loop finds its inbox empty
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
	within(t, "posts are lost", done)
}

// One post at a time, each only after the one before has run: where a wake-up
// is lost, nothing goes on.
func TestInboxWakes(t *testing.T) {
	r := newRig(t, nil)
	stop := r.serve()
	defer stop()
	const rounds = 20_000
	done := make(chan struct{})
	go func() {
		defer close(done)
		ran := make(chan struct{}, 1)
		for range rounds {
			r.loop.Post(0, 0, func(*session.Session) { ran <- struct{}{} })
			<-ran
		}
	}()
	within(t, "a wake-up is lost", done)
}

// What is seen to between two sockets leaves the wake-up on its way, which then
// serves the next posts: there is never a second one.
func TestOneWakeUp(t *testing.T) {
	r := newRig(t, nil)
	ran := 0
	post := func() { r.loop.Post(0, 0, func(*session.Session) { ran++ }) }
	for range 3 {
		post()
		r.loop.turn(false)
		post()
		post()
		if ran%3 != 1 || len(r.events.wakes) != 1 || r.events.second {
			t.Fatalf("%d ran, %d wake-ups on their way, a second one: %v", ran, len(r.events.wakes), r.events.second)
		}
		r.turn()
		if ran%3 != 0 || len(r.events.wakes) != 0 {
			t.Fatalf("%d ran, %d wake-ups on their way", ran, len(r.events.wakes))
		}
	}
}

// However many reserve at once, what is granted stays within the bound, and
// all of it comes back.
func TestReserveBound(t *testing.T) {
	const limit = 10_000
	r := newRig(t, func(o *Options) { o.InboxBytes = limit })
	stop := r.serve()
	defer stop()
	var granted, refused, most atomic.Int64
	var wg sync.WaitGroup
	for sender := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(sender), 5))
			for range 4000 {
				n := 1 + random.IntN(3000)
				if !r.loop.Reserve(n) {
					refused.Add(1)
					continue
				}
				now := granted.Add(int64(n))
				if now > limit {
					t.Errorf("%d of %d bytes are granted", now, limit)
				}
				if m := most.Load(); now > m {
					most.CompareAndSwap(m, now)
				}
				back := func() { granted.Add(int64(-n)) }
				switch random.IntN(4) {
				case 0:
					back()
					r.loop.Release(n)
				case 1:
					r.loop.PostTask(n, taskFunc(func() bool { back(); return false }))
				case 2:
					r.loop.Post(n, 0, func(*session.Session) { back(); panic("asked for") })
				default:
					r.loop.Post(n, 0, func(*session.Session) { back() })
				}
			}
		})
	}
	wg.Wait()
	done := make(chan struct{})
	r.loop.Post(0, 0, func(*session.Session) { close(done) })
	within(t, "the inbox stands still", done)
	stop()
	if n := r.loop.inbox.bytes.Load(); n != 0 {
		t.Errorf("%d bytes are not given back", n)
	}
	if refused.Load() == 0 || int64(r.loop.inbox.rejected.Load()) != refused.Load() || most.Load() < limit/2 {
		t.Errorf("%d refused, %d counted, %d granted at the most", refused.Load(), r.loop.inbox.rejected.Load(), most.Load())
	}
	if r.loop.stats.Panics.Load() == 0 {
		t.Error("the panics are not counted")
	}
}

// A refused reservation takes nothing, and an exact fit is granted.
func TestReserveExact(t *testing.T) {
	r := newRig(t, func(o *Options) { o.InboxBytes = 100 })
	l := r.loop
	if !l.Reserve(60) || l.Reserve(41) || !l.Reserve(40) || l.Reserve(1) {
		t.Error("the bound is not exact")
	}
	l.Release(40)
	if !l.Reserve(40) {
		t.Error("what is released is not free")
	}
	l.Post(60, 0, func(*session.Session) {})
	l.PostTask(40, taskFunc(func() bool { panic("asked for") }))
	r.turn()
	if !l.Reserve(100) {
		t.Error("what has run is not free")
	}
	l.Release(100)
}

// A close needs no room.
func TestPostCloseWhenFull(t *testing.T) {
	r := newRig(t, nil)
	p := r.upgraded()
	if !r.loop.Reserve(1<<20) || r.loop.Reserve(1) {
		t.Fatal("not full")
	}
	r.loop.PostClose(p.sess().ID(), session.ReasonForced, 3503, "bye")
	r.turn()
	f, _ := frames(t, p.take())
	if len(f) != 1 || !p.eof {
		t.Fatalf("read %v", f)
	}
	if code, text := closeOf(f[0]); code != 3503 || text != "bye" {
		t.Errorf("close %d %q", code, text)
	}
	// The first reason wins, a second close is nothing.
	r.loop.PostClose(p.c.id(), session.ReasonShutdown, 3001, "")
	r.turn()
	if b := p.take(); len(b) > 0 {
		t.Errorf("read %x behind the close", b)
	}
	r.loop.Release(1 << 20)
}

// An ID finds its session and nothing else: not the slot's next one, also when
// the generations have begun anew.
func TestStaleID(t *testing.T) {
	r := newRig(t, nil)
	found := func(id session.ID) (found bool) {
		r.loop.Post(0, id, func(s *session.Session) {
			found = s != nil
			if found && s.ID() != id {
				t.Error("another session was found")
			}
		})
		r.turn()
		return found
	}
	p := r.upgraded()
	slot := p.c.slot
	id := p.sess().ID()
	if id != session.MakeID(0, 1, slot) || !found(id) {
		t.Fatalf("the ID %x does not find its session", uint64(id))
	}
	p.end()
	if found(id) {
		t.Error("an ended session is found")
	}
	q := r.accept()
	if q.c.slot != slot {
		t.Fatal("the slot is not used again")
	}
	if found(id) || found(q.c.id()) {
		t.Error("a connection without a session is found as one")
	}
	q.upgrade()
	if found(id) || !found(q.sess().ID()) {
		t.Error("the slot's next session is found by the wrong ID")
	}
	// A post that was on its way while the slot changed hands.
	stale := q.sess().ID()
	q.end()
	r.loop.conn(slot).gen = session.GenerationMask - 1
	a := r.upgraded()
	last := a.sess().ID()
	if last.Generation() != session.GenerationMask || !found(last) {
		t.Errorf("generation %x", last.Generation())
	}
	a.end()
	b := r.upgraded()
	if b.c.slot != slot || b.sess().ID().Generation() != 1 {
		t.Errorf("generation %x behind the last", b.sess().ID().Generation())
	}
	if found(last) || found(stale) || !found(b.sess().ID()) {
		t.Error("a stale ID finds a session")
	}
	for _, none := range []session.ID{0, session.MakeID(0, 1, 1<<31), session.MakeID(0, 0, slot), session.MakeID(0, 9, slot+1)} {
		if found(none) {
			t.Errorf("%x finds a session", uint64(none))
		}
	}
	// Stale closes and stale words of the watcher reach nobody.
	for _, id := range []session.ID{last, stale} {
		r.loop.PostClose(id, session.ReasonForced, 3503, "")
		r.loop.put(item{kind: itemWritable, id: id})
	}
	r.turn()
	if len(b.take()) > 0 || b.c.mode != modeWebSocket {
		t.Error("a stale close reaches the slot's next session")
	}
}

// A task that has more to do goes behind what else waits.
func TestTasksTakeTurns(t *testing.T) {
	r := newRig(t, nil)
	var got []string
	task := func(name string, slices int) session.Task {
		return taskFunc(func() bool {
			got = append(got, name)
			slices--
			return slices > 0
		})
	}
	r.loop.PostTask(0, task("a", 3))
	r.loop.PostTask(10, task("b", 1))
	r.loop.Post(0, 0, func(*session.Session) {
		got = append(got, "c")
		r.loop.PostTask(0, task("d", 2))
	})
	r.turn()
	if want := "a b c a d a d"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	select {
	case <-r.events.wakes:
		t.Error("woken for nothing")
	default:
	}
}

// A turn that has used up its time lets the sockets have theirs, and goes on
// behind them in the same order.
func TestTurnBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		kicked := func() bool {
			select {
			case l := <-r.server.kicks:
				l.wake()
				return true
			default:
				return false
			}
		}
		p := r.upgraded()
		var got []int
		if !r.loop.Reserve(6) {
			t.Fatal("no room")
		}
		for i := range 6 {
			r.loop.PostTask(1, taskFunc(func() bool {
				time.Sleep(turnBudget * 2 / 5)
				got = append(got, i)
				p.sess().Write([]byte{byte('0' + i)})
				return false
			}))
		}
		r.step()
		if !slices.Equal(got, []int{0, 1, 2}) || !kicked() {
			t.Fatalf("one turn did %v", got)
		}
		if f, _ := frames(t, p.take()); len(f) != 3 {
			t.Errorf("%d frames left with the turn", len(f))
		}
		if n := r.loop.inbox.bytes.Load(); n != 3 {
			t.Errorf("%d bytes wait", n)
		}
		// Between two sockets nobody needs to be kicked: a wake-up is on its way.
		r.loop.turn(false)
		if !slices.Equal(got, []int{0, 1, 2, 3, 4, 5}) || kicked() {
			t.Fatalf("then %v", got)
		}
		r.step()
		if kicked() {
			t.Error("kicked with nothing to do")
		}
		// Many short posts are looked at now and then.
		ran := 0
		for range 100 {
			r.loop.Post(0, 0, func(*session.Session) { ran++; time.Sleep(turnBudget / 10) })
		}
		r.step()
		if ran < 10 || ran > 32 || !kicked() {
			t.Errorf("%d posts in a turn", ran)
		}
		for ran < 100 {
			before := ran
			r.step()
			if kicked(); ran == before {
				t.Fatal("it does not go on")
			}
		}
		r.step()
	})
}

// Panics of posts and tasks are counted, and harm nobody else.
func TestPanickingPosts(t *testing.T) {
	r := newRig(t, nil)
	p, q := r.upgraded(), r.upgraded()
	r.loop.Post(0, p.sess().ID(), func(s *session.Session) { s.Write([]byte("a")); panic("asked for") })
	r.loop.PostTask(0, taskFunc(func() bool { panic("asked for") }))
	r.loop.Post(0, q.sess().ID(), func(s *session.Session) { s.Write([]byte("b")) })
	r.turn()
	if n := r.loop.stats.Panics.Load(); n != 2 {
		t.Errorf("%d panics counted", n)
	}
	if string(q.take()) != string(served("b")) || string(p.take()) != string(served("a")) {
		t.Error("a frame is missing")
	}
	// A handler that panics when it is told of the end: the end comes all the same.
	r.handler.closed = func(*session.Session, session.Reason) { panic("asked for") }
	r.loop.PostClose(p.sess().ID(), session.ReasonForced, 3503, "")
	r.turn()
	q.hangUp()
	r.post(func() { q.sess().Write([]byte("x")) })
	r.handler.closed = nil
	if !q.gone() {
		t.Error("a connection whose end panics stays")
	}
	if s := r.server.Stats(); s.Sessions != 0 {
		t.Errorf("%d sessions", s.Sessions)
	}
}

// An inbox that was long gives its room back.
func TestInboxShrinks(t *testing.T) {
	r := newRig(t, nil)
	for range 10_000 {
		r.loop.Post(0, 0, func(*session.Session) {})
	}
	r.turn()
	for range 3 {
		r.post(func() {})
	}
	if n := cap(r.loop.inbox.items) + cap(r.loop.inbox.current); n > 2*idleItems {
		t.Errorf("an idle inbox keeps room for %d items", n)
	}
}

// Of what has run, nothing is kept alive by the inbox.
func TestInboxForgets(t *testing.T) {
	r := newRig(t, nil)
	for range 50 {
		r.loop.Post(1, 0, func(*session.Session) {})
	}
	r.turn()
	in := &r.loop.inbox
	for _, it := range slices.Concat(in.items[:cap(in.items)], in.current[:cap(in.current)]) {
		if it.f != nil || it.task != nil || it.text != "" {
			t.Fatal("a post is kept behind its run")
		}
	}
}

// A task without end does not keep the sockets of its loop waiting.
func TestLongTaskAndEcho(t *testing.T) {
	s, addr := start(t, func(o *Options) { o.Loops = 1 })
	c := dial(t, addr, "/echo")
	var done, over atomic.Int64
	ended := make(chan struct{})
	s.Loop(0).PostTask(0, taskFunc(func() bool {
		done.Add(1)
		for began := time.Now(); time.Since(began) < time.Millisecond; {
			_ = began // busy, as a fan-out is
		}
		if over.Load() == 0 {
			return true
		}
		close(ended)
		return false
	}))
	var took []int64
	for i := range 20 {
		before := done.Load()
		want := fmt.Sprint("echo ", i)
		if err := wsutil.WriteClientText(c, []byte(want)); err != nil {
			t.Fatal(err)
		}
		got, op, err := wsutil.ReadServerData(c)
		if err != nil || op != ws.OpText || string(got) != want {
			t.Fatalf("got %q, %v", got, err)
		}
		took = append(took, done.Load()-before)
	}
	// A turn is two or three slices; an echo waits for one or two turns, and then
	// for this goroutine to be run, which a busy machine may put off.
	if slices.Sort(took); took[len(took)/2] > 30 {
		t.Errorf("echoes took %d slices of the task", took)
	}
	over.Store(1)
	within(t, "the task does not end", ended)
}
