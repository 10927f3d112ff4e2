package stats

import (
	"runtime"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

const namespace = "perch_"

// metric is a row of the table of all metrics.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	each func(s *Snapshot, emit func(v float64, labels ...string))
	// times takes the place of each where the metric is a histogram.
	times func(s *Snapshot, emit func(h HistogramSnapshot, labels ...string))
}

func row(kind prometheus.ValueType, name, help string, labels []string,
	each func(*Snapshot, func(float64, ...string))) metric {
	return metric{desc: prometheus.NewDesc(namespace+name, help, labels, nil), kind: kind, each: each}
}

func histogram(name, help, label string, times func(*Snapshot, func(HistogramSnapshot, ...string))) metric {
	return metric{desc: prometheus.NewDesc(namespace+name, help, []string{label}, nil), times: times}
}

func perMethod(kind prometheus.ValueType, name, help string, f func(*BackendMethod) float64) metric {
	return row(kind, name, help, []string{"method"}, func(s *Snapshot, emit func(float64, ...string)) {
		for i := range s.Backend.Methods {
			emit(f(&s.Backend.Methods[i]), s.Backend.Methods[i].Method)
		}
	})
}

func gauge(name, help string, f func(*Snapshot) int64) metric {
	return row(prometheus.GaugeValue, name, help, nil, func(s *Snapshot, emit func(float64, ...string)) {
		emit(float64(f(s)))
	})
}

func counter(name, help string, f func(*Snapshot) uint64) metric {
	return row(prometheus.CounterValue, name, help, nil, func(s *Snapshot, emit func(float64, ...string)) {
		emit(float64(f(s)))
	})
}

func counterBy(name, help, label string, f func(*Snapshot) map[string]uint64) metric {
	return row(prometheus.CounterValue, name, help, []string{label}, func(s *Snapshot, emit func(float64, ...string)) {
		for value, n := range f(s) {
			emit(float64(n), value)
		}
	})
}

func traffic(name, help string, f func(*Snapshot) Traffic) metric {
	return row(prometheus.CounterValue, name, help, []string{"direction"}, func(s *Snapshot, emit func(float64, ...string)) {
		t := f(s)
		emit(float64(t.In), "in")
		emit(float64(t.Out), "out")
	})
}

func perLoop(kind prometheus.ValueType, name, help string, f func(*Loop) float64) metric {
	return row(kind, name, help, []string{"loop"}, func(s *Snapshot, emit func(float64, ...string)) {
		for i := range s.Loops {
			emit(f(&s.Loops[i]), strconv.Itoa(i))
		}
	})
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// table is every metric of Perch; docs/metrics.md says the same to operators.
func table() []metric {
	return append([]metric{
		row(prometheus.GaugeValue, "build_info", "The build, as labels; always 1.",
			[]string{"version", "revision", "goversion"}, func(s *Snapshot, emit func(float64, ...string)) {
				emit(1, s.Version, s.Revision, runtime.Version())
			}),
		gauge("ready", "1 while connections are taken, 0 while starting or draining.",
			func(s *Snapshot) int64 { return flag(s.Ready) }),
		gauge("insecure", "1 in insecure mode: no token is needed and every topic operation is allowed.",
			func(s *Snapshot) int64 { return flag(s.Insecure) }),

		gauge("connections", "Connections that the loops hold.",
			func(s *Snapshot) int64 { return s.Connections }),
		gauge("connections_limit", "The most connections that the loops hold.",
			func(s *Snapshot) int64 { return s.ConnectionLimit }),
		counter("connections_accepted_total", "Connections accepted.",
			func(s *Snapshot) uint64 { return s.Accepted }),
		counterBy("connections_refused_total", "Connections turned away, by cause.", "cause",
			func(s *Snapshot) map[string]uint64 { return s.Refused }),
		counterBy("accept_errors_total", "Accepts that failed, by cause.", "cause",
			func(s *Snapshot) map[string]uint64 { return s.AcceptErrors }),
		gauge("sessions", "Sessions whose peer is known.",
			func(s *Snapshot) int64 { return s.Sessions }),
		gauge("http_connections", "Connections handed to net/http that are open.",
			func(s *Snapshot) int64 { return s.HTTPConnections }),
		counter("http_handed_off_total", "Connections handed to net/http.",
			func(s *Snapshot) uint64 { return s.HTTPHandedOff }),
		counter("http_refused_total", "Connections for which net/http had no room.",
			func(s *Snapshot) uint64 { return s.HTTPRefused }),

		traffic("messages_total", "Whole messages, by direction.",
			func(s *Snapshot) Traffic { return s.Messages }),
		traffic("frames_total", "WebSocket frames, control frames too, by direction.",
			func(s *Snapshot) Traffic { return s.Frames }),
		traffic("bytes_total", "Bytes on the sockets of the loops, by direction.",
			func(s *Snapshot) Traffic { return s.Bytes }),
		counterBy("handshakes_total", "Opening handshakes, by outcome.", "outcome",
			func(s *Snapshot) map[string]uint64 { return s.Handshakes }),
		counterBy("closes_total", "Connections ended, by reason.", "reason",
			func(s *Snapshot) map[string]uint64 { return s.Closes }),

		perLoop(prometheus.GaugeValue, "loop_connections", "Connections of a loop.",
			func(l *Loop) float64 { return float64(l.Connections) }),
		perLoop(prometheus.CounterValue, "loop_turns_total", "Times a loop went through its inbox.",
			func(l *Loop) float64 { return float64(l.Turns) }),
		perLoop(prometheus.CounterValue, "loop_panics_total", "Panics that a loop recovered from.",
			func(l *Loop) float64 { return float64(l.Panics) }),
		perLoop(prometheus.GaugeValue, "loop_timers", "Connections of a loop that have a deadline.",
			func(l *Loop) float64 { return float64(l.Timers) }),
		perLoop(prometheus.CounterValue, "loop_put_offs_total", "Times a peer had sent more than its share of a turn.",
			func(l *Loop) float64 { return float64(l.PutOffs) }),
		perLoop(prometheus.GaugeValue, "loop_put_off_bytes", "Bytes of peers' input that were put off.",
			func(l *Loop) float64 { return float64(l.PutOffBytes) }),
		perLoop(prometheus.GaugeValue, "loop_turn_work_most", "The most frames and commands of one peer handled in one go.",
			func(l *Loop) float64 { return float64(l.MostWork) }),
		perLoop(prometheus.GaugeValue, "loop_turn_bytes_most", "The most bytes of one peer handled in one go.",
			func(l *Loop) float64 { return float64(l.MostBytes) }),
		perLoop(prometheus.GaugeValue, "loop_turn_posts_most", "The most posts handled in one turn.",
			func(l *Loop) float64 { return float64(l.MostPosts) }),
		perLoop(prometheus.GaugeValue, "inbox_bytes", "Bytes reserved in a loop's inbox.",
			func(l *Loop) float64 { return float64(l.InboxBytes) }),
		perLoop(prometheus.CounterValue, "inbox_rejected_total", "Posts for which a loop's inbox had no room.",
			func(l *Loop) float64 { return float64(l.Rejected) }),
		row(prometheus.GaugeValue, "loop_lag_seconds", "For how long the slowest loop has not got round to its turn.", nil,
			func(s *Snapshot, emit func(float64, ...string)) { emit(s.LoopLag) }),
		gauge("inbox_limit_bytes", "The most bytes in one loop's inbox.",
			func(s *Snapshot) int64 { return s.InboxLimit }),
		gauge("pending_bytes", "Bytes that wait for peers to take them.",
			func(s *Snapshot) int64 { return s.PendingBytes }),
		counter("slow_consumers_total", "Sessions closed because too many bytes waited for them.",
			func(s *Snapshot) uint64 { return s.SlowConsumers }),

		row(prometheus.GaugeValue, "memory_bytes", "Memory accounted, by who holds it; the layers overlap.",
			[]string{"layer"}, func(s *Snapshot, emit func(float64, ...string)) {
				for layer, n := range s.Memory {
					emit(float64(n), layer)
				}
			}),
		gauge("memory_used_bytes", "What the process takes, and the kernel for its connections: what is compared with the budget.",
			func(s *Snapshot) int64 { return s.MemoryUsed }),
		gauge("memory_budget_bytes", "What the process may take; 0: unbounded.",
			func(s *Snapshot) int64 { return s.MemoryBudget }),
		gauge("memory_refusing", "1 while connections are refused because memory is short.",
			func(s *Snapshot) int64 { return flag(s.MemoryRefusing) }),

		counter("deflate_sessions_total", "Sessions upgraded with permessage-deflate.",
			func(s *Snapshot) uint64 { return s.Deflate.Sessions }),
		counter("deflate_declined_total", "Offers of permessage-deflate that were not taken.",
			func(s *Snapshot) uint64 { return s.Deflate.Declined }),
		traffic("deflate_messages_total", "Messages inflated and deflated, by direction.",
			func(s *Snapshot) Traffic { return s.Deflate.Messages }),
		traffic("deflate_plain_bytes_total", "Bytes of the messages inflated and deflated, by direction.",
			func(s *Snapshot) Traffic { return s.Deflate.Plain }),
		traffic("deflate_bytes_total", "The same bytes in their deflated form, by direction.",
			func(s *Snapshot) Traffic { return s.Deflate.Deflated }),
		traffic("deflate_refused_total", "Messages that could not be inflated or deflated for want of room, by direction.",
			func(s *Snapshot) Traffic { return s.Deflate.Refused }),
		counter("deflate_bombs_total", "Messages refused because they would have become too big.",
			func(s *Snapshot) uint64 { return s.Deflate.Bombs }),
		gauge("deflate_queue_bytes", "Bytes that wait to be inflated or deflated.",
			func(s *Snapshot) int64 { return s.Deflate.QueueBytes }),

		gauge("pool_workers", "Workers that the pool may have.",
			func(s *Snapshot) int64 { return s.Pool.Workers }),
		gauge("pool_busy_workers", "Workers of the pool that are at work.",
			func(s *Snapshot) int64 { return s.Pool.Busy }),
		gauge("pool_queue_jobs", "Jobs that wait for a worker of the pool.",
			func(s *Snapshot) int64 { return s.Pool.QueueJobs }),
		gauge("pool_queue_bytes", "Bytes of the jobs that wait for a worker of the pool.",
			func(s *Snapshot) int64 { return s.Pool.QueueBytes }),
		gauge("pool_queue_limit_bytes", "The most bytes that wait for a worker of the pool.",
			func(s *Snapshot) int64 { return s.Pool.QueueLimit }),
		counter("pool_jobs_total", "Jobs that the pool has done.",
			func(s *Snapshot) uint64 { return s.Pool.Done }),
		counter("pool_rejected_total", "Jobs for which the pool had no room.",
			func(s *Snapshot) uint64 { return s.Pool.Rejected }),

		gauge("topics", "Topics with subscribers.",
			func(s *Snapshot) int64 { return s.Topics }),
		gauge("subscriptions", "Subscriptions of all sessions.",
			func(s *Snapshot) int64 { return s.Subscriptions }),
		counter("publications_total", "Publications taken.",
			func(s *Snapshot) uint64 { return s.Fanout.Publications }),
		counter("publications_rejected_total", "Publications refused because an inbox was full.",
			func(s *Snapshot) uint64 { return s.Fanout.Rejected }),
		counter("fanout_deliveries_total", "Publications handed to a subscriber's connection.",
			func(s *Snapshot) uint64 { return s.Fanout.Deliveries }),
		counter("fanout_encodings_total", "Times a publication was encoded.",
			func(s *Snapshot) uint64 { return s.Fanout.Encodings }),
		counter("fanout_encode_errors_total", "Publications that a wire format could not carry.",
			func(s *Snapshot) uint64 { return s.Fanout.EncodeErrors }),

		gauge("history_topics", "Topics whose position is kept.",
			func(s *Snapshot) int64 { return s.History.Topics }),
		gauge("history_publications", "Publications in histories.",
			func(s *Snapshot) int64 { return s.History.Publications }),
		gauge("history_bytes", "Bytes of histories and of what is kept of topics.",
			func(s *Snapshot) int64 { return s.History.Bytes }),
		gauge("history_bytes_limit", "The most bytes of histories.",
			func(s *Snapshot) int64 { return s.History.Limit }),
		counterBy("recoveries_total", "Recoveries, by whether all that was missed was found.", "recovered",
			func(s *Snapshot) map[string]uint64 { return s.History.Recovered }),
		counter("subscriptions_lost_total", "Subscriptions ended because they had missed a publication.",
			func(s *Snapshot) uint64 { return s.History.Lost }),
		counter("join_leave_dropped_total", "Joins and leaves of which nobody was told: too many at once.",
			func(s *Snapshot) uint64 { return s.History.NewsDropped }),

		row(prometheus.GaugeValue, "broker_connected", "1 while NATS can be reached.", nil, func(s *Snapshot, emit func(float64, ...string)) {
			if s.Broker.On {
				emit(float64(flag(s.Broker.Connected)))
			}
		}),
		counter("broker_losses_total", "Times the connection to NATS was lost.",
			func(s *Snapshot) uint64 { return s.Broker.Losses }),
		gauge("broker_waiting", "Publications and questions that NATS has not answered.",
			func(s *Snapshot) int64 { return s.Broker.Waiting }),
		gauge("broker_queue_bytes", "Bytes of publications that wait for NATS or its answer.",
			func(s *Snapshot) int64 { return s.Broker.QueueBytes }),
		gauge("broker_queue_bytes_limit", "The most of them.",
			func(s *Snapshot) int64 { return s.Broker.QueueLimit }),
		counterBy("broker_publications_total", "Publications that did not go as they should, by what became of them.", "outcome",
			func(s *Snapshot) map[string]uint64 { return s.Broker.Publications }),
		counterBy("broker_deliveries_total", "Deliveries of NATS that did not go as they should, by what became of them.", "outcome",
			func(s *Snapshot) map[string]uint64 { return s.Broker.Deliveries }),

		counterBy("commands_total", "Commands of clients, by kind.", "command",
			func(s *Snapshot) map[string]uint64 { return s.Commands }),
		row(prometheus.CounterValue, "errors_total", "Error replies to clients, by code (0: an application's own codes).",
			[]string{"code"}, func(s *Snapshot, emit func(float64, ...string)) {
				for code, n := range s.Errors {
					emit(float64(n), strconv.FormatUint(uint64(code), 10))
				}
			}),
		counter("malformed_messages_total", "Messages that broke the client protocol.",
			func(s *Snapshot) uint64 { return s.Malformed }),
		counter("event_ids_malformed_total", "Ids of event streams, sent by clients, that could not be read.",
			func(s *Snapshot) uint64 { return s.EventIDsMalformed }),
		counter("backlog_rejected_total", "Commands refused because too many of their session waited already.",
			func(s *Snapshot) uint64 { return s.BacklogRejected }),
		counter("commands_rate_limited_total", "Commands over their session's rate.",
			func(s *Snapshot) uint64 { return s.RateLimited }),
		counter("user_sessions_refused_total", "Sessions refused because their user has as many as it may.",
			func(s *Snapshot) uint64 { return s.UserLimited }),
		counter("replies_not_encoded_total", "Replies and pushes that the format of their client could not carry.",
			func(s *Snapshot) uint64 { return s.NotEncoded }),
		counter("rpc_panics_total", "RPC methods that panicked.",
			func(s *Snapshot) uint64 { return s.RPCPanics }),
		counter("rpc_timeouts_total", "RPC methods that took too long.",
			func(s *Snapshot) uint64 { return s.RPCTimeouts }),
		counterBy("tokens_issued_total", "Tokens issued, by grant type.", "grant",
			func(s *Snapshot) map[string]uint64 { return s.TokensIssued }),
		counterBy("tokens_refused_total", "Token requests refused, by error.", "error",
			func(s *Snapshot) map[string]uint64 { return s.TokensRefused }),
		counter("token_store_failures_total", "Writes of the token store that failed.",
			func(s *Snapshot) uint64 { return s.StoreFailures }),
		gauge("token_store_failing", "1 while the token store can't be written.",
			func(s *Snapshot) int64 { return flag(s.StoreFailing) }),
		gauge("revocations", "Revocations of tokens, families and clients that this node keeps.",
			func(s *Snapshot) int64 { return s.Revocations }),
		counterBy("client_lookups_total", "Lookups of clients in the registry, by outcome.", "outcome",
			func(s *Snapshot) map[string]uint64 { return s.ClientLookups }),
		counter("http_panics_total", "Requests whose handler panicked.",
			func(s *Snapshot) uint64 { return s.HTTPPanics }),
		counterBy("config_reloads_total", "Reloads of the configuration, by outcome.", "outcome",
			func(s *Snapshot) map[string]uint64 { return s.Reloads }),
		row(prometheus.CounterValue, "api_requests_total",
			"Calls of the server API, by method and code (0: success; 400 and above: the HTTP status).",
			[]string{"method", "code"}, func(s *Snapshot, emit func(float64, ...string)) {
				for l, n := range s.API {
					emit(float64(n), l.Method, l.Code)
				}
			}),

		row(prometheus.CounterValue, "backend_calls_total", "Calls of the backend, by method and outcome.",
			[]string{"method", "outcome"}, func(s *Snapshot, emit func(float64, ...string)) {
				for _, m := range s.Backend.Methods {
					for outcome, n := range m.Calls {
						emit(float64(n), m.Method, outcome)
					}
				}
			}),
		histogram("backend_call_seconds", "How long calls of the backend took, with their retries, by method.", "method",
			func(s *Snapshot, emit func(HistogramSnapshot, ...string)) {
				for _, m := range s.Backend.Methods {
					emit(m.Times, m.Method)
				}
			}),
		perMethod(prometheus.CounterValue, "backend_retries_total", "Second and later attempts of calls of the backend.",
			func(m *BackendMethod) float64 { return float64(m.Retries) }),
		perMethod(prometheus.CounterValue, "backend_waits_total", "Calls of the backend that had to wait for a connection.",
			func(m *BackendMethod) float64 { return float64(m.Waits) }),
		perMethod(prometheus.GaugeValue, "backend_breaker", "Circuit breaker of a method: 0 closed, 1 half open, 2 open.",
			func(m *BackendMethod) float64 { return float64(m.Breaker) }),
		row(prometheus.GaugeValue, "backend_connections", "Connections to a backend, by state.",
			[]string{"backend", "state"}, func(s *Snapshot, emit func(float64, ...string)) {
				for _, c := range s.Backend.Connections {
					emit(float64(c.InUse), c.Backend, "in_use")
					emit(float64(c.Idle), c.Backend, "idle")
				}
			}),
		row(prometheus.GaugeValue, "backend_connections_limit", "The most connections to a backend.",
			[]string{"backend"}, func(s *Snapshot, emit func(float64, ...string)) {
				for _, c := range s.Backend.Connections {
					emit(float64(c.Limit), c.Backend)
				}
			}),
	}, append(nodeRows(), leafRows()...)...)
}

// collector makes Prometheus metrics of a Snapshot at each scrape.
type collector struct {
	snapshot func() Snapshot
	metrics  []metric
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for i := range c.metrics {
		out <- c.metrics[i].desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.snapshot()
	for i := range c.metrics {
		m := &c.metrics[i]
		send := func(pm prometheus.Metric, err error) {
			if err != nil {
				pm = prometheus.NewInvalidMetric(m.desc, err)
			}
			out <- pm
		}
		if m.times != nil {
			m.times(&s, func(h HistogramSnapshot, labels ...string) {
				send(prometheus.NewConstHistogram(m.desc, h.Count, h.Sum, h.Buckets, valid(labels)...))
			})
			continue
		}
		m.each(&s, func(v float64, labels ...string) {
			send(prometheus.NewConstMetric(m.desc, m.kind, v, valid(labels)...))
		})
	}
}

// valid makes labels fit for the page, which one bad label would cost whole.
func valid(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	return labels
}
