// Package frame cuts a server's WebSocket frames out of a stream of bytes, for
// clients that hold too many connections to read each with a goroutine.
package frame

import "encoding/binary"

// Next is the first frame of p (RFC 6455, section 5.2). payload points into p,
// and size is how much of p the frame takes; 0: it is not complete. A server
// masks nothing, so no key is expected: the mask bit is the caller's to check.
// Safe from any goroutine.
func Next(p []byte) (opcode byte, payload []byte, size int) {
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
