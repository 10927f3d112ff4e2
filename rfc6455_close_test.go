package perch_test

import (
	"fmt"
	"strings"
	"testing"

	"perch"
	"perch/internal/testkit"
)

// closeCases: section 5.5.1, 7.1.5 to 7.1.6 and 7.4, and IANA's registry for
// 1012 to 1014.
func closeCases(d dialect) []wireCase {
	ok, done := d.message("ok"), d.answer("ok")
	cs := []wireCase{
		{"5.5.1", "an empty close", frames(testkit.Client(testkit.OpClose, nil)), replies(gotClose(1005))},
		{"5.5.1", "a close of one byte", frames(testkit.Client(testkit.OpClose, []byte{3})), replies(gotClose(1002))},
		{"5.5.1", "a close of one byte, another", frames(testkit.Client(testkit.OpClose, []byte{0})), replies(gotClose(1002))},
		{"5.5.1", "a close with a reason", frames(testkit.Close(1000, "bye")), replies(gotClose(1000))},
		{"5.5.1", "a close with a reason of one byte", frames(testkit.Close(1000, "b")), replies(gotClose(1000))},
		{"5.5.1", "a close with a reason of 122", frames(testkit.Close(1000, strings.Repeat("r", 122))), replies(gotClose(1000))},
		{"5.5.1", "a close with the longest reason", frames(testkit.Close(1000, strings.Repeat("r", 123))), replies(gotClose(1000))},
		{"5.5.1", "a close with the longest reason, of UTF-8", frames(testkit.Close(1000, strings.Repeat("€", 41))), replies(gotClose(1000))},
		{"5.5.1", "a close with a reason that is too long", frames(testkit.Close(1000, strings.Repeat("r", 124))), replies(gotClose(1002))},
		{"5.5.1", "a close with a reason in UTF-8", frames(testkit.Close(1000, "κόσμε")), replies(gotClose(1000))},
		{"5.5.1", "a close with a reason with NUL", frames(testkit.Close(1000, "\x00")), replies(gotClose(1000))},
		{"5.5.1", "a message behind the close", frames(testkit.Close(1000, ""), d.message("late")), replies(gotClose(1000))},
		{"5.5.1", "a ping behind the close", frames(testkit.Close(1001, ""), testkit.Ping("late")), replies(gotClose(1001))},
		{"5.5.1", "a second close", frames(testkit.Close(1000, ""), testkit.Close(1001, "")), replies(gotClose(1000))},
		{"5.5.1", "a violation behind the close", frames(testkit.Close(1000, ""), d.message("late").Unmasked()), replies(gotClose(1000))},
		{"5.5.1", "the rest of a message behind the close", frames(d.parts("ab", 2)[0], testkit.Close(1000, ""), d.parts("ab", 2)[1]), replies(gotClose(1000))},
		{"5.5.1", "garbage behind the close", append(frames(testkit.Close(1000, "")), "\xff\xff\xff\xff garbage"...), replies(gotClose(1000))},
		{"5.5.1", "much behind the close", append(frames(testkit.Close(1000, "")), pattern(100<<10)...), replies(gotClose(1000))},
		{"5.5.1", "a close behind messages", frames(ok, d.message("b"), testkit.Close(1000, "")), replies(done, d.answer("b"), gotClose(1000))},
		{"5.5.1", "an empty close behind a message", frames(ok, testkit.Client(testkit.OpClose, nil)), replies(done, gotClose(1005))},
		{"7.1.7", "a violation, then a close", frames(d.message("a").Unmasked(), testkit.Close(1000, "")), replies(gotClose(1002))},
		{"7.1.7", "nothing counts behind a violation", frames(testkit.Client(3, nil), ok, testkit.Ping("late")), replies(gotClose(1002))},
		{"7.1.7", "much behind a violation", append(frames(testkit.Client(3, nil)), pattern(100<<10)...), replies(gotClose(1002))},
	}
	// 7.4.1 and 7.4.2: what may stand in a frame is said back.
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3001, 3500, 3999, 4000, 4001, 4500, 4998, 4999} {
		cs = append(cs,
			wireCase{"7.4", fmt.Sprintf("code %d", code), frames(testkit.Close(code, "")), replies(gotClose(code))},
			wireCase{"7.4", fmt.Sprintf("code %d with a reason", code), frames(testkit.Close(code, "why")), replies(gotClose(code))})
	}
	for _, code := range []uint16{0, 1, 3, 255, 256, 500, 998, 999, 1004, 1005, 1006, 1015, 1016, 1017, 1100, 1999, 2000, 2500, 2999, 5000, 5001, 10000, 32768, 65534, 65535} {
		cs = append(cs, wireCase{"7.4", fmt.Sprintf("code %d, not for the wire", code), frames(testkit.Close(code, "")), replies(gotClose(1002))})
	}
	// Of two faults the one that comes first counts.
	return append(cs, wireCase{"7.4", "a code and a reason that are both wrong", frames(testkit.Close(1005, "\xff")), replies(gotClose(1002))})
}

// TestRFC6455ServerCloses: section 5.5.1, 7.1.1 to 7.1.3: the closing handshake
// that the server begins, whatever the client says to it.
func TestRFC6455ServerCloses(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Insecure = true })
	for _, d := range dialects[1:] {
		for _, c := range []struct {
			name string
			// before is sent before the server closes, behind what is sent when its close
			// frame has been read.
			before, behind []byte
		}{
			{"answered", nil, frames(testkit.Close(3503, ""))},
			{"answered with another code", nil, frames(testkit.Close(1000, "bye"))},
			{"answered without a code", nil, frames(testkit.Client(testkit.OpClose, nil))},
			{"answered with a code that is none", nil, frames(testkit.Close(1005, ""))},
			{"answered with a message first", nil, frames(d.message("late"), testkit.Ping("late"), testkit.Close(1000, ""))},
			{"answered with a violation", nil, frames(d.message("late").Unmasked())},
			{"answered with much", nil, pattern(200 << 10)},
			{"not answered", nil, nil},
			{"in the middle of a frame of the client's", frames(d.message("half"))[:7], frames(d.message("half"))[7:]},
			{"between fragments of the client's", frames(d.parts("half", 2)[0]), frames(d.parts("half", 2)[1], testkit.Close(1000, ""))},
		} {
			t.Run(d.name+"/"+c.name, func(t *testing.T) {
				user := strings.NewReplacer(" ", "-", "/", "-").Replace(t.Name())
				d := d
				d.lines = append(d.lines[:len(d.lines):len(d.lines)], "Authorization: Bearer "+token(user, 0))
				w, err := d.open(s.public)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Reset()
				if err := w.Send(c.before); err != nil {
					t.Fatal(err)
				}
				s.api(t, "disconnect", fmt.Sprintf(`{"user":%q,"disconnect":{"code":4321,"reason":"go"}}`, user))
				if err := gotClose(4321).check(w); err != nil {
					t.Fatal(err)
				}
				// The connection may be over on the other side by the time this arrives.
				_ = w.Send(c.behind)
				if err := lastWord(w); err != nil {
					t.Error(err)
				}
			})
		}
		// Both close frames are on their way at once: each side takes the other's for
		// the answer, so one goes each way.
		t.Run(d.name+"/at the same time", func(t *testing.T) {
			for range 50 {
				user := "both-" + d.name
				d := d
				d.lines = append(d.lines[:len(d.lines):len(d.lines)], "Authorization: Bearer "+token(user, 0))
				w, err := d.open(s.public)
				if err != nil {
					t.Fatal(err)
				}
				sent := make(chan error, 1)
				go func() { sent <- w.SendFrames(testkit.Close(4000, "")) }()
				s.api(t, "disconnect", fmt.Sprintf(`{"user":%q,"disconnect":{"code":4321,"reason":"go"}}`, user))
				f, err := w.Frame()
				if err != nil || f.Opcode != testkit.OpClose || f.CloseCode() != 4321 && f.CloseCode() != 4000 {
					t.Fatalf("got %s, %v", f, err)
				}
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				if err := lastWord(w); err != nil {
					t.Fatal(err)
				}
				w.Reset()
			}
		})
	}
}
