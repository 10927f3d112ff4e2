package perch_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
)

// reply is what a case expects next from the server.
type reply struct {
	opcode  byte
	payload []byte
	codes   []uint16 // of a close frame: one of them
}

func gotText(s string) reply           { return reply{opcode: testkit.OpText, payload: []byte(s)} }
func gotBinary(p []byte) reply         { return reply{opcode: testkit.OpBinary, payload: p} }
func gotPong(s string) reply           { return reply{opcode: testkit.OpPong, payload: []byte(s)} }
func gotClose(codes ...uint16) reply   { return reply{opcode: testkit.OpClose, codes: codes} }
func replies(r ...reply) []reply       { return r }
func frames(f ...testkit.Frame) []byte { return testkit.Wire(f...) }

// wireCase sends bytes behind the handshake and says what must come back. A
// case that does not end with a close frame ends with a ping of the test's own,
// which shows that the connection is still good.
type wireCase struct {
	section string
	name    string
	send    []byte
	want    []reply
}

// Sizes below which a case is also sent byte by byte, and cut in two at every
// place; above it is cut around the first header and at the end.
const (
	eachUpTo = 150
	cutsUpTo = 64
)

func (c wireCase) run(t *testing.T, addr, path string) {
	t.Run(c.section+"/"+c.name, func(t *testing.T) {
		t.Parallel()
		c.attempt(t, addr, path, "whole", true, func(w *testkit.Conn) error { return w.Send(c.send) })
		if len(c.send) <= eachUpTo && !t.Failed() {
			c.attempt(t, addr, path, "byte by byte", false, func(w *testkit.Conn) error { return w.SendEach(c.send) })
		}
		for _, at := range c.cuts() {
			if t.Failed() {
				return // one failure says it; every cut would repeat it
			}
			c.attempt(t, addr, path, fmt.Sprintf("cut at %d", at), false, func(w *testkit.Conn) error {
				return w.SendCut(c.send, at)
			})
		}
	})
}

func (c wireCase) cuts() []int {
	var at []int
	for i := 1; i < len(c.send); i++ {
		if len(c.send) <= cutsUpTo || i <= 14 || i == len(c.send)-1 {
			at = append(at, i)
		}
	}
	return at
}

func (c wireCase) attempt(t *testing.T, addr, path, how string, toEnd bool, send func(*testkit.Conn) error) {
	t.Helper()
	w, err := testkit.Open(addr, path)
	if err != nil {
		t.Fatalf("%s: %v", how, err)
	}
	defer w.Reset()
	sent := make(chan error, 1)
	go func() {
		err := send(w)
		if c.open() && err == nil {
			err = w.SendFrames(testkit.Ping("still there"))
		}
		sent <- err
	}()
	want := c.want
	if c.open() {
		want = append(slices.Clone(want), gotPong("still there"))
	}
	for i, r := range want {
		if err := r.check(w); err != nil {
			t.Errorf("%s: answer %d: %v", how, i+1, err)
			return
		}
	}
	// A server that fails the connection early need not take the rest.
	if err := <-sent; err != nil && c.open() {
		t.Errorf("%s: send: %v", how, err)
	}
	if !c.open() && toEnd {
		_ = w.CloseWrite()
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Errorf("%s: connection not ended behind the close frame: %v", how, err)
		}
	}
}

func (c wireCase) open() bool {
	return len(c.want) == 0 || c.want[len(c.want)-1].opcode != testkit.OpClose
}

func (r reply) check(w *testkit.Conn) error {
	f, err := w.Frame()
	if err != nil {
		return fmt.Errorf("want %s: %w", r, err)
	}
	// The server may fragment what it sends.
	for payload := f.Payload; !f.Fin; {
		more, err := w.Frame()
		if err != nil {
			return fmt.Errorf("want %s: %w", r, err)
		}
		payload = append(payload, more.Payload...)
		f.Payload, f.Fin = payload, more.Fin
	}
	switch {
	case f.Opcode != r.opcode:
		return fmt.Errorf("got %s, want %s", f, r)
	case r.opcode == testkit.OpClose:
		if !slices.Contains(r.codes, f.CloseCode()) {
			return fmt.Errorf("got %s, want %s", f, r)
		}
	case !bytes.Equal(f.Payload, r.payload):
		return fmt.Errorf("got %s, want %s", f, r)
	}
	return nil
}

func (r reply) String() string {
	if r.opcode == testkit.OpClose {
		return fmt.Sprintf("close %v", r.codes)
	}
	return testkit.Frame{Fin: true, Opcode: r.opcode, Payload: r.payload}.String()
}

func TestRFC6455Frames(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo = true })
	t.Run("cases", func(t *testing.T) {
		for _, c := range slices.Concat(lengthCases(), fragmentCases(), controlCases(), violationCases(), textCases(), closeCases()) {
			c.run(t, s.public, "/echo")
		}
	})
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

// lengthCases: RFC 6455, section 5.2, "Payload length", and 5.3, masking.
func lengthCases() []wireCase {
	var cs []wireCase
	for _, n := range []int{0, 1, 2, 3, 4, 5, 7, 8, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, 1 << 20} {
		cs = append(cs,
			wireCase{"5.2", fmt.Sprintf("binary of %d", n), frames(testkit.Binary(pattern(n))), replies(gotBinary(pattern(n)))},
			wireCase{"5.2", fmt.Sprintf("text of %d", n), frames(testkit.Text(strings.Repeat("t", n))), replies(gotText(strings.Repeat("t", n)))})
	}
	for _, c := range []struct {
		n    int
		form testkit.LengthForm
	}{{0, testkit.Length16}, {125, testkit.Length16}, {0, testkit.Length64}, {125, testkit.Length64}, {126, testkit.Length64}, {65535, testkit.Length64}} {
		cs = append(cs, wireCase{"5.2", fmt.Sprintf("length %d not minimal, form %d", c.n, c.form),
			frames(testkit.Binary(pattern(c.n)).Length(c.form)), replies(gotClose(1002))})
	}
	cs = append(cs,
		wireCase{"5.2", "64-bit length with the top bit set", frames(testkit.Binary(nil).Length(testkit.Length64).Declare(1 << 63)), replies(gotClose(1002))},
		wireCase{"5.2", "64-bit length of all ones", frames(testkit.Binary(nil).Length(testkit.Length64).Declare(1<<64 - 1)), replies(gotClose(1002))},
		wireCase{"5.2", "64-bit length just below the top bit", frames(testkit.Binary(nil).Length(testkit.Length64).Declare(1<<63 - 1)), replies(gotClose(1009))},
		wireCase{"5.2", "several messages in one segment",
			frames(testkit.Text("one"), testkit.Binary([]byte{2}), testkit.Text(""), testkit.Text("four")),
			replies(gotText("one"), gotBinary([]byte{2}), gotText(""), gotText("four"))})
	zero, other := testkit.Binary(pattern(9)), testkit.Binary(pattern(9))
	zero.Mask, other.Mask = [4]byte{}, [4]byte{0xff, 0, 0xff, 1}
	return append(cs,
		wireCase{"5.3", "mask of zeros", frames(zero), replies(gotBinary(pattern(9)))},
		wireCase{"5.3", "another mask in each frame", frames(testkit.Text("a").More(), func() testkit.Frame {
			f := testkit.Continuation("bcdef")
			f.Mask = [4]byte{9, 8, 7, 6}
			return f
		}(), other), replies(gotText("abcdef"), gotBinary(pattern(9)))})
}

// fragmentCases: section 5.4.
func fragmentCases() []wireCase {
	var many []testkit.Frame
	long := strings.Repeat("0123456789", 20)
	many = append(many, testkit.Text(long[:1]).More())
	for i := 1; i < len(long)-1; i++ {
		many = append(many, testkit.Continuation(long[i:i+1]).More())
	}
	many = append(many, testkit.Continuation(long[len(long)-1:]))
	return []wireCase{
		{"5.4", "two fragments", frames(testkit.Text("Hel").More(), testkit.Continuation("lo")), replies(gotText("Hello"))},
		{"5.4", "binary in two fragments", frames(testkit.Binary([]byte{1}).More(), testkit.Continuation("\x02")), replies(gotBinary([]byte{1, 2}))},
		{"5.4", "one byte each", frames(many...), replies(gotText(long))},
		{"5.4", "empty fragments around", frames(testkit.Text("").More(), testkit.Continuation("").More(), testkit.Continuation("x").More(), testkit.Continuation("")), replies(gotText("x"))},
		{"5.4", "all fragments empty", frames(testkit.Text("").More(), testkit.Continuation("")), replies(gotText(""))},
		{"5.4", "ping between the fragments", frames(testkit.Text("a").More(), testkit.Ping("p"), testkit.Continuation("b")), replies(gotPong("p"), gotText("ab"))},
		{"5.4", "many control frames between the fragments",
			frames(testkit.Text("a").More(), testkit.Ping("1"), testkit.Pong("x"), testkit.Ping("2"), testkit.Continuation("b").More(), testkit.Ping("3"), testkit.Continuation("c")),
			replies(gotPong("1"), gotPong("2"), gotPong("3"), gotText("abc"))},
		{"5.4", "close between the fragments", frames(testkit.Text("a").More(), testkit.Close(1000, "")), replies(gotClose(1000))},
		{"5.4", "large fragments",
			frames(testkit.Binary(pattern(70000)).More(), testkit.Ping("p"), testkit.Client(testkit.OpContinuation, pattern(70000))),
			replies(gotPong("p"), gotBinary(append(pattern(70000), pattern(70000)...)))},
		{"5.4", "continuation without a start", frames(testkit.Continuation("x")), replies(gotClose(1002))},
		{"5.4", "unfinished continuation without a start", frames(testkit.Continuation("x").More()), replies(gotClose(1002))},
		{"5.4", "continuation behind a whole message", frames(testkit.Text("a"), testkit.Continuation("x")), replies(gotText("a"), gotClose(1002))},
		{"5.4", "continuation behind a fragmented message",
			frames(testkit.Text("a").More(), testkit.Continuation("b"), testkit.Continuation("x")), replies(gotText("ab"), gotClose(1002))},
		{"5.4", "text inside a fragmented message", frames(testkit.Text("a").More(), testkit.Text("b")), replies(gotClose(1002))},
		{"5.4", "binary inside a fragmented text", frames(testkit.Text("a").More(), testkit.Binary([]byte("b")).More()), replies(gotClose(1002))},
	}
}

// controlCases: section 5.5, 5.5.2 and 5.5.3.
func controlCases() []wireCase {
	p125 := strings.Repeat("p", 125)
	cs := []wireCase{
		{"5.5.2", "ping", frames(testkit.Ping("hello")), replies(gotPong("hello"))},
		{"5.5.2", "empty ping", frames(testkit.Ping("")), replies(gotPong(""))},
		{"5.5.2", "ping of 125", frames(testkit.Ping(p125)), replies(gotPong(p125))},
		{"5.5.2", "ping of bytes that are no text", frames(testkit.Ping("\xff\x00\xfe")), replies(gotPong("\xff\x00\xfe"))},
		{"5.5.2", "ten pings at once", frames(slices.Repeat([]testkit.Frame{testkit.Ping("n")}, 10)...), slices.Repeat(replies(gotPong("n")), 10)},
		{"5.5.3", "unsolicited pong", frames(testkit.Pong("x"), testkit.Text("a")), replies(gotText("a"))},
		{"5.5.3", "unsolicited empty pong", frames(testkit.Pong(""), testkit.Text("a")), replies(gotText("a"))},
	}
	for name, f := range map[string]testkit.Frame{
		"ping": testkit.Ping("x"), "pong": testkit.Pong("x"), "close": testkit.Close(1000, ""),
	} {
		cs = append(cs, wireCase{"5.5", "fragmented " + name, frames(f.More()), replies(gotClose(1002))})
	}
	for _, op := range []byte{testkit.OpPing, testkit.OpPong, testkit.OpClose} {
		payload := append([]byte{0x03, 0xe8}, strings.Repeat("x", 124)...)
		cs = append(cs, wireCase{"5.5", fmt.Sprintf("control frame %#x of 126", op), frames(testkit.Client(op, payload)), replies(gotClose(1002))},
			wireCase{"5.5", fmt.Sprintf("control frame %#x with a 64-bit length", op),
				frames(testkit.Client(op, nil).Length(testkit.Length64).Declare(70000)), replies(gotClose(1002))})
	}
	return cs
}

// violationCases: section 5.1 (masking) and 5.2 (reserved bits and opcodes).
func violationCases() []wireCase {
	cs := []wireCase{
		{"5.1", "unmasked text", frames(testkit.Text("a").Unmasked()), replies(gotClose(1002))},
		{"5.1", "unmasked empty binary", frames(testkit.Binary(nil).Unmasked()), replies(gotClose(1002))},
		{"5.1", "unmasked ping", frames(testkit.Ping("").Unmasked()), replies(gotClose(1002))},
		{"5.1", "unmasked close", frames(testkit.Close(1000, "").Unmasked()), replies(gotClose(1002))},
		{"5.1", "unmasked behind a good one", frames(testkit.Text("a"), testkit.Text("b").Unmasked()), replies(gotText("a"), gotClose(1002))},
		{"5.2", "RSV1 on a continuation", frames(testkit.Text("a").More(), testkit.Continuation("b").Reserved(4)), replies(gotClose(1002))},
		{"5.2", "RSV1 on a ping", frames(testkit.Ping("a").Reserved(4)), replies(gotClose(1002))},
		{"5.2", "RSV3 on a close", frames(testkit.Close(1000, "").Reserved(1)), replies(gotClose(1002))},
	}
	for rsv := byte(1); rsv < 8; rsv++ {
		cs = append(cs, wireCase{"5.2", fmt.Sprintf("reserved bits %03b", rsv), frames(testkit.Text("a").Reserved(rsv)), replies(gotClose(1002))})
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf} {
		cs = append(cs, wireCase{"5.2", fmt.Sprintf("reserved opcode %#x", op), frames(testkit.Text("ok"), testkit.Client(op, []byte("x"))),
			replies(gotText("ok"), gotClose(1002))})
	}
	return append(cs, wireCase{"5.2", "reserved opcode inside a fragmented message",
		frames(testkit.Text("a").More(), testkit.Client(3, nil)), replies(gotClose(1002))})
}

// textCases: section 8.1, and RFC 3629.
func textCases() []wireCase {
	var cs []wireCase
	for name, s := range map[string]string{
		"greek": "κόσμε", "nul": "\x00", "last of one byte": "\x7f", "first of two": "\u0080", "last of two": "\u07ff",
		"first of three": "\u0800", "below the surrogates": "\ud7ff", "above the surrogates": "\ue000",
		"replacement": "\ufffd", "noncharacter": "\uffff", "first of four": "\U00010000", "last of all": "\U0010ffff",
		"byte order mark": "\ufeffx", "mixed": "a£€𐍈z",
	} {
		cs = append(cs, wireCase{"8.1", "valid: " + name, frames(testkit.Text(s)), replies(gotText(s))})
		if len(s) > 1 {
			fs := []testkit.Frame{testkit.Text(s[:1]).More()}
			for i := 1; i < len(s); i++ {
				fs = append(fs, testkit.Continuation(s[i:i+1]).More())
			}
			cs = append(cs, wireCase{"8.1", "valid, cut into fragments: " + name, frames(append(fs, testkit.Continuation(""))...), replies(gotText(s))})
		}
	}
	for name, s := range map[string]string{
		"lone continuation": "\x80", "two of them": "\xbf\xbf", "truncated two": "a\xc3", "truncated three": "\xe2\x82",
		"truncated four": "\xf0\x9f\x98", "overlong slash of two": "\xc0\xaf", "overlong of three": "\xe0\x80\xaf",
		"overlong of four": "\xf0\x80\x80\xaf", "first surrogate": "\xed\xa0\x80", "last surrogate": "\xed\xbf\xbf",
		"surrogate pair": "\xed\xa0\x80\xed\xb0\x80", "above U+10FFFF": "\xf4\x90\x80\x80", "five bytes": "\xf8\x88\x80\x80\x80",
		"fe": "\xfe", "ff": "\xff", "bad in the middle": "κόσμε\xed\xa0\x80edited", "bad at the end": strings.Repeat("x", 100) + "\xff",
	} {
		cs = append(cs,
			wireCase{"8.1", "invalid: " + name, frames(testkit.Text(s)), replies(gotClose(1007))},
			wireCase{"8.1", "invalid, in the second fragment: " + name, frames(testkit.Text("ok").More(), testkit.Continuation(s)), replies(gotClose(1007))},
			wireCase{"8.1", "invalid, as a close reason: " + name, frames(testkit.Close(1000, s)), replies(gotClose(1007))},
			wireCase{"5.6", "no text, in binary: " + name, frames(testkit.Binary([]byte(s))), replies(gotBinary([]byte(s)))})
	}
	return append(cs,
		wireCase{"8.1", "sequence begun in one message, ended in the next",
			frames(testkit.Text("\xe2\x82"), testkit.Text("\xac")), replies(gotClose(1007))},
		wireCase{"8.1", "ping with broken text between fragments",
			frames(testkit.Text("\xe2").More(), testkit.Ping("\xff"), testkit.Continuation("\x82\xac")), replies(gotPong("\xff"), gotText("€"))})
}

// closeCases: section 5.5.1, 7.1.5 to 7.1.6 and 7.4, and IANA's registry for
// 1012 to 1014.
func closeCases() []wireCase {
	cs := []wireCase{
		{"5.5.1", "empty close", frames(testkit.Client(testkit.OpClose, nil)), replies(gotClose(1005, 1000))},
		{"5.5.1", "close of one byte", frames(testkit.Client(testkit.OpClose, []byte{3})), replies(gotClose(1002))},
		{"5.5.1", "close with a reason", frames(testkit.Close(1000, "bye")), replies(gotClose(1000))},
		{"5.5.1", "close with the longest reason", frames(testkit.Close(1000, strings.Repeat("r", 123))), replies(gotClose(1000))},
		{"5.5.1", "close with a reason in UTF-8", frames(testkit.Close(1000, "κόσμε")), replies(gotClose(1000))},
		{"5.5.1", "data behind the close", frames(testkit.Close(1000, ""), testkit.Text("late")), replies(gotClose(1000))},
		{"5.5.1", "ping behind the close", frames(testkit.Close(1001, ""), testkit.Ping("late")), replies(gotClose(1001))},
		{"5.5.1", "second close", frames(testkit.Close(1000, ""), testkit.Close(1001, "")), replies(gotClose(1000))},
		{"5.5.1", "garbage behind the close", append(frames(testkit.Close(1000, "")), "\xff\xff\xff\xff garbage"...), replies(gotClose(1000))},
		{"5.5.1", "close behind messages", frames(testkit.Text("a"), testkit.Text("b"), testkit.Close(1000, "")), replies(gotText("a"), gotText("b"), gotClose(1000))},
	}
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3500, 3999, 4000, 4999} {
		cs = append(cs, wireCase{"7.4", fmt.Sprintf("code %d", code), frames(testkit.Close(code, "")), replies(gotClose(code))})
	}
	for _, code := range []uint16{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		cs = append(cs, wireCase{"7.4", fmt.Sprintf("code %d, not for the wire", code), frames(testkit.Close(code, "")), replies(gotClose(1002))})
	}
	return cs
}

// TestRFC6455Limits: section 10.4. The limit is known at the header, so the
// answer comes before the payload.
func TestRFC6455Limits(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo, o.Insecure = true, true })
	const protocol = "/connection/websocket"
	tooBig := func(n uint64) testkit.Frame { return testkit.Text("").Declare(n) }
	for _, c := range []struct {
		name, path string
		send       []byte
		want       []reply
	}{
		{"protocol, one byte above", protocol, frames(tooBig(64<<10 + 1).Length(testkit.Length64)), replies(gotClose(1009))},
		{"protocol, far above", protocol, frames(tooBig(1 << 40).Length(testkit.Length64)), replies(gotClose(1009))},
		{"protocol, above in fragments", protocol,
			frames(testkit.Client(testkit.OpText, bytes.Repeat([]byte(" "), 64<<10)).More(), testkit.Continuation("").Declare(1)), replies(gotClose(1009))},
		{"protocol, at the limit but no command", protocol,
			frames(testkit.Client(testkit.OpText, bytes.Repeat([]byte("x"), 64<<10))), replies(gotClose(3501))},
		{"echo, above 16 MiB", "/echo", frames(tooBig(16<<20 + 1).Length(testkit.Length64)), replies(gotClose(1009))},
	} {
		t.Run(c.name, func(t *testing.T) {
			wireCase{"10.4", c.name, c.send, c.want}.attempt(t, s.public, c.path, "whole", true, func(w *testkit.Conn) error {
				return w.Send(c.send)
			})
		})
	}
	t.Run("echo of 16 MiB", func(t *testing.T) {
		p := pattern(16 << 20)
		c := wireCase{"10.4", "", frames(testkit.Binary(p)), replies(gotBinary(p))}
		c.attempt(t, s.public, "/echo", "whole", true, func(w *testkit.Conn) error { return w.Send(c.send) })
	})
	t.Run("close frame arrives although the payload is sent on", func(t *testing.T) {
		w, err := testkit.Open(s.public, protocol)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Reset()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			// As far as it is taken: the server may end the connection in between.
			_ = w.Send(frames(testkit.Binary(make([]byte, 256<<10))))
		}()
		code, _, err := w.Closed()
		if err != nil || code != 1009 {
			t.Errorf("got close %d, %v, want 1009", code, err)
		}
		w.Reset()
		<-sent
	})
}

// TestRFC6455Ends: section 7.1.1 and what TCP adds to it.
func TestRFC6455Ends(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo = true })
	open := func(t *testing.T) *testkit.Conn {
		t.Helper()
		w, err := testkit.Open(s.public, "/echo")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Reset() })
		return w
	}
	t.Run("a peer that never answers the close is dropped", func(t *testing.T) {
		w := open(t)
		if err := w.SendFrames(testkit.Text("a").Unmasked()); err != nil {
			t.Fatal(err)
		}
		if code, _, err := w.Closed(); err != nil || code != 1002 {
			t.Fatalf("got close %d, %v", code, err)
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("the close handshake of the client ends the connection", func(t *testing.T) {
		w := open(t)
		if err := w.SendFrames(testkit.Close(1000, "")); err != nil {
			t.Fatal(err)
		}
		if code, _, err := w.Closed(); err != nil || code != 1000 {
			t.Fatalf("got close %d, %v", code, err)
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("half-closed in the middle of a frame", func(t *testing.T) {
		w := open(t)
		if err := w.Send(frames(testkit.Text("hello"))[:5]); err != nil {
			t.Fatal(err)
		}
		if err := w.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("the answer of a peer that shuts its side at once", func(t *testing.T) {
		w := open(t)
		if err := w.SendFrames(testkit.Text("a"), testkit.Close(1000, "")); err != nil {
			t.Fatal(err)
		}
		if err := w.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for _, r := range replies(gotText("a"), gotClose(1000)) {
			if err := r.check(w); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("reset in the middle of a frame", func(t *testing.T) {
		w := open(t)
		if err := w.Send(frames(testkit.Text("hello"))[:5]); err != nil {
			t.Fatal(err)
		}
		if err := w.Reset(); err != nil {
			t.Fatal(err)
		}
		// The server is still there for others.
		other := open(t)
		if err := other.SendFrames(testkit.Text("x")); err != nil {
			t.Fatal(err)
		}
		if err := gotText("x").check(other); err != nil {
			t.Error(err)
		}
	})
	t.Run("an idle connection stays open", func(t *testing.T) {
		w := open(t)
		if err := w.Quiet(300 * time.Millisecond); err != nil {
			t.Error(err)
		}
	})
}

// TestRFC6455Splits sends several messages with every pair of cuts, so that
// each piece begins and ends anywhere in a frame.
func TestRFC6455Splits(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo = true })
	p := frames(testkit.Text("é").More(), testkit.Ping("p"), testkit.Continuation("ü"), testkit.Binary([]byte{1, 2}))
	want := replies(gotPong("p"), gotText("éü"), gotBinary([]byte{1, 2}))
	w, err := testkit.Open(s.public, "/echo")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	for i := 1; i < len(p); i++ {
		for j := i + 1; j < len(p); j++ {
			if err := w.SendCut(p, i, j); err != nil {
				t.Fatalf("cut at %d and %d: %v", i, j, err)
			}
			for _, r := range want {
				if err := r.check(w); err != nil {
					t.Fatalf("cut at %d and %d: %v", i, j, err)
				}
			}
		}
	}
	var ce *testkit.CloseError
	if err := w.SendFrames(testkit.Close(1000, "")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Message(); !errors.As(err, &ce) || ce.Code != 1000 {
		t.Errorf("got %v, want a close frame", err)
	}
}
