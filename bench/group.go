package bench

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// reportGroup holds what belongs in one table and one set of plots: the servers
// under the same scenario, in the same mode.
type reportGroup struct {
	Scenario string
	Mode     string
	Unit     string
	Size     int
	Rows     []reportRow
}

// reportRow is one server under one load. Several rounds of it are one row: the
// numbers are the medians of the rounds then, but for those of which the worst
// has to be seen: Max, Failed, Missed, Busy, Late and Saturated.
type reportRow struct {
	Result
	Label  string // Server, with the load where that alone does not tell
	Perch  bool
	Rounds int
}

// groups keeps the order in which things were measured, with Perch first within
// a group.
func (r *Report) groups() []reportGroup {
	type key struct {
		scenario, mode, unit string
		size                 int
	}
	var order []key
	members := map[key][][]*Result{} // of a group, of a row, its rounds
	for i := range r.Results {
		res := &r.Results[i]
		k := key{res.Scenario, res.Mode, res.Unit, res.Size}
		if _, ok := members[k]; !ok {
			order = append(order, k)
		}
		rows := members[k]
		at := slices.IndexFunc(rows, func(rounds []*Result) bool { return sameLoad(rounds[0], res) })
		if at < 0 {
			members[k] = append(rows, []*Result{res})
			continue
		}
		rows[at] = append(rows[at], res)
	}
	groups := make([]reportGroup, 0, len(order))
	for _, k := range order {
		g := reportGroup{Scenario: printable(k.scenario), Mode: printable(k.mode), Unit: printable(k.unit), Size: k.size}
		for _, rounds := range members[k] {
			g.Rows = append(g.Rows, newReportRow(rounds))
		}
		g.label()
		slices.SortStableFunc(g.Rows, func(a, b reportRow) int {
			if a.Perch != b.Perch && a.Perch {
				return -1
			} else if a.Perch != b.Perch {
				return 1
			}
			return 0
		})
		groups = append(groups, g)
	}
	return groups
}

// sameLoad tells a further round from another load. A round may lose a few
// connections, so these need not be equal.
func sameLoad(a, b *Result) bool {
	return a.Server == b.Server && near(float64(a.Connections), float64(b.Connections)) && near(a.Want, b.Want)
}

func near(a, b float64) bool {
	return a == b || math.Abs(a-b) <= 0.05*max(math.Abs(a), math.Abs(b))
}

// label names the rows, with what tells them apart where a server has several.
func (g *reportGroup) label() {
	seen := map[string][]int{}
	for i := range g.Rows {
		g.Rows[i].Label = g.Rows[i].Server
		seen[g.Rows[i].Server] = append(seen[g.Rows[i].Server], i)
	}
	for _, rows := range seen {
		if len(rows) < 2 {
			continue
		}
		first := &g.Rows[rows[0]]
		wants := false
		for _, i := range rows {
			wants = wants || !near(g.Rows[i].Want, first.Want)
		}
		for _, i := range rows {
			row := &g.Rows[i]
			if wants {
				row.Label += ", " + humanRate(row.Want)
				continue
			}
			row.Label += ", " + humanCount(int64(row.Connections)) + " connections"
		}
	}
}

// isPerch goes by the name in a comparison.
func isPerch(server string) bool {
	name := strings.ToLower(strings.TrimSpace(server))
	return name == "perch" || strings.HasPrefix(name, "perch ")
}

// newReportRow draws the rounds together. The series is that of the round whose
// rate lies in the middle: a mean of curves would show a run that never was.
func newReportRow(rounds []*Result) reportRow {
	byRate := slices.Clone(rounds)
	slices.SortStableFunc(byRate, func(a, b *Result) int {
		return cmp.Compare(a.Rate, b.Rate)
	})
	row := reportRow{Result: *byRate[(len(byRate)-1)/2], Rounds: len(rounds), Perch: isPerch(rounds[0].Server)}
	row.Server = printable(row.Server)
	if row.Server == "" {
		row.Server = noValue
	}
	row.Mode, row.Unit, row.FirstError = printable(row.Mode), printable(row.Unit), ""
	row.Failed, row.Missed, row.Notes = 0, 0, nil
	row.Rate = medianOf(rounds, func(r *Result) float64 { return r.Rate })
	row.Count = int64(medianOf(rounds, func(r *Result) float64 { return float64(r.Count) }))
	for _, r := range rounds {
		row.Failed += r.Failed
		row.Missed += r.Missed
		if row.FirstError == "" {
			row.FirstError = printable(r.FirstError)
		}
		for _, note := range r.Notes {
			if note = printable(note); !slices.Contains(row.Notes, note) {
				row.Notes = append(row.Notes, note)
			}
		}
		row.Generator.Busy = max(row.Generator.Busy, r.Generator.Busy)
		row.Generator.Late = max(row.Generator.Late, r.Generator.Late)
		row.Generator.Saturated = row.Generator.Saturated || r.Generator.Saturated
	}
	row.Latency = medianLatency(rounds)
	row.Usage = medianUsage(rounds)
	return row
}

func medianLatency(rounds []*Result) *Latency {
	var with []*Result
	for _, r := range rounds {
		if r.Latency != nil && r.Latency.Count > 0 {
			with = append(with, r)
		}
	}
	if len(with) == 0 {
		return nil
	}
	l := *with[0].Latency
	l.Percentiles = nil
	l.Mean = time.Duration(medianOf(with, func(r *Result) float64 { return float64(r.Latency.Mean) }))
	for _, r := range with {
		l.Min, l.Max = min(l.Min, r.Latency.Min), max(l.Max, r.Latency.Max)
	}
	for _, p := range with[0].Latency.Percentiles {
		var values []float64
		for _, r := range with {
			if v, ok := r.Latency.at(p.P); ok {
				values = append(values, float64(v))
			}
		}
		l.Percentiles = append(l.Percentiles, Percentile{P: p.P, Value: time.Duration(Median(values))})
	}
	return &l
}

func medianUsage(rounds []*Result) *Usage {
	var with []*Result
	for _, r := range rounds {
		if r.Usage != nil {
			with = append(with, r)
		}
	}
	if len(with) == 0 {
		return nil
	}
	of := func(value func(u *Usage) float64) float64 {
		return medianOf(with, func(r *Result) float64 { return value(r.Usage) })
	}
	return &Usage{
		CPU:           time.Duration(of(func(u *Usage) float64 { return float64(u.CPU) })),
		CPUPer:        time.Duration(of(func(u *Usage) float64 { return float64(u.CPUPer) })),
		RssBefore:     int64(of(func(u *Usage) float64 { return float64(u.RssBefore) })),
		RssAfter:      int64(of(func(u *Usage) float64 { return float64(u.RssAfter) })),
		PerConnection: of(func(u *Usage) float64 { return u.PerConnection }),
		KernelSockets: int64(of(func(u *Usage) float64 { return float64(u.KernelSockets) })),
		Goroutines:    int(of(func(u *Usage) float64 { return float64(u.Goroutines) })),
		GCs:           int(of(func(u *Usage) float64 { return float64(u.GCs) })),
		GCPause:       time.Duration(of(func(u *Usage) float64 { return float64(u.GCPause) })),
	}
}

func medianOf(rounds []*Result, value func(r *Result) float64) float64 {
	values := make([]float64, 0, len(rounds))
	for _, r := range rounds {
		if v := value(r); isFinite(v) {
			values = append(values, v)
		}
	}
	return Median(values)
}

// missedText says what was never sent, and why.
func (row *reportRow) missedText() string {
	if row.Missed == 1 {
		return "1 message was never sent: the server did not read"
	}
	return humanCount(row.Missed) + " messages were never sent: the server did not read"
}

// at finds a percentile that was recorded.
func (l *Latency) at(p float64) (time.Duration, bool) {
	if l == nil {
		return 0, false
	}
	for _, v := range l.Percentiles {
		if math.Abs(v.P-p) < 1e-6 {
			return v.Value, true
		}
	}
	return 0, false
}

// measureGroup holds the ratios of one measure in one scenario, a peer each.
type measureGroup struct {
	Scenario string
	Measure  string
	Unit     string
	Ratios   []Ratio
}

func (c *Comparison) measures() []measureGroup {
	if c == nil {
		return nil
	}
	var out []measureGroup
	for _, ratio := range c.Ratios {
		ratio.Scenario, ratio.Measure = printable(ratio.Scenario), printable(ratio.Measure)
		ratio.Unit, ratio.Peer = printable(ratio.Unit), printable(ratio.Peer)
		ratio.OK = ratio.OK && ratio.measured()
		ratio.Rounds = cmp.Or(ratio.Rounds, c.Rounds)
		at := slices.IndexFunc(out, func(g measureGroup) bool {
			return g.Scenario == ratio.Scenario && g.Measure == ratio.Measure && g.Unit == ratio.Unit
		})
		if at < 0 {
			at = len(out)
			out = append(out, measureGroup{Scenario: ratio.Scenario, Measure: ratio.Measure, Unit: ratio.Unit})
		}
		out[at].Ratios = append(out[at].Ratios, ratio)
	}
	return out
}

// measured tells whether there is a ratio: a side that could not be measured
// leaves none, and a target is neither met nor missed then.
func (r *Ratio) measured() bool { return r.Ratio > 0 && isFinite(r.Ratio) }

// hasInterval tells whether Low and High say something of the spread.
func (r *Ratio) hasInterval() bool {
	return r.measured() && r.Rounds >= leastRounds && r.Low > 0 && r.Low <= r.Ratio && isFinite(r.High) && r.Ratio <= r.High
}

// fewRounds tells whether an interval is missing for want of rounds.
func (c *Comparison) fewRounds() bool {
	return slices.ContainsFunc(c.measures(), func(m measureGroup) bool {
		return slices.ContainsFunc(m.Ratios, func(r Ratio) bool { return r.measured() && r.Rounds < leastRounds })
	})
}

// targets counts the promises of a comparison, those kept, and those of which
// nothing is known.
func (c *Comparison) targets() (met, unknown, all int) {
	if c == nil {
		return 0, 0, 0
	}
	for i := range c.Ratios {
		ratio := &c.Ratios[i]
		if !(ratio.Target > 0) {
			continue
		}
		all++
		switch {
		case !ratio.measured():
			unknown++
		case ratio.OK:
			met++
		}
	}
	return met, unknown, all
}

// want is the rate that all rows were to reach, if it is one.
func (g *reportGroup) want() (rate float64, ok bool) {
	for _, row := range g.Rows {
		if row.Want <= 0 || !near(row.Want, g.Rows[0].Want) {
			return 0, false
		}
	}
	return g.Rows[0].Want, true
}

// sameConnections says that all rows had as many.
func (g *reportGroup) sameConnections() bool {
	return !slices.ContainsFunc(g.Rows, func(row reportRow) bool {
		return !near(float64(row.Connections), float64(g.Rows[0].Connections))
	})
}

// modeText says a mode for those who don't know the words.
func modeText(mode string) string {
	switch mode {
	case OpenLoop:
		return "open loop: sent at a constant rate, whatever comes back"
	case ClosedLoop:
		return "closed loop: the next is sent when the one before is answered"
	case "":
		return "mode not said"
	}
	return mode
}
