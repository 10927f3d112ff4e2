package bench

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// exampleMachine is what the reports of these tests ran on.
var exampleMachine = Machine{CPU: "Example CPU @ 2.50GHz", Cores: 2, Memory: 8 << 30, Kernel: "6.12.0", OS: "Debian 13", Go: "go1.26.0"}

var exampleStart = time.Date(2025, 11, 22, 21, 46, 0, 0, time.UTC)

// exampleResult has every field set; cost scales its numbers.
func exampleResult(scenario, server, mode string, cost float64, seed uint64) Result {
	random := rand.New(rand.NewPCG(seed, 1))
	noise := func() float64 { return 1 + 0.06*(random.Float64()-0.5) }
	us := func(v float64) time.Duration { return time.Duration(v * cost * noise() * 1e3) }
	r := Result{Scenario: scenario, Server: server, Mode: mode, Started: exampleStart, Duration: 30 * time.Second,
		Connections: 1000, Size: 128, Unit: "message", Count: int64(1.2e6 / cost), Rate: 4e4 / cost * noise(),
		Latency: &Latency{Count: int64(1.2e6 / cost), Mean: us(140), Min: us(40), Max: us(21e3), Histogram: "HISTFAAAAA"},
		Usage: &Usage{CPU: time.Duration(10.9e9 * noise()), CPUPer: us(9.1), RssBefore: 5 << 20, RssAfter: int64(9e6 * cost),
			PerConnection: 934 * cost, KernelSockets: 12 << 20, Goroutines: 12, GCs: 4, GCPause: us(310)},
		Tenths:    &Tenths{Count: 300, P50: us(118), P99: us(310), Tail: 2.6},
		Generator: Generator{Processes: 1, CPU: 12 * time.Second, Busy: 0.62, Late: 3}, Stolen: 0.004}
	if mode == OpenLoop {
		r.Want = 2e4
		r.Rate = 2e4 * (1 - 0.002*random.Float64())
	}
	for i, p := range []float64{50, 75, 90, 95, 99, 99.9, 99.99} {
		r.Latency.Percentiles = append(r.Latency.Percentiles, Percentile{p, us(120 * math.Pow(1.9, float64(i)))})
	}
	for s := range 31 {
		rate := r.Rate * noise()
		if s == 17 && cost > 2 {
			rate *= 0.35
		}
		point := Point{At: time.Duration(s) * time.Second, Connections: 1000, Rate: rate, P50: us(120), P99: us(1400), Max: us(3e3),
			RssAnon: int64(9e6 * cost)}
		if s == 17 {
			point.Max = time.Duration(22e6 * cost)
		}
		r.Series = append(r.Series, point)
	}
	return r
}

func exampleIdle(server string, perConnection float64, seed uint64) Result {
	r := exampleResult("idle", server, OpenLoop, 1, seed)
	r.Connections, r.Size, r.Unit, r.Count, r.Rate, r.Want = 18000, 0, "connection", 18000, 1500, 1500
	r.Latency, r.Tenths = nil, nil
	r.Usage.PerConnection, r.Usage.CPUPer = perConnection, 0
	r.Usage.RssAfter = 5<<20 + int64(18000*perConnection)
	r.Series = nil
	for s := range 20 {
		n := min(18000, 1500*s)
		r.Series = append(r.Series, Point{At: time.Duration(s) * time.Second, Connections: n, Rate: float64(min(1500, 18000-n)),
			RssAnon: 5<<20 + int64(float64(n)*perConnection)})
	}
	return r
}

// exampleReport is that of one result.
func exampleReport() *Report {
	return &Report{Version: "0.1.0", Started: exampleStart, Machine: exampleMachine, Command: "perch bench echo --rate 20000 ws://127.0.0.1:8000/ws",
		Results: []Result{exampleResult("echo", "127.0.0.1:8000", OpenLoop, 1, 1)}}
}

// exampleComparison has Perch and seven peers, three rounds, two scenarios, a
// target that is met and one that is missed.
func exampleComparison() *Report {
	r := &Report{Version: "0.1.0", Started: exampleStart, Machine: exampleMachine, Command: "perch bench compare",
		Comparison: &Comparison{Rounds: 3}}
	names := []string{"perch", "floor", "gnet", "gws", "nbio", "gobwas", "gorilla", "coder"}
	cost := map[string]float64{"perch": 1, "floor": 0.93, "gnet": 1.9, "gws": 1.4, "nbio": 2.1, "gobwas": 1.5, "gorilla": 1.62, "coder": 3.4}
	memory := map[string]float64{"perch": 934, "floor": 210, "gnet": 620, "gws": 9260, "nbio": 1450, "gobwas": 7850, "gorilla": 17150, "coder": 24000}
	for round := range 3 {
		for i, name := range names {
			seed := uint64(100*round + i)
			r.Results = append(r.Results, exampleResult("echo", name, ClosedLoop, cost[name], seed), exampleIdle(name, memory[name], seed))
		}
	}
	for _, name := range names[1:] {
		ratio := 1 / cost[name]
		echo := Ratio{Scenario: "echo", Measure: "CPU per message", Unit: "us", Peer: name, Perch: 9.1, Other: 9.1 * cost[name],
			Ratio: ratio, Low: ratio * 0.96, High: ratio * 1.05}
		switch name {
		case "floor":
			echo.Target, echo.OK = 1.15, true
		case "gws":
			echo.Target, echo.OK = 0.70, false
		}
		idle := Ratio{Scenario: "idle", Measure: "bytes per session", Unit: "B", Peer: name, Perch: 934, Other: memory[name],
			Ratio: 934 / memory[name], Low: 934 / memory[name] * 0.99, High: 934 / memory[name] * 1.02}
		r.Comparison.Ratios = append(r.Comparison.Ratios, echo, idle)
	}
	return r
}

// exampleHostile has names that would leave their place in a page, a sheet or a
// terminal.
func exampleHostile() *Report {
	r := exampleComparison()
	const name = `<script>alert("x")</script>`
	for i := range r.Results {
		r.Results[i].Server = fmt.Sprintf("%s%d", name, i%8)
		r.Results[i].Generator.Saturated = true
		r.Results[i].Failed, r.Results[i].FirstError = 2, "=cmd|' /C calc'!A0\x1b[2J\"><img src=x onerror=alert(1)>"
		r.Results[i].Notes = []string{"</svg></style><script>1</script>"}
	}
	for i := range r.Comparison.Ratios {
		r.Comparison.Ratios[i].Peer, r.Comparison.Ratios[i].Measure = name, `"onload="x`
	}
	r.Command, r.Machine.CPU = name, name
	return r
}
