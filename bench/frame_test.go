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
		if !ok || len(rest) > n+14 {
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
