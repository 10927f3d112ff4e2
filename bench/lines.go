package bench

import (
	"bytes"
	"iter"
	"strconv"
	"strings"
)

// What the bench reads of the client protocol's JSON: it must cost little, and
// knows what a server of that protocol writes first.
var (
	newline    = []byte("\n")
	pushPrefix = []byte(`{"push"`)
	errorField = []byte(`"error":{`)
	pongFrame  = appendFrame(nil, opText, []byte("{}"))
)

func splitLines(p []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for line := range bytes.SplitSeq(p, newline) {
			if len(line) > 0 && !yield(line) {
				return
			}
		}
	}
}

func isPush(line []byte) bool { return bytes.HasPrefix(line, pushPrefix) }

// refused tells whether a reply is an error. The field stands behind the id.
func (s *speaker) refused(line []byte) (why string, bad bool) {
	if !s.lines || !bytes.Contains(line[:min(len(line), 32)], errorField) {
		return "", false
	}
	return "reply: " + string(line), true
}

// A payload that is published carries the moment at which it was due, on the
// machine's monotonic clock.
const stampKey = `{"due":`

// stamped makes a JSON payload of size bytes, or a little more where size is
// less than the stamp needs.
func stamped(due int64, size int) string {
	s := stampKey + strconv.FormatInt(due, 10) + `,"pad":"`
	return s + strings.Repeat("x", max(0, size-len(s)-2)) + `"}`
}

// stamp finds it again; ok is false for anything else.
func stamp(p []byte) (due int64, ok bool) {
	_, rest, found := bytes.Cut(p, []byte(stampKey))
	if !found {
		return 0, false
	}
	digits, _, found := bytes.Cut(rest, []byte(","))
	if !found {
		return 0, false
	}
	due, err := strconv.ParseInt(string(digits), 10, 64)
	return due, err == nil
}

// publish appends a publish command.
func publish(dst []byte, id int, topic, data string) []byte {
	dst = append(dst, `{"id":`...)
	dst = strconv.AppendInt(dst, int64(id), 10)
	dst = append(dst, `,"publish":{"channel":`...)
	dst = strconv.AppendQuote(dst, topic)
	dst = append(dst, `,"data":`...)
	dst = append(dst, data...)
	return append(dst, `}}`...)
}
