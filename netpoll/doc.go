// Package netpoll owns sockets: it accepts them on gnet's event loops, reads
// the request head, upgrades what is a WebSocket in place, hands every other
// HTTP request to net/http, frames and unframes messages, and keeps the time
// of each connection on a wheel.
//
// A connection is byte stream × framing × session. Bytes go in and out through
// the stream (stream.go), which is plain TCP today; the framing (head.go,
// reader.go) turns them into messages for the session's Handler. Partial input
// and pending output stand in structs of ours that exist only while there is
// some, never in gnet's buffers.
//
// Deflating and inflating (permessage-deflate) is a pool's work, which the Options
// name: a conn's later messages wait for it, the loop does not.
//
// What runs where: every method of conn and, unless it says otherwise, of loop
// runs on the loop's goroutine. Other goroutines reach a loop through its
// inbox (inbox.go), which is bounded and ordered.
package netpoll
