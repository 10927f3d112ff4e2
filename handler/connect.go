package handler

import (
	"errors"
	"log/slog"
	"strings"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// TokenHash is what a session keeps of its token's jti and of its family:
// FNV-1a, 64 bits; 0 for none.
func TokenHash(name string) uint64 {
	if name == "" {
		return 0
	}
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	return max(h, 1)
}

// PersonalTopic is the topic of a user's own, in a namespace or, where that is
// empty, in none.
func PersonalTopic(namespace, user string) string {
	if namespace == "" {
		return userBoundary + user
	}
	return namespace + topic.Separator + userBoundary + user
}

// connect finds out who the peer is.
func (c *Commands) connect(s *session.Session, cmd *protocol.Command) {
	if s.State != session.StateOpened {
		c.badRequest(s, "connect must come first, and once")
		return
	}
	var id Identity
	if w := workOf(s); w != nil {
		id = w.identity
	}
	token, cid := cmd.Connect.Token, cmd.Id
	switch {
	case token == "" && id.Claims != nil:
		c.admit(s, cid, id.Claims)
	case token == "" && (c.opts.Insecure || c.opts.Require == RequireNone):
		c.admit(s, cid, nil)
	case token == "":
		c.badRequest(s, "no token")
	case c.opts.Require == RequireHandshake && id.Claims == nil && !c.opts.Insecure:
		s.Close(session.ReasonInvalidToken)
	case c.opts.Verifier.Cheap(token):
		claims, err := c.opts.Verifier.Connect(token)
		c.verified(s, cid, claims, err)
	default:
		s.State = session.StateVerifying
		taken := c.offload(s, cid, len(token), func() func(*session.Session) {
			claims, err := c.opts.Verifier.Connect(token)
			return func(s *session.Session) { c.verified(s, cid, claims, err) }
		})
		if !taken && !s.Closed() {
			c.refuse(s)
		}
	}
}

// verified goes on when the token of a connect command has been looked at. A
// token beside one of the handshake must be of the same user, and takes its
// place.
func (c *Commands) verified(s *session.Session, id uint32, claims *auth.Claims, err error) {
	if err != nil {
		c.refuseToken(s, id, err, nil)
		return
	}
	if w := workOf(s); w != nil && w.identity.Claims != nil && w.identity.Claims.Subject != claims.Subject {
		s.Close(session.ReasonInvalidToken)
		return
	}
	c.admit(s, id, claims)
}

// refuseToken answers a command whose token is not good: 109 where it was
// once; 100 where nobody can tell now; else bad, or a close where that is nil.
func (c *Commands) refuseToken(s *session.Session, id uint32, err error, bad *Error) {
	if c.log.Enabled(c.ctx, slog.LevelDebug) {
		c.log.Debug("token refused", "session", c.clientID(s), "remote", s.Remote(), "err", err)
	}
	connecting := s.State != session.StateConnected
	switch {
	case errors.Is(err, auth.ErrTokenExpired):
		c.fail(s, id, protocol.ErrTokenExpired)
	case errors.Is(err, auth.ErrKeysUnavailable):
		c.fail(s, id, protocol.ErrInternal)
	case bad != nil:
		c.fail(s, id, bad)
	default:
		s.Close(session.ReasonInvalidToken)
	}
	if connecting && !s.Closed() {
		c.refuse(s)
	}
}

// refuse leaves a session alone whose connect was answered with an error: its
// client goes, or the connect timeout ends it.
func (c *Commands) refuse(s *session.Session) {
	s.State = session.StateOpened
	needWork(s).refused = true
}

// admit makes a session of the peer: nil claims are those of nobody.
func (c *Commands) admit(s *session.Session, id uint32, claims *auth.Claims) {
	if claims == nil {
		claims = &auth.Claims{}
	}
	now := c.now()
	expires := claims.ExpiresAt
	if c.opts.Insecure {
		expires = 0
	}
	if expires != 0 && expires <= now {
		c.refuseToken(s, id, auth.ErrTokenExpired, nil)
		return
	}
	subs, err := c.serverSide(s, claims)
	switch {
	case errors.Is(err, topic.ErrTooMany):
		s.Close(session.ReasonTopicLimit)
		return
	case err != nil:
		c.topics.Leave(s)
		c.fail(s, id, subscribeError(err))
		if !s.Closed() {
			c.refuse(s)
		}
		return
	}

	user := strings.Clone(claims.Subject)
	s.Anonymous = user == ""
	s.Family, s.Token = TokenHash(claims.Family), TokenHash(claims.ID)
	if len(claims.Info) > 0 || len(claims.Meta) > 0 {
		s.Extra = &session.Extra{Info: claims.Info, Meta: claims.Meta}
	}
	if !s.Anonymous {
		// Nobody asks for the sessions of nobody, and one chain of them all would
		// make each close a walk through it.
		c.opts.Registry.Identify(s, user)
	}
	s.State = session.StateConnected

	result := pb.ConnectResult{Client: c.clientID(s), Version: c.opts.Version, Subs: subs}
	framePings := false
	if w := workOf(s); w != nil {
		framePings = w.identity.FramePings
		w.identity = Identity{}
		release(s)
	}
	if c.opts.PingInterval > 0 && !framePings {
		result.Ping = uint32(max(1, c.opts.PingInterval.Seconds()))
		result.Pong = true
	}
	if expires != 0 {
		result.Expires = true
		result.Ttl = ttl(expires, now)
	}
	c.setExpiry(s, expires)
	c.reply(s, &protocol.Reply{Id: id, Connect: &result})
	if !s.Closed() {
		s.StartHeartbeat()
	}
}

// serverSide subscribes s to what its token names, and to the topic of its
// user.
func (c *Commands) serverSide(s *session.Session, claims *auth.Claims) (map[string]*pb.SubscribeResult, error) {
	personal := c.opts.UserPersonal && claims.Subject != ""
	if len(claims.Channels) == 0 && len(claims.Subs) == 0 && !personal {
		return nil, nil
	}
	subs := make(map[string]*pb.SubscribeResult, len(claims.Channels)+len(claims.Subs)+1)
	add := func(name string, data []byte) error {
		if subs[name] != nil {
			return nil
		}
		if err := c.topics.Subscribe(s, name, true); err != nil {
			return err
		}
		if !protocol.ValidPayload(data, encodingOf(s)) {
			data = nil
		}
		subs[name] = &pb.SubscribeResult{Data: data}
		return nil
	}
	// Those with options go first: a name may stand in both.
	for i := range claims.Subs {
		if err := add(claims.Subs[i].Topic, claims.Subs[i].Data); err != nil {
			return nil, err
		}
	}
	for _, name := range claims.Channels {
		if err := add(name, nil); err != nil {
			return nil, err
		}
	}
	// A user whose name can't stand in a topic's has no personal one: a comma
	// would make it the topic of two others.
	if personal && !strings.Contains(claims.Subject, userSeparator) {
		name := PersonalTopic(c.opts.PersonalNamespace, claims.Subject)
		if _, err := c.topics.Namespace(name); err != nil {
			c.log.Debug("no personal topic", "session", c.clientID(s), "err", err)
		} else if err := add(name, nil); err != nil {
			return nil, err
		}
	}
	return subs, nil
}

// refresh gives the session the time of a new token.
func (c *Commands) refresh(s *session.Session, cmd *protocol.Command) {
	token, id := cmd.Refresh.Token, cmd.Id
	if token == "" {
		c.badRequest(s, "no token")
		return
	}
	if c.opts.Verifier.Cheap(token) {
		claims, err := c.opts.Verifier.Connect(token)
		c.refreshed(s, id, claims, err)
		return
	}
	c.offload(s, id, len(token), func() func(*session.Session) {
		claims, err := c.opts.Verifier.Connect(token)
		return func(s *session.Session) { c.refreshed(s, id, claims, err) }
	})
}

func (c *Commands) refreshed(s *session.Session, id uint32, claims *auth.Claims, err error) {
	if err != nil {
		c.refuseToken(s, id, err, nil)
		return
	}
	if claims.Subject != s.User() {
		s.Close(session.ReasonInvalidToken)
		return
	}
	s.Family, s.Token = TokenHash(claims.Family), TokenHash(claims.ID)
	setInfo(s, claims.Info)
	expires := claims.ExpiresAt
	if c.opts.Insecure {
		expires = 0
	}
	result := pb.RefreshResult{Expires: expires != 0}
	if expires != 0 {
		result.Ttl = ttl(expires, c.now())
	}
	c.setExpiry(s, expires)
	c.reply(s, &protocol.Reply{Id: id, Refresh: &result})
}

// RefreshSession implements APISessions: it sets when the session of s ends, of
// the server's own accord, and tells its client; a time that is past ends it
// with 3005. Runs on the loop; s may be closed afterwards.
func (c *Commands) RefreshSession(s *session.Session, r APIRefresh) error {
	if s.State != session.StateConnected {
		return topic.ErrNotAvailable
	}
	now := c.now()
	if r.ExpireAt != 0 && r.ExpireAt <= now {
		s.Close(session.ReasonExpired)
		return nil
	}
	setInfo(s, r.Info)
	push := pb.Refresh{Expires: r.ExpireAt != 0}
	if r.ExpireAt != 0 {
		push.Ttl = ttl(r.ExpireAt, now)
	}
	c.setExpiry(s, r.ExpireAt)
	c.push(s, &protocol.Push{Refresh: &push})
	return nil
}

// setInfo replaces what others see of the connection; nothing leaves it.
func setInfo(s *session.Session, info []byte) {
	if len(info) == 0 {
		return
	}
	if s.Extra == nil {
		s.Extra = &session.Extra{}
	}
	s.Extra.Info = info
}

// setExpiry notes when the identity of s ends.
func (c *Commands) setExpiry(s *session.Session, at int64) {
	s.Expires = uint32(max(0, min(at, 1<<32-1)))
	c.rearm(s)
}

// rearm asks for the first of the session's ends, each with its grace.
func (c *Commands) rearm(s *session.Session) {
	first := int64(s.Expires)
	for _, at := range c.at(s).expiries[s.ID()] {
		if first == 0 || at < first {
			first = at
		}
	}
	if first != 0 {
		first += int64(c.opts.ExpiredGrace.Seconds())
	}
	s.SetExpiry(first)
}

// expire ends what is over: the session, or some of its subscriptions.
func (c *Commands) expire(s *session.Session) {
	late := c.now() - int64(c.opts.ExpiredGrace.Seconds())
	if s.Expires != 0 && int64(s.Expires) <= late {
		s.Close(session.ReasonExpired)
		return
	}
	for name, at := range c.at(s).expiries[s.ID()] {
		if at > late {
			continue
		}
		c.endSubscription(s, name, protocol.UnsubscribedExpired, "subscription expired")
		if s.Closed() {
			return
		}
	}
	c.rearm(s)
}
