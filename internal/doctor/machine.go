package doctor

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

func hugePages(e *exam) (Finding, bool) {
	const dir = "sys/kernel/mm/transparent_hugepage/"
	f := Finding{
		Name: "transparent huge pages", Want: "madvise or never, or khugepaged/max_ptes_none 0",
		Why: "With always, the kernel fills the holes that Go's allocator has given back, and the heap of idle sessions grows.",
		Set: "echo madvise > /" + dir + "enabled",
	}
	text, err := e.text(dir + "enabled")
	if err != nil {
		if !e.exists(dir + "enabled") {
			return f.as(OK, "not in this kernel")
		}
		return f.unreadable(err)
	}
	mode := chosen(text)
	if mode != "always" {
		return f.as(OK, mode)
	}
	holes := e.line(dir + "khugepaged/max_ptes_none")
	return f.as(either(holes != "0", Warn), "always, max_ptes_none "+holes)
}

// chosen is the word in brackets, as in "always [madvise] never".
func chosen(text string) string {
	_, rest, _ := strings.Cut(text, "[")
	word, _, ok := strings.Cut(rest, "]")
	if !ok {
		return strings.TrimSpace(text)
	}
	return word
}

// slowClocks are read by a system call or a port, at a microsecond or more.
var slowClocks = []string{"hpet", "acpi_pm", "jiffies", "pit", "refined-jiffies"}

func clockSource(e *exam) (Finding, bool) {
	const dir = "sys/devices/system/clocksource/clocksource0/"
	f := Finding{
		Name: "clock source", Want: "tsc, kvm-clock, arch_sys_counter or alike",
		Why: "Go and the loops read the clock all the time: 20 ns where the vDSO can, a microsecond or more with hpet or acpi_pm.",
		Set: "echo tsc > /" + dir + "current_clocksource",
	}
	text, err := e.text(dir + "current_clocksource")
	if err != nil {
		return f.unreadable(err)
	}
	name := strings.TrimSpace(text)
	return f.as(either(slices.Contains(slowClocks, name), Warn), name)
}

// receiveQueues looks at the network cards: an interface without a device
// below it (loopback, bridge, veth) has nothing to spread.
func receiveQueues(e *exam) (Finding, bool) {
	const dir = "sys/class/net"
	f := Finding{
		Name: "receive queues", Want: "several, or RPS, where there are several processors",
		Why: "One receive queue without RPS has one processor do the network's work for all.",
	}
	names, err := fs.ReadDir(e.FS, dir)
	if err != nil {
		return f.unreadable(err)
	}
	var have []string
	for _, entry := range names {
		card := dir + "/" + entry.Name()
		if _, err := fs.Stat(e.FS, card+"/device"); err != nil {
			continue
		}
		queues, spread := e.queues(card)
		if queues == 0 {
			continue
		}
		text := fmt.Sprintf("%s %d", entry.Name(), queues)
		switch {
		case spread:
			text += " with RPS"
		case queues == 1 && e.CPUs > 1:
			f.Status = Warn
			f.Set = fmt.Sprintf("ethtool -L %s combined %d, or echo %s > /%s/queues/rx-0/rps_cpus", entry.Name(), e.CPUs, cpuMask(e.CPUs), card)
		}
		have = append(have, text)
	}
	if len(have) == 0 {
		f.Status, f.Have = Unknown, "no network card is visible"
		return f, true
	}
	return f.as(either(f.Status == Warn, Warn), strings.Join(have, ", "))
}

// queues counts the receive queues of a card, and tells whether RPS spreads
// one of them.
func (s System) queues(card string) (n int, spread bool) {
	entries, _ := fs.ReadDir(s.FS, card+"/queues")
	for _, q := range entries {
		if !strings.HasPrefix(q.Name(), "rx-") {
			continue
		}
		n++
		if strings.Trim(s.line(card+"/queues/"+q.Name()+"/rps_cpus"), "0,") != "" {
			spread = true
		}
	}
	return n, spread
}

// cpuMask is n processors as the kernel reads them: groups of 32 bits.
func cpuMask(n int) string {
	first := n % 32
	groups := slices.Repeat([]string{"ffffffff"}, n/32)
	if first > 0 {
		groups = append([]string{fmt.Sprintf("%x", uint32(1)<<first-1)}, groups...)
	}
	return strings.Join(groups, ",")
}
