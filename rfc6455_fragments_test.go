package perch_test

import (
	"fmt"
	"slices"
	"strings"

	"perch/internal/testkit"
)

// fragmentCases: section 5.4.
func fragmentCases(d dialect) []wireCase {
	const s = "Hello, fragments"
	want := replies(d.answer(s))
	bad := replies(gotClose(1002))
	ok, done := d.message("ok"), d.answer("ok")
	two := d.parts(s, 2)
	empty := testkit.Continuation("").More()
	p, _ := d.put(s)
	each := d.parts(s, len(p))

	cs := []wireCase{
		{"5.4", "one byte each", frames(each...), want},
		{"5.4", "the first is empty", frames(append([]testkit.Frame{testkit.Client(d.op, nil).More()}, testkit.Client(testkit.OpContinuation, p))...), want},
		{"5.4", "the last is empty", frames(testkit.Client(d.op, p).More(), testkit.Continuation("")), want},
		{"5.4", "empty ones around", frames(among(among(two, 1, empty, empty), 0)...), want},
		{"5.4", "many empty ones", frames(among(two, 1, slices.Repeat([]testkit.Frame{empty}, 100)...)...), want},
		{"5.4", "a ping between", frames(among(two, 1, testkit.Ping("p"))...), replies(gotPong("p"), d.answer(s))},
		{"5.4", "an empty ping between", frames(among(two, 1, testkit.Ping(""))...), replies(gotPong(""), d.answer(s))},
		{"5.4", "a pong between", frames(among(two, 1, testkit.Pong("p"))...), want},
		{"5.4", "the longest ping between", frames(among(two, 1, testkit.Ping(string(pattern(125))))...), replies(gotPong(string(pattern(125))), d.answer(s))},
		{"5.4", "control frames between all", func() []byte {
			var fs []testkit.Frame
			for i, f := range d.parts(s, 4) {
				fs = append(fs, f, testkit.Ping(fmt.Sprint(i)), testkit.Pong("x"))
			}
			return frames(fs...)
		}(), replies(gotPong("0"), gotPong("1"), gotPong("2"), d.answer(s), gotPong("3"))},
		{"5.4", "a hundred pings between", frames(among(two, 1, slices.Repeat([]testkit.Frame{testkit.Ping("n")}, 100)...)...),
			append(slices.Repeat(replies(gotPong("n")), 100), d.answer(s))},
		{"5.4", "one fragmented message behind another", frames(append(d.parts("one", 3), d.parts("two", 2)...)...), replies(d.answer("one"), d.answer("two"))},
		{"5.4", "whole, fragmented, whole", frames(append(append([]testkit.Frame{ok}, two...), ok)...), replies(done, d.answer(s), done)},

		{"5.4", "a close between", frames(among(two, 1, testkit.Close(1000, ""))...), replies(gotClose(1000))},
		{"5.4", "an empty close between", frames(among(two, 1, testkit.Client(testkit.OpClose, nil))...), replies(gotClose(1005))},
		{"5.4", "a close between, then no more", frames(two[0], testkit.Close(4000, "x")), replies(gotClose(4000))},

		{"5.4", "a continuation without a start", frames(testkit.Continuation("x")), bad},
		{"5.4", "an empty continuation without a start", frames(testkit.Continuation("")), bad},
		{"5.4", "an unfinished continuation without a start", frames(testkit.Continuation("x").More()), bad},
		{"5.4", "an unfinished empty continuation without a start", frames(empty), bad},
		{"5.4", "a long continuation without a start, by its header", frames(testkit.Continuation("").Length(testkit.Length64).Declare(70000))[:10], bad},
		{"5.4", "a continuation behind a ping", frames(testkit.Ping("p"), testkit.Continuation("x")), replies(gotPong("p"), gotClose(1002))},
		{"5.4", "a continuation behind a whole message", frames(ok, testkit.Continuation("x")), replies(done, gotClose(1002))},
		{"5.4", "a continuation behind a fragmented message", frames(append(slices.Clone(two), testkit.Continuation("x"))...), replies(d.answer(s), gotClose(1002))},
		{"5.4", "an unfinished continuation behind a fragmented message", frames(append(slices.Clone(two), empty)...), replies(d.answer(s), gotClose(1002))},
	}
	for _, n := range []int{2, 3, 4, 5, 7, 8, 11} {
		cs = append(cs, wireCase{"5.4", fmt.Sprintf("%d fragments", n), frames(d.parts(s, n)...), want})
	}
	for _, k := range []struct {
		name string
		f    testkit.Frame
	}{
		{"a text", testkit.Text("b")}, {"an empty text", testkit.Text("")}, {"a binary", testkit.Binary([]byte("b"))}, {"an empty binary", testkit.Binary(nil)},
		{"an unfinished text", testkit.Text("b").More()}, {"an unfinished binary", testkit.Binary([]byte("b")).More()},
	} {
		cs = append(cs,
			wireCase{"5.4", k.name + " inside a fragmented message", frames(two[0], k.f), bad},
			wireCase{"5.4", k.name + " inside a fragmented message, behind a ping", frames(two[0], testkit.Ping("p"), k.f), replies(gotPong("p"), gotClose(1002))},
			wireCase{"5.4", k.name + " inside a message whose first fragment is empty", frames(testkit.Client(d.op, nil).More(), k.f), bad})
	}
	if d.name != "echo" {
		return cs
	}
	long := strings.Repeat("0123456789", 20)
	return append(cs,
		wireCase{"5.4", "binary in two fragments", frames(testkit.Binary([]byte{1}).More(), testkit.Continuation("\x02")), replies(gotBinary([]byte{1, 2}))},
		wireCase{"5.4", "all fragments empty", frames(testkit.Text("").More(), testkit.Continuation("")), replies(gotText(""))},
		wireCase{"5.4", "all of many fragments empty", frames(testkit.Binary(nil).More(), empty, empty, testkit.Continuation("")), replies(gotBinary(nil))},
		wireCase{"5.4", "two hundred fragments of a byte", frames(d.parts(long, 200)...), replies(gotText(long))},
		wireCase{"5.4", "large fragments",
			frames(testkit.Binary(pattern(70000)).More(), testkit.Ping("p"), testkit.Client(testkit.OpContinuation, pattern(70000))),
			replies(gotPong("p"), gotBinary(append(pattern(70000), pattern(70000)...)))},
		wireCase{"5.4", "small behind large", frames(testkit.Binary(pattern(70000)).More(), testkit.Continuation("x").More(), testkit.Continuation("")),
			replies(gotBinary(append(pattern(70000), 'x')))},
		wireCase{"5.4", "large behind small", frames(testkit.Binary([]byte("x")).More(), testkit.Client(testkit.OpContinuation, pattern(70000))),
			replies(gotBinary(append([]byte("x"), pattern(70000)...)))})
}
