package topic

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"perch/session"
)

// What is published while the history is read follows once, in order, whatever
// of it the history has already.
func TestLiveBehindLateHistory(t *testing.T) {
	for before := range 3 { // published between the subscription and the question
		for behind := range 3 { // and before the answer
			for steps := range 4 { // of the loop, before the answer
				t.Run(fmt.Sprint(before, behind, steps), func(t *testing.T) {
					r := newRecoverRig(t, true, Options{})
					at := r.publish("a")
					r.publish("b")
					l := newFakeLoop(t, 0)
					p, other := newFakePeer(r.Topics, l, session.EncodingJSON), newFakePeer(r.Topics, l, session.EncodingJSON)
					mustSubscribe(t, r.Topics, other, "a")
					if err := r.Subscribe(&p.s, "a", positioned); err != nil {
						t.Fatal(err)
					}
					next := 'c'
					publish := func(n int) {
						for range n {
							r.publish(string(next))
							next++
						}
					}
					publish(before)
					got := recovery{}
					r.Recover(&p.s, "a", since(at.Offset)(at.Epoch), func(_ *session.Session, g Recovered, err error) {
						got.Recovered, got.err = g, err
						got.calls++
					})
					publish(behind)
					for range steps {
						l.step()
					}
					r.late.answer(-1)
					publish(1)
					l.drain()
					want := "bcdefgh"[:1+before]
					if got.calls != 1 || got.err != nil || !got.OK || got.data() != want {
						t.Fatalf("%d answers, %v: %q, want %q", got.calls, got.err, got.data(), want)
					}
					if p.text() != "" {
						t.Fatalf("%q is written before Live", p.text())
					}
					if r.Settled(&p.s) {
						t.Error("settled, while it is held back")
					}
					publish(1)
					r.Live(&p.s, "a")
					publish(1)
					l.drain()
					all := got.data() + strings.Join(received(p), "")
					if want := "bcdefghijkl"[:4+before+behind]; all != want || len(r.lost) > 0 {
						t.Errorf("got %q, want %q, lost %v", all, want, r.lost)
					}
					if !r.Settled(&p.s) {
						t.Error("not settled")
					}
					checkQuiet(t, r.Topics, l)
				})
			}
		}
	}
}

// More than may be held back is a loss, told when the client knows of its
// subscription; and nothing of it is kept meanwhile.
func TestHeldIsBounded(t *testing.T) {
	for n := range 6 {
		const one = session.PostOverhead + 1
		r := newRecoverRig(t, true, Options{HeldBytes: 3 * one})
		l := newFakeLoop(t, 0)
		p := newFakePeer(r.Topics, l, session.EncodingJSON)
		r.recover(p, SubscribeOptions{Server: true}, since(0)(""))
		want := ""
		for i := range n {
			r.publish(fmt.Sprint(i))
			want += fmt.Sprint(i)
		}
		l.drain()
		r.late.answer(-1)
		l.drain()
		if over := n > 3; memberOf(&p.s).find("a").track.held.over != over {
			t.Errorf("%d held back, over: %v", n, !over)
		} else if over && memberOf(&p.s).find("a").track.held.row != nil {
			t.Error("what is of no use is kept")
		}
		if len(r.lost) != 0 {
			t.Error("lost before Live")
		}
		r.Live(&p.s, "a")
		if n > 3 {
			want = ""
		}
		if got := strings.Join(received(p), ""); got != want || (n > 3) != slices.Equal(r.lost, []string{"a*"}) {
			t.Errorf("%d held back: got %q, lost %v", n, got, r.lost)
		}
		if c := r.Counts(); c.Losses != uint64(len(r.lost)) {
			t.Errorf("counts %+v", c)
		}
		checkQuiet(t, r.Topics, l)
	}
}

// A write that ends the subscription, or its session, ends what was held back.
func TestEndWithinLive(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(r *recoverRig, p *fakePeer)
	}{
		{"unsubscribed", func(r *recoverRig, p *fakePeer) { r.Unsubscribe(&p.s, "a") }},
		{"closed", func(r *recoverRig, p *fakePeer) { p.s.Close(session.ReasonSlow) }},
		{"closed, and another in its place", func(r *recoverRig, p *fakePeer) {
			p.s.Close(session.ReasonSlow)
			p.open(p.s.Loop(), session.EncodingJSON)
			mustSubscribe(r.t, r.Topics, p, "a")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRecoverRig(t, true, Options{})
			l := newFakeLoop(t, 0)
			p := newFakePeer(r.Topics, l, session.EncodingJSON)
			r.recover(p, SubscribeOptions{}, since(0)(""))
			for i := range 4 {
				r.publish(fmt.Sprint(i))
			}
			l.drain()
			r.late.answer(-1)
			l.drain()
			var got string
			p.onWrite = func(b []byte) {
				if got += string(b); got == "j0;j1;" {
					tt.end(r, p)
				}
			}
			r.Live(&p.s, "a")
			l.drain()
			if got != "j0;j1;" || len(r.lost) > 0 {
				t.Errorf("got %q, lost %v", got, r.lost)
			}
			checkQuiet(t, r.Topics, l)
		})
	}
}

// A history that is read on many goroutines at once, while loops run and
// publishers publish: the race detector's test.
func TestRecoverConcurrently(t *testing.T) {
	const nLoops, nPeers, each = 3, 20, 400
	var lost sync.Map
	broker := &lateBroker{Memory: NewMemory(MemoryOptions{})}
	var topics *Topics
	topics = newTopics(t, Options{
		Broker: broker, Default: NamespaceOptions{HistorySize: 10 * each, HistoryTTL: time.Hour}, RecoveryLimit: 10 * each,
		PositionInterval: time.Millisecond,
		Lost: func(s *session.Session, name string, _ bool) {
			lost.Store(s, true)
			topics.Unsubscribe(s, name)
		},
	})
	stop := make(chan struct{})
	var serving, working, answering, recovering sync.WaitGroup
	recovering.Add(nLoops * nPeers)
	var peers []*fakePeer
	for i := range nLoops {
		l := newFakeLoop(t, i)
		for range nPeers {
			p := newFakePeer(topics, l, session.EncodingJSON)
			peers = append(peers, p)
			l.do(func() {
				if err := topics.Subscribe(&p.s, "a", positioned); err != nil {
					t.Error(err)
				}
				topics.Recover(&p.s, "a", since(0)(""), func(s *session.Session, got Recovered, err error) {
					defer recovering.Done()
					if err != nil || !got.OK {
						t.Errorf("recovered %v, %v", got.OK, err)
					}
					for _, pub := range got.Publications {
						p.frames = append(p.frames, fmt.Appendf(nil, "j%s;", pub.Data))
					}
					topics.Live(s, "a")
				})
			})
		}
		serving.Go(func() { l.serve(stop) })
	}
	answered := make(chan struct{})
	answering.Go(func() {
		for {
			if broker.answer(1) > 0 {
				continue
			}
			select {
			case <-answered:
				broker.answer(-1)
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	})
	for i := range 2 {
		working.Go(func() {
			for k := range each {
				if err := publish(topics, "a", fmt.Sprintf("%d-%d", i, k)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	working.Wait()
	recovering.Wait()
	close(answered)
	answering.Wait()
	close(stop)
	serving.Wait()
	want := received(peers[0])
	if len(want) != 2*each {
		t.Errorf("%d publications arrived", len(want))
	}
	for i, p := range peers {
		if !slices.Equal(received(p), want) {
			t.Errorf("peer %d saw something else", i)
		}
	}
	lost.Range(func(any, any) bool { t.Error("a subscription is lost"); return true })
}
