package handler

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"perch/session"
)

// stateVersion is the version of movedSession. A server takes its own version
// and the one before.
const stateVersion = 1

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
	Topics    map[string]bool  `json:"topics,omitempty"` // by name; true: of the server's own accord
	Ends      map[string]int64 `json:"ends,omitempty"`   // of subscriptions, in Unix seconds
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
		m.Info, m.Meta = s.Extra.Info, s.Extra.Meta
	}
	c.topics.Each(s, func(name string, server bool) {
		if m.Topics == nil {
			m.Topics = make(map[string]bool)
		}
		m.Topics[name] = server
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
	if m.Version != stateVersion {
		return fmt.Errorf("handler: import session: %w: %d", errVersion, m.Version)
	}
	if !m.Connected {
		return nil
	}
	s.Extra = &session.Extra{Client: m.Client, Info: m.Info, Meta: m.Meta}
	s.Family, s.Token = m.Family, m.Token
	s.Anonymous = m.User == ""
	c.opts.Registry.Welcome(s)
	if !s.Anonymous {
		c.opts.Registry.Identify(s, m.User)
	}
	s.State = session.StateConnected
	for name, server := range m.Topics {
		if err := c.topics.Subscribe(s, name, server); err != nil {
			return fmt.Errorf("handler: import session: subscribe: %w", err)
		}
		if at := m.Ends[name]; at != 0 {
			c.setSubscriptionExpiry(s, name, at)
		}
	}
	c.setExpiry(s, int64(m.Expires))
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
