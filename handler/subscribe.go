package handler

import (
	"errors"
	"strings"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/backend"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

const (
	// privatePrefix begins the names that only a subscription token opens.
	privatePrefix = "$"
	// userBoundary stands in a name before the users that it is limited to.
	userBoundary  = "#"
	userSeparator = ","
)

// mayUse tells whether a topic's name leaves it to the user: one with a
// boundary is for the users named behind it, whatever its namespace allows.
func mayUse(name, user string) bool {
	_, users, limited := strings.Cut(name, userBoundary)
	if !limited {
		return true
	}
	if user == "" {
		return false
	}
	for u := range strings.SplitSeq(users, userSeparator) {
		if u == user {
			return true
		}
	}
	return false
}

func (c *Commands) maySubscribe(s *session.Session, ns *topic.Namespace, name string) bool {
	if c.opts.Insecure {
		return true
	}
	if ns.AllowUserLimitedChannels && strings.Contains(name, userBoundary) && !strings.HasPrefix(name, privatePrefix) {
		return mayUse(name, s.User())
	}
	return ns.AllowSubscribeForClient && (!s.Anonymous || ns.AllowSubscribeForAnonymous) &&
		!strings.HasPrefix(name, privatePrefix) && mayUse(name, s.User())
}

// subscribeError is the answer to an error of topic.Subscribe or Recover.
func (c *Commands) subscribeError(s *session.Session, err error) *Error {
	switch {
	case errors.Is(err, topic.ErrAlreadySubscribed):
		return protocol.ErrAlreadySubscribed
	case errors.Is(err, topic.ErrTooMany):
		return protocol.ErrLimitExceeded
	case errors.Is(err, topic.ErrUnknownTopic):
		return protocol.ErrUnknownChannel
	case errors.Is(err, topic.ErrFull):
		return protocol.ErrTooManyRequests
	case errors.Is(err, topic.ErrNotAvailable):
		return protocol.ErrNotAvailable // somebody ended it meanwhile
	case errors.Is(err, topic.ErrUnavailable):
		return protocol.ErrInternal // a temporary one
	}
	c.log.Error("subscribe failed", "session", c.clientID(s), "err", err)
	return protocol.ErrInternal
}

// namespace checks a topic's name.
func (c *Commands) namespace(name string) (*topic.Namespace, *Error) {
	if len(name) > c.topics.MaxLength() {
		return nil, protocol.ErrBadRequest
	}
	ns, err := c.topics.Namespace(name)
	if err != nil {
		return nil, protocol.ErrUnknownChannel
	}
	return ns, nil
}

func (c *Commands) subscribe(s *session.Session, cmd *protocol.Command) {
	req, id := cmd.Subscribe, cmd.Id
	name, token := req.Channel, req.Token
	if name == "" {
		c.badRequest(s, "no topic")
		return
	}
	if req.Type != 0 {
		c.fail(s, id, protocol.ErrNotAvailable) // map subscriptions and shared polls
		return
	}
	ns, e := c.namespace(name)
	w := wish{id: id, name: name, ns: ns, request: req}
	switch {
	case e != nil:
		c.fail(s, id, e)
	case c.topics.Subscribed(s, name):
		c.fail(s, id, protocol.ErrAlreadySubscribed)
	case token == "" && c.asksSubscribe(s, ns, name):
		c.askSubscribe(s, w)
	case token == "" || c.opts.Insecure:
		if !c.maySubscribe(s, ns, name) {
			c.fail(s, id, protocol.ErrPermissionDenied)
			return
		}
		c.subscribed(s, &w)
	case c.opts.Verifier.Cheap(token):
		claims, err := c.opts.Verifier.Subscription(token)
		c.subscribeVerified(s, w, claims, err)
	default:
		c.subscribeOffloaded(s, w, token)
	}
}

// subscribeOffloaded lets the pool look at a subscription token.
func (c *Commands) subscribeOffloaded(s *session.Session, w wish, token string) {
	c.offload(s, w.id, len(w.name)+len(token), func() func(*session.Session) {
		claims, err := c.opts.Verifier.Subscription(token)
		return func(s *session.Session) { c.subscribeVerified(s, w, claims, err) }
	})
}

// mine tells whether a subscription token is for this topic and session.
func (c *Commands) mine(s *session.Session, name string, claims *auth.SubscriptionClaims) bool {
	return claims.Topic == name && claims.Subject == s.User() &&
		(claims.Client == "" || claims.Client == c.clientID(s))
}

func (c *Commands) subscribeVerified(s *session.Session, w wish, claims *auth.SubscriptionClaims, err error) {
	if err != nil {
		c.refuseToken(s, w.id, err, protocol.ErrPermissionDenied)
		return
	}
	if !c.mine(s, w.name, claims) {
		s.Close(session.ReasonInvalidToken)
		return
	}
	w.expires, w.info, w.override = claims.ExpiresAt, claims.Info, claims.Override
	c.subscribed(s, &w)
}

// subscribed does what has been allowed and answers.
func (c *Commands) subscribed(s *session.Session, w *wish) {
	if w.expires != 0 && w.expires <= c.now() {
		c.fail(s, w.id, protocol.ErrTokenExpired)
		return
	}
	o, err := c.enter(s, w)
	switch {
	case err != nil:
		c.fail(s, w.id, c.subscribeError(s, err))
	case o.Position:
		c.subscribedFrom(s, *w, o)
	default:
		c.subscription(s, w, &pb.SubscribeResult{Delta: o.Delta})
		if o.Told {
			c.topics.Join(s, w.name)
		}
	}
}

// subscribedFrom answers when it is known what the subscription has missed.
func (c *Commands) subscribedFrom(s *session.Session, w wish, o topic.SubscribeOptions) {
	var result *pb.SubscribeResult
	var failed error
	c.pause(s, func(done func(*session.Session)) {
		c.catchUp(s, &w, &o, func(s *session.Session, r *pb.SubscribeResult, err error) {
			result, failed = r, err
			done(s)
		})
	}, func(s *session.Session) {
		switch {
		case failed != nil:
			c.fail(s, w.id, c.subscribeError(s, failed))
		case w.request.Flag&rejectUnrecovered != 0 && w.request.Recover && result.WasRecovering && !result.Recovered:
			c.leave(s, w.name)
			c.fail(s, w.id, protocol.ErrUnrecoverablePosition)
		default:
			c.subscription(s, &w, result)
			c.live(s, w.name)
		}
	})
}

// subscription tells a client that it is subscribed.
func (c *Commands) subscription(s *session.Session, w *wish, result *pb.SubscribeResult) {
	if w.expires != 0 {
		if !c.asks(backend.SubRefresh) || !w.ns.SubRefreshProxyEnabled {
			result.Expires = true
			result.Ttl = ttl(w.expires, c.now())
		}
		c.setSubscriptionExpiry(s, w.name, w.expires)
	}
	if len(w.data) > 0 && protocol.ValidPayload(w.data, encodingOf(s)) {
		result.Data = w.data
	}
	c.reply(s, &protocol.Reply{Id: w.id, Subscribe: result})
}

func (c *Commands) unsubscribe(s *session.Session, cmd *protocol.Command) {
	name := cmd.Unsubscribe.Channel
	if name == "" {
		c.badRequest(s, "no topic")
		return
	}
	// What was not subscribed is unsubscribed as well.
	c.leave(s, name)
	c.reply(s, &protocol.Reply{Id: cmd.Id, Unsubscribe: &pb.UnsubscribeResult{}})
}

// leave ends a subscription; false: there was none.
func (c *Commands) leave(s *session.Session, name string) bool {
	c.setSubscriptionExpiry(s, name, 0)
	return c.topics.Unsubscribe(s, name)
}

// setSubscriptionExpiry notes when a subscription ends; 0 for never, and of one that
// has ended. Nobody waits for what the backend says of the end before.
func (c *Commands) setSubscriptionExpiry(s *session.Session, name string, at int64) {
	st := c.at(s)
	delete(st.refreshing, refreshed{s.ID(), name})
	of := st.expiries[s.ID()]
	if at == 0 {
		if _, ok := of[name]; !ok {
			return
		}
		delete(of, name)
		if len(of) == 0 {
			delete(st.expiries, s.ID())
		}
	} else {
		if of == nil {
			of = make(map[string]int64, 1)
			if st.expiries == nil {
				st.expiries = make(map[session.ID]map[string]int64)
			}
			st.expiries[s.ID()] = of
		}
		of[name] = at
	}
	c.rearm(s)
}

// subRefresh gives a subscription the time of a new token.
func (c *Commands) subRefresh(s *session.Session, cmd *protocol.Command) {
	req, id := cmd.SubRefresh, cmd.Id
	name, token := req.Channel, req.Token
	switch {
	case name == "":
		c.badRequest(s, "no topic")
	case req.Type != 0:
		c.fail(s, id, protocol.ErrNotAvailable) // keys of shared polls
	case !c.topics.Subscribed(s, name):
		c.fail(s, id, protocol.ErrPermissionDenied)
	case token == "":
		c.fail(s, id, protocol.ErrBadRequest)
	case c.opts.Verifier.Cheap(token):
		claims, err := c.opts.Verifier.Subscription(token)
		c.subRefreshed(s, id, name, claims, err)
	default:
		c.offload(s, id, len(name)+len(token), func() func(*session.Session) {
			claims, err := c.opts.Verifier.Subscription(token)
			return func(s *session.Session) { c.subRefreshed(s, id, name, claims, err) }
		})
	}
}

func (c *Commands) subRefreshed(s *session.Session, id uint32, name string, claims *auth.SubscriptionClaims, err error) {
	if err != nil {
		c.refuseToken(s, id, err, nil)
		return
	}
	if !c.mine(s, name, claims) {
		s.Close(session.ReasonInvalidToken)
		return
	}
	if !c.topics.Subscribed(s, name) {
		c.fail(s, id, protocol.ErrPermissionDenied) // ended while the pool had the token
		return
	}
	expires := claims.ExpiresAt
	if c.opts.Insecure {
		expires = 0
	}
	result := pb.SubRefreshResult{Expires: expires != 0}
	if expires != 0 {
		result.Ttl = ttl(expires, c.now())
	}
	c.setSubscriptionExpiry(s, name, expires)
	c.reply(s, &protocol.Reply{Id: id, SubRefresh: &result})
}

// SubscribeSession implements APISessions: it subscribes s of the server's own
// accord and tells its client; data that the client's format can't carry stays
// away. What was missed since sub.Since follows the push. Runs on the loop; s may
// be closed afterwards.
func (c *Commands) SubscribeSession(s *session.Session, sub APISubscription) error {
	if s.State != session.StateConnected {
		return topic.ErrNotAvailable
	}
	ns, err := c.topics.Namespace(sub.Topic)
	if err != nil {
		return err
	}
	var known *pb.SubscribeRequest
	if sub.Since != nil {
		known = &pb.SubscribeRequest{Recover: true, Offset: sub.Since.Offset, Epoch: sub.Since.Epoch}
	}
	w := wish{name: sub.Topic, ns: ns, server: true, info: sub.Info, override: sub.Override, request: c.requested(s, sub.Topic, known)}
	var failed error
	err = c.join(s, &w, func(s *session.Session, result *pb.SubscribeResult, err error) {
		if failed = err; err == nil {
			c.announce(s, &sub, result)
		}
	})
	if errors.Is(err, topic.ErrAlreadySubscribed) && sub.ExpireAt != 0 {
		c.setSubscriptionExpiry(s, sub.Topic, sub.ExpireAt)
	}
	if err == nil {
		err = failed // where it was known at once; else the session is as it was
	}
	return err
}

// announce tells a client of a subscription that the server has made.
func (c *Commands) announce(s *session.Session, sub *APISubscription, result *pb.SubscribeResult) {
	if sub.ExpireAt != 0 {
		c.setSubscriptionExpiry(s, sub.Topic, sub.ExpireAt)
	}
	push := pb.Subscribe{Recoverable: result.Recoverable, Positioned: result.Positioned, Epoch: result.Epoch, Offset: result.Offset}
	if protocol.ValidPayload(sub.Data, encodingOf(s)) {
		push.Data = sub.Data
	}
	c.push(s, &protocol.Push{Channel: sub.Topic, Subscribe: &push})
	if c.missed(s, sub.Topic, result.Publications) {
		c.live(s, sub.Topic)
	}
}

// missed pushes what a subscription has missed; false: it has ended meanwhile.
func (c *Commands) missed(s *session.Session, name string, all []*pb.Publication) bool {
	for _, p := range all {
		if s.Closed() || !c.topics.Subscribed(s, name) {
			return false
		}
		c.push(s, &protocol.Push{Channel: name, Pub: p})
	}
	return true
}

// UnsubscribeSession implements APISessions: it ends a subscription of s of the
// server's own accord and tells its client (2000). Runs on the loop; s may be
// closed afterwards.
func (c *Commands) UnsubscribeSession(s *session.Session, name string) error {
	if s.State != session.StateConnected {
		return topic.ErrNotAvailable
	}
	c.endSubscription(s, name, protocol.UnsubscribedByServer, "server unsubscribe")
	return nil
}

// LoseSubscription ends a subscription that has missed something: its client
// comes back for it, or the session does where the subscription is the server's.
// Runs on the loop; s may be closed afterwards.
func (c *Commands) LoseSubscription(s *session.Session, name string, server bool) {
	if c.topics.Subscribed(s, name) {
		c.lose(s, name, server)
	}
}

// lose is LoseSubscription also for a subscription that has ended without its
// client being told.
func (c *Commands) lose(s *session.Session, name string, server bool) {
	if server {
		s.Close(session.ReasonInsufficientState)
		return
	}
	c.leave(s, name)
	c.push(s, &protocol.Push{Channel: name, Unsubscribe: &pb.Unsubscribe{Code: protocol.UnsubscribedInsufficientState, Reason: "insufficient state"}})
}

// endSubscription ends a subscription, where there is one, and tells the
// client.
func (c *Commands) endSubscription(s *session.Session, name string, code uint32, reason string) {
	if c.leave(s, name) {
		c.push(s, &protocol.Push{Channel: name, Unsubscribe: &pb.Unsubscribe{Code: code, Reason: reason}})
	}
}
