package bench

import (
	"strings"
	"time"
)

// resultColumn is one number of a result, empty where it was not measured.
type resultColumn struct {
	name  string
	value func(row *reportRow) string
}

// resultColumns are those of a table; with one server they are facts under each
// other.
func resultColumns(g *reportGroup) []resultColumn {
	var columns []resultColumn
	single := len(g.Rows) == 1
	_, oneRate := g.want()
	// What is the same for all stands over the table.
	if single || !g.sameConnections() {
		columns = append(columns, resultColumn{"Connections", func(row *reportRow) string { return humanCount(int64(row.Connections)) }})
	}
	columns = append(columns, resultColumn{"Rate", func(row *reportRow) string {
		if row.Want > 0 && (single || !oneRate) {
			return humanRate(row.Rate) + " of " + humanRate(row.Want)
		}
		return humanRate(row.Rate)
	}})
	for _, p := range []float64{50, 90, 99, 99.9} {
		columns = append(columns, resultColumn{humanPercentile(p), func(row *reportRow) string {
			if v, ok := row.Latency.at(p); ok {
				return humanDuration(v)
			}
			return ""
		}})
	}
	columns = append(columns, resultColumn{"max", func(row *reportRow) string {
		if row.Latency == nil {
			return ""
		}
		return humanDuration(row.Latency.Max)
	}})
	columns = append(columns, resultColumn{"p99 of a tenth", func(row *reportRow) string {
		if row.Tenths == nil {
			return ""
		}
		return humanDuration(row.Tenths.P99)
	}})
	hostile := func(name string, value func(h *Hostile) string) {
		columns = append(columns, resultColumn{name, func(row *reportRow) string {
			if row.Hostile == nil {
				return ""
			}
			return value(row.Hostile)
		}})
	}
	hostile("Hostile peers", (*Hostile).who)
	hostile("p50 beside them", func(h *Hostile) string { return h.P50.text() })
	hostile("p99 beside them", func(h *Hostile) string { return h.P99.text() })
	hostile("p99 of a tenth beside them", func(h *Hostile) string {
		if h.Tenth == nil {
			return ""
		}
		return h.Tenth.text()
	})
	usage := func(name string, value func(u *Usage) string) {
		columns = append(columns, resultColumn{name, func(row *reportRow) string {
			if row.Usage == nil {
				return ""
			}
			return value(row.Usage)
		}})
	}
	usage("CPU per "+g.Unit, func(u *Usage) string { return someDuration(u.CPUPer) })
	usage("Memory each", func(u *Usage) string {
		if u.PerConnection == 0 || !isFinite(u.PerConnection) {
			return ""
		}
		return bytesEach(u.PerConnection)
	})
	columns = append(columns,
		resultColumn{"Failed", func(row *reportRow) string { return humanCount(row.Failed) }},
		resultColumn{"Generator", func(row *reportRow) string {
			busy := humanShare(row.Generator.Busy)
			if row.Generator.Saturated {
				busy += ", saturated"
			}
			return busy
		}},
		resultColumn{"RssAnon", func(row *reportRow) string {
			if row.Usage == nil {
				return ""
			}
			return someBytes(row.Usage.RssAfter)
		}})
	usage("Server CPU", func(u *Usage) string { return someDuration(u.CPU) })
	usage("Kernel sockets", func(u *Usage) string { return someBytes(u.KernelSockets) })
	usage("Goroutines", func(u *Usage) string {
		if u.Goroutines == 0 {
			return ""
		}
		return humanCount(int64(u.Goroutines))
	})
	usage("GC", func(u *Usage) string {
		if u.GCs == 0 {
			return ""
		}
		return humanCount(int64(u.GCs)) + " (" + humanDuration(u.GCPause) + " paused)"
	})
	if g.Unit != "connection" {
		columns = append(columns, resultColumn{title(pluralNoun(g.Unit)), func(row *reportRow) string { return humanCount(row.Count) }})
	}
	return append(columns,
		resultColumn{"Sent late", func(row *reportRow) string {
			if row.Generator.Late == 0 {
				return ""
			}
			return humanCount(row.Generator.Late)
		}})
}

func someDuration(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return humanDuration(d)
}

func someBytes(b int64) string {
	if b <= 0 {
		return ""
	}
	return humanBytes(float64(b))
}

// resultTable leaves out the columns that no server has a value in.
func resultTable(g *reportGroup, columns []resultColumn) (head []string, rows []pageRow) {
	head = []string{"Server"}
	rows = make([]pageRow, len(g.Rows))
	for i := range rows {
		rows[i] = pageRow{Label: g.Rows[i].Label, Perch: g.Rows[i].Perch, Saturated: g.Rows[i].Generator.Saturated}
	}
	for _, c := range columns {
		cells := make([]string, len(rows))
		some := false
		for i := range rows {
			if cells[i] = c.value(&g.Rows[i]); cells[i] == "" {
				cells[i] = noValue
				continue
			}
			some = true
		}
		if !some {
			continue
		}
		head = append(head, c.name)
		for i := range rows {
			rows[i].Cells = append(rows[i].Cells, cells[i])
		}
	}
	return head, rows
}

// resultTiles are the numbers one looks for first.
func resultTiles(row *reportRow) []pageTile {
	var tiles []pageTile
	add := func(name, value, more string) {
		number, unit, _ := strings.Cut(value, " ")
		tiles = append(tiles, pageTile{Name: name, Value: number, Unit: unit, More: more})
	}
	more := ""
	if row.Want > 0 {
		more = "of " + humanRate(row.Want) + " wanted"
	}
	add(title(pluralNoun(row.Unit)), humanRate(row.Rate), more)
	if v, ok := row.Latency.at(50); ok {
		add("Latency, median", humanDuration(v), "")
	}
	if v, ok := row.Latency.at(99); ok {
		add("Latency, p99", humanDuration(v), "max "+humanDuration(row.Latency.Max))
	}
	if u := row.Usage; u != nil {
		if u.CPUPer > 0 {
			add("Server CPU", humanDuration(u.CPUPer), "per "+row.Unit)
		}
		if u.PerConnection > 0 && isFinite(u.PerConnection) {
			add("Memory", bytesEach(u.PerConnection), "per connection, RssAnon")
		}
	}
	return tiles
}

// title begins with a capital.
func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
