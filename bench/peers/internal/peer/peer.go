// Package peer is what the servers built on blocking libraries share: their
// flags and the set of their connections, so that what differs between them is
// the library.
package peer

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"
)

// TopicPath is where publications go round. Every other path echoes.
const TopicPath = "/topic"

// Flags are those that all servers understand.
type Flags struct {
	Listen string        // IPv4 host:port
	Ping   time.Duration // between two pings of a connection; 0: none
}

// Parse reads the command line, with the flags of the command's own that stand
// in flag.CommandLine already.
func Parse() Flags {
	var f Flags
	flag.StringVar(&f.Listen, "listen", "127.0.0.1:8100", "IPv4 host:port")
	flag.DurationVar(&f.Ping, "ping", 0, "time between two pings of a connection; 0: none")
	flag.Parse()
	if f.Ping < 0 {
		Exit(errors.New("-ping is at least 0"))
	}
	return f
}

// Exit ends the process with the error that the server ended with.
func Exit(err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
	os.Exit(1)
}

// Set is a set of connections that can be gone through in steps. The zero value
// is empty. Safe from any goroutine.
type Set[C comparable] struct {
	mu     sync.RWMutex
	list   []C
	at     map[C]int
	cursor int
}

// Add puts c in; it must not be in yet.
func (s *Set[C]) Add(c C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		s.at = make(map[C]int)
	}
	s.at[c] = len(s.list)
	s.list = append(s.list, c)
}

// Remove takes c out. It need not be in.
func (s *Set[C]) Remove(c C) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.at[c]
	if !ok {
		return
	}
	last := len(s.list) - 1
	s.list[i] = s.list[last]
	s.at[s.list[i]] = i
	delete(s.at, c)
	var none C
	s.list[last] = none
	s.list = s.list[:last]
}

// Each calls f with every connection. f must not change the set.
func (s *Set[C]) Each(f func(C)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, c := range s.list {
		f(c)
	}
}

// beats is in how many steps Beat goes through the set.
const beats = 256

// Beat calls f with each connection once in every, a few at a time. It does not
// return; with every 0 it does so at once.
func (s *Set[C]) Beat(every time.Duration, f func(C)) {
	if every <= 0 {
		return
	}
	tick := time.NewTicker(max(every/beats, time.Millisecond))
	defer tick.Stop()
	var (
		last  = time.Now()
		due   float64
		batch []C
	)
	for range tick.C {
		passed := time.Since(last)
		last = last.Add(passed)
		batch, due = s.next(batch[:0], due, float64(passed)/float64(every))
		for _, c := range batch {
			f(c)
		}
		clear(batch)
	}
}

// next appends to batch the connections behind the cursor: a share of the set,
// and what was due before. It returns also the fraction that is left over.
func (s *Set[C]) next(batch []C, due, share float64) ([]C, float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := float64(len(s.list))
	due = min(due+n*share, n)
	for ; due >= 1; due-- {
		if s.cursor++; s.cursor >= len(s.list) {
			s.cursor = 0
		}
		batch = append(batch, s.list[s.cursor])
	}
	return batch, due
}
