package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	pb "github.com/centrifugal/protocol"
	"github.com/centrifugal/protocol/cfjson"
)

// Encoding is a wire format. The numbers are those of the table of encoders
// that all protocols share.
type Encoding uint8

// The wire formats.
const (
	JSON     Encoding = 1 // text frames
	Protobuf Encoding = 2 // binary frames
)

// The messages, as the SDKs know them.
type (
	// Command is what a client asks for.
	Command = pb.Command
	// Reply answers a command or carries a push.
	Reply = pb.Reply
	// Push is what the server sends of its own accord.
	Push = pb.Push
)

// MaxCommands is how many commands one message may hold: above what an SDK
// puts into its first message, below what would hold a loop for long.
const MaxCommands = 1000

// What can be wrong with a message.
var (
	ErrEmpty           = errors.New("protocol: message without a command")
	ErrTooManyCommands = errors.New("protocol: too many commands in a message")
	ErrLength          = errors.New("protocol: length of a command beyond its message")
)

// Frame is a WebSocket message that holds commands. It is used by one
// goroutine.
type Frame struct {
	rest     []byte
	encoding Encoding
	count    int
}

// NewFrame begins to read message, which stays the caller's and is not changed.
func NewFrame(message []byte, e Encoding) Frame {
	return Frame{rest: message, encoding: e}
}

// ContinueFrame begins to read what Rest has left of a message, count commands
// of which have been read.
func ContinueFrame(rest []byte, e Encoding, count int) Frame {
	return Frame{rest: rest, encoding: e, count: count}
}

// Rest is what Next has not read yet.
func (f *Frame) Rest() []byte { return f.rest }

// Next is the next command, still encoded, as a slice of the message. io.EOF
// comes alone, when none is left; ErrEmpty for a message that held none,
// ErrTooManyCommands beyond MaxCommands, ErrLength for a wrong prefix.
func (f *Frame) Next() ([]byte, error) {
	for len(f.rest) > 0 {
		var raw []byte
		if f.encoding == Protobuf {
			size, n := binary.Uvarint(f.rest)
			if n <= 0 || size > uint64(len(f.rest)-n) {
				return nil, ErrLength
			}
			end := n + int(size)
			raw, f.rest = f.rest[n:end:end], f.rest[end:]
		} else {
			end := bytes.IndexByte(f.rest, '\n')
			if end < 0 {
				raw, f.rest = f.rest, nil
			} else {
				raw, f.rest = f.rest[:end:end], f.rest[end+1:]
			}
			if cfjson.SkipSpace(raw, 0) == len(raw) {
				continue // a blank line, as behind the last command
			}
		}
		if f.count++; f.count > MaxCommands {
			return nil, ErrTooManyCommands
		}
		return raw, nil
	}
	if f.count == 0 {
		return nil, ErrEmpty
	}
	return nil, io.EOF
}

// Decode fills c, which is zero before, from one command that Frame.Next
// returned. Nothing in c points into raw: c may outlive it. How deep raw is
// nested is bounded by the decoders (1,024 for filters, the one recursive
// message).
func Decode(raw []byte, e Encoding, c *Command) error {
	var err error
	if e == Protobuf {
		err = c.UnmarshalCF(raw)
	} else {
		err = cfjson.Unmarshal(raw, c, 0)
	}
	if err != nil {
		return fmt.Errorf("protocol: decode command: %w", err)
	}
	return nil
}

// IsPong tells whether a whole message is one pong and nothing else.
func IsPong(message []byte, e Encoding) bool {
	if e == Protobuf {
		return len(message) == 1 && message[0] == 0
	}
	return IsEmptyCommand(message, e)
}

// IsEmptyCommand tells whether a command of Frame.Next is a pong. One that is
// spelled otherwise (`{ }`) is found by decoding it.
func IsEmptyCommand(raw []byte, e Encoding) bool {
	if e == Protobuf {
		return len(raw) == 0
	}
	if len(raw) < 2 || raw[0] != '{' || raw[1] != '}' {
		return false
	}
	return len(raw) == 2 || cfjson.SkipSpace(raw, 2) == len(raw)
}
