package bench

import "time"

const timeAxis = "time since the start"

func timeTicks(seconds []float64) []plotTick {
	return ticksOf(seconds, func(v float64) string { return clockTime(time.Duration(v * float64(time.Second))) })
}

// ratePlot is what was reached second by second. nil for less than two seconds.
func ratePlot(id string, g *reportGroup, class map[string]int) *linePlot {
	var curves []curve
	var want float64
	for _, row := range g.Rows {
		c := curve{name: row.Label, class: class[row.Label]}
		some := false
		for _, p := range row.Series {
			if isFinite(p.Rate) && p.Rate >= 0 && p.At >= 0 {
				c.points = append(c.points, curvePoint{x: p.At.Seconds(), y: p.Rate, tip: humanRate(p.Rate) + " after " + clockTime(p.At)})
				some = some || p.Rate > 0
			}
		}
		if some && len(c.points) > 1 {
			c.points = thin(c.points)
			curves = append(curves, c)
			want = max(want, row.Want)
		}
	}
	if len(curves) == 0 {
		return nil
	}
	length, _, high := ends(curves)
	y, values := linearScale(max(high, want), 1)
	x, seconds := timeScale(length)
	p := &linePlot{ID: id, Title: "Throughput over time", XName: timeAxis, YName: pluralNoun(g.Unit) + " per second"}
	p.Desc = "Rate in each second of the run. " + describe(curves, " at the end")
	p.draw(curves, x, y, timeTicks(seconds), ticksOf(values, axisCount), false)
	if common, ok := g.want(); ok {
		p.Goal = &plotTick{At: round2(plotHeight * (1 - y.share(common))), Label: humanRate(common) + " wanted"}
		p.Desc += " Wanted: " + humanRate(common) + "."
	}
	return p
}

// timedLatency are what is drawn of each second's latencies.
var timedLatency = []struct {
	name string
	of   func(p *Point) time.Duration
}{
	{"p50", func(p *Point) time.Duration { return p.P50 }},
	{"p99", func(p *Point) time.Duration { return p.P99 }},
	{"max", func(p *Point) time.Duration { return p.Max }},
}

// latencyTimePlots have the latencies second by second: of one server in a plot,
// of several in a plot for each of p50, p99 and the greatest, with a line for
// each server as in the other plots and one scale for all. None for less than
// two seconds.
func latencyTimePlots(id string, g *reportGroup, class map[string]int) []*linePlot {
	const name = "Latency over time"
	var all []curve
	var plots []*linePlot
	var curves [][]curve // of each plot
	if len(g.Rows) == 1 {
		p := &linePlot{ID: id, Title: name}
		for i, m := range timedLatency {
			c := curve{name: m.name, class: i}
			if c.points = latencyPoints(g.Rows[0].Series, m.of); len(c.points) > 1 {
				all = append(all, c)
				p.Keys = append(p.Keys, legend{c.name, c.class})
			}
		}
		plots, curves = append(plots, p), append(curves, all)
	} else {
		for _, m := range timedLatency {
			var of []curve
			for _, row := range g.Rows {
				c := curve{name: row.Label, class: class[row.Label]}
				if c.points = latencyPoints(row.Series, m.of); len(c.points) > 1 {
					of = append(of, c)
				}
			}
			plots = append(plots, &linePlot{ID: id + "-" + m.name, Title: name + ", " + m.name})
			curves = append(curves, of)
			all = append(all, of...)
		}
	}
	length, low, high := ends(all)
	var out []*linePlot
	for i, p := range plots {
		if len(curves[i]) == 0 {
			continue
		}
		y, values := logScale(low, high)
		x, seconds := timeScale(length)
		p.XName, p.YName = timeAxis, "latency, logarithmic"
		p.Desc = "Latency of what was answered in each second of the run. " + describe(curves[i], " at the end")
		p.draw(curves[i], x, y, timeTicks(seconds), ticksOf(values, func(v float64) string {
			return axisDuration(time.Duration(v))
		}), false)
		out = append(out, p)
	}
	return out
}

// latencyPoints leaves a gap where nothing was answered.
func latencyPoints(series []Point, of func(p *Point) time.Duration) []curvePoint {
	var points []curvePoint
	gap := false
	for i := range series {
		p := &series[i]
		d := of(p)
		if d <= 0 || p.At < 0 {
			gap = len(points) > 0
			continue
		}
		points = append(points, curvePoint{x: p.At.Seconds(), y: float64(d), tip: humanDuration(d) + " after " + clockTime(p.At), gap: gap})
		gap = false
	}
	return thin(points)
}
