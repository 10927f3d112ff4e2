package doctor

import (
	"maps"
	"strings"
	"testing"
	"testing/fstest"
)

// healthy is a machine on which nothing is wrong for 100000 sessions.
func healthy() map[string]string {
	return map[string]string{
		"proc/sys/kernel/osrelease":                                         "6.12.0\n",
		"proc/self/limits":                                                  "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \n",
		"proc/sys/fs/nr_open":                                               "1048576\n",
		"proc/sys/fs/file-max":                                              "9223372036854775807\n",
		"proc/sys/fs/file-nr":                                               "2000\t0\t9223372036854775807\n",
		"proc/sys/fs/epoll/max_user_watches":                                "3000000\n",
		"proc/sys/net/core/somaxconn":                                       "16384\n",
		"proc/self/net/tcp":                                                 tcpHeader + tcpLine("0100007F:1F40", "0A", 3) + tcpLine("0100007F:1F40", "0A", 4) + tcpLine("0100007F:1F41", "0A", 9) + tcpLine("0100007F:1F40", "01", 5000),
		"proc/self/net/netstat":                                             "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 5 0 7\nIpExt: InNoRoutes\nIpExt: 0\n",
		"proc/sys/net/ipv4/tcp_max_syn_backlog":                             "4096\n",
		"proc/sys/net/ipv4/tcp_syncookies":                                  "1\n",
		"proc/sys/net/ipv4/tcp_mem":                                         "200000\t300000\t400000\n",
		"proc/net/sockstat":                                                 "sockets: used 44019\nTCP: inuse 44007 orphan 0 tw 128 alloc 44007 mem 182\n",
		"proc/sys/net/ipv4/tcp_rmem":                                        "4096\t131072\t6291456\n",
		"proc/sys/net/ipv4/tcp_wmem":                                        "4096\t16384\t4194304\n",
		"proc/sys/net/ipv4/ip_local_port_range":                             "32768\t60999\n",
		"proc/sys/net/ipv4/ip_local_reserved_ports":                         "\n",
		"proc/sys/net/ipv4/tcp_keepalive_time":                              "7200\n",
		"proc/sys/net/ipv4/tcp_tw_reuse":                                    "2\n",
		"proc/meminfo":                                                      "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\nSwapTotal:             0 kB\n",
		"proc/sys/vm/swappiness":                                            "60\n",
		"proc/self/cgroup":                                                  "0::/system.slice/perch.service\n",
		"sys/fs/cgroup/cgroup.controllers":                                  "memory\n",
		"sys/fs/cgroup/system.slice/memory.max":                             "max\n",
		"sys/kernel/mm/transparent_hugepage/enabled":                        "always [madvise] never\n",
		"sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none":       "511\n",
		"sys/devices/system/clocksource/clocksource0/current_clocksource":   "tsc\n",
		"sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet\n",
		"sys/class/net/lo/queues/rx-0/rps_cpus":                             "0\n",
		"sys/class/net/eth0/device/vendor":                                  "0x1af4\n",
		"sys/class/net/eth0/queues/rx-0/rps_cpus":                           "0\n",
		"sys/class/net/eth0/queues/rx-1/rps_cpus":                           "0\n",
		"sys/class/net/eth0/queues/tx-0/xps_cpus":                           "0\n",
	}
}

const tcpHeader = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func tcpLine(local, state string, queue int) string {
	return "   0: " + local + " 00000000:0000 " + state + " 00000000:" + hex8(queue) + " 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"
}

func hex8(v int) string {
	const digits = "0123456789ABCDEF"
	var b [8]byte
	for i := range b {
		b[7-i] = digits[v&15]
		v >>= 4
	}
	return string(b[:])
}

// gone in a change takes the file away.
const gone = "\x00"

// tree is the healthy machine with changes.
func tree(changes map[string]string) fstest.MapFS {
	files := healthy()
	maps.Copy(files, changes)
	out := make(fstest.MapFS)
	for name, text := range files {
		if text != gone {
			out[name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	return out
}

func examine(load Load, changes map[string]string) *Report {
	if load.Connections == 0 {
		load.Connections = 100_000
	}
	return Examine(System{FS: tree(changes), CPUs: 4, PageSize: 4096}, load)
}

func (r *Report) finding(t *testing.T, name string) Finding {
	t.Helper()
	for _, f := range r.Findings {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding %q", name)
	return Finding{}
}

// sentence tells whether text is one, with its end.
func sentence(text string) bool {
	return strings.HasSuffix(text, ".") && strings.Count(text, ". ") == 0
}
