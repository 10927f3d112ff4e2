package bench

import (
	"bytes"
	"encoding/csv"
	"math"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

// exampleUnmeasured is a comparison with targets of which nothing is known, also
// where the report says that they are kept: it may come from elsewhere.
func exampleUnmeasured() *Report {
	r := exampleComparison()
	for i := range r.Comparison.Ratios {
		ratio := &r.Comparison.Ratios[i]
		if ratio.Scenario != "echo" {
			continue
		}
		switch ratio.Peer {
		case "coder":
			ratio.Other, ratio.Ratio, ratio.Low, ratio.High, ratio.Target, ratio.OK = 0, 0, 0, 0, 1, true
		case "gobwas":
			ratio.Other, ratio.Ratio, ratio.Low, ratio.High, ratio.Target = math.NaN(), math.NaN(), math.NaN(), math.Inf(1), 1
		case "nbio": // without a target
			ratio.Other, ratio.Ratio, ratio.Low, ratio.High = 0, 0, 0, 0
		}
	}
	return r
}

// TestUnmeasured: what could not be measured is neither kept nor missed, and no
// form shows a number for it.
func TestUnmeasured(t *testing.T) {
	r := exampleUnmeasured()
	t.Run("text", func(t *testing.T) {
		text := textOf(t, r)
		rows := map[string]string{}
		_, compared, _ := strings.Cut(text, "Perch beside the others")
		for line := range strings.Lines(compared) {
			if words := strings.Fields(line); len(words) > 1 && rows[words[0]] == "" {
				rows[words[0]] = strings.Join(words[1:], " ")
			}
		}
		for peer, want := range map[string]string{"coder": "9.10 µs – – – ≤ 1.00× not measured", "gobwas": "9.10 µs – – – ≤ 1.00× not measured", "nbio": "9.10 µs – – –"} {
			if rows[peer] != want {
				t.Errorf("%s: %q, want %q", peer, rows[peer], want)
			}
		}
		wantAll(t, text, "1 of 4 targets met, 2 not measured")
	})
	t.Run("html", func(t *testing.T) {
		_, root := pageOf(t, r)
		seen := 0
		for _, row := range nodes(root, func(n *html.Node) bool { return n.Data == "tr" }) {
			said := words(row)
			if strings.Contains(said, "coder") && strings.Contains(said, "1.00×") || strings.Contains(said, "gobwas") && strings.Contains(said, "1.00×") {
				seen++
				if !strings.Contains(said, "not measured") || strings.Contains(said, "0.00") || strings.Contains(said, "ok") || strings.Contains(said, "MISSED") {
					t.Errorf("row %q", said)
				}
			}
		}
		if seen != 4 { // among the targets, and in the table of the case
			t.Errorf("%d rows", seen)
		}
		said := words(root)
		for _, want := range []string{"Targets 1 of 4 met, 2 not measured", "Not measured: nbio, gobwas, coder."} {
			if !strings.Contains(said, want) {
				t.Errorf("%q is not in the page", want)
			}
		}
	})
	t.Run("csv", func(t *testing.T) {
		var b bytes.Buffer
		if err := r.WriteRatiosCSV(&b); err != nil {
			t.Fatal(err)
		}
		for _, row := range readCSV(t, &b) {
			if row["scenario"] != "echo" {
				continue
			}
			want := map[string]string{"coder": "not measured", "gobwas": "not measured", "nbio": "", "floor": "true", "gws": "false"}[row["peer"]]
			if row["ok"] != want {
				t.Errorf("%s: ok is %q, want %q", row["peer"], row["ok"], want)
			}
			if strings.Contains("coder gobwas nbio", row["peer"]) {
				for _, column := range []string{"peer_value", "ratio", "ratio_low", "ratio_high"} {
					if row[column] != "" {
						t.Errorf("%s: %s is %q", row["peer"], column, row[column])
					}
				}
			}
		}
	})
	t.Run("markdown", func(t *testing.T) {
		page, _ := markdownOf(t, r)
		wantAll(t, page, "| echo | CPU per message | coder | – | – | ≤ 1.00× | **not measured** |", "Met: 1 of 4, not measured: 2.")
	})
	t.Run("json", func(t *testing.T) {
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil {
			t.Fatal(err)
		}
		got, err := ReadReport(&b)
		if err != nil {
			t.Fatal(err)
		}
		for _, ratio := range got.Comparison.Ratios {
			if ratio.OK && ratio.Peer != "floor" {
				t.Errorf("%s is said to be kept", ratio.Peer)
			}
		}
	})
}

// TestUnmeasuredResult: a server whose process is not known has no memory and
// no CPU to show, not zeros.
func TestUnmeasuredResult(t *testing.T) {
	var b bytes.Buffer
	r := &Report{Results: []Result{{Scenario: "echo", Server: "s", Mode: ClosedLoop, Unit: "message", Count: 1,
		Usage: &Usage{Goroutines: 5}}}}
	if err := r.WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(&b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range lines[0] {
		switch name {
		case "server_cpu_s", "server_cpu_us_per_unit", "rss_anon_before_bytes", "rss_anon_after_bytes":
			if lines[1][i] != "" {
				t.Errorf("%s is %q", name, lines[1][i])
			}
		case "goroutines":
			if lines[1][i] != "5" {
				t.Errorf("%s is %q", name, lines[1][i])
			}
		}
	}
	text := textOf(t, r)
	if strings.Contains(text, "RssAnon") || strings.Contains(text, " CPU") {
		t.Errorf("zeros that nobody measured:\n%s", text)
	}
	wantAll(t, text, "5 goroutines")
}
