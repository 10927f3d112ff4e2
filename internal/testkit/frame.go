package testkit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Opcodes of RFC 6455, section 5.2.
const (
	OpContinuation byte = 0x0
	OpText         byte = 0x1
	OpBinary       byte = 0x2
	OpClose        byte = 0x8
	OpPing         byte = 0x9
	OpPong         byte = 0xA
)

// LengthForm says how the payload length is encoded.
type LengthForm byte

// The forms of RFC 6455, section 5.2. LengthMinimal is the only one that the
// RFC allows for a given length.
const (
	LengthMinimal LengthForm = iota
	Length16                 // 126 and two bytes
	Length64                 // 127 and eight bytes
)

// Errors of ReadFrame: what a server must not send.
var (
	ErrMasked        = errors.New("testkit: server frame is masked")
	ErrReserved      = errors.New("testkit: server frame has reserved bits")
	ErrNotMinimal    = errors.New("testkit: server frame length is not minimal")
	ErrControlFrame  = errors.New("testkit: server control frame is fragmented or too long")
	ErrFrameTooLarge = errors.New("testkit: server frame is larger than the test bears")
)

// maxServerFrame bounds what ReadFrame allocates.
const maxServerFrame = 32 << 20

// Frame is one frame, spelled out. Nothing in it is checked before it is
// written.
type Frame struct {
	Fin    bool
	RSV    byte // three bits: RSV1 is 4, RSV2 is 2, RSV3 is 1
	Opcode byte
	Masked bool
	Mask   [4]byte
	Form   LengthForm
	// Declared, where not nil, is the length in the header, whatever Payload has.
	Declared *uint64
	Payload  []byte
}

// clientMask is the masking key of frames that a test does not care about. Not
// zero, so that a server that forgets to unmask fails.
var clientMask = [4]byte{0x37, 0xfa, 0x21, 0x3d}

// Client is a final, masked frame as a client sends it.
func Client(opcode byte, payload []byte) Frame {
	return Frame{Fin: true, Opcode: opcode, Masked: true, Mask: clientMask, Payload: payload}
}

// Text, Binary, Continuation, Ping and Pong are final, masked client frames.
func Text(s string) Frame         { return Client(OpText, []byte(s)) }
func Binary(p []byte) Frame       { return Client(OpBinary, p) }
func Continuation(s string) Frame { return Client(OpContinuation, []byte(s)) }
func Ping(s string) Frame         { return Client(OpPing, []byte(s)) }
func Pong(s string) Frame         { return Client(OpPong, []byte(s)) }

// Close is a masked close frame with a code and a reason.
func Close(code uint16, reason string) Frame {
	return Client(OpClose, append(binary.BigEndian.AppendUint16(nil, code), reason...))
}

// More clears FIN: other fragments follow.
func (f Frame) More() Frame { f.Fin = false; return f }

// Reserved sets the reserved bits.
func (f Frame) Reserved(bits byte) Frame { f.RSV = bits; return f }

// Unmasked clears the mask bit.
func (f Frame) Unmasked() Frame { f.Masked = false; return f }

// Length chooses how the length is encoded.
func (f Frame) Length(form LengthForm) Frame { f.Form = form; return f }

// Declare puts n into the header in place of the payload's length.
func (f Frame) Declare(n uint64) Frame { f.Declared = &n; return f }

// HeaderLen is how many bytes stand before the payload on the wire.
func (f Frame) HeaderLen() int {
	f.Payload, f.Declared = nil, f.declared()
	return len(f.Append(nil))
}

func (f Frame) declared() *uint64 {
	if f.Declared != nil {
		return f.Declared
	}
	n := uint64(len(f.Payload))
	return &n
}

// Append adds the frame as it goes on the wire to dst.
func (f Frame) Append(dst []byte) []byte {
	b0 := f.RSV<<4 | f.Opcode
	if f.Fin {
		b0 |= 0x80
	}
	var mask byte
	if f.Masked {
		mask = 0x80
	}
	n := *f.declared()
	switch {
	case f.Form == Length64 || f.Form == LengthMinimal && n > 65535:
		dst = append(dst, b0, mask|127)
		dst = binary.BigEndian.AppendUint64(dst, n)
	case f.Form == Length16 || f.Form == LengthMinimal && n > 125:
		dst = append(dst, b0, mask|126)
		dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	default:
		dst = append(dst, b0, mask|byte(n))
	}
	if !f.Masked {
		return append(dst, f.Payload...)
	}
	dst = append(dst, f.Mask[:]...)
	at := len(dst)
	dst = append(dst, f.Payload...)
	for i := range dst[at:] {
		dst[at+i] ^= f.Mask[i&3]
	}
	return dst
}

// Wire is the frames as they go on the wire, one behind the other.
func Wire(frames ...Frame) []byte {
	var b []byte
	for _, f := range frames {
		b = f.Append(b)
	}
	return b
}

// CloseCode is the code in the payload of a close frame; 1005 for an empty one,
// as RFC 6455, section 7.1.5 has it.
func (f Frame) CloseCode() uint16 {
	if len(f.Payload) < 2 {
		return 1005
	}
	return binary.BigEndian.Uint16(f.Payload)
}

// CloseReason is the text behind the code of a close frame.
func (f Frame) CloseReason() string {
	if len(f.Payload) < 2 {
		return ""
	}
	return string(f.Payload[2:])
}

// String names the frame for a failed test.
func (f Frame) String() string {
	p := f.Payload
	tail := ""
	if len(p) > 64 {
		p, tail = p[:64], "…"
	}
	if f.Opcode == OpClose {
		return fmt.Sprintf("close %d %q", f.CloseCode(), f.CloseReason())
	}
	return fmt.Sprintf("frame{fin %t rsv %d opcode %#x len %d %q%s}", f.Fin, f.RSV, f.Opcode, len(f.Payload), p, tail)
}

// ReadFrame reads one frame of a server and checks what RFC 6455 asks of
// every server frame: unmasked, minimal length, control frames whole and short,
// no reserved bits (no extension is ever negotiated here).
func ReadFrame(r *bufio.Reader) (Frame, error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:2]); err != nil {
		return Frame{}, err
	}
	f := Frame{Fin: h[0]&0x80 != 0, RSV: h[0] >> 4 & 7, Opcode: h[0] & 0x0f, Masked: h[1]&0x80 != 0}
	n := uint64(h[1] & 0x7f)
	least := uint64(0)
	switch n {
	case 126:
		if _, err := io.ReadFull(r, h[:2]); err != nil {
			return f, noEOF(err)
		}
		n, least = uint64(binary.BigEndian.Uint16(h[:2])), 126
	case 127:
		if _, err := io.ReadFull(r, h[:8]); err != nil {
			return f, noEOF(err)
		}
		n, least = binary.BigEndian.Uint64(h[:8]), 65536
	}
	switch {
	case f.Masked:
		return f, ErrMasked
	case f.RSV != 0:
		return f, ErrReserved
	case n < least:
		return f, ErrNotMinimal
	case f.Opcode >= OpClose && (!f.Fin || n > 125):
		return f, ErrControlFrame
	case n > maxServerFrame:
		return f, ErrFrameTooLarge
	}
	f.Payload = make([]byte, n)
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return f, noEOF(err)
	}
	return f, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
