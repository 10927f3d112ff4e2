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
		"echo": {exampleReport(), []string{"Latency", "Throughput over time"}},
		"idle": {&Report{Results: []Result{exampleIdle("a", 900, 1)}}, []string{"Memory against connections", "Throughput over time"}},
		"compare": {exampleComparison(), []string{"CPU per message", "CPU per message: Perch against each peer", "Latency", "Throughput over time",
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
	for _, file := range []string{"html.go", "html_result.go", "svg.go", "svg_file.go", "svg_ratio.go", "svg_scale.go"} {
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
	lines := nodes(plots(root)[1], func(n *html.Node) bool { return n.Data == "polyline" })
	points := attr(lines[0], "points")
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
