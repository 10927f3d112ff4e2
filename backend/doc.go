// Package backend calls the user's own service over HTTP: it asks who may
// connect, subscribe and publish, and passes remote procedure calls on. Requests
// and answers have the shapes of Centrifugo's HTTP proxies, so that a service
// written for those can stay.
//
// A Client blocks its caller: it is called from a bounded pool, never from a
// loop. What a backend can cost is bounded everywhere: connections, the wait for
// one, the time of a call, the bytes of an answer; a circuit breaker answers for
// a method that fails again and again. An answer's body is read whole and closed
// where it comes in, in one function, so that no caller can leave one open.
//
// The package knows nothing of sockets, sessions or topics. All methods of a
// Client are safe from any goroutine.
package backend
