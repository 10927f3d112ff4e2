package topic

import (
	"errors"
	"sync/atomic"
	"time"

	"perch/session"
)

// Publication is one message of a topic. It never changes after publish: its
// slices and maps belong to it.
type Publication struct {
	Data []byte
	Tags map[string]string
	Info *ClientInfo // of the publishing client, or nil
	// Offset is the place in the topic's epoch; 0 where the topic has no stream.
	Offset uint64
	// Previous is the offset of the publication before this one in the epoch.
	Previous uint64

	patch atomic.Pointer[patched] // the one made last
}

// What a map of tags takes of itself, each tag in it, and a ClientInfo.
const (
	tagsOverhead = 312
	tagOverhead  = 48
	infoOverhead = 80
)

// weight is how many bytes the publication brings along.
func (p *Publication) weight() int {
	n := len(p.Data)
	if len(p.Tags) > 0 {
		n += tagsOverhead
	}
	for k, v := range p.Tags {
		n += tagOverhead + len(k) + len(v)
	}
	if p.Info != nil {
		n += p.Info.weight()
	}
	return n
}

// ClientInfo is what others see of a session. Its slices are shared: nobody
// changes them.
type ClientInfo struct {
	User     string
	Client   string
	ConnInfo []byte // JSON about the connection
	ChanInfo []byte // JSON about its subscription
}

func (i *ClientInfo) weight() int {
	return infoOverhead + len(i.User) + len(i.Client) + len(i.ConnInfo) + len(i.ChanInfo)
}

// PublishOptions say what becomes of a publication. The zero value sends it to
// whoever is subscribed.
type PublishOptions struct {
	// HistorySize, HistoryTTL and MetaTTL are those of the namespace; a size of 0
	// keeps nothing and gives no offset.
	HistorySize int
	HistoryTTL  time.Duration
	MetaTTL     time.Duration
	// IdempotencyKey, where set, makes a second publication with it do nothing but
	// answer as the first did, for IdempotencyTTL.
	IdempotencyKey string
	IdempotencyTTL time.Duration
	// Version, where above 0, drops a publication that is not newer than the last
	// of the same VersionEpoch (an empty one is any). It needs a history.
	Version      uint64
	VersionEpoch string
	// Delta lets subscribers that agreed on deltas have one.
	Delta bool
}

// Position is a place in a topic's stream; zero where the topic has none.
type Position struct {
	Offset uint64
	Epoch  string
}

// Form is how the payload of a publication is written.
type Form uint8

// The forms.
const (
	FormPlain Form = iota
	// FormWhole is the payload as it is, for a subscriber that has agreed on deltas.
	FormWhole
	// FormPatch is what turns the payload of the publication before into this one's.
	FormPatch
	formCount
)

// Encoder turns a publication into the bytes that go to a subscriber's wire,
// framing included; data is its payload or, in FormPatch, the patch. The result
// is shared by all subscribers: nobody changes it. An error (payload that the
// format can't carry) leaves the subscribers of that format without it, and is
// counted. Safe from any goroutine.
type Encoder func(topic string, p *Publication, f Form, data []byte) ([]byte, error)

// Encoders is the table of wire formats; a nil one is not served.
type Encoders [session.EncodingCount]Encoder

// Errors that publishing and subscribing return.
var (
	ErrAlreadySubscribed = errors.New("topic: already subscribed")
	ErrTooMany           = errors.New("topic: too many subscriptions")
	ErrFull              = errors.New("topic: inbox full")
	ErrNotAvailable      = errors.New("topic: not available")
	// ErrUnavailable is returned while a broker outside can't be reached or does not
	// answer in time: whoever asked may ask again.
	ErrUnavailable = errors.New("topic: broker unavailable")
	// ErrUnrecoverable is returned for a position of another epoch.
	ErrUnrecoverable = errors.New("topic: unrecoverable position")
)
