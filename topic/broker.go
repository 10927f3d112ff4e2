package topic

// Broker is the seam to the outside: where publications get their offsets, and
// where other nodes come in. Each call is asynchronous: done is called exactly
// once, from any goroutine, perhaps before the call returns.
//
// What a broker promises: within an epoch of a topic the offsets grow, though
// not by one; publications of a topic are delivered in the order of their
// offsets; a delivery names the offset before it, so that a gap is seen, never
// guessed; after a loss of history the topic has a new epoch.
type Broker interface {
	// Start gives the broker the door through which its deliveries enter.
	Start(r Receiver) error
	// Publish hands p in. err is ErrFull where a subscriber's loop has no room:
	// then nobody gets the publication.
	Publish(topic string, p *Publication, done func(Position, error))
	// History reads the stream of a topic; ErrNotAvailable where it keeps none.
	History(topic string, f Filter, done func([]*Publication, Position, error))
	// Subscribe and Unsubscribe tell that this node begins or ceases to have
	// subscribers of the topic. They are called under the topic's lock: they do
	// not block, and neither they nor done deliver from within the call.
	Subscribe(topic string, done func(error))
	Unsubscribe(topic string, done func(error))
	// Close ends the broker. No delivery follows it.
	Close() error
}

// Filter says which part of a stream is asked for.
type Filter struct {
	Since   *Position // nil: from the beginning (or the end, in reverse)
	Limit   int       // 0: none, only the position; -1: all
	Reverse bool
}

// Delivery is a publication on its way to the subscribers of this node.
type Delivery struct {
	Publication *Publication
	Epoch       string
	// Previous is the offset of the publication before this one in the epoch.
	Previous uint64
}

// Receiver is the one door by which deliveries, of this node or another, reach
// subscribers.
type Receiver interface {
	// Deliver posts d to each loop with subscribers of the topic. It does not
	// block. ErrFull: a loop has no room, nothing was posted.
	Deliver(topic string, d Delivery) error
}
