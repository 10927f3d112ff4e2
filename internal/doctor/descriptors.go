package doctor

import "fmt"

// What Perch keeps of its descriptors beside the connections, as it does when
// it divides its limit at the start.
const (
	adminConnections   = 128
	spareDescriptors   = 128
	refusedConnections = 256 // over the cap, to be told so
	generatorSpare     = 64
)

// holds tells whether a server with a descriptor limit takes n connections. It
// is the server's own division: with few descriptors the fixed parts shrink.
func holds(limit, n, http, loops int) bool {
	http = min(http, max(4, limit/16))
	admin := min(adminConnections, max(8, limit/16))
	spare := min(spareDescriptors, max(16, limit/16))
	room := limit - http - admin - spare - 4*loops
	return n+min(refusedConnections, max(8, room/64)) <= room
}

// needDescriptors is a limit that is enough, and a hundredth at the most above
// the least one.
func (e *exam) needDescriptors() int {
	if e.Generator {
		return e.Connections + generatorSpare
	}
	limit := e.Connections
	for !holds(limit, e.Connections, e.HTTPConnections, e.Loops) {
		limit += max(16, limit/128)
	}
	// The steps above are coarse: halve them away.
	for step := max(16, limit/128); step > 0; step /= 2 {
		for holds(limit-step, e.Connections, e.HTTPConnections, e.Loops) {
			limit -= step
		}
	}
	return limit
}

func processDescriptors(e *exam) (Finding, bool) {
	want := e.report.descriptors
	f := Finding{
		Name: "process descriptors",
		Want: fmt.Sprintf("hard >= %d", want),
		Why:  "Each session is a descriptor, and the process raises its soft limit to the hard one but never above.",
		Set:  fmt.Sprintf("LimitNOFILE=%d in the systemd unit; without systemd: ulimit -Hn %d as root", want, want),
	}
	soft, hard, err := e.limits()
	if err != nil {
		return f.unreadable(err)
	}
	e.report.limit = hard
	enough := hard >= int64(want)
	if !e.Generator {
		enough = holds(int(min(hard, 1<<30)), e.Connections, e.HTTPConnections, e.Loops)
	}
	return f.as(either(!enough, Fail), fmt.Sprintf("soft %d, hard %d", soft, hard))
}

func nrOpen(e *exam) (Finding, bool) {
	want := int64(e.report.descriptors)
	f := e.need("fs.nr_open", "No process can get a descriptor limit above it, root neither.", want)
	have, err := e.one("fs.nr_open")
	if err != nil {
		return f.unreadable(err)
	}
	return f.as(either(have < want, Fail), number(have))
}

func fileMax(e *exam) (Finding, bool) {
	used, usedErr := e.sysctl("fs.file-nr", 1)
	// A tenth for the rest of the system, on top of what it has open.
	want := int64(e.report.descriptors) + int64(e.report.descriptors)/10
	if usedErr == nil {
		want += used[0]
	}
	f := e.need("fs.file-max", "It bounds the open files of the whole system; above it every process gets ENFILE.", want)
	have, err := e.one("fs.file-max")
	if err != nil {
		return f.unreadable(err)
	}
	text := number(have)
	if usedErr == nil {
		text = fmt.Sprintf("%s (%d open)", text, used[0])
	}
	return f.as(either(have < want, Fail), text)
}

func epollWatches(e *exam) (Finding, bool) {
	want := int64(e.report.descriptors)
	f := e.need("fs.epoll.max_user_watches", "Each connection is one epoll watch of the user that the process runs as.", want)
	have, err := e.one("fs.epoll.max_user_watches")
	if err != nil {
		return f.unreadable(err)
	}
	return f.as(either(have < want, Fail), number(have))
}

// number leaves out the digits of what means "no limit".
func number(v int64) string {
	if v >= 1<<60 {
		return "no limit"
	}
	return fmt.Sprint(v)
}
