//go:build !race

package perch

const raceEnabled = false
