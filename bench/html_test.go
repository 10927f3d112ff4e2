package bench

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

// pageOf renders a report and takes the page apart.
func pageOf(t *testing.T, r *Report) (string, *html.Node) {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	root, err := html.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	return text, root
}

func nodes(root *html.Node, match func(n *html.Node) bool) []*html.Node {
	var out []*html.Node
	for n := range root.Descendants() {
		if n.Type == html.ElementNode && match(n) {
			out = append(out, n)
		}
	}
	return out
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func words(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data + " ")
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

func plots(root *html.Node) []*html.Node {
	return nodes(root, func(n *html.Node) bool { return n.Data == "svg" && attr(n, "role") == "img" })
}

// plotTitles are those that a screen reader says.
func plotTitles(root *html.Node) []string {
	var out []string
	for _, svg := range plots(root) {
		for _, n := range nodes(svg, func(n *html.Node) bool { return n.Data == "title" }) {
			out = append(out, words(n))
		}
	}
	return out
}

func TestHTMLPlots(t *testing.T) {
	for name, tt := range map[string]struct {
		report *Report
		want   []string
	}{
		"echo": {exampleReport(), []string{"Latency", "Latency over time", "Throughput over time"}},
		"idle": {&Report{Results: []Result{exampleIdle("a", 900, 1)}}, []string{"Memory against connections", "Throughput over time"}},
		"compare": {exampleComparison(), []string{"CPU per message", "CPU per message: Perch against each peer", "Latency",
			"Latency over time, p50", "Latency over time, p99", "Latency over time, max", "Throughput over time",
			"bytes per session", "bytes per session: Perch against each peer", "Memory against connections", "Throughput over time"}},
		"nothing": {&Report{}, nil},
		"bare":    {&Report{Results: []Result{{Scenario: "push", Server: "s", Mode: OpenLoop, Unit: "message"}}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			text, root := pageOf(t, tt.report)
			if got := plotTitles(root); !slices.Equal(got, tt.want) {
				t.Errorf("plots %q, want %q", got, tt.want)
			}
			ids := map[string]bool{}
			for _, n := range nodes(root, func(n *html.Node) bool { return attr(n, "id") != "" }) {
				if ids[attr(n, "id")] {
					t.Errorf("id %s twice", attr(n, "id"))
				}
				ids[attr(n, "id")] = true
			}
			for _, svg := range plots(root) {
				for _, id := range strings.Fields(attr(svg, "aria-labelledby")) {
					if !ids[id] {
						t.Errorf("%s is named by %s, which is not there", attr(svg, "id"), id)
					}
				}
				descs := nodes(svg, func(n *html.Node) bool { return n.Data == "desc" })
				if len(descs) != 1 || len(words(descs[0])) < 20 {
					t.Errorf("a plot without a description")
				}
			}
			for _, bad := range []string{"NaN", "Inf", "ZgotmplZ", "<no value>", "%!"} {
				if strings.Contains(text, bad) {
					t.Errorf("%s in the page", bad)
				}
			}
		})
	}
}

// TestHTMLSelfContained holds that a browser asks for nothing.
func TestHTMLSelfContained(t *testing.T) {
	for _, r := range []*Report{exampleReport(), exampleComparison(), exampleHostile()} {
		text, root := pageOf(t, r)
		for _, n := range nodes(root, func(*html.Node) bool { return true }) {
			switch n.Data {
			case "script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject":
				t.Errorf("<%s> in the page", n.Data)
			}
			for _, a := range n.Attr {
				switch key := strings.ToLower(a.Key); {
				case strings.HasPrefix(key, "on"), key == "style", key == "src", key == "srcset", key == "action":
					t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
				case key == "href" && !strings.HasPrefix(a.Val, "#"):
					t.Errorf("<%s> leads to %q", n.Data, a.Val)
				}
			}
		}
		if regexp.MustCompile(`(?i)url\(|@import`).MatchString(text) {
			t.Error("the style sheet asks for something")
		}
		if !strings.Contains(text, `content="default-src 'none'; style-src 'unsafe-inline'"`) {
			t.Error("no policy")
		}
	}
}

func TestHTMLEscapes(t *testing.T) {
	text, root := pageOf(t, exampleHostile())
	for _, bad := range []string{"<script", "<img", "</svg></style>", `"onload="`, "\x1b"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q is in the page", bad)
		}
	}
	if strings.Count(text, "</style>") != 1 {
		t.Error("the style sheet was ended")
	}
	if !strings.Contains(words(root), `<script>alert("x")</script>0`) {
		t.Error("the name is not shown")
	}
	// The conversions that would let a name through are not in use.
	for _, file := range []string{"html.go", "html_result.go", "svg.go", "svg_file.go", "svg_ratio.go", "svg_scale.go", "svg_time.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if found := regexp.MustCompile(`template\.(HTML|HTMLAttr|JS|URL|CSS|Srcset)\b`).Find(source); found != nil {
			t.Errorf("%s uses %s", file, found)
		}
	}
}

func TestHTMLTargets(t *testing.T) {
	text, root := pageOf(t, exampleComparison())
	ratios := plots(root)[1]
	said := words(ratios)
	for _, part := range []string{"floor", "1.08×", "95 %: 1.03–1.13", "target ≤ 1.15× ✓ ok", "gws", "target ≤ 0.70× ✗ MISSED"} {
		if !strings.Contains(said, part) {
			t.Errorf("%q is not in the plot: %s", part, said)
		}
	}
	if n := len(nodes(ratios, func(n *html.Node) bool { return attr(n, "class") == "goal" })); n != 2 {
		t.Errorf("%d targets marked, want 2", n)
	}
	if n := len(nodes(plots(root)[0], func(n *html.Node) bool { return attr(n, "class") == "row perch" })); n != 1 {
		t.Errorf("Perch stands out in %d bars, want 1", n)
	}
	if !strings.Contains(words(root), "Targets 1 of 2 met") {
		t.Error("the score is not in the page")
	}
	if strings.Contains(text, "Generator saturated") {
		t.Error("saturated without being so")
	}
	if text, _ := pageOf(t, exampleHostile()); !strings.Contains(text, "Generator saturated") {
		t.Error("a saturated generator is not said")
	}
}

// TestHTMLOneLineEach holds that rounds are drawn together and no server is left
// out.
func TestHTMLOneLineEach(t *testing.T) {
	_, root := pageOf(t, exampleComparison())
	for _, svg := range plots(root) {
		lines := nodes(svg, func(n *html.Node) bool { return n.Data == "polyline" })
		if len(lines) != 0 && len(lines) != 8 {
			t.Errorf("%d lines for 8 servers in %s", len(lines), words(svg)[:40])
		}
		looks := map[string]bool{}
		for _, line := range lines {
			looks[attr(line, "class")] = true
		}
		if len(looks) != len(lines) {
			t.Errorf("%d looks for %d lines", len(looks), len(lines))
		}
		if len(lines) > 0 && attr(lines[len(lines)-1], "class") != "line c0" {
			t.Error("Perch is not on top")
		}
	}
}

// linesOf are the parts of the lines in the plot of that title.
func linesOf(t *testing.T, root *html.Node, title string) []*html.Node {
	t.Helper()
	for i, name := range plotTitles(root) {
		if name == title {
			return nodes(plots(root)[i], func(n *html.Node) bool { return n.Data == "polyline" })
		}
	}
	t.Fatalf("no plot %q in %q", title, plotTitles(root))
	return nil
}

// TestHTMLLatencyOverTime: one server has a line for each of the median, p99
// and the greatest, with a legend; several have a plot for each, in one scale.
func TestHTMLLatencyOverTime(t *testing.T) {
	_, root := pageOf(t, exampleReport())
	looks := map[string]bool{}
	for _, line := range linesOf(t, root, "Latency over time") {
		looks[attr(line, "class")] = true
		if n := len(strings.Fields(attr(line, "points"))); n != 31 {
			t.Errorf("%d points of 31 seconds", n)
		}
	}
	if len(looks) != 3 {
		t.Errorf("looks %v, want three", looks)
	}
	legends := nodes(root, func(n *html.Node) bool { return n.Data == "ul" && attr(n, "class") == "legend" })
	if len(legends) != 1 || words(legends[0]) != "p50 p99 max" {
		t.Errorf("%d legends", len(legends))
	}
	if said := words(root); !strings.Contains(said, "max: 22.0 ms after 0:17") {
		t.Error("the worst second is not in the page")
	}

	_, root = pageOf(t, exampleComparison())
	axes := map[string]bool{}
	for i, title := range plotTitles(root) {
		if strings.HasPrefix(title, "Latency over time, ") {
			for _, axis := range nodes(plots(root)[i], func(n *html.Node) bool { return attr(n, "class") == "axis y" }) {
				axes[words(axis)] = true
			}
		}
	}
	if len(axes) != 1 {
		t.Errorf("three plots of one thing with the axes %v", axes)
	}
}

// TestHTMLLatencyGap: a server that answered nothing for some seconds has no
// latency there, and none may be drawn across.
func TestHTMLLatencyGap(t *testing.T) {
	r := exampleReport()
	for i, p := range r.Results[0].Series {
		if i == 10 || i == 12 || i == 13 {
			p.P50, p.P99, p.Max = 0, 0, 0
		}
		r.Results[0].Series[i] = p
	}
	_, root := pageOf(t, r)
	lines := linesOf(t, root, "Latency over time")
	if len(lines) != 9 { // up to 9, 11 alone, from 14 on
		t.Fatalf("%d parts of three lines with two gaps", len(lines))
	}
	for i, want := range []int{10, 2, 17} { // a lone point is drawn as one that ends where it begins
		if n := len(strings.Fields(attr(lines[i], "points"))); n != want {
			t.Errorf("part %d has %d points, want %d", i, n, want)
		}
	}
	// Thinning may drop the point behind a gap, not the gap.
	var series []Point
	for s := range 5000 {
		p := Point{At: time.Duration(s) * time.Second, Rate: 1, P50: time.Millisecond, P99: time.Duration(s+1) * time.Millisecond, Max: time.Hour}
		if s == 2502 {
			p = Point{At: p.At}
		}
		series = append(series, p)
	}
	r.Results[0].Series = series
	_, root = pageOf(t, r)
	if n := len(linesOf(t, root, "Latency over time")); n != 6 {
		t.Errorf("%d parts of three lines with a gap", n)
	}
}

// TestHTMLStall has a second's stall in a run of a day: thinning must not lose
// it.
func TestHTMLStall(t *testing.T) {
	r := exampleReport()
	res := &r.Results[0]
	res.Series = nil
	for s := range 86400 {
		rate := 20000.0
		if s == 43211 {
			rate = 0
		}
		res.Series = append(res.Series, Point{At: time.Duration(s) * time.Second, Rate: rate})
	}
	text, root := pageOf(t, r)
	points := attr(linesOf(t, root, "Throughput over time")[0], "points")
	if !strings.Contains(points, fmt.Sprintf(",%d ", plotHeight)) {
		t.Error("the stall is not drawn")
	}
	if n := len(strings.Fields(points)); n > maxPoints+2 {
		t.Errorf("%d points", n)
	}
	if len(text) > 100_000 {
		t.Errorf("a page of %d bytes", len(text))
	}
}
