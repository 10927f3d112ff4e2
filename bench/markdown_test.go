package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// markdownOf writes a page and gives it back with the plots beside it.
func markdownOf(t *testing.T, r *Report) (page string, plots map[string][]byte) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "docs") // it is made
	if err := r.WriteMarkdown(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	plots = map[string][]byte{}
	files, err := os.ReadDir(filepath.Join(dir, "benchmarks"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if plots["benchmarks/"+f.Name()], err = os.ReadFile(filepath.Join(dir, "benchmarks", f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return string(text), plots
}

var imagePattern = regexp.MustCompile(`(?m)^!\[(.*)\]\(([^()\s]+)\)$`)

func TestMarkdownPlots(t *testing.T) {
	for name, tt := range map[string]struct {
		report *Report
		want   []string
	}{
		"compare": {exampleComparison(), []string{"echo-cost.svg", "echo-latency.svg", "echo-ratio.svg", "idle-cost.svg", "idle-memory.svg", "idle-ratio.svg"}},
		"one":     {exampleReport(), []string{"echo-latency.svg"}},
		"nothing": {&Report{}, nil},
		"hostile": {exampleHostile(), []string{"echo-cost.svg", "echo-latency.svg", "echo-ratio.svg", "idle-cost.svg", "idle-memory.svg", "idle-ratio.svg"}},
	} {
		t.Run(name, func(t *testing.T) {
			page, plots := markdownOf(t, tt.report)
			var linked []string
			for _, m := range imagePattern.FindAllStringSubmatch(page, -1) {
				if len(m[1]) < 20 {
					t.Errorf("%s is described by %q", m[2], m[1])
				}
				if plots[m[2]] == nil {
					t.Errorf("%s is not written", m[2])
				}
				linked = append(linked, strings.TrimPrefix(m[2], "benchmarks/"))
			}
			slices.Sort(linked)
			if !slices.Equal(linked, tt.want) || len(plots) != len(tt.want) {
				t.Errorf("plots %q of %d files, want %q", linked, len(plots), tt.want)
			}
			for name, text := range plots {
				checkPlotFile(t, name, text)
			}
			for _, bad := range []string{"NaN", "Inf", "%!", "<nil>"} {
				if strings.Contains(page, bad) {
					t.Errorf("%s in the page", bad)
				}
			}
		})
	}
}

// checkPlotFile holds that a plot is XML that draws something and asks for
// nothing.
func checkPlotFile(t *testing.T, name string, text []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(text))
	elements, ids := map[string]int{}, map[string]bool{}
	var uses []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name.Space != "http://www.w3.org/2000/svg" {
			t.Errorf("%s: <%s> of %q", name, start.Name.Local, start.Name.Space)
		}
		elements[start.Name.Local]++
		for _, a := range start.Attr {
			switch {
			case a.Name.Local == "id" && ids[a.Value]:
				t.Errorf("%s: id %s twice", name, a.Value)
			case a.Name.Local == "id":
				ids[a.Value] = true
			case a.Name.Local == "href":
				uses = append(uses, a.Value)
			case strings.HasPrefix(a.Name.Local, "on"):
				t.Errorf("%s: <%s %s>", name, start.Name.Local, a.Name.Local)
			}
		}
	}
	for _, use := range uses {
		if !ids[strings.TrimPrefix(use, "#")] {
			t.Errorf("%s refers to %s", name, use)
		}
	}
	if elements["script"]+elements["image"]+elements["a"] > 0 || bytes.Contains(text, []byte("ZgotmplZ")) {
		t.Errorf("%s: has what a plot has not: %v", name, elements)
	}
	if elements["rect"] < 5 && elements["polyline"] == 0 {
		t.Errorf("%s is empty: %v", name, elements)
	}
	if !bytes.Contains(text, []byte("prefers-color-scheme: dark")) {
		t.Errorf("%s has one look", name)
	}
}

func TestMarkdownTargets(t *testing.T) {
	r := exampleComparison()
	for i := range r.Comparison.Ratios {
		if ratio := &r.Comparison.Ratios[i]; ratio.Peer == "coder" && ratio.Scenario == "echo" {
			ratio.Ratio, ratio.Low, ratio.High, ratio.Target, ratio.OK = 0, 0, 0, 1, true
		}
	}
	page, _ := markdownOf(t, r)
	for _, line := range []string{
		"| echo | CPU per message | floor | 1.08× | 1.03–1.13 | ≤ 1.15× | met |",
		"| echo | CPU per message | gws | 0.71× | 0.69–0.75 | ≤ 0.70× | **missed** |",
		"| echo | CPU per message | coder | – | – | ≤ 1.00× | **not measured** |",
	} {
		if !strings.Contains(page, line+"\n") {
			t.Errorf("not in the page: %s", line)
		}
	}
	if !strings.Contains(page, " Met: 1 of 3, not measured: 1.") {
		t.Error("the count of targets met is not in the page")
	}
	if one, _ := markdownOf(t, exampleReport()); strings.Contains(one, "Targets") {
		t.Error("targets without a comparison")
	}
}

// TestMarkdownMedians holds that what is compared is that of all rounds, and
// that the page says which numbers are of the last alone.
func TestMarkdownMedians(t *testing.T) {
	r := exampleComparison()
	const last = "those of the last round"
	if page, _ := markdownOf(t, r); strings.Contains(page, last) {
		t.Error("the results have all rounds, and the page says they do not")
	}
	r.Results = r.Results[len(r.Results)-16:]
	page, _ := markdownOf(t, r)
	if !strings.Contains(page, last) {
		t.Error("the page does not say that most numbers are of one round")
	}
	for _, part := range []string{"| Server | CPU per message, median | ", "\n| **perch** | **9.10 µs** | ", "\n| gws | 12.7 µs | ",
		"| Server | bytes per session, median | ", "\n| **perch** | **934 B** | ", "```sh\nperch bench compare\n```\n", "Example CPU @ 2.50GHz · 2 cores"} {
		if !strings.Contains(page, part) {
			t.Errorf("not in the page: %q", part)
		}
	}
	again, _ := markdownOf(t, r)
	if again != page {
		t.Error("another page of the same report")
	}
}

func TestMarkdownEscapes(t *testing.T) {
	r := exampleHostile()
	r.Command = "perch bench ```\n# x"
	for i := range r.Results {
		r.Results[i].Server += "|`*[x](y)"
	}
	page, _ := markdownOf(t, r)
	width := 0
	for line := range strings.Lines(page) {
		if regexp.MustCompile(`(^|[^\\])<`).MatchString(line) {
			t.Errorf("markup in %q", line)
		}
		if !strings.HasPrefix(line, "|") {
			width = 0
			continue
		}
		n := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|")
		if width > 0 && n != width {
			t.Errorf("a row of %d bars in a table of %d: %s", n, width, line)
		}
		width = n
	}
	if !strings.Contains(page, "````sh\nperch bench ``` # x\n````\n") {
		t.Error("the command ends its block")
	}
	if !strings.Contains(page, `\<script\>alert("x")\</script\>0\|`+"\\`"+`\*\[x\](y)`) {
		t.Error("the name is not shown as it is")
	}
	if got := markdownLine("12. - x"); got != `12\. - x` {
		t.Errorf("a number begins a list: %s", got)
	}
}

func TestMarkdownNames(t *testing.T) {
	for name, want := range map[string]string{
		"echo": "echo", "echo, 16 at once": "echo-16-at-once", "../../etc/passwd": "etc-passwd", "Ünï": "n", "": "case", "…": "case",
		strings.Repeat("a", 63) + " b": strings.Repeat("a", 63),
	} {
		if got := fileStem(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
	r := exampleComparison()
	for i := range r.Results {
		if r.Results[i].Scenario == "idle" {
			r.Results[i] = exampleResult("Echo!", r.Results[i].Server, ClosedLoop, 1, 1)
		}
	}
	if _, plots := markdownOf(t, r); plots["benchmarks/echo-latency-2.svg"] == nil {
		t.Error("two cases of one file name")
	}
}

func TestMarkdownErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := exampleReport().WriteMarkdown(file); err == nil {
		t.Error("a page in a file")
	}
}
