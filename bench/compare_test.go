package bench

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCases(t *testing.T) {
	names := Cases()
	slices.Sort(names)
	if len(slices.Compact(slices.Clone(names))) != len(names) || len(names) == 0 {
		t.Fatalf("cases: %q", names)
	}
	for _, quick := range []bool{false, true} {
		seen := map[string]bool{}
		for _, c := range contests(quick) {
			o := c.load
			o.URL, o.Admin, o.APIKey = "ws://127.0.0.1:1/echo", "a", "k"
			if _, err := o.withDefaults(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			for _, p := range c.peers {
				if !slices.Contains(PeerNames(), p) {
					t.Errorf("%s: no peer %q", c.name, p)
				}
			}
			for who := range c.targets {
				if !slices.Contains(c.peers, who) && who != relativeName(c.relative) {
					t.Errorf("%s: a target against %q, which does not take part", c.name, who)
				}
			}
			if c.relative != "" && !seen[c.relative] {
				t.Errorf("%s is compared with %s, which comes later", c.name, c.relative)
			}
			seen[c.name] = true
		}
	}
}

func TestCompareRefuses(t *testing.T) {
	_, err := Compare(t.Context(), CompareOptions{Only: []string{"echo", "nap"}})
	if err == nil || !strings.Contains(err.Error(), `unknown case "nap"`) {
		t.Errorf("%v", err)
	}
	if _, err := Compare(t.Context(), CompareOptions{Rounds: -1}); err == nil || !strings.Contains(err.Error(), "rounds") {
		t.Errorf("%v", err)
	}
	_, err = Compare(t.Context(), CompareOptions{Only: []string{"echo"}, Perch: "/nonexistent"})
	if err == nil || !strings.HasPrefix(err.Error(), "echo: ") {
		t.Errorf("%v", err)
	}
}

func TestRatios(t *testing.T) {
	c := contest{name: "burst", measure: "CPU per delivery", unit: "us", peers: []string{"floor", "gws", "none"}, relative: "single",
		targets: map[string]float64{"floor": 1.15, "gws": 0.5, "none": 1, relativeName("single"): 0.2}}
	values := map[string]map[string][]float64{
		"burst":  {PerchName: {1, 2, 3}, "floor": {1, 2, 3}, "gws": {1, 3, 5}, "none": {0, 0, 0}},
		"single": {PerchName: {10, 20, 30}},
	}
	r := Report{Comparison: &Comparison{}}
	r.ratios(c, values)
	want := []Ratio{
		{Peer: "floor", Perch: 2, Other: 2, Ratio: 1, Low: 1, High: 1, Target: 1.15, OK: true},
		{Peer: "gws", Perch: 2, Other: 3, Ratio: 2.0 / 3, Low: 0.6, High: 1, Target: 0.5},
		// What was not measured is no promise kept.
		{Peer: "none", Perch: 2, Target: 1},
		{Peer: "perch, single", Perch: 2, Other: 20, Ratio: 0.1, Low: 0.1, High: 0.1, Target: 0.2, OK: true},
	}
	if len(r.Comparison.Ratios) != len(want) {
		t.Fatalf("%+v", r.Comparison.Ratios)
	}
	for i, w := range want {
		w.Scenario, w.Measure, w.Unit = c.name, c.measure, c.unit
		if got := r.Comparison.Ratios[i]; got != w {
			t.Errorf("\n got %+v\nwant %+v", got, w)
		}
	}
	// Without the case that it is compared with.
	delete(values, "single")
	r = Report{Comparison: &Comparison{}}
	if r.ratios(c, values); len(r.Comparison.Ratios) != 3 {
		t.Fatalf("%+v", r.Comparison.Ratios)
	}
}

func TestMeasures(t *testing.T) {
	r := Result{Count: 1000, Usage: &Usage{CPU: 5 * time.Millisecond, PerConnection: 700},
		Latency: &Latency{Percentiles: []Percentile{{50, time.Millisecond}, {99, 3 * time.Millisecond}}}}
	if cpuPer(r) != 5 || bytesPer(r) != 700 || tail(r) != 3 {
		t.Errorf("%g us, %g B, %g", cpuPer(r), bytesPer(r), tail(r))
	}
	if cpuPer(Result{}) != 0 || bytesPer(Result{}) != 0 || tail(Result{}) != 0 || cpuPer(Result{Usage: &Usage{CPU: 1}}) != 0 {
		t.Error("of nothing")
	}
}
