package netpoll

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/gobwas/ws"

	"perch/session"
)

// FuzzFrames holds the frame reader against itself, however the bytes are cut,
// and against gobwas/ws's blocking reader: the same messages, the same answers
// to control frames in the same places, the same first violation.
func FuzzFrames(f *testing.F) {
	for i, tt := range streamCases {
		f.Add(tt.sent, uint64(i))
	}
	f.Add(stream(hello, masked(ws.OpPing, true, "p"), closing(1000, "")), uint64(1))
	r := streamRig(f)
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		if len(b) == 0 || len(b) > 4<<10 {
			return
		}
		r.t = t
		defer func() { r.t = f }()
		told, read, over := r.exchange([][]byte{b})
		var single [][]byte
		for i := range b {
			single = append(single, b[i:i+1:i+1])
		}
		for how, cut := range map[string][][]byte{"byte by byte": single, "in pieces": pieces(b, seed)} {
			told2, read2, over2 := r.exchange(cut)
			if !slices.Equal(told, told2) || !bytes.Equal(read, read2) || over != over2 {
				t.Fatalf("whole: told %q, read %q, over %v; %s: told %q, read %q, over %v", told, read, over, how, told2, read2, over2)
			}
		}
		want, answers, closed := model(b)
		if !closed && over {
			// A violation is found as early as its bytes are there: the blocking reader
			// finds it once the header is whole.
			want, answers, closed = model(append(bytes.Clone(b), make([]byte, maxClientHeader)...))
			want = want[:min(len(want), len(told))]
		}
		if closed != over || !slices.Equal(told, want) {
			t.Fatalf("told %q, closed %v, want %q, %v: %x", told, over, want, closed, b)
		}
		var reads []string
		got, rest := frames(t, read)
		for _, f := range got {
			reads = append(reads, describe(f.Header.OpCode, f.Payload))
		}
		if !slices.Equal(reads, answers) || len(rest) > 0 {
			t.Fatalf("answered %q and %x, want %q: %x", reads, rest, answers, b)
		}
	})
}

// describe is a frame of the server as a test's text; of a close frame the code
// counts, the reason is ours.
func describe(op ws.OpCode, payload []byte) string {
	if op == ws.OpClose {
		payload = payload[:min(2, len(payload))]
	}
	return fmt.Sprintf("%d:%x", op, payload)
}

// model is what a handler that echoes is told of a client's bytes, and what the
// client reads, by gobwas/ws.
func model(b []byte) (told, answers []string, closed bool) {
	state := ws.StateServerSide
	var msg []byte
	var op ws.OpCode
	answer := func(op ws.OpCode, payload []byte) { answers = append(answers, describe(op, payload)) }
	end := func(r session.Reason) ([]string, []string, bool) {
		if code := r.Info().Code; code != 0 {
			answer(ws.OpClose, binary.BigEndian.AppendUint16(nil, code))
		}
		return append(told, fmt.Sprintf("closed:%v", r)), answers, true
	}
	for r := bytes.NewReader(b); ; {
		before := r.Len()
		h, err := ws.ReadHeader(r)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return told, answers, false
		case err != nil: // the most significant bit of a length
			return end(session.ReasonProtocolError)
		case ws.CheckHeader(h, state) != nil, before-r.Len() != ws.HeaderSize(h): // the length in too many bits
			return end(session.ReasonProtocolError)
		case !h.OpCode.IsControl() && h.Length > int64(messageSize-len(msg)):
			return end(session.ReasonMessageTooBig)
		case h.Length > int64(r.Len()):
			return told, answers, false
		}
		p := make([]byte, h.Length)
		_, _ = io.ReadFull(r, p)
		ws.Cipher(p, h.Mask, 0)
		switch h.OpCode {
		case ws.OpPing:
			answer(ws.OpPong, p)
			continue
		case ws.OpPong:
			continue
		case ws.OpClose:
			switch code, text := ws.ParseCloseFrameData(p); {
			case len(p) == 0, code >= 1012 && code <= 1014 && utf8.ValidString(text):
			case len(p) == 1:
				return end(session.ReasonProtocolError)
			default:
				// gobwas/ws refuses 1012 to 1014 and takes what is above section 7.4.2's.
				if err := ws.CheckCloseFrameData(code, ""); err != nil && (code < 1012 || code > 1014) || code > 4999 {
					return end(session.ReasonProtocolError)
				}
				if !utf8.ValidString(text) {
					return end(session.ReasonInvalidPayload)
				}
			}
			answer(ws.OpClose, p)
			return end(session.ReasonPeerClosed)
		case ws.OpText, ws.OpBinary:
			op = h.OpCode
		}
		msg = append(msg, p...)
		if !h.Fin {
			state = state.Set(ws.StateFragmented)
			continue
		}
		state = state.Clear(ws.StateFragmented)
		if op == ws.OpText && !utf8.Valid(msg) {
			return end(session.ReasonInvalidPayload)
		}
		told = append(told, fmt.Sprintf("%s:%s", map[ws.OpCode]string{ws.OpText: "text", ws.OpBinary: "binary"}[op], msg))
		answer(op, msg)
		msg = nil
	}
}
