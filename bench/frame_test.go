package bench

import (
	"bufio"
	"bytes"
	"testing"
)

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

var frameSizes = []int{0, 1, 125, 126, 65535, 65536, 100000}

func TestAppendFrame(t *testing.T) {
	for _, n := range frameSizes {
		want := pattern(n)
		b := appendFrame([]byte("before"), opBinary, want)
		rest, ok := bytes.CutPrefix(b, []byte("before"))
		if !ok || len(rest) > n+maxHeader {
			t.Fatalf("%d bytes: a frame of %d", n, len(rest))
		}
		r := bufio.NewReader(bytes.NewReader(rest))
		opcode, p, err := readClientFrame(r)
		if err != nil || opcode != opBinary || !bytes.Equal(p, want) {
			t.Fatalf("%d bytes: opcode %d, %d bytes, %v", n, opcode, len(p), err)
		}
		if r.Buffered() > 0 {
			t.Fatalf("%d bytes: %d left behind the frame", n, r.Buffered())
		}
		if n > 3 && bytes.Contains(rest, want) {
			t.Fatalf("%d bytes: not masked", n)
		}
	}
}

func TestParseFrame(t *testing.T) {
	for _, n := range frameSizes {
		want := pattern(n)
		b := serverFrame(finBit|opText, want)
		opcode, p, size := parseFrame(append(bytes.Clone(b), "next"...))
		if opcode != opText || size != len(b) || !bytes.Equal(p, want) {
			t.Fatalf("%d bytes: opcode %d, %d of payload, size %d of %d", n, opcode, len(p), size, len(b))
		}
		for cut := range b {
			if _, p, size := parseFrame(b[:cut]); size != 0 || p != nil {
				t.Fatalf("%d bytes cut at %d: size %d, %d of payload", n, cut, size, len(p))
			}
		}
	}
}

func TestParseFrameLengths(t *testing.T) {
	// A length that no int holds is an incomplete frame.
	b := []byte{finBit | opText, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 'x'}
	if _, p, size := parseFrame(b); size != 0 || p != nil {
		t.Fatalf("size %d", size)
	}
}

func FuzzServerFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add(textFrame("hello"))
	f.Add(serverFrame(finBit|opBinary, pattern(300)))
	f.Add([]byte{0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add(appendFrame(nil, opText, []byte("masked")))
	f.Fuzz(func(t *testing.T, b []byte) {
		opcode, p, size := parseFrame(b)
		if size < 0 || size > len(b) || len(p) > size {
			t.Fatalf("size %d, %d of payload, of %d", size, len(p), len(b))
		}
		if size == 0 {
			if p != nil {
				t.Fatal("a payload without a frame")
			}
			return
		}
		// What stands behind a frame does not change it.
		o2, p2, s2 := parseFrame(b[:size])
		if o2 != opcode || s2 != size || !bytes.Equal(p, p2) {
			t.Fatalf("alone: opcode %d of %d, size %d of %d", o2, opcode, s2, size)
		}
	})
}
