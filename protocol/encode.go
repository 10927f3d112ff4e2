package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	pb "github.com/centrifugal/protocol"
	"github.com/centrifugal/protocol/cfjson"
)

// ErrInvalidJSON is returned for a payload that a JSON message can't carry.
var ErrInvalidJSON = errors.New("protocol: payload is not JSON")

// AppendReply appends r as one message of an encoding (for Protobuf with its
// length in front) to dst. It allocates only to grow dst. On an error dst is
// returned as it was.
func AppendReply(dst []byte, e Encoding, r *Reply) ([]byte, error) {
	if e != Protobuf {
		if !validReply(r) {
			return dst, ErrInvalidJSON
		}
		return r.AppendJSON(dst), nil
	}
	size := r.SizeCF()
	at := len(dst)
	grown := binary.AppendUvarint(dst, uint64(size))
	start := len(grown)
	grown = slices.Grow(grown, size)[:start+size]
	if _, err := r.MarshalToSizedBufferCF(grown[start:]); err != nil {
		return dst[:at], fmt.Errorf("protocol: encode reply: %w", err)
	}
	return grown, nil
}

// AppendError appends the reply that answers the command id with err.
func AppendError(dst []byte, e Encoding, id uint32, err *Error) ([]byte, error) {
	return AppendReply(dst, e, &Reply{Id: id, Error: err.wire()})
}

// AppendPush appends p as one message, as AppendReply does.
func AppendPush(dst []byte, e Encoding, p *Push) ([]byte, error) {
	return AppendReply(dst, e, &Reply{Push: p})
}

// ValidPayload tells whether an encoding can carry data as a payload. A JSON
// payload is one JSON value; Protobuf carries all bytes.
func ValidPayload(data []byte, e Encoding) bool {
	return e == Protobuf || cfjson.Valid(data)
}

// validReply looks at what comes from the application: the rest is written by
// generated code. An absent payload is left out and thus valid.
func validReply(r *Reply) bool {
	if r.Push != nil && !validPush(r.Push) {
		return false
	}
	if r.Rpc != nil && !validRaw(r.Rpc.Data) {
		return false
	}
	if r.Subscribe != nil && !validSubscribe(r.Subscribe) || r.History != nil && !validPublications(r.History.Publications) {
		return false
	}
	if r.Presence != nil {
		for _, i := range r.Presence.Presence {
			if !validInfo(i) {
				return false
			}
		}
	}
	return r.Connect == nil || validConnect(r.Connect.Data, r.Connect.Subs)
}

func validConnect(data []byte, subs map[string]*pb.SubscribeResult) bool {
	if !validRaw(data) {
		return false
	}
	for _, sub := range subs {
		if !validSubscribe(sub) {
			return false
		}
	}
	return true
}

func validPush(p *Push) bool {
	switch {
	case p.Pub != nil:
		return cfjson.Valid(p.Pub.Data) && validInfo(p.Pub.Info)
	case p.Subscribe != nil:
		return validRaw(p.Subscribe.Data)
	case p.Message != nil:
		return validRaw(p.Message.Data)
	case p.Join != nil:
		return validInfo(p.Join.Info)
	case p.Leave != nil:
		return validInfo(p.Leave.Info)
	}
	return true
}

func validSubscribe(r *pb.SubscribeResult) bool {
	return validRaw(r.Data) && validPublications(r.Publications)
}

func validPublications(all []*pb.Publication) bool {
	for _, p := range all {
		if !cfjson.Valid(p.Data) || !validInfo(p.Info) {
			return false
		}
	}
	return true
}

func validInfo(i *pb.ClientInfo) bool {
	return i == nil || validRaw(i.ConnInfo) && validRaw(i.ChanInfo)
}

func validRaw(data []byte) bool { return len(data) == 0 || cfjson.Valid(data) }
