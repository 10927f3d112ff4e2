// Package sdkgo pins the published Go SDK, whose own tests run from here against
// a running Perch on localhost:8000 (test/run starts it):
//
//	go test -count=1 github.com/centrifugal/centrifuge-go
//
// It is a module of its own, so that the SDK is tested with the dependencies
// that it was published with and not with Perch's.
package sdkgo

import _ "github.com/centrifugal/centrifuge-go" // its version stands in go.mod
