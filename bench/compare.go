package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// CompareOptions say how much of a comparison is run. The zero value is all of
// it.
type CompareOptions struct {
	// Perch is the binary of Perch, Peers the directory with those of its rivals.
	Perch, Peers string
	// Quick takes everything small: minutes become seconds, and the ratios rough.
	Quick bool
	// Rounds is how often each server's turn comes; 0: 7, or 2 of a quick one.
	Rounds int
	// Only are the cases to run, by name; empty: all.
	Only []string
	// Worker starts a further generator process.
	Worker Command
	// Watch is told of each turn before it begins, and returns who watches it; nil:
	// nobody does.
	Watch func(title string) (Observer, func())
}

// The rounds where none are said. docs/bench.md says how long they take.
const (
	wholeRounds = 7
	quickRounds = 2
)

// PeerNames are the servers of bench/peers.
func PeerNames() []string {
	return []string{floorName, "bare", "gws", "nbio", "gorilla", "coder", "gobwas"}
}

// contest is one case of a comparison: a load, who takes part, and what is
// compared.
type contest struct {
	name     string
	load     Options
	env      []string // of Perch
	args     []string // of the peers
	peers    []string
	measure  string
	unit     string
	value    func(Result) float64
	fresh    bool // servers are started anew for each round
	often    int  // turns that each server has in a round, one after the other; 0: one
	once     bool // a quick comparison takes one round: it is the same each time
	targets  map[string]float64
	relative string // compares with Perch itself in this case, not with peers
}

// A target of a ratio, of the same run on the same machine.
const (
	targetConnect   = 1.5
	targetEcho      = 1.15
	targetPipeline  = 0.5
	targetFanout    = 1.15
	targetBurst     = 0.12
	targetHeartbeat = 1.2
	targetTail      = 1.0
)

func cpuPer(r Result) float64 {
	if r.Usage == nil || r.Count == 0 {
		return 0
	}
	return float64(r.Usage.CPU) / float64(r.Count) / float64(time.Microsecond)
}

func bytesPer(r Result) float64 {
	if r.Usage == nil {
		return 0
	}
	return r.Usage.PerConnection
}

// tail is p99/p50 of a tenth of a second as most are: on a machine that is a
// guest the p99 of the whole is the hypervisor's, of any server.
func tail(r Result) float64 {
	if r.Tenths == nil {
		return 0
	}
	return r.Tenths.Tail
}

// contests are those of the promises in docs/benchmarks.md.
func contests(quick bool) []contest {
	// sizes are of the whole and of the quick run.
	n := func(whole, small int) int {
		if quick {
			return small
		}
		return whole
	}
	d := func(whole, small time.Duration) time.Duration {
		if quick {
			return small
		}
		return whole
	}
	base := Options{Size: 128, Duration: d(5*time.Second, 700*time.Millisecond),
		Warmup: d(2*time.Second, 300*time.Millisecond), Settle: d(3*time.Second, 500*time.Millisecond)}
	with := func(change func(*Options)) Options {
		o := base
		change(&o)
		return o
	}
	interval := d(5*time.Second, time.Second)
	// The peers ping in the heartbeat's case only. Where messages are counted,
	// Perch's own pings, 400 a second with 10,000 sessions, would count as theirs.
	calm := []string{"PERCH_HEARTBEAT_INTERVAL=1h"}
	return []contest{
		{name: "idle", fresh: true, once: true, peers: PeerNames(), measure: "bytes per session", unit: "B", value: bytesPer,
			load: with(func(o *Options) {
				o.Scenario, o.Connections = Idle, n(10000, 2000)
				o.Steps, o.Duration = []int{o.Connections}, time.Second/2
				// A server that gives memory back when a wave is over is given the time.
				o.Settle = d(3*time.Second, 1500*time.Millisecond)
			})},
		{name: "connect", peers: []string{"bare", floorName, "gws", "gorilla"}, measure: "CPU per connection", unit: "us", value: cpuPer,
			targets: map[string]float64{"bare": targetConnect},
			load: with(func(o *Options) {
				o.Scenario, o.Connections, o.Settle = Connect, n(5000, 500), time.Second/2
			})},
		{name: "echo", peers: PeerNames(), measure: "CPU per message", unit: "us", value: cpuPer, env: calm,
			targets: map[string]float64{floorName: targetEcho},
			load:    with(func(o *Options) { o.Scenario, o.Connections = Echo, n(1000, 200) })},
		{name: "echo, 16 at once", peers: []string{floorName, "bare", "gws"}, measure: "CPU per message", unit: "us", value: cpuPer, env: calm,
			targets: map[string]float64{"gws": targetPipeline},
			load:    with(func(o *Options) { o.Scenario, o.Connections, o.Depth = Echo, n(1000, 200), 16 })},
		{name: "echo, half load", peers: []string{floorName, "gws"}, measure: "p99/p50 of 100 ms", value: tail, env: calm, often: n(4, 2),
			targets: map[string]float64{floorName: targetTail},
			load: with(func(o *Options) {
				// What delays a hundredth comes and goes with the machine's other work:
				// many short turns next to each other see the same of it.
				o.Scenario, o.Connections, o.Rate = Echo, n(1000, 200), 20000
				o.Duration, o.Warmup = d(2*time.Second, o.Duration), d(time.Second/2, o.Warmup)
			})},
		{name: "fanout", peers: []string{floorName, "bare", "gws"}, measure: "CPU per delivery", unit: "us", value: cpuPer, env: calm,
			targets: map[string]float64{floorName: targetFanout},
			load:    with(func(o *Options) { o.Scenario, o.Connections, o.Rate = Fanout, n(10000, 1000), float64(n(2, 10)) })},
		{name: "fanout, 20 at once", peers: []string{floorName}, measure: "CPU per delivery", unit: "us", value: cpuPer, env: calm,
			relative: "fanout", targets: map[string]float64{relativeName("fanout"): targetBurst},
			load: with(func(o *Options) {
				o.Scenario, o.Connections, o.Rate, o.Burst = Fanout, n(10000, 1000), float64(n(1, 4)), 20
			})},
		{name: "heartbeat", peers: []string{floorName}, measure: "CPU per ping", unit: "us", value: cpuPer,
			targets: map[string]float64{floorName: targetHeartbeat},
			env:     []string{"PERCH_HEARTBEAT_INTERVAL=" + interval.String(), "PERCH_HEARTBEAT_TIMEOUT=" + (interval * 4 / 5).String()},
			args:    []string{"-ping", interval.String()},
			load: with(func(o *Options) {
				o.Scenario, o.Connections = Idle, n(15000, 1000)
				o.Steps, o.Duration = []int{o.Connections}, 3*interval
			})},
	}
}

// relativeName is what Perch is called where it is compared with itself.
func relativeName(name string) string { return PerchName + ", " + name }

// Cases are the names of a comparison's cases.
func Cases() []string {
	var names []string
	for _, c := range contests(false) {
		names = append(names, c.name)
	}
	return names
}

// Compare loads Perch and its peers in turns, case by case. The report has the
// result of each server's last round, and the ratios over all rounds.
func Compare(ctx context.Context, o CompareOptions) (*Report, error) {
	if o.Quick {
		def(&o.Rounds, quickRounds)
	}
	def(&o.Rounds, wholeRounds)
	if o.Rounds < 0 {
		return nil, errors.New("bench: rounds: must not be below 0")
	}
	for _, name := range o.Only {
		if !slices.Contains(Cases(), name) {
			return nil, fmt.Errorf("bench: unknown case %q; there are %q", name, Cases())
		}
	}
	rep := &Report{Started: time.Now(), Machine: ThisMachine(), Comparison: &Comparison{Rounds: o.Rounds}}
	values := map[string]map[string][]float64{} // by case and server, a value a round
	for _, c := range contests(o.Quick) {
		if len(o.Only) > 0 && !slices.Contains(o.Only, c.name) {
			continue
		}
		results, err := o.run(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		values[c.name] = map[string][]float64{}
		for _, name := range append([]string{PerchName}, c.peers...) {
			rounds := results[name]
			last := rounds[len(rounds)-1]
			last.Scenario = c.name
			rep.Results = append(rep.Results, last)
			for _, r := range rounds {
				values[c.name][name] = append(values[c.name][name], c.value(r))
			}
		}
		rep.ratios(c, values)
	}
	return rep, nil
}

// ratios compares what Perch took in a case with what the others took.
func (r *Report) ratios(c contest, values map[string]map[string][]float64) {
	perch := values[c.name][PerchName]
	add := func(peer string, other []float64) {
		ratio := Ratio{Scenario: c.name, Measure: c.measure, Unit: c.unit, Peer: peer,
			Perch: Median(perch), Other: Median(other), Target: c.targets[peer], Rounds: len(roundRatios(perch, other))}
		ratio.Ratio, ratio.Low, ratio.High = RatioCI(perch, other)
		// Without rounds the ratio is 0, which is not a promise kept.
		ratio.OK = ratio.Target > 0 && ratio.Ratio > 0 && ratio.Ratio <= ratio.Target
		r.Comparison.Ratios = append(r.Comparison.Ratios, ratio)
	}
	for _, peer := range c.peers {
		add(peer, values[c.name][peer])
	}
	if own := values[c.relative][PerchName]; len(own) == len(perch) {
		add(relativeName(c.relative), own)
	}
}

// run is one case: each server in turn, round after round.
func (o *CompareOptions) run(ctx context.Context, c contest) (map[string][]Result, error) {
	names := append([]string{PerchName}, c.peers...)
	running := map[string]*Server{}
	defer func() {
		for _, s := range running {
			s.Stop()
		}
	}()
	results := map[string][]Result{}
	rounds := o.Rounds * max(c.often, 1)
	if o.Quick && c.once {
		rounds = 1
	}
	for round := range rounds {
		for _, name := range order(names, round) {
			s := running[name]
			if s == nil {
				var err error
				if s, err = o.start(ctx, name, c); err != nil {
					return nil, err
				}
				running[name] = s
			}
			r, err := o.turn(ctx, s, c, fmt.Sprintf("%s, round %d of %d, %s", c.name, round+1, rounds, name))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			results[name] = append(results[name], r)
			if c.fresh {
				s.Stop()
				delete(running, name)
			}
		}
	}
	return results, nil
}

// order is that of a round's turns: each server comes behind each other one and
// first in a round as often as the others, where the rounds go far enough.
func order(names []string, round int) []string {
	k := round % len(names)
	turns := slices.Concat(names[k:], names[:k])
	if round/len(names)%2 == 1 {
		slices.Reverse(turns)
	}
	return turns
}

func (o *CompareOptions) start(ctx context.Context, name string, c contest) (*Server, error) {
	if name == PerchName {
		return StartPerch(ctx, o.Perch, c.env...)
	}
	return StartPeer(ctx, name, o.Peers+"/"+name, c.args...)
}

func (o *CompareOptions) turn(ctx context.Context, s *Server, c contest, title string) (Result, error) {
	load := s.Options(c.load)
	var see Observer
	if o.Watch != nil {
		var done func()
		see, done = o.Watch(title)
		defer done()
	}
	return Run(ctx, load, o.Worker, see)
}
