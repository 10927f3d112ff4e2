package bench

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

const sec = int64(time.Second)

func TestMeterWarmup(t *testing.T) {
	m := newMeter()
	m.add(5)
	m.observe(10, 20)
	m.sent(0, sec)
	m.tick(5*sec, 3)
	m.fail("in the warm-up")
	m.start(10 * sec)
	m.observe(10*sec-1, 10*sec+5) // was due in it
	m.observe(10*sec, 10*sec+5000)
	m.stop()
	m.observe(11*sec, 12*sec)
	m.add(1)
	m.tick(20*sec, 3)
	r, err := m.result()
	if err != nil || r.Count != 1 || r.Late != 0 || r.Seconds != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	// A failure is never forgotten.
	if r.Failed != 1 || r.FirstError != "in the warm-up" {
		t.Fatalf("failed %d, %q", r.Failed, r.FirstError)
	}
}

func TestMeterLate(t *testing.T) {
	m := newMeter()
	m.start(sec)
	for _, late := range []int64{0, -5, lateAfter, lateAfter + 1, sec} {
		m.sent(2*sec, 2*sec+late)
	}
	if m.late != 2 {
		t.Fatalf("%d late", m.late)
	}
}

func TestMeterFailures(t *testing.T) {
	m := newMeter()
	m.start(1)
	m.fail("one")
	m.fail("two")
	if m.failed != 2 || m.first != "one" {
		t.Fatalf("%d, %q", m.failed, m.first)
	}
}

func TestMeterSeconds(t *testing.T) {
	m := newMeter()
	m.start(100)
	m.add(3)
	m.tick(sec+99, 7)
	if len(m.seconds) != 0 {
		t.Fatal("too early")
	}
	m.tick(sec+100, 8)
	m.add(1)
	m.observe(sec+100, sec+100+int64(2*time.Millisecond))
	m.tick(4*sec+100, 9) // three at once
	var r Result
	share, err := m.result()
	if err != nil {
		t.Fatal(err)
	}
	r.Duration = 4 * time.Second
	if err := r.merge([]shareResult{share}); err != nil {
		t.Fatal(err)
	}
	want := []struct {
		rate        float64
		connections int
	}{{3, 8}, {2, 9}, {0, 9}, {0, 9}}
	if len(r.Series) != len(want) {
		t.Fatalf("%+v", r.Series)
	}
	for i, w := range want {
		p := r.Series[i]
		if p.At != time.Duration(i+1)*time.Second || p.Rate != w.rate || p.Connections != w.connections || (p.P99 > 0) != (i == 1) {
			t.Errorf("second %d: %+v", i+1, p)
		}
	}
	if p := r.Series[1].P50; p < 1980*time.Microsecond || p > 2020*time.Microsecond {
		t.Errorf("p50 %s", p)
	}
	if r.Count != 5 || r.Rate != 1.25 || r.Latency.Count != 1 {
		t.Errorf("count %d, rate %g, latencies %d", r.Count, r.Rate, r.Latency.Count)
	}
}

// Two processes' shares give what one process that saw all would have given.
func TestMergeIsWhole(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	whole, parts := newMeter(), []*meter{newMeter(), newMeter(), newMeter()}
	all := append([]*meter{whole}, parts...)
	for _, m := range all {
		m.start(1)
	}
	for s := range int64(4) {
		for range 500 {
			due := 1 + s*sec + random.Int64N(sec)
			done := due + random.Int64N(int64(30*time.Millisecond))
			whole.observe(due, done)
			parts[random.IntN(3)].observe(due, done)
		}
		for i, m := range all {
			m.tick(1+(s+1)*sec, []int{60, 10, 20, 30}[i])
		}
	}
	for _, m := range []*meter{whole, parts[1]} {
		m.fail("one")
		m.sent(1, sec)
	}
	merged := func(meters ...*meter) Result {
		var shares []shareResult
		for _, m := range meters {
			s, err := m.result()
			if err != nil {
				t.Fatal(err)
			}
			s.CPU, s.Wall = time.Second, 4*time.Second
			shares = append(shares, s)
		}
		r := Result{Duration: 4 * time.Second}
		if err := r.merge(shares); err != nil {
			t.Fatal(err)
		}
		return r
	}
	one, three := merged(whole), merged(parts...)
	if three.Generator.Processes != 3 || three.Generator.CPU != 3*time.Second || three.Generator.Busy != 0.25 {
		t.Fatalf("%+v", three.Generator)
	}
	// A tenth of one process is not that of another.
	if one.Tenths.Count != 4 || three.Tenths != nil {
		t.Fatalf("%+v, %+v", one.Tenths, three.Tenths)
	}
	one.Tenths = nil
	three.Generator.Processes, three.Generator.CPU = one.Generator.Processes, one.Generator.CPU
	if !reflect.DeepEqual(one, three) {
		t.Fatalf("\n one %+v %+v\nthree %+v %+v", one, one.Latency, three, three.Latency)
	}
	if one.Count != 2000 || one.Rate != 500 || one.Failed != 1 || one.Generator.Late != 1 {
		t.Fatalf("%+v", one)
	}
	l := one.Latency
	last := l.Min
	for i, p := range l.Percentiles {
		if p.P != percentiles[i] || p.Value < last {
			t.Fatalf("percentiles %+v", l.Percentiles)
		}
		last = p.Value
	}
	if last > l.Max || l.Mean < l.Min || l.Mean > l.Max || l.Histogram == "" {
		t.Fatalf("%+v", l)
	}
	if v, ok := l.at(50); !ok || v != l.Percentiles[0].Value {
		t.Fatal("percentile")
	}
	if v, ok := l.at(51); ok || v != 0 {
		t.Fatal("a percentile that is not kept")
	}
}

// TestSeriesHasTheWorst: what came in the part of a second at the end, such as
// the answers behind a stall, is not missing from the plot.
func TestSeriesHasTheWorst(t *testing.T) {
	m := newMeter()
	m.start(1)
	m.observe(1, 1+int64(time.Millisecond))
	m.observe(1, 1+int64(3*time.Millisecond))
	m.observe(1, 1+int64(2*time.Millisecond))
	m.tick(1+sec, 5)
	m.observe(sec/2, 1+sec+int64(700*time.Millisecond))
	m.end(1+sec+int64(800*time.Millisecond), 4)
	share, err := m.result()
	if err != nil {
		t.Fatal(err)
	}
	r := Result{Duration: time.Second}
	if err := r.merge([]shareResult{share}); err != nil {
		t.Fatal(err)
	}
	if len(r.Series) != 1 || r.Series[0].Connections != 5 || r.Series[0].Rate != 3 {
		t.Fatalf("%+v", r.Series)
	}
	p := r.Series[0]
	if p.Max != r.Latency.Max || p.Max < 1200*time.Millisecond || p.P50 < 2*time.Millisecond || p.P50 > 4*time.Millisecond {
		t.Errorf("p50 %s, max %s, of all %s", p.P50, p.Max, r.Latency.Max)
	}
	if m.started != 0 {
		t.Error("it goes on")
	}
	// Shorter than a second: there is no point to put it to.
	m.start(1)
	m.observe(1, 5000)
	m.end(sec/2, 1)
	if share, err = m.result(); err != nil || len(share.Seconds) != 0 || share.Count != 1 {
		t.Errorf("%+v, %v", share, err)
	}
}

func TestMergeNothing(t *testing.T) {
	var r Result
	if err := r.merge([]shareResult{{}, {Count: 3}}); err != nil || r.Count != 3 || r.Latency != nil || r.Rate != 0 || r.Generator.Busy != 0 {
		t.Fatalf("%v: %+v", err, r)
	}
	if err := r.merge([]shareResult{{Latency: []byte("Z2FyYmFnZTEyMzQ1Z2FyYmFnZTEyMzQ1")}}); err == nil {
		t.Fatal("no error")
	}
}

func TestLatencyBounds(t *testing.T) {
	m := newMeter()
	m.start(1)
	m.observe(5, 5)
	m.observe(5, 4) // of another clock it would be; it must not be lost
	m.observe(5, 5+int64(time.Hour))
	if m.whole.TotalCount() != 3 || m.count != 3 {
		t.Fatalf("%d of %d kept", m.whole.TotalCount(), m.count)
	}
}
