package doctor

import (
	"strconv"
	"strings"
)

// inPorts tells whether a port is in a list as "80,8000-8010".
func inPorts(list string, port int) bool {
	for part := range strings.SplitSeq(list, ",") {
		low, high, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			high = low
		}
		a, err1 := strconv.Atoi(low)
		b, err2 := strconv.Atoi(high)
		if err1 == nil && err2 == nil && a <= port && port <= b {
			return true
		}
	}
	return false
}
