package bench

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The plots of the page are drawn here as plain numbers; the template writes the
// SVG around them, so that it escapes every text. Along x all positions are
// percents and along y pixels: a plot then fills a phone as well as a printed
// page, with letters that keep their size.

const (
	plotHeight = 260
	// classes is how many looks (colour, dash and marker) the style sheet has for
	// peers. Perch's is 0.
	classes = 8
	// maxPoints bounds the points of a line: more can't be seen.
	maxPoints = 400
	// nameInPlot has room on a phone; the tables have a name whole.
	nameInPlot = 30
	// maxMarks bounds those that answer to a pointer.
	maxMarks = 40
)

type linePlot struct {
	ID, Title, Desc string
	XName, YName    string
	Height          int
	X, Y            []plotTick
	Lines           []plotLine
	Goal            *plotTick // a level that was wanted
	Keys            []legend  // of lines that are not servers
}

type plotTick struct {
	At    float64 // percent along x, pixels along y
	Label string
	First bool
	Last  bool
}

type plotLine struct {
	Name  string
	Class int
	Parts []string // points of a polyline each, x from 0 to 1000
	Marks []plotMark
	Shown bool // the marks are drawn, not only found by the pointer
}

type plotMark struct {
	X, Y  float64
	Class int
	Tip   string
	Side  string // start, middle or end: where its tip fits
	Below bool
}

// curve is a line before it is scaled.
type curve struct {
	name   string
	class  int
	points []curvePoint
}

type curvePoint struct {
	x, y float64
	tip  string
	gap  bool // nothing is known between the point before and this
}

// draw scales the curves and places the ticks.
func (p *linePlot) draw(curves []curve, x, y scale, xTicks, yTicks []plotTick, shown bool) {
	p.Height = plotHeight
	height := float64(plotHeight)
	for _, t := range xTicks {
		t.At = round2(100 * x.share(t.At))
		t.First, t.Last = t.At < 4, t.At > 96
		p.X = append(p.X, t)
	}
	for _, t := range yTicks {
		t.At = round2(height * (1 - y.share(t.At)))
		p.Y = append(p.Y, t)
	}
	for _, c := range curves {
		line := plotLine{Name: c.name, Class: c.class, Shown: shown}
		var points []string // of a part
		end := func() {
			if len(points) == 1 {
				points = append(points, points[0]) // a line of no length is seen as a dot
			}
			line.Parts = append(line.Parts, strings.Join(points, " "))
			points = nil
		}
		every := (len(c.points) + maxMarks - 1) / maxMarks
		for i, at := range c.points {
			px, py := x.share(at.x), height*(1-y.share(at.y))
			if at.gap && len(points) > 0 {
				end()
			}
			points = append(points, plain(1000*px)+","+plain(py))
			if i%every == 0 || i == len(c.points)-1 {
				mark := plotMark{X: round2(100 * px), Y: round2(py), Class: c.class, Tip: at.tip, Side: "middle", Below: py < 24}
				if len(curves) > 1 {
					mark.Tip = shorten(c.name, nameInPlot) + ": " + at.tip
				}
				if px < 0.3 {
					mark.Side = "start"
				} else if px > 0.7 {
					mark.Side = "end"
				}
				line.Marks = append(line.Marks, mark)
			}
		}
		end()
		p.Lines = append(p.Lines, line)
	}
	// What stands last is drawn on top: Perch.
	slices.Reverse(p.Lines)
}

// shorten keeps a name from running over what stands beside it.
func shorten(name string, most int) string {
	if runes := []rune(name); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return name
}

func plain(v float64) string { return strconv.FormatFloat(round2(v), 'f', -1, 64) }

func round2(v float64) float64 { return math.Round(100*v) / 100 }

// thin keeps a curve's least and greatest in each of so many parts, and its
// ends: a stall of a second must still be seen in a plot of a day.
func thin(points []curvePoint) []curvePoint {
	parts := maxPoints / 2
	if len(points) <= maxPoints {
		return points
	}
	out := []curvePoint{points[0]}
	inner := points[1:]
	at := 0 // of inner, the first that was not looked at
	keep := func(to int) {
		p := inner[to]
		// A gap before a point that is left out is one before the next.
		p.gap = slices.ContainsFunc(inner[at:to+1], func(p curvePoint) bool { return p.gap })
		out = append(out, p)
		at = to + 1
	}
	for i := range parts {
		from, to := i*(len(inner)-1)/parts, (i+1)*(len(inner)-1)/parts
		if from == to {
			continue
		}
		low, high := from, from
		for j := from; j < to; j++ {
			if inner[j].y < inner[low].y {
				low = j
			}
			if inner[j].y > inner[high].y {
				high = j
			}
		}
		keep(min(low, high))
		if low != high {
			keep(max(low, high))
		}
	}
	keep(len(inner) - 1)
	return out
}

func ticksOf(values []float64, label func(v float64) string) []plotTick {
	out := make([]plotTick, len(values))
	for i, v := range values {
		out[i] = plotTick{At: v, Label: label(v)}
	}
	return out
}

func ends(curves []curve) (maxX, minY, maxY float64) {
	minY = math.Inf(1)
	for _, c := range curves {
		for _, p := range c.points {
			maxX, minY, maxY = max(maxX, p.x), min(minY, p.y), max(maxY, p.y)
		}
	}
	return maxX, minY, maxY
}

// latencyPlot has the percentiles on the scale of an HdrHistogram, where each
// nine takes the same room, and the greatest latency at the end. nil without
// any.
func latencyPlot(id string, g *reportGroup, class map[string]int) *linePlot {
	nines := func(p float64) float64 { return -math.Log10(1 - p/100) }
	var curves []curve
	top := 0.0
	for _, row := range g.Rows {
		if row.Latency != nil {
			for _, p := range row.Latency.Percentiles {
				if p.P >= 50 && p.P < 100 {
					top = max(top, nines(p.P))
				}
			}
		}
	}
	start, end := nines(50), top+0.8
	var at []float64
	for _, row := range g.Rows {
		if row.Latency == nil {
			continue
		}
		c := curve{name: row.Label, class: class[row.Label]}
		add := func(x float64, d time.Duration, name string) {
			if d > 0 {
				c.points = append(c.points, curvePoint{x: x, y: float64(d), tip: name + " " + humanDuration(d)})
			}
		}
		for _, p := range row.Latency.Percentiles {
			if p.P >= 50 && p.P < 100 {
				add(nines(p.P), p.Value, humanPercentile(p.P))
				at = append(at, p.P)
			}
		}
		add(end, row.Latency.Max, "max")
		if len(c.points) > 1 {
			curves = append(curves, c)
		}
	}
	if len(curves) == 0 || top == 0 {
		return nil
	}
	var xTicks []plotTick
	slices.Sort(at)
	for _, p := range slices.Compact(at) {
		// The nines alone: what stands between has no room on a phone.
		if n := nines(p); p == 50 || math.Abs(n-math.Round(n)) < 1e-6 {
			xTicks = append(xTicks, plotTick{At: n, Label: humanPercentile(p)})
		}
	}
	xTicks = append(xTicks, plotTick{At: end, Label: "max"})
	_, low, high := ends(curves)
	y, values := logScale(low, high)
	p := &linePlot{ID: id, Title: "Latency", XName: "percentile, each nine as wide as the one before", YName: "latency, logarithmic"}
	p.Desc = "Latency by percentile, from the median to the greatest. " + describe(curves, "")
	p.draw(curves, scale{low: start, high: end}, y, xTicks, ticksOf(values, func(v float64) string {
		return axisDuration(time.Duration(v))
	}), true)
	return p
}

// memoryPlot has the server's memory against the connections it held. nil where
// these did not grow or nobody looked.
func memoryPlot(id string, g *reportGroup, class map[string]int) *linePlot {
	name := strings.ToLower(g.Scenario)
	if !strings.HasPrefix(name, "idle") && !strings.HasPrefix(name, "connect") {
		return nil // connections that come and go make a scribble
	}
	var curves []curve
	for _, row := range g.Rows {
		c := curve{name: row.Label, class: class[row.Label]}
		at := func(connections int, rss int64) curvePoint {
			return curvePoint{x: float64(connections), y: float64(rss),
				tip: humanBytes(float64(rss)) + " at " + humanCount(int64(connections)) + " connections"}
		}
		if u := row.Usage; u != nil && u.RssBefore > 0 {
			c.points = append(c.points, at(0, u.RssBefore))
		}
		for _, p := range row.Series {
			if p.RssAnon <= 0 || p.Connections < 0 {
				continue
			}
			last := -1.0
			if len(c.points) > 0 {
				last = c.points[len(c.points)-1].x
			}
			switch connections := float64(p.Connections); {
			case connections > last:
				c.points = append(c.points, at(p.Connections, p.RssAnon))
			case connections == last && p.Connections > 0:
				c.points[len(c.points)-1] = at(p.Connections, p.RssAnon) // it has settled
			}
		}
		if len(c.points) > 1 {
			c.points = thin(c.points)
			curves = append(curves, c)
		}
	}
	if len(curves) == 0 {
		return nil
	}
	most, _, high := ends(curves)
	y, values := linearScale(high, 1024)
	x := scale{high: most}
	_, counts := linearScale(most, 1)
	counts = slices.DeleteFunc(counts, func(v float64) bool { return v > most })
	p := &linePlot{ID: id, Title: "Memory against connections", XName: "connections held", YName: "RssAnon of the server"}
	p.Desc = "The server's anonymous memory while connections are opened. " + describe(curves, " at the end")
	p.draw(curves, x, y, ticksOf(counts, func(v float64) string { return humanCount(int64(v)) }),
		ticksOf(values, axisBytes), false)
	return p
}

// describe is a plot in words, for those who can't see it.
func describe(curves []curve, when string) string {
	var out []string
	for _, c := range curves {
		first, last := c.points[0], c.points[len(c.points)-1]
		if when == "" {
			out = append(out, c.name+": "+first.tip+", "+last.tip)
		} else {
			out = append(out, c.name+": "+last.tip+when)
		}
	}
	return strings.Join(out, "; ") + "."
}
