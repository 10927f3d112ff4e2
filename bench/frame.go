package bench

import "encoding/binary"

// The opcodes of RFC 6455, section 5.2.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

// The bits beside the opcode and the length.
const (
	finBit  = 0x80
	maskBit = 0x80
)

const maxHeader = 14

// mask is the key of every frame: a random one costs the generator time, and
// the server unmasks with this one as with any other.
var mask = [4]byte{0x37, 0xfa, 0x21, 0x3d}

// appendFrame appends a client's frame, masked.
func appendFrame(dst []byte, opcode byte, payload []byte) []byte {
	dst = append(dst, 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, 0x80|byte(n))
	case n < 1<<16:
		dst = binary.BigEndian.AppendUint16(append(dst, 0x80|126), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, 0x80|127), uint64(n))
	}
	dst = append(dst, mask[:]...)
	at := len(dst)
	dst = append(dst, payload...)
	for i := range payload {
		dst[at+i] ^= mask[i&3]
	}
	return dst
}

// parseFrame takes the first frame of a server from p; size 0: it is not
// complete. payload points into p.
func parseFrame(p []byte) (opcode byte, payload []byte, size int) {
	if len(p) < 2 {
		return 0, nil, 0
	}
	n, at := uint64(p[1]&0x7f), 2
	switch n {
	case 126:
		if len(p) < 4 {
			return 0, nil, 0
		}
		n, at = uint64(binary.BigEndian.Uint16(p[2:])), 4
	case 127:
		if len(p) < 10 {
			return 0, nil, 0
		}
		n, at = binary.BigEndian.Uint64(p[2:]), 10
	}
	if n > uint64(len(p)-at) {
		return 0, nil, 0
	}
	return p[0] & 0x0f, p[at : at+int(n)], at + int(n)
}
