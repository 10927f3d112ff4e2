//go:build !linux

package stats

// ReadProcess knows nothing on this system. Safe from any goroutine.
func ReadProcess() Process { return Process{} }
