package doctor

// Status is what a finding means for the sessions.
type Status string

const (
	OK      Status = "ok"
	Warn    Status = "warn"    // the sessions can be held, with a cost that Why names
	Fail    Status = "fail"    // the sessions can't be held
	Unknown Status = "unknown" // the system does not show it; Have says what is missing
)

// statuses are all of them, problems first.
var statuses = []Status{Fail, Warn, Unknown, OK}

// Finding is one thing that was looked at.
type Finding struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Have   string `json:"have"`
	Want   string `json:"want"`
	Why    string `json:"why"`           // one sentence
	Set    string `json:"set,omitempty"` // the command or line that makes it so; empty: there is nothing to set
}

// Layer is one part of what the sessions take of the memory.
type Layer struct {
	Name  string `json:"name"`
	Each  int64  `json:"bytes_each"` // of one session; 0: a fixed amount
	Bytes int64  `json:"bytes"`
	What  string `json:"what"`
}

// Report is what an examination found.
type Report struct {
	Connections int            `json:"connections"`
	Generator   bool           `json:"generator"`
	Loops       int            `json:"loops"`
	Kernel      string         `json:"kernel"`
	Status      Status         `json:"status"` // the worst: fail, warn or ok
	Counts      map[Status]int `json:"counts"`
	Findings    []Finding      `json:"findings"` // problems first
	Memory      []Layer        `json:"memory"`

	sysctls     []sysctl // for Write
	descriptors int      // what the process needs
	limit       int64    // the hard limit that the process has; 0: unknown
}

// Load is what is asked of the machine.
type Load struct {
	Connections int  // sessions, at least 1
	Generator   bool // opens them, instead of holding them as a server
	Sources     int  // source addresses of a generator; 0 means 1

	// Of the server's configuration.
	Listen          string // host:port; empty: nothing is known of the listener
	Loops           int    // event loops; 0 means one a processor that the process may use
	HTTPConnections int    // limits.http_connections; 0 means its default of 1024
}

// check looks at one thing. The second result is false where it does not
// matter for the load.
type check func(*exam) (Finding, bool)

// checks are all of them, in the order of the documents.
var checks = []check{
	processDescriptors, nrOpen, fileMax, epollWatches,
	somaxconn, acceptQueue, listenOverflows, synBacklog, synCookies, conntrack,
	tcpMem, socketBuffers, portRange, listenPort, keepalive, timeWait,
	systemMemory, cgroupMemory, swap, hugePages,
	clockSource, receiveQueues,
}

// exam is an examination under way.
type exam struct {
	System
	Load
	report *Report
}

// Examine looks at sys. It never fails: what can't be read is Unknown. Safe
// from any goroutine.
func Examine(sys System, load Load) *Report {
	sys = sys.withDefaults()
	if load.Loops == 0 {
		load.Loops = sys.CPUs
	}
	if load.HTTPConnections == 0 {
		load.HTTPConnections = 1024
	}
	load.Sources = max(1, load.Sources)
	r := &Report{
		Connections: load.Connections, Generator: load.Generator, Loops: load.Loops,
		Kernel: sys.line("proc/sys/kernel/osrelease"), Status: OK, Counts: map[Status]int{},
	}
	e := &exam{System: sys, Load: load, report: r}
	r.descriptors = e.needDescriptors()
	r.Memory = e.layers()
	var found []Finding
	for _, c := range checks {
		if f, ok := c(e); ok {
			found = append(found, f)
			r.Counts[f.Status]++
		}
	}
	for _, s := range statuses {
		r.Counts[s] += 0 // all of them stand in the JSON
		for _, f := range found {
			if f.Status == s {
				r.Findings = append(r.Findings, f)
			}
		}
	}
	switch {
	case r.Counts[Fail] > 0:
		r.Status = Fail
	case r.Counts[Warn] > 0:
		r.Status = Warn
	}
	return r
}

// unreadable is f where the system does not show what it is about.
func (f Finding) unreadable(err error) (Finding, bool) {
	f.Status, f.Have = Unknown, reason(err)
	return f, true
}

// as is f with its outcome. Where all is well there is nothing to set.
func (f Finding) as(s Status, have string) (Finding, bool) {
	f.Status, f.Have = s, have
	if s == OK {
		f.Set = ""
	}
	return f, true
}

// either is Fail or Warn where it is bad, else OK.
func either(bad bool, s Status) Status {
	if bad {
		return s
	}
	return OK
}
