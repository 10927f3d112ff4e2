package proc

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// Stolen is how long the hypervisor has run something else while this machine's
// processors had work, and all the time of these processors, idle or not, since
// the start: both in clock ticks (10 ms), summed over the processors. stolen
// stays 0 on a machine that is nobody's guest. Safe from any goroutine.
func Stolen() (stolen, all int64, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	return stolenOf(string(b))
}

// stolenOf reads the first line, "cpu  user nice system idle iowait irq softirq
// steal guest guest_nice"; the guests' time is in user and nice already.
func stolenOf(stat string) (stolen, all int64, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	words := strings.Fields(line)
	if len(words) < 9 || words[0] != "cpu" {
		return 0, 0, errors.New("/proc/stat: no line of all processors with their stolen time")
	}
	for i, w := range words[1:9] {
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			return 0, 0, err
		}
		all += n
		if i == 7 {
			stolen = n
		}
	}
	return stolen, all, nil
}
