package perch_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
	"perch/protocol"
	"perch/session"
)

// TestDocumentLinks: every relative link of the documents leads to a file, and
// to a heading where it names one.
func TestDocumentLinks(t *testing.T) {
	files, err := filepath.Glob("docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	links := 0
	for _, file := range append(files, "README.md") {
		for _, target := range linksOf(readText(t, file)) {
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			links++
			name, heading, _ := strings.Cut(target, "#")
			path := file
			if name != "" {
				path = filepath.Join(filepath.Dir(file), filepath.FromSlash(name))
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: link to %s: %v", file, target, err)
				continue
			}
			if heading != "" && !headingsOf(readText(t, path))[heading] {
				t.Errorf("%s: link to %s: no such heading", file, target)
			}
		}
	}
	if links < 10 {
		t.Errorf("only %d links were found", links)
	}
}

var (
	fencePattern   = regexp.MustCompile("(?ms)^```.*?^```$")
	linkPattern    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingPattern = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

func linksOf(text string) []string {
	var out []string
	for _, m := range linkPattern.FindAllStringSubmatch(fencePattern.ReplaceAllString(text, ""), -1) {
		out = append(out, m[1])
	}
	return out
}

// headingsOf are the anchors of the headings, as GitHub makes them.
func headingsOf(text string) map[string]bool {
	out := make(map[string]bool)
	for _, m := range headingPattern.FindAllStringSubmatch(fencePattern.ReplaceAllString(text, ""), -1) {
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', r >= 'a' && r <= 'z', r >= '0' && r <= '9', r > 0x7f:
				return r
			}
			return -1
		}, strings.ToLower(m[1]))
		out[anchor] = true
	}
	return out
}

// tableRows are the cells of the table whose header row begins with columns.
func tableRows(t *testing.T, text string, columns ...string) [][]string {
	t.Helper()
	head := "| " + strings.Join(columns, " | ") + " |"
	at := strings.Index(text, head)
	if at < 0 || strings.Count(text, head) != 1 {
		t.Fatalf("not one table begins with %s", head)
	}
	var rows [][]string
	for i, line := range strings.Split(text[at:], "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		if i < 2 {
			continue // the header and the line below it
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		if len(cells) != strings.Count(strings.SplitN(text[at:], "\n", 2)[0], "|")-1 {
			t.Fatalf("a row of another width: %s", line)
		}
		rows = append(rows, cells)
	}
	return rows
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// TestDocumentedCloseCodes holds that docs/protocol.md has every close code,
// and nothing else.
func TestDocumentedCloseCodes(t *testing.T) {
	rows := make(map[string][]string)
	for _, r := range tableRows(t, readText(t, "docs/protocol.md"), "code", "text", "back", "label", "when") {
		if rows[r[3]] != nil {
			t.Errorf("%s stands there twice", r[3])
		}
		rows[r[3]] = r
	}
	session.Reasons(func(_ session.Reason, info session.ReasonInfo) {
		if info.Code == 0 {
			return // no close frame is sent
		}
		row := rows[info.Label]
		delete(rows, info.Label)
		want := []string{strconv.Itoa(int(info.Code)), info.Text, yes(info.Reconnect), info.Label}
		if len(row) != 5 || fmt.Sprint(row[:4]) != fmt.Sprint(want) || row[4] == "" {
			t.Errorf("documented as %q, is %q", row, want)
		}
	})
	for label := range rows {
		t.Errorf("%s is no reason", label)
	}
}

// TestDocumentedErrors holds that docs/protocol.md has every error of package
// protocol, and nothing else. The source is read, so that one that is new can't
// be forgotten.
func TestDocumentedErrors(t *testing.T) {
	rows := make(map[string][]string)
	for _, r := range tableRows(t, readText(t, "docs/protocol.md"), "code", "message", "again", "when") {
		if rows[r[0]] != nil {
			t.Errorf("%s stands there twice", r[0])
		}
		rows[r[0]] = r
	}
	declared := protocolErrors(t)
	if n := protocol.LastErrorCode - protocol.FirstErrorCode + 1; len(declared) != n {
		t.Errorf("%d errors found in the source, want %d", len(declared), n)
	}
	for _, e := range declared {
		row := rows[e[0]]
		delete(rows, e[0])
		if len(row) != 4 || fmt.Sprint(row[:3]) != fmt.Sprint(e) || row[3] == "" {
			t.Errorf("documented as %q, is %q", row, e)
		}
	}
	for code := range rows {
		t.Errorf("%s is no error", code)
	}
}

// protocolErrors are code, message and "again" of the errors of
// protocol/errors.go.
func protocolErrors(t *testing.T) [][]string {
	t.Helper()
	f, err := parser.ParseFile(gotoken.NewFileSet(), "protocol/errors.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	ast.Inspect(f, func(n ast.Node) bool {
		lit, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		if name, ok := lit.Type.(*ast.Ident); !ok || name.Name != "Error" || len(lit.Elts) != 3 {
			return true
		}
		code, okCode := lit.Elts[0].(*ast.BasicLit)
		message, okMessage := lit.Elts[1].(*ast.BasicLit)
		again, okAgain := lit.Elts[2].(*ast.Ident)
		if !okCode || !okMessage || !okAgain {
			t.Fatal("an error of protocol/errors.go is written in another way")
		}
		text, err := strconv.Unquote(message.Value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, []string{code.Value, text, yes(again.Name == "true")})
		return true
	})
	return out
}

var transcriptPattern = regexp.MustCompile("(?ms)^```text\n(.*?)^```$")

// TestDocumentedTranscript replays the examples of docs/protocol.md, from the
// first to the last in one session.
func TestDocumentedTranscript(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Dev, o.Engine = true, perch.EngineMemory })
	blocks := transcriptPattern.FindAllStringSubmatch(readText(t, "docs/protocol.md"), -1)
	if len(blocks) < 5 {
		t.Fatalf("%d examples found", len(blocks))
	}
	c, err := testkit.Open(s.public, "/connection/websocket")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fill := strings.NewReplacer(
		"SUBSCRIPTION_TOKEN", testkit.SubscriptionToken(testSecret, "alice", "$secret", 5*time.Minute),
		"TOKEN", testkit.Token(testSecret, "alice", time.Hour, nil),
	)
	epoch := "EPOCH"
	for _, b := range blocks {
		for line := range strings.Lines(b[1]) {
			line = strings.TrimSpace(line)
			if sent, ok := strings.CutPrefix(line, "→ "); ok {
				if err := c.SendFrames(testkit.Text(strings.ReplaceAll(fill.Replace(sent), "EPOCH", epoch))); err != nil {
					t.Fatal(err)
				}
				continue
			}
			want, ok := strings.CutPrefix(line, "← ")
			if !ok {
				t.Fatalf("neither sent nor received: %s", line)
			}
			got, err := c.Message()
			var closed *testkit.CloseError
			if errors.As(err, &closed) {
				t.Fatalf("want %s, closed: %v", want, closed)
			}
			if err != nil {
				t.Fatalf("want %s: %v", want, err)
			}
			if m := epochPattern.FindSubmatch(got); m != nil {
				epoch = string(m[1])
			}
			if g := masked(string(got)); g != masked(want) {
				t.Errorf("got  %s\nwant %s", g, masked(want))
			}
		}
	}
}

var (
	maskPattern  = regexp.MustCompile(`("(?:client|version|epoch)":)"[^"]*"|("(?:ttl|ping)":)\d+|"[^"]*":(\{"user")`)
	epochPattern = regexp.MustCompile(`"epoch":"([^"]*)"`)
)

// masked takes out what differs from run to run.
func masked(line string) string {
	return maskPattern.ReplaceAllString(strings.TrimSpace(line), "$1$2*$3")
}
