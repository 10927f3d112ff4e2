package bench

import (
	"context"
	"fmt"
	"os"
	"time"
)

// Observer hears how a run goes on; nil: nobody does.
type Observer interface {
	// Phase says what is done now, and for how long where that is known.
	Phase(what string, lasts time.Duration)
}

// saturated is the share of a core from which on a generator is taken for the
// bottleneck, and lateShare the share of messages that left late.
const (
	saturated = 0.92
	lateShare = 0.05
)

// stolenShare is the part of the processors' time from which on a result says
// that the hypervisor took it: of two processors, a hundredth of one's messages.
const stolenShare = 0.005

// Run runs one scenario. It blocks until the run is over or ctx ends. Several
// processes need Options.Processes and a Command to start them with.
func Run(ctx context.Context, o Options, command Command, see Observer) (Result, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Result{}, err
	}
	if _, err := o.target(); err != nil {
		return Result{}, err
	}
	if see == nil {
		see = silent{}
	}
	r := &run{o: o, server: server{pid: o.PID, admin: o.Admin}, see: see}
	r.result = Result{Scenario: o.Scenario, Server: o.Name, Mode: o.mode(), Started: time.Now(), Connections: o.Connections,
		Size: o.Size, Unit: units[o.Scenario], Want: o.Rate}
	if err := raiseLimit(); err != nil {
		return Result{}, err
	}
	var shares []shareResult
	if o.Processes == 1 {
		g, err := newGenerator(ctx, o, 0, r.phase)
		if err != nil {
			return Result{}, err
		}
		share, err := g.run()
		if err != nil {
			return Result{}, err
		}
		shares = append(shares, share)
	} else if shares, err = r.processes(ctx, command); err != nil {
		return Result{}, err
	}
	return r.finish(shares)
}

type silent struct{}

func (silent) Phase(string, time.Duration) {}

// run is one run as its coordinator sees it.
type run struct {
	o      Options
	server server
	see    Observer
	result Result

	start, begin, end, after sample
	steps                    []Point
	started                  int64
	sessions                 int // at begin
}

// phase is called when all generators stand at it, with the number of their
// sessions.
func (r *run) phase(name string, connections int) error {
	s, err := r.server.sample()
	if err != nil {
		return err
	}
	if r.started == 0 {
		r.started = s.at
		r.start = s
	}
	switch name {
	case phaseStart:
		r.start = s
		r.see.Phase("connecting", 0)
	case phaseStep:
		r.after = s
		r.steps = append(r.steps, Point{At: time.Duration(s.at - r.started), Connections: connections, RssAnon: s.rss})
		r.see.Phase(fmt.Sprintf("%d sessions", connections), 0)
	case phaseBegin:
		// The reading of the server must not count for the run.
		r.begin, r.sessions = s, connections
		lasts := r.o.Duration
		if r.o.Scenario == Connect || r.o.Scenario == Reconnect {
			lasts = 0
		}
		r.see.Phase("measuring", lasts)
	case phaseEnd:
		r.end = s
		if r.o.Scenario != Connect {
			r.after = s
		}
	}
	return nil
}

func (r *run) finish(shares []shareResult) (Result, error) {
	res := &r.result
	res.Duration = time.Duration(r.end.at - r.begin.at)
	switch r.o.Scenario {
	case Fanout:
		res.Want *= float64(r.o.Burst) * float64(r.o.Connections)
		fallthrough
	case Push, Mixed:
		// After it the generators wait for what is under way.
		res.Duration = min(res.Duration, r.o.Duration)
	case Beset:
		res.Duration, res.Hostile = r.o.Duration/2, shares[0].Hostile
	}
	if r.o.Scenario == Mixed {
		res.Notes = append(res.Notes, fmt.Sprintf("%.0f events/s: 9 of 10 a publication to one session, 1 a session that goes and comes back; "+
			"and each second a publication to all", res.Want))
		res.Want = 0
	}
	if err := res.merge(shares); err != nil {
		return *res, err
	}
	r.missing(shares)
	if all := r.end.ticks - r.begin.ticks; all > 0 {
		res.Stolen = float64(r.end.stolen-r.begin.stolen) / float64(all)
	}
	if res.Stolen >= stolenShare && res.Latency != nil {
		res.Notes = append(res.Notes, fmt.Sprintf("The hypervisor took %.1f%% of the processors' time: the longest latencies are its own.", 100*res.Stolen))
	}
	connections := 0
	if r.o.Scenario == Idle || r.o.Scenario == Connect {
		connections = r.o.Connections
	}
	after := r.after
	if r.o.Scenario == Idle && len(r.steps) > 0 {
		// What the hold brought is not what a session costs.
		after.rss = r.steps[len(r.steps)-1].RssAnon
	}
	res.Usage = usage(r.start, r.begin, r.end, after, r.server, res.Count, connections)
	if r.o.Scenario == Beset && res.Usage != nil {
		res.Usage.CPUPer = 0 // most of it was for others
	}
	if r.o.Scenario == Idle && r.server.pid > 0 {
		res.Series = r.steps
		res.Notes = append(res.Notes, marginal(r.start.rss, r.steps)...)
	}
	g := &res.Generator
	switch {
	case g.Busy > saturated && res.Mode == ClosedLoop && (r.o.Scenario == Echo || r.o.Scenario == Connect):
		g.Saturated = true
		res.Notes = append(res.Notes, "The generator used its whole core: the rate is its own limit. CPU per unit still is the server's.")
	case g.Busy > saturated && r.o.Scenario != Beset: // there the hostile peers are in it
		g.Saturated = true
		res.Notes = append(res.Notes, "The generator used its whole core: the latencies are its own. Use more processes, or a lower rate.")
	case res.Mode == OpenLoop && float64(g.Late) > lateShare*float64(max(res.Count, 1)):
		g.Saturated = true
		res.Notes = append(res.Notes, fmt.Sprintf("%d messages left more than a millisecond late: the generator did not keep up with the rate.", g.Late))
	}
	return *res, nil
}

// missing counts what was published and not delivered as failed: a server that
// drops must not look fast.
func (r *run) missing(shares []shareResult) {
	if each := deliveriesOf(r.o.Scenario, r.sessions); each > 1 {
		// A publication that never left is missed by all.
		r.result.Failed += r.result.Missed * (each - 1)
	}
	var due int64
	for _, s := range shares {
		due += s.Owed * deliveriesOf(r.o.Scenario, r.sessions)
	}
	missing := due - r.result.Count
	if r.o.Scenario == Push {
		missing -= r.result.Failed // publications that the server refused
	}
	if missing > 0 {
		r.result.Failed += missing
		def(&r.result.FirstError, fmt.Sprintf("%d of %d deliveries are missing", missing, due))
	}
}

// marginal says what the sessions between one step and the next cost each.
func marginal(start int64, steps []Point) []string {
	var notes []string
	from := Point{RssAnon: start}
	for _, s := range steps {
		if n := s.Connections - from.Connections; n > 0 {
			notes = append(notes, fmt.Sprintf("%d to %d sessions: %.0f B each",
				from.Connections, s.Connections, float64(s.RssAnon-from.RssAnon)/float64(n)))
		}
		from = s
	}
	return notes
}

// NewReport puts results together; version and command, the line that repeats
// them, are its caller's business.
func NewReport(version, command string, results ...Result) *Report {
	rep := &Report{Version: version, Machine: ThisMachine(), Command: command, Results: results, Started: time.Now()}
	if len(results) > 0 {
		rep.Started = results[0].Started
	}
	return rep
}

// Command starts another process of the bench, which must call Worker with its
// standard input and output.
type Command struct {
	Path string
	Args []string
}

// Self is the running binary with arguments.
func Self(args ...string) (Command, error) {
	path, err := os.Executable()
	if err != nil {
		return Command{}, fmt.Errorf("bench: %w", err)
	}
	return Command{path, args}, nil
}
