package handler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	pb "github.com/centrifugal/protocol"

	"perch/protocol"
	"perch/session"
)

const (
	errInternal    = `"error":{"code":100,"message":"internal server error","temporary":true}`
	errUnknown     = `"error":{"code":102,"message":"unknown channel"}`
	errDenied      = `"error":{"code":103,"message":"permission denied"}`
	errNoMethod    = `"error":{"code":104,"message":"method not found"}`
	errAlready     = `"error":{"code":105,"message":"already subscribed"}`
	errLimit       = `"error":{"code":106,"message":"limit exceeded"}`
	errRequest     = `"error":{"code":107,"message":"bad request"}`
	errUnavailable = `"error":{"code":108,"message":"not available"}`
	errTokenOld    = `"error":{"code":109,"message":"token expired"}`
	errTooMany     = `"error":{"code":111,"message":"too many requests","temporary":true}`
)

func answer(id int, what string) string { return fmt.Sprintf(`{"id":%d,%s}`, id, what) }

func TestFirstMessageOfAnSDK(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		p := r.open(e, nil)
		p.send(`{"id":1,"connect":{"token":"ann","name":"js"}}`, `{"id":2,"subscribe":{"channel":"news"}}`, `{"id":3,"subscribe":{"channel":"sport"}}`)
		p.wants(
			`{"id":1,"connect":{"client":"`+r.c.clientID(&p.s)+`","version":"v","ping":25,"pong":true}}`,
			`{"id":2,"subscribe":{}}`, `{"id":3,"subscribe":{}}`)
		if !p.beating || p.s.User() != "ann" || p.s.Anonymous || p.expiry != 0 {
			t.Errorf("session %+v", p.s)
		}
		if ids := r.registry.ByUser("ann", nil); len(ids) != 1 || ids[0] != p.s.ID() {
			t.Errorf("the registry has %v", ids)
		}
		p.idle()
		p.CloseWith(session.ReasonPeerClosed, 0, "")
		if r.registry.Count() != 0 || r.topics.Counts().Topics != 0 {
			t.Error("something of the session stays")
		}
	})
}

// TestMessageInParts: what a message brings about does not depend on how many of
// its commands are handled in a turn, also where one of them waits for the pool.
func TestMessageInParts(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		var commands, want []string
		for id := 2; id < 60; id++ {
			switch id % 3 {
			case 0:
				commands = append(commands, answer(id, `"rpc":{"method":"echo","data":1}`))
				want = append(want, answer(id, `"rpc":{"data":1}`))
			case 1:
				commands = append(commands, answer(id, `"rpc":{"method":"none"}`))
				want = append(want, answer(id, errNoMethod))
			default:
				commands = append(commands, answer(id, `"unsubscribe":{"channel":"t"}`))
				want = append(want, answer(id, `"unsubscribe":{}`))
			}
		}
		for _, most := range []int{1, 7, 58, 1000} {
			t.Run(fmt.Sprint(most), func(t *testing.T) {
				r := newRig(t)
				r.c.RegisterExamples()
				p := r.open(e, nil)
				p.connect("ann")
				rest, done, parts := p.message(commands...), 0, 0
				for {
					var n int
					rest, n = r.c.MessagePart(&p.s, rest, e == session.EncodingProtobuf, done, most)
					done, parts = done+n, parts+1
					if n > most {
						t.Fatalf("%d commands at once", n)
					}
					if len(rest) == 0 {
						break
					}
					r.loop.turn()
				}
				if done != len(commands) || parts != max(1, (len(commands)+most-1)/most) {
					t.Errorf("%d commands in %d parts", done, parts)
				}
				r.loop.until(t, "all replies", func() bool { return len(p.out) == len(want) || p.s.Closed() })
				p.wants(want...)
				p.idle()
			})
		}
	})
}

func TestMessagesOutOfPlace(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		tests := []struct {
			name      string
			connected bool
			commands  []string
		}{
			{"subscribe first", false, []string{`{"id":1,"subscribe":{"channel":"a"}}`}},
			{"pong first", false, []string{`{}`}},
			{"connect without id", false, []string{`{"connect":{"token":"ann"}}`}},
			{"no token", false, []string{`{"id":1,"connect":{}}`}},
			{"second connect", true, []string{`{"id":2,"connect":{"token":"ann"}}`}},
			{"no id", true, []string{`{"subscribe":{"channel":"a"}}`}},
			{"no request", true, []string{`{"id":2}`}},
			{"ping request", true, []string{`{"id":2,"ping":{}}`}},
			{"pong without ping", true, []string{`{}`}},
			{"two pongs", true, []string{`{}`, `{}`}},
			{"subscribe to nothing", true, []string{`{"id":2,"subscribe":{}}`}},
			{"unsubscribe from nothing", true, []string{`{"id":2,"unsubscribe":{}}`}},
			{"publish to nothing", true, []string{`{"id":2,"publish":{"data":1}}`}},
			{"refresh without token", true, []string{`{"id":2,"refresh":{}}`}},
			{"sub refresh of nothing", true, []string{`{"id":2,"sub_refresh":{"token":"x"}}`}},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				r := newRig(t)
				p := r.open(e, nil)
				if tt.connected {
					p.connect("ann")
				}
				p.send(append(tt.commands, `{"id":9,"subscribe":{"channel":"b"}}`)...)
				p.wantsClose(session.ReasonBadRequest)
				p.wants()
				if p.closed != 1 || r.topics.Counts().Subscriptions != 0 || p.s.Work != nil {
					t.Error("something came after the close")
				}
			})
		}
	})
	t.Run("malformed", func(t *testing.T) {
		for _, msg := range []string{"", "\n", "{", "x", `{"id":1,"connect":{"token":1}}`, "[]"} {
			p := newRig(t).open(session.EncodingJSON, nil)
			p.rig.c.Message(&p.s, []byte(msg), false)
			p.wantsClose(session.ReasonBadRequest)
		}
		for _, msg := range []string{"", "\x05\x08", "\x02\xff\xff", "\x80"} {
			p := newRig(t).open(session.EncodingProtobuf, nil)
			p.rig.c.Message(&p.s, []byte(msg), true)
			p.wantsClose(session.ReasonBadRequest)
		}
	})
}

func TestPong(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		p := newRig(t).user(e, "ann")
		for _, commands := range [][]string{{`{}`}, {`{}`, `{"id":2,"unsubscribe":{"channel":"a"}}`}, {`{"id":2,"unsubscribe":{"channel":"a"}}`, `{}`}} {
			p.pinged = true
			p.send(commands...)
			p.wantsOpen()
			if p.pinged {
				t.Errorf("%v: the pong was not seen", commands)
			}
		}
	})
	p := newRig(t).user(session.EncodingJSON, "ann")
	for _, msg := range []string{"{}\n", "{ }", `{"id":0}`} {
		p.pinged = true
		p.rig.c.Message(&p.s, []byte(msg), false)
		if p.pinged || p.s.Closed() {
			t.Errorf("%q is no pong", msg)
		}
	}
}

func TestPongCostsNothing(t *testing.T) {
	for e, msg := range map[session.Encoding][]byte{session.EncodingJSON: []byte("{}"), session.EncodingProtobuf: {0}} {
		p := newRig(t).user(e, "ann")
		if n := testing.AllocsPerRun(100, func() {
			p.pinged = true
			p.rig.c.Message(&p.s, msg, false)
		}); n != 0 {
			t.Errorf("a pong costs %v allocations", n)
		}
	}
}

// quiet is a transport that keeps nothing.
type quiet struct{ *fakePeer }

func (quiet) WriteMessage([]byte, bool) {}

func TestRepliesCostNothing(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		p := &fakePeer{t: t, rig: r}
		p.s.Open(quiet{p}, r.loop, session.MakeID(3, 9, 9))
		p.s.Encoding = e
		p.s.State = session.StateConnected
		data := []byte(`{"a":1}`)
		pub := &publishing{c: r.c, id: 4}
		run, called := &running{c: r.c, id: 5}, r.c.called(5, "m", &r.c.unsaid, data)
		ns, _ := r.topics.Namespace("a")
		w := wish{id: 6, name: "a", ns: ns, request: &pb.SubscribeRequest{}}
		if n := testing.AllocsPerRun(100, func() {
			pub.answer(&p.s)
			r.c.subscribed(&p.s, &w)
			r.topics.Unsubscribe(&p.s, "a")
			run.reply(&p.s, called, nil)
		}); n > 8 { // the subscription's own: topic, member, lists
			t.Errorf("%v allocations", n)
		}
		if n := testing.AllocsPerRun(100, func() {
			pub.answer(&p.s)
			run.reply(&p.s, called, nil)
		}); n != 0 {
			t.Errorf("hot replies cost %v allocations", n)
		}
	})
}

func TestCommandsOfLaterIssues(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		p := newRig(t).user(e, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"a","recover":true,"offset":5,"positioned":true,"recoverable":true,"join_leave":true,"delta":"fossil"}}`,
			`{"id":3,"presence":{"channel":"a"}}`, `{"id":4,"presence_stats":{"channel":"a"}}`, `{"id":5,"history":{"channel":"a"}}`,
			`{"id":6,"subscribe":{"channel":"b","type":1}}`, `{"id":7,"publish":{"channel":"b","type":1,"data":1}}`,
			`{"id":8,"sub_refresh":{"channel":"b","type":1}}`)
		p.wants(`{"id":2,"subscribe":{}}`, answer(3, errUnavailable), answer(4, errUnavailable), answer(5, errUnavailable),
			answer(6, errUnavailable), answer(7, errUnavailable), answer(8, errUnavailable))
		p.idle()
	})
}

func TestCounters(t *testing.T) {
	r := newRig(t)
	p := r.user(session.EncodingJSON, "ann")
	p.send(`{"id":2,"subscribe":{"channel":"nope:a"}}`, `{"id":3,"history":{"channel":"a"}}`, `{"id":4,"unsubscribe":{"channel":"a"}}`, `{}`)
	got := r.c.Counters().Snapshot()
	want := map[string]uint64{"connect": 1, "subscribe": 1, "history": 1, "unsubscribe": 1}
	for name, n := range got.Commands {
		if n != want[name] {
			t.Errorf("%d of %s", n, name)
		}
	}
	if got.Errors[102] != 1 || got.Errors[108] != 1 || got.Errors[0] != 0 || got.Malformed != 1 {
		t.Errorf("%+v", got)
	}
	r.c.counters.failed(400)
	r.c.counters.failed(7)
	if n := r.c.Counters().Snapshot().Errors[0]; n != 2 {
		t.Errorf("%d errors of applications", n)
	}
}

// TestCommandRefused: each error that answers a command has a line at Debug that says
// why, and costs nothing where nobody reads it.
func TestCommandRefused(t *testing.T) {
	for _, overflow := range []Overflow{OverflowReply, OverflowClose} {
		log := &syncBuffer{}
		r := newRig(t, func(o *rigOptions) {
			o.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			o.CommandRate, o.Topics.MaxSubscriptions, o.Overflow = 5, 1, overflow
		})
		p := r.user(session.EncodingJSON, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"a"}}`, `{"id":3,"subscribe":{"channel":"b"}}`, `{"id":4,"presence":{"channel":"a"}}`,
			`{"id":5,"subscribe":{"channel":"nope:a"}}`)
		who := `level=DEBUG msg="command refused" session=` + r.c.clientID(&p.s) + ` remote=192.0.2.1:1 `
		wants := []string{`code=106 reason="limit exceeded"`, `code=108 reason="not available"`, `code=102 reason="unknown channel"`}
		for id := range 200 { // the rate's bucket may have gained some
			if p.s.Closed() || r.c.Counters().RateLimited.Load() > 0 {
				break
			}
			p.send(fmt.Sprintf(`{"id":%d,"unsubscribe":{"channel":"b"}}`, id+6))
		}
		wants = append(wants, `code=111 reason="over the rate"`)
		for _, want := range wants {
			if strings.Count(log.String(), who+want) != 1 {
				t.Errorf("%s: %q is not there once: %s", overflow, want, log)
			}
		}
		if n := strings.Count(log.String(), "command refused"); n != len(wants) {
			t.Errorf("%s: %d lines: %s", overflow, n, log)
		}
	}
	r := newRig(t)
	p := &fakePeer{t: t, rig: r}
	p.s.Open(quiet{p}, r.loop, session.MakeID(3, 9, 9))
	p.s.Encoding, p.s.State = session.EncodingProtobuf, session.StateConnected
	if n := testing.AllocsPerRun(100, func() { r.c.logRefused(&p.s, protocol.ErrLimitExceeded, noRoomRate) }); n != 0 {
		t.Errorf("a line that nobody reads costs %v allocations", n)
	}
}

func TestEcho(t *testing.T) {
	p := &fakePeer{t: t}
	p.s.Open(p, newFakeLoop(), 1)
	var h Echo
	h.Open(&p.s, nil)
	if p.s.State != session.StateConnected || !p.beating {
		t.Fatal("not open")
	}
	big := bytes.Repeat([]byte{0xff}, 16<<20)
	h.Message(&p.s, []byte("text"), false)
	h.Message(&p.s, big, true)
	h.Message(&p.s, nil, false)
	h.Expire(&p.s)
	h.Closed(&p.s, session.ReasonNormal)
	if len(p.out) != 3 || string(p.out[0]) != "text" || p.kinds[0] || !bytes.Equal(p.out[1], big) || !p.kinds[1] || len(p.out[2]) != 0 {
		t.Errorf("%d messages of kinds %v", len(p.out), p.kinds)
	}
}

func TestNewWantsItsParts(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("nothing is missing")
	}
}

// FuzzMessage gives arbitrary messages to a session: it is closed for a reason
// of the protocol's, or what it was sent can be read.
func FuzzMessage(f *testing.F) {
	seeds := []string{
		"{}", `{"id":1,"connect":{"token":"ann"}}`,
		`{"id":2,"subscribe":{"channel":"a"}}` + "\n" + `{"id":3,"publish":{"channel":"a","data":{}}}`,
		`{"id":4,"rpc":{"method":"echo","data":1}}` + "\n" + `{"id":5,"unsubscribe":{"channel":"a"}}`,
		`{"send":{"data":1}}`, `{"id":6,"refresh":{"token":"ann"}}`, `{"id":7,"sub_refresh":{"channel":"a","token":"x"}}`,
		`{"id":8,"history":{"channel":"a"}}`,
		`{"id":1,"connect":{"token":"ann","subs":{"force:a":{"recover":true,"offset":1,"epoch":"x"}}}}`,
		`{"id":2,"subscribe":{"channel":"reader:a","recover":true,"offset":1,"flag":2,"delta":"fossil","join_leave":true,"positioned":true}}` + "\n" +
			`{"id":3,"history":{"channel":"reader:a","limit":-1,"reverse":true,"since":{"offset":3}}}` + "\n" +
			`{"id":4,"presence":{"channel":"reader:a"}}` + "\n" + `{"id":5,"presence_stats":{"channel":"reader:a"}}`,
		`{"id":2,"subscribe":{"channel":"auto:a"}}` + "\n" + `{"id":3,"unsubscribe":{"channel":"auto:a"}}`,
	}
	for _, e := range []session.Encoding{session.EncodingJSON, session.EncodingProtobuf} {
		p := &fakePeer{t: f}
		p.s.Encoding = e
		for _, seed := range seeds {
			f.Add(p.message(strings.Split(seed, "\n")...), e == session.EncodingProtobuf, true)
		}
	}
	f.Add([]byte("{\"id\":1,\"connect\":{}}\n\n{}"), false, false)
	f.Fuzz(func(t *testing.T, msg []byte, protobuf, connected bool) {
		r := newRig(t, func(o *rigOptions) { o.Options.Require = RequireNone }, recoveryNamespaces)
		r.c.RegisterExamples()
		for _, name := range []string{"force:a", "reader:a", "auto:a"} {
			for range 3 {
				r.publish(name, "[1]")
			}
		}
		e := session.EncodingJSON
		if protobuf {
			e = session.EncodingProtobuf
		}
		p := r.open(e, nil)
		if connected {
			p.connect("ann")
		}
		r.c.Message(&p.s, bytes.Clone(msg), protobuf)
		r.loop.until(t, "an end", func() bool {
			w := workOf(&p.s)
			return p.s.Closed() || w == nil || !w.busy
		})
		for _, reply := range p.replies() {
			if line := reply.AppendJSON(nil); e == session.EncodingJSON && !json.Valid(line) {
				t.Fatalf("sent %s", line)
			}
		}
		switch p.reason {
		case session.ReasonNone, session.ReasonBadRequest, session.ReasonInvalidToken, session.ReasonNotAvailable:
		default:
			t.Fatalf("closed for %v", p.reason)
		}
		if w := workOf(&p.s); w != nil && !w.refused {
			t.Fatalf("holds %+v", w)
		}
		// A call of a session that has been closed meanwhile still comes back.
		r.loop.until(t, "the inbox's room", func() bool { return r.loop.inUse() == 0 })
	})
}
