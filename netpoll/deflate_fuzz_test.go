package netpoll

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"perch/session"
)

// FuzzInflate holds what becomes of a deflated message against compress/flate,
// however its frame is cut, and holds that it comes back as it was.
func FuzzInflate(f *testing.F) {
	for _, tt := range deflatedCases {
		if len(tt.sent) > 6 && tt.sent[0]&^0x80 == rsv1|byte(ws.OpText) {
			if h, ok, _ := parseHeader(tt.sent, 0x30); ok && len(tt.sent) >= h.size+h.length {
				p := bytes.Clone(tt.sent[h.size : h.size+h.length])
				ws.Cipher(p, h.mask, 0)
				f.Add(p, uint64(1))
			}
		}
	}
	f.Add([]byte(squeezed(words(250, 1))), uint64(2))
	d := echoingDeflate(f)
	f.Fuzz(func(t *testing.T, payload []byte, seed uint64) {
		if len(payload) > packedMost(messageSize) {
			return
		}
		d.t = t
		defer func() { d.t = f }()
		want := modelInflate(payload)
		frame := compressed(ws.OpText, true, string(payload))
		for how, cut := range map[string][][]byte{"whole": {frame}, "in pieces": pieces(frame, seed)} {
			told, read, over := d.exchange(cut, seed%2 == 0)
			if len(told) != 1 || told[0] != want || over == strings.HasPrefix(want, "text:") {
				t.Fatalf("%s: told %q, want %q: %x", how, told, want, payload)
			}
			if got := reads(t, read); !over && (len(got) != 1 || got[0][2:] != want[len("text:"):]) {
				t.Fatalf("%s: read %q for %q", how, got, want)
			}
		}
	})
}

// modelInflate is what a handler is told of a deflated text, by compress/flate.
func modelInflate(payload []byte) string {
	in := bytes.NewReader(append(bytes.Clone(payload), tail...))
	var out []byte
	closed := func(r session.Reason) string { return fmt.Sprintf("closed:%v", r) }
	for streams := 0; streams <= 16+(len(payload)+len(tail))/64; streams++ {
		r := flate.NewReader(in)
		b, err := io.ReadAll(io.LimitReader(r, int64(messageSize-len(out))+1))
		if out = append(out, b...); len(out) > messageSize {
			return closed(session.ReasonMessageTooBig)
		}
		if err != nil {
			return closed(session.ReasonInvalidPayload)
		}
		if in.Len() != 0 && in.Len() != len(tail) {
			continue
		}
		if !utf8.Valid(out) {
			break
		}
		return "text:" + string(out)
	}
	return closed(session.ReasonInvalidPayload)
}

// FuzzRepack holds that a peer which inflates reads what was written, whatever the
// frames, the window and the threshold.
func FuzzRepack(f *testing.F) {
	f.Add([]byte(words(700, 1)), uint64(3), byte(8))
	f.Add([]byte(strings.Repeat("a", 300)), uint64(1), byte(15))
	var tl tools
	f.Fuzz(func(t *testing.T, b []byte, seed uint64, bits byte) {
		if len(b) > 8<<10 {
			return
		}
		bits = 8 + bits%8
		threshold := 1 + int(seed%500)
		var frames []byte
		var want []string
		random := rand.New(rand.NewPCG(seed, 1))
		for i := 0; len(b) > 0; i++ {
			p := b[:1+random.IntN(len(b))]
			b = b[len(p):]
			op := ws.OpText + ws.OpCode(i%2)
			if i%5 == 4 && len(p) < 126 {
				op = ws.OpPong
			}
			frames = append(appendHeader(frames, op, len(p)), p...)
			want = append(want, fmt.Sprintf("%d:%s", op, p))
		}
		before := bytes.Clone(frames)
		out, n, from, to := tl.repack(frames, bits, threshold)
		if !bytes.Equal(frames, before) || len(out) > len(frames) || from-to > len(frames) || n == 0 && !bytes.Equal(out, frames) {
			t.Fatalf("%d messages of %d bytes became %d", n, from, to)
		}
		got := reads(t, out)
		deflated := 0
		for i, m := range got {
			if strings.HasPrefix(m[1:], "*") {
				deflated++
				if len(m)-2 < threshold {
					t.Fatalf("%d bytes are below the threshold", len(m)-2)
				}
				got[i] = strings.Replace(m, "*", ":", 1)
			}
		}
		if deflated != n || !slices.Equal(got, want) {
			t.Fatalf("read %q, want %q", got, want)
		}
		for fs, _ := framesRSV(t, out); len(fs) > 0; fs = fs[1:] {
			if fs[0].Header.Rsv != 0 {
				if far, _ := furthest(t, fs[0].Payload); far > 1<<bits {
					t.Fatalf("%d bits: a reference goes %d back", bits, far)
				}
			}
		}
	})
}
