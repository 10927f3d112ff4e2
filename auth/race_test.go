//go:build race

package auth

// raceEnabled: sync.Pool drops at random under the race detector.
const raceEnabled = true
