package perch

import (
	"perch/handler"
	"perch/netpoll"
	"perch/session"
	"perch/topic"
)

// SetBroker lets tests take the place of the in-memory broker.
func SetBroker(o *Options, make func(topic.MemoryOptions) topic.Broker) { o.broker = make }

// SetUsed lets tests say what memory the process takes.
func SetUsed(o *Options, used func() int64) { o.used = used }

// Origins is how websocket.allowed_origins decides.
func Origins(patterns []string) func(origin, host string) bool { return newOrigins(patterns).allow }

// What tests look at from outside.

func (s *Server) NetStats() netpoll.Stats            { return s.net.Stats() }
func (s *Server) TopicCounts() topic.Counts          { return s.topics.Counts() }
func (s *Server) SessionRegistry() *session.Registry { return s.registry }
func (s *Server) PoolStats() handler.PoolStats       { return s.pool.Stats() }
func (s *Server) Net() *netpoll.Server               { return s.net }
