package doctor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// small is a machine that lacks much for 100000 sessions.
func small() files {
	return files{
		"proc/self/limits":                          "Max open files 1024 4096 files\n",
		"proc/sys/fs/nr_open":                       "65536\n",
		"proc/sys/net/core/somaxconn":               "128\n",
		"proc/sys/net/ipv4/tcp_mem":                 "3000 60000 999999\n",
		"proc/sys/net/netfilter/nf_conntrack_max":   "65536\n",
		"proc/sys/net/netfilter/nf_conntrack_count": "12\n",
		"proc/sys/net/ipv4/ip_local_port_range":     "32768 65000\n",
		"proc/sys/fs/epoll/max_user_watches":        gone,
	}
}

func writeReport(t *testing.T, r *Report, dir string) (sysctls, limits string, said []string) {
	t.Helper()
	said, err := r.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	return readText(t, filepath.Join(dir, SysctlFile)), readText(t, filepath.Join(dir, LimitsFile)), said
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// load is the machine after the file has been loaded, as sysctl -p does.
func loaded(t *testing.T, machine files, text string) files {
	t.Helper()
	out := files{}
	for k, v := range machine {
		out[k] = v
	}
	for key, s := range parseSettings(text) {
		if s.numbers == nil {
			t.Errorf("%s is not numbers: %s", key, s.line)
		}
		out[sysctlFile(key)] = join(s.numbers) + "\n"
	}
	return out
}

func TestWriteRoundTrip(t *testing.T) {
	dir := t.TempDir()
	before := examine(Load{}, small())
	if before.Status != Fail {
		t.Fatalf("the small machine is %s", before.Status)
	}
	text, limits, said := writeReport(t, before, dir)
	for _, want := range []string{"fs.nr_open = 10155", "net.core.somaxconn = 8192", "nf_conntrack_max = 125012", "net.ipv4.tcp_mem = 75136 100182 999999"} {
		if !strings.Contains(text, want) {
			t.Errorf("misses %s", want)
		}
	}
	for _, not := range []string{"ip_local_port_range", "file-max", "max_user_watches"} {
		if strings.Contains(text, not) {
			t.Errorf("has %s", not)
		}
	}
	if !strings.Contains(limits, "\n[Service]\nLimitNOFILE=10155") {
		t.Errorf("limits:\n%s", limits)
	}
	told := strings.Join(said, "\n")
	for _, want := range []string{
		"sysctl -p " + dir, "systemctl daemon-reload", "fs.file-max: left out, 9223372036854775807 is enough",
		"max_user_watches: left out, this system does not have it", "999999, where it is higher than needed as it was",
	} {
		if !strings.Contains(told, want) {
			t.Errorf("does not say %q:\n%s", want, told)
		}
	}
	for _, name := range []string{SysctlFile, LimitsFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != 0o644 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
		if left, _ := os.ReadDir(filepath.Dir(filepath.Join(dir, name))); len(left) != 1 {
			t.Errorf("beside %s: %v", name, left)
		}
	}

	machine := loaded(t, small(), text)
	machine["proc/self/limits"] = "Max open files 1024 101560 files\n"
	after := examine(Load{}, machine)
	if after.Status == Fail || after.finding(t, "net.core.somaxconn").Status != OK || after.finding(t, "net.ipv4.tcp_mem").Status != OK {
		t.Errorf("loaded: %s %v", after.Status, after.Failed())
	}
	// Once more, on the machine that has it all now: nothing gets lost.
	again, _, _ := writeReport(t, after, dir)
	if again != text {
		t.Errorf("written again:\n%s\nbefore:\n%s", again, text)
	}
}

func TestWriteNeverLowers(t *testing.T) {
	dir := t.TempDir()
	writeReport(t, examine(Load{Connections: 1_000_000}, small()), dir)
	const own = "# mine\nnet/core/somaxconn = 30000\n-net.ipv4.tcp_congestion_control = bbr\nvm.swappiness=1\n"
	path := filepath.Join(dir, SysctlFile)
	if err := os.WriteFile(path, []byte(readText(t, path)+own), 0o600); err != nil {
		t.Fatal(err)
	}
	text, limits, said := writeReport(t, examine(Load{Connections: 1000}, small()), dir)
	got := parseSettings(text)
	for key, want := range map[string]string{
		"net.core.somaxconn": "30000", "vm.swappiness": "1", "net.netfilter.nf_conntrack_max": "1250012",
	} {
		if join(got[key].numbers) != want {
			t.Errorf("%s is %q, want %s", key, got[key].line, want)
		}
	}
	if !strings.Contains(text, "\n-net.ipv4.tcp_congestion_control = bbr\n") && !strings.Contains(text, "\nnet.ipv4.tcp_congestion_control = bbr\n") {
		t.Errorf("a line of somebody is lost:\n%s", text)
	}
	if !strings.Contains(limits, "LimitNOFILE=1001") {
		t.Errorf("limits:\n%s", limits)
	}
	if told := strings.Join(said, "\n"); strings.Count(told, "higher than needed") < 2 && !strings.Contains(told, "higher than the") {
		t.Errorf("it does not say so:\n%s", told)
	}

	// A service gets no less than the shell that asks.
	r := examine(Load{Connections: 1000}, nil)
	if text, _ := r.limitsText(""); !strings.Contains(text, "LimitNOFILE=524288\n") {
		t.Errorf("limits:\n%s", text)
	}
	for old, want := range map[string]string{
		"LimitNOFILE=infinity\n": "LimitNOFILE=infinity\n", "LimitNOFILE=1024:900000": "LimitNOFILE=900000\n", "LimitNOFILE=x": "LimitNOFILE=524288\n",
	} {
		if text, _ := r.limitsText(old); !strings.Contains(text, want) {
			t.Errorf("after %q:\n%s", old, text)
		}
	}
}

func TestWritePorts(t *testing.T) {
	dir := t.TempDir()
	r := examine(Load{Generator: true, Connections: 60_000}, small())
	said, err := r.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	text := readText(t, filepath.Join(dir, SysctlFile))
	if !strings.Contains(text, "net.ipv4.ip_local_port_range = 10240 65535\n") || strings.Contains(text, "somaxconn") {
		t.Errorf("%s", text)
	}
	if _, err := os.Stat(filepath.Join(dir, LimitsFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a generator has a service: %v", err)
	}
	if !strings.Contains(strings.Join(said, "\n"), "ulimit -Hn 60064") {
		t.Errorf("said %q", said)
	}
	// A range that is wider already stays.
	wide := examine(Load{Generator: true}, files{"proc/sys/net/ipv4/ip_local_port_range": "1024 60000\n"})
	if text, _ := wide.sysctlText(nil); !strings.Contains(text, "ip_local_port_range = 1024 65535\n") {
		t.Errorf("%s", text)
	}
}

func TestWriteErrors(t *testing.T) {
	r := examine(Load{}, nil)
	if _, err := r.Write(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into nothing: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sysctl.d"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write(dir); err == nil || !strings.HasPrefix(err.Error(), "doctor: ") {
		t.Errorf("into a file: %v", err)
	}
	// What can't replace its file leaves nothing behind.
	dir = t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, SysctlFile, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(filepath.Join(dir, SysctlFile), "x"); err == nil {
		t.Error("a directory was replaced")
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "sysctl.d")); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}
