package perch

import (
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// memoryRows are the rows of docs/memory.md by the functions that allocate for
// them. The first function of a stack that is here, from the innermost, has the
// bytes.
var memoryRows = map[string]string{
	"github.com/panjf2000/gnet/v2.newStreamConn":                      "gnet's connection",
	"golang.org/x/sys/unix.anyToSockaddr":                             "gnet's addresses",
	"github.com/panjf2000/gnet/v2/pkg/socket.SockaddrToTCPOrUnixAddr": "gnet's addresses",
	"github.com/panjf2000/gnet/v2.(*connMatrix).addConn":              "gnet's table from descriptors to connections",
	"perch/netpoll.(*loop).take":                                      "Perch's connection",
	"perch/handler.(*Commands).admit":                                 "user id",
	"perch/session.(*Registry).Identify":                              "registry",
	"perch/topic.(*Topics).Subscribe":                                 "subscription",
	"perch/topic.(*Topics).localFor":                                  ownTopicRow,
	// Of the table of what a loop has.
	"perch/netpoll.(*Server).loopOf":  loopRow,
	"perch/netpoll.(*conn).readFirst": loopRow,
}

const (
	ownTopicRow = "topic of the session's own"
	loopRow     = "the loop"
	chunkRow    = "the first piece of the connection table"
	// memoryRest is what may stand in no row, in bytes of a session.
	memoryRest = 4
)

// near tells whether a row says what is measured. Maps and lists grow in steps,
// at a time that their seed decides, so a row is right to some bytes.
func near(got float64, row int) bool { return math.Abs(got-float64(row)) <= max(4, 0.03*float64(row)) }

// TestMemoryTable measures each row of the tables in docs/memory.md: what a heap
// profile that misses nothing has of the functions that allocate for it.
func TestMemoryTable(t *testing.T) {
	parts := memoryTable(t, "| part | bytes | made of |")
	loop := memoryTable(t, "| of a loop | bytes | made of |")
	sums := [2]int{}
	for _, p := range parts {
		switch {
		case strings.HasPrefix(p.name, "sum"):
			if want := sums[0] + sums[1]; p.bytes != want {
				t.Errorf("%s is %d, the rows above make %d", p.name, p.bytes, want)
			}
		case p.name == ownTopicRow:
			sums[1] += p.bytes
		default:
			sums[0] += p.bytes
		}
	}
	if budgetShared < sums[0] || budgetOwn < sums[0]+sums[1] {
		t.Errorf("the budget of TestHeapPerSession is below the table's %v", sums)
	}
	for _, c := range budgetCases {
		t.Run(c.name, func(t *testing.T) {
			profileAll(t)
			var at []map[heapSite]heapUse
			hold(t, c.topic, func() { at = append(at, heapProfile()) })

			first, _, _ := byRow(at[0], at[1], 1)
			// One topic is there for all; the sessions of half a chunk weigh little.
			for _, row := range loop {
				name := row.name
				if name == chunkRow {
					name = "Perch's connection"
				}
				if got := first[name]; math.Abs(got-float64(row.bytes)) > 0.05*float64(row.bytes) {
					t.Errorf("%s: %.0f bytes, the table says %d", row.name, got, row.bytes)
				}
			}

			each, rest, unknown := byRow(at[1], at[2], budgetSessions)
			for _, row := range parts {
				if strings.HasPrefix(row.name, "sum") {
					continue
				}
				want := row.bytes
				if row.name == ownTopicRow && c.budget == budgetShared {
					want = 0
				}
				t.Logf("%6.1f %s", each[row.name], row.name)
				if !near(each[row.name], want) {
					t.Errorf("%s: %.1f bytes a session, the table says %d", row.name, each[row.name], want)
				}
				delete(each, row.name)
			}
			for name, got := range each {
				if math.Abs(got) > 1 {
					t.Errorf("%s: %.1f bytes a session, the table has no such row", name, got)
				}
			}
			if rest > memoryRest {
				t.Errorf("%.1f bytes a session are in no row:\n%s", rest, strings.Join(unknown, "\n"))
			}
		})
	}
}

// byRow is what has come between two profiles, shared by n, by row. rest is what
// belongs to no row, come or gone, and unknown are its sites.
func byRow(before, after map[heapSite]heapUse, n float64) (rows map[string]float64, rest float64, unknown []string) {
	rows = map[string]float64{}
	for s, u := range after {
		bytes := float64(u.bytes-before[s].bytes) / n
		f := s.functions()
		i := slices.IndexFunc(f, func(name string) bool { return memoryRows[name] != "" })
		if i >= 0 {
			rows[memoryRows[f[i]]] += bytes
			continue
		}
		if rest += math.Abs(bytes); math.Abs(bytes) > 0.1 {
			unknown = append(unknown, strconv.FormatFloat(bytes, 'f', 1, 64)+" "+s.String())
		}
	}
	return rows, rest, unknown
}

type memoryRow struct {
	name  string
	bytes int
}

var memoryRowPattern = regexp.MustCompile(`^\| \**([^|*]+?)\** \| \**([0-9,]+)\** \| `)

// memoryTable is the table of docs/memory.md under a header row.
func memoryTable(t *testing.T, header string) []memoryRow {
	t.Helper()
	text, err := os.ReadFile("docs/memory.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "\n"+header+"\n|---|---|---|\n")
	if !ok {
		t.Fatalf("docs/memory.md has no table %s", header)
	}
	var rows []memoryRow
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		m := memoryRowPattern.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not a row: %s", line)
		}
		n, err := strconv.Atoi(strings.ReplaceAll(m[2], ",", ""))
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, memoryRow{m[1], n})
	}
	return rows
}
