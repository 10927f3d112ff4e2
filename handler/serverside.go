package handler

import (
	"strings"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// group is the subscriptions that the server makes for a session when it
// connects: those of its token, and that to the topic of its user.
type group struct {
	c *Commands
	// subs are their results, by topic; nil where there are none.
	subs map[string]*pb.SubscribeResult
	err  error
	left int // that have not answered, and one while begin runs
	// bytes is about what the publications in subs take.
	bytes int
}

// begin makes them, unless there is an error already, and calls done when all
// are known or one has failed, perhaps later. Those that need no history come
// last, so that nothing is written to them before the client is told.
func (g *group) begin(s *session.Session, wishes []*grouped, done func(*session.Session)) {
	if g.err != nil {
		done(s)
		return
	}
	var plain []*grouped
	positioned := 0
	for _, w := range wishes {
		g.c.decide(s, &w.wish)
		if w.positioned {
			positioned++
		} else {
			plain = append(plain, w)
		}
	}
	g.left = positioned + 1
	finish := func(s *session.Session) {
		if g.left--; g.left > 0 {
			return
		}
		for _, w := range plain {
			if g.err == nil {
				g.err = g.join(s, w, func(*session.Session) {})
			}
		}
		done(s)
	}
	for _, w := range wishes {
		if !w.positioned {
			continue
		}
		if g.err == nil {
			if err := g.join(s, w, finish); err == nil {
				continue
			} else if g.err == nil {
				g.err = err
			}
		}
		g.left--
	}
	finish(s)
}

// grouped is one of them.
type grouped struct{ wish }

func (g *group) join(s *session.Session, w *grouped, done func(*session.Session)) error {
	return g.c.join(s, &w.wish, func(s *session.Session, result *pb.SubscribeResult, err error) {
		if err != nil {
			if g.err == nil {
				g.err = err
			}
		} else {
			if protocol.ValidPayload(w.data, encodingOf(s)) {
				result.Data = w.data
			}
			g.subs[w.name] = result
			if w.expires != 0 {
				g.c.setSubscriptionExpiry(s, w.name, w.expires)
			}
		}
		done(s)
	})
}

// personal tells whether the session of a token has the topic of its user.
func (c *Commands) personal(claims *auth.Claims) bool {
	return c.opts.UserPersonal && claims.Subject != ""
}

// serverSide tells whether the server makes subscriptions for the session of a
// token. Most have none.
func (c *Commands) serverSide(claims *auth.Claims) bool {
	return len(claims.Channels) > 0 || len(claims.Subs) > 0 || c.personal(claims)
}

// wishes lists them. A name that the token gives twice is one. known is where
// the client stands of an earlier connection.
func (g *group) wishes(s *session.Session, claims *auth.Claims, known map[string]*pb.SubscribeRequest) ([]*grouped, error) {
	c := g.c
	n := len(claims.Channels) + len(claims.Subs) + 1
	g.subs = make(map[string]*pb.SubscribeResult, n)
	wishes, seen := make([]*grouped, 0, n), make(map[string]bool, n)
	add := func(name string, sub *auth.Sub) error {
		if seen[name] {
			return nil
		}
		ns, err := c.topics.Namespace(name)
		if err != nil {
			return err
		}
		seen[name] = true
		w := &grouped{wish: wish{name: name, ns: ns, server: true, request: c.requested(s, name, known[name]), beside: &g.bytes}}
		if sub != nil {
			w.info, w.override, w.data, w.expires = sub.Info, sub.Override, sub.Data, sub.ExpiresAt
		}
		wishes = append(wishes, w)
		return nil
	}
	// Those with options go first: a name may stand in both.
	for i := range claims.Subs {
		if err := add(claims.Subs[i].Topic, &claims.Subs[i]); err != nil {
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
	if c.personal(claims) && !strings.Contains(claims.Subject, userSeparator) {
		name := PersonalTopic(c.opts.PersonalNamespace, claims.Subject)
		if _, err := c.topics.Namespace(name); err != nil {
			c.log.Debug("no personal topic", "session", c.clientID(s), "err", err)
		} else if err := add(name, nil); err != nil {
			return nil, err
		}
	}
	if len(wishes) > c.topics.MaxSubscriptions() {
		return nil, topic.ErrTooMany
	}
	return wishes, nil
}
