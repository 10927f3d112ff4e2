// Package stats owns what Perch tells of itself in numbers: the counters that
// hot paths write, the Snapshot that a scrape gathers from them, and the
// Prometheus page made of it. It imports nothing else of Perch, so that every
// package can count.
//
// Nothing here runs between two scrapes: a hot path pays for one atomic add,
// and all names, labels and sums are made when somebody asks.
package stats
