//go:build !race

package topic

// raceDivisor makes long tests shorter where the race detector slows each step.
const raceDivisor = 1
