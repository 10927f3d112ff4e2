package stats

import "github.com/prometheus/client_golang/prometheus"

// Nodes are the nodes of a cluster, as one of them knows them.
type Nodes struct {
	Known       int64 // with this one
	Disagreeing int64 // whose namespaces are others
	// Changes counts the nodes that joined, left and went silent.
	Changes map[string]uint64
	// Surveys of this node are under way; Asked counts them, Unanswered the answers
	// that did not come in time, and Busy those for which there was no room.
	Surveys    int64
	Asked      uint64
	Unanswered uint64
	Busy       uint64
	// Answered counts the questions of others, Refused those for which there was no
	// room.
	Answered uint64
	Refused  uint64
	// Unsaid counts news that others were not told of, Malformed messages that were
	// not understood.
	Unsaid    uint64
	Malformed uint64
}

// nodeRows are the metrics of a cluster; without one they are not there.
func nodeRows() []metric {
	one := func(kind prometheus.ValueType, name, help string, f func(*Nodes) float64) metric {
		return row(kind, name, help, nil, func(s *Snapshot, emit func(float64, ...string)) {
			if s.Nodes != nil {
				emit(f(s.Nodes))
			}
		})
	}
	return []metric{
		one(prometheus.GaugeValue, "nodes", "Nodes of the cluster that are known, with this one.",
			func(n *Nodes) float64 { return float64(n.Known) }),
		one(prometheus.GaugeValue, "nodes_disagreeing", "Nodes whose namespaces are configured otherwise than this one's.",
			func(n *Nodes) float64 { return float64(n.Disagreeing) }),
		counterBy("node_changes_total", "Nodes that joined, left, or went silent.", "change",
			func(s *Snapshot) map[string]uint64 {
				if s.Nodes == nil {
					return nil
				}
				return s.Nodes.Changes
			}),
		one(prometheus.GaugeValue, "node_surveys", "Questions to other nodes that are under way.",
			func(n *Nodes) float64 { return float64(n.Surveys) }),
		one(prometheus.CounterValue, "node_surveys_total", "Questions to other nodes.",
			func(n *Nodes) float64 { return float64(n.Asked) }),
		one(prometheus.CounterValue, "node_surveys_refused_total", "Questions to other nodes for which there was no room.",
			func(n *Nodes) float64 { return float64(n.Busy) }),
		one(prometheus.CounterValue, "node_unanswered_total", "Answers of other nodes that did not come in time.",
			func(n *Nodes) float64 { return float64(n.Unanswered) }),
		one(prometheus.CounterValue, "node_answers_total", "Questions of other nodes that were answered.",
			func(n *Nodes) float64 { return float64(n.Answered) }),
		one(prometheus.CounterValue, "node_answers_refused_total", "Questions of other nodes for which there was no room.",
			func(n *Nodes) float64 { return float64(n.Refused) }),
		one(prometheus.CounterValue, "node_news_dropped_total", "Batches of joins and leaves that other nodes were not told of.",
			func(n *Nodes) float64 { return float64(n.Unsaid) }),
		one(prometheus.CounterValue, "node_messages_malformed_total", "Messages of other nodes that were not understood.",
			func(n *Nodes) float64 { return float64(n.Malformed) }),
	}
}
