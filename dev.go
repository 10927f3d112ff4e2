package perch

import (
	"fmt"
	"slices"
	"sync"

	"golang.org/x/crypto/bcrypt"
)

// The example client of dev mode. Everybody knows its secret, so dev mode takes
// loopback addresses only: Check refuses others.
const (
	DevClient = "demo"
	DevSecret = "demo-secret"
)

// devHash is made at the least cost: the secret is public.
var devHash = sync.OnceValue(func() string {
	hash, err := bcrypt.GenerateFromPassword([]byte(DevSecret), bcrypt.MinCost)
	if err != nil {
		panic(fmt.Sprintf("perch: hashing the example secret: %v", err)) // only without randomness
	}
	return string(hash)
})

// WithDev is o with what dev mode turns on: the demo page, the echo endpoint,
// every permission on topics without a namespace, and the example client,
// which may ask for a token of any user. A client of that id that is
// configured stays as it is, and so do the rules of namespaces. Tokens are
// still needed (Insecure is left alone), so that a developer sees the path that
// production takes. Applying it twice changes nothing more. Safe from any
// goroutine.
func (o Options) WithDev() Options {
	o.Dev, o.Echo, o.Demo = true, true, true

	d := &o.Topics.Default
	d.AllowSubscribeForClient = true
	d.AllowSubscribeForAnonymous = true
	d.AllowPublishForClient = true
	d.AllowPublishForSubscriber = true
	d.AllowPublishForAnonymous = true

	known := slices.ContainsFunc(o.Auth.Clients, func(c ClientOptions) bool { return c.ID == DevClient })
	if !known {
		// A new array: the caller's may have room behind its end.
		o.Auth.Clients = append(slices.Clip(o.Auth.Clients), ClientOptions{
			ID: DevClient, SecretHash: devHash(), AnyUser: true,
		})
	}
	return o
}
