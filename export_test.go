package perch

import (
	"context"
	"time"

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

// SessionIDs are those of all sessions.
func (s *Server) SessionIDs(ctx context.Context) []session.ID { return s.sessionIDs(ctx) }

// ForceDrain is the end of a drain whose last look at some sessions is still in the
// loops' inboxes.
func (s *Server) ForceDrain(ctx context.Context, ids []session.ID) <-chan int {
	d := &drain{server: s, begun: time.Now(), budget: s.live.Load().Drain.Budget}
	for _, id := range ids {
		d.close(id, 0)
	}
	done := make(chan int, 1)
	go func() { done <- d.force(ctx) }()
	return done
}

// SetNodeTimes lets tests have nodes that announce themselves more often, are
// sooner taken for gone, and are waited for less long.
func SetNodeTimes(o *Options, interval, gone, timeout time.Duration) {
	o.nodeTimes = nodeTimes{interval, gone, timeout}
}

// Node is the number of this process in client ids.
func (s *Server) Node() session.Node { return s.node }

// Digest stands for the namespaces of o.
func Digest(o *Options) string { return o.digest() }
