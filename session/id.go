package session

import (
	"encoding/binary"
	"encoding/hex"
)

// ID names a session on this node: 8 bits of loop, 24 of generation, 32 of
// slot. The generation of a slot grows each time the slot is taken, so that an
// ID of an ended session finds nothing. The zero ID names no session.
type ID uint64

// MaxLoops is how many loops an ID can tell apart.
const MaxLoops = 1 << 8

// GenerationMask holds the bits of a generation that an ID carries.
const GenerationMask = 1<<24 - 1

// MakeID packs loop (0 to MaxLoops-1), generation (24 bits; never 0, so that no
// session has the zero ID) and slot.
func MakeID(loop int, generation, slot uint32) ID {
	return ID(uint64(loop)<<56 | uint64(generation&GenerationMask)<<32 | uint64(slot))
}

// Loop is the index of the loop that owns the session.
func (id ID) Loop() int { return int(id >> 56) }

// Generation is the generation of the slot, 24 bits.
func (id ID) Generation() uint32 { return uint32(id>>32) & GenerationMask }

// Slot is the slot in the loop's table.
func (id ID) Slot() uint32 { return uint32(id) }

// Node is the random number of a running process. Together with an ID it makes
// the client id that peers and backends see.
type Node uint64

// ClientID is the public name of a session: a UUID of version 8 (RFC 9562,
// section 5.8) that carries the node and the ID, so that no table from client
// id to session has to be kept. Of the node 58 bits take part.
func (n Node) ClientID(id ID) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(id))
	// RFC 9562 reserves 4 bits for the version (octet 6) and 2 for the variant
	// (octet 8); the ID is rotated around them: its low 16 bits (of the slot) go
	// behind the variant.
	low := binary.BigEndian.Uint16(b[6:8])
	node := uint64(n)
	b[6] = 0x80 | byte(node>>8)&0x0f
	b[7] = byte(node)
	b[8] = 0x80 | byte(node>>12)&0x3f
	binary.BigEndian.PutUint16(b[9:11], low)
	b[11] = byte(node >> 18)
	b[12] = byte(node >> 26)
	b[13] = byte(node >> 34)
	b[14] = byte(node >> 42)
	b[15] = byte(node >> 50)
	var out [36]byte
	hex.Encode(out[0:8], b[0:4])
	out[8] = '-'
	hex.Encode(out[9:13], b[4:6])
	out[13] = '-'
	hex.Encode(out[14:18], b[6:8])
	out[18] = '-'
	hex.Encode(out[19:23], b[8:10])
	out[23] = '-'
	hex.Encode(out[24:36], b[10:16])
	return string(out[:])
}

// nodeBits are those of a Node that a client id carries.
const nodeBits Node = 1<<58 - 1

// Is tells whether two nodes are the same, as far as client ids can tell them
// apart.
func (n Node) Is(other Node) bool { return (n^other)&nodeBits == 0 }

// Session finds the ID in a client id that this node made. ok is false for
// every other string. Safe from any goroutine.
func (n Node) Session(client string) (id ID, ok bool) {
	node, id, ok := readClientID(client)
	if !ok || !n.Is(node) {
		return 0, false
	}
	return id, true
}

// NodeOf is the node that made a client id, without the bits that it does not
// carry. ok is false for what no node can have made. Safe from any goroutine.
func NodeOf(client string) (n Node, ok bool) {
	n, _, ok = readClientID(client)
	return n, ok
}

func readClientID(client string) (n Node, id ID, ok bool) {
	if len(client) != 36 || client[8] != '-' || client[13] != '-' || client[18] != '-' || client[23] != '-' {
		return 0, 0, false
	}
	var b [16]byte
	src := client[0:8] + client[9:13] + client[14:18] + client[19:23] + client[24:36]
	if _, err := hex.Decode(b[:], []byte(src)); err != nil {
		return 0, 0, false
	}
	var raw [8]byte
	copy(raw[:6], b[:6])
	copy(raw[6:8], b[9:11])
	id = ID(binary.BigEndian.Uint64(raw[:]))
	n = Node(b[7]) | Node(b[6]&0x0f)<<8 | Node(b[8]&0x3f)<<12
	for i, shift := 11, 18; i < 16; i, shift = i+1, shift+8 {
		n |= Node(b[i]) << shift
	}
	if n.ClientID(id) != client { // upper case, another version or variant
		return 0, 0, false
	}
	return n, id, true
}
