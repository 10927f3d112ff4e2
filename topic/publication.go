package topic

import (
	"errors"

	"perch/session"
)

// Publication is one message of a topic. It never changes after publish: its
// slices and maps belong to it.
type Publication struct {
	Data []byte
	Tags map[string]string
	Info *PublisherInfo // of the publishing client, or nil
	// Offset is the place in the topic's epoch; 0 where the topic has no stream.
	Offset uint64
}

// weight is how many bytes the publication brings along.
func (p *Publication) weight() int {
	n := len(p.Data)
	for k, v := range p.Tags {
		n += len(k) + len(v)
	}
	if i := p.Info; i != nil {
		n += len(i.User) + len(i.Client) + len(i.ConnInfo)
	}
	return n
}

// PublisherInfo says who published.
type PublisherInfo struct {
	User     string
	Client   string
	ConnInfo []byte // JSON
}

// Position is a place in a topic's stream; zero where the topic has none.
type Position struct {
	Offset uint64
	Epoch  string
}

// Encoder turns a publication into the bytes that go to a subscriber's wire,
// framing included. The result is shared by all subscribers: nobody changes
// it. An error (payload that the format can't carry) leaves the subscribers of
// that format without it, and is counted. Safe from any goroutine.
type Encoder func(topic string, p *Publication) ([]byte, error)

// Encoders is the table of wire formats; a nil one is not served.
type Encoders [session.EncodingCount]Encoder

// Errors that publishing and subscribing return.
var (
	ErrAlreadySubscribed = errors.New("topic: already subscribed")
	ErrTooMany           = errors.New("topic: too many subscriptions")
	ErrFull              = errors.New("topic: inbox full")
	ErrNotAvailable      = errors.New("topic: not available")
)
