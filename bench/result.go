package bench

import "time"

// The modes of a load.
const (
	// OpenLoop sends at a constant rate, whatever comes back.
	OpenLoop = "open loop"
	// ClosedLoop sends the next when the one before is answered.
	ClosedLoop = "closed loop"
)

// Result is what one scenario measured on one server.
type Result struct {
	Scenario string `json:"scenario"`
	// Server names what was loaded: its address, or its name in a comparison.
	Server string `json:"server"`
	// Mode is OpenLoop or ClosedLoop.
	Mode        string        `json:"mode"`
	Started     time.Time     `json:"started"`
	Duration    time.Duration `json:"duration_ns"` // of the measured part, without the warm-up
	Connections int           `json:"connections"`
	// Size is that of a message's payload, in bytes.
	Size int `json:"size,omitempty"`
	// Unit is what Count counts: "connection", "message", "delivery", "ping".
	Unit  string `json:"unit"`
	Count int64  `json:"count"`
	// Want is the intended rate per second of an open loop; 0 in a closed one.
	// Rate is what was reached.
	Want   float64 `json:"rate_wanted,omitempty"`
	Rate   float64 `json:"rate"`
	Failed int64   `json:"failed"` // connections refused or lost, error replies
	// Missed are those of Failed that an open loop never sent: the server did not
	// read, and no more may wait for it than a bound of bytes for each connection.
	Missed int64 `json:"missed,omitempty"`
	// FirstError is what the first failure said.
	FirstError string `json:"first_error,omitempty"`
	// Latency is missing where nothing is waited for.
	Latency *Latency `json:"latency,omitempty"`
	// Tenths is missing where too little was answered for it.
	Tenths *Tenths `json:"tenths,omitempty"`
	// Hostile is what the scenario of that name compares; the rest of its result is
	// of the turns beside the hostile peers.
	Hostile *Hostile `json:"hostile,omitempty"`
	// Series has a point a second.
	Series    []Point   `json:"series,omitempty"`
	Usage     *Usage    `json:"server_usage,omitempty"` // nil: the server's process is not known
	Generator Generator `json:"generator"`
	// Stolen is the share of the machine's processor time that its hypervisor gave
	// to others in the measured part: the steal of /proc/stat.
	Stolen float64 `json:"stolen,omitempty"`
	// Notes say what a reader of the numbers must know.
	Notes []string `json:"notes,omitempty"`
}

// Latency is counted from the moment at which a message was due.
type Latency struct {
	Count int64         `json:"count"`
	Mean  time.Duration `json:"mean_ns"`
	Min   time.Duration `json:"min_ns"`
	Max   time.Duration `json:"max_ns"`
	// Percentiles go from 50 to 99.99, in order.
	Percentiles []Percentile `json:"percentiles"`
	// Histogram is the compressed HdrHistogram (V2, base64) of nanoseconds.
	Histogram string `json:"hdr,omitempty"`
}

// Percentile is the latency that P percent did not exceed.
type Percentile struct {
	P     float64       `json:"p"`
	Value time.Duration `json:"ns"`
}

// Point is what one second brought.
type Point struct {
	At          time.Duration `json:"at_ns"` // from the start of the scenario
	Connections int           `json:"connections"`
	Rate        float64       `json:"rate"` // units per second
	// The latencies are those of what was answered in this second, 0 where
	// nothing was. The last point's are also of what came behind it.
	P50 time.Duration `json:"p50_ns,omitempty"`
	P99 time.Duration `json:"p99_ns,omitempty"`
	Max time.Duration `json:"max_ns,omitempty"`
	// RssAnon is the server's, in bytes; 0: not known.
	RssAnon int64 `json:"rss_anon,omitempty"`
}

// Usage is what the server used for it, read from the kernel and, where its
// admin address is given, from its metrics.
type Usage struct {
	// CPU is the time its threads ran, by the scheduler's accounting, and
	// CPUPer that of one unit.
	CPU    time.Duration `json:"cpu_ns"`
	CPUPer time.Duration `json:"cpu_per_unit_ns"`
	// RssBefore and RssAfter are the process's RssAnon in bytes, and
	// PerConnection their difference over the connections that came between.
	RssBefore     int64   `json:"rss_before"`
	RssAfter      int64   `json:"rss_after"`
	PerConnection float64 `json:"bytes_per_connection,omitempty"`
	// KernelSockets is the kernel's TCP buffer memory in bytes, of all sockets
	// of the machine (/proc/net/sockstat).
	KernelSockets int64 `json:"kernel_sockets"`
	// Goroutines, GCs and the pauses are of a Go server with an admin address.
	Goroutines int           `json:"goroutines,omitempty"`
	GCs        int           `json:"gcs,omitempty"`
	GCPause    time.Duration `json:"gc_pause_ns,omitempty"` // the sum
}

// Generator is what the load itself cost, in all its processes.
type Generator struct {
	Processes int           `json:"processes"`
	CPU       time.Duration `json:"cpu_ns"`
	// Busy is the share of a core that the busiest process used.
	Busy float64 `json:"busy"`
	// Late is how many messages went out more than a millisecond after they were
	// due, of an open loop.
	Late int64 `json:"late,omitempty"`
	// Saturated says that the generator was the bottleneck: the numbers are its
	// own then, not the server's.
	Saturated bool `json:"saturated"`
}

// Machine describes where a measurement ran.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory int64  `json:"memory"` // bytes
	Kernel string `json:"kernel"`
	OS     string `json:"os"`
	Go     string `json:"go"`
}

// Report is what perch bench writes: one result, or those of a comparison.
type Report struct {
	Version    string      `json:"perch"`
	Started    time.Time   `json:"started"`
	Machine    Machine     `json:"machine"`
	Command    string      `json:"command"` // that repeats it
	Results    []Result    `json:"results"`
	Comparison *Comparison `json:"comparison,omitempty"`
}

// Comparison is that of several servers, loaded in turns.
type Comparison struct {
	Rounds int     `json:"rounds"`
	Ratios []Ratio `json:"ratios"`
}

// Ratio is what Perch costs over what a peer costs, in one measure of one
// scenario.
type Ratio struct {
	Scenario string `json:"scenario"`
	Measure  string `json:"measure"` // "CPU per message", "bytes per session"
	Unit     string `json:"unit"`    // "us", "B", ""
	Peer     string `json:"peer"`
	// Perch and Other are the medians of the rounds.
	Perch float64 `json:"perch"`
	Other float64 `json:"peer_value"`
	// Ratio is the median of the rounds' ratios, 0 where one side could not be
	// measured. Low and High are their 95 % confidence interval (bootstrap), 0 of
	// fewer than three rounds.
	Ratio float64 `json:"ratio"`
	Low   float64 `json:"low,omitempty"`
	High  float64 `json:"high,omitempty"`
	// Rounds is in how many both were measured; 0: in all of the comparison.
	Rounds int `json:"rounds,omitempty"`
	// Target is what Perch promises of this ratio; 0: nothing. OK says that Ratio
	// is within it.
	Target float64 `json:"target,omitempty"`
	OK     bool    `json:"ok"`
}
