package bench

import (
	"bufio"
	"bytes"
	"net"
	"strings"
	"testing"
	"time"
)

// newDeafServer is one that upgrades and reads nothing after that.
func newDeafServer(t *testing.T) net.Addr {
	done := make(chan struct{})
	addr := scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		if upgrade(c, r) == nil {
			<-done
		}
	})
	t.Cleanup(func() { close(done) })
	return addr
}

// TestPendingBound: an open loop against a server that reads nothing keeps a
// bounded number of bytes, and says what it did not send.
func TestPendingBound(t *testing.T) {
	const size = 50_000
	for _, o := range []Options{
		{Scenario: Echo, Connections: 2, Rate: 5000},
		{Scenario: Fanout, Connections: 2, Rate: 500, Burst: 10},
	} {
		t.Run(o.Scenario, func(t *testing.T) {
			o.URL, o.Size, o.Duration, o.Warmup = "ws://"+newDeafServer(t).String()+"/", size, 500*time.Millisecond, -1
			o, err := o.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			coordinator := &run{o: o, see: silent{}, result: Result{Scenario: o.Scenario, Server: "deaf", Mode: OpenLoop, Unit: "message", Want: o.Rate}}
			g, err := newGenerator(t.Context(), o, 0, coordinator.phase)
			if err != nil {
				t.Fatal(err)
			}
			g.answerLimit = 50 * time.Millisecond
			pending := 0
			g.phase = func(name string, connections int) error {
				for i := range g.c.all {
					pending = max(pending, len(g.c.all[i].out))
				}
				return coordinator.phase(name, connections)
			}
			share, err := g.run()
			if err != nil {
				t.Fatal(err)
			}
			r, err := coordinator.finish([]shareResult{share})
			if err != nil {
				t.Fatal(err)
			}
			// One more is taken below the bound, and no frame is cut.
			if most := pendingMost + o.Burst*(size+14); pending < pendingMost || pending > most {
				t.Errorf("%d bytes wait on a connection, the bound is %d", pending, most)
			}
			due := int64(o.Rate*o.Duration.Seconds()) * int64(o.Burst)
			if r.Count != 0 || r.Missed < due/10 || r.Missed > due || r.Failed < r.Missed*max(1, deliveriesOf(o.Scenario, o.Connections)) {
				t.Errorf("%d answered, %d missed and %d failed of %d due", r.Count, r.Missed, r.Failed, due)
			}
			text := textOf(t, NewReport("", "", r))
			wantAll(t, strings.Join(strings.Fields(text), " "), humanCount(r.Missed)+" messages were never sent: the server did not read")
		})
	}
}

// TestPendingPong: a server that pings and does not read gets no more pongs than
// the bound lets wait.
func TestPendingPong(t *testing.T) {
	g := newTestGenerator(t, Options{Scenario: Idle, URL: "ws://" + newDeafServer(t).String() + "/", Connections: 1})
	defer g.c.close()
	if err := g.open(1); err != nil {
		t.Fatal(err)
	}
	out := &g.c.all[0].out
	for _, lines := range []bool{false, true} {
		ping := func() {
			if g.lines = lines; lines {
				g.message(0, opText, []byte("{}"), now())
			} else {
				g.message(0, opPing, []byte("p"), now())
			}
		}
		g.m.pings, *out = 0, make([]byte, pendingMost)
		if ping(); len(*out) != pendingMost || g.m.pings != 0 {
			t.Errorf("lines %v: %d bytes wait, %d pings answered", lines, len(*out), g.m.pings)
		}
		*out = (*out)[:pendingMost-1]
		if ping(); len(*out) <= pendingMost || g.m.pings != 1 {
			t.Errorf("lines %v: %d bytes wait, %d pings answered, below the bound", lines, len(*out), g.m.pings)
		}
	}
}

// TestMissedSaid: every form of a report says what was never sent.
func TestMissedSaid(t *testing.T) {
	one := exampleReport()
	one.Results[0].Failed, one.Results[0].Missed = 1500, 1200
	wantAll(t, textOf(t, one), "1,500 FAILED (1,200 messages were never sent")
	compared := exampleComparison()
	for i := range compared.Results {
		if res := &compared.Results[i]; res.Server == "gws" && res.Scenario == "echo" {
			res.Failed, res.Missed = 2, 1
		}
	}
	wantAll(t, textOf(t, compared), "gws: 3 messages were never sent: the server did not read")
	for name, tt := range map[string]struct {
		report *Report
		want   string
	}{"one": {one, "1,500 failed (1,200 messages were never sent: the server did not read)"}, "compare": {compared, "gws: 6 failed (3 messages were never sent: the server did not read)"}} {
		_, root := pageOf(t, tt.report)
		if said := words(root); !strings.Contains(said, tt.want) {
			t.Errorf("%s: the page does not say %q", name, tt.want)
		}
	}
	page, _ := markdownOf(t, compared)
	wantAll(t, page, "3 messages were never sent")
	var sheet bytes.Buffer
	if err := one.WriteCSV(&sheet); err != nil {
		t.Fatal(err)
	}
	if row := readCSV(t, &sheet)[0]; row["missed"] != "1200" {
		t.Errorf("csv: %v", row)
	}
}
