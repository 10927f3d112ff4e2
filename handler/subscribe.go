package handler

import (
	"errors"
	"strings"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
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
	return ns.AllowSubscribeForClient && (!s.Anonymous || ns.AllowSubscribeForAnonymous) &&
		!strings.HasPrefix(name, privatePrefix) && mayUse(name, s.User())
}

// subscribeError is the answer to an error of topic.Subscribe.
func subscribeError(err error) *Error {
	switch {
	case errors.Is(err, topic.ErrAlreadySubscribed):
		return protocol.ErrAlreadySubscribed
	case errors.Is(err, topic.ErrTooMany):
		return protocol.ErrLimitExceeded
	case errors.Is(err, topic.ErrUnknownTopic):
		return protocol.ErrUnknownChannel
	}
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
	switch {
	case e != nil:
		c.fail(s, id, e)
	case c.topics.Subscribed(s, name):
		c.fail(s, id, protocol.ErrAlreadySubscribed)
	case token == "" || c.opts.Insecure:
		if !c.maySubscribe(s, ns, name) {
			c.fail(s, id, protocol.ErrPermissionDenied)
			return
		}
		c.subscribed(s, id, name, 0)
	case c.opts.Verifier.Cheap(token):
		claims, err := c.opts.Verifier.Subscription(token)
		c.subscribeVerified(s, id, name, claims, err)
	default:
		c.offload(s, id, len(name)+len(token), func() func(*session.Session) {
			claims, err := c.opts.Verifier.Subscription(token)
			return func(s *session.Session) { c.subscribeVerified(s, id, name, claims, err) }
		})
	}
}

// mine tells whether a subscription token is for this topic and session.
func (c *Commands) mine(s *session.Session, name string, claims *auth.SubscriptionClaims) bool {
	return claims.Topic == name && claims.Subject == s.User() &&
		(claims.Client == "" || claims.Client == c.clientID(s))
}

func (c *Commands) subscribeVerified(s *session.Session, id uint32, name string, claims *auth.SubscriptionClaims, err error) {
	if err != nil {
		c.refuseToken(s, id, err, protocol.ErrPermissionDenied)
		return
	}
	if !c.mine(s, name, claims) {
		s.Close(session.ReasonInvalidToken)
		return
	}
	c.subscribed(s, id, name, claims.ExpiresAt)
}

// subscribed does what has been allowed and answers. expires is in Unix
// seconds, 0 for never.
func (c *Commands) subscribed(s *session.Session, id uint32, name string, expires int64) {
	now := c.now()
	if expires != 0 && expires <= now {
		c.fail(s, id, protocol.ErrTokenExpired)
		return
	}
	if err := c.topics.Subscribe(s, name, false); err != nil {
		c.fail(s, id, subscribeError(err))
		return
	}
	var result pb.SubscribeResult
	if expires != 0 {
		result.Expires = true
		result.Ttl = ttl(expires, now)
		c.setSubscriptionExpiry(s, name, expires)
	}
	c.reply(s, &protocol.Reply{Id: id, Subscribe: &result})
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

// setSubscriptionExpiry notes when a subscription ends; 0 for never.
func (c *Commands) setSubscriptionExpiry(s *session.Session, name string, at int64) {
	st := c.at(s)
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
// away. Runs on the loop; s may be closed afterwards.
func (c *Commands) SubscribeSession(s *session.Session, sub APISubscription) error {
	if s.State != session.StateConnected {
		return topic.ErrNotAvailable
	}
	if err := c.topics.Subscribe(s, sub.Topic, true); err != nil {
		return err
	}
	if sub.ExpireAt != 0 {
		c.setSubscriptionExpiry(s, sub.Topic, sub.ExpireAt)
	}
	push := pb.Subscribe{}
	if protocol.ValidPayload(sub.Data, encodingOf(s)) {
		push.Data = sub.Data
	}
	c.push(s, &protocol.Push{Channel: sub.Topic, Subscribe: &push})
	return nil
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

// endSubscription ends a subscription, where there is one, and tells the
// client.
func (c *Commands) endSubscription(s *session.Session, name string, code uint32, reason string) {
	if c.leave(s, name) {
		c.push(s, &protocol.Push{Channel: name, Unsubscribe: &pb.Unsubscribe{Code: code, Reason: reason}})
	}
}
