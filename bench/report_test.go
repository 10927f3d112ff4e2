package bench

import (
	"bytes"
	"encoding/csv"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestJSONRoundTrip(t *testing.T) {
	for name, r := range map[string]*Report{"one": exampleReport(), "compare": exampleComparison(), "hostile": exampleHostile()} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := r.WriteJSON(&b); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(b.String(), "\n  \"results\": [") {
				t.Errorf("not indented: %.200s", b.String())
			}
			got, err := ReadReport(&b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(r, got) {
				t.Error("what was read differs from what was written")
			}
		})
	}
}

func TestJSONWithoutNumber(t *testing.T) {
	r := exampleComparison()
	r.Results[0].Usage.PerConnection = math.Inf(1)
	r.Results[0].Series[3].Rate = math.NaN()
	r.Comparison.Ratios[0].Ratio = math.NaN()
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	got, err := ReadReport(&b)
	if err != nil {
		t.Fatal(err)
	}
	if v := got.Results[0].Usage.PerConnection; v != 0 {
		t.Errorf("infinity became %v", v)
	}
	if !math.IsNaN(r.Comparison.Ratios[0].Ratio) || !math.IsInf(r.Results[0].Usage.PerConnection, 1) {
		t.Error("writing changed the report")
	}
}

func TestReadReportErrors(t *testing.T) {
	for name, in := range map[string]string{"empty": "", "not JSON": "perch", "cut": `{"results":[{`, "wrong type": `{"results":7}`, "two": "{}{}"} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadReport(strings.NewReader(in))
			if err == nil || !strings.HasPrefix(err.Error(), "bench: read report: ") {
				t.Errorf("error %v", err)
			}
		})
	}
	if _, err := ReadReport(strings.NewReader(`{"of a newer version":1,"results":[]}`)); err != nil {
		t.Error(err)
	}
}

var errFull = errors.New("disk full")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestWriteErrors(t *testing.T) {
	r := exampleComparison()
	for name, write := range map[string]func() error{
		"text": func() error { return r.WriteText(fullDisk{}) },
		"json": func() error { return r.WriteJSON(fullDisk{}) },
		"csv":  func() error { return r.WriteCSV(fullDisk{}) },
		"html": func() error { return r.WriteHTML(fullDisk{}) },
	} {
		if err := write(); !errors.Is(err, errFull) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestTextOfOne(t *testing.T) {
	r := exampleReport()
	r.Results[0].Generator.Saturated = true
	r.Results[0].Failed, r.Results[0].FirstError = 3, "connection refused\x1b[31m"
	r.Results[0].Notes = []string{"warm-up of 5 s left out"}
	text := textOf(t, r)
	wantAll(t, text, "perch bench 0.1.0 · 2025-11-22 21:46 UTC", "2 cores · 8.00 GiB", "echo on 127.0.0.1:8000",
		"open loop: sent at a constant rate", "1,000 connections, 128 B payload, measured for 30.0 s", "of 20.0 k/s wanted",
		"1,200,000 messages, 3 FAILED, the first: connection refused", "p50 1", "p99.9 ", "max 21.", "µs CPU per message",
		"934 B per connection, kernel sockets 12.0 MiB", "12 goroutines, 4 GCs", "the busiest 62% of a core, 3 sent over 1 ms late",
		saturatedText, "warm-up of 5 s left out", "repeat: perch bench echo")
	r.Results[0].Generator.Saturated = false
	if strings.Contains(textOf(t, r), "SATURATED") {
		t.Error("saturated without being so")
	}
	// A bare result: neither latency nor the server's process is known.
	r.Results = []Result{{Scenario: "connect", Server: "s", Mode: ClosedLoop, Unit: "connection", Count: 1, Connections: 1}}
	text = textOf(t, r)
	wantAll(t, text, "closed loop", "1 connection, none failed")
	if strings.Contains(text, "latency") || strings.Contains(text, "RssAnon") {
		t.Errorf("says what was not measured:\n%s", text)
	}
}

func TestTextOfComparison(t *testing.T) {
	text := textOf(t, exampleComparison())
	wantAll(t, text, "3 rounds interleaved", "1 of 2 targets met", "echo (closed loop")
	lines := strings.Split(text, "\n")
	find := func(parts ...string) {
		t.Helper()
		for _, line := range lines {
			if reflect.DeepEqual(strings.Fields(line), parts) {
				return
			}
		}
		t.Errorf("no line %q in\n%s", parts, text)
	}
	find("floor", "9.10", "µs", "8.46", "µs", "1.08×", "1.03–1.13", "≤", "1.15×", "ok")
	find("gws", "9.10", "µs", "12.7", "µs", "0.71×", "0.69–0.75", "≤", "0.70×", "MISSED")
	find("coder", "934", "B", "24,000", "B", "0.039×", "0.039–0.040")
	// Three rounds make one line.
	find("perch", "1,500", "/s", "934", "0")
	if text := textOf(t, exampleHostile()); !strings.Contains(text, saturatedText) || strings.ContainsAny(text, "\x1b\r") {
		t.Errorf("hostile names:\n%q", text)
	}
}

func textOf(t *testing.T, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(b.String(), "\n") {
		if n := utf8.RuneCountInString(line); n > 100 {
			t.Errorf("a line of %d columns: %q", n, line)
		}
	}
	return b.String()
}

func wantAll(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}
}

func TestCSV(t *testing.T) {
	r := exampleComparison()
	r.Results[1].Usage, r.Results[1].Latency = nil, nil
	var b bytes.Buffer
	if err := r.WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	rows := readCSV(t, &b)
	if len(rows) != len(r.Results) {
		t.Fatalf("%d lines for %d results", len(rows), len(r.Results))
	}
	for column, want := range map[string]string{"perch": "0.1.0", "started": "2025-11-22T21:46:00Z", "scenario": "echo", "server": "perch",
		"mode": "closed loop", "connections": "1000", "size_bytes": "128", "unit": "message", "duration_s": "30", "count": "1200000",
		"failed": "0", "rate_wanted_per_s": "", "latency_p50_us": csvIn(r.Results[0].Latency.Percentiles[0].Value, time.Microsecond),
		"latency_p99_9_us": csvIn(r.Results[0].Latency.Percentiles[5].Value, time.Microsecond), "rss_anon_before_bytes": "5242880",
		"bytes_per_connection": "934", "goroutines": "12", "generator_busy_cores": "0.62", "generator_late": "3", "generator_saturated": "false"} {
		got, ok := rows[0][column]
		if !ok || got != want {
			t.Errorf("%s is %q (%v), want %q", column, got, ok, want)
		}
	}
	for _, column := range []string{"latency_p50_us", "latency_max_us", "server_cpu_s", "kernel_sockets_bytes"} {
		if got := rows[1][column]; got != "" {
			t.Errorf("%s was not measured but is %q", column, got)
		}
	}
}

func TestCSVFormulas(t *testing.T) {
	var b bytes.Buffer
	if err := exampleHostile().WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	got := readCSV(t, &b)[0]["first_error"]
	if !strings.HasPrefix(got, "'=cmd") || strings.Contains(got, "\x1b") {
		t.Errorf("first_error is %q", got)
	}
}

func TestRatiosCSV(t *testing.T) {
	r := exampleComparison()
	var b bytes.Buffer
	if err := r.WriteRatiosCSV(&b); err != nil {
		t.Fatal(err)
	}
	rows := readCSV(t, &b)
	if len(rows) != len(r.Comparison.Ratios) {
		t.Fatalf("%d lines for %d ratios", len(rows), len(r.Comparison.Ratios))
	}
	if got := rows[0]; got["peer"] != "floor" || got["measure"] != "CPU per message" || got["target"] != "1.15" || got["ok"] != "true" || got["rounds"] != "3" {
		t.Errorf("first line %v", got)
	}
	if got := rows[1]; got["target"] != "" || got["ok"] != "" {
		t.Errorf("a verdict without a target: %v", got)
	}
	b.Reset()
	if err := exampleReport().WriteRatiosCSV(&b); err != nil || strings.Count(b.String(), "\n") != 1 {
		t.Errorf("without a comparison: %q, %v", b.String(), err)
	}
}

// readCSV has each line by its header's names; encoding/csv sees to it that all
// are equally long.
func readCSV(t *testing.T, b *bytes.Buffer) []map[string]string {
	t.Helper()
	lines, err := csv.NewReader(b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]string
	for _, line := range lines[1:] {
		row := map[string]string{}
		for i, name := range lines[0] {
			row[name] = line[i]
		}
		rows = append(rows, row)
	}
	return rows
}
