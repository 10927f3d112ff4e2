//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gobwas/ws"
)

// reference is frames by another implementation, slow and without tricks.
func reference(b []byte, topic bool) (out, control []byte, used int, end bool) {
	compile := func(to *[]byte, f ws.Frame) {
		p, err := ws.CompileFrame(f)
		if err != nil {
			panic(err)
		}
		*to = append(*to, p...)
	}
	for !end {
		r := bytes.NewReader(b[used:])
		if len(b)-used < 2 {
			return
		}
		b0, b1 := b[used], b[used+1]
		op := ws.OpCode(b0 & 0x0f)
		isFin, isControl := b0&0x80 != 0, op >= ws.OpClose
		if b0&0x70 != 0 || b1&0x80 == 0 || isControl && (!isFin || b1&0x7f > 125) ||
			topic && (op == ws.OpContinuation || !isControl && !isFin) {
			return out, control, used, true
		}
		h, err := ws.ReadHeader(r)
		// A length that is too large or not in its minimal form shows before the
		// mask is there.
		switch n := b[used+2:]; b1 & 0x7f {
		case 126:
			end = len(n) >= 2 && binary.BigEndian.Uint16(n) < 126
		case 127:
			end = len(n) >= 8 && (binary.BigEndian.Uint64(n) > maxFrame || binary.BigEndian.Uint64(n) < 1<<16)
		}
		if end || err != nil {
			return
		}
		if int64(r.Len()) < h.Length {
			return
		}
		payload := make([]byte, h.Length)
		_, _ = r.Read(payload)
		used = len(b) - r.Len()
		ws.Cipher(payload, h.Mask, 0)
		to := &out
		if topic && isControl {
			to = &control
		}
		switch {
		case op == ws.OpPong || topic && op == ws.OpBinary:
		case op == ws.OpPing:
			compile(to, ws.NewPongFrame(payload))
		default:
			compile(to, ws.NewFrame(op, isFin, payload))
		}
		end = op == ws.OpClose
	}
	return
}

func clientFrame(op ws.OpCode, final bool, payload []byte) []byte {
	f := ws.NewFrame(op, final, payload)
	return ws.MustCompileFrame(ws.MaskFrame(f))
}

func row() []byte {
	large := bytes.Repeat([]byte("large"), 14000)
	return bytes.Join([][]byte{
		clientFrame(ws.OpText, true, []byte("text")),
		clientFrame(ws.OpPing, true, []byte("ping")),
		clientFrame(ws.OpBinary, true, large[:300]),
		clientFrame(ws.OpPong, true, nil),
		clientFrame(ws.OpText, true, nil),
		clientFrame(ws.OpText, true, large[:33]),
		clientFrame(ws.OpBinary, true, large),
		clientFrame(ws.OpText, true, large[:125]),
		clientFrame(ws.OpClose, true, []byte{3, 232}),
	}, nil)
}

func check(t *testing.T, in []byte, topic bool) {
	t.Helper()
	wantOut, wantControl, wantUsed, wantEnd := reference(in, topic)
	b := append(make([]byte, 0, len(in)), in...) // nothing behind it
	var control []byte
	r := frames(b, topic, &control)
	if !bytes.Equal(r.out, wantOut) || !bytes.Equal(control, wantControl) || r.used != wantUsed || r.end != wantEnd {
		t.Fatalf("topic %v: got %q, %q, %d used, end %v; want %q, %q, %d, %v",
			topic, r.out, control, r.used, r.end, wantOut, wantControl, wantUsed, wantEnd)
	}
	// What is left is kept as it came: still masked.
	if !r.end && !bytes.Equal(b[r.used:], in[r.used:]) {
		t.Fatal("the incomplete frame has changed")
	}
	if r.need != 0 && (r.need <= len(in)-r.used || r.need > maxFrame+14) {
		t.Fatalf("needs %d with %d there", r.need, len(in)-r.used)
	}
}

func TestFrames(t *testing.T) {
	in := row()
	for _, topic := range []bool{false, true} {
		for cut := 0; cut <= len(in); cut++ {
			if cut > 1000 && cut < len(in)-1000 {
				cut += 997 // inside the large one
			}
			check(t, in[:cut], topic)
		}
	}
}

func TestFramesAllocations(t *testing.T) {
	in := row()
	b := make([]byte, len(in))
	control := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() {
		copy(b, in)
		control = control[:0]
		frames(b, true, &control)
		copy(b, in)
		frames(b, false, &control)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(row()[:500])
	f.Add(clientFrame(ws.OpText, false, []byte("fragment")))
	f.Add([]byte{0x82, 0xff, 0, 0, 0, 0, 0xff, 0, 0, 0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, in []byte) {
		check(t, in, false)
		check(t, in, true)
	})
}

func BenchmarkFrames(b *testing.B) {
	in := clientFrame(ws.OpBinary, true, make([]byte, 128))
	buf := make([]byte, len(in))
	var control []byte
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, in)
		frames(buf, false, &control)
	}
}
