package session

import (
	"encoding/hex"
	"strings"
	"testing"
)

func TestID(t *testing.T) {
	for _, tt := range []struct {
		name             string
		loop             int
		generation, slot uint32
		want             ID
		wantGeneration   uint32
	}{
		{"first", 0, 1, 0, 0x00_000001_00000000, 1},
		{"fields apart", 0xab, 0xcdef01, 0x23456789, 0xab_cdef01_23456789, 0xcdef01},
		{"largest", MaxLoops - 1, GenerationMask, 1<<32 - 1, 1<<64 - 1, GenerationMask},
		{"loop alone", MaxLoops - 1, 0, 0, 0xff_000000_00000000, 0},
		{"slot alone", 0, 0, 1<<32 - 1, 0xffffffff, 0},
		{"generation keeps out of the loop", 1, 1<<24 | 5, 7, 0x01_000005_00000007, 5},
		{"generation wraps", 0, 1 << 24, 0, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := MakeID(tt.loop, tt.generation, tt.slot)
			if id != tt.want {
				t.Errorf("%#x, want %#x", uint64(id), uint64(tt.want))
			}
			if id.Loop() != tt.loop || id.Generation() != tt.wantGeneration || id.Slot() != tt.slot {
				t.Errorf("%#x reads back as %d, %#x, %#x", uint64(id), id.Loop(), id.Generation(), id.Slot())
			}
		})
	}
}

const (
	testNode = Node(0x2fe_dcba_9876_5432)
	nodeMask = 1<<58 - 1 // what of a node a client id carries
)

// clientIDs are ids with each bit of an ID set, alone and among others.
func clientIDs() []ID {
	ids := []ID{0, 1<<64 - 1, MakeID(3, 70000, 123456)}
	for bit := range 64 {
		ids = append(ids, 1<<bit, ^ID(1<<bit))
	}
	return ids
}

func TestClientIDRoundTrip(t *testing.T) {
	seen := make(map[string]ID)
	for _, node := range []Node{0, testNode, 1<<64 - 1} {
		for _, id := range clientIDs() {
			client := node.ClientID(id)
			if before, ok := seen[client]; ok {
				t.Fatalf("%s is of %#x and of %#x", client, uint64(before), uint64(id))
			}
			seen[client] = id
			if got, ok := node.Session(client); !ok || got != id {
				t.Errorf("%s of %#x reads back as %#x, %v", client, uint64(id), uint64(got), ok)
			}
			checkUUID(t, client)
		}
	}
}

// checkUUID holds client against RFC 9562: the text of section 4, version 8 and
// the variant of section 4.1.
func checkUUID(t *testing.T, client string) {
	t.Helper()
	parts := strings.Split(client, "-")
	if len(parts) != 5 || len(client) != 36 || client != strings.ToLower(client) {
		t.Fatalf("%q is not the text of a UUID", client)
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		if len(parts[i]) != n {
			t.Fatalf("%q: part %d has %d digits", client, i, len(parts[i]))
		}
	}
	b, err := hex.DecodeString(strings.ReplaceAll(client, "-", ""))
	if err != nil {
		t.Fatalf("%q: %v", client, err)
	}
	if b[6]>>4 != 8 || b[8]>>6 != 0b10 {
		t.Errorf("%q: version %d, variant %b", client, b[6]>>4, b[8]>>6)
	}
}

func TestClientIDOfAnotherNode(t *testing.T) {
	id := MakeID(1, 2, 3)
	client := testNode.ClientID(id)
	for bit := range 64 {
		other := testNode ^ 1<<bit
		got, ok := other.Session(client)
		// The node's upper 6 bits find no place in a UUID.
		if want := other&nodeMask == testNode&nodeMask; ok != want || !ok && got != 0 {
			t.Errorf("node that differs in bit %d: %#x, %v", bit, uint64(got), ok)
		}
	}
}

func TestClientIDRefuses(t *testing.T) {
	client := testNode.ClientID(MakeID(1, 2, 0xabcdef))
	for _, tt := range []struct{ name, client string }{
		{"empty", ""},
		{"short", client[:35]},
		{"long", client + "0"},
		{"upper case", strings.ToUpper(client)},
		{"no digits", strings.Repeat("z", 36)},
		{"hyphens alone", strings.Repeat("-", 36)},
		{"a digit that is none", client[:35] + "g"},
		{"without hyphens", strings.ReplaceAll(client, "-", "0")},
		{"braces", "{" + client[:34] + "}"},
		{"another version", client[:14] + "4" + client[15:]},
		{"another variant", client[:19] + "c" + client[20:]},
		{"not ASCII", client[:34] + "é"},
		{"the nil UUID", "00000000-0000-0000-0000-000000000000"},
		{"somebody's UUID", "0197a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if id, ok := testNode.Session(tt.client); ok || id != 0 {
				t.Errorf("%q is taken for %#x", tt.client, uint64(id))
			}
		})
	}
}

// One digit changed makes another session's id, or none; never the same one's.
func TestClientIDIsUnambiguous(t *testing.T) {
	id := MakeID(9, 70000, 123456)
	client := testNode.ClientID(id)
	for i := range client {
		for _, digit := range "0123456789abcdef" {
			changed := client[:i] + string(digit) + client[i+1:]
			if got, ok := testNode.Session(changed); ok && got == id && changed != client {
				t.Errorf("%s is taken for %s", changed, client)
			}
		}
	}
}

func FuzzClientID(f *testing.F) {
	for _, id := range clientIDs() {
		f.Add(testNode.ClientID(id), uint64(testNode), uint64(id))
	}
	f.Add("", uint64(0), uint64(0))
	f.Add("0197a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b", uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, client string, n, i uint64) {
		node, id := Node(n), ID(i)
		if got, ok := node.Session(client); ok {
			if node.ClientID(got) != client {
				t.Errorf("%q is taken for %#x, whose id is %q", client, uint64(got), node.ClientID(got))
			}
		} else if got != 0 {
			t.Errorf("%q is refused with %#x", client, uint64(got))
		}
		own := node.ClientID(id)
		checkUUID(t, own)
		if got, ok := node.Session(own); !ok || got != id {
			t.Errorf("%q of %#x reads back as %#x, %v", own, i, uint64(got), ok)
		}
		if other := node + 1; other&nodeMask != node&nodeMask {
			if _, ok := other.Session(own); ok {
				t.Errorf("%q is taken by another node", own)
			}
		}
	})
}

func BenchmarkClientID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := testNode.Session(testNode.ClientID(12345)); !ok {
			b.Fatal("refused")
		}
	}
}

func TestNodeOf(t *testing.T) {
	for _, node := range []Node{0, 1, testNode, 1<<64 - 1} {
		for _, id := range clientIDs() {
			got, ok := NodeOf(node.ClientID(id))
			if !ok || got != node&nodeMask || !got.Is(node) || !node.Is(got) {
				t.Fatalf("%#x of %#x: %#x, %v", uint64(id), uint64(node), uint64(got), ok)
			}
		}
		for bit := range 64 {
			if other := node ^ 1<<bit; node.Is(other) != (bit >= 58) {
				t.Errorf("bit %d: %v", bit, node.Is(other))
			}
		}
	}
	for _, client := range []string{"", "x", strings.ToUpper(testNode.ClientID(1<<64 - 1)), strings.Repeat("0", 36)} {
		if _, ok := NodeOf(client); ok {
			t.Errorf("%q is of a node", client)
		}
	}
}
