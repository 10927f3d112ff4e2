package bench

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

const (
	barRow   = 40 // pixels a server, at least
	ratioRow = 66
)

// barPlot is what a unit of work costs on each server, the cheapest first.
type barPlot struct {
	ID, Title, Desc string
	Height          int
	Bars            []bar
}

type bar struct {
	Name, Value string
	Width       float64 // percent
	Y           int
	Perch       bool
}

// costBars draws the values of a measure; Perch's is the median of what stands
// beside its peers.
func costBars(id string, m *measureGroup) *barPlot {
	type cost struct {
		name  string
		value float64
		perch bool
	}
	var costs []cost
	var own []float64
	for _, r := range m.Ratios {
		if isFinite(r.Perch) && r.Perch > 0 {
			own = append(own, r.Perch)
		}
		if isFinite(r.Other) && r.Other > 0 {
			costs = append(costs, cost{r.Peer, r.Other, false})
		}
	}
	if len(own) == 0 && len(costs) == 0 {
		return nil
	}
	if len(own) > 0 {
		costs = slices.Insert(costs, 0, cost{"perch", Median(own), true})
	}
	slices.SortStableFunc(costs, func(a, b cost) int {
		return cmp.Compare(a.value, b.value)
	})
	most := costs[len(costs)-1].value
	// As high as the ratios beside it.
	row := max(barRow, ratioRow*len(m.Ratios)/len(costs))
	p := &barPlot{ID: id, Title: m.Measure, Height: row * len(costs)}
	var words []string
	for i, c := range costs {
		p.Bars = append(p.Bars, bar{Name: shorten(c.name, nameInPlot), Value: humanMeasure(c.value, m.Unit), Width: max(round2(100*(c.value/most)), 0.4),
			Y: row * i, Perch: c.perch})
		words = append(words, c.name+" "+humanMeasure(c.value, m.Unit))
	}
	p.Desc = "The cheapest first: " + strings.Join(words, ", ") + "."
	return p
}

// humanMeasure keeps sessions' bytes comparable: plain bytes, not KiB.
func humanMeasure(v float64, unit string) string {
	if unit == "B" {
		return bytesEach(v)
	}
	return humanValue(v, unit)
}

// ratioPlot is a dot with its interval for each peer, on a logarithmic axis: half
// and double stand equally far from 1.
type ratioPlot struct {
	ID, Title, Desc string
	Height          int
	Ticks           []plotTick
	One             float64 // percent
	Rows            []ratioMark
}

type ratioMark struct {
	Peer, Ratio, Range, Target string
	At, Low, High, TargetAt    float64 // percent
	Width                      float64 // of the interval
	Y                          int
	HasTarget, OK, HasRange    bool
}

func ratioDots(id string, m *measureGroup) *ratioPlot {
	low, high := 0.5, 2.0
	var shown []Ratio
	var unknown []string
	for _, r := range m.Ratios {
		if !r.measured() {
			unknown = append(unknown, r.Peer)
			continue
		}
		low, high = min(low, r.Ratio), max(high, r.Ratio)
		if r.hasInterval() {
			low, high = min(low, r.Low), max(high, r.High)
		}
		if r.Target > 0 && isFinite(r.Target) {
			low, high = min(low, r.Target), max(high, r.Target)
		}
		shown = append(shown, r)
	}
	if len(shown) == 0 {
		return nil
	}
	// In the order of the bars.
	slices.SortStableFunc(shown, func(a, b Ratio) int { return cmp.Compare(a.Other, b.Other) })
	axis, ticks := logScale(low, high)
	percent := func(v float64) float64 { return round2(100 * axis.share(v)) }
	p := &ratioPlot{ID: id, Title: m.Measure + ": Perch against each peer", Height: ratioRow * len(shown), One: percent(1)}
	for _, v := range ticks {
		at := percent(v)
		p.Ticks = append(p.Ticks, plotTick{At: at, Label: digitsShort(v) + "×", First: at < 4, Last: at > 96})
	}
	var words []string
	few := false
	for i, r := range shown {
		row := ratioMark{Peer: shorten(r.Peer, nameInPlot), Ratio: humanRatio(r.Ratio), Range: ratioRange(r), At: percent(r.Ratio),
			Y: ratioRow * i, OK: r.OK, HasRange: r.hasInterval()}
		if row.HasRange {
			row.Low, row.High, row.Range = percent(r.Low), percent(r.High), "95 %: "+row.Range
			row.Width = round2(max(row.High-row.Low, 0))
		} else {
			few = true
		}
		word := fmt.Sprintf("%s %s (%s", r.Peer, row.Ratio, ratioRange(r))
		if r.Target > 0 {
			row.HasTarget, row.Target, row.TargetAt = true, "≤ "+humanRatio(r.Target), percent(r.Target)
			word += ", target " + row.Target + " " + verdict(r)
		}
		p.Rows = append(p.Rows, row)
		words = append(words, word+")")
	}
	p.Desc = "What Perch costs over what the peer costs; below 1 Perch is the cheaper. " + strings.Join(words, ", ") + "."
	if len(unknown) > 0 {
		p.Desc += " Not measured: " + strings.Join(unknown, ", ") + "."
	}
	if few {
		p.Desc += fmt.Sprintf(" No interval of fewer than %d rounds.", leastRounds)
	}
	return p
}
