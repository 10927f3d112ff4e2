package bench

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// progressAt is a Progress with a clock of its own.
func progressAt(terminal, quiet bool, columns int) (*Progress, *bytes.Buffer, func(d time.Duration)) {
	var out bytes.Buffer
	p := NewProgress(&out, terminal, quiet)
	at := time.Unix(1000, 0)
	p.now, p.width = func() time.Time { return at }, func() int { return columns }
	p.full, p.rest = "#", "-"
	return p, &out, func(d time.Duration) { at = at.Add(d) }
}

func TestProgressTerminal(t *testing.T) {
	p, out, pass := progressAt(true, false, 100)
	p.Start("connect", 18000)
	for i := range 100 {
		pass(10 * time.Millisecond)
		p.Update(int64(i+1)*90, 18000, "1,500 /s")
	}
	// A second at 10 lines and the first one.
	if n := strings.Count(out.String(), "\r"); n != 11 {
		t.Errorf("%d lines drawn in a second, want 11", n)
	}
	lines := strings.Split(out.String(), "\r")
	const want = "connect ############------------  50%  9,000/18,000  ETA 0:01  1,500 /s\x1b[K"
	if got := lines[len(lines)-1]; got != want {
		t.Errorf("line %q, want %q", got, want)
	}
	if strings.Contains(out.String(), "\n") {
		t.Error("a line was left behind before the end")
	}
	p.Done()
	if !strings.HasSuffix(out.String(), "\rconnect: done in 1.00 s, 1,500 /s\x1b[K\n") {
		t.Errorf("end %q", out.String()[len(out.String())-60:])
	}
	n := out.Len()
	p.Done()
	p.Update(1, 2, "")
	if out.Len() != n {
		t.Error("wrote after the end")
	}
}

func TestProgressNarrow(t *testing.T) {
	for _, columns := range []int{20, 40, 60, 80, 200} {
		p, out, pass := progressAt(true, false, columns)
		p.StartTimed("echo on 127.0.0.1:8000", time.Minute)
		pass(30 * time.Second)
		p.Update(int64(30*time.Second), int64(time.Minute), "40.0 k/s, p99 1.52 ms, 1,000 connections\x1b[2J")
		p.Done()
		for _, line := range strings.FieldsFunc(out.String(), func(r rune) bool { return r == '\r' || r == '\n' }) {
			line = strings.TrimSuffix(line, "\x1b[K")
			if n := utf8.RuneCountInString(line); n >= columns {
				t.Errorf("%d columns in a terminal of %d: %q", n, columns, line)
			}
			if strings.Contains(line, "\x1b") {
				t.Errorf("an escape sequence came through: %q", line)
			}
		}
		if columns >= 60 && !strings.Contains(out.String(), "50%  0:30/1:00") {
			t.Errorf("at %d columns: %q", columns, out.String())
		}
	}
}

func TestProgressPlain(t *testing.T) {
	p, out, pass := progressAt(false, false, 0)
	p.Start("storm", 1000)
	for i := range 50 {
		pass(100 * time.Millisecond)
		p.Update(int64(i+1)*10, 1000, "")
	}
	p.Done()
	const want = "storm: 0%, 0/1,000\n" +
		"storm: 20%, 200/1,000, 0:08 left\n" +
		"storm: 40%, 400/1,000, 0:06 left\n" +
		"storm: done in 5.00 s\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
}

func TestProgressUnknownTotal(t *testing.T) {
	p, out, pass := progressAt(false, false, 0)
	p.Start("settle", 0)
	pass(3 * time.Second)
	p.Update(1234, 0, "waiting")
	p.Start("next", 0) // ends the one before
	if want := "settle\nsettle, 1,234, waiting\nsettle: done in 3.00 s, waiting\nnext\n"; out.String() != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestProgressQuiet(t *testing.T) {
	p, out, pass := progressAt(true, true, 80)
	p.Start("x", 10)
	pass(time.Second)
	p.Update(5, 10, "y")
	p.Done()
	if out.Len() > 0 {
		t.Errorf("wrote %q", out)
	}
	NewProgress(nil, true, false).Start("nowhere", 1)
}

func TestUTF8Locale(t *testing.T) {
	for name, tt := range map[string]struct {
		env  map[string]string
		want bool
	}{
		"nothing set":    {nil, false},
		"LANG":           {map[string]string{"LANG": "en_US.UTF-8"}, true},
		"LC_ALL first":   {map[string]string{"LC_ALL": "C", "LANG": "en_US.UTF-8"}, false},
		"without hyphen": {map[string]string{"LC_CTYPE": "C.utf8"}, true},
	} {
		if got := utf8Locale(func(k string) string { return tt.env[k] }); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
