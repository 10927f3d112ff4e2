package doctor

import (
	"fmt"
	"math/bits"
	"net"
	"strconv"
)

const (
	// maxBacklog is what a listener asks for at the most: gnet reads
	// net.core.somaxconn when the process starts, and cuts it to 16 bits.
	maxBacklog = 1<<16 - 1
	// minBacklog is enough for the smallest load.
	minBacklog = 1024
)

// backlog is the accept queue that a load wants, for each listener: a sixteenth
// of the sessions, since that is what may arrive while a loop is busy for a
// tenth of a second and all of them come back within about two.
func (e *exam) backlog() int64 {
	n := uint64(max(minBacklog, e.Connections/16))
	return int64(min(maxBacklog, uint64(1)<<bits.Len64(n-1)))
}

func somaxconn(e *exam) (Finding, bool) {
	if e.Generator {
		return Finding{}, false
	}
	want := e.backlog()
	f := e.need("net.core.somaxconn", "It is the length of each listener's accept queue, and a connection that finds it full waits a second or more for its next try.", want)
	f.Set += "; then restart perch: listeners keep the length that they began with"
	have, err := e.one("net.core.somaxconn")
	if err != nil {
		return f.unreadable(err)
	}
	return f.as(either(have < want, Warn), number(have))
}

// acceptQueue is the backlog in force. The kernel shows it to netlink only;
// where it does not, the backlog is reckoned as the lesser of what the listener
// asked for, which is somaxconn, and somaxconn.
func acceptQueue(e *exam) (Finding, bool) {
	if e.Generator {
		return Finding{}, false
	}
	want := e.backlog()
	f := Finding{
		Name: "accept queue", Want: fmt.Sprintf(">= %d for each listener, few waiting", want),
		Why: "Each loop listens with a queue of its own, as long as net.core.somaxconn was when the server started.",
		Set: "raise net.core.somaxconn, then restart perch; ss -ltn shows the length in force as Send-Q",
	}
	limit, err := e.one("net.core.somaxconn")
	if err != nil {
		return f.unreadable(err)
	}
	limit = min(limit, maxBacklog)
	port, known := e.port()
	if !known {
		return f.as(either(limit < want, Warn), fmt.Sprintf("%d loops x %d", e.Loops, limit))
	}
	inodes, waiting, err := e.listeners(port)
	if err != nil {
		return f.unreadable(err)
	}
	n := len(inodes)
	if n == 0 {
		return f.as(either(limit < want, Warn), fmt.Sprintf("%d loops x %d, nobody listens on %d yet", e.Loops, limit, port))
	}
	least, most, room := limit, limit, limit*int64(n)
	how := "reckoned"
	if told := e.told(port, inodes); told != nil {
		least, most, room, waiting = told[0].Backlog, told[0].Backlog, 0, 0
		for _, l := range told {
			least, most = min(least, l.Backlog), max(most, l.Backlog)
			room += l.Backlog
			waiting += l.Waiting
		}
		how = "in force"
	}
	length := number(least)
	if most > least {
		length += " to " + number(most)
	}
	// Half full on the average, while somebody looks, is a server behind.
	bad := least < want || waiting*2 > room
	return f.as(either(bad, Warn), fmt.Sprintf("%s: %d listeners x %s, %d waiting", how, n, length, waiting))
}

// port is that of the configured listener.
func (e *exam) port() (int, bool) {
	_, text, err := net.SplitHostPort(e.Listen)
	if err != nil {
		return 0, false
	}
	port, err := strconv.Atoi(text)
	return port, err == nil && port > 0
}

func listenOverflows(e *exam) (Finding, bool) {
	if e.Generator {
		return Finding{}, false
	}
	f := Finding{
		Name: "accept queue overflows", Want: "0, or no longer growing",
		Why: "It counts connections that found an accept queue full since the system started, of all its listeners.",
		Set: "nstat -az TcpExtListenOverflows shows whether it grows; then raise net.core.somaxconn and look at the CPU",
	}
	v, err := e.counter("ListenOverflows")
	if err != nil {
		return f.unreadable(err)
	}
	return f.as(either(v > 0, Warn), fmt.Sprint(v))
}

func synBacklog(e *exam) (Finding, bool) {
	if e.Generator {
		return Finding{}, false
	}
	want := e.backlog()
	f := e.need("net.ipv4.tcp_max_syn_backlog", "Without SYN cookies, new peers are dropped when as many handshakes are open; with cookies the kernel does not look at it.", want)
	have, err := e.one("net.ipv4.tcp_max_syn_backlog")
	if err != nil {
		return f.unreadable(err)
	}
	text := number(have)
	if v, err := e.one("net.ipv4.tcp_syncookies"); err == nil && v != 0 {
		return f.as(OK, text+", not used: SYN cookies are on")
	}
	return f.as(either(have < want, Warn), text)
}

func synCookies(e *exam) (Finding, bool) {
	if e.Generator {
		return Finding{}, false
	}
	f := e.need("net.ipv4.tcp_syncookies", "Cookies let connections through when the queue of open handshakes is full, in a reconnect storm or a flood.", 1)
	f.Want = "1"
	v, err := e.one("net.ipv4.tcp_syncookies")
	switch {
	case err != nil:
		return f.unreadable(err)
	case v == 0:
		return f.as(Warn, "0: off")
	case v == 2:
		f.Why = "2 sends cookies always, which is for tests: such connections can lose window scaling and SACK."
		return f.as(Warn, "2: always")
	}
	return f.as(OK, number(v))
}

func conntrack(e *exam) (Finding, bool) {
	const key = "net.netfilter.nf_conntrack_max"
	f := Finding{
		Name: key, Want: "absent, or room for all sessions",
		Why: "A full table drops new connections, of everything on the machine, with one line in the kernel's log.",
	}
	limit, err := e.one(key)
	if err != nil {
		if !e.exists(sysctlFile(key)) {
			return f.as(OK, "absent")
		}
		return f.unreadable(err)
	}
	count, err := e.one("net.netfilter.nf_conntrack_count")
	if err != nil {
		return f.unreadable(err)
	}
	// A quarter for connections that end: they stay in the table for up to two
	// minutes, longer than their descriptor.
	want := count + int64(e.Connections) + int64(e.Connections)/4
	f = e.need(key, f.Why, want)
	f.Set += "; better, where no rule needs it for this port: notrack (docs/tuning.md)"
	have := fmt.Sprintf("%d, %d in use", limit, count)
	switch {
	case limit >= want:
		return f.as(OK, have)
	case count == 0:
		// Loaded or built in, and no rule that asks for it.
		return f.as(Warn, have)
	case limit >= count+int64(e.Connections):
		return f.as(Warn, have)
	}
	return f.as(Fail, have)
}

// tcpMem compares the pages that all TCP sockets together may hold with the
// load. An idle socket holds none; one with a small message under way holds
// one, since pages are what is counted.
func tcpMem(e *exam) (Finding, bool) {
	const key = "net.ipv4.tcp_mem"
	used, err := e.tcpPages()
	if err != nil {
		used = 0
	}
	n := int64(e.Connections)
	all, tenth := used+n, used+n/busyShare
	// The limit is there to keep the machine alive: whatever the load wants, no
	// more than a quarter of the memory is told to be TCP's.
	most := all * 3 / 2
	if info, err := e.meminfo(); err == nil && info["MemTotal"] > 0 {
		most = min(most, info["MemTotal"]/4/int64(e.PageSize))
		all = min(all, most*2/3)
	}
	f := e.need(key, "Above the second number the kernel shrinks windows, above the third it drops what arrives; an idle socket takes 0 pages, one with a small message under way 1.",
		all*3/4, all, most)
	f.Want = fmt.Sprintf("%d pages in the second, %d in the third", all, tenth)
	have, err := e.sysctl(key, 3)
	if err != nil {
		return f.unreadable(err)
	}
	text := fmt.Sprintf("%s (%d used)", join(have), used)
	switch {
	case have[2] < tenth:
		return f.as(Fail, text)
	case have[1] < all:
		return f.as(Warn, text)
	}
	return f.as(OK, text)
}

const (
	// mostDefault is more than any default of a socket buffer needs to be: the
	// kernel grows those that need it.
	mostDefault = 256 << 10
	// mostWrite is what a slow peer may hold in the kernel before Perch sees that
	// it is slow.
	mostWrite = 16 << 20
)

func socketBuffers(e *exam) (Finding, bool) {
	f := Finding{
		Name: "net.ipv4.tcp_rmem, tcp_wmem",
		Want: fmt.Sprintf("min 4096, default <= %d, tcp_wmem max <= %d", mostDefault, mostWrite),
		Why:  "An idle socket takes nothing of them, and larger ones only let a slow peer hold more of the kernel's memory.",
		Set:  `sysctl -w net.ipv4.tcp_rmem="4096 131072 6291456" net.ipv4.tcp_wmem="4096 16384 4194304"`,
	}
	r, err := e.sysctl("net.ipv4.tcp_rmem", 3)
	if err != nil {
		return f.unreadable(err)
	}
	w, err := e.sysctl("net.ipv4.tcp_wmem", 3)
	if err != nil {
		return f.unreadable(err)
	}
	bad := max(r[1], w[1]) > mostDefault || w[2] > mostWrite || min(r[0], w[0]) < 4096 || max(r[0], w[0]) > 64<<10
	return f.as(either(bad, Warn), join(r)+", "+join(w))
}

const (
	// The ports that a generator is told to use: above those of most servers.
	firstPort, lastPort = 10240, 65535
)

func portRange(e *exam) (Finding, bool) {
	if !e.Generator {
		return Finding{}, false
	}
	const key = "net.ipv4.ip_local_port_range"
	each := (e.Connections + e.Sources - 1) / e.Sources
	f := Finding{
		Name: key, Want: fmt.Sprintf("%d ports for each of %d source addresses", each, e.Sources),
		Why: "A connection needs a port of its own for each pair of source address and server port.",
		Set: fmt.Sprintf(`sysctl -w %s="%d %d"`, key, firstPort, lastPort),
	}
	most := lastPort - firstPort + 1
	if each > most {
		f.Set += fmt.Sprintf("; and %d source addresses (--sources)", (e.Connections+most-1)/most)
	}
	have, err := e.sysctl(key, 2)
	if err != nil {
		return f.unreadable(err)
	}
	e.note(sysctl{key: key, have: have, want: []int64{firstPort, lastPort}, why: f.Why, wider: true})
	ports := have[1] - have[0] + 1
	return f.as(either(ports < int64(each), Fail), fmt.Sprintf("%d to %d: %d ports", have[0], have[1], ports))
}

// listenPort looks whether an outgoing connection may take the port while the
// server restarts.
func listenPort(e *exam) (Finding, bool) {
	port, known := e.port()
	if e.Generator || !known {
		return Finding{}, false
	}
	const reserved = "net.ipv4.ip_local_reserved_ports"
	f := Finding{
		Name: "listen port", Want: "outside net.ipv4.ip_local_port_range, or reserved",
		Why: "An outgoing connection may take a port of that range while the server restarts, which then can't listen.",
		Set: fmt.Sprintf("sysctl -w %s=%d (with the ports that are there already)", reserved, port),
	}
	have, err := e.sysctl("net.ipv4.ip_local_port_range", 2)
	if err != nil {
		return f.unreadable(err)
	}
	inside := int64(port) >= have[0] && int64(port) <= have[1]
	text := fmt.Sprintf("%d, range %d to %d", port, have[0], have[1])
	if inside && inPorts(e.line(sysctlFile(reserved)), port) {
		return f.as(OK, text+", reserved")
	}
	return f.as(either(inside, Warn), text)
}

func keepalive(e *exam) (Finding, bool) {
	f := Finding{
		Name: "net.ipv4.tcp_keepalive_time", Want: "any",
		Why: "Perch's sockets don't use it: the heartbeat finds dead peers, and keeps proxies and NAT tables warm.",
	}
	v, err := e.one(f.Name)
	if err != nil {
		return f.unreadable(err)
	}
	return f.as(OK, fmt.Sprintf("%d s", v))
}

func timeWait(e *exam) (Finding, bool) {
	const key = "net.ipv4.tcp_tw_reuse"
	f := Finding{
		Name: key, Want: "2, the default, or 1",
		Why: "It lets outgoing connections take a port in TIME_WAIT; a server has none of those, a load generator many.",
		Set: "sysctl -w " + key + "=1",
	}
	v, err := e.one(key)
	if err != nil {
		return f.unreadable(err)
	}
	if e.Generator {
		e.note(sysctl{key: key, have: []int64{v}, want: []int64{1}, why: f.Why})
	} else {
		f.Want = "any"
	}
	return f.as(either(e.Generator && v == 0, Warn), number(v))
}
