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
	f    RPCFunc
	lane *lane
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
	req := cmd.Rpc
	table := c.methods.Load()
	if table == nil {
		c.fail(s, cmd.Id, protocol.ErrNotAvailable)
		return
	}
	m := (*table)[req.Method]
	if m == nil {
		c.fail(s, cmd.Id, protocol.ErrMethodNotFound)
		return
	}
	r := RPCRequest{
		Method: req.Method, Data: req.Data, User: s.User(), ClientID: c.clientID(s), Encoding: s.Encoding,
	}
	if s.Extra != nil {
		r.Info, r.Meta = s.Extra.Info, s.Extra.Meta
	}
	c.start(s, cmd.Id, req.Method, m.lane, len(req.Data), func(ctx context.Context) ([]byte, error) {
		return m.f(ctx, r)
	})
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
	c.start(s, 0, "", h.lane, len(r.Data), func(ctx context.Context) ([]byte, error) {
		return nil, h.f(ctx, r)
	})
}

// start gives f to the pool. The later commands of s wait until it is settled.
func (c *Commands) start(s *session.Session, id uint32, name string, l *lane, size int, f func(context.Context) ([]byte, error)) {
	loop := s.Loop()
	if !loop.Reserve(replyRoom) {
		c.counters.PoolFull.Add(1)
		c.noRoom(s, id)
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.CallTimeout)
	k := &running{c: c, loop: loop, name: s.ID(), id: id, method: name, cancel: cancel}
	stop := context.AfterFunc(ctx, func() { k.abandon(ctx) })
	w := needWork(s)
	w.busy, w.cancel = true, cancel
	j := l.submit(session.PostOverhead+size, func() {
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
			c.noRoom(s, id)
		}
		return
	}
	k.job.Store(j)
}

// work runs the method. stop takes the watch off its context. Runs in the pool.
func (k *running) work(ctx context.Context, f func(context.Context) ([]byte, error), stop func() bool) {
	var data []byte
	err := error(protocol.ErrInternal)
	defer func() {
		if r := recover(); r != nil {
			k.c.counters.RPCPanics.Add(1)
			k.c.log.Error("method panicked", "err", fmt.Errorf("method %q: %v", k.method, r), "stack", string(debug.Stack()))
			data, err = nil, protocol.ErrInternal
		}
		answer := k.answer(ctx, err)
		stop()
		k.settle(ctx, data, answer)
	}()
	data, err = f(ctx)
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
	k.settle(ctx, nil, protocol.ErrInternal)
	if j := k.job.Load(); j != nil {
		k.c.pool.cancel(j)
	}
}

// settle posts the answer, if nobody has. Safe from any goroutine.
func (k *running) settle(ctx context.Context, data []byte, e *Error) {
	if !k.settled.CompareAndSwap(false, true) {
		return
	}
	if e == protocol.ErrInternal && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		k.c.counters.RPCTimeouts.Add(1)
	}
	k.cancel()
	n := replyRoom
	if long := session.PostOverhead + len(data); long > n {
		if k.loop.Reserve(long) {
			k.loop.Release(n)
			n = long
		} else {
			k.c.counters.PoolFull.Add(1)
			data, e = nil, protocol.ErrTooManyRequests
		}
	}
	k.loop.Post(n, k.name, func(s *session.Session) {
		k.c.resume(s, func(s *session.Session) { k.reply(s, data, e) })
	})
}

// reply runs on the loop.
func (k *running) reply(s *session.Session, data []byte, e *Error) {
	switch {
	case e != nil:
		k.c.fail(s, k.id, e)
	case k.id != 0:
		k.c.reply(s, &protocol.Reply{Id: k.id, Rpc: &pb.RPCResult{Data: data}})
	}
}
