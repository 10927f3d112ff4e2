package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"sync/atomic"
	"time"

	pb "github.com/centrifugal/protocol"

	"perch/backend"
	"perch/internal/pace"
	"perch/protocol"
	"perch/session"
)

// RPCRequest is a call of a registered method. What it holds belongs to the
// method.
type RPCRequest struct {
	Method string
	Data   []byte // as the client sent it; a JSON client's is one JSON value
	// Of the calling session.
	User     string
	ClientID string
	Info     []byte // shared by the session's calls: not to be changed
	Meta     []byte // the same
	Encoding session.Encoding
}

// RPCFunc does a call. It runs in the pool: it may block, until ctx ends (with
// its session, its time or the server). What it returns goes to the client: for
// one with JSON it must be one JSON value. An *Error goes to the client as it
// is, another error is logged and becomes error 100.
type RPCFunc func(ctx context.Context, r RPCRequest) ([]byte, error)

// SendRequest is a message that the client wants no answer to.
type SendRequest struct {
	Data     []byte
	User     string
	ClientID string
	Encoding session.Encoding
}

// SendFunc takes such a message. It runs in the pool, as an RPCFunc does.
type SendFunc func(ctx context.Context, r SendRequest) error

type method struct {
	f      RPCFunc
	lane   *lane
	unsaid pace.Seldom // of answers that can't be encoded
}

type sender struct {
	f    SendFunc
	lane *lane
}

// HandleRPC registers f for the calls of a method, in place of what was
// registered before. Safe from any goroutine, also while sessions call.
func (c *Commands) HandleRPC(name string, f RPCFunc) {
	m := &method{f: f, lane: c.pool.lane()}
	for {
		old := c.methods.Load()
		table := make(map[string]*method)
		if old != nil {
			maps.Copy(table, *old)
		}
		table[name] = m
		if c.methods.CompareAndSwap(old, &table) {
			return
		}
	}
}

// HandleSend registers f for the messages that clients want no answer to. With
// none registered such a message ends its session with 3508. Safe from any
// goroutine.
func (c *Commands) HandleSend(f SendFunc) {
	c.send.Store(&sender{f: f, lane: c.pool.lane()})
}

// RegisterExamples registers echo, which returns what it gets, and time, which
// returns the server's.
func (c *Commands) RegisterExamples() {
	c.HandleRPC("echo", func(_ context.Context, r RPCRequest) ([]byte, error) { return r.Data, nil })
	c.HandleRPC("time", func(context.Context, RPCRequest) ([]byte, error) {
		now := c.opts.Now()
		return json.Marshal(struct {
			Time string `json:"time"`
			Unix int64  `json:"unix_ms"`
		}{now.UTC().Format(time.RFC3339Nano), now.UnixMilli()})
	})
}

// replyRoom is what is reserved in the inbox for an answer; a longer one takes
// the rest when it is there.
const replyRoom = session.PostOverhead + 512

// running is a call under way. It is settled once: by its method, its time or
// its session's end.
type running struct {
	c       *Commands
	loop    session.Loop
	name    session.ID
	id      uint32
	method  string
	job     atomic.Pointer[job]
	cancel  context.CancelFunc
	settled atomic.Bool
}

// call runs a registered method.
func (c *Commands) call(s *session.Session, cmd *protocol.Command) {
	req, id := cmd.Rpc, cmd.Id
	table := c.methods.Load()
	var m *method
	if table != nil {
		m = (*table)[req.Method]
	}
	switch {
	case m != nil:
	case c.asks(backend.RPC):
		c.askRPC(s, id, req)
		return
	case table == nil:
		c.fail(s, id, protocol.ErrNotAvailable)
		return
	default:
		c.fail(s, id, protocol.ErrMethodNotFound)
		return
	}
	r := RPCRequest{
		Method: req.Method, Data: req.Data, User: s.User(), ClientID: c.clientID(s), Encoding: s.Encoding,
	}
	if s.Extra != nil {
		r.Info, r.Meta = s.Extra.Info, s.Extra.Meta
	}
	c.start(s, call{id: id, method: req.Method, lane: m.lane, size: len(req.Data), time: c.opts.CallTimeout}, func(ctx context.Context) (done, error) {
		data, err := m.f(ctx, r)
		return c.called(id, req.Method, &m.unsaid, data), err
	})
}

// called answers a call of the method name. log picks what is logged where data is
// not what the client's format takes.
func (c *Commands) called(id uint32, name string, log *pace.Seldom, data []byte) done {
	return done{len(data), func(s *session.Session) {
		if err := c.say(s, &protocol.Reply{Id: id, Rpc: &pb.RPCResult{Data: data}}); err != nil {
			c.notSaid(s, id, log, fmt.Errorf("method %.64q: %w", name, err))
		}
	}}
}

// sendCommand gives a message without an answer to its handler.
func (c *Commands) sendCommand(s *session.Session, cmd *protocol.Command) {
	h := c.send.Load()
	if h == nil {
		// No answer could tell the client that nobody listens.
		s.Close(session.ReasonNotAvailable)
		return
	}
	r := SendRequest{Data: cmd.Send.Data, User: s.User(), ClientID: c.clientID(s), Encoding: s.Encoding}
	c.start(s, call{lane: h.lane, size: len(r.Data), time: c.opts.CallTimeout}, func(ctx context.Context) (done, error) {
		return done{}, h.f(ctx, r)
	})
}

// call is work in a lane for a session.
type call struct {
	id     uint32 // of the command; 0: nobody is answered
	method string
	lane   *lane
	size   int           // that waits
	time   time.Duration // from now to the answer
}

// done is what has come of it.
type done struct {
	size int                    // that waits for the loop
	then func(*session.Session) // runs there; nil: nothing
}

// start gives f to the pool. The later commands of s wait until it is settled.
// false: there is no room, and the command is answered so.
func (c *Commands) start(s *session.Session, what call, f func(context.Context) (done, error)) bool {
	loop := s.Loop()
	if !loop.Reserve(replyRoom) {
		c.counters.PoolFull.Add(1)
		c.noRoom(s, what.id, noRoomQueue)
		return false
	}
	ctx, cancel := context.WithTimeout(c.ctx, what.time)
	k := &running{c: c, loop: loop, name: s.ID(), id: what.id, method: what.method, cancel: cancel}
	stop := context.AfterFunc(ctx, func() { k.abandon(ctx) })
	w := needWork(s)
	w.busy, w.cancel = true, cancel
	j := what.lane.submit(session.PostOverhead+what.size, func() {
		if k.settled.Load() {
			return
		}
		k.work(ctx, f, stop)
	})
	if j == nil {
		stop()
		if k.settled.CompareAndSwap(false, true) {
			// Its time did not end meanwhile: nothing is posted.
			cancel()
			loop.Release(replyRoom)
			w.busy, w.cancel = false, nil
			release(s)
			c.counters.PoolFull.Add(1)
			c.noRoom(s, what.id, noRoomQueue)
			return false
		}
		return true
	}
	k.job.Store(j)
	return true
}

// work runs the method. stop takes the watch off its context. Runs in the pool.
func (k *running) work(ctx context.Context, f func(context.Context) (done, error), stop func() bool) {
	var d done
	err := error(protocol.ErrInternal)
	defer func() {
		if r := recover(); r != nil {
			k.c.counters.RPCPanics.Add(1)
			k.c.log.Error("method panicked", "err", fmt.Errorf("method %q: %v", k.method, r), "stack", string(debug.Stack()))
			err = protocol.ErrInternal
		}
		answer := k.answer(ctx, err)
		stop()
		k.settle(ctx, d, answer)
	}()
	d, err = f(ctx)
}

// answer is what the client hears of a method's error.
func (k *running) answer(ctx context.Context, err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) && e != nil {
		return e
	}
	if ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		k.c.log.Error("method failed", "err", fmt.Errorf("method %q: %w", k.method, err))
	}
	return protocol.ErrInternal
}

// abandon answers a call whose context ended before its method did. The method
// keeps its worker until it returns.
func (k *running) abandon(ctx context.Context) {
	k.settle(ctx, done{}, protocol.ErrInternal)
	if j := k.job.Load(); j != nil {
		k.c.pool.cancel(j)
	}
}

// settle posts the answer, if nobody has. Safe from any goroutine.
func (k *running) settle(ctx context.Context, d done, e *Error) {
	if !k.settled.CompareAndSwap(false, true) {
		return
	}
	if e == protocol.ErrInternal && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		k.c.counters.RPCTimeouts.Add(1)
	}
	k.cancel()
	n := replyRoom
	if long := session.PostOverhead + d.size; e == nil && long > n {
		if k.loop.Reserve(long) {
			k.loop.Release(n)
			n = long
		} else {
			k.c.counters.PoolFull.Add(1)
			e = protocol.ErrTooManyRequests
		}
	}
	k.loop.Post(n, k.name, func(s *session.Session) {
		k.c.resume(s, func(s *session.Session) { k.reply(s, d, e) })
	})
}

// reply runs on the loop.
func (k *running) reply(s *session.Session, d done, e *Error) {
	switch {
	case e != nil:
		k.c.fail(s, k.id, e)
		if s.State == session.StateVerifying {
			k.c.refuse(s)
		}
	case d.then != nil:
		d.then(s)
	}
}
