package handler

import "perch/session"

// Echo is the session.Handler of /echo: text comes back as text, binary as
// binary, and nothing else is said. What messages may be how long is the
// transport's business.
type Echo struct{}

var _ session.Handler = Echo{}

// Open implements session.Handler: every peer is welcome.
func (Echo) Open(s *session.Session, _ any) {
	s.State = session.StateConnected
	s.Anonymous = true
	s.StartHeartbeat()
}

// Message implements session.Handler.
func (Echo) Message(s *session.Session, data []byte, binary bool) { s.WriteKind(data, binary) }

// Expire implements session.Handler: nothing of an echo session ends in time.
func (Echo) Expire(*session.Session) {}

// Closed implements session.Handler.
func (Echo) Closed(*session.Session, session.Reason) {}
