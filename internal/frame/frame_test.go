package frame

import (
	"bytes"
	"testing"

	"github.com/gobwas/ws"
)

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

func TestNext(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 65535, 65536, 100000} {
		want := pattern(n)
		b := ws.MustCompileFrame(ws.NewTextFrame(want))
		opcode, p, size := Next(append(bytes.Clone(b), "next"...))
		if opcode != byte(ws.OpText) || size != len(b) || !bytes.Equal(p, want) {
			t.Fatalf("%d bytes: opcode %d, %d of payload, size %d of %d", n, opcode, len(p), size, len(b))
		}
		for cut := range b {
			if _, p, size := Next(b[:cut]); size != 0 || p != nil {
				t.Fatalf("%d bytes cut at %d: size %d, %d of payload", n, cut, size, len(p))
			}
		}
	}
}

func TestNextOfHugeLength(t *testing.T) {
	// A length that no int holds is an incomplete frame.
	b := []byte{0x81, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 'x'}
	if _, p, size := Next(b); size != 0 || p != nil {
		t.Fatalf("size %d, %d of payload", size, len(p))
	}
}

func FuzzNext(f *testing.F) {
	f.Add(ws.MustCompileFrame(ws.NewTextFrame([]byte("hello"))))
	f.Add(ws.MustCompileFrame(ws.NewBinaryFrame(pattern(126))))
	f.Add([]byte{})
	f.Add([]byte{0x82, 127, 0, 0, 0, 0, 0, 0, 0, 1, 'x', 'y'})
	f.Add([]byte{0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add(ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte("masked")))))
	f.Fuzz(func(t *testing.T, in []byte) {
		opcode, p, size := Next(in)
		if size < 0 || size > len(in) || len(p) > size || size == 0 && p != nil {
			t.Fatalf("size %d of %d, %d of payload", size, len(in), len(p))
		}
		if size == 0 {
			return
		}
		// What stands behind a frame does not change it.
		if o2, p2, s2 := Next(in[:size]); o2 != opcode || s2 != size || !bytes.Equal(p, p2) {
			t.Fatalf("alone: opcode %d of %d, size %d of %d", o2, opcode, s2, size)
		}
		if in[1]&0x80 != 0 {
			return // gobwas wants the key, too
		}
		h, err := ws.ReadHeader(bytes.NewReader(in))
		// gobwas refuses a length that is not in 63 bits; such a frame is never whole.
		if err != nil || byte(h.OpCode) != opcode || h.Length != int64(len(p)) {
			t.Fatalf("opcode %d, %d of payload; gobwas reads %+v, %v", opcode, len(p), h, err)
		}
	})
}
