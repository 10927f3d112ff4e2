package bench

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// csvPercentiles have a column each.
var csvPercentiles = []float64{50, 75, 90, 95, 99, 99.9, 99.99}

// WriteCSV writes a line for each result, rounds apart. Columns keep their names
// and order between versions, new ones come at the end; the unit is in the name.
// A cell is empty where nothing was measured, so that a mean leaves it out.
//
// A text that a spreadsheet would take for a formula gets a quote before it:
// names come from users, errors from the server loaded.
func (r *Report) WriteCSV(w io.Writer) error {
	header := []string{"perch", "started", "scenario", "server", "mode", "connections", "size_bytes", "unit", "duration_s",
		"count", "failed", "rate_wanted_per_s", "rate_per_s", "latency_count", "latency_mean_us", "latency_min_us"}
	for _, p := range csvPercentiles {
		header = append(header, "latency_"+strings.ReplaceAll(humanPercentile(p), ".", "_")+"_us")
	}
	header = append(header, "latency_max_us", "server_cpu_s", "server_cpu_us_per_unit", "rss_anon_before_bytes",
		"rss_anon_after_bytes", "bytes_per_connection", "kernel_sockets_bytes", "goroutines", "gcs", "gc_pause_ms",
		"generator_processes", "generator_cpu_s", "generator_busy_cores", "generator_late", "generator_saturated",
		"first_error", "notes", "missed", "stolen_share", "tenths", "tenths_p50_us", "tenths_p99_us", "tenths_p99_over_p50",
		"hostile_peers", "hostile_without_p99_us", "hostile_beside_p99_us", "hostile_p99_ratio", "hostile_p99_ratio_low", "hostile_p99_ratio_high",
		"hostile_tenths_p99_ratio")
	lines := [][]string{header}
	for i := range r.Results {
		res := &r.Results[i]
		line := []string{csvText(r.Version), csvTime(res.Started), csvText(res.Scenario), csvText(res.Server), csvText(res.Mode),
			strconv.Itoa(res.Connections), csvSome(float64(res.Size)), csvText(res.Unit), csvIn(res.Duration, time.Second),
			strconv.FormatInt(res.Count, 10), strconv.FormatInt(res.Failed, 10), csvSome(res.Want), csvNumber(res.Rate)}
		line = append(line, res.Latency.csv()...)
		line = append(line, res.Usage.csv()...)
		g := res.Generator
		line = append(line, strconv.Itoa(g.Processes), csvIn(g.CPU, time.Second), csvNumber(g.Busy),
			strconv.FormatInt(g.Late, 10), strconv.FormatBool(g.Saturated), csvText(res.FirstError), csvText(strings.Join(res.Notes, "; ")),
			strconv.FormatInt(res.Missed, 10), csvNumber(res.Stolen))
		line = append(line, res.Tenths.csv()...)
		line = append(line, res.Hostile.csv()...)
		lines = append(lines, line)
	}
	return writeCSV(w, lines)
}

func (h *Hostile) csv() []string {
	if h == nil {
		return make([]string, 7)
	}
	n := 0
	for _, k := range h.Kinds {
		n += k
	}
	p, tenth := h.P99, 0.0
	if h.Tenth != nil {
		tenth = h.Tenth.Ratio
	}
	return []string{strconv.Itoa(n), csvIn(p.Without, time.Microsecond), csvIn(p.Beside, time.Microsecond), csvSome(p.Ratio), csvSome(p.Low), csvSome(p.High), csvSome(tenth)}
}

// WriteRatiosCSV writes a line for each ratio of a comparison, in long form, for
// pivot tables: a file of its own, since a spreadsheet takes one header. Without
// a comparison there is the header alone.
func (r *Report) WriteRatiosCSV(w io.Writer) error {
	lines := [][]string{{"perch", "scenario", "measure", "unit", "peer", "rounds", "perch_value", "peer_value",
		"ratio", "ratio_low", "ratio_high", "target", "ok"}}
	if c := r.Comparison; c != nil {
		for _, ratio := range c.Ratios {
			ok := ""
			switch {
			case !(ratio.Target > 0):
			case !ratio.measured():
				ok = notMeasured
			default:
				ok = strconv.FormatBool(ratio.OK)
			}
			ratio.Rounds = cmp.Or(ratio.Rounds, c.Rounds)
			if !ratio.hasInterval() {
				ratio.Low, ratio.High = 0, 0
			}
			lines = append(lines, []string{csvText(r.Version), csvText(ratio.Scenario), csvText(ratio.Measure), csvText(ratio.Unit),
				csvText(ratio.Peer), strconv.Itoa(ratio.Rounds), csvSome(ratio.Perch), csvSome(ratio.Other), csvSome(ratio.Ratio),
				csvSome(ratio.Low), csvSome(ratio.High), csvSome(ratio.Target), ok})
		}
	}
	return writeCSV(w, lines)
}

func writeCSV(w io.Writer, lines [][]string) error {
	if err := csv.NewWriter(w).WriteAll(lines); err != nil {
		return fmt.Errorf("bench: write csv: %w", err)
	}
	return nil
}

func (t *Tenths) csv() []string {
	if t == nil {
		return make([]string, 4)
	}
	return []string{strconv.Itoa(t.Count), csvIn(t.P50, time.Microsecond), csvIn(t.P99, time.Microsecond), csvNumber(t.Tail)}
}

func (l *Latency) csv() []string {
	cells := make([]string, 4+len(csvPercentiles))
	if l == nil {
		return cells
	}
	cells[0] = strconv.FormatInt(l.Count, 10)
	cells[1], cells[2] = csvIn(l.Mean, time.Microsecond), csvIn(l.Min, time.Microsecond)
	for i, p := range csvPercentiles {
		if v, ok := l.at(p); ok {
			cells[3+i] = csvIn(v, time.Microsecond)
		}
	}
	cells[len(cells)-1] = csvIn(l.Max, time.Microsecond)
	return cells
}

func (u *Usage) csv() []string {
	if u == nil {
		return make([]string, 9)
	}
	return []string{csvSome(u.CPU.Seconds()), csvSome(float64(u.CPUPer) / float64(time.Microsecond)), csvSome(float64(u.RssBefore)),
		csvSome(float64(u.RssAfter)), csvSome(u.PerConnection), strconv.FormatInt(u.KernelSockets, 10),
		csvSome(float64(u.Goroutines)), csvSome(float64(u.GCs)), csvSome(float64(u.GCPause) / float64(time.Millisecond))}
}

// csvSome leaves zero empty, where it means that there is nothing.
func csvSome(v float64) string {
	if v == 0 {
		return ""
	}
	return csvNumber(v)
}

func csvNumber(v float64) string {
	if !isFinite(v) {
		return ""
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}

func csvIn(d, unit time.Duration) string {
	return csvNumber(float64(d) / float64(unit))
}

func csvTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func csvText(s string) string {
	s = printable(s)
	if s != "" && strings.ContainsRune("=+-@", rune(s[0])) {
		return "'" + s
	}
	return s
}
