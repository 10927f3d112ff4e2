// Package handler says what messages and requests mean.
//
// Commands is the session.Handler of the Centrifuge client protocol. Its
// methods run on the loop of the session and never block it: what is cheap and
// local is done there; tokens that are not cheap to verify, methods and
// handlers that users register run in the Pool and come back as posts to the
// loop. While a session has such work under way its later commands wait in its
// backlog, so that none overtakes another, though the pool is shared. An idle
// session holds nothing of this package's.
//
// Where there is no room, the answer is error 111 or a close, as the overflow
// policy says: in the pool's queue, in the loop's inbox (where the room for an
// answer is taken before the work begins), in a session's backlog.
//
// The HTTP endpoints of the public and the admin port are here as well; they
// run on goroutines of net/http and reach sessions by posts alone.
package handler
