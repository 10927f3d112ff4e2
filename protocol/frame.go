package protocol

import (
	"encoding/binary"
	"sync"

	pb "github.com/centrifugal/protocol"
)

// Publication is what a publication frame carries.
type Publication struct {
	Data   []byte
	Tags   map[string]string
	Offset uint64 // 0 where the topic has no stream
	// Of the publishing client; Client is empty for the server's own.
	User     string
	Client   string
	ConnInfo []byte // JSON
	ChanInfo []byte // JSON
	// Delta says that Data is a patch of the publication before.
	Delta bool
}

// MaxFrameHeader is the longest header of a frame from the server, which is
// not masked (RFC 6455, section 5.2).
const MaxFrameHeader = 10

const (
	finText   = 0x81 // FIN and opcode 1
	finBinary = 0x82 // FIN and opcode 2

	// maxScratch is the largest buffer kept for the next publication.
	maxScratch = 64 << 10
)

// The ping is an empty reply. These are whole frames, ready to be shared:
// nobody changes them.
var (
	pingJSON     = []byte{finText, 2, '{', '}'}
	pingProtobuf = []byte{finBinary, 1, 0}
)

// PingFrame is the WebSocket frame of the server's ping. It is shared: nobody
// changes it.
func PingFrame(e Encoding) []byte {
	if e == Protobuf {
		return pingProtobuf
	}
	return pingJSON
}

// AppendFrameHeader appends the header of a frame from the server that holds a
// whole message of size bytes (RFC 6455, section 5.2: FIN, no mask, the
// shortest length).
func AppendFrameHeader(dst []byte, e Encoding, size int) []byte {
	op := byte(finText)
	if e == Protobuf {
		op = finBinary
	}
	switch {
	case size < 126:
		return append(dst, op, byte(size))
	case size < 1<<16:
		return append(dst, op, 126, byte(size>>8), byte(size))
	}
	return binary.BigEndian.AppendUint64(append(dst, op, 127), uint64(size))
}

var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 1<<10); return &b }}

// PublicationFrame is the WebSocket frame that carries p, published to topic,
// to the subscribers of an encoding. The result belongs to the caller, has no
// spare capacity, and is meant to be shared by all of them. ErrInvalidJSON:
// JSON can't carry the payload.
func PublicationFrame(e Encoding, topic string, p *Publication) ([]byte, error) {
	pub := p.wire(e)
	return pushFrame(e, func(dst []byte) ([]byte, error) {
		return AppendPush(dst, e, &Push{Channel: topic, Pub: pub})
	})
}

func (p *Publication) wire(e Encoding) *pb.Publication {
	pub := &pb.Publication{Data: p.Data, Tags: p.Tags, Offset: p.Offset, Delta: p.Delta}
	if p.Client != "" {
		pub.Info = &pb.ClientInfo{User: p.User, Client: p.Client}
		// Info that JSON can't carry is left out there: what its publisher's token
		// says must not keep the payload from others.
		if ValidPayload(p.ConnInfo, e) {
			pub.Info.ConnInfo = p.ConnInfo
		}
		if ValidPayload(p.ChanInfo, e) {
			pub.Info.ChanInfo = p.ChanInfo
		}
	}
	return pub
}

// PushesFrame is the WebSocket frame that carries several pushes in one message.
// It belongs to the caller, as that of PublicationFrame does.
func PushesFrame(e Encoding, pushes []Push) ([]byte, error) {
	return pushFrame(e, func(dst []byte) ([]byte, error) {
		var err error
		for i := range pushes {
			if i > 0 && e == JSON {
				dst = append(dst, '\n')
			}
			if dst, err = AppendPush(dst, e, &pushes[i]); err != nil {
				return dst, err
			}
		}
		return dst, nil
	})
}

// ReplyFrame is the WebSocket frame of one reply, for what is encoded away from
// its loop. It belongs to the caller.
func ReplyFrame(e Encoding, r *Reply) ([]byte, error) {
	return pushFrame(e, func(dst []byte) ([]byte, error) { return AppendReply(dst, e, r) })
}

// pushFrame puts a header before the message that write appends.
func pushFrame(e Encoding, write func([]byte) ([]byte, error)) ([]byte, error) {
	buf := scratch.Get().(*[]byte)
	payload, err := write((*buf)[:0])
	if err != nil {
		scratch.Put(buf)
		return nil, err
	}
	var header [MaxFrameHeader]byte
	h := AppendFrameHeader(header[:0], e, len(payload))
	frame := make([]byte, len(h)+len(payload))
	copy(frame[copy(frame, h):], payload)
	if cap(payload) <= maxScratch {
		*buf = payload
		scratch.Put(buf)
	}
	return frame, nil
}
