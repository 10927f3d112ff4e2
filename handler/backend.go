package handler

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/backend"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// What the user's own service decides: who connects without a token, and, where a
// namespace says so, who subscribes and what is published. Each method has a lane
// of the pool, so that one whose answers don't come holds up neither the others
// nor what needs no backend. Later commands of the session wait for the answer.

// BackendOptions say what is asked.
type BackendOptions struct {
	// Client is asked for what it serves; nil: nothing is asked.
	Client *backend.Client
	// Timeout bounds a call, from the command that needs it to the answer; 0 means
	// Options.CallTimeout.
	Timeout time.Duration
}

// askingLanes are those of the methods that are asked.
type askingLanes [backend.MethodCount]*lane

// openBackend makes the lanes.
func (c *Commands) openBackend() {
	if c.opts.Backend.Timeout == 0 {
		c.opts.Backend.Timeout = c.opts.CallTimeout
	}
	var served []backend.Method
	for m := range backend.MethodCount {
		if c.opts.Backend.Client.Serves(m) {
			served = append(served, m)
		}
	}
	for i, l := range c.pool.lanes(len(served)) {
		c.asking[served[i]] = l
	}
}

// asks tells whether the backend serves a method.
func (c *Commands) asks(m backend.Method) bool { return c.asking[m] != nil }

// ask calls f in the lane of a method. What it returns runs on the loop, unless
// the backend refuses or can't be asked: the command is answered then.
func (c *Commands) ask(s *session.Session, id uint32, m backend.Method, size int, f func(ctx context.Context, p *backend.Peer) (done, error)) bool {
	p := c.peer(s)
	size += len(p.Headers) + len(p.Meta)
	return c.start(s, call{id: id, method: m.String(), lane: c.asking[m], size: size, time: c.opts.Backend.Timeout}, func(ctx context.Context) (done, error) {
		d, err := f(ctx, p)
		if err == nil {
			return d, nil
		}
		return c.refused(err)
	})
}

// refused is what becomes of a call that brought no result. Package backend has
// logged and counted it.
func (c *Commands) refused(err error) (done, error) {
	var gone *backend.Disconnect
	var e *backend.Error
	switch {
	case errors.As(err, &gone):
		return done{then: func(s *session.Session) { s.CloseCustom(gone.Code, gone.Reason) }}, nil
	case errors.As(err, &e):
		return done{}, &Error{Code: e.Code, Message: e.Message, Temporary: e.Temporary}
	}
	return done{}, protocol.ErrInternal
}

// transports are the names that backends know.
var transports = [session.EncodingCount]string{
	session.EncodingJSON: "websocket", session.EncodingProtobuf: "websocket",
	session.EncodingUniJSON: "uni_websocket", session.EncodingEvents: "uni_sse",
}

// peer says who s is.
func (c *Commands) peer(s *session.Session) *backend.Peer {
	p := &backend.Peer{Client: c.clientID(s), Transport: transports[s.Encoding], Protocol: "json", User: s.User()}
	if s.Encoding == session.EncodingProtobuf {
		p.Protocol = "protobuf"
	}
	if s.Extra != nil {
		p.Meta, p.Headers = s.Extra.Meta, s.Extra.Headers
	} else if w := workOf(s); w != nil {
		p.Headers = w.identity.Headers
	}
	return p
}

// keptHeaders are the headers of the handshake that calls after the connect
// command need.
func (c *Commands) keptHeaders(s *session.Session) string {
	w := workOf(s)
	if w == nil || w.identity.Headers == "" {
		return ""
	}
	for m := range backend.MethodCount {
		if m != backend.Connect && c.asks(m) {
			return w.identity.Headers
		}
	}
	return ""
}

// askConnect lets the backend say who a client without a token is.
func (c *Commands) askConnect(s *session.Session, id uint32, req *pb.ConnectRequest) {
	q := &backend.ConnectRequest{Data: req.Data, Name: req.Name, Version: req.Version, Channels: slices.Collect(maps.Keys(req.Subs))}
	s.State = session.StateVerifying
	taken := c.ask(s, id, backend.Connect, len(q.Data), func(ctx context.Context, p *backend.Peer) (done, error) {
		r, err := c.opts.Backend.Client.Connect(ctx, p, q)
		if err != nil {
			return done{}, err
		}
		claims := connectClaims(r)
		return done{r.Bytes, func(s *session.Session) { c.admit(s, id, req, claims, r.Data) }}, nil
	})
	if !taken && !s.Closed() {
		c.refuse(s)
	}
}

// connectClaims are what a backend says of a session, as a token would say it.
func connectClaims(r *backend.ConnectResult) *auth.Claims {
	claims := &auth.Claims{Subject: r.User, ExpiresAt: r.ExpireAt, Info: r.Info, Meta: r.Meta, Channels: r.Channels}
	for _, name := range slices.Sorted(maps.Keys(r.Subs)) {
		sub := r.Subs[name]
		claims.Subs = append(claims.Subs, auth.Sub{
			Topic: name, Info: sub.Info, Data: sub.Data, Override: overrideOf(&sub.Override), ExpiresAt: sub.ExpireAt,
		})
	}
	return claims
}

func overrideOf(o *backend.Override) auth.Override {
	value := func(v *backend.BoolValue) *bool {
		if v == nil {
			return nil
		}
		return &v.Value
	}
	return auth.Override{
		Presence: value(o.Presence), JoinLeave: value(o.JoinLeave), ForcePushJoinLeave: value(o.ForcePushJoinLeave),
		ForceRecovery: value(o.ForceRecovery), ForcePositioning: value(o.ForcePositioning),
	}
}

// asksSubscribe tells whether the backend decides about a subscription without a
// token. A name that says whom it is for, or that only tokens open, is no matter of
// its.
func (c *Commands) asksSubscribe(s *session.Session, ns *topic.Namespace, name string) bool {
	return ns.SubscribeProxyEnabled && c.asks(backend.Subscribe) && !strings.HasPrefix(name, privatePrefix) &&
		mayUse(name, s.User()) && !(ns.AllowUserLimitedChannels && strings.Contains(name, userBoundary))
}

// askSubscribe lets the backend decide about a subscription.
func (c *Commands) askSubscribe(s *session.Session, w wish) {
	q := &backend.SubscribeRequest{Channel: w.name, Data: w.request.Data}
	c.ask(s, w.id, backend.Subscribe, len(q.Channel)+len(q.Data), func(ctx context.Context, p *backend.Peer) (done, error) {
		r, err := c.opts.Backend.Client.Subscribe(ctx, p, q)
		if err != nil {
			return done{}, err
		}
		w.expires, w.info, w.data, w.override = r.ExpireAt, r.Info, r.Data, overrideOf(&r.Override)
		return done{r.Bytes, func(s *session.Session) { c.subscribed(s, &w) }}, nil
	})
}

// askPublish lets the backend decide about a publication.
func (c *Commands) askPublish(s *session.Session, id uint32, ns *topic.Namespace, req *pb.PublishRequest) {
	q := &backend.PublishRequest{Channel: req.Channel, Data: req.Data}
	c.ask(s, id, backend.Publish, len(q.Channel)+len(q.Data), func(ctx context.Context, p *backend.Peer) (done, error) {
		r, err := c.opts.Backend.Client.Publish(ctx, p, q)
		if err != nil {
			return done{}, err
		}
		data := q.Data
		if len(r.Data) > 0 {
			data = r.Data
		}
		return done{len(data), func(s *session.Session) {
			if len(data) == 0 {
				c.fail(s, id, protocol.ErrBadRequest)
				return
			}
			c.publishTo(s, id, ns, q.Channel, &topic.Publication{Data: data, Tags: r.Tags}, topic.PublishRequest{
				SkipHistory: r.SkipHistory, IdempotencyKey: r.IdempotencyKey, Version: r.Version, VersionEpoch: r.VersionEpoch, Delta: r.Delta,
			})
		}}, nil
	})
}

// askRPC passes on a call of a method that is not registered.
func (c *Commands) askRPC(s *session.Session, id uint32, req *pb.RPCRequest) {
	q := &backend.RPCRequest{Method: req.Method, Data: req.Data}
	c.ask(s, id, backend.RPC, len(q.Method)+len(q.Data), func(ctx context.Context, p *backend.Peer) (done, error) {
		r, err := c.opts.Backend.Client.RPC(ctx, p, q)
		if err != nil {
			return done{}, err
		}
		return c.called(id, q.Method, &c.unsaidRPC, r.Data), nil
	})
}
