package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const hostileURL = "ws://127.0.0.1:1/connection/websocket"

func TestHostileDefaults(t *testing.T) {
	of := func(given map[string]int) map[string]int {
		t.Helper()
		o, err := Options{Scenario: Beset, URL: hostileURL, Hostile: given}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		if o.Rate != 2500 || o.Flood != 512 || o.Rounds != 5 || o.Topic != "bench{i}" {
			t.Errorf("defaults %+v", o)
		}
		return o.Hostile
	}
	all := of(nil)
	if len(all) != len(HostileKinds()) {
		t.Errorf("%v", all)
	}
	for kind, n := range all {
		if n != 100 {
			t.Errorf("%d of %s", n, kind)
		}
	}
	one := of(map[string]int{"all": 0, "pings": 7})
	for _, kind := range HostileKinds() {
		if want := map[string]int{"pings": 7}[kind]; one[kind] != want {
			t.Errorf("%d of %s", one[kind], kind)
		}
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Hostile: map[string]int{"zombies": 1}}, "unknown hostile kind"},
		{Options{Hostile: map[string]int{"pings": -1}}, "must not be below 0"},
		{Options{Processes: 2}, "one process"},
		{Options{Protocol: ProtocolEcho}, "centrifuge only"},
		{Options{Flood: -1}, "flood"},
		{Options{Rounds: -1}, "rounds"},
	} {
		c.o.Scenario, c.o.URL = Beset, hostileURL
		if _, err := c.o.withDefaults(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// TestHostileRatio: the ratio is that of turns next to each other.
func TestHostileRatio(t *testing.T) {
	h := Hostile{Kinds: map[string]int{"pings": 3, "tiny-frames": 0}, Flood: 512, Ended: 1}
	for i := range 5 {
		slow := time.Duration(1 + 9*(i%2)) // the machine in every other round
		h.Rounds = append(h.Rounds, HostileRound{
			Without: HostileTurn{Count: 1000, P50: slow * time.Millisecond, P99: slow * 10 * time.Millisecond, Tenth: slow * 2 * time.Millisecond},
			Beside:  HostileTurn{Count: 1000, P50: slow * time.Millisecond, P99: slow * 20 * time.Millisecond, Tenth: slow * 3 * time.Millisecond},
		})
	}
	h.reckon()
	if h.P50.Ratio != 1 || h.P99.Ratio != 2 || h.P99.Low != 2 || h.P99.High != 2 || h.P99.Without != 10*time.Millisecond || h.Tenth == nil || h.Tenth.Ratio != 1.5 {
		t.Errorf("%+v", h)
	}
	rep := NewReport("v", "", Result{Scenario: Beset, Server: "perch", Mode: OpenLoop, Unit: "delivery", Hostile: &h})
	var text, page, lines, raw bytes.Buffer
	for _, err := range []error{rep.WriteText(&text), rep.WriteHTML(&page), rep.WriteCSV(&lines), rep.WriteJSON(&raw)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, got := range map[string]string{"text": text.String(), "page": page.String()} {
		for _, want := range []string{"3 pings", "10.0 ms without, 20.0 ms beside: 2.00 times (2.00 to 2.00)", "2.00 ms without, 3.00 ms beside: 1.50 times"} {
			if !strings.Contains(strings.Join(strings.Fields(got), " "), want) {
				t.Errorf("the %s says nothing of %q", what, want)
			}
		}
		if strings.Contains(got, "tiny-frames") {
			t.Errorf("the %s names who was not there", what)
		}
	}
	if !strings.HasSuffix(strings.TrimSpace(lines.String()), ",3,10000,20000,2,2,2,1.5") {
		t.Errorf("csv: %s", lines.String())
	}
	var back Report
	if err := json.Unmarshal(raw.Bytes(), &back); err != nil || back.Results[0].Hostile.P99 != h.P99 {
		t.Errorf("json: %v", err)
	}
}

// TestHostilePeersAct: each kind does what it is there for, and who is ended
// comes back; the good ones' publications are measured without them and beside.
func TestHostilePeersAct(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	saw := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		seen[what]++
	}
	// The server says what it was sent. It echoes publications, and ends who pongs.
	addr := scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		if b, err := r.Peek(2); err != nil || string(b) != "GE" {
			if len(b) > 0 {
				saw("part of a head")
			}
			return
		}
		if upgrade(c, r) != nil {
			return
		}
		for {
			head, err := r.Peek(2)
			if err != nil {
				return
			}
			if head[1]&0x7f == 126 && r.Buffered() <= 8 {
				saw("part of a frame")
			}
			if head[0] == opText {
				saw("fragments")
			}
			opcode, p, err := readClientFrame(r)
			if err != nil {
				return
			}
			switch {
			case opcode == opPing:
				saw("ping")
			case string(p) == "{}":
				saw("pong")
				return
			case bytes.Count(p, []byte("unsubscribe")) > 1:
				saw("commands")
			case bytes.Contains(p, []byte("unsubscribe")):
				saw("small command")
			}
			for line := range splitLines(p) {
				out := textFrame(`{"id":1}`)
				if _, data, ok := bytes.Cut(line, []byte(`"data":`)); ok {
					out = textFrame(`{"push":{"pub":{"data":` + string(data[:len(data)-2]) + `}}}`)
				}
				if _, err := c.Write(out); err != nil {
					return
				}
			}
		}
	})
	g := newTestGenerator(t, Options{Scenario: Beset, URL: "ws://" + addr.String() + "/connection/websocket", Connections: 4, Rate: 100,
		Duration: 3 * time.Second, Warmup: -1, Rounds: 1, Flood: 4, Hostile: map[string]int{"all": 2}})
	r, err := g.run()
	if err != nil {
		t.Fatal(err)
	}
	h := r.Hostile
	if h == nil || len(h.Rounds) != 1 || h.Rounds[0].Without.Count == 0 || h.Rounds[0].Beside.Count == 0 || h.Rounds[0].Beside.Count != r.Count {
		t.Fatalf("%+v, %d counted", h, r.Count)
	}
	if h.Ended < 4 {
		t.Errorf("%d were ended: who is ended comes back", h.Ended)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, what := range []string{"part of a frame", "fragments", "ping", "pong", "commands", "small command"} {
		if seen[what] == 0 {
			t.Errorf("no %s among %v", what, slices.Sorted(maps.Keys(seen)))
		}
	}
}
