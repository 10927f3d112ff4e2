// Package deploy checks what is in deploy/ and docs/cluster.md: that tools read
// the files as they are meant, and that Perch and NATS run by them.
//
// It is a module of its own, so that Perch depends on none of those tools.
package deploy
