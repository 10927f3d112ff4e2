package netpoll

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"perch/session"
)

// bits makes bytes of groups of bits, blanks left out; 0x.. stands for a byte.
func bits(s string) (out []byte) {
	n, acc := 0, 0
	for _, f := range strings.Fields(s) {
		if hex, ok := strings.CutPrefix(f, "0x"); ok {
			var v byte
			if _, err := fmt.Sscanf(hex, "%x", &v); err != nil || n != 0 {
				panic(s)
			}
			out = append(out, v)
			continue
		}
		for _, c := range f {
			acc = acc<<1 | int(c-'0')
			if n++; n == 8 {
				out = append(out, byte(acc))
				n, acc = 0, 0
			}
		}
	}
	if n != 0 {
		panic(s)
	}
	return out
}

func TestParseHeader(t *testing.T) {
	const bad = session.ReasonProtocolError
	mask := [4]byte{1, 2, 3, 4}
	for _, tt := range []struct {
		name string
		// FIN, RSV1 to 3, opcode, MASK, length, extended length, mask
		bits string
		want header
		ok   bool
		bad  session.Reason
	}{
		{"text", "1 000 0001 1 0000101 0x1 0x2 0x3 0x4", header{ws.OpText, true, mask, 5, 6, false}, true, 0},
		{"binary", "1 000 0010 1 0000101 0x1 0x2 0x3 0x4", header{ws.OpBinary, true, mask, 5, 6, false}, true, 0},
		{"no payload", "1 000 0001 1 0000000 0x1 0x2 0x3 0x4", header{ws.OpText, true, mask, 0, 6, false}, true, 0},
		{"not final", "0 000 0001 1 0000101 0x1 0x2 0x3 0x4", header{ws.OpText, false, mask, 5, 6, false}, true, 0},
		{"continuation", "1 000 0000 1 0000101 0x1 0x2 0x3 0x4", header{ws.OpContinuation, true, mask, 5, 6, false}, true, 0},
		{"close", "1 000 1000 1 0000010 0x1 0x2 0x3 0x4", header{ws.OpClose, true, mask, 2, 6, false}, true, 0},
		{"ping", "1 000 1001 1 1111101 0x1 0x2 0x3 0x4", header{ws.OpPing, true, mask, 125, 6, false}, true, 0},
		{"pong", "1 000 1010 1 0000000 0x1 0x2 0x3 0x4", header{ws.OpPong, true, mask, 0, 6, false}, true, 0},
		{"the largest of 7 bits", "1 000 0010 1 1111101 0x1 0x2 0x3 0x4", header{ws.OpBinary, true, mask, 125, 6, false}, true, 0},
		{"the smallest of 16", "1 000 0010 1 1111110 0x00 0x7e 0x1 0x2 0x3 0x4", header{ws.OpBinary, true, mask, 126, 8, false}, true, 0},
		{"the largest of 16", "1 000 0010 1 1111110 0xff 0xff 0x1 0x2 0x3 0x4", header{ws.OpBinary, true, mask, 65535, 8, false}, true, 0},
		{"the smallest of 64", "1 000 0010 1 1111111 0x0 0x0 0x0 0x0 0x0 0x1 0x0 0x0 0x1 0x2 0x3 0x4", header{ws.OpBinary, true, mask, 65536, 14, false}, true, 0},
		{"the largest of 64", "1 000 0010 1 1111111 0x7f 0xff 0xff 0xff 0xff 0xff 0xff 0xff 0x1 0x2 0x3 0x4",
			header{ws.OpBinary, true, mask, 1<<63 - 1, 14, false}, true, 0},

		// Section 5.2: the minimal number of bytes MUST be used.
		{"125 in 16 bits", "1 000 0010 1 1111110 0x00 0x7d", header{}, false, bad},
		{"0 in 16 bits", "1 000 0010 1 1111110 0x00 0x00", header{}, false, bad},
		{"65535 in 64 bits", "1 000 0010 1 1111111 0x0 0x0 0x0 0x0 0x0 0x0 0xff 0xff", header{}, false, bad},
		{"0 in 64 bits", "1 000 0010 1 1111111 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0", header{}, false, bad},
		{"the most significant bit", "1 000 0010 1 1111111 0x80 0x0 0x0 0x0 0x0 0x1 0x0 0x0", header{}, false, bad},
		{"all bits", "1 000 0010 1 1111111 0xff 0xff 0xff 0xff 0xff 0xff 0xff 0xff", header{}, false, bad},

		{"RSV1 alone", "1 100 0001", header{}, false, bad},
		{"RSV2 alone", "1 010 0001", header{}, false, bad},
		{"RSV3 alone", "1 001 0001", header{}, false, bad},
		{"RSV1", "1 100 0001 1 0000101 0x1 0x2 0x3 0x4", header{}, false, bad},
		{"RSV2 of a control frame", "1 010 1001 1 0000000", header{}, false, bad},
		{"RSV3 of a continuation", "1 001 0000 1 0000000", header{}, false, bad},

		// Section 5.1: a client's frames are masked.
		{"no mask", "1 000 0001 0 0000101", header{}, false, bad},
		{"no mask, no payload", "1 000 1001 0 0000000", header{}, false, bad},

		// Section 5.5.
		{"a fragmented close", "0 000 1000 1 0000010", header{}, false, bad},
		{"a fragmented ping", "0 000 1001 1 0000000", header{}, false, bad},
		{"a fragmented pong", "0 000 1010 1 0000000", header{}, false, bad},
		{"a ping of 126", "1 000 1001 1 1111110", header{}, false, bad},
		{"a close of 16 bits", "1 000 1000 1 1111110", header{}, false, bad},
		{"a pong of 64 bits", "1 000 1010 1 1111111", header{}, false, bad},

		{"nothing", "", header{}, false, 0},
		{"one byte", "1 000 0001", header{}, false, 0},
		{"no mask yet", "1 000 0001 1 0000101 0x1 0x2 0x3", header{}, false, 0},
		{"half a length of 16", "1 000 0001 1 1111110 0x00", header{}, false, 0},
		{"half a length of 64", "1 000 0001 1 1111111 0x0 0x0 0x0 0x0", header{}, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := bits(tt.bits)
			h, ok, got := parseHeader(b, 0x70)
			if ok != tt.ok || got != tt.bad || ok && h != tt.want {
				t.Errorf("got %+v, %v, %v, want %+v, %v, %v", h, ok, got, tt.want, tt.ok, tt.bad)
			}
			if !ok {
				return
			}
			// What stands behind changes nothing, and with less it is incomplete.
			if h, ok, bad := parseHeader(append(slices.Clone(b), 0xff), 0x70); !ok || bad != 0 || h != tt.want {
				t.Errorf("with a byte more: %+v, %v, %v", h, ok, bad)
			}
			for i := range b {
				if _, ok, bad := parseHeader(b[:i:i], 0x70); ok || bad != 0 {
					t.Errorf("of %d bytes: %v, %v", i, ok, bad)
				}
			}
		})
	}
	for op := range ws.OpCode(16) {
		_, _, got := parseHeader([]byte{0x80 | byte(op)}, 0x70)
		if want := op.IsReserved(); (got == bad) != want {
			t.Errorf("opcode %d: %v", op, got)
		}
	}
}

// messageSize is the limit at the conns of the tables below.
const messageSize = 300

// streamCase is what a client sends, what the handler is told of it, and what
// the client reads: frames as "opcode:payload", the close frame's as its code.
type streamCase struct {
	section string // of RFC 6455
	name    string
	sent    []byte
	told    []string
	reads   []string
}

func stream(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

func closing(code uint16, text string) []byte {
	return masked(ws.OpClose, true, string([]byte{byte(code >> 8), byte(code)})+text)
}

var (
	long    = strings.Repeat("a", messageSize)
	hello   = masked(ws.OpText, true, "hello")
	invalid = []string{"closed:invalid_payload"}
	wrong   = []string{"closed:protocol_error"}
)

var streamCases = []streamCase{
	{"5.6", "a text", hello, []string{"text:hello"}, []string{"1:hello"}},
	{"5.6", "a binary", masked(ws.OpBinary, true, "\xff\x00"), []string{"binary:\xff\x00"}, []string{"2:\xff\x00"}},
	{"5.6", "an empty text", masked(ws.OpText, true, ""), []string{"text:"}, []string{"1:"}},
	{"5.6", "three messages", stream(hello, masked(ws.OpBinary, true, "b"), hello),
		[]string{"text:hello", "binary:b", "text:hello"}, []string{"1:hello", "2:b", "1:hello"}},
	{"5.2", "lengths of 7 and 16 bits", stream(masked(ws.OpText, true, long[:125]), masked(ws.OpText, true, long[:126])),
		[]string{"text:" + long[:125], "text:" + long[:126]}, []string{"1:" + long[:125], "1:" + long[:126]}},
	{"5.4", "two fragments", stream(masked(ws.OpText, false, "hel"), masked(ws.OpContinuation, true, "lo")),
		[]string{"text:hello"}, []string{"1:hello"}},
	{"5.4", "empty fragments", stream(masked(ws.OpBinary, false, ""), masked(ws.OpContinuation, false, ""),
		masked(ws.OpContinuation, false, "b"), masked(ws.OpContinuation, true, "")), []string{"binary:b"}, []string{"2:b"}},
	{"5.4", "control frames between fragments", stream(masked(ws.OpText, false, "hel"), masked(ws.OpPing, true, "p"),
		masked(ws.OpPong, true, "q"), masked(ws.OpContinuation, true, "lo")), []string{"text:hello"}, []string{"10:p", "1:hello"}},
	{"5.4", "a rune across fragments", stream(masked(ws.OpText, false, "\xe2\x82"), masked(ws.OpContinuation, true, "\xac")),
		[]string{"text:€"}, []string{"1:€"}},
	{"5.4", "a continuation of nothing", masked(ws.OpContinuation, true, "x"), wrong, []string{"8:1002"}},
	{"5.4", "a continuation behind the end", stream(hello, masked(ws.OpContinuation, false, "x")),
		append([]string{"text:hello"}, wrong...), []string{"1:hello", "8:1002"}},
	{"5.4", "a message within a message", stream(masked(ws.OpText, false, "x"), hello), wrong, []string{"8:1002"}},
	{"5.4", "a close within a message", stream(masked(ws.OpText, false, "x"), closing(1000, "")),
		[]string{"closed:peer_closed"}, []string{"8:1000"}},
	{"5.5.2", "a ping", masked(ws.OpPing, true, "p"), nil, []string{"10:p"}},
	{"5.5.2", "a ping without payload", masked(ws.OpPing, true, ""), nil, []string{"10:"}},
	{"5.5.2", "the largest ping", masked(ws.OpPing, true, long[:125]), nil, []string{"10:" + long[:125]}},
	{"5.5.2", "a ping that is no UTF-8", masked(ws.OpPing, true, "\xff"), nil, []string{"10:\xff"}},
	{"5.5.3", "a pong unasked", masked(ws.OpPong, true, "p"), nil, nil},
	{"5.5.1", "a close without a code", masked(ws.OpClose, true, ""), []string{"closed:peer_closed"}, []string{"8:0"}},
	{"5.5.1", "a close", closing(1000, "bye"), []string{"closed:peer_closed"}, []string{"8:1000"}},
	{"5.5.1", "nothing counts behind a close", stream(closing(1000, ""), hello, masked(ws.OpPing, true, "")),
		[]string{"closed:peer_closed"}, []string{"8:1000"}},
	{"5.5.1", "the largest close", closing(4999, long[:123]), []string{"closed:peer_closed"}, []string{"8:4999"}},
	{"5.5.1", "half a code", masked(ws.OpClose, true, "\x03"), wrong, []string{"8:1002"}},
	{"7.4.1", "code 0", closing(0, ""), wrong, []string{"8:1002"}},
	{"7.4.1", "code 999", closing(999, ""), wrong, []string{"8:1002"}},
	{"7.4.1", "code 1004", closing(1004, ""), wrong, []string{"8:1002"}},
	{"7.4.1", "code 1005", closing(1005, ""), wrong, []string{"8:1002"}},
	{"7.4.1", "code 1006", closing(1006, ""), wrong, []string{"8:1002"}},
	{"7.4.1", "code 1011", closing(1011, ""), []string{"closed:peer_closed"}, []string{"8:1011"}},
	{"IANA", "code 1012", closing(1012, ""), []string{"closed:peer_closed"}, []string{"8:1012"}},
	{"IANA", "code 1014", closing(1014, ""), []string{"closed:peer_closed"}, []string{"8:1014"}},
	{"7.4.1", "code 1015", closing(1015, ""), wrong, []string{"8:1002"}},
	{"7.4.2", "code 1016", closing(1016, ""), wrong, []string{"8:1002"}},
	{"7.4.2", "code 2999", closing(2999, ""), wrong, []string{"8:1002"}},
	{"7.4.2", "code 3000", closing(3000, ""), []string{"closed:peer_closed"}, []string{"8:3000"}},
	{"7.4.2", "code 5000", closing(5000, ""), wrong, []string{"8:1002"}},
	{"7.4.2", "code 65535", closing(65535, ""), wrong, []string{"8:1002"}},
	{"8.1", "a close whose text is no UTF-8", closing(1000, "\xff"), invalid, []string{"8:1007"}},
	{"8.1", "a text that is no UTF-8", stream(masked(ws.OpText, true, "a\xffb"), hello), invalid, []string{"8:1007"}},
	{"8.1", "a surrogate", masked(ws.OpText, true, "\xed\xa0\x80"), invalid, []string{"8:1007"}},
	{"8.1", "an overlong form", masked(ws.OpText, true, "\xc0\xaf"), invalid, []string{"8:1007"}},
	{"8.1", "half a rune at the end", stream(masked(ws.OpText, false, "a"), masked(ws.OpContinuation, true, "\xe2\x82")),
		invalid, []string{"8:1007"}},
	{"5.1", "no mask", []byte("\x81\x05hello"), wrong, []string{"8:1002"}},
	{"5.2", "an RSV bit", []byte("\xc1\x85\x00\x00\x00\x00hello"), wrong, []string{"8:1002"}},
	{"5.2", "a reserved opcode", []byte("\x83\x85\x00\x00\x00\x00hello"), wrong, []string{"8:1002"}},
	{"5.2", "a reserved control opcode", []byte("\x8b\x80\x00\x00\x00\x00"), wrong, []string{"8:1002"}},
	{"5.5", "a fragmented ping", masked(ws.OpPing, false, ""), wrong, []string{"8:1002"}},
	{"5.5", "a ping of 126", masked(ws.OpPing, true, long[:126]), wrong, []string{"8:1002"}},
	{"5.2", "a length in too many bits", stream(hello, []byte("\x81\xfe\x00\x05\x00\x00\x00\x00hello")),
		append([]string{"text:hello"}, wrong...), []string{"1:hello", "8:1002"}},
	{"7.4.1", "as large as allowed", masked(ws.OpText, true, long), []string{"text:" + long}, []string{"1:" + long}},
	{"7.4.1", "a byte larger", masked(ws.OpText, true, long+"a"), []string{"closed:message_too_big"}, []string{"8:1009"}},
	{"7.4.1", "a byte larger, by its header alone", masked(ws.OpText, true, long+"a")[:4],
		[]string{"closed:message_too_big"}, []string{"8:1009"}},
	{"7.4.1", "larger than anything", []byte("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff"),
		[]string{"closed:message_too_big"}, []string{"8:1009"}},
	{"7.4.1", "fragments as large as allowed", stream(masked(ws.OpText, false, long[:200]), masked(ws.OpPing, true, long[:125]),
		masked(ws.OpContinuation, true, long[:100])), []string{"text:" + long}, []string{"10:" + long[:125], "1:" + long}},
	{"7.4.1", "fragments that are a byte larger", stream(masked(ws.OpText, false, long[:200]), masked(ws.OpContinuation, true, long[:101])),
		[]string{"closed:message_too_big"}, []string{"8:1009"}},
	{"7.4.1", "fragments without end", stream(masked(ws.OpText, false, long), masked(ws.OpContinuation, false, ""),
		masked(ws.OpContinuation, false, "a")), []string{"closed:message_too_big"}, []string{"8:1009"}},
	{"5.2", "incomplete", hello[:len(hello)-1], nil, nil},
	{"5.2", "incomplete behind a whole one", stream(hello, hello[:3]), []string{"text:hello"}, []string{"1:hello"}},
}

// streamRig has an echoing endpoint that takes messageSize.
func streamRig(t testing.TB) *rig {
	r := newRig(t, func(o *Options) { o.Listeners[0].Endpoints[0].MessageSize = messageSize })
	r.handler.message = func(s *session.Session, data []byte, binary bool) { s.WriteKind(data, binary) }
	return r
}

// exchange feeds the pieces to a new WebSocket: what its handler is told, what
// the peer reads, and whether the server said its last word.
func (r *rig) exchange(pieces [][]byte) (told []string, read []byte, over bool) {
	r.t.Helper()
	p := r.upgraded()
	defer p.end()
	r.handler.log = nil
	read = p.feedAll(pieces)
	told = r.handler.log
	if p.c.mode == modeWebSocket {
		r.held(p.c)
	} else if p.c.in != nil {
		r.t.Error("a closed conn holds its input")
	}
	return told, read, p.eof
}

// held checks that a conn holds no more than it must: an inbound only while
// something is incomplete, and no outbound with a peer that reads.
func (r *rig) held(c *conn) {
	r.t.Helper()
	if c.out != nil {
		r.t.Error("an outbound is held though all is sent")
	}
	if in := c.in; in != nil && in.raw == nil && !in.open {
		r.t.Error("an inbound is held though nothing is incomplete")
	}
}

func TestStream(t *testing.T) {
	r := streamRig(t)
	for _, tt := range streamCases {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			cuts(tt.sent, func(how string, pieces [][]byte) {
				told, read, over := r.exchange(pieces)
				got, rest := frames(t, read)
				var reads []string
				for _, f := range got {
					if code, _ := closeOf(f); code >= 0 {
						reads = append(reads, fmt.Sprintf("8:%d", code))
					} else {
						reads = append(reads, fmt.Sprintf("%d:%s", f.Header.OpCode, f.Payload))
					}
				}
				if closed := len(tt.told) > 0 && strings.HasPrefix(tt.told[len(tt.told)-1], "closed:"); closed != over {
					t.Fatalf("%s: the end: %v, want %v (section %s)", how, over, closed, tt.section)
				}
				if !slices.Equal(told, tt.told) || !slices.Equal(reads, tt.reads) || len(rest) > 0 {
					t.Fatalf("%s: told %q, read %q, want %q and %q (section %s)", how, told, reads, tt.told, tt.reads, tt.section)
				}
			})
		})
	}
	r.t = t
}

// What is announced costs nothing until it comes, and what is over costs
// nothing any more.
func TestInputMemory(t *testing.T) {
	r := newRig(t, nil)
	p := r.upgraded()
	p.feed([]byte("\x82\xff\x00\x00\x00\x00\x01\x00\x00\x00\x01\x02\x03\x04few")) // 16 MiB
	if p.c.in == nil || len(p.c.in.raw.B) != 17 || cap(p.c.in.raw.B) > pooledMax {
		t.Fatalf("an announced frame holds %d bytes", cap(p.c.in.raw.B))
	}
	chunk := make([]byte, 64<<10)
	for sent := 3; sent < 16<<20; {
		n := min(len(chunk), 16<<20-sent)
		p.feed(chunk[:n])
		sent += n
		if p.c.in != nil && cap(p.c.in.raw.B) > 2*(sent+64<<10) {
			t.Fatalf("%d bytes held for %d", cap(p.c.in.raw.B), sent)
		}
	}
	if p.c.in != nil {
		t.Error("the buffer is held behind the message")
	}
	if got := r.handler.log[len(r.handler.log)-1]; len(got) != len("binary:")+16<<20 {
		t.Errorf("a message of %d bytes", len(got))
	}
	if b := inBuffers.Get(); cap(b.B) > pooledMax {
		t.Errorf("a buffer of %d bytes came back to the pool", cap(b.B))
	}
	// A fragment holds its message, one that ends lets go of it.
	p.feed(masked(ws.OpText, false, "a"))
	if p.c.in == nil || p.c.in.raw != nil || !p.c.in.open {
		t.Fatalf("a fragment left %+v", p.c.in)
	}
	p.feed(masked(ws.OpContinuation, true, "b"))
	if p.c.in != nil {
		t.Error("an inbound is held behind the last fragment")
	}
}

// A handler may end the session from within a message, or panic: what else was
// sent together with it goes nowhere.
func TestMessageEnds(t *testing.T) {
	for name, end := range map[string]func(*rig, *session.Session){
		"closes": func(_ *rig, s *session.Session) { s.Close(session.ReasonForced) },
		"panics": func(*rig, *session.Session) { panic("asked for") },
		"drops":  func(r *rig, s *session.Session) { r.loop.find(s.ID()).drop() },
	} {
		t.Run(name, func(t *testing.T) {
			fragments := stream(masked(ws.OpText, false, "h"), masked(ws.OpContinuation, true, "i"), hello, hello)
			for _, sent := range [][]byte{stream(hello, hello, hello), fragments} {
				cuts(sent, func(how string, pieces [][]byte) {
					r := streamRig(t)
					r.handler.message = func(s *session.Session, _ []byte, _ bool) { end(r, s) }
					told, read, _ := r.exchange(pieces)
					if len(told) != 2 || !strings.HasPrefix(told[1], "closed:") {
						t.Fatalf("%s: told %q", how, told)
					}
					if got, _ := frames(t, read); name != "drops" && (len(got) != 1 || got[0].Header.OpCode != ws.OpClose) {
						t.Fatalf("%s: read %v", how, got)
					}
					r.end()
				})
			}
		})
	}
}
