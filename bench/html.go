package bench

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"sync"
)

//go:embed report.html.tmpl report.css.tmpl report.svg.tmpl
var reportFiles embed.FS

// reportTemplates parses what is embedded, the page, its style sheet and the frame
// of a plot that is a file of its own, once.
var reportTemplates = sync.OnceValues(func() (*template.Template, error) {
	return template.ParseFS(reportFiles, "report.html.tmpl", "report.css.tmpl", "report.svg.tmpl")
})

// WriteHTML writes one page that needs nothing else: no script, no font, no
// picture from elsewhere, and a policy in it that forbids them. It can be sent,
// kept and printed.
func (r *Report) WriteHTML(w io.Writer) error {
	page, err := reportTemplates()
	if err != nil {
		return fmt.Errorf("bench: parse page: %w", err)
	}
	var b bytes.Buffer // a half page must not be left where it is written
	if err := page.ExecuteTemplate(&b, "report.html.tmpl", newReportPage(r.withoutNaN())); err != nil {
		return fmt.Errorf("bench: fill page: %w", err)
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("bench: write page: %w", err)
	}
	return nil
}

// reportPage is what the template shows. All its texts are plain: the template
// escapes them.
type reportPage struct {
	Title, Lead string
	Version     string
	When, Stamp string
	Brief       []string // the machine in a line
	Machine     [][2]string
	Command     string
	Compared    bool
	Saturated   bool
	Promises    []promiseRow
	Met, All    int
	Unknown     int // of all
	Rounds      string
	Sections    []pageSection
	Plain       bool // one scenario, which the title names
}

type promiseRow struct {
	Scenario, Measure, Peer      string
	Perch, Other, Ratio, Between string
	Target                       string
	Verdict                      string // ok, missed or none, the names of looks
}

type pageSection struct {
	ID, Name string
	Measures []pageMeasure
	Groups   []pageGroup
}

type pageMeasure struct {
	Name   string
	Bars   *barPlot
	Ratios *ratioPlot
	Table  []promiseRow
}

type pageGroup struct {
	Name   string
	Mode   string
	Load   string
	Tiles  []pageTile
	Facts  [][2]string
	Head   []string
	Rows   []pageRow
	Lines  []legend // of all plots of the group
	Plots  []*linePlot
	Alerts []string
	Notes  []string
}

type pageTile struct{ Name, Value, Unit, More string }

type pageRow struct {
	Label     string
	Perch     bool
	Saturated bool
	Cells     []string
}

type legend struct {
	Name  string
	Class int
}

func newReportPage(r *Report) *reportPage {
	p := &reportPage{Version: printable(r.Version), Command: printable(r.Command), Compared: r.Comparison != nil}
	if !r.Started.IsZero() {
		p.When, p.Stamp = r.Started.UTC().Format("2 January 2006, 15:04 UTC"), r.Started.UTC().Format("2006-01-02T15:04:05Z")
	}
	p.Brief, p.Machine = r.Machine.parts(), r.Machine.facts()
	p.Met, p.Unknown, p.All = r.Comparison.targets()
	groups := r.groups()
	if r.Comparison != nil {
		p.Rounds = plural(int64(r.Comparison.Rounds), "round")
	}
	section := func(name string) *pageSection {
		if i := slices.IndexFunc(p.Sections, func(s pageSection) bool { return s.Name == name }); i >= 0 {
			return &p.Sections[i]
		}
		p.Sections = append(p.Sections, pageSection{ID: fmt.Sprintf("s%d", len(p.Sections)+1), Name: name})
		return &p.Sections[len(p.Sections)-1]
	}
	for _, m := range r.Comparison.measures() {
		s := section(m.Scenario)
		id := fmt.Sprintf("%s-m%d", s.ID, len(s.Measures)+1)
		part := pageMeasure{Name: m.Measure, Bars: costBars(id+"-cost", &m), Ratios: ratioDots(id+"-ratio", &m)}
		for _, ratio := range m.Ratios {
			row := newPromiseRow(ratio)
			part.Table = append(part.Table, row)
			if ratio.Target > 0 {
				p.Promises = append(p.Promises, row)
			}
		}
		s.Measures = append(s.Measures, part)
	}
	class := lineClasses(groups)
	servers := map[string]bool{}
	for i := range groups {
		s := section(groups[i].Scenario)
		g := newPageGroup(fmt.Sprintf("%s-g%d", s.ID, len(s.Groups)+1), &groups[i], class)
		s.Groups = append(s.Groups, g)
		for _, row := range groups[i].Rows {
			servers[row.Server] = true
			p.Saturated = p.Saturated || row.Generator.Saturated
		}
	}
	p.title(groups, servers)
	return p
}

func (p *reportPage) title(groups []reportGroup, servers map[string]bool) {
	switch {
	case p.Compared:
		peers := 0
		for name := range servers {
			if !isPerch(name) {
				peers++
			}
		}
		p.Title = "Perch beside " + plural(int64(peers), "server")
		if peers == 0 {
			p.Title = "Perch beside its peers"
		}
		p.Lead = p.Rounds + " in turns on one machine. A ratio is what Perch costs over what the peer costs in the same round: below 1, Perch is the cheaper."
		if p.Rounds == "1 round" {
			p.Lead = "One round on one machine. A ratio is what Perch costs over what the peer costs: below 1, Perch is the cheaper."
		}
	case len(groups) == 0:
		p.Title, p.Lead = "Nothing measured", "The report has no results."
	case len(servers) == 1:
		p.Plain = len(p.Sections) == 1
		p.Title = fmt.Sprintf("%s on %s", sectionNames(p.Sections), groups[0].Rows[0].Server)
	default:
		p.Title = fmt.Sprintf("%s on %s", sectionNames(p.Sections), plural(int64(len(servers)), "server"))
	}
}

func sectionNames(sections []pageSection) string {
	if len(sections) > 3 {
		return plural(int64(len(sections)), "scenario")
	}
	names := make([]string, len(sections))
	for i, s := range sections {
		names[i] = s.Name
	}
	return strings.Join(names, ", ")
}

// lineClasses gives each server one look through the whole page: Perch, or the
// only server, the accent.
func lineClasses(groups []reportGroup) map[string]int {
	class := map[string]int{}
	perch := slices.ContainsFunc(groups, func(g reportGroup) bool {
		return slices.ContainsFunc(g.Rows, func(row reportRow) bool { return row.Perch })
	})
	accent, next := false, 0
	for _, g := range groups {
		for _, row := range g.Rows {
			if _, ok := class[row.Label]; ok {
				continue
			}
			if !accent && (row.Perch || !perch) {
				accent, class[row.Label] = true, 0
				continue
			}
			class[row.Label] = 1 + next%classes
			next++
		}
	}
	return class
}

func newPromiseRow(r Ratio) promiseRow {
	row := promiseRow{Scenario: r.Scenario, Measure: r.Measure, Peer: r.Peer, Perch: someMeasure(r.Perch, r.Unit),
		Other: someMeasure(r.Other, r.Unit), Ratio: ratioText(r), Between: ratioRange(r), Verdict: "missed"}
	if r.Target > 0 {
		row.Target = "≤ " + humanRatio(r.Target)
	}
	switch {
	case !r.measured():
		row.Verdict = "none"
	case r.OK:
		row.Verdict = "ok"
	}
	return row
}

func (m *Machine) facts() [][2]string {
	facts := [][2]string{{"Processor", printable(m.CPU)}, {"Cores", ""}, {"Memory", ""}, {"System", printable(m.OS)},
		{"Kernel", printable(m.Kernel)}, {"Go", printable(m.Go)}}
	if m.Cores > 0 {
		facts[1][1] = humanCount(int64(m.Cores))
	}
	if m.Memory > 0 {
		facts[2][1] = humanBytes(float64(m.Memory))
	}
	return slices.DeleteFunc(facts, func(f [2]string) bool { return f[1] == "" })
}

func newPageGroup(id string, g *reportGroup, class map[string]int) pageGroup {
	out := pageGroup{Name: g.Mode, Mode: strings.TrimPrefix(modeText(g.Mode), g.Mode+": ")}
	first := &g.Rows[0]
	out.Load = plural(int64(first.Connections), "connection")
	if !g.sameConnections() {
		out.Load = ""
	}
	if want, ok := g.want(); ok {
		out.Load = join(out.Load, humanRate(want)+" wanted")
	}
	if g.Size > 0 {
		out.Load = join(out.Load, humanBytes(float64(g.Size))+" payload")
	}
	if first.Duration > 0 {
		out.Load = join(out.Load, humanDuration(first.Duration)+" measured")
	}
	if first.Rounds > 1 {
		out.Load = join(out.Load, "medians of "+plural(int64(first.Rounds), "round"))
	}
	columns := resultColumns(g)
	if len(g.Rows) == 1 {
		out.Tiles = resultTiles(first)
		for _, c := range columns {
			if v := c.value(first); v != "" {
				out.Facts = append(out.Facts, [2]string{c.name, v})
			}
		}
	} else {
		out.Head, out.Rows = resultTable(g, columns)
	}
	plots := []*linePlot{memoryPlot(id+"-memory", g, class), latencyPlot(id+"-latency", g, class)}
	plots = append(plots, latencyTimePlots(id+"-time", g, class)...)
	for _, plot := range append(plots, ratePlot(id+"-rate", g, class)) {
		if plot != nil {
			out.Plots = append(out.Plots, plot)
		}
	}
	for i := range g.Rows {
		row := &g.Rows[i]
		if len(out.Plots) > 0 && len(g.Rows) > 1 {
			out.Lines = append(out.Lines, legend{row.Label, class[row.Label]})
		}
		if row.Generator.Saturated {
			out.Alerts = append(out.Alerts, row.Label+": the generator was the bottleneck ("+humanShare(row.Generator.Busy)+
				" of a core in its busiest process). These numbers are its own, not the server's.")
		}
		if row.Failed > 0 {
			text := fmt.Sprintf("%s: %s failed", row.Label, humanCount(row.Failed))
			if row.Missed > 0 {
				text += " (" + row.missedText() + ")"
			}
			if row.FirstError != "" {
				text += ", the first: " + row.FirstError
			}
			out.Alerts = append(out.Alerts, text)
		}
		for _, note := range row.Notes {
			if len(g.Rows) > 1 {
				note = row.Label + ": " + note
			}
			out.Notes = append(out.Notes, note)
		}
	}
	return out
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + " · " + b
}
