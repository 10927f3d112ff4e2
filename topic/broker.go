package topic

import "time"

// Broker is the seam to the outside: where publications get their offsets, and
// where other nodes come in. Each call is asynchronous: done is called exactly
// once, from any goroutine, perhaps before the call returns.
//
// What a broker promises: within an epoch of a topic the offsets grow, though
// not by one; publications of a topic are delivered in the order of their
// offsets; a publication names the offset before it, so that a gap is seen,
// never guessed; after a loss of history the topic has a new epoch. What History
// answers holds all that was delivered before it was called.
type Broker interface {
	// SetNamespaces tells which namespaces hold from now on. It is called before
	// Start, and again whenever they change; the list is the broker's.
	SetNamespaces(all []*Namespace)
	// Start gives the broker the door through which its deliveries enter.
	Start(r Receiver) error
	// Publish hands p in. err is ErrFull where a subscriber's loop has no room:
	// then nobody gets the publication and no history keeps it; ErrUnavailable where
	// it is not known to have been stored.
	Publish(topic string, p *Publication, o PublishOptions, done func(Position, error))
	// History reads the stream of a topic; ErrNotAvailable where it keeps none,
	// ErrUnrecoverable (with the position) where f.Since is of another epoch. A
	// topic that had no stream has one from here on, so that its epoch can be
	// compared later. The publications are shared: nobody changes them.
	History(topic string, f Filter, done func([]*Publication, Position, error))
	// RemoveHistory drops the publications of a topic; its offsets go on.
	RemoveHistory(topic string, done func(error))
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
	Since   *Position // publications behind it (before it, in reverse); nil: from the beginning (or the end)
	Limit   int       // 0: none, only the position; -1: all
	Reverse bool
	// Meta is how long the stream's epoch is kept from now on; 0: as long as the
	// broker does of itself.
	Meta time.Duration
	// Check says that the position is wanted to compare subscribers with: a broker
	// that knows that they miss nothing answers with the epoch and no offset.
	Check bool
}

// Delivery is a publication on its way to the subscribers of this node.
type Delivery struct {
	Publication *Publication
	Epoch       string
	// Delta lets subscribers that agreed on deltas have one.
	Delta bool
}

// Receiver is the one door by which deliveries, of this node or another, reach
// subscribers.
type Receiver interface {
	// Deliver posts d to each loop with subscribers of the topic. It does not
	// block. ErrFull: a loop has no room, nothing was posted.
	Deliver(topic string, d Delivery) error
	// Interested tells whether this node has subscribers of the topic. It does not
	// block.
	Interested(topic string) bool
}
