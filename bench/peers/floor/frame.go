//go:build linux

package main

import "encoding/binary"

// RFC 6455, section 5.2.
const (
	opText   = 0x1
	opBinary = 0x2
	opClose  = 0x8
	opPing   = 0x9
	opPong   = 0xa

	fin = 0x80

	// headerGap is by how much a server's header is shorter: it has no mask.
	headerGap = 4
	// maxFrame keeps a header from asking for all the memory there is.
	maxFrame = 16 << 20
	refused  = maxFrame + 1
)

var pingFrame = []byte{fin | opPing, 0}

// batch is what the frames of one read come to.
type batch struct {
	out  []byte // for the peer, or on /topic the publications; in the place of what was read
	used int    // bytes read that are done with
	need int    // size of the incomplete frame after them; 0: not known
	end  bool   // the connection is over once out is sent
}

// frames takes the whole frames off b and puts the server's frames in their
// place, one behind the other: they are shorter than the client's, so the
// writing never overtakes the reading. control gets what is for a publisher
// alone.
func frames(b []byte, topic bool, control *[]byte) (r batch) {
	w := headerGap // the payload of the first frame stays where it is
	at := 0
	for len(b)-at >= 2 {
		f := b[at:]
		head, n := 6, int(f[1]&0x7f)
		switch n {
		case 126:
			if head = 8; len(f) >= 4 {
				if n = int(binary.BigEndian.Uint16(f[2:])); n < 126 {
					n = refused // not the minimal form
				}
			}
		case 127:
			if head = 14; len(f) >= 10 {
				if n = int(min(binary.BigEndian.Uint64(f[2:]), refused)); n < 1<<16 {
					n = refused
				}
			}
		}
		first := f[0]
		op := first & 0x0f
		if f[1]&0x80 == 0 || first&0x70 != 0 || n > maxFrame ||
			op >= opClose && (n > 125 || first&fin == 0) ||
			topic && (op == 0 || op < opClose && first&fin == 0) {
			r.end = true
			break
		}
		if len(f) < head {
			break
		}
		if len(f) < head+n {
			r.need = head + n
			break
		}
		mask := binary.LittleEndian.Uint32(f[head-4:])
		at += head + n
		switch {
		case op == opPong || topic && op == opBinary:
			continue
		case topic && op >= opClose:
			unmask(f[head:head+n], f[head:head+n], mask)
			*control = append(append(*control, reply(first), byte(n)), f[head:head+n]...)
		default:
			// The masked payload is read before what is written reaches it.
			h := head - headerGap
			size := f[1] & 0x7f
			copy(b[w+2:w+h], f[2:h])
			b[w], b[w+1] = reply(first), size
			unmask(b[w+h:w+h+n], f[head:head+n], mask)
			w += h + n
		}
		if op == opClose {
			r.end = true
			break
		}
	}
	if r.used = at; w > headerGap {
		r.out = b[headerGap:w]
	}
	return r
}

// reply is the first byte of the answer to a frame: a pong for a ping, else
// the same.
func reply(first byte) byte {
	if first == fin|opPing {
		return fin | opPong
	}
	return first
}

// unmask writes src without its mask to dst, which has the same length and may
// begin before src in the same memory, not behind it.
func unmask(dst, src []byte, mask uint32) {
	wide := uint64(mask)<<32 | uint64(mask)
	le := binary.LittleEndian
	for len(src) >= 32 && len(dst) >= 32 {
		a, b, c, d := le.Uint64(src), le.Uint64(src[8:]), le.Uint64(src[16:]), le.Uint64(src[24:])
		le.PutUint64(dst, a^wide)
		le.PutUint64(dst[8:], b^wide)
		le.PutUint64(dst[16:], c^wide)
		le.PutUint64(dst[24:], d^wide)
		src, dst = src[32:], dst[32:]
	}
	for len(src) >= 8 && len(dst) >= 8 {
		le.PutUint64(dst, le.Uint64(src)^wide)
		src, dst = src[8:], dst[8:]
	}
	for i := range src {
		dst[i] = src[i] ^ byte(mask>>(8*(i&3)))
	}
}
