package bench

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

// FuzzReadReport reads anything and writes it in each form: a report may come
// from elsewhere.
func FuzzReadReport(f *testing.F) {
	for _, r := range []*Report{exampleReport(), exampleHostile(), {}} {
		// Short seeds: mutating long ones finds nothing.
		r.Results = r.Results[:min(len(r.Results), 2)]
		for i := range r.Results {
			r.Results[i].Series = r.Results[i].Series[:3]
		}
		if c := r.Comparison; c != nil {
			c.Ratios = c.Ratios[:2]
		}
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte(`{"results":[{"connections":-9223372036854775808,"rate":1e308,"rate_wanted":-1e-320,"duration_ns":-9223372036854775808,
		"latency":{"count":1,"max_ns":-9223372036854775808,"percentiles":[{"p":1e300,"ns":9223372036854775807},{"p":99.9999999999999999,"ns":1}]},
		"series":[{"at_ns":9223372036854775807,"rate":1e308},{"at_ns":1,"rate":1e-308,"rss_anon":1}],"server_usage":{"rss_before":1}}],
		"comparison":{"rounds":-1,"ratios":[{"ratio":1e-300,"high":1e300,"target":1e308,"perch":1e308,"peer_value":1e-308,"unit":"us"}]}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := ReadReport(bytes.NewReader(in))
		if err != nil {
			return
		}
		checkForms(t, r)
	})
}

// FuzzReport has the numbers and names of a report at their ends.
func FuzzReport(f *testing.F) {
	f.Add("echo", "perch", "us", 1.5, 2.5, int64(1000), int64(3))
	f.Add("idle", "\x1b[2J<svg onload=1>", "</style>", 1e308, 1e-308, int64(math.MinInt64), int64(math.MaxInt64))
	f.Add("connect", "=1+1", "B", math.NaN(), math.Inf(1), int64(0), int64(-1))
	f.Fuzz(func(t *testing.T, scenario, server, unit string, a, b float64, m, n int64) {
		short, long := time.Duration(m), time.Duration(n)
		res := Result{Scenario: scenario, Server: server, Mode: unit, Unit: unit, Connections: int(m), Want: a, Rate: b, Failed: n,
			Size: int(n), Count: m, Duration: long, FirstError: server, Notes: []string{unit},
			Latency: &Latency{Count: max(m, 1), Min: short, Max: long, Percentiles: []Percentile{{50, short}, {a, long}, {99, long}, {b, 1}}},
			Series: []Point{{At: short, Connections: 1, Rate: a, P50: short, Max: long, RssAnon: n}, {At: 1}, {At: 2, P50: 1, Max: short},
				{At: long, Connections: int(m), Rate: b, P50: long, Max: short, RssAnon: m}},
			Usage:     &Usage{CPU: short, CPUPer: long, RssBefore: m, RssAfter: n, PerConnection: a, KernelSockets: n, Goroutines: int(m), GCs: int(n)},
			Generator: Generator{Processes: int(m), Busy: b, Late: n, Saturated: m > n}}
		other := res
		other.Server, other.Rate, other.Want = "perch", a, b
		ratio := Ratio{Scenario: scenario, Measure: server, Unit: unit, Peer: server, Perch: a, Other: b, Ratio: a, Low: b, High: a, Target: b}
		checkForms(t, &Report{Version: unit, Command: server, Machine: Machine{CPU: server, Memory: m, Cores: int(n), Kernel: unit}, Results: []Result{res, other}})
		checkForms(t, &Report{Results: []Result{other, res, res}, Comparison: &Comparison{Rounds: int(m), Ratios: []Ratio{ratio, ratio}}})
	})
}

// checkForms writes a report in each form and holds what is true of all.
func checkForms(t *testing.T, r *Report) {
	t.Helper()
	var text, page, sheet bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(text.Bytes(), "\x1b\x07\r") {
		t.Errorf("a control character came through: %q", text.Bytes())
	}
	if err := r.WriteCSV(&sheet); err != nil {
		t.Fatal(err)
	}
	readCSV(t, &sheet)
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	root, err := html.Parse(&page)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes(root, func(*html.Node) bool { return true }) {
		if n.Data == "script" || n.Data == "img" {
			t.Errorf("<%s> came through", n.Data)
		}
		for _, a := range n.Attr {
			if n.Namespace == "svg" && a.Key != "id" && (strings.Contains(a.Val, "NaN") || strings.Contains(a.Val, "Inf")) {
				t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
			}
		}
	}
}
