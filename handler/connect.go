package handler

import (
	"errors"
	"log/slog"
	"strings"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/backend"
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
	req, cid := cmd.Connect, cmd.Id
	token := req.Token
	switch {
	case token == "" && id.Claims != nil:
		c.admit(s, cid, req, id.Claims, nil)
	case token == "" && c.asks(backend.Connect):
		c.askConnect(s, cid, req)
	case token == "" && (c.opts.Insecure || c.opts.Require == RequireNone):
		c.admit(s, cid, req, nil, nil)
	case token == "":
		c.badRequest(s, "no token")
	case c.opts.Require == RequireHandshake && id.Claims == nil && !c.opts.Insecure:
		s.Close(session.ReasonInvalidToken)
	case c.opts.Verifier.Cheap(token):
		claims, err := c.opts.Verifier.Connect(token)
		c.verified(s, cid, req, claims, err)
	default:
		s.State = session.StateVerifying
		taken := c.offload(s, cid, len(token), func() func(*session.Session) {
			claims, err := c.opts.Verifier.Connect(token)
			return func(s *session.Session) { c.verified(s, cid, req, claims, err) }
		})
		if !taken && !s.Closed() {
			c.refuse(s)
		}
	}
}

// verified goes on when the token of a connect command has been looked at. A
// token beside one of the handshake must be of the same user, and takes its
// place.
func (c *Commands) verified(s *session.Session, id uint32, req *pb.ConnectRequest, claims *auth.Claims, err error) {
	if err != nil {
		c.refuseToken(s, id, err, nil)
		return
	}
	if w := workOf(s); w != nil && w.identity.Claims != nil && w.identity.Claims.Subject != claims.Subject {
		s.Close(session.ReasonInvalidToken)
		return
	}
	c.admit(s, id, req, claims, nil)
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

// admit makes a session of the peer: nil claims are those of nobody. data goes to
// the client with the answer.
func (c *Commands) admit(s *session.Session, id uint32, req *pb.ConnectRequest, claims *auth.Claims, data []byte) {
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
	var g *group
	var wishes []*grouped
	if c.serverSide(claims) {
		g = &group{c: c}
		var err error
		if wishes, err = g.wishes(s, claims, req.Subs); err != nil {
			c.notAdmitted(s, id, err)
			return
		}
	}
	// Who it is comes before its subscriptions: presence shows it.
	user := strings.Clone(claims.Subject)
	s.Anonymous = user == ""
	if !c.mark(s, claims) {
		return
	}
	headers := c.keptHeaders(s)
	if len(claims.Info) > 0 || len(claims.Meta) > 0 || headers != "" {
		s.Extra = &session.Extra{Info: claims.Info, Meta: claims.Meta, Headers: headers}
	}
	if !s.Anonymous {
		// Nobody asks for the sessions of nobody, and one chain of them all would
		// make each close a walk through it.
		if !c.opts.Registry.Identify(s, user, c.opts.SessionsPerUser) {
			c.counters.UserLimited.Add(1)
			c.log.Debug("user has too many sessions", "session", c.clientID(s), "remote", s.Remote())
			s.Close(session.ReasonConnectionLimit)
			return
		}
	}
	if len(wishes) == 0 {
		c.admitted(s, id, expires, now, nil, data)
		return
	}
	c.pause(s, func(done func(*session.Session)) { g.begin(s, wishes, done) }, func(s *session.Session) {
		if g.err == nil {
			c.admitted(s, id, expires, c.now(), g, data)
			return
		}
		c.topics.Leave(s)
		c.opts.Registry.Remove(s)
		c.notAdmitted(s, id, g.err)
	})
}

// notAdmitted answers a connect command whose subscriptions can't be made.
func (c *Commands) notAdmitted(s *session.Session, id uint32, err error) {
	if errors.Is(err, topic.ErrTooMany) {
		s.Close(session.ReasonTopicLimit)
		return
	}
	c.fail(s, id, c.subscribeError(s, err))
	if !s.Closed() {
		c.refuse(s)
	}
}

// admitted answers the connect command of a session that has all its
// subscriptions; g is nil where there are none.
func (c *Commands) admitted(s *session.Session, id uint32, expires, now int64, g *group, data []byte) {
	s.State = session.StateConnected
	result := pb.ConnectResult{Client: c.clientID(s), Version: c.opts.Version}
	if g != nil {
		result.Subs = g.subs
	}
	if protocol.ValidPayload(data, encodingOf(s)) {
		result.Data = data
	}
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
	if expires != 0 && (!c.asks(backend.Refresh) || s.Encoding.Unidirectional()) {
		// Where the backend refreshes, there is nothing for a client to do in time.
		result.Expires = true
		result.Ttl = ttl(expires, now)
	}
	c.setExpiry(s, expires)
	c.reply(s, &protocol.Reply{Id: id, Connect: &result})
	if !s.Closed() {
		s.StartHeartbeat()
	}
	for name := range result.Subs {
		if s.Closed() {
			return
		}
		c.live(s, name)
	}
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
	if !c.mark(s, claims) {
		return
	}
	setInfo(s, claims.Info)
	expires := claims.ExpiresAt
	if c.opts.Insecure {
		expires = 0
	}
	result := pb.RefreshResult{Expires: expires != 0 && !c.asks(backend.Refresh)}
	if result.Expires {
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

// setExpiry notes when the identity of s ends. Nobody waits for what the backend
// says of the end before.
func (c *Commands) setExpiry(s *session.Session, at int64) {
	delete(c.at(s).refreshing, refreshed{s.ID(), ""})
	s.Expires = uint32(max(0, min(at, 1<<32-1)))
	c.rearm(s)
}

// rearm asks for the first of the session's ends, each with its grace. What the
// backend is asked about has none: the question comes at the end itself.
func (c *Commands) rearm(s *session.Session) {
	first := int64(0)
	c.eachEnd(s, func(_ string, at int64) {
		if first == 0 || at < first {
			first = at
		}
	})
	s.SetExpiry(first)
}

// eachEnd calls f with the times at which something has to be done about the
// session and, with their topics, its subscriptions, if nothing happens before.
func (c *Commands) eachEnd(s *session.Session, f func(name string, at int64)) {
	grace, st := int64(c.opts.ExpiredGrace.Seconds()), c.at(s)
	end := func(name string, at int64, asked bool) {
		if !asked {
			f(name, at+grace)
		} else if _, under := st.refreshing[refreshed{s.ID(), name}]; !under {
			f(name, at)
		}
	}
	if s.Expires != 0 {
		end("", int64(s.Expires), c.asks(backend.Refresh))
	}
	for name, at := range st.expiries[s.ID()] {
		end(name, at, c.asksSubRefresh(name))
	}
}

// expire does what has to be done about what is over: the session, or some of
// its subscriptions.
func (c *Commands) expire(s *session.Session) {
	now := c.now()
	var over []string
	c.eachEnd(s, func(name string, at int64) {
		if at <= now {
			over = append(over, name)
		}
	})
	for _, name := range over {
		switch {
		case s.Closed():
			return
		case name == "" && c.asks(backend.Refresh):
			c.askRefresh(s)
		case name == "":
			s.Close(session.ReasonExpired)
		case c.asksSubRefresh(name):
			c.askSubRefresh(s, name)
		default:
			c.endSubscription(s, name, protocol.UnsubscribedExpired, "subscription expired")
		}
	}
	if !s.Closed() {
		c.rearm(s)
	}
}
