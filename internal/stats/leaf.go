package stats

import "github.com/prometheus/client_golang/prometheus"

// Leaf is a site that is the leaf of a hub.
type Leaf struct {
	Up bool // the hub can be reached
	// Waiting are the messages that the hub does not have yet, WaitingBytes what they
	// take on the disk, WaitingLimit what they may.
	Waiting      int64
	WaitingBytes int64
	WaitingLimit int64
	// Forwarded is what the hub has taken, Refused the publications for which there
	// was no room, Dropped what was dropped before the hub had it.
	Forwarded uint64
	Refused   uint64
	Dropped   uint64
	Received  uint64 // from the hub
}

// leafRows are the metrics of a leaf; elsewhere they are not there.
func leafRows() []metric {
	one := func(kind prometheus.ValueType, name, help string, f func(*Leaf) float64) metric {
		return row(kind, name, help, nil, func(s *Snapshot, emit func(float64, ...string)) {
			if s.Leaf != nil {
				emit(f(s.Leaf))
			}
		})
	}
	return []metric{
		one(prometheus.GaugeValue, "leaf_up", "1 while the hub can be reached.",
			func(l *Leaf) float64 { return float64(flag(l.Up)) }),
		one(prometheus.GaugeValue, "leaf_waiting", "Publications that the hub does not have yet.",
			func(l *Leaf) float64 { return float64(l.Waiting) }),
		one(prometheus.GaugeValue, "leaf_waiting_bytes", "What they take on the disk.",
			func(l *Leaf) float64 { return float64(l.WaitingBytes) }),
		one(prometheus.GaugeValue, "leaf_waiting_bytes_limit", "What they may take.",
			func(l *Leaf) float64 { return float64(l.WaitingLimit) }),
		one(prometheus.CounterValue, "leaf_forwarded_total", "Publications that the hub has taken.",
			func(l *Leaf) float64 { return float64(l.Forwarded) }),
		one(prometheus.CounterValue, "leaf_refused_total", "Publications refused because too much waits for the hub.",
			func(l *Leaf) float64 { return float64(l.Refused) }),
		one(prometheus.CounterValue, "leaf_dropped_total", "Publications dropped before the hub had them.",
			func(l *Leaf) float64 { return float64(l.Dropped) }),
		one(prometheus.CounterValue, "leaf_received_total", "Publications of the hub that the site has stored.",
			func(l *Leaf) float64 { return float64(l.Received) }),
	}
}
