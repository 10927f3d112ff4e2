package netpoll

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"perch/session"
)

// sound checks the wheel's lists.
func (r *rig) sound() {
	r.t.Helper()
	l, n := r.loop, 0
	for i := range l.wheel.heads {
		prev := uint32(0)
		for at := l.wheel.heads[i]; at != 0; {
			c := l.conn(at - 1)
			if n++; n > len(l.chunks)*int(chunkSize) {
				r.t.Fatal("a list of the wheel has no end")
			}
			if c.prev != prev || int(c.due%wheelSlots) != i || c.due <= l.wheel.now || c.due >= l.wheel.now+wheelSlots {
				r.t.Fatalf("at tick %d place %d holds a conn due at %d, behind %d, not %d", l.wheel.now, i, c.due, c.prev, prev)
			}
			if c.mode == modeFree || c.mode == modeGone {
				r.t.Fatal("the wheel holds a conn that is gone")
			}
			prev, at = at, c.next
		}
	}
	if n != l.wheel.count {
		r.t.Fatalf("the wheel holds %d conns and counts %d", n, l.wheel.count)
	}
}

// Every deadline is met not before its time and at most two ticks after it,
// whatever else begins and ends meanwhile.
func TestWheelAgainstModel(t *testing.T) {
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 2))
			r := newRig(t, func(o *Options) { o.PingInterval = 0 })
			r.handler.quiet = true
			// Half of the runs look at the wheel at odd times.
			gap := time.Duration(0)
			if seed%2 == 1 {
				gap = tick
			}
			model := make(map[*peer]time.Time)
			met := 0
			span := func() time.Duration { // from at once to three turns of the wheel
				return time.Duration(random.Int64N(int64(1) << (10 + random.IntN(28))))
			}
			set := func(p *peer) {
				d := span()
				model[p] = time.Now().Add(d)
				p.c.setDeadline(d)
			}
			drop := func(p *peer) {
				delete(model, p)
				p.end()
			}
			some := func() *peer {
				for p := range model { // in any order, which is as good
					return p
				}
				return nil
			}
			for range 3000 {
				for range random.IntN(3) {
					switch p := some(); {
					case p == nil || random.IntN(3) == 0:
						set(r.accept())
					case random.IntN(4) == 0:
						drop(p)
					case random.IntN(4) == 0: // it has no deadline for a while
						p.c.deadline = 0
						p.c.reschedule()
						if p.c.due != 0 {
							t.Fatal("in the wheel without a deadline")
						}
						set(p)
					default:
						set(p)
					}
				}
				if random.IntN(50) == 0 { // a stall
					time.Sleep(span() % time.Minute)
					gap = max(gap, time.Minute)
				}
				switch {
				case seed%2 == 0:
					time.Sleep(tick - time.Since(r.loop.start)%tick)
				default:
					time.Sleep(time.Duration(random.Int64N(int64(tick))))
				}
				stalled := gap >= time.Minute
				r.tick()
				r.sound()
				for p, due := range model {
					switch now := time.Now(); {
					case p.gone() && now.Before(due):
						t.Fatalf("met %v early", due.Sub(now))
					case p.gone():
						met++
						drop(p)
					case now.Sub(due) > 2*tick+gap%time.Minute && !stalled:
						t.Fatalf("%v late", now.Sub(due))
					case now.Sub(due) > 2*tick+tick:
						t.Fatalf("%v late behind a stall", now.Sub(due))
					}
				}
				if stalled {
					gap = time.Duration(seed%2) * tick
				}
			}
			if met < 500 {
				t.Errorf("%d deadlines met", met)
			}
		})
	}
}

// What fires may end others that are due at the same time, and those that are
// not yet.
func TestWheelFireEndsOthers(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 3))
			r := newRig(t, func(o *Options) { o.PingInterval = 0 })
			var peers []*peer
			at := make(map[session.ID]time.Time)
			r.handler.expire = func(s *session.Session) {
				if early := time.Until(at[s.ID()]); early > 0 {
					t.Errorf("expired %v early", early)
				}
				delete(at, s.ID())
				for range random.IntN(4) {
					p := peers[random.IntN(len(peers))]
					if p.gone() || p.c.sess.Closed() {
						continue
					}
					delete(at, p.sess().ID())
					if random.IntN(2) == 0 {
						p.c.drop() // out of the wheel, in the midst of its turn
					} else {
						p.sess().Close(session.ReasonExpired) // to another place in it
					}
				}
				if random.IntN(3) == 0 {
					panic("asked for")
				}
			}
			for range 200 {
				p := r.upgraded()
				peers = append(peers, p)
				when := time.Now().Add(time.Duration(1+random.IntN(5)) * time.Second).Truncate(time.Second)
				at[p.sess().ID()] = when
				p.sess().SetExpiry(when.Unix())
			}
			for range 100 {
				time.Sleep(tick)
				r.tick()
				r.sound()
				for id, when := range at {
					if c := r.loop.find(id); c == nil {
						delete(at, id)
					} else if time.Since(when) > 2*tick {
						t.Fatalf("expired not, %v behind its time", time.Since(when))
					}
				}
			}
			if len(at) > 0 {
				t.Errorf("%d sessions have not expired", len(at))
			}
		})
	}
}

// A loop that had nothing to do for hours, or whose process was stopped, keeps
// right time afterwards.
func TestWheelAfterHours(t *testing.T) {
	for name, ticking := range map[string]bool{"ticked": true, "not ticked": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, nil) // HandshakeTimeout is 5 s
				sleep := func(d time.Duration) {
					if !ticking {
						time.Sleep(d)
						return
					}
					for range d / tick {
						time.Sleep(tick)
						r.tick()
					}
				}
				p := r.accept()
				sleep(time.Second)
				p.end()
				sleep(5 * time.Hour)
				p = r.accept()
				if r.loop.wheel.now != r.loop.present() {
					t.Error("an empty wheel is turned through all that time")
				}
				began := time.Now()
				r.until(p.gone, r.sound)
				if took := time.Since(began); took < 5*time.Second || took > 5*time.Second+2*tick {
					t.Errorf("the deadline of 5 s was met after %v", took)
				}
				// A session without any deadline does not keep the wheel from telling the
				// time to the next one.
				r.server.pingTicks = 0
				idle := r.upgraded()
				if idle.c.due != 0 {
					t.Error("a session without a deadline is in the wheel")
				}
				sleep(3 * time.Hour)
				idle.sess().SetExpiry(time.Now().Add(10 * time.Second).Unix())
				p = r.accept()
				began = time.Now()
				r.until(p.gone, r.sound)
				if took := time.Since(began); took < 5*time.Second || took > 5*time.Second+2*tick {
					t.Errorf("beside an idle session the deadline of 5 s was met after %v", took)
				}
			})
		})
	}
}

// A stop of the process makes deadlines late, not twice and not lost.
func TestWheelAfterStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		for range 20 {
			r.upgraded()
			r.accept()
			time.Sleep(300 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		r.tick()
		if n := r.loop.stats.Pings.Load(); n != 20 {
			t.Errorf("%d pings after a stall", n)
		}
		if n := r.loop.stats.Outcomes[OutcomeTimeout].Load(); n != 20 {
			t.Errorf("%d handshakes timed out", n)
		}
		r.sound()
	})
}

// The deadlines of a moment are met in slices.
func TestFiresPerSlice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		const n = 3*firesPerSlice + 10
		for range n {
			r.accept()
		}
		time.Sleep(6 * time.Second)
		task := turnWheel{r.loop}
		for left := n; left > 0; {
			more := task.Run()
			left = max(0, left-firesPerSlice)
			if got := int(r.loop.stats.Open.Load()); got != left || more != (left > 0) {
				t.Fatalf("%d are left, more: %v, want %d", got, more, left)
			}
		}
		r.sound()
	})
}

// A tick asks for a turn of the wheel only where none waits and there is
// something to look at.
func TestTickOnce(t *testing.T) {
	r := newRig(t, nil)
	r.loop.tick()
	if len(r.loop.inbox.items) != 0 {
		t.Error("a loop without connections is asked for a turn")
	}
	r.accept()
	for range 5 {
		r.loop.tick()
	}
	if len(r.loop.inbox.items) != 1 {
		t.Errorf("%d turns of the wheel wait", len(r.loop.inbox.items))
	}
	r.turn()
	r.loop.tick()
	if len(r.loop.inbox.items) != 1 {
		t.Error("the next tick is lost")
	}
	r.turn()
}

// With misses to spare two pings may be under way: both pongs are asked for,
// a third is not.
func TestPongsOfTwoPings(t *testing.T) {
	r := newRig(t, func(o *Options) { o.PingMisses = 3 })
	p := r.upgraded()
	r.post(func() { p.c.StartHeartbeat() })
	p.c.awaiting, p.c.misses, p.c.owed = true, 1, 2
	for i, want := range []bool{true, true, false} {
		if got := p.c.Pong(); got != want {
			t.Errorf("pong %d: %v", i+1, got)
		}
	}
	if p.c.misses != 0 || p.c.awaiting {
		t.Error("the answered ping still counts")
	}
}

// A process that was stopped for longer than a pong may take has not read the
// pongs that came: nobody is closed for it, save who is silent afterwards too.
func TestStallIsNoMiss(t *testing.T) {
	r := newRig(t, func(o *Options) { o.PingInterval, o.PongTimeout = 2*time.Second, time.Second })
	p := r.upgraded()
	r.post(func() { p.c.StartHeartbeat() })
	pass := func(d time.Duration) {
		r.loop.start = r.loop.start.Add(-d)
		for (turnWheel{r.loop}).Run() {
		}
		r.loop.flushDirty()
	}
	for !p.c.awaiting {
		pass(tick)
	}
	pass(time.Minute)
	if p.c.mode != modeWebSocket {
		t.Fatal("closed for the stall")
	}
	for range 15 {
		pass(tick)
	}
	if p.c.mode == modeWebSocket {
		t.Error("silence after the stall goes unpunished")
	}
}
