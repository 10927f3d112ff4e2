package bench

import (
	"bytes"
	"fmt"
	"os"
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

// TestCompareLasts holds what docs/bench.md says of the time that a comparison
// takes against the pauses and durations of its cases. Building, starting and
// connecting come on top, a tenth or so.
func TestCompareLasts(t *testing.T) {
	lasts := func(quick bool) (sum time.Duration) {
		for _, c := range contests(quick) {
			turns := wholeRounds
			switch {
			case quick && c.once:
				turns = 1
			case quick:
				turns = quickRounds
			}
			o := c.load
			var turn time.Duration
			switch o.Scenario {
			case Idle:
				turn = time.Duration(1+len(o.Steps))*o.Settle + o.Duration
			case Connect:
				turn = 2 * o.Settle
			case Echo:
				turn = o.Warmup + o.Duration
			case Fanout:
				turn = o.Warmup + o.Duration + 2*drained
			default:
				t.Fatalf("%s: how long does %s take?", c.name, o.Scenario)
			}
			sum += time.Duration(turns*max(c.often, 1)*(1+len(c.peers))) * turn
		}
		return sum
	}
	text, err := os.ReadFile("../docs/bench.md")
	if err != nil {
		t.Fatal(err)
	}
	whole, quick := lasts(false), lasts(true)
	t.Logf("%s, quick %s", whole, quick)
	if whole < 25*time.Minute || whole > 32*time.Minute || !strings.Contains(string(text), "about half an hour (four to five minutes for each of its seven rounds)") {
		t.Errorf("a whole one takes %s and a little more", whole)
	}
	if quick > 110*time.Second || !strings.Contains(string(text), "`--quick` takes two minutes") {
		t.Errorf("a quick one takes %s and a little more", quick)
	}
}

// TestOrder: in as many rounds as there are servers each has been at each place.
func TestOrder(t *testing.T) {
	names := []string{"a", "b", "c"}
	places := map[string]int{}
	var said []string
	for round := range 2 * len(names) {
		turns := order(names, round)
		for place, name := range turns {
			places[fmt.Sprint(name, place)]++
		}
		said = append(said, strings.Join(turns, ""))
	}
	if len(places) != 9 {
		t.Errorf("%v", places)
	}
	for what, n := range places {
		if n != 2 {
			t.Errorf("%s: %d times", what, n)
		}
	}
	if got := strings.Join(said, " "); got != "abc bca cab cba acb bac" || strings.Join(names, "") != "abc" {
		t.Errorf("%s, names %q", got, names)
	}
}

// TestStolenIsSaid: what the hypervisor took in the measured part is part of the
// result, with a note where it is enough to make the tail.
func TestStolenIsSaid(t *testing.T) {
	for _, c := range []struct {
		begin, end sample
		want       float64
		noted      bool
	}{
		{sample{stolen: 7, ticks: 1000}, sample{stolen: 7, ticks: 2000}, 0, false},
		{sample{stolen: 7, ticks: 1000}, sample{stolen: 8, ticks: 2000}, 0.001, false},
		{sample{stolen: 7, ticks: 1000}, sample{stolen: 22, ticks: 2000}, 0.015, true},
		{sample{stolen: 7, ticks: 1000}, sample{stolen: 22, ticks: 1000}, 0, false},
	} {
		m := newMeter()
		m.start(1)
		m.observe(1, 5000)
		share, err := m.result()
		if err != nil {
			t.Fatal(err)
		}
		r := &run{o: Options{Scenario: Echo}, begin: c.begin, end: c.end}
		res, err := r.finish([]shareResult{share})
		if err != nil {
			t.Fatal(err)
		}
		if res.Stolen != c.want || strings.Contains(strings.Join(res.Notes, " "), "The hypervisor took 1.5% of") != c.noted {
			t.Errorf("%+v to %+v: %g, %q", c.begin, c.end, res.Stolen, res.Notes)
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
		{Peer: "floor", Perch: 2, Other: 2, Ratio: 1, Low: 1, High: 1, Target: 1.15, OK: true, Rounds: 3},
		{Peer: "gws", Perch: 2, Other: 3, Ratio: 2.0 / 3, Low: 0.6, High: 1, Target: 0.5, Rounds: 3},
		// What was not measured is no promise kept.
		{Peer: "none", Perch: 2, Target: 1},
		{Peer: "perch, single", Perch: 2, Other: 20, Ratio: 0.1, Low: 0.1, High: 0.1, Target: 0.2, OK: true, Rounds: 3},
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

// TestFewRounds: of fewer than three rounds no form of a report shows an
// interval, and each says how many there were.
func TestFewRounds(t *testing.T) {
	r := exampleComparison()
	r.Comparison = &Comparison{Rounds: 2}
	for _, c := range []struct {
		name  string
		perch []float64
	}{{"echo", []float64{1, 2}}, {"idle", []float64{3}}} { // a quick one takes one round of idle
		r.ratios(contest{name: c.name, measure: "cost", peers: []string{"gws"}, targets: map[string]float64{"gws": 1.5}},
			map[string]map[string][]float64{c.name: {PerchName: c.perch, "gws": {1, 1}}})
	}
	for i, want := range []int{2, 1} {
		if got := r.Comparison.Ratios[i]; got.Low != 0 || got.High != 0 || got.Rounds != want {
			t.Fatalf("%+v, want %d rounds", got, want)
		}
	}
	var sheet bytes.Buffer
	if err := r.WriteRatiosCSV(&sheet); err != nil {
		t.Fatal(err)
	}
	for i, row := range readCSV(t, &sheet) {
		if want := []string{"2", "1"}[i]; row["rounds"] != want || row["ratio_low"] != "" || row["ratio_high"] != "" || row["ratio"] == "" {
			t.Errorf("csv: %v, want %s rounds", row, want)
		}
	}
	page, root := pageOf(t, r)
	markdown, _ := markdownOf(t, r)
	text := textOf(t, r)
	for name, said := range map[string]string{"text": text, "html": words(root), "markdown": markdown} {
		for _, want := range []string{"1.50×", "2 rounds", "3.00×", "1 round"} {
			if !strings.Contains(said, want) {
				t.Errorf("%s: no %q", name, want)
			}
		}
		for _, bad := range []string{"1.50–1.50", "1.00–2.00", "3.00–3.00", "0.00"} {
			if strings.Contains(said, bad) {
				t.Errorf("%s: an interval %q", name, bad)
			}
		}
		if !strings.Contains(said, "fewer than 3 rounds") {
			t.Errorf("%s: does not say why there is no interval", name)
		}
	}
	if strings.Contains(page, `class="whisker"`) || strings.Contains(page, `class="end"`) {
		t.Error("an interval is drawn")
	}
	// Of three rounds nothing is missing.
	if strings.Contains(textOf(t, exampleComparison()), "fewer than") {
		t.Error("says that an interval is missing")
	}
}

func TestMeasures(t *testing.T) {
	r := Result{Count: 1000, Usage: &Usage{CPU: 5 * time.Millisecond, PerConnection: 700}, Tenths: &Tenths{Tail: 3}}
	if cpuPer(r) != 5 || bytesPer(r) != 700 || tail(r) != 3 {
		t.Errorf("%g us, %g B, %g", cpuPer(r), bytesPer(r), tail(r))
	}
	if cpuPer(Result{}) != 0 || bytesPer(Result{}) != 0 || tail(Result{}) != 0 || cpuPer(Result{Usage: &Usage{CPU: 1}}) != 0 {
		t.Error("of nothing")
	}
}
