package handler

import (
	"encoding/base64"
	"encoding/binary"
	"errors"

	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// The id of an event says where all subscriptions of its session stand behind it:
// the last one that a client saw is enough to recover them all. It is the
// base64url of
//
//	version (1 byte), then for each subscription with a position
//	hash of the topic (8), length of the epoch (varint), epoch, offset (varint)
//
// The hash, in the place of the name, lets more than a hundred fit into a request
// head. An id is the client's word as any position is: it can make its client
// miss something or get it twice, nobody else.

const (
	eventIDVersion = 1
	// maxEventID is the longest id, as text: half of what a request head may take.
	// A session with more to say has no ids, and recovers nothing by them.
	maxEventID = 4 << 10
)

var errEventID = errors.New("handler: malformed event id")

var eventIDText = base64.RawURLEncoding.Strict()

// appendEventPosition adds one subscription.
func appendEventPosition(b []byte, name string, at topic.Position) []byte {
	b = binary.BigEndian.AppendUint64(b, TokenHash(name))
	b = binary.AppendUvarint(b, uint64(len(at.Epoch)))
	b = append(b, at.Epoch...)
	return binary.AppendUvarint(b, at.Offset)
}

// parseEventID reads an id: positions by the hashes of their topics, never nil
// without an error.
func parseEventID(id string) (map[uint64]topic.Position, error) {
	if len(id) > maxEventID {
		return nil, errEventID
	}
	b, err := eventIDText.DecodeString(id)
	if err != nil || len(b) == 0 || b[0] != eventIDVersion {
		return nil, errEventID
	}
	out := make(map[uint64]topic.Position)
	for b = b[1:]; len(b) > 0; {
		if len(b) < 8 {
			return nil, errEventID
		}
		hash := binary.BigEndian.Uint64(b)
		b = b[8:]
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, errEventID
		}
		epoch := string(b[n : n+int(size)])
		b = b[n+int(size):]
		offset, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errEventID
		}
		b = b[n:]
		if _, twice := out[hash]; twice || epoch == "" {
			return nil, errEventID
		}
		out[hash] = topic.Position{Offset: offset, Epoch: epoch}
	}
	return out, nil
}

// place is the offset that an event brings a subscription to, where that is not
// what the subscription says of itself; without a topic it is none.
type place struct {
	topic  string
	offset uint64
}

// eventID is the id of an event; nil where the session has no positions, empty
// where they are too many. It lives until the loop's next one.
func (c *Commands) eventID(s *session.Session, st *loopState, p place) []byte {
	raw := append(st.positions[:0], eventIDVersion)
	c.topics.EachPosition(s, func(name string, at topic.Position) {
		if name == p.topic {
			at.Offset = p.offset
		}
		raw = appendEventPosition(raw, name, at)
	})
	st.positions = raw
	n := eventIDText.EncodedLen(len(raw))
	switch {
	case len(raw) == 1:
		return nil
	case n > maxEventID:
		st.positions = nil // not worth keeping
		return []byte{}
	}
	st.id = eventIDText.AppendEncode(st.id[:0], raw)
	return st.id
}

// idOfPush is the id of the event of a push that is not shared.
func (c *Commands) idOfPush(s *session.Session, st *loopState, p *protocol.Push) []byte {
	var at place
	switch {
	case p.Pub != nil && p.Pub.Offset > 0:
		at = place{p.Channel, p.Pub.Offset}
	case p.Subscribe != nil && p.Subscribe.Positioned:
		// What was missed follows it, event by event.
		at = place{p.Channel, p.Subscribe.Offset}
	case p.Unsubscribe != nil:
		if id := c.eventID(s, st, at); id != nil {
			return id
		}
		return []byte{} // what the client knew is over
	}
	return c.eventID(s, st, at)
}

// WriteEvent implements topic.Writer for event streams: it writes the shared event
// of a publication with the session's own id before it, in one go. Runs on the
// loop of s.
func (c *Commands) WriteEvent(s *session.Session, name string, at topic.Position, event []byte) {
	st := c.at(s)
	var p place
	if at.Offset > 0 {
		p = place{name, at.Offset}
	}
	id := c.eventID(s, st, p)
	if id == nil {
		s.WriteFrame(event)
		return
	}
	c.write(s, st, append(protocol.AppendEventID(st.buf[:0], id), event...))
}
