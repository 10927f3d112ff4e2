package handler

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"perch/auth"
	"perch/backend"
	"perch/session"
)

// heard runs the loop until the peer was told n messages.
func (p *fakePeer) heard(n int) {
	p.t.Helper()
	p.rig.loop.until(p.t, fmt.Sprintf("%d messages", n), func() bool { return len(p.out) >= n || p.s.Closed() })
}

func TestRPC(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		r.verifier.claims["t"] = &auth.Claims{Subject: "ann", Info: []byte(`1`), Meta: []byte(`{"m":1}`)}
		p := r.open(e, nil)
		p.connect("t")
		p.send(`{"id":2,"rpc":{"method":"echo","data":{"a":1}}}`)
		p.wants(answer(2, errUnavailable))
		r.c.RegisterExamples()
		var got RPCRequest
		r.c.HandleRPC("see", func(_ context.Context, q RPCRequest) ([]byte, error) {
			got = q
			return nil, nil
		})
		p.send(`{"id":3,"rpc":{"method":"none"}}`, `{"id":4,"rpc":{"method":"echo","data":{"a":1}}}`, `{"id":5,"rpc":{"method":"time"}}`,
			`{"id":6,"rpc":{"method":"see","data":[1]}}`, `{"id":7,"rpc":{"method":"echo"}}`)
		p.heard(5)
		p.wants(answer(3, errNoMethod), `{"id":4,"rpc":{"data":{"a":1}}}`,
			`{"id":5,"rpc":{"data":{"time":"2023-11-14T22:13:20Z","unix_ms":1700000000000}}}`, `{"id":6,"rpc":{}}`, `{"id":7,"rpc":{}}`)
		if got.Method != "see" || string(got.Data) != "[1]" || got.User != "ann" || got.ClientID != r.c.clientID(&p.s) ||
			string(got.Info) != "1" || string(got.Meta) != `{"m":1}` || got.Encoding != e {
			t.Errorf("called with %+v", got)
		}
		p.idle()
	})
}

func TestRPCErrors(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		var none *Error
		for name, f := range map[string]RPCFunc{
			"own": func(context.Context, RPCRequest) ([]byte, error) {
				return nil, &Error{Code: 1000, Message: "no such door"}
			},
			"wrapped": func(context.Context, RPCRequest) ([]byte, error) {
				return nil, fmt.Errorf("db: %w", &Error{Code: 400, Message: "later", Temporary: true})
			},
			"nil":   func(context.Context, RPCRequest) ([]byte, error) { return nil, none },
			"other": func(context.Context, RPCRequest) ([]byte, error) { return nil, errors.New("disk on fire") },
			"panic": func(context.Context, RPCRequest) ([]byte, error) { panic("a nil map") },
			"fault": func(_ context.Context, q RPCRequest) ([]byte, error) { return q.Data[1<<20:], nil },
		} {
			r.c.HandleRPC(name, f)
		}
		p := r.user(e, "ann")
		for name, want := range map[string]string{
			"own":     `"error":{"code":1000,"message":"no such door"}`,
			"wrapped": `"error":{"code":400,"message":"later","temporary":true}`,
			"nil":     errInternal, "other": errInternal, "panic": errInternal, "fault": errInternal,
		} {
			p.send(fmt.Sprintf(`{"id":2,"rpc":{"method":%q}}`, name), `{"id":3,"unsubscribe":{"channel":"a"}}`)
			p.heard(2)
			p.wants(answer(2, want), `{"id":3,"unsubscribe":{}}`)
		}
		p.idle()
		log := r.log.String()
		if strings.Count(log, "disk on fire") != 1 || strings.Count(log, "a nil map") != 1 || strings.Contains(log, "no such door") {
			t.Error(log)
		}
		if n := r.c.Counters().Snapshot(); n.RPCPanics != 2 || n.Errors[0] != 2 {
			t.Errorf("%+v", n)
		}
	})
	r := newRig(t)
	r.c.HandleRPC("raw", func(context.Context, RPCRequest) ([]byte, error) { return []byte("no json"), nil })
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"rpc":{"method":"raw"}}`)
	p.heard(1)
	p.wants(answer(2, errInternal))
}

// TestRPCNotEncoded: answers that are no JSON are counted each, and logged once for
// each method of the process, once for the backend.
func TestRPCNotEncoded(t *testing.T) {
	r, b := newBackend(t, methods(backend.RPC))
	for _, name := range []string{"raw", "bad"} {
		r.c.HandleRPC(name, func(context.Context, RPCRequest) ([]byte, error) { return []byte("no json"), nil })
	}
	b.say("rpc", `{"result":{"b64data":"bm8ganNvbg=="}}`)
	p, q := r.user(session.EncodingJSON, "ann"), r.user(session.EncodingProtobuf, "bob")
	for range 5 {
		for _, name := range []string{"raw", "bad", "theirs", "any " + strings.Repeat("x", 100)} {
			p.send(fmt.Sprintf(`{"id":2,"rpc":{"method":%q}}`, name))
			p.heard(1)
			p.wants(answer(2, errInternal))
		}
	}
	q.send(`{"id":2,"rpc":{"method":"raw"}}`)
	q.heard(1)
	if got := q.replies(); got[0].Error != nil || string(got[0].Rpc.Data) != "no json" {
		t.Errorf("Protobuf carries all, and %v", got)
	}
	if n := r.c.Counters().Snapshot().NotEncoded; n != 20 {
		t.Errorf("%d counted", n)
	}
	log := r.log.String()
	for _, name := range []string{"raw", "bad", "theirs"} {
		if strings.Count(log, `method \"`+name+`\"`) != 1 {
			t.Errorf("%s is not named once: %s", name, log)
		}
	}
	if n := strings.Count(log, "reply not encoded"); n != 3 {
		t.Errorf("%d lines: %s", n, log)
	}
}

// TestCommandRateOfBacklog: commands are taken from the rate as they come. What has
// come within it is done, however fast, when what it waited for is; what was above
// it is refused then, in its turn.
func TestCommandRateOfBacklog(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, func(o *rigOptions) { o.CommandRate = 1 })
		gate := make(chan struct{})
		r.c.HandleRPC("wait", func(context.Context, RPCRequest) ([]byte, error) {
			<-gate
			return nil, nil
		})
		// The rates have a clock of their own, which begins here: a second before.
		second := func() { r.c.began = r.c.began.Add(-time.Second) }
		p := r.user(e, "ann")
		second()
		p.send(`{"id":2,"rpc":{"method":"wait"}}`)
		for id := 3; id < 6; id++ {
			second()
			p.send(fmt.Sprintf(`{"id":%d,"unsubscribe":{"channel":"a"}}`, id))
		}
		p.send(`{"id":6,"unsubscribe":{"channel":"a"}}`)
		second()
		p.send(`{"id":7,"unsubscribe":{"channel":"a"}}`)
		p.wants()
		close(gate)
		p.heard(6)
		p.wants(`{"id":2,"rpc":{}}`, `{"id":3,"unsubscribe":{}}`, `{"id":4,"unsubscribe":{}}`, `{"id":5,"unsubscribe":{}}`,
			answer(6, `"error":{"code":111,"message":"too many requests","temporary":true}`), `{"id":7,"unsubscribe":{}}`)
		if n := r.c.Counters().RateLimited.Load(); n != 1 {
			t.Errorf("%d over the rate", n)
		}
		p.idle()
		// The backlog's commands have been taken once.
		second()
		p.send(`{"id":8,"unsubscribe":{"channel":"a"}}`)
		p.wants(`{"id":8,"unsubscribe":{}}`)
	})
}

func TestRPCIsNotOvertaken(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		gate := make(chan struct{})
		r.c.HandleRPC("wait", func(_ context.Context, q RPCRequest) ([]byte, error) {
			<-gate
			return q.Data, nil
		})
		r.c.RegisterExamples()
		p, other := r.user(e, "ann"), r.user(e, "bob")
		p.send(`{"id":2,"rpc":{"method":"wait","data":1}}`, `{"id":3,"subscribe":{"channel":"a"}}`)
		p.send(`{"id":4,"rpc":{"method":"echo","data":2}}`)
		p.send(`{"id":5,"publish":{"channel":"b","data":3}}`, `{"id":6,"rpc":{"method":"none"}}`, `{"id":7,"unsubscribe":{"channel":"a"}}`)
		other.send(`{"id":2,"rpc":{"method":"echo","data":"o"}}`)
		other.heard(1)
		other.wants(`{"id":2,"rpc":{"data":"o"}}`)
		p.wants()
		close(gate)
		p.heard(6)
		p.wants(`{"id":2,"rpc":{"data":1}}`, `{"id":3,"subscribe":{}}`, `{"id":4,"rpc":{"data":2}}`, `{"id":5,"publish":{}}`, answer(6, errNoMethod), `{"id":7,"unsubscribe":{}}`)
		p.idle()
	})
}

// TestOrderUnderThePool has many sessions send many calls of uneven length; each
// hears its answers in its own order.
func TestOrderUnderThePool(t *testing.T) {
	r := newRig(t, func(o *rigOptions) { o.Pool.Workers = 8 })
	r.loop.room = 64 << 20
	r.c.HandleRPC("some", func(_ context.Context, q RPCRequest) ([]byte, error) {
		if len(q.Data)%2 == 0 {
			for range 10 * len(q.Data) {
				runtime.Gosched() // the longer the slower
			}
		}
		return q.Data, nil
	})
	const peers, calls = 20, 60
	var list []*fakePeer
	for i := range peers {
		list = append(list, r.user(session.EncodingJSON, fmt.Sprint("u", i)))
	}
	for n := range calls {
		for i, p := range list {
			if n%5 == 4 {
				p.send(fmt.Sprintf(`{"id":%d,"unsubscribe":{"channel":"a"}}`, n+2))
				continue
			}
			p.send(fmt.Sprintf(`{"id":%d,"rpc":{"method":"some","data":%q}}`, n+2, strings.Repeat("x", (n*7+i)%13)))
		}
	}
	for _, p := range list {
		p.heard(calls)
		for n, reply := range p.replies() {
			if int(reply.Id) != n+2 || reply.Error != nil {
				t.Fatalf("answer %d is %v", n, reply)
			}
		}
	}
	for _, p := range list {
		p.idle()
	}
}

func TestBacklogOverflow(t *testing.T) {
	tests := []struct {
		overflow Overflow
		reason   session.Reason
	}{{OverflowReply, 0}, {OverflowClose, session.ReasonTooManyRequests}}
	for _, tt := range tests {
		t.Run(string(tt.overflow), func(t *testing.T) {
			both(t, func(t *testing.T, e session.Encoding) {
				r := newRig(t, func(o *rigOptions) { o.SessionBytes, o.Overflow = 120, tt.overflow })
				gate := make(chan struct{})
				r.c.HandleRPC("wait", func(context.Context, RPCRequest) ([]byte, error) {
					<-gate
					return nil, nil
				})
				p := r.user(e, "ann")
				p.send(`{"id":2,"rpc":{"method":"wait"}}`, `{"id":3,"unsubscribe":{"channel":"`+strings.Repeat("a", 20)+`"}}`)
				p.wants()
				p.send(`{"id":4,"unsubscribe":{"channel":"` + strings.Repeat("a", 150) + `"}}`)
				close(gate)
				if tt.reason != 0 {
					p.wantsClose(tt.reason)
					return
				}
				p.wants(answer(4, errTooMany))
				p.heard(2)
				p.wants(`{"id":2,"rpc":{}}`, `{"id":3,"unsubscribe":{}}`)
				p.idle()
				if n := r.c.Counters().Snapshot().BacklogOverflow; n != 1 {
					t.Errorf("%d counted", n)
				}
			})
		})
	}
	t.Run("malformed", func(t *testing.T) {
		r := newRig(t, func(o *rigOptions) { o.SessionBytes = 10 })
		r.c.HandleRPC("wait", func(ctx context.Context, _ RPCRequest) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		p := r.user(session.EncodingJSON, "ann")
		p.send(`{"id":2,"rpc":{"method":"wait"}}`)
		r.c.Message(&p.s, []byte(`{"id":"not a number at all"}`), false)
		p.wantsClose(session.ReasonBadRequest)
	})
}

// TestLongBacklog gives the loop's other work its turn.
func TestLongBacklog(t *testing.T) {
	r := newRig(t)
	gate := make(chan struct{})
	r.c.HandleRPC("wait", func(context.Context, RPCRequest) ([]byte, error) {
		<-gate
		return nil, nil
	})
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"rpc":{"method":"wait"}}`)
	const n = 3 * drainSlice
	for i := range n {
		p.send(fmt.Sprintf(`{"id":%d,"unsubscribe":{"channel":"a"}}`, i+3))
	}
	close(gate)
	var between int
	r.loop.until(t, "the call", func() bool {
		if between == 0 && len(p.out) > 1 {
			between = len(p.out)
		}
		return len(p.out) == n+1
	})
	for i, reply := range p.replies() {
		if int(reply.Id) != i+2 {
			t.Fatalf("answer %d is of %d", i, reply.Id)
		}
	}
	p.idle()
}

func TestPoolWithoutRoom(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		for _, overflow := range []Overflow{OverflowReply, OverflowClose} {
			r := newRig(t, func(o *rigOptions) { o.Pool.QueueBytes, o.Overflow = 1, overflow })
			r.c.RegisterExamples()
			p := r.user(e, "ann")
			p.send(`{"id":2,"rpc":{"method":"echo","data":1}}`)
			if overflow == OverflowClose {
				p.wantsClose(session.ReasonTooManyRequests)
				p.idle()
				continue
			}
			p.send(`{"id":3,"refresh":{"token":"slow-ann"}}`, `{"id":4,"subscribe":{"channel":"a","token":"slow-x"}}`)
			p.wants(answer(2, errTooMany), answer(3, errTooMany), answer(4, errTooMany))
			p.idle()
			q := r.open(e, nil)
			q.send(`{"id":1,"connect":{"token":"slow-ann"}}`, `{"id":2,"unsubscribe":{"channel":"a"}}`)
			q.wants(answer(1, errTooMany))
			q.wantsOpen()
			if n := r.c.Counters().Snapshot().PoolFull; n != 4 {
				t.Errorf("%d counted", n)
			}
		}
	})
	t.Run("inbox", func(t *testing.T) {
		r := newRig(t)
		r.c.RegisterExamples()
		p := r.user(session.EncodingJSON, "ann")
		r.loop.room = session.PostOverhead - 1
		p.send(`{"id":2,"rpc":{"method":"echo","data":1}}`, `{"id":3,"refresh":{"token":"slow-ann"}}`)
		p.wants(answer(2, errTooMany), answer(3, errTooMany))
		p.idle()
	})
	t.Run("long answer", func(t *testing.T) {
		r := newRig(t)
		r.c.HandleRPC("long", func(context.Context, RPCRequest) ([]byte, error) {
			return []byte(`"` + strings.Repeat("x", 4000) + `"`), nil
		})
		p := r.user(session.EncodingJSON, "ann")
		p.send(`{"id":2,"rpc":{"method":"long"}}`)
		p.heard(1)
		if got := p.replies(); len(got[0].Rpc.GetData()) != 4002 {
			t.Errorf("%v", got)
		}
		p.idle()
		r.loop.room = 3000
		p.send(`{"id":3,"rpc":{"method":"long"}}`)
		p.heard(1)
		p.wants(answer(3, errTooMany))
		p.idle()
	})
}

func TestBlockedMethodHarmsNobodyElse(t *testing.T) {
	r := newRig(t, func(o *rigOptions) { o.Pool.Workers, o.Pool.QueueBytes = 8, 8<<10 })
	gate := make(chan struct{})
	defer close(gate)
	var blocked atomic.Int32
	r.c.HandleRPC("block", func(context.Context, RPCRequest) ([]byte, error) {
		blocked.Add(1)
		<-gate // whatever becomes of its context
		return nil, nil
	})
	r.c.RegisterExamples()
	refused := 0
	for i := range 40 {
		p := r.user(session.EncodingJSON, fmt.Sprint("b", i))
		p.send(`{"id":2,"rpc":{"method":"block"}}`)
		refused += len(p.replies())
	}
	if refused == 0 {
		t.Error("the lane of the blocked method has no bound")
	}
	good := r.user(session.EncodingJSON, "ann")
	for i := range 20 {
		good.send(fmt.Sprintf(`{"id":%d,"rpc":{"method":"echo","data":%d}}`, i+2, i))
		good.heard(1)
		good.wants(fmt.Sprintf(`{"id":%d,"rpc":{"data":%d}}`, i+2, i))
	}
	good.send(`{"id":90,"refresh":{"token":"slow-ann"}}`)
	good.heard(1)
	good.wants(`{"id":90,"refresh":{}}`)
	if n := int(blocked.Load()); n > 4 {
		t.Errorf("%d of 8 workers are blocked", n)
	}
}

func TestRPCTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *rigOptions) { o.CallTimeout, o.Pool.Workers = time.Second, 4 })
		gate := make(chan struct{})
		var ran atomic.Int32
		r.c.HandleRPC("polite", func(ctx context.Context, _ RPCRequest) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		r.c.HandleRPC("deaf", func(context.Context, RPCRequest) ([]byte, error) {
			ran.Add(1)
			<-gate
			return []byte("1"), nil
		})
		a, b, d := r.user(session.EncodingJSON, "ann"), r.user(session.EncodingJSON, "bob"), r.user(session.EncodingJSON, "dan")
		for _, p := range []*fakePeer{a, b, d} {
			method := map[*fakePeer]string{a: "polite", b: "deaf", d: "deaf"}[p]
			p.send(fmt.Sprintf(`{"id":2,"rpc":{"method":%q}}`, method), `{"id":3,"unsubscribe":{"channel":"a"}}`)
		}
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		r.loop.turn()
		if len(a.out)+len(b.out)+len(d.out) != 0 {
			t.Fatal("answered early")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		r.loop.turn()
		for _, p := range []*fakePeer{a, b, d} {
			p.wants(answer(2, errInternal), `{"id":3,"unsubscribe":{}}`)
			p.idle()
		}
		if s := r.pool.Stats(); s.Depth != 0 || s.Bytes != 0 {
			t.Errorf("the pool holds calls that nobody waits for: %+v", s)
		}
		close(gate)
		synctest.Wait()
		r.loop.turn()
		b.wants()
		if ran.Load() != 1 {
			t.Errorf("%d deaf calls ran", ran.Load())
		}
		if n := r.c.Counters().Snapshot().RPCTimeouts; n != 3 {
			t.Errorf("%d timeouts", n)
		}
		if strings.Contains(r.log.String(), "method failed") {
			t.Error(r.log.String())
		}
		r.close()
	})
}

func TestRPCEndsWithItsSession(t *testing.T) {
	r := newRig(t)
	begun, ended := make(chan struct{}), make(chan error, 1)
	r.c.HandleRPC("wait", func(ctx context.Context, _ RPCRequest) ([]byte, error) {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	})
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"rpc":{"method":"wait"}}`, `{"id":3,"unsubscribe":{"channel":"a"}}`)
	<-begun
	p.CloseWith(session.ReasonPeerGone, 0, "")
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	r.loop.until(t, "the room", func() bool { return r.loop.inUse() == 0 })
	p.wants()
	p.idle()
	if n := r.c.Counters().Snapshot().RPCTimeouts; n != 0 {
		t.Errorf("%d timeouts", n)
	}
	q := r.user(session.EncodingJSON, "bob")
	q.send(`{"id":2,"rpc":{"method":"wait"}}`)
	<-begun
	r.c.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	q.heard(1)
	q.wants(answer(2, errInternal))
}

func TestSend(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		p := r.user(e, "ann")
		p.send(`{"send":{"data":1}}`)
		p.wantsClose(session.ReasonNotAvailable)
		var mu sync.Mutex
		var got []string
		r.c.HandleSend(func(_ context.Context, q SendRequest) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, q.User+":"+string(q.Data))
			if string(q.Data) == "2" {
				return errors.New("lost")
			}
			return nil
		})
		p = r.user(e, "ann")
		p.send(`{"send":{"data":1}}`, `{"send":{"data":2}}`, `{"id":7,"send":{"data":3}}`, `{"id":2,"unsubscribe":{"channel":"a"}}`)
		p.heard(1)
		r.loop.turn()
		p.wants(`{"id":2,"unsubscribe":{}}`)
		mu.Lock()
		defer mu.Unlock()
		if strings.Join(got, " ") != "ann:1 ann:2 ann:3" {
			t.Errorf("%v", got)
		}
		p.idle()
		if !strings.Contains(r.log.String(), "lost") {
			t.Error("an error of the handler is not logged")
		}
	})
}

func TestHandleRPCWhileCalled(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			r.c.HandleRPC(fmt.Sprint("m", i), func(context.Context, RPCRequest) ([]byte, error) { return []byte(fmt.Sprint(i)), nil })
		})
	}
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"rpc":{"method":"m1"}}`)
	p.heard(1)
	p.replies()
	wg.Wait()
	for i := range 20 {
		p.send(fmt.Sprintf(`{"id":%d,"rpc":{"method":"m%d"}}`, i+3, i))
		p.heard(1)
		p.wants(fmt.Sprintf(`{"id":%d,"rpc":{"data":%d}}`, i+3, i))
	}
}
