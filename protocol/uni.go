package protocol

import (
	"bytes"
	"fmt"

	pb "github.com/centrifugal/protocol"
	"github.com/centrifugal/protocol/cfjson"
)

// Unidirectional peers get bare pushes: no reply around them, one in a message,
// JSON alone.

// ConnectRequest is what a peer says when it connects.
type ConnectRequest = pb.ConnectRequest

// DecodeConnect reads a ConnectRequest in JSON. Nothing in it points into raw.
func DecodeConnect(raw []byte) (*ConnectRequest, error) {
	r := &ConnectRequest{}
	if err := cfjson.Unmarshal(raw, r, 0); err != nil {
		return nil, fmt.Errorf("protocol: decode connect request: %w", err)
	}
	return r, nil
}

// validBare is validReply for a push that stands alone.
func validBare(p *Push) bool {
	if p.Connect != nil {
		return validConnect(p.Connect.Data, p.Connect.Subs)
	}
	return validPush(p)
}

// AppendBarePush appends p as one message. On an error dst is returned as it was.
func AppendBarePush(dst []byte, p *Push) ([]byte, error) {
	if !validBare(p) {
		return dst, ErrInvalidJSON
	}
	return p.AppendJSON(dst), nil
}

// AppendEvent appends p as an event of an event stream (text/event-stream of the
// HTML standard), the empty line at its end included. id, where it is not nil,
// becomes the event's id; it holds no line end. On an error dst is returned as it
// was.
func AppendEvent(dst, id []byte, p *Push) ([]byte, error) {
	if !validBare(p) {
		return dst, ErrInvalidJSON
	}
	if id != nil {
		dst = AppendEventID(dst, id)
	}
	dst = append(dst, eventData...)
	from := len(dst)
	dst = p.AppendJSON(dst)
	// In valid JSON a line end is insignificant whitespace. The other kind has been
	// left out by AppendJSON already.
	if bytes.IndexByte(dst[from:], '\r') >= 0 {
		n := from
		for _, c := range dst[from:] {
			if c != '\r' {
				dst[n] = c
				n++
			}
		}
		dst = dst[:n]
	}
	return append(dst, '\n', '\n'), nil
}

const eventData = "data: "

// AppendEventID appends the line of an event's id, before its others. An empty id
// makes the client forget the last one.
func AppendEventID(dst, id []byte) []byte {
	dst = append(append(dst, "id: "...), id...)
	return append(dst, '\n')
}

// BarePublicationFrame is PublicationFrame for unidirectional WebSockets.
func BarePublicationFrame(topic string, p *Publication) ([]byte, error) {
	return pushFrame(JSON, func(dst []byte) ([]byte, error) {
		return AppendBarePush(dst, &Push{Channel: topic, Pub: p.wire(JSON)})
	})
}

// PublicationEvent is PublicationFrame for event streams: an event without an id.
func PublicationEvent(topic string, p *Publication) ([]byte, error) {
	return shared(func(dst []byte) ([]byte, error) {
		return AppendEvent(dst, nil, &Push{Channel: topic, Pub: p.wire(JSON)})
	})
}

// BarePushesFrames are several pushes for unidirectional WebSockets, a frame
// each. They belong to the caller, as the result of PublicationFrame does.
func BarePushesFrames(pushes []Push) ([]byte, error) {
	return shared(func(dst []byte) ([]byte, error) {
		var message []byte
		var err error
		for i := range pushes {
			if message, err = AppendBarePush(message[:0], &pushes[i]); err != nil {
				return dst, err
			}
			dst = append(AppendFrameHeader(dst, JSON, len(message)), message...)
		}
		return dst, nil
	})
}

// PushesEvents are several pushes for event streams, an event each.
func PushesEvents(pushes []Push) ([]byte, error) {
	return shared(func(dst []byte) ([]byte, error) {
		var err error
		for i := range pushes {
			if dst, err = AppendEvent(dst, nil, &pushes[i]); err != nil {
				return dst, err
			}
		}
		return dst, nil
	})
}

// DisconnectEvent is the last event of an event stream.
func DisconnectEvent(code uint16, text string) []byte {
	e, _ := AppendEvent(nil, nil, &Push{Disconnect: &pb.Disconnect{Code: uint32(code), Reason: text}}) // nothing in it is JSON of others
	return e
}

// shared is what write appends, without spare capacity.
func shared(write func([]byte) ([]byte, error)) ([]byte, error) {
	buf := scratch.Get().(*[]byte)
	out, err := write((*buf)[:0])
	if err != nil {
		scratch.Put(buf)
		return nil, err
	}
	b := make([]byte, len(out))
	copy(b, out)
	if cap(out) <= maxScratch {
		*buf = out
		scratch.Put(buf)
	}
	return b, nil
}
