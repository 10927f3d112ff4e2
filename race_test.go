//go:build race

package perch

// raceEnabled: sync.Pool drops at random under the race detector, so what is
// free of allocations without it is not with it.
const raceEnabled = true
