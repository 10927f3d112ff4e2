package handler

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"

	"perch/backend"
	"perch/protocol"
	"perch/session"

	pb "github.com/centrifugal/protocol"
)

// Where the backend refreshes, it is asked when a session, or a subscription of a
// namespace that says so, has come to its end. The session goes on meanwhile, and
// its commands don't wait: one that sets another end, or ends the subscription,
// ends the question too, and its answer comes too late. While the backend can't be
// asked nobody is thrown out: it is asked again.

// refreshed is what the backend is asked about: a session or, with a topic, a
// subscription.
type refreshed struct {
	session session.ID
	topic   string
}

// The time until a question that was not answered is asked again, in seconds: from
// askAgain to twice that, so that those who were asked about together are spread.
const (
	askAgain  = 30
	soonAgain = 2 // after a full queue
)

// asksSubRefresh tells whether the backend decides about the end of subscriptions
// to a topic.
func (c *Commands) asksSubRefresh(name string) bool {
	if !c.asks(backend.SubRefresh) {
		return false
	}
	ns, err := c.topics.Namespace(name)
	return err == nil && ns.SubRefreshProxyEnabled
}

// forget drops what the loop keeps of a session beside it.
func (c *Commands) forget(s *session.Session) {
	st := c.at(s)
	for name := range st.expiries[s.ID()] {
		delete(st.refreshing, refreshed{s.ID(), name})
	}
	delete(st.refreshing, refreshed{s.ID(), ""})
	delete(st.expiries, s.ID())
}

// askRefresh asks about a session.
func (c *Commands) askRefresh(s *session.Session) {
	c.askEnd(s, "", backend.Refresh, func(ctx context.Context, p *backend.Peer) (*backend.RefreshResult, error) {
		return c.opts.Backend.Client.Refresh(ctx, p)
	})
}

// askSubRefresh asks about a subscription.
func (c *Commands) askSubRefresh(s *session.Session, name string) {
	c.askEnd(s, name, backend.SubRefresh, func(ctx context.Context, p *backend.Peer) (*backend.RefreshResult, error) {
		return c.opts.Backend.Client.SubRefresh(ctx, p, name)
	})
}

// askEnd calls f in the lane of a method, and does on the loop what it says of the
// session or the subscription to name.
func (c *Commands) askEnd(s *session.Session, name string, m backend.Method, f func(context.Context, *backend.Peer) (*backend.RefreshResult, error)) {
	loop, id, p := s.Loop(), s.ID(), c.peer(s)
	if !loop.Reserve(replyRoom) {
		c.counters.PoolFull.Add(1)
		c.setEnd(s, name, c.now()+soonAgain+rand.Int64N(soonAgain))
		return
	}
	st, what := c.at(s), refreshed{id, name}
	if st.refreshing == nil {
		st.refreshing = make(map[refreshed]uint64)
	}
	st.questions++
	question := st.questions
	st.refreshing[what] = question
	j := c.asking[m].submit(session.PostOverhead+len(name)+len(p.Headers)+len(p.Meta), func() {
		var r *backend.RefreshResult
		err := error(protocol.ErrInternal)
		defer func() {
			if v := recover(); v != nil {
				c.log.Error("panic in pool", "err", v, "stack", string(debug.Stack()))
			}
			loop.Post(replyRoom, id, func(s *session.Session) {
				if st.refreshing[what] != question {
					return // the end that was asked about is none any more
				}
				delete(st.refreshing, what)
				if s != nil && !s.Closed() {
					c.endKnown(s, name, r, err)
				}
			})
		}()
		r, err = f(c.ctx, p)
	})
	if j == nil {
		loop.Release(replyRoom)
		c.counters.PoolFull.Add(1)
		c.setEnd(s, name, c.now()+soonAgain+rand.Int64N(soonAgain))
	}
}

// setEnd notes when the session or a subscription of its ends.
func (c *Commands) setEnd(s *session.Session, name string, at int64) {
	if name == "" {
		c.setExpiry(s, at)
	} else {
		c.setSubscriptionExpiry(s, name, at)
	}
}

// endKnown takes the backend's answer about an end. Runs on the loop.
func (c *Commands) endKnown(s *session.Session, name string, r *backend.RefreshResult, err error) {
	now := c.now()
	var gone *backend.Disconnect
	var refusal *backend.Error
	switch {
	case name != "" && !c.topics.Subscribed(s, name):
		c.setSubscriptionExpiry(s, name, 0)
	case errors.As(err, &gone):
		s.CloseCustom(gone.Code, gone.Reason)
	case errors.As(err, &refusal) && !refusal.Temporary:
		c.ended(s, name)
	case err != nil:
		c.setEnd(s, name, now+askAgain+rand.Int64N(askAgain))
	case r.Expired || r.ExpireAt != 0 && r.ExpireAt <= now:
		c.ended(s, name)
	case name != "":
		c.setSubscriptionExpiry(s, name, r.ExpireAt)
	default:
		setInfo(s, r.Info)
		if len(r.Meta) > 0 {
			if s.Extra == nil {
				s.Extra = &session.Extra{}
			}
			s.Extra.Meta = r.Meta
		}
		c.setExpiry(s, r.ExpireAt)
		push := pb.Refresh{Expires: r.ExpireAt != 0}
		if push.Expires {
			push.Ttl = ttl(r.ExpireAt, now)
		}
		c.push(s, &protocol.Push{Refresh: &push})
	}
}

// ended ends what the backend has not prolonged.
func (c *Commands) ended(s *session.Session, name string) {
	if name == "" {
		s.Close(session.ReasonExpired)
		return
	}
	c.endSubscription(s, name, protocol.UnsubscribedExpired, "subscription expired")
}
