package perch_test

import (
	"fmt"
	"slices"
	"strings"

	"perch/internal/testkit"
)

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	return p
}

// messageCases: section 5.6, and 5.3, masking.
func messageCases(d dialect) []wireCase {
	cs := []wireCase{
		{"5.6", "a message", frames(d.message("hello")), replies(d.answer("hello"))},
		{"5.6", "several in one segment", frames(d.message("one"), d.message("two"), d.message(""), d.message("four")),
			replies(d.answer("one"), d.answer("two"), d.answer(""), d.answer("four"))},
		{"5.6", "answers in the order of what they answer", frames(d.message("a"), testkit.Ping("p"), d.message("b"), testkit.Ping("q")),
			replies(d.answer("a"), gotPong("p"), d.answer("b"), gotPong("q"))},
		{"5.6", "sixty at once", frames(slices.Repeat([]testkit.Frame{d.message("n")}, 60)...), slices.Repeat(replies(d.answer("n")), 60)},
	}
	for _, mask := range [][4]byte{{}, {0xff, 0xff, 0xff, 0xff}, {0xff, 0, 0xff, 1}, {0, 0, 0, 1}, {0x80}} {
		f := d.message("masked as it may be")
		f.Mask = mask
		cs = append(cs, wireCase{"5.3", fmt.Sprintf("mask %x", mask), frames(f), replies(d.answer("masked as it may be"))})
	}
	// What is left of a mask in one frame is none of the next one's.
	for n := 1; n <= 5; n++ {
		s := strings.Repeat("m", n)
		a, b := d.message(s), d.message("another")
		b.Mask = [4]byte{9, 8, 7, 6}
		cs = append(cs, wireCase{"5.3", fmt.Sprintf("another mask behind %d bytes", n), frames(a, b), replies(d.answer(s), d.answer("another"))})
	}
	fs := d.parts("each fragment has its own", 4)
	for i := range fs {
		fs[i].Mask = [4]byte{byte(i), byte(i * 7), 0xff, byte(3 - i)}
	}
	return append(cs, wireCase{"5.3", "another mask in each fragment", frames(fs...), replies(d.answer("each fragment has its own"))})
}

// lengthCases: section 5.2, "Payload length".
func lengthCases() []wireCase {
	var cs []wireCase
	for _, n := range []int{0, 1, 2, 3, 4, 5, 7, 8, 124, 125, 126, 127, 128, 255, 256, 65534, 65535, 65536, 65537, 1 << 20} {
		cs = append(cs,
			wireCase{"5.2", fmt.Sprintf("binary of %d", n), frames(testkit.Binary(pattern(n))), replies(gotBinary(pattern(n)))},
			wireCase{"5.2", fmt.Sprintf("text of %d", n), frames(testkit.Text(strings.Repeat("t", n))), replies(gotText(strings.Repeat("t", n)))})
	}
	return cs
}

// violationCases: section 5.1 (masking) and 5.2 (lengths, reserved bits and
// opcodes).
func violationCases(d dialect) []wireCase {
	ok, done := d.message("ok"), d.answer("ok")
	bad := replies(gotClose(1002))
	cs := []wireCase{
		{"5.1", "an unmasked message", frames(d.message("a").Unmasked()), bad},
		{"5.1", "an unmasked message without payload", frames(testkit.Client(d.op, nil).Unmasked()), bad},
		{"5.1", "an unmasked ping", frames(testkit.Ping("").Unmasked()), bad},
		{"5.1", "an unmasked ping with payload", frames(testkit.Ping("p").Unmasked()), bad},
		{"5.1", "an unmasked pong", frames(testkit.Pong("").Unmasked()), bad},
		{"5.1", "an unmasked close", frames(testkit.Close(1000, "").Unmasked()), bad},
		{"5.1", "unmasked behind a good one", frames(ok, d.message("b").Unmasked()), replies(done, gotClose(1002))},
		{"5.1", "an unmasked fragment", frames(among(d.parts("ab", 2)[:1], 1, testkit.Continuation("b").Unmasked())...), bad},
		{"5.1", "unmasked, with a 16-bit length", frames(testkit.Client(d.op, pattern(126)).Unmasked())[:4], bad},
		{"5.1", "unmasked, with a 64-bit length", frames(testkit.Client(d.op, nil).Unmasked().Length(testkit.Length64).Declare(65536)), bad},
	}
	for _, c := range []struct {
		n    uint64
		form testkit.LengthForm
	}{
		{0, testkit.Length16}, {1, testkit.Length16}, {124, testkit.Length16}, {125, testkit.Length16},
		{0, testkit.Length64}, {125, testkit.Length64}, {126, testkit.Length64}, {65534, testkit.Length64}, {65535, testkit.Length64},
	} {
		cs = append(cs, wireCase{"5.2", fmt.Sprintf("length %d not minimal, in %d bits", c.n, map[testkit.LengthForm]int{testkit.Length16: 16, testkit.Length64: 64}[c.form]),
			frames(testkit.Client(d.op, nil).Length(c.form).Declare(c.n)), bad})
	}
	for _, n := range []uint64{1 << 63, 1<<63 + 1, 1<<63 | 65536, 1<<64 - 1} {
		cs = append(cs, wireCase{"5.2", fmt.Sprintf("64-bit length %#x, the top bit set", n),
			frames(testkit.Client(d.op, nil).Length(testkit.Length64).Declare(n)), bad})
	}
	for _, n := range []uint64{1<<63 - 1, 1 << 62, 1 << 32, 1<<31 - 1} {
		cs = append(cs, wireCase{"5.2", fmt.Sprintf("64-bit length %#x, well-formed", n),
			frames(testkit.Client(d.op, nil).Length(testkit.Length64).Declare(n)), replies(gotClose(1009))})
	}
	for rsv := byte(1); rsv < 8; rsv++ {
		for _, k := range []struct {
			name string
			f    testkit.Frame
		}{
			{"a message", d.message("a")}, {"an empty message", testkit.Client(d.op, nil)}, {"a ping", testkit.Ping("a")},
			{"a pong", testkit.Pong("")}, {"a close", testkit.Close(1000, "")},
		} {
			cs = append(cs, wireCase{"5.2", fmt.Sprintf("reserved bits %03b of %s", rsv, k.name), frames(k.f.Reserved(rsv)), bad})
		}
		cs = append(cs,
			wireCase{"5.2", fmt.Sprintf("reserved bits %03b behind a good one", rsv), frames(ok, d.message("a").Reserved(rsv)), replies(done, gotClose(1002))},
			wireCase{"5.2", fmt.Sprintf("reserved bits %03b of a continuation", rsv), frames(d.parts("ab", 2)[0], testkit.Continuation("b").Reserved(rsv)), bad})
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf} {
		cs = append(cs,
			wireCase{"5.2", fmt.Sprintf("reserved opcode %#x", op), frames(ok, testkit.Client(op, []byte("x"))), replies(done, gotClose(1002))},
			wireCase{"5.2", fmt.Sprintf("reserved opcode %#x, no payload", op), frames(testkit.Client(op, nil)), bad},
			wireCase{"5.2", fmt.Sprintf("reserved opcode %#x, not final", op), frames(testkit.Client(op, []byte("x")).More()), bad},
			wireCase{"5.2", fmt.Sprintf("reserved opcode %#x inside a fragmented message", op), frames(d.parts("ab", 2)[0], testkit.Client(op, nil)), bad})
	}
	return cs
}

// controlCases: section 5.5, 5.5.2 and 5.5.3.
func controlCases(d dialect) []wireCase {
	ok, done := d.message("ok"), d.answer("ok")
	bad := replies(gotClose(1002))
	p125 := strings.Repeat("p", 125)
	cs := []wireCase{
		{"5.5.2", "a ping", frames(testkit.Ping("hello")), replies(gotPong("hello"))},
		{"5.5.2", "an empty ping", frames(testkit.Ping("")), replies(gotPong(""))},
		{"5.5.2", "a ping of one byte", frames(testkit.Ping("\x00")), replies(gotPong("\x00"))},
		{"5.5.2", "a ping of 124", frames(testkit.Ping(p125[1:])), replies(gotPong(p125[1:]))},
		{"5.5.2", "a ping of 125", frames(testkit.Ping(p125)), replies(gotPong(p125))},
		{"5.5.2", "a ping of all kinds of bytes", frames(testkit.Ping(string(pattern(125)))), replies(gotPong(string(pattern(125))))},
		{"5.5.2", "a ping of bytes that are no text", frames(testkit.Ping("\xff\x00\xfe\xed\xa0\x80")), replies(gotPong("\xff\x00\xfe\xed\xa0\x80"))},
		{"5.5.2", "pings are answered in their order", frames(testkit.Ping("1"), testkit.Ping("2"), testkit.Ping(""), testkit.Ping("4")),
			replies(gotPong("1"), gotPong("2"), gotPong(""), gotPong("4"))},
		{"5.5.2", "ten pings at once", frames(slices.Repeat([]testkit.Frame{testkit.Ping("n")}, 10)...), slices.Repeat(replies(gotPong("n")), 10)},
		{"5.5.2", "a ping, then a close", frames(testkit.Ping("p"), testkit.Close(1000, "")), replies(gotPong("p"), gotClose(1000))},
		{"5.5.3", "an unsolicited pong", frames(testkit.Pong("x"), ok), replies(done)},
		{"5.5.3", "an unsolicited empty pong", frames(testkit.Pong(""), ok), replies(done)},
		{"5.5.3", "an unsolicited pong of 125", frames(testkit.Pong(p125), ok), replies(done)},
		{"5.5.3", "a pong between pings", frames(testkit.Ping("a"), testkit.Pong("a"), testkit.Ping("b")), replies(gotPong("a"), gotPong("b"))},
		{"5.5.3", "ten pongs at once", frames(append(slices.Repeat([]testkit.Frame{testkit.Pong("n")}, 10), ok)...), replies(done)},
	}
	for _, k := range []struct {
		name string
		f    testkit.Frame
		op   byte
	}{{"ping", testkit.Ping("x"), testkit.OpPing}, {"pong", testkit.Pong("x"), testkit.OpPong}, {"close", testkit.Close(1000, ""), testkit.OpClose}} {
		payload := append([]byte{0x03, 0xe8}, strings.Repeat("x", 124)...)
		cs = append(cs,
			wireCase{"5.5", "a fragmented " + k.name, frames(k.f.More()), bad},
			wireCase{"5.5", "a fragmented empty " + k.name, frames(testkit.Client(k.op, nil).More()), bad},
			wireCase{"5.5", "a fragmented " + k.name + ", continued", frames(k.f.More(), testkit.Continuation("y")), bad},
			wireCase{"5.5", "a fragmented " + k.name + " inside a message", frames(among(d.parts("ab", 2), 1, k.f.More())...), bad},
			wireCase{"5.5", "a " + k.name + " of 126", frames(testkit.Client(k.op, payload)), bad},
			wireCase{"5.5", "a " + k.name + " with a 16-bit length", frames(testkit.Client(k.op, nil).Length(testkit.Length16).Declare(5)), bad},
			wireCase{"5.5", "a " + k.name + " with a 64-bit length", frames(testkit.Client(k.op, nil).Length(testkit.Length64).Declare(70000)), bad},
			wireCase{"5.5", "a long " + k.name + " behind a message", frames(ok, testkit.Client(k.op, payload)), replies(done, gotClose(1002))})
	}
	return cs
}

// kindCases: section 5.6 and 7.4.1: an endpoint that takes one kind of message
// says 1003 to the other. Text that is none is found before that.
func kindCases(d dialect) []wireCase {
	other := testkit.OpText
	if d.op == testkit.OpText {
		other = testkit.OpBinary
	}
	p, _ := d.put("a")
	first := d.parts("ab", 2)
	first[0].Opcode = other
	cs := []wireCase{
		{"7.4.1", "the other kind of message", frames(testkit.Client(other, []byte("x"))), replies(gotClose(1003))},
		{"7.4.1", "the other kind, empty", frames(testkit.Client(other, nil)), replies(gotClose(1003))},
		{"7.4.1", "a good command in the other kind", frames(testkit.Client(other, p)), replies(gotClose(1003))},
		{"7.4.1", "the other kind in fragments", frames(first...), replies(gotClose(1003))},
		{"7.4.1", "the other kind behind a message", frames(d.message("ok"), testkit.Client(other, []byte("x"))), replies(d.answer("ok"), gotClose(1003))},
		{"7.4.2", "what is no command", frames(testkit.Client(d.op, []byte("\x7fnonsense"))), replies(gotClose(3501))},
		{"7.4.2", "an empty message", frames(testkit.Client(d.op, nil)), replies(gotClose(3501))},
		{"7.4.2", "what is no command, in fragments", frames(testkit.Client(d.op, []byte("\x7fnon")).More(), testkit.Continuation("sense")), replies(gotClose(3501))},
		{"7.4.2", "what is no command, behind one", frames(d.message("ok"), testkit.Client(d.op, []byte("\x7f"))), replies(d.answer("ok"), gotClose(3501))},
		{"7.4.2", "nothing counts behind what is no command", frames(testkit.Client(d.op, []byte("\x7f")), d.message("late"), testkit.Ping("late")), replies(gotClose(3501))},
	}
	for name, s := range map[string]string{
		"a cut sequence": "\xe2\x82", "an overlong form": "\xc0\xaf", "a surrogate": "\xed\xa0\x80", "above U+10FFFF": "\xf4\x90\x80\x80", "ff": "\xff",
	} {
		cs = append(cs,
			wireCase{"8.1", "no text: " + name, frames(testkit.Text(s)), replies(gotClose(1007))},
			wireCase{"8.1", "no text, within what looks like a command: " + name, frames(testkit.Text(`{"id":1,"unsubscribe":{"channel":"` + s + `"}}`)), replies(gotClose(1007))},
			wireCase{"8.1", "no text, in fragments: " + name, frames(testkit.Text("ok").More(), testkit.Continuation(s)), replies(gotClose(1007))},
			wireCase{"8.1", "no text, as a close reason: " + name, frames(testkit.Close(1000, s)), replies(gotClose(1007))})
	}
	return cs
}
