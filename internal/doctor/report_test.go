package doctor

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

type files = map[string]string

func TestHealthy(t *testing.T) {
	for _, load := range []Load{
		{Listen: "127.0.0.1:8000"},
		{},
		{Generator: true, Sources: 4},
	} {
		r := examine(load, nil)
		for _, f := range r.Findings {
			if f.Status != OK || f.Set != "" {
				t.Errorf("%+v: %+v", load, f)
			}
		}
		if r.Status != OK || r.Counts[OK] != len(r.Findings) || len(r.Findings) < 16 {
			t.Errorf("%+v: %s, %v, %d findings", load, r.Status, r.Counts, len(r.Findings))
		}
	}
}

// TestFindings has for each finding machines on which it is bad, and others
// that look alike and are good.
func TestFindings(t *testing.T) {
	server := Load{Listen: "127.0.0.1:8000"}
	generator := Load{Generator: true, Connections: 20_000}
	const sys = "proc/sys/"
	const card = "sys/class/net/eth0/"
	tests := []struct {
		finding string
		load    Load
		change  files
		want    Status
		have    string // a part of it
		set     string // a part of it
	}{
		{"process descriptors", server, files{"proc/self/limits": "Max open files  1024  101552  files\n"}, OK, "hard 101552", ""},
		{"process descriptors", server, files{"proc/self/limits": "Max open files  1024  101500  files\n"}, Fail, "soft 1024, hard 101500", "LimitNOFILE=10155"},
		{"process descriptors", server, files{"proc/self/limits": "Max open files  unlimited  unlimited  files\n"}, OK, "", ""},
		{"process descriptors", server, files{"proc/self/limits": "Max cpu time unlimited unlimited seconds\n"}, Unknown, "unknown format", "LimitNOFILE"},
		{"process descriptors", server, files{"proc/self/limits": gone}, Unknown, "/proc/self/limits is not there", ""},
		{"process descriptors", generator, files{"proc/self/limits": "Max open files 20063 20063 files\n"}, Fail, "", "20064"},
		{"process descriptors", generator, files{"proc/self/limits": "Max open files 20064 20064 files\n"}, OK, "", ""},
		{"fs.nr_open", server, files{sys + "fs/nr_open": "65536\n"}, Fail, "65536", "sysctl -w fs.nr_open=10155"},
		{"fs.nr_open", server, files{sys + "fs/nr_open": gone}, Unknown, "is not there", ""},
		{"fs.file-max", server, files{sys + "fs/file-max": "100000\n"}, Fail, "100000 (2000 open)", "sysctl -w fs.file-max="},
		{"fs.file-max", server, files{sys + "fs/file-max": "200000\n", sys + "fs/file-nr": "150000 0 200000\n"}, Fail, "", ""},
		{"fs.file-max", server, files{sys + "fs/file-max": "200000\n"}, OK, "200000", ""},
		{"fs.file-max", server, files{sys + "fs/file-max": "18446744073709551615\n"}, OK, "no limit", ""},
		{"fs.epoll.max_user_watches", server, files{sys + "fs/epoll/max_user_watches": "99999\n"}, Fail, "99999", "sysctl -w fs.epoll.max_user_watches="},
		{"net.core.somaxconn", server, files{sys + "net/core/somaxconn": "4096\n"}, Warn, "4096", "net.core.somaxconn=8192; then restart"},
		{"net.core.somaxconn", server, files{sys + "net/core/somaxconn": "8192\n"}, OK, "", ""},
		{"net.core.somaxconn", server, files{sys + "net/core/somaxconn": "many\n"}, Unknown, "unknown format", ""},
		{"accept queue", server, nil, OK, "2 listeners x 16384, 7 waiting", ""},
		{"accept queue", Load{}, nil, OK, "4 loops x 16384", ""},
		{"accept queue", Load{Listen: ":9000"}, nil, OK, "nobody listens on 9000", ""},
		{"accept queue", server, files{sys + "net/core/somaxconn": "100000\n"}, OK, "2 listeners x 65535", ""},
		{"accept queue", server, files{sys + "net/core/somaxconn": "128\n"}, Warn, "2 listeners x 128", "restart perch"},
		{"accept queue", server, files{"proc/self/net/tcp": tcpHeader + tcpLine("0100007F:1F40", "0A", 9000)}, Warn, "1 listeners x 16384, 9000 waiting", ""},
		{"accept queue", server, files{"proc/self/net/tcp": gone, "proc/self/net/tcp6": tcpHeader + tcpLine("00000000000000000000000000000000:1F40", "0A", 1)}, OK, "1 listeners", ""},
		{"accept queue", server, files{"proc/self/net/tcp": gone}, Unknown, "is not there", ""},
		{"accept queue overflows", server, files{"proc/self/net/netstat": "TcpExt: A ListenOverflows\nTcpExt: 1 1506\n"}, Warn, "1506", "nstat"},
		{"accept queue overflows", server, files{"proc/self/net/netstat": "TcpExt: A\nTcpExt: 1\n"}, Unknown, "unknown format", ""},
		{"net.ipv4.tcp_max_syn_backlog", server, files{sys + "net/ipv4/tcp_max_syn_backlog": "128\n"}, OK, "not used", ""},
		{"net.ipv4.tcp_max_syn_backlog", server, files{sys + "net/ipv4/tcp_max_syn_backlog": "128\n", sys + "net/ipv4/tcp_syncookies": "0\n"}, Warn, "128", "tcp_max_syn_backlog=8192"},
		{"net.ipv4.tcp_max_syn_backlog", server, files{sys + "net/ipv4/tcp_max_syn_backlog": "8192\n", sys + "net/ipv4/tcp_syncookies": "0\n"}, OK, "8192", ""},
		{"net.ipv4.tcp_syncookies", server, files{sys + "net/ipv4/tcp_syncookies": "0\n"}, Warn, "off", "tcp_syncookies=1"},
		{"net.ipv4.tcp_syncookies", server, files{sys + "net/ipv4/tcp_syncookies": "2\n"}, Warn, "always", "tcp_syncookies=1"},
		{"net.ipv4.tcp_syncookies", server, files{sys + "net/ipv4/tcp_syncookies": gone}, Unknown, "", ""},
		{"net.netfilter.nf_conntrack_max", server, nil, OK, "absent", ""},
		{"net.netfilter.nf_conntrack_max", server, conntrackFiles(65536, 500), Fail, "65536, 500 in use", "nf_conntrack_max=125500"},
		{"net.netfilter.nf_conntrack_max", server, conntrackFiles(110_000, 500), Warn, "", "nf_conntrack_max=125500"},
		{"net.netfilter.nf_conntrack_max", server, conntrackFiles(65536, 0), Warn, "0 in use", "notrack"},
		{"net.netfilter.nf_conntrack_max", server, conntrackFiles(262144, 500), OK, "262144", ""},
		{"net.ipv4.tcp_mem", server, files{sys + "net/ipv4/tcp_mem": "3000 6000 9000\n"}, Fail, "(182 used)", `tcp_mem="75136 100182 150273"`},
		{"net.ipv4.tcp_mem", server, files{sys + "net/ipv4/tcp_mem": "30000 60000 90000\n"}, Warn, "", "tcp_mem="},
		{"net.ipv4.tcp_mem", server, files{sys + "net/ipv4/tcp_mem": "30000\n"}, Unknown, "unknown format", ""},
		{"net.ipv4.tcp_mem", server, files{sys + "net/ipv4/tcp_mem": "200000 300000 400000\n", "proc/net/sockstat": "TCP: inuse 4 mem 395000\n"}, Fail, "395000 used", ""},
		{"net.ipv4.tcp_rmem, tcp_wmem", server, files{sys + "net/ipv4/tcp_rmem": "4096 16777216 16777216\n"}, Warn, "16777216", "tcp_rmem="},
		{"net.ipv4.tcp_rmem, tcp_wmem", server, files{sys + "net/ipv4/tcp_wmem": "4096 16384 134217728\n"}, Warn, "134217728", ""},
		{"net.ipv4.tcp_rmem, tcp_wmem", server, files{sys + "net/ipv4/tcp_wmem": "1048576 1048576 4194304\n"}, Warn, "", ""},
		{"net.ipv4.tcp_rmem, tcp_wmem", server, files{sys + "net/ipv4/tcp_wmem": gone}, Unknown, "", ""},
		{"net.ipv4.ip_local_port_range", generator, nil, OK, "28232 ports", ""},
		{"net.ipv4.ip_local_port_range", Load{Generator: true, Connections: 40_000}, nil, Fail, "28232 ports", `ip_local_port_range="10240 65535"`},
		{"net.ipv4.ip_local_port_range", Load{Generator: true, Connections: 40_000, Sources: 2}, nil, OK, "", ""},
		{"net.ipv4.ip_local_port_range", Load{Generator: true, Connections: 100_000}, nil, Fail, "", "and 2 source addresses"},
		{"listen port", Load{Listen: ":40000"}, nil, Warn, "40000", "ip_local_reserved_ports=40000"},
		{"listen port", Load{Listen: ":40000"}, files{sys + "net/ipv4/ip_local_reserved_ports": "8080,39000-41000\n"}, OK, "reserved", ""},
		{"listen port", server, files{sys + "net/ipv4/ip_local_port_range": gone}, Unknown, "", ""},
		{"net.ipv4.tcp_keepalive_time", server, files{sys + "net/ipv4/tcp_keepalive_time": "30\n"}, OK, "30 s", ""},
		{"net.ipv4.tcp_keepalive_time", server, files{sys + "net/ipv4/tcp_keepalive_time": gone}, Unknown, "", ""},
		{"net.ipv4.tcp_tw_reuse", generator, files{sys + "net/ipv4/tcp_tw_reuse": "0\n"}, Warn, "0", "tcp_tw_reuse=1"},
		{"net.ipv4.tcp_tw_reuse", server, files{sys + "net/ipv4/tcp_tw_reuse": "0\n"}, OK, "0", ""},
		{"memory available", server, memoryFile(600), Fail, "600.0 MiB", "limits.connections"},
		{"memory available", server, memoryFile(800), Warn, "", "limits.connections"},
		{"memory available", server, memoryFile(1000), OK, "1000.0 MiB", ""},
		{"memory available", server, files{"proc/meminfo": "MemTotal: 5 kB\n"}, Unknown, "unknown format", ""},
		{"cgroup memory", server, files{"sys/fs/cgroup/system.slice/memory.max": "536870912\n"}, Fail, "512.0 MiB of 512.0 MiB free", "GOMEMLIMIT="},
		{"cgroup memory", server, files{"sys/fs/cgroup/system.slice/memory.max": "1073741824\n"}, OK, "1.0 GiB", ""},
		{"cgroup memory", server, files{"sys/fs/cgroup/system.slice/memory.max": "1073741824\n", "sys/fs/cgroup/system.slice/memory.current": "629145600\n"}, Fail, "424.0 MiB of 1.0 GiB free", ""},
		{"cgroup memory", server, files{
			"sys/fs/cgroup/system.slice/memory.max": "1073741824\n", "sys/fs/cgroup/system.slice/memory.current": "629145600\n",
			"sys/fs/cgroup/system.slice/memory.stat": "anon 5\ninactive_file 629145600\n",
		}, OK, "1.0 GiB of 1.0 GiB free", ""},
		{"cgroup memory, the tightest of several", server, files{
			"sys/fs/cgroup/system.slice/perch.service/memory.max": "8589934592\n", "sys/fs/cgroup/system.slice/memory.max": "536870912\n",
		}, Fail, "of 512.0 MiB", ""},
		{"cgroup memory, v1", server, files{"proc/self/cgroup": "4:cpu,memory:/a\n0::/\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "536870912\n"}, Fail, "512.0 MiB", ""},
		{"cgroup memory, v1 without", server, files{"proc/self/cgroup": "4:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, OK, "no limit", ""},
		{"cgroup memory, a container", server, files{"proc/self/cgroup": "0::/../../seen/from/outside\n", "sys/fs/cgroup/memory.max": "536870912\n"}, Fail, "512.0 MiB", ""},
		{"cgroup memory", server, files{"proc/self/cgroup": gone}, Unknown, "is not there", ""},
		{"swap", server, files{"proc/meminfo": healthy()["proc/meminfo"] + "SwapTotal: 2097152 kB\n"}, Warn, "2.0 GiB, swappiness 60", "MemorySwapMax=0"},
		{"swap", server, files{"proc/meminfo": healthy()["proc/meminfo"] + "SwapTotal: 2097152 kB\n", sys + "vm/swappiness": "1\n"}, OK, "swappiness 1", ""},
		{"swap", server, files{"proc/meminfo": gone}, Unknown, "", ""},
		{"transparent huge pages", server, files{"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n"}, Warn, "always, max_ptes_none 511", "echo madvise"},
		{"transparent huge pages", server, files{
			"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n", "sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none": "0\n",
		}, OK, "always", ""},
		{"transparent huge pages", server, files{"sys/kernel/mm/transparent_hugepage/enabled": gone}, OK, "not in this kernel", ""},
		{"clock source", server, files{"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n"}, Warn, "hpet", "echo tsc"},
		{"clock source", server, files{"sys/devices/system/clocksource/clocksource0/current_clocksource": "acpi_pm\n"}, Warn, "acpi_pm", ""},
		{"clock source", server, files{"sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n"}, OK, "kvm-clock", ""},
		{"clock source", server, files{"sys/devices/system/clocksource/clocksource0/current_clocksource": gone}, Unknown, "", ""},
		{"receive queues", server, files{card + "queues/rx-1/rps_cpus": gone}, Warn, "eth0 1", "ethtool -L eth0 combined 4, or echo f >"},
		{"receive queues", server, files{card + "queues/rx-1/rps_cpus": gone, card + "queues/rx-0/rps_cpus": "00000000,0000000f\n"}, OK, "eth0 1 with RPS", ""},
		{"receive queues", server, nil, OK, "eth0 2", ""},
		{"receive queues", server, files{card + "device/vendor": gone}, Unknown, "no network card", ""},
	}
	met := map[string]bool{}
	for _, tt := range tests {
		name, _, _ := strings.Cut(tt.finding, ", the")
		name, _, _ = strings.Cut(name, ", v1")
		name, _, _ = strings.Cut(name, ", a c")
		met[name] = true
		t.Run(tt.finding+" "+string(tt.want)+" "+tt.have, func(t *testing.T) {
			r := examine(tt.load, tt.change)
			f := r.finding(t, name)
			if f.Status != tt.want || !strings.Contains(f.Have, tt.have) || !strings.Contains(f.Set, tt.set) {
				t.Errorf("got %+v", f)
			}
			// The exit code hangs on it.
			if (r.Status == Fail) != (r.Counts[Fail] > 0) || tt.want == Fail && r.Status != Fail {
				t.Errorf("the report says %s with %v", r.Status, r.Counts)
			}
		})
	}
	for _, f := range allFindings() {
		if !met[f.Name] {
			t.Errorf("%s is tried nowhere", f.Name)
		}
		if !sentence(f.Why) {
			t.Errorf("%s: not one sentence: %s", f.Name, f.Why)
		}
	}
}

func conntrackFiles(limit, count int) files {
	return files{
		"proc/sys/net/netfilter/nf_conntrack_max":   join([]int64{int64(limit)}) + "\n",
		"proc/sys/net/netfilter/nf_conntrack_count": join([]int64{int64(count)}) + "\n",
	}
}

func memoryFile(mebibytes int64) files {
	return files{"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: " + join([]int64{mebibytes << 10}) + " kB\nSwapTotal: 0 kB\n"}
}

// allFindings are those of servers and generators.
func allFindings() []Finding {
	seen := map[string]Finding{}
	for _, load := range []Load{{Listen: ":8000"}, {Generator: true}} {
		for _, f := range examine(load, nil).Findings {
			seen[f.Name] = f
		}
	}
	return slices.SortedFunc(maps.Values(seen), func(a, b Finding) int { return strings.Compare(a.Name, b.Name) })
}

func TestProblemsFirst(t *testing.T) {
	r := examine(Load{}, files{
		"proc/sys/fs/nr_open": "5\n", "proc/sys/net/core/somaxconn": "5\n", "proc/sys/vm/swappiness": gone,
		"proc/sys/net/ipv4/tcp_keepalive_time": gone,
	})
	last := 0
	for _, f := range r.Findings {
		at := slices.Index(statuses, f.Status)
		if at < last {
			t.Errorf("%s (%s) stands too low", f.Name, f.Status)
		}
		last = at
	}
	if r.Status != Fail || r.Counts[Fail] != 1 || r.Counts[Warn] != 2 || r.Counts[Unknown] != 1 {
		t.Errorf("%s %v", r.Status, r.Counts)
	}
}

// TestNothingToRead: a machine that shows nothing is unknown, not bad.
func TestNothingToRead(t *testing.T) {
	r := Examine(System{FS: tree(nil), CPUs: 1, PID: 4711}, Load{Connections: 10})
	if f := r.finding(t, "process descriptors"); f.Status != Unknown || !strings.Contains(f.Have, "/proc/4711/limits") {
		t.Errorf("of another process: %+v", f)
	}
	empty := Examine(System{FS: os.DirFS(t.TempDir()), CPUs: 2}, Load{Connections: 10, Listen: ":8000"})
	if empty.Status != OK || empty.Counts[Unknown] < 14 || empty.Counts[Fail]+empty.Counts[Warn] != 0 {
		t.Errorf("of nothing: %s %v", empty.Status, empty.Counts)
	}
	for _, f := range empty.Findings {
		if f.Have == "" || f.Want == "" {
			t.Errorf("says nothing: %+v", f)
		}
	}
}

func TestThisMachine(t *testing.T) {
	r := Examine(System{}, Load{Connections: 10, Listen: "127.0.0.1:8000"})
	if len(r.Findings) < 16 || r.Kernel == "" || r.finding(t, "process descriptors").Status != OK {
		t.Errorf("%+v", r)
	}
	if r := Examine(System{PID: os.Getpid()}, Load{Connections: 10}); r.finding(t, "process descriptors").Status != OK {
		t.Errorf("by its number: %+v", r.finding(t, "process descriptors"))
	}
}

func TestDescriptorsScale(t *testing.T) {
	for _, n := range []int{1, 10, 500, 1000, 10_000, 100_000, 1_000_000} {
		for _, loops := range []int{1, 2, 64} {
			want := examine(Load{Connections: n, Loops: loops}, nil).descriptors
			if !holds(want, n, 1024, loops) || want <= n || want > n*4+20*loops+256 {
				t.Errorf("%d sessions on %d loops: %d descriptors", n, loops, want)
			}
			// The least one, but for the steps of the shrinking parts.
			if holds(want-want/50-8, n, 1024, loops) {
				t.Errorf("%d sessions on %d loops: %d are more than needed", n, loops, want)
			}
		}
	}
}

func TestSlabSizes(t *testing.T) {
	const slabs = "slabinfo - version: 2.1\n# name ...\n" +
		"TCP 24000 24000 2368 13 8 : tunables 0 0 0 : slabdata 1 1 0\n" +
		"sock_inode_cache 1 1 832 19 4 : tunables 0 0 0 : slabdata 1 1 0\n" +
		"filp 1 1 192 0 0 : tunables\n"
	for _, l := range examine(Load{}, files{"proc/slabinfo": slabs}).Memory {
		if want := int64(8*4096/13 + 4*4096/19 + 195 + 195 + 56 + 9); l.Name == "kernel socket" && l.Each != want {
			t.Errorf("%d B, want %d", l.Each, want)
		}
		if l.Each > 0 && l.Bytes != l.Each*100_000 || l.Bytes <= 0 || l.What == "" {
			t.Errorf("%+v", l)
		}
	}
}

func TestPrint(t *testing.T) {
	r := examine(Load{Listen: ":8000"}, files{"proc/sys/fs/nr_open": "65536\n", "proc/sys/net/core/somaxconn": "128\n"})
	var out strings.Builder
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if last := lines[len(lines)-1]; last != r.Summary() || !strings.HasPrefix(last, "1 fail, 2 warn, 0 unknown, ") || !strings.HasSuffix(last, "this machine can't hold 100000 sessions as it is") {
		t.Errorf("the last line: %s", last)
	}
	if strings.Index(text, "fail    fs.nr_open\n") > strings.Index(text, "warn    net.core.somaxconn\n") || !strings.Contains(text, "sysctl -w fs.nr_open=") {
		t.Error("problems are missing or out of order")
	}
	for _, line := range lines {
		if n := len([]rune(line)); n > 110 {
			t.Errorf("%d wide: %s", n, line)
		}
		if line != strings.TrimRight(line, " ") {
			t.Errorf("ends in spaces: %q", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	for status, want := range map[Status]string{OK: "can hold 100000 sessions", Warn: "with warnings", Fail: "can't"} {
		if s := (&Report{Status: status, Connections: 100_000}).Summary(); !strings.Contains(s, want) {
			t.Errorf("%s: %s", status, s)
		}
	}
}

func TestJSON(t *testing.T) {
	r := examine(Load{Connections: 5000}, files{"proc/sys/net/core/somaxconn": "128\n"})
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Connections int
		Status      string
		Counts      map[string]int
		Findings    []map[string]string
		Memory      []Layer
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if back.Connections != 5000 || back.Status != "warn" || back.Counts["warn"] != 2 || back.Counts["fail"] != 0 ||
		len(back.Findings) != len(r.Findings) || len(back.Memory) != 6 {
		t.Errorf("%s", b)
	}
	for _, f := range back.Findings {
		for _, key := range []string{"name", "status", "have", "want", "why"} {
			if f[key] == "" {
				t.Errorf("%s is empty in %v", key, f)
			}
		}
		if (f["set"] == "") != (f["status"] == "ok") {
			t.Errorf("set: %v", f)
		}
	}
}

func TestPorts(t *testing.T) {
	for list, want := range map[string]bool{"": false, "8000": true, "7000-9000": true, "1, 8000 ,5": true, "80-81,9000": false, "x-y": false} {
		if inPorts(list, 8000) != want {
			t.Errorf("%q: %v", list, !want)
		}
	}
}

func TestCPUMask(t *testing.T) {
	for n, want := range map[int]string{1: "1", 2: "3", 4: "f", 32: "ffffffff", 36: "f,ffffffff", 64: "ffffffff,ffffffff"} {
		if got := cpuMask(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 30: "5.0 GiB", 1 << 60: "1048576.0 TiB"} {
		if got := Size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// FuzzExamine gives each file the same text: no machine may end the doctor.
func FuzzExamine(f *testing.F) {
	for _, text := range healthy() {
		f.Add(text)
	}
	f.Add("TCP: mem\nTcpExt: ListenOverflows\nTcpExt:\nMax open files\n0::\n:::\n[\n-5 -5 -5")
	names := slices.Sorted(maps.Keys(healthy()))
	names = append(names, "proc/slabinfo", "proc/self/net/tcp6", "proc/sys/net/netfilter/nf_conntrack_max", "proc/sys/net/netfilter/nf_conntrack_count")
	f.Fuzz(func(t *testing.T, text string) {
		changes := files{}
		for _, name := range names {
			changes[name] = strings.ReplaceAll(text, gone, "0")
		}
		for _, load := range []Load{{Listen: ":8000"}, {Generator: true}} {
			r := examine(load, changes)
			if n := r.Counts[OK] + r.Counts[Warn] + r.Counts[Fail] + r.Counts[Unknown]; n != len(r.Findings) {
				t.Errorf("%d of %d findings have a status", n, len(r.Findings))
			}
			r.sysctlText(parseSettings(text))
			r.limitsText(text)
		}
	})
}
