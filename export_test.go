package perch

import "perch/topic"

// SetBroker lets tests take the place of the in-memory broker.
func SetBroker(o *Options, make func(topic.MemoryOptions) topic.Broker) { o.broker = make }

// SetUsed lets tests say what memory the process takes.
func SetUsed(o *Options, used func() int64) { o.used = used }

// Origins is how websocket.allowed_origins decides.
func Origins(patterns []string) func(origin, host string) bool { return newOrigins(patterns).allow }
