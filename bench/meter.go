package bench

import (
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A latency is kept in nanoseconds, from a microsecond to ten minutes, with
// two significant digits for each second of the run and three for the whole.
const (
	latencyLeast = int64(time.Microsecond)
	latencyMost  = int64(10 * time.Minute)
	digitsSecond = 2
	digitsWhole  = 3
)

// lateAfter is what a message may leave after it was due before that counts as
// the generator's own delay.
const lateAfter = int64(time.Millisecond)

func newHistogram(digits int) *hdrhistogram.Histogram {
	return hdrhistogram.New(latencyLeast, latencyMost, digits)
}

func record(h *hdrhistogram.Histogram, ns int64) {
	// Out of bounds can't happen between them.
	_ = h.RecordValue(min(max(ns, latencyLeast), latencyMost))
}

// meter is what one generator counts. Of what is before start it counts the
// failures alone.
type meter struct {
	started int64 // 0: not yet
	count   int64
	failed  int64
	missed  int64 // of failed, those never sent
	late    int64
	owed    int64  // publications made in the measured part
	pings   int64  // of the server, answered; of both kinds
	first   string // error
	whole   *hdrhistogram.Histogram
	second  *hdrhistogram.Histogram
	seconds []second
	current second
	next    int64 // when the current second ends
	tenths  tenths
	hostile *Hostile // of that scenario
}

// second is what one second brought to one generator.
type second struct {
	Connections int    `json:"connections"`
	Count       int64  `json:"count"`
	Latency     []byte `json:"latency,omitempty"`
}

func newMeter() *meter { return &meter{whole: newHistogram(digitsWhole)} }

func (m *meter) start(t int64) {
	m.started, m.next = t, t+int64(time.Second)
	m.count, m.late, m.owed = 0, 0, 0
	m.whole.Reset()
	m.second = newHistogram(digitsSecond)
	m.seconds, m.current = nil, second{}
	m.tenths.start(t)
}

func (m *meter) stop() { m.started = 0 }

// end closes the measured part. What is left of a second is too short for a
// rate, but its latencies may be the worst of all, such as those behind a stall:
// the last whole second takes them.
func (m *meter) end(t int64, connections int) {
	m.tick(t, connections)
	if n := len(m.seconds); n > 0 && m.second.TotalCount() > 0 {
		last := &m.seconds[n-1]
		// Both were made by this library.
		_ = mergeInto(m.second, last.Latency)
		last.Latency, _ = m.second.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	}
	m.stop()
}

// add counts a unit without a latency.
func (m *meter) add(n int64) {
	if m.started != 0 {
		m.count += n
		m.current.Count += n
	}
}

// observe counts a unit that was due at one moment and done at another.
func (m *meter) observe(due, done int64) {
	// What was due in the warm-up is not counted.
	if m.started == 0 || due < m.started {
		return
	}
	m.add(1)
	record(m.whole, done-due)
	record(m.second, done-due)
	record(m.tenths.current, done-due)
}

// owe counts publications that are made, each of which is to be delivered.
func (m *meter) owe(due, n int64) {
	if m.started != 0 && due >= m.started {
		m.owed += n
	}
}

// sent says when what was due left.
func (m *meter) sent(due, t int64) {
	if m.started != 0 && t-due > lateAfter {
		m.late++
	}
}

// fail counts a failure, also in the warm-up: nothing may be lost in silence.
func (m *meter) fail(why string) {
	m.failed++
	if m.first == "" {
		m.first = why
	}
}

// miss counts what was due and could not be sent, since the server does not read.
// In the warm-up it is a failure, as any, but no part of the load.
func (m *meter) miss(n int64) {
	if m.started != 0 {
		m.missed += n
	}
	m.failed += n
	def(&m.first, fmt.Sprintf("not sent: the server does not read, and %d bytes wait for it on a connection", pendingMost))
}

// tick closes the seconds that have passed.
func (m *meter) tick(t int64, connections int) {
	if m.started != 0 {
		m.tenths.tick(t)
	}
	for m.started != 0 && t >= m.next {
		m.next += int64(time.Second)
		m.current.Connections = connections
		if m.second.TotalCount() > 0 {
			// It was made by this library.
			m.current.Latency, _ = m.second.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
			m.second.Reset()
		}
		m.seconds = append(m.seconds, m.current)
		m.current = second{}
	}
}

// shareResult is what one generator brings to the run.
type shareResult struct {
	Count      int64         `json:"count"`
	Failed     int64         `json:"failed"`
	Missed     int64         `json:"missed,omitempty"`
	FirstError string        `json:"first_error,omitempty"`
	Late       int64         `json:"late"`
	Owed       int64         `json:"owed,omitempty"`
	Latency    []byte        `json:"latency,omitempty"`
	Tenths     []tenth       `json:"tenths,omitempty"`
	Seconds    []second      `json:"seconds,omitempty"`
	Hostile    *Hostile      `json:"hostile,omitempty"`
	CPU        time.Duration `json:"cpu"`
	Wall       time.Duration `json:"wall"`
}

func (m *meter) result() (shareResult, error) {
	r := shareResult{Count: m.count, Failed: m.failed, Missed: m.missed, FirstError: m.first, Late: m.late, Owed: m.owed, Seconds: m.seconds,
		Tenths: m.tenths.all, Hostile: m.hostile}
	var err error
	if m.whole.TotalCount() > 0 {
		if r.Latency, err = m.whole.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err != nil {
			return r, fmt.Errorf("bench: histogram: %w", err)
		}
	}
	return r, nil
}

var percentiles = []float64{50, 75, 90, 95, 99, 99.9, 99.99}

// merge puts the shares of a run together into r.
func (r *Result) merge(shares []shareResult) error {
	whole := newHistogram(digitsWhole)
	type sum struct {
		connections int
		count       int64
		latency     *hdrhistogram.Histogram
	}
	var seconds []sum
	var all []tenth
	r.Generator.Processes = len(shares)
	for _, s := range shares {
		r.Count += s.Count
		r.Failed += s.Failed
		r.Missed += s.Missed
		r.Generator.Late += s.Late
		def(&r.FirstError, s.FirstError)
		r.Generator.CPU += s.CPU
		if s.Wall > 0 {
			r.Generator.Busy = max(r.Generator.Busy, float64(s.CPU)/float64(s.Wall))
		}
		if err := mergeInto(whole, s.Latency); err != nil {
			return err
		}
		all = append(all, s.Tenths...)
		for i, sec := range s.Seconds {
			if i == len(seconds) {
				seconds = append(seconds, sum{latency: newHistogram(digitsSecond)})
			}
			seconds[i].connections += sec.Connections
			seconds[i].count += sec.Count
			if err := mergeInto(seconds[i].latency, sec.Latency); err != nil {
				return err
			}
		}
	}
	for i, s := range seconds {
		p := Point{At: time.Duration(i+1) * time.Second, Connections: s.connections, Rate: float64(s.count)}
		if s.latency.TotalCount() > 0 {
			p.P50 = time.Duration(s.latency.ValueAtPercentile(50))
			p.P99 = time.Duration(s.latency.ValueAtPercentile(99))
			// The whole run's histogram is the finer one.
			p.Max = time.Duration(min(s.latency.Max(), whole.Max()))
		}
		r.Series = append(r.Series, p)
	}
	if r.Duration > 0 {
		r.Rate = float64(r.Count) / r.Duration.Seconds()
	}
	r.Tenths = tenthsOf(all)
	if whole.TotalCount() == 0 {
		return nil
	}
	encoded, err := whole.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return fmt.Errorf("bench: histogram: %w", err)
	}
	l := &Latency{Count: whole.TotalCount(), Mean: time.Duration(whole.Mean()), Min: time.Duration(whole.Min()),
		Max: time.Duration(whole.Max()), Histogram: string(encoded)}
	for _, p := range percentiles {
		l.Percentiles = append(l.Percentiles, Percentile{p, time.Duration(whole.ValueAtPercentile(p))})
	}
	r.Latency = l
	return nil
}

func mergeInto(h *hdrhistogram.Histogram, encoded []byte) error {
	if len(encoded) == 0 {
		return nil
	}
	o, err := hdrhistogram.Decode(encoded)
	if err != nil {
		return fmt.Errorf("bench: histogram: %w", err)
	}
	h.Merge(o)
	return nil
}
