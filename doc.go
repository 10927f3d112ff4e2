// Package perch is the edge server: it wires sockets, sessions, topics, auth
// and handlers together, runs them and drains them.
package perch
