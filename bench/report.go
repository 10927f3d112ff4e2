package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// textWidth is what the summary for people keeps to.
const textWidth = 96

// WriteJSON writes the whole report, indented; ReadReport reads it again.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r.withoutNaN()); err != nil {
		return fmt.Errorf("bench: write report: %w", err)
	}
	return nil
}

// ReadReport reads what WriteJSON wrote. Fields that it does not know are
// skipped: they are a newer version's.
func ReadReport(r io.Reader) (*Report, error) {
	dec := json.NewDecoder(r)
	report := new(Report)
	if err := dec.Decode(report); err != nil {
		return nil, fmt.Errorf("bench: read report: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("bench: read report: more than one JSON value")
	}
	return report, nil
}

// withoutNaN is the report with zeros for what has no number, such as a share of
// nothing: JSON can't say NaN, and a long run must not be lost for it.
func (r *Report) withoutNaN() *Report {
	out := *r
	clean := func(v *float64) {
		if !isFinite(*v) {
			*v = 0
		}
	}
	out.Results = slices.Clone(r.Results)
	for i := range out.Results {
		res := &out.Results[i]
		clean(&res.Want)
		clean(&res.Rate)
		clean(&res.Generator.Busy)
		clean(&res.Stolen)
		if res.Tenths != nil {
			tenths := *res.Tenths
			clean(&tenths.Tail)
			res.Tenths = &tenths
		}
		res.Series = slices.Clone(res.Series)
		for j := range res.Series {
			clean(&res.Series[j].Rate)
		}
		if res.Usage != nil {
			usage := *res.Usage
			clean(&usage.PerConnection)
			res.Usage = &usage
		}
	}
	if r.Comparison != nil {
		c := *r.Comparison
		c.Ratios = slices.Clone(c.Ratios)
		for i := range c.Ratios {
			ratio := &c.Ratios[i]
			for _, v := range []*float64{&ratio.Perch, &ratio.Other, &ratio.Ratio, &ratio.Low, &ratio.High, &ratio.Target} {
				clean(v)
			}
			ratio.OK = ratio.OK && ratio.measured()
		}
		out.Comparison = &c
	}
	return &out
}

// WriteText writes the summary for people: a block for each result, or, of a
// comparison, a table for each scenario and one of the ratios.
func (r *Report) WriteText(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintln(&b, r.headline())
	fmt.Fprintln(&b, r.Machine.line())
	for _, g := range r.groups() {
		if r.Comparison != nil {
			g.writeTable(&b)
			continue
		}
		for i := range g.Rows {
			g.Rows[i].writeBlock(&b)
		}
	}
	r.Comparison.writeText(&b)
	if r.Command != "" {
		fmt.Fprintf(&b, "\nrepeat: %s\n", printable(r.Command))
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("bench: write summary: %w", err)
	}
	return nil
}

func (r *Report) headline() string {
	line := strings.TrimSpace("perch bench " + printable(r.Version))
	if !r.Started.IsZero() {
		line += " · " + r.Started.UTC().Format("2006-01-02 15:04 UTC")
	}
	return line
}

// line describes the machine by what is known of it.
func (m *Machine) line() string {
	if parts := m.parts(); len(parts) > 0 {
		return strings.Join(parts, " · ")
	}
	return "machine not known"
}

func (m *Machine) parts() []string {
	parts := []string{printable(m.CPU), "", "", printable(m.OS), printable(m.kernel()), printable(m.Go)}
	if m.Cores > 0 {
		parts[1] = plural(int64(m.Cores), "core")
	}
	if m.Memory > 0 {
		parts[2] = humanBytes(float64(m.Memory))
	}
	return slices.DeleteFunc(parts, func(s string) bool { return s == "" })
}

// kernel has a name before a bare number.
func (m *Machine) kernel() string {
	if m.Kernel != "" && m.Kernel[0] >= '0' && m.Kernel[0] <= '9' {
		return "kernel " + m.Kernel
	}
	return m.Kernel
}

func (row *reportRow) writeBlock(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n%s on %s\n", printable(row.Scenario), row.Label)
	say := func(name, format string, args ...any) {
		for i, line := range wrap(fmt.Sprintf(format, args...), textWidth-15) {
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(b, "  %-12s %s\n", name, line)
		}
	}
	say("mode", "%s", modeText(row.Mode))
	load := plural(int64(row.Connections), "connection")
	if row.Size > 0 {
		load += ", " + humanBytes(float64(row.Size)) + " payload"
	}
	if row.Duration > 0 {
		load += ", measured for " + humanDuration(row.Duration)
	}
	if row.Rounds > 1 {
		load += fmt.Sprintf(", medians of %d rounds", row.Rounds)
	}
	say("load", "%s", load)
	rate := humanRate(row.Rate)
	if row.Want > 0 {
		rate += " reached of " + humanRate(row.Want) + " wanted (" + humanShare(row.Rate/row.Want) + ")"
	}
	say("rate", "%s", rate)
	count := plural(row.Count, row.Unit) + ", "
	if row.Failed == 0 {
		count += "none failed"
	} else {
		count += humanCount(row.Failed) + " FAILED"
		if row.Missed > 0 {
			count += " (" + row.missedText() + ")"
		}
		if row.FirstError != "" {
			count += ", the first: " + row.FirstError
		}
	}
	say("count", "%s", count)
	if row.Latency != nil {
		say("latency", "%s", row.Latency.line())
	}
	if t := row.Tenths; t != nil {
		say("tenths", "p50 %s  p99 %s  of a tenth of a second (medians of %d)", humanDuration(t.P50), humanDuration(t.P99), t.Count)
	}
	if h := row.Hostile; h != nil {
		say("hostile", "%s; bursts of %s; %s", h.who(), humanCount(int64(h.Flood)), plural(h.Ended, "connection")+" of theirs ended by the server")
		say("p50", "%s", h.P50.text())
		say("p99", "%s, medians of %s", h.P99.text(), plural(int64(len(h.Rounds)), "round"))
		if h.Tenth != nil {
			say("p99, tenth", "%s, of a tenth of a second", h.Tenth.text())
		}
	}
	if row.Usage != nil {
		row.sayUsage(say)
	}
	g := row.Generator
	late := ""
	if g.Late > 0 {
		late = ", " + humanCount(g.Late) + " sent over 1 ms late"
	}
	say("generator", "%s, the busiest %s of a core%s", pluralOf(int64(g.Processes), "process", "processes"), humanShare(g.Busy), late)
	if g.Saturated {
		fmt.Fprintf(b, "  %s\n", saturatedText)
	}
	for _, note := range row.Notes {
		say("note", "%s", note)
	}
}

const saturatedText = "!!! GENERATOR SATURATED: these numbers are the generator's own, not the server's !!!"

func (l *Latency) line() string {
	var parts []string
	for _, p := range []float64{50, 90, 99, 99.9} {
		if v, ok := l.at(p); ok {
			parts = append(parts, humanPercentile(p)+" "+humanDuration(v))
		}
	}
	return strings.Join(append(parts, "max "+humanDuration(l.Max)), "  ")
}

func (row *reportRow) sayUsage(say func(name, format string, args ...any)) {
	u := row.Usage
	if u.CPU > 0 {
		row.sayCPU(say)
	}
	if u.RssAfter > 0 {
		row.sayMemory(say)
	}
	if u.Goroutines > 0 || u.GCs > 0 {
		say("go", "%s, %s, %s paused", plural(int64(u.Goroutines), "goroutine"), plural(int64(u.GCs), "GC"), humanDuration(u.GCPause))
	}
}

func (row *reportRow) sayCPU(say func(name, format string, args ...any)) {
	u := row.Usage
	cpu := humanDuration(u.CPU) + " CPU"
	if u.CPUPer > 0 {
		cpu = humanDuration(u.CPUPer) + " CPU per " + row.Unit
	}
	if row.Duration > 0 {
		cpu += ", " + humanShare(float64(u.CPU)/float64(row.Duration)) + " of a core"
	}
	say("server", "%s", cpu)
}

func (row *reportRow) sayMemory(say func(name, format string, args ...any)) {
	u := row.Usage
	memory := "RssAnon " + humanBytes(float64(u.RssAfter))
	if u.RssBefore > 0 {
		memory += " (" + humanBytes(float64(u.RssBefore)) + " before)"
	}
	if u.PerConnection != 0 && isFinite(u.PerConnection) {
		memory += ", " + bytesEach(u.PerConnection) + " per connection"
	}
	if u.KernelSockets > 0 {
		memory += ", kernel sockets " + humanBytes(float64(u.KernelSockets))
	}
	say("memory", "%s", memory)
}

// bytesEach is in plain bytes up to 100,000: the difference between 934 and
// 1,020 of a session is what one looks for.
func bytesEach(b float64) string {
	if isFinite(b) && b < 1e5 && b > -1e5 {
		return humanCount(int64(b)) + " B"
	}
	return humanBytes(b)
}

func (g *reportGroup) writeTable(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n%s (%s)\n", g.Scenario, modeText(g.Mode))
	table := [][]string{{"server", "rate", "p50", "p99", "p99.9", "CPU/" + g.Unit, "B/conn", "failed"}}
	var marks, failures []string
	for i := range g.Rows {
		row := &g.Rows[i]
		line := []string{row.Label, humanRate(row.Rate), noValue, noValue, noValue, noValue, noValue, humanCount(row.Failed)}
		for j, p := range []float64{50, 99, 99.9} {
			if v, ok := row.Latency.at(p); ok {
				line[2+j] = humanDuration(v)
			}
		}
		if row.Usage != nil {
			if row.Usage.CPUPer > 0 {
				line[5] = humanDuration(row.Usage.CPUPer)
			}
			if row.Usage.PerConnection != 0 {
				line[6] = humanCount(int64(row.Usage.PerConnection))
			}
		}
		table = append(table, line)
		if row.Generator.Saturated {
			marks = append(marks, row.Label)
		}
		if row.Missed > 0 {
			failures = append(failures, row.Label+": "+row.missedText())
		}
		if row.Failed > 0 && row.FirstError != "" {
			failures = append(failures, row.Label+" failed first with: "+row.FirstError)
		}
	}
	writeColumns(b, "lrrrrrrr", withoutEmpty(table))
	for _, failure := range failures {
		for _, line := range wrap(failure, textWidth) {
			fmt.Fprintf(b, "  %s\n", line)
		}
	}
	if len(marks) > 0 {
		fmt.Fprintf(b, "  %s\n", saturatedText)
		for _, line := range wrap("at: "+strings.Join(marks, ", "), textWidth) {
			fmt.Fprintf(b, "  %s\n", line)
		}
	}
}

func (c *Comparison) writeText(b *bytes.Buffer) {
	if c == nil {
		return
	}
	fmt.Fprintf(b, "\nPerch beside the others, %s interleaved; ratio = Perch / peer, with its 95 %% interval\n", plural(int64(c.Rounds), "round"))
	if c.fewRounds() {
		fmt.Fprintf(b, "(no interval of fewer than %d rounds)\n", leastRounds)
	}
	scenario := ""
	for _, m := range c.measures() {
		if m.Scenario != scenario {
			scenario = m.Scenario
			fmt.Fprintf(b, "\n%s\n", scenario)
		}
		table := [][]string{{m.Measure, "perch", "peer", "ratio", "low–high", "target", ""}}
		for _, ratio := range m.Ratios {
			line := []string{ratio.Peer, someMeasure(ratio.Perch, m.Unit), someMeasure(ratio.Other, m.Unit), ratioText(ratio),
				ratioRange(ratio), "", ""}
			if ratio.Target > 0 {
				line[5], line[6] = "≤ "+humanRatio(ratio.Target), verdict(ratio)
			}
			table = append(table, line)
		}
		writeColumns(b, "lrrrrrl", table)
	}
	if met, unknown, all := c.targets(); all > 0 {
		fmt.Fprintf(b, "\n%d of %s met", met, plural(int64(all), "target"))
		if unknown > 0 {
			fmt.Fprintf(b, ", %d %s", unknown, notMeasured)
		}
		fmt.Fprintln(b)
	}
}

// someMeasure is a value that was measured: none is zero.
func someMeasure(v float64, unit string) string {
	if !(v > 0) {
		return noValue
	}
	return humanMeasure(v, unit)
}

func ratioText(r Ratio) string {
	if !r.measured() {
		return noValue
	}
	return humanRatio(r.Ratio)
}

// ratioRange is the interval, or the number of rounds that are too few for one.
func ratioRange(r Ratio) string {
	switch {
	case r.measured() && r.Rounds > 0 && r.Rounds < leastRounds:
		return plural(int64(r.Rounds), "round")
	case !r.hasInterval():
		return noValue
	}
	return strings.TrimSuffix(humanRatio(r.Low), "×") + "–" + strings.TrimSuffix(humanRatio(r.High), "×")
}

// notMeasured is what a target gets of which nothing is known.
const notMeasured = "not measured"

func verdict(r Ratio) string {
	switch {
	case !r.measured():
		return notMeasured
	case r.OK:
		return "ok"
	}
	return "MISSED"
}

// withoutEmpty leaves out the columns that no line has a value in.
func withoutEmpty(table [][]string) [][]string {
	out := make([][]string, len(table))
	for column := range table[0] {
		if slices.ContainsFunc(table[1:], func(line []string) bool { return line[column] != noValue }) {
			for i, line := range table {
				out[i] = append(out[i], line[column])
			}
		}
	}
	return out
}

// writeColumns aligns a table, l to the left and r to the right. The first
// column is as wide as in the other tables, so that they stand under each other.
func writeColumns(b *bytes.Buffer, align string, table [][]string) {
	widths := make([]int, len(align))
	for i := range widths {
		widths[i] = 8
	}
	widths[0] = 20
	for _, line := range table {
		line[0] = shorten(line[0], 24)
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, line := range table {
		var out strings.Builder
		for i, cell := range line {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if align[i] == 'r' {
				cell = pad + cell
			} else {
				cell += pad
			}
			out.WriteString("  " + cell)
		}
		fmt.Fprintln(b, strings.TrimRight(out.String(), " "))
	}
}

// wrap breaks a text at spaces; a longer word stays whole.
func wrap(text string, columns int) []string {
	var lines []string
	line := ""
	for i, word := range strings.Split(text, " ") {
		switch {
		case i == 0:
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

func plural(n int64, noun string) string { return pluralOf(n, noun, pluralNoun(noun)) }

func pluralNoun(noun string) string {
	if stem, ok := strings.CutSuffix(noun, "y"); ok {
		return stem + "ies"
	}
	return noun + "s"
}

func pluralOf(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return humanCount(n) + " " + many
}
