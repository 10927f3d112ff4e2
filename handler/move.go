package handler

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"perch/session"
	"perch/topic"
)

// stateVersion is the version of movedSession. A server takes its own version
// and the one before.
const stateVersion = 2

var (
	errBusy    = errors.New("handler: session has work under way")
	errVersion = errors.New("handler: session state of an unknown version")
)

// movedSession is a session on its way to another server.
type movedSession struct {
	Version   int              `json:"v"`
	Client    string           `json:"client"`
	Connected bool             `json:"connected"`
	User      string           `json:"user,omitempty"`
	Family    uint64           `json:"family,omitempty"`
	Token     uint64           `json:"token,omitempty"`
	Expires   uint32           `json:"expires,omitempty"`
	Info      []byte           `json:"info,omitempty"`
	Meta      []byte           `json:"meta,omitempty"`
	Headers   string           `json:"headers,omitempty"`
	Subs      []movedSub       `json:"subs,omitempty"`
	Ends      map[string]int64 `json:"ends,omitempty"` // of subscriptions, in Unix seconds
	// Topics are those of version 1, which has no Subs; true: of the server's own
	// accord.
	Topics map[string]bool `json:"topics,omitempty"`
}

// movedSub is one of its subscriptions.
type movedSub struct {
	Topic    string `json:"topic"`
	Server   bool   `json:"server,omitempty"`
	Position bool   `json:"position,omitempty"`
	Offset   uint64 `json:"offset,omitempty"`
	Epoch    string `json:"epoch,omitempty"`
	Delta    bool   `json:"delta,omitempty"`
	News     bool   `json:"news,omitempty"`
	Told     bool   `json:"told,omitempty"`
	Joined   bool   `json:"joined,omitempty"`
	Hidden   bool   `json:"hidden,omitempty"`
	Info     []byte `json:"info,omitempty"`
}

var _ session.Mover = (*Commands)(nil)

// Export implements session.Mover. A session with a command in the pool, or a
// publication under way to it, can't go: they would find nobody.
func (c *Commands) Export(s *session.Session) ([]byte, error) {
	if s.Work != nil || s.State == session.StateVerifying || !c.topics.Settled(s) {
		return nil, errBusy
	}
	m := movedSession{
		Version: stateVersion, Client: c.clientID(s), Connected: s.State == session.StateConnected, User: s.User(),
		Family: s.Family, Token: s.Token, Expires: s.Expires, Ends: maps.Clone(c.at(s).expiries[s.ID()]),
	}
	if s.Extra != nil {
		m.Info, m.Meta, m.Headers = s.Extra.Info, s.Extra.Meta, s.Extra.Headers
	}
	c.topics.Each(s, func(sub topic.Subscription) {
		m.Subs = append(m.Subs, movedSub{
			Topic: sub.Topic, Server: sub.Server, Position: sub.Position, Offset: sub.At.Offset, Epoch: sub.At.Epoch,
			Delta: sub.Delta, News: sub.News, Told: sub.Told, Joined: sub.Joined, Hidden: sub.Hidden, Info: sub.Info,
		})
	})
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("handler: export session: %w", err)
	}
	return b, nil
}

// Import implements session.Mover.
func (c *Commands) Import(s *session.Session, data []byte) error {
	var m movedSession
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("handler: import session: %w", err)
	}
	if m.Version != stateVersion && m.Version != stateVersion-1 {
		return fmt.Errorf("handler: import session: %w: %d", errVersion, m.Version)
	}
	if !m.Connected {
		return nil
	}
	s.Extra = &session.Extra{Client: m.Client, Info: m.Info, Meta: m.Meta, Headers: m.Headers}
	s.Family, s.Token = m.Family, m.Token
	s.Anonymous = m.User == ""
	c.opts.Registry.Welcome(s)
	if !s.Anonymous {
		c.opts.Registry.Identify(s, m.User, 0) // it has been let in once
	}
	s.State = session.StateConnected
	for name, server := range m.Topics {
		m.Subs = append(m.Subs, movedSub{Topic: name, Server: server})
	}
	c.setExpiry(s, int64(m.Expires))
	for i := range m.Subs {
		if err := c.importSub(s, &m.Subs[i], m.Ends[m.Subs[i].Topic]); err != nil {
			return fmt.Errorf("handler: import session: subscribe: %w", err)
		}
		if s.Closed() {
			return nil // it has lost something that it can't do without
		}
	}
	return nil
}

// importSub makes a subscription again, and goes on from where it stood: what is
// missing follows, or the client is told that it has lost something.
func (c *Commands) importSub(s *session.Session, m *movedSub, ends int64) error {
	err := c.topics.Subscribe(s, m.Topic, topic.SubscribeOptions{
		Server: m.Server, Position: m.Position, Delta: m.Delta, News: m.News, Told: m.Told, Joined: m.Joined,
		Hidden: m.Hidden, Info: m.Info,
	})
	if err != nil {
		return err
	}
	if ends != 0 {
		c.setSubscriptionExpiry(s, m.Topic, ends)
	}
	if !m.Position {
		return nil
	}
	name, server, delta := m.Topic, m.Server, m.Delta
	r := topic.RecoverRequest{Recover: true, Since: topic.Position{Offset: m.Offset, Epoch: m.Epoch}}
	c.topics.Recover(s, name, r, func(s *session.Session, got topic.Recovered, err error) {
		if errors.Is(err, topic.ErrNotAvailable) {
			return // ended meanwhile, and the client knows
		}
		if err != nil || !got.OK || !c.fits(s, got.Publications, nil, false) {
			c.lose(s, name, server)
			return
		}
		missed, last := publications(encodingOf(s), got.Publications, delta)
		if delta && len(got.Publications) > 0 {
			c.topics.Rebase(s, name, last)
		}
		if c.missed(s, name, missed) {
			c.live(s, name)
		}
	})
	return nil
}

var _ session.Mover = Echo{}

// Export implements session.Mover: there is nothing to write down.
func (Echo) Export(*session.Session) ([]byte, error) { return nil, nil }

// Import implements session.Mover.
func (e Echo) Import(s *session.Session, _ []byte) error {
	s.State = session.StateConnected
	s.Anonymous = true
	return nil
}
