package perch

import (
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"

	"github.com/gin-gonic/gin"

	"perch/cluster"
	"perch/internal/stats"
	"perch/netpoll"
)

// Version is what this build calls itself: of the build's own settings where
// -ldflags gives none.
var Version = ""

// buildVersion is the version and the revision of the running binary.
var buildVersion = sync.OnceValues(func() (version, revision string) {
	version = Version
	if info, ok := debug.ReadBuildInfo(); ok {
		if version == "" && info.Main.Version != "" && info.Main.Version != "(devel)" {
			version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	if version == "" {
		version = "dev"
	}
	return version, revision
})

// snapshot gathers what /metrics shows. Safe from any goroutine.
func (s *Server) snapshot() stats.Snapshot {
	version, revision := buildVersion()
	n, t, c, p := s.net.Stats(), s.topics.Counts(), s.commands.Counters().Snapshot(), s.pool.Stats()
	failures, failing := s.authority.Load().Store.Failures()
	out := stats.Snapshot{
		Version: version, Revision: revision,
		Ready: s.state.Load() == int32(stateReady), Insecure: s.opts.Insecure,
		Connections: int64(n.Open), ConnectionLimit: int64(s.capacity.Load().soft), Accepted: n.Accepted,
		Refused:         n.Refusals,
		Sessions:        int64(n.Sessions),
		HTTPConnections: int64(n.HTTP), HTTPHandedOff: n.Handshakes[netpoll.OutcomeHandedOff.String()], HTTPRefused: n.HTTPRefused,
		Messages:   stats.Traffic{In: n.MessagesIn, Out: n.MessagesOut},
		Frames:     stats.Traffic{In: n.FramesIn, Out: n.FramesOut},
		Bytes:      stats.Traffic{In: n.BytesIn, Out: n.BytesOut},
		Handshakes: n.Handshakes, Closes: n.Closes,
		InboxLimit: int64(s.opts.Limits.InboxBytes), PendingBytes: n.PendingBytes, SlowConsumers: n.Slow,
		Pool: stats.Pool{
			Workers: int64(s.opts.Pool.Workers), Busy: int64(p.Workers - p.Idle), QueueJobs: int64(p.Depth), QueueBytes: int64(p.Bytes),
			QueueLimit: int64(s.opts.Pool.QueueBytes), Done: p.Done, Rejected: p.Refused,
		},
		Fanout: stats.Fanout{
			Publications: t.Publications, Rejected: t.Rejected, Deliveries: t.Deliveries,
			Encodings: t.Encodings, EncodeErrors: t.EncodeErrors,
		},
		Deflate: stats.Deflate{
			Sessions: n.Deflate.Sessions, Declined: n.Deflate.Declined, Bombs: n.Deflate.Bombs, QueueBytes: int64(n.Deflate.QueueBytes),
			Messages: stats.Traffic{In: n.Deflate.Inflated, Out: n.Deflate.Deflated},
			Refused:  stats.Traffic{In: n.Deflate.InflateRefused, Out: n.Deflate.DeflateRefused},
			Plain:    stats.Traffic{In: n.Deflate.InflatedTo, Out: n.Deflate.DeflatedFrom},
			Deflated: stats.Traffic{In: n.Deflate.InflatedFrom, Out: n.Deflate.DeflatedTo},
		},
		History: stats.History{
			Topics: int64(t.History.Topics), Publications: int64(t.History.Publications), Bytes: t.History.Bytes,
			Limit: int64(s.opts.Topics.HistoryBytes), Recovered: map[string]uint64{"yes": t.Recoveries, "no": t.Unrecovered},
			Lost: t.Losses, NewsDropped: t.NewsDropped,
		},
		Memory: s.memoryLayers(), MemoryRefusing: s.memory != nil && s.memory.refusing.Load(),
		Topics: int64(t.Topics), Subscriptions: int64(t.Subscriptions),
		Commands: c.Commands, Errors: c.Errors, Malformed: c.Malformed,
		EventIDsMalformed: c.EventIDs, NotEncoded: c.NotEncoded, BacklogRejected: c.BacklogOverflow, RateLimited: c.RateLimited, UserLimited: c.UserLimited,
		RPCPanics: c.RPCPanics, RPCTimeouts: c.RPCTimeouts,
		Revocations: int64(s.authority.Load().Store.Count()), ClientLookups: s.clientLookups(),
		StoreFailures: failures, StoreFailing: failing, HTTPPanics: s.httpPanics.Load(),
		Reloads: s.reloadOutcomes(), AcceptErrors: n.AcceptErrors, LoopLag: n.Lag.Seconds(),
		TokensIssued: s.issued.Map(), TokensRefused: s.refused.Map(), API: s.apiCalls.Map(),
		Backend: s.backend.Stats(), Nodes: s.nodeStats(), Leaf: s.leafStats(),
	}
	out.Refused["hard_cap"] = n.Refused
	if s.broker != nil {
		out.Broker = brokerStats(s.broker.Counts(), s.opts.NATS.QueueBytes)
	}
	if s.memory != nil {
		out.MemoryUsed, out.MemoryBudget = s.memory.last.Load(), s.memory.limit
	}
	for _, l := range n.Loops {
		out.Loops = append(out.Loops, stats.Loop{
			Connections: int64(l.Open), InboxBytes: l.InboxBytes, Rejected: l.InboxRejected, Turns: l.Turns, Panics: l.Panics,
			PutOffs: l.PutOffs, PutOffBytes: l.PutOffBytes, MostWork: l.MostWork, MostBytes: l.MostBytes, MostPosts: l.MostPosts, Timers: l.Timers,
		})
	}
	return out
}

func brokerStats(c cluster.BrokerCounts, limit int) stats.Broker {
	return stats.Broker{
		On: true, Connected: c.Connected, Losses: c.Losses, Waiting: int64(c.Waiting), QueueBytes: c.Queued, QueueLimit: int64(limit),
		Publications: map[string]uint64{"unsent": c.Unsent, "refused": c.Refused, "failed": c.Failed},
		Deliveries:   map[string]uint64{"undone": c.Undone, "repaired": c.Repaired, "dropped": c.Dropped, "malformed": c.Malformed},
	}
}

// clientLookups are the questions for clients of the registry, by outcome; nil:
// there is none.
func (s *Server) clientLookups() map[string]uint64 {
	if s.clients == nil {
		return nil
	}
	n := s.clients.Stats()
	return map[string]uint64{"hit": n.Hits, "found": n.Found, "unknown": n.Unknown, "failed": n.Failed}
}

// observeToken counts a request for a token, by its outcome.
func (s *Server) observeToken(c *gin.Context) {
	c.Next()
	if c.FullPath() != "/v1/token" {
		return
	}
	if status := c.Writer.Status(); status == http.StatusOK {
		s.issued.Inc("token")
	} else {
		s.refused.Inc(strconv.Itoa(status))
	}
}

// observeAPI counts a call of the server API.
func (s *Server) observeAPI(method string, code int) {
	s.apiCalls.Inc(stats.APILabel{Method: method, Code: strconv.Itoa(code)})
}
