package stats

import "time"

// Process is what the process has used so far. Where the system does not tell,
// a field is zero.
type Process struct {
	CPU time.Duration // user and system time of all threads
	RSS int64         // resident memory, bytes
}
