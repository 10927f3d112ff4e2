// Package bench loads a WebSocket server and reports what that costs it: perch
// bench. It speaks to any server through real sockets and imports nothing of
// the server's.
//
// A generator is one goroutine with an epoll set of its own: the connections
// cost it a small struct each. Latency counts from the moment at which a
// message was due, not from when it was sent, so that a stalled server can't
// hide its stall by holding up the generator (coordinated omission).
package bench
