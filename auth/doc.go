// Package auth owns keys, tokens, the secrets of clients, refresh tokens and
// revocations. It knows nothing of sockets or of HTTP handlers: the opening
// handshake and the connect command ask its Verifier, the token endpoint asks
// its Authority.
//
// Everything is safe from any goroutine. A Verifier may be asked on a loop for
// the tokens that Cheap names (HMAC, no waiting); every other token costs
// public-key arithmetic or may wait for a remote key set, and belongs into a
// pool. What an Authority does waits for a disk or a password hash, and never
// belongs on a loop.
//
// What is kept stands in the data directory: signing-key.pem, api_key and
// auth.log, an append-only log of refresh-token families and revocations.
package auth
