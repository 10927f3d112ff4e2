package perch_test

import (
	"fmt"
	"strings"

	"perch/internal/testkit"
)

// Texts that are and are not UTF-8 (RFC 3629), after Markus Kuhn's "UTF-8
// decoder capability and stress test"; the numbers are that document's.
var (
	goodTexts = []struct{ name, text string }{
		{"1 the word kosme", "κόσμε"},
		{"2.1.1 U+0000", "\x00"},
		{"2.1.2 U+0080", "\u0080"},
		{"2.1.3 U+0800", "\u0800"},
		{"2.1.4 U+10000", "\U00010000"},
		{"2.2.1 U+007F", "\x7f"},
		{"2.2.2 U+07FF", "\u07ff"},
		{"2.2.3 U+FFFF", "\uffff"},
		{"2.3.1 U+D7FF", "\ud7ff"},
		{"2.3.2 U+E000", "\ue000"},
		{"2.3.3 U+FFFD", "\ufffd"},
		{"2.3.4 U+10FFFF", "\U0010ffff"},
		{"5.3.1 U+FFFE", "\ufffe"},
		{"5.3.3 U+FDD0", "\ufdd0"},
		{"5.3.3 U+FDEF", "\ufdef"},
		{"5.3.4 U+1FFFE", "\U0001fffe"},
		{"5.3.4 U+1FFFF", "\U0001ffff"},
		{"5.3.4 U+8FFFF", "\U0008ffff"},
		{"5.3.4 U+FFFFE", "\U000ffffe"},
		{"a byte order mark", "\ufeffx"},
		{"one to four bytes", "a£€𐍈z"},
		{"only of four bytes", "😀😁😂🤣"},
		{"a letter with marks", "e\u0301\u0327"},
		{"right to left", "\u202eשלום\u202c"},
		{"all controls", "\x01\x02\x03\x04\x05\x06\x07\x08\t\n\v\f\r\x0e\x0f\x1b"},
	}
	badTexts = []struct{ name, text string }{
		{"2.1.5 first of five bytes", "\xf8\x88\x80\x80\x80"},
		{"2.1.6 first of six bytes", "\xfc\x84\x80\x80\x80\x80"},
		{"2.2.4 last of four bytes", "\xf7\xbf\xbf\xbf"},
		{"2.2.5 last of five bytes", "\xfb\xbf\xbf\xbf\xbf"},
		{"2.2.6 last of six bytes", "\xfd\xbf\xbf\xbf\xbf\xbf"},
		{"2.3.5 U+110000", "\xf4\x90\x80\x80"},
		{"U+140000", "\xf5\x80\x80\x80"},
		{"3.1.1 first continuation", "\x80"},
		{"3.1.2 last continuation", "\xbf"},
		{"3.1.3 two continuations", "\x80\xbf"},
		{"3.1.4 three continuations", "\x80\xbf\x80"},
		{"3.1.5 four continuations", "\x80\xbf\x80\xbf"},
		{"3.1.6 five continuations", "\x80\xbf\x80\xbf\x80"},
		{"3.1.7 six continuations", "\x80\xbf\x80\xbf\x80\xbf"},
		{"3.1.8 seven continuations", "\x80\xbf\x80\xbf\x80\xbf\x80"},
		{"3.1.9 all continuations", span(0x80, 0xbf, "")},
		{"3.2.1 lonely starts of two", span(0xc0, 0xdf, " ")},
		{"3.2.2 lonely starts of three", span(0xe0, 0xef, " ")},
		{"3.2.3 lonely starts of four", span(0xf0, 0xf7, " ")},
		{"3.2.4 lonely starts of five", span(0xf8, 0xfb, " ")},
		{"3.2.5 lonely starts of six", span(0xfc, 0xfd, " ")},
		{"3.3.1 U+0000 of two, cut", "\xc0"},
		{"3.3.2 U+0000 of three, cut", "\xe0\x80"},
		{"3.3.3 U+0000 of four, cut", "\xf0\x80\x80"},
		{"3.3.4 U+0000 of five, cut", "\xf8\x80\x80\x80"},
		{"3.3.5 U+0000 of six, cut", "\xfc\x80\x80\x80\x80"},
		{"3.3.6 U+07FF, cut", "\xdf"},
		{"3.3.7 U+FFFF, cut", "\xef\xbf"},
		{"3.3.8 U+1FFFFF, cut", "\xf7\xbf\xbf"},
		{"3.3.9 U+3FFFFFF, cut", "\xfb\xbf\xbf\xbf"},
		{"3.3.10 U+7FFFFFFF, cut", "\xfd\xbf\xbf\xbf\xbf"},
		{"3.4 all that are cut", "\xc0\xe0\x80\xf0\x80\x80\xf8\x80\x80\x80\xfc\x80\x80\x80\x80\xdf\xef\xbf\xf7\xbf\xbf\xfb\xbf\xbf\xbf\xfd\xbf\xbf\xbf\xbf"},
		{"3.5.1 fe", "\xfe"},
		{"3.5.2 ff", "\xff"},
		{"3.5.3 fe fe ff ff", "\xfe\xfe\xff\xff"},
		{"4.1.1 slash of two", "\xc0\xaf"},
		{"4.1.2 slash of three", "\xe0\x80\xaf"},
		{"4.1.3 slash of four", "\xf0\x80\x80\xaf"},
		{"4.1.4 slash of five", "\xf8\x80\x80\x80\xaf"},
		{"4.1.5 slash of six", "\xfc\x80\x80\x80\x80\xaf"},
		{"4.2.1 U+007F of two", "\xc1\xbf"},
		{"4.2.2 U+07FF of three", "\xe0\x9f\xbf"},
		{"4.2.3 U+FFFF of four", "\xf0\x8f\xbf\xbf"},
		{"4.2.4 U+1FFFFF of five", "\xf8\x87\xbf\xbf\xbf"},
		{"4.2.5 U+3FFFFFF of six", "\xfc\x83\xbf\xbf\xbf\xbf"},
		{"4.3.1 U+0000 of two", "\xc0\x80"},
		{"4.3.2 U+0000 of three", "\xe0\x80\x80"},
		{"4.3.3 U+0000 of four", "\xf0\x80\x80\x80"},
		{"4.3.4 U+0000 of five", "\xf8\x80\x80\x80\x80"},
		{"4.3.5 U+0000 of six", "\xfc\x80\x80\x80\x80\x80"},
		{"5.1.1 U+D800", "\xed\xa0\x80"},
		{"5.1.2 U+DB7F", "\xed\xad\xbf"},
		{"5.1.3 U+DB80", "\xed\xae\x80"},
		{"5.1.4 U+DBFF", "\xed\xaf\xbf"},
		{"5.1.5 U+DC00", "\xed\xb0\x80"},
		{"5.1.6 U+DF80", "\xed\xbe\x80"},
		{"5.1.7 U+DFFF", "\xed\xbf\xbf"},
		{"5.2.1 U+D800 U+DC00", "\xed\xa0\x80\xed\xb0\x80"},
		{"5.2.2 U+D800 U+DFFF", "\xed\xa0\x80\xed\xbf\xbf"},
		{"5.2.3 U+DB7F U+DC00", "\xed\xad\xbf\xed\xb0\x80"},
		{"5.2.4 U+DB7F U+DFFF", "\xed\xad\xbf\xed\xbf\xbf"},
		{"5.2.5 U+DB80 U+DC00", "\xed\xae\x80\xed\xb0\x80"},
		{"5.2.6 U+DB80 U+DFFF", "\xed\xae\x80\xed\xbf\xbf"},
		{"5.2.7 U+DBFF U+DC00", "\xed\xaf\xbf\xed\xb0\x80"},
		{"5.2.8 U+DBFF U+DFFF", "\xed\xaf\xbf\xed\xbf\xbf"},
		{"a start within a sequence", "\xe2\xc3\xa9"},
		{"ASCII within a sequence", "\xe2\x82a"},
		{"one continuation too many", "é\x80"},
		{"bad at the beginning", "\xffκόσμε"},
		{"bad in the middle", "κόσμε\xed\xa0\x80edited"},
		{"bad at the end", strings.Repeat("x", 100) + "\xff"},
		{"cut at the end", strings.Repeat("κόσμε", 20) + "\xce"},
		{"ISO 8859-1", "caf\xe9"},
	}
)

// span is the bytes from one to another, with sep behind each.
func span(from, to int, sep string) string {
	var b strings.Builder
	for c := from; c <= to; c++ {
		b.WriteByte(byte(c))
		b.WriteString(sep)
	}
	return b.String()
}

// fragmented is a text in fragments of n bytes each.
func fragmented(s string, n int) []byte {
	var fs []testkit.Frame
	for op := testkit.OpText; len(s) > 0; op = testkit.OpContinuation {
		n := min(n, len(s))
		fs = append(fs, testkit.Client(op, []byte(s[:n])).More())
		s = s[n:]
	}
	fs[len(fs)-1].Fin = true
	return frames(fs...)
}

// textCases: section 8.1 and 5.6. A text is judged as a whole: sequences may be
// cut between fragments, not between messages.
func textCases() []wireCase {
	var cs []wireCase
	bad := replies(gotClose(1007))
	for _, x := range goodTexts {
		cs = append(cs,
			wireCase{"8.1", "text: " + x.name, frames(testkit.Text(x.text)), replies(gotText(x.text))},
			wireCase{"8.1", "text, a byte in each fragment: " + x.name, fragmented(x.text, 1), replies(gotText(x.text))},
			wireCase{"5.5.1", "close reason: " + x.name, frames(testkit.Close(1000, x.text)), replies(gotClose(1000))})
	}
	for _, x := range badTexts {
		cs = append(cs,
			wireCase{"8.1", "no text: " + x.name, frames(testkit.Text(x.text)), bad},
			wireCase{"8.1", "no text, a byte in each fragment: " + x.name, append(fragmented("ok"+x.text, 1), frames(testkit.Ping("late"))...), bad},
			wireCase{"5.6", "no text, in binary: " + x.name, frames(testkit.Binary([]byte(x.text))), replies(gotBinary([]byte(x.text)))})
		if len(x.text) > 123 {
			continue // for a control frame
		}
		cs = append(cs,
			wireCase{"5.5.1", "no text, as a close reason: " + x.name, frames(testkit.Close(1000, x.text)), bad},
			wireCase{"5.5.2", "no text, in a ping: " + x.name, frames(testkit.Ping(x.text)), replies(gotPong(x.text))})
	}
	for n, at := range []int{1, 2, 3} {
		s := "ok 😀"
		cs = append(cs,
			wireCase{"8.1", fmt.Sprintf("a sequence of four cut behind %d, with a ping between", at),
				frames(testkit.Text(s[:3+at]).More(), testkit.Ping("\xff"), testkit.Continuation(s[3+at:])), replies(gotPong("\xff"), gotText(s))},
			wireCase{"8.1", fmt.Sprintf("a sequence begun in one message, ended in the next, behind %d", at),
				frames(testkit.Text(s[:3+at]), testkit.Text(s[3+at:])), bad},
			wireCase{"8.1", fmt.Sprintf("a sequence cut behind %d by the end of the last fragment", n+1),
				frames(testkit.Text("ok").More(), testkit.Continuation(s[3:3+at])), bad})
	}
	return append(cs,
		wireCase{"8.1", "an empty fragment within a sequence", frames(testkit.Text("\xe2").More(), testkit.Continuation("").More(), testkit.Continuation("\x82\xac")), replies(gotText("€"))},
		wireCase{"8.1", "a bad text behind a good one", frames(testkit.Text("ok"), testkit.Text("\xff")), replies(gotText("ok"), gotClose(1007))},
		wireCase{"8.1", "a long text, bad at its end", frames(testkit.Text(strings.Repeat("é", 40000) + "\xc3")), bad},
		wireCase{"8.1", "a long text", frames(testkit.Text(strings.Repeat("é", 40000))), replies(gotText(strings.Repeat("é", 40000)))})
}
