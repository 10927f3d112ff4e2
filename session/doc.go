// Package session owns what Perch knows of one peer: its identity, its state,
// the reason it ends, and the registry that finds it by user. It also owns the
// interfaces by which the other packages meet: Handler (what a message means),
// Transport (how bytes leave) and Loop (how work enters the loop of a session).
//
// A Session belongs to its loop: every method runs there, save where it says
// "Safe from any goroutine". Others hold the session's ID, never its pointer:
// a stale ID finds nothing.
package session
