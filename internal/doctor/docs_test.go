package doctor

import (
	"regexp"
	"strings"
	"testing"
)

// TestDocumented: docs/tuning.md has every finding and every key of the file
// that is there to be copied.
func TestDocumented(t *testing.T) {
	doc := readText(t, "../../docs/tuning.md")
	for _, f := range allFindings() {
		if !strings.Contains(doc, f.Name) {
			t.Errorf("docs/tuning.md has no %s", f.Name)
		}
	}
	for key := range deployed(t, true) {
		if !strings.Contains(doc, key) {
			t.Errorf("docs/tuning.md has no %s", key)
		}
	}
}

var commentedKey = regexp.MustCompile(`(?m)^#([a-z]+\.[a-z0-9_.]+ = )`)

// deployed are the settings of the deployed file, also those that are there as
// comments.
func deployed(t *testing.T, commented bool) map[string]setting {
	t.Helper()
	text := readText(t, "../../deploy/sysctl.d/99-perch.conf")
	if commented {
		text = commentedKey.ReplaceAllString(text, "$1")
	}
	return parseSettings(text)
}

// TestDeployed: the files under deploy are enough for a million sessions, as
// they say.
func TestDeployed(t *testing.T) {
	const million = 1_000_000
	if n := len(deployed(t, false)); n != 3 {
		t.Errorf("%d settings", n)
	}
	all := deployed(t, true)
	machine := files{
		"proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 32000000 kB\nSwapTotal: 0 kB\n",
		"proc/sys/net/netfilter/nf_conntrack_count": "0\n", "proc/net/sockstat": "TCP: inuse 0 mem 0\n",
		"proc/sys/fs/file-nr": "2000 0 0\n",
	}
	for key, s := range all {
		if s.numbers == nil {
			t.Fatalf("%s", s.line)
		}
		machine[sysctlFile(key)] = join(s.numbers) + "\n"
	}
	unit := readText(t, "../../deploy/systemd/perch.service.d/limits.conf")
	_, limit, ok := strings.Cut(unit, "\nLimitNOFILE=")
	if !ok {
		t.Fatal("no limit")
	}
	machine["proc/self/limits"] = "Max open files 1024 " + strings.TrimSpace(limit) + " files\n"
	for _, load := range []Load{{Connections: million, Loops: 64}, {Connections: million, Generator: true, Sources: 20}} {
		for _, f := range examine(load, machine).Findings {
			if f.Status != OK {
				t.Errorf("%+v: %+v", load, f)
			}
		}
	}
}
