package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

const (
	markdownFile = "benchmarks.md"
	markdownDir  = "benchmarks" // of the plots, beside the page
)

// WriteMarkdown writes the report as a page of documentation: benchmarks.md in
// dir, and its plots as SVG files in dir/benchmarks, named after the cases. Both
// directories are made where they are missing, files of the same names are
// replaced, and others are left alone. The page is written last: after an error
// the one before it is still there.
func (r *Report) WriteMarkdown(dir string) error {
	page := newMarkdownPage(r.withoutNaN())
	plots := filepath.Join(dir, markdownDir)
	if err := os.MkdirAll(plots, 0o755); err != nil {
		return fmt.Errorf("bench: write page: %w", err)
	}
	for _, p := range page.plots {
		text, err := p.file.render()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(plots, p.name), text, 0o644); err != nil {
			return fmt.Errorf("bench: write plot: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, markdownFile), page.text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("bench: write page: %w", err)
	}
	return nil
}

// markdownPage collects the text and the plots that it refers to.
type markdownPage struct {
	text   bytes.Buffer
	plots  []namedPlot
	rounds int // of a comparison
}

type namedPlot struct {
	name string
	file *plotFile
}

func newMarkdownPage(r *Report) *markdownPage {
	p := &markdownPage{}
	groups, measures := r.groups(), r.Comparison.measures()
	if r.Comparison != nil {
		p.rounds = r.Comparison.Rounds
	}
	p.head(r, groups)
	p.promises(measures, r.Comparison.fewRounds())
	class := lineClasses(groups)
	var cases []string
	for _, m := range measures {
		cases = append(cases, m.Scenario)
	}
	for _, g := range groups {
		cases = append(cases, g.Scenario)
	}
	var seen []string
	for _, name := range cases {
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		p.section(name, slices.DeleteFunc(slices.Clone(measures), func(m measureGroup) bool { return m.Scenario != name }),
			slices.DeleteFunc(slices.Clone(groups), func(g reportGroup) bool { return g.Scenario != name }), class)
	}
	return p
}

func (p *markdownPage) printf(format string, args ...any) { fmt.Fprintf(&p.text, format, args...) }

func (p *markdownPage) head(r *Report, groups []reportGroup) {
	p.printf("# Benchmarks\n\n")
	compared := r.Comparison != nil
	switch {
	case compared:
		peers := map[string]bool{}
		for _, g := range groups {
			for _, row := range g.Rows {
				if !row.Perch {
					peers[row.Server] = true
				}
			}
		}
		p.printf("What Perch costs beside %s, loaded in turns on one machine, %s each", plural(int64(len(peers)), "other server"),
			plural(int64(p.rounds), "round"))
	default:
		p.printf("What `perch bench` measured")
	}
	if r.Command == "" {
		p.printf(".\n")
	} else {
		if compared {
			p.printf("; this repeats it, inside a clone of Perch, on a machine that does nothing else:\n\n")
		} else {
			p.printf("; this repeats it:\n\n")
		}
		p.code(printable(r.Command))
	}
	about := []string{strings.TrimSpace("Perch " + printable(r.Version))}
	if r.Version == "" {
		about = nil
	}
	if !r.Started.IsZero() {
		about = append(about, r.Started.UTC().Format("2 January 2006"))
	}
	p.printf("\nMachine: %s\n", markdownText(strings.Join(append(r.Machine.parts(), about...), " · ")))
	if compared && p.rounds > 1 {
		p.printf("\nColumns named “median” are medians of the rounds")
		if lastOnly(groups) {
			p.printf("; the other columns and the plots of latency and memory are those of the last round")
		}
		p.printf(".\n")
	}
}

// lastOnly says that the results hold one round of several.
func lastOnly(groups []reportGroup) bool {
	return !slices.ContainsFunc(groups, func(g reportGroup) bool {
		return slices.ContainsFunc(g.Rows, func(row reportRow) bool { return row.Rounds > 1 })
	})
}

// code is a block that its content can't end.
func (p *markdownPage) code(line string) {
	fence := "```"
	for strings.Contains(line, fence) {
		fence += "`"
	}
	p.printf("%ssh\n%s\n%s\n", fence, line, fence)
}

func (p *markdownPage) promises(measures []measureGroup, few bool) {
	table := [][]string{{"Case", "Measure", "Beside", "Ratio", "95 % interval", "Target", "Result"}}
	met, unknown := 0, 0
	for _, m := range measures {
		for _, ratio := range m.Ratios {
			if !(ratio.Target > 0) {
				continue
			}
			row := []string{ratio.Scenario, ratio.Measure, ratio.Peer, noValue, noValue, "≤ " + humanRatio(ratio.Target), notMeasured}
			if !ratio.measured() {
				unknown++
			} else {
				row[3], row[4] = humanRatio(ratio.Ratio), ratioRange(ratio)
				if row[6] = "missed"; ratio.OK {
					row[6] = "met"
					met++
				}
			}
			table = append(table, row)
		}
	}
	if len(table) == 1 {
		return
	}
	p.printf("\n## Targets\n\nA ratio is what Perch costs over what the server beside it costs in the same round; below 1×, Perch is the cheaper. "+
		"A target is met where the median of the rounds’ ratios does not exceed it. Met: %d of %d", met, len(table)-1)
	if unknown > 0 {
		p.printf(", %s: %d", notMeasured, unknown)
	}
	p.printf(".")
	if few {
		p.printf(" There is no interval of fewer than %d rounds.", leastRounds)
	}
	p.printf("\n\n")
	p.table("lllrrrl", table, func(row, column int, cell string) string {
		if column == 6 && row > 0 && cell != "met" {
			return "**" + cell + "**"
		}
		return cell
	})
}

func (p *markdownPage) section(name string, measures []measureGroup, groups []reportGroup, class map[string]int) {
	p.printf("\n## %s\n", markdownText(title(name)))
	for i := range groups {
		g := &groups[i]
		page := newPageGroup("", g, class)
		about := g.Mode
		if page.Mode != g.Mode {
			about += ": " + page.Mode
		}
		if page.Load != "" {
			about = page.Load + ", " + about
		}
		p.printf("\n%s.\n", markdownLine(title(about)))
		p.servers(g, measures)
		p.list(page.Alerts)
		p.list(page.Notes)
	}
	var costs, lines []namedPlot
	for i := range measures {
		m := &measures[i]
		bars, dots := costBars("", m), ratioDots("", m)
		if bars != nil {
			costs = append(costs, p.add(name, "cost", barFile(bars)))
		}
		if dots != nil {
			costs = append(costs, p.add(name, "ratio", ratioFile(dots)))
		}
		if bars != nil && dots != nil {
			// Two that stand side by side end at one line.
			pair := costs[len(costs)-2:]
			height := max(pair[0].file.Height, pair[1].file.Height)
			pair[0].file.Height, pair[1].file.Height = height, height
		}
	}
	for i := range groups {
		if plot := latencyPlot("", &groups[i], class); plot != nil {
			lines = append(lines, p.add(name, "latency", lineFile(plot)))
		}
		if plot := memoryPlot("", &groups[i], class); plot != nil {
			lines = append(lines, p.add(name, "memory", lineFile(plot)))
		}
	}
	p.images(costs)
	p.images(lines)
}

func (p *markdownPage) list(lines []string) {
	if len(lines) > 0 {
		p.printf("\n")
	}
	for _, line := range lines {
		p.printf("- %s\n", markdownLine(line))
	}
}

// images stand beside each other where there is room.
func (p *markdownPage) images(plots []namedPlot) {
	if len(plots) > 0 {
		p.printf("\n")
	}
	for _, plot := range plots {
		p.printf("![%s](%s/%s)\n", markdownText(plot.file.Title+". "+plot.file.Desc), markdownDir, plot.name)
	}
}

// servers is the table of a load: what is compared, as the median of the rounds,
// and what else was measured.
func (p *markdownPage) servers(g *reportGroup, measures []measureGroup) {
	var columns []resultColumn
	cpu, compared, each := "CPU per "+g.Unit, false, false
	for _, m := range measures {
		name := m.Measure
		if p.rounds > 1 {
			name += ", median"
		}
		columns = append(columns, resultColumn{name, m.of})
		each = each || m.Unit == "B"
		if m.Measure == cpu {
			cpu, compared = "", true
		}
	}
	// A few pings that fall into a case about memory say nothing of their cost.
	pings := g.Unit == "ping" && len(measures) > 0 && !compared
	for _, c := range resultColumns(g) {
		switch c.name {
		case "Memory each":
			// The bytes that are compared are the same, of all rounds.
			if !each {
				columns = append(columns, resultColumn{"bytes per session", c.value})
			}
		case "p50", "p99", "Connections":
			columns = append(columns, c)
		case "Failed":
			if slices.ContainsFunc(g.Rows, func(row reportRow) bool { return row.Failed > 0 }) {
				columns = append(columns, c)
			}
		case "Rate", cpu:
			if !pings {
				columns = append(columns, c)
			}
		}
	}
	head, rows := resultTable(g, columns)
	table := [][]string{head}
	for _, row := range rows {
		table = append(table, append([]string{row.Label}, row.Cells...))
	}
	p.printf("\n")
	p.table("l"+strings.Repeat("r", len(head)-1), table, func(row, _ int, cell string) string {
		if row > 0 && rows[row-1].Perch {
			return "**" + cell + "**"
		}
		return cell
	})
}

// of is what a server took; Perch's is the median of what stands beside its
// peers.
func (m *measureGroup) of(row *reportRow) string {
	var values []float64
	for _, ratio := range m.Ratios {
		v := ratio.Other
		if row.Perch {
			v = ratio.Perch
		} else if ratio.Peer != row.Server {
			continue
		}
		if isFinite(v) && v > 0 {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return ""
	}
	return humanMeasure(Median(values), m.Unit)
}

// table writes escaped cells, the first row as its head; look adds the
// emphasis.
func (p *markdownPage) table(align string, rows [][]string, look func(row, column int, cell string) string) {
	for i, row := range rows {
		for j, cell := range row {
			p.printf("| %s ", look(i, j, markdownText(cell)))
		}
		p.printf("|\n")
		if i > 0 {
			continue
		}
		for _, a := range align {
			p.printf("%s", map[rune]string{'l': "| --- ", 'r': "| ---: "}[a])
		}
		p.printf("|\n")
	}
}

// add names a plot after its case. A name that is taken gets a number.
func (p *markdownPage) add(name, kind string, f *plotFile) namedPlot {
	stem := fileStem(name) + "-" + kind
	plot := namedPlot{stem + ".svg", f}
	for n := 2; slices.ContainsFunc(p.plots, func(other namedPlot) bool { return other.name == plot.name }); n++ {
		plot.name = fmt.Sprintf("%s-%d.svg", stem, n)
	}
	p.plots = append(p.plots, plot)
	return plot
}

// fileStem is a name in small ASCII letters, digits and single hyphens, of a
// bounded length: "echo, 16 at once" is echo-16-at-once.
func fileStem(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	stem := strings.Join(words, "-")
	if stem = strings.TrimRight(stem[:min(len(stem), 64)], "-"); stem == "" {
		return "case"
	}
	return stem
}

var (
	markdownMarks = regexp.MustCompile("[\\\\`*_\\[\\]<>|&~#$]")
	// What makes a list of a line.
	markdownStart = regexp.MustCompile(`^([0-9]*)([-+.)])( |$)`)
)

// markdownText is a text that Markdown shows as it is, in a line or a cell.
func markdownText(s string) string {
	return markdownMarks.ReplaceAllString(strings.TrimSpace(s), `\$0`)
}

// markdownLine is a text that begins a block.
func markdownLine(s string) string {
	return markdownStart.ReplaceAllString(markdownText(s), `$1\$2$3`)
}
