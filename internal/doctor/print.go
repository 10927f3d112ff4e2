package doctor

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	// width is that of a terminal; sentences are wrapped to it.
	width = 80
	// haveWidth is the column of what is there, in the table of what is well.
	haveWidth = 30
	wantWidth = 34
)

// Print writes the report for people: problems first, with their reasons, then
// what is well on a line each, the memory by layer, and one line of summary.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	what := fmt.Sprintf("%d sessions on %d loops", r.Connections, r.Loops)
	if r.Generator {
		what = fmt.Sprintf("a generator of %d sessions", r.Connections)
	}
	fmt.Fprintf(&b, "%s, Linux %s\n", what, r.Kernel)
	names := 0
	for _, f := range r.Findings {
		names = max(names, len(f.Name))
	}
	problems := true
	for _, f := range r.Findings {
		if f.Status == OK {
			if problems {
				problems = false
				fmt.Fprintf(&b, "\n%-8s%-*s%-*s%s\n", "", names+2, "", haveWidth+2, "have", "want")
			}
			fmt.Fprintf(&b, "%-8s%-*s%-*s%s\n", f.Status, names+2, f.Name,
				haveWidth+2, shorten(f.Have, haveWidth), shorten(f.Want, wantWidth))
			continue
		}
		fmt.Fprintf(&b, "\n%-8s%s\n", f.Status, f.Name)
		wrap(&b, "have  ", f.Have)
		wrap(&b, "want  ", f.Want)
		wrap(&b, "why   ", f.Why)
		if f.Set != "" {
			// Not wrapped: it is there to be copied.
			for i, part := range strings.Split(f.Set, "; ") {
				label := "set   "
				if i > 0 {
					label = "      "
				}
				b.WriteString("        " + label + part + "\n")
			}
		}
	}
	b.WriteString("\nmemory         each      in all\n")
	for _, l := range r.Memory {
		each := "-"
		if l.Each > 0 {
			each = fmt.Sprintf("%d B", l.Each)
		}
		fmt.Fprintf(&b, "%-13s%7s  %10s  %s\n", l.Name, each, Size(l.Bytes), l.What)
	}
	fmt.Fprintf(&b, "%-13s%7s  %10s\n\n%s\n", "sum", "", Size(r.total()), r.Summary())
	_, err := io.WriteString(w, b.String())
	return err
}

// Summary is the outcome in one line.
func (r *Report) Summary() string {
	verdict := "this machine can hold %d sessions"
	if r.Generator {
		verdict = "this machine can open %d sessions"
	}
	switch r.Status {
	case Fail:
		verdict = strings.Replace(verdict, "can", "can't", 1) + " as it is"
	case Warn:
		verdict += ", with warnings"
	}
	return fmt.Sprintf("%d fail, %d warn, %d unknown, %d ok: "+verdict,
		r.Counts[Fail], r.Counts[Warn], r.Counts[Unknown], r.Counts[OK], r.Connections)
}

// Failed are the names of what stands in the way.
func (r *Report) Failed() []string {
	var names []string
	for _, f := range r.Findings {
		if f.Status == Fail {
			names = append(names, f.Name)
		}
	}
	return names
}

// wrap writes text behind a label, broken at spaces.
func wrap(b *strings.Builder, label, text string) {
	const indent = "        "
	line := indent + label
	empty := true
	for _, word := range strings.Fields(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			b.WriteString(line + "\n")
			line, empty = indent+strings.Repeat(" ", len(label)), true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	b.WriteString(line + "\n")
}

// shorten cuts what does not fit on the line.
func shorten(text string, n int) string {
	if utf8.RuneCountInString(text) <= n || n < 2 {
		return text
	}
	return string([]rune(text)[:n-1]) + "…"
}
