package netpoll

import (
	"time"
	"unsafe"

	"perch/internal/stats"
	"perch/session"
)

// Outcome is how an opening handshake, or a request, ended.
type Outcome uint8

// The outcomes.
const (
	OutcomeUpgraded Outcome = iota
	OutcomeStreamed         // an event stream has begun
	OutcomeHandedOff
	OutcomeBadRequest
	OutcomeBadVersion
	OutcomeBadProxy // no PROXY header where one must be
	OutcomeBadOrigin
	OutcomeUnauthorized
	OutcomeRefused // another status that Check gave
	OutcomeTooLarge
	OutcomeTimeout
	OutcomeOverload // 503 or a plain close at the cap
	OutcomeAborted  // the peer went first
	outcomeCount
)

var outcomeLabels = [outcomeCount]string{
	"upgraded", "streamed", "handed_off", "bad_request", "bad_version", "bad_proxy", "bad_origin", "unauthorized", "refused",
	"too_large", "timeout", "overload", "aborted",
}

// String is the metric label of o.
func (o Outcome) String() string { return outcomeLabels[o] }

const reasonSlots = 64

// loopStats are what one loop counts, on cache lines of its own.
type loopStats struct {
	_            stats.Pad
	Open         stats.Gauge // conns
	Sessions     stats.Gauge
	Chunks       stats.Gauge // of the table
	PendingBytes stats.Gauge
	PartialBytes stats.Gauge // of what has not come whole
	PutOffBytes  stats.Gauge
	QueuedBytes  stats.Gauge // of blocked conns, in the kernel
	Timers       stats.Gauge // as of the last tick, or the last end of a conn
	Accepted     stats.Counter
	MessagesIn   stats.Counter
	MessagesOut  stats.Counter
	BytesIn      stats.Counter
	BytesOut     stats.Counter
	FramesIn     stats.Counter
	FramesOut    stats.Counter
	Writes       stats.Counter
	Slow         stats.Counter
	Pings        stats.Counter
	Pongs        stats.Counter
	Turns        stats.Counter
	Panics       stats.Counter

	DeflateSessions stats.Counter
	DeflateDeclined stats.Counter
	DeflateRefused  stats.Counter
	InflateRefused  stats.Counter
	Deflated        stats.Counter
	DeflatedFrom    stats.Counter
	DeflatedTo      stats.Counter
	Inflated        stats.Counter
	InflatedFrom    stats.Counter
	InflatedTo      stats.Counter
	Bombs           stats.Counter

	PutOffs   stats.Counter
	MostShare most // frames and commands of one peer in one go
	MostBytes most // of one peer in one go
	MostItems most // of the inbox in one turn
	Closes    [reasonSlots]stats.Counter
	Outcomes  [outcomeCount]stats.Counter
	Refusals  [verdictCount]stats.Counter
	_         stats.Pad
}

// Stats is what a Server tells of itself. Counters grow from the start of the
// process; the others are of the moment.
type Stats struct {
	Accepted     uint64 // connections
	Open         int    // connections on the loops
	HTTP         int    // connections that are with net/http
	Sessions     int
	MessagesIn   uint64
	MessagesOut  uint64
	BytesIn      uint64
	BytesOut     uint64
	FramesIn     uint64
	Writes       uint64 // system calls
	PendingBytes int64
	PartialBytes int64 // of heads, frames and messages that have not come whole
	TableBytes   int64 // of the tables of connections
	InboxBytes   int64
	PutOffBytes  int64  // of what peers have sent beyond their share
	QueuedBytes  int64  // in the kernel, for peers that take no more
	Slow         uint64 // closed as slow consumers
	Pings        uint64
	Pongs        uint64
	FramesOut    uint64
	Turns        uint64            // of the inboxes
	Refused      uint64            // closed without an answer, for want of room for one
	Refusals     map[string]uint64 // with 503 or 429, by cause
	HTTPRefused  uint64            // no room with net/http
	Panics       uint64
	AcceptErrors map[string]uint64 // by cause
	Lag          time.Duration     // see Server.Lag
	Closes       map[string]uint64 // by reason
	Handshakes   map[string]uint64 // by outcome
	Deflate      DeflateStats
	Loops        []LoopStats
}

// DeflateStats are of permessage-deflate. What many get is deflated once a loop and
// counts once.
type DeflateStats struct {
	Sessions     uint64 // upgraded with it
	Declined     uint64 // offers of it that were not taken
	Deflated     uint64 // messages
	DeflatedFrom uint64 // their bytes before
	DeflatedTo   uint64 // and after
	Inflated     uint64 // messages
	InflatedFrom uint64
	InflatedTo   uint64
	Bombs        uint64 // messages that would have become too big
	// Refused are messages for which there was no room or no runner in time: those to
	// peers left as they were, those of peers ended their connection.
	DeflateRefused uint64
	InflateRefused uint64
	QueueBytes     int
}

// LoopStats are of one loop.
type LoopStats struct {
	Open          int
	InboxBytes    int64
	InboxRejected uint64
	Turns         uint64
	Panics        uint64
	// PutOffs counts the times that a peer sent more than its share of a turn, of
	// which PutOffBytes wait now. MostWork are the most frames and commands, and
	// MostBytes the most bytes, that were handled of one peer in one go; MostPosts
	// the most items of the inbox in one turn.
	PutOffs     uint64
	PutOffBytes int64
	MostWork    int64
	MostBytes   int64
	MostPosts   int64
	// Timers are the connections with a deadline.
	Timers int64
}

// Open is the number of connections on the loops. Safe from any goroutine.
func (s *Server) Open() int { return int(s.open.Load()) }

// Stats adds the loops' counters up. Safe from any goroutine.
func (s *Server) Stats() Stats {
	out := Stats{HTTP: int(s.handed.Load()), Closes: make(map[string]uint64), Handshakes: make(map[string]uint64), Refusals: make(map[string]uint64)}
	out.Deflate.QueueBytes = s.deflater.queued()
	out.Panics, out.Refused, out.HTTPRefused = s.panics.Load(), s.refused.Load(), s.httpRefused.Load()
	out.AcceptErrors = s.acceptFailures.count.Map()
	out.Lag, _ = s.Lag()
	s.each(func(l *loop) {
		st := &l.stats
		out.Accepted += st.Accepted.Load()
		out.Open += int(st.Open.Load())
		out.Sessions += int(st.Sessions.Load())
		out.MessagesIn += st.MessagesIn.Load()
		out.MessagesOut += st.MessagesOut.Load()
		out.BytesIn += st.BytesIn.Load()
		out.BytesOut += st.BytesOut.Load()
		out.FramesIn += st.FramesIn.Load()
		out.FramesOut += st.FramesOut.Load()
		out.Writes += st.Writes.Load()
		out.PendingBytes += st.PendingBytes.Load()
		out.PartialBytes += st.PartialBytes.Load()
		out.TableBytes += st.Chunks.Load() * int64(chunkSize) * int64(unsafe.Sizeof(conn{}))
		out.InboxBytes += l.inbox.bytes.Load()
		out.PutOffBytes += st.PutOffBytes.Load()
		out.QueuedBytes += st.QueuedBytes.Load()
		out.Slow += st.Slow.Load()
		out.Pings += st.Pings.Load()
		out.Pongs += st.Pongs.Load()
		out.Turns += st.Turns.Load()
		out.Panics += st.Panics.Load()
		out.Deflate.add(st)
		session.Reasons(func(r session.Reason, info session.ReasonInfo) {
			if n := st.Closes[r].Load(); n > 0 {
				out.Closes[info.Label] += n
			}
		})
		for v := overFull; v < verdictCount; v++ {
			out.Refusals[verdictCauses[v]] += st.Refusals[v].Load()
		}
		for o := range outcomeCount {
			out.Handshakes[o.String()] += st.Outcomes[o].Load()
		}
		out.Loops = append(out.Loops, LoopStats{
			Open: int(st.Open.Load()), InboxBytes: l.inbox.bytes.Load(), InboxRejected: l.inbox.rejected.Load(),
			Turns: st.Turns.Load(), Panics: st.Panics.Load(),
			PutOffs: st.PutOffs.Load(), PutOffBytes: st.PutOffBytes.Load(),
			MostWork: st.MostShare.n.Load(), MostBytes: st.MostBytes.n.Load(), MostPosts: st.MostItems.n.Load(),
			Timers: st.Timers.Load(),
		})
	})
	return out
}

func (d *DeflateStats) add(st *loopStats) {
	d.Sessions += st.DeflateSessions.Load()
	d.Declined += st.DeflateDeclined.Load()
	d.DeflateRefused += st.DeflateRefused.Load()
	d.InflateRefused += st.InflateRefused.Load()
	d.Deflated += st.Deflated.Load()
	d.DeflatedFrom += st.DeflatedFrom.Load()
	d.DeflatedTo += st.DeflatedTo.Load()
	d.Inflated += st.Inflated.Load()
	d.InflatedFrom += st.InflatedFrom.Load()
	d.InflatedTo += st.InflatedTo.Load()
	d.Bombs += st.Bombs.Load()
}
