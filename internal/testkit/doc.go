// Package testkit drives a running server from outside, over real sockets, and
// measures it. It imports nothing of Perch: what it knows of the server is the
// wire. It holds a WebSocket client for what no SDK would send (Conn, Frame), a
// client that holds many sessions on one goroutine (Dense), a signer of test
// tokens, and the handling of a server that runs as its own process (Process).
//
// It runs on Linux alone: Dense sits on epoll, Process reads /proc.
package testkit
