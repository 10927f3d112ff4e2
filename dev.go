package perch

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"perch/topic"
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
// every permission on topics without a namespace, their history, recovery and
// presence for clients that ask, and the example client,
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
	if !d.History() {
		d.HistorySize, d.HistoryTTL = 100, 10*time.Minute
	}
	d.AllowRecovery, d.AllowPositioning = true, true
	d.AllowHistoryForSubscriber, d.AllowHistoryForClient, d.AllowHistoryForAnonymous = true, true, true
	d.Presence, d.JoinLeave = true, true
	d.AllowPresenceForSubscriber, d.AllowPresenceForClient, d.AllowPresenceForAnonymous = true, true, true
	if len(d.AllowedDeltaTypes) == 0 {
		d.AllowedDeltaTypes = []string{topic.DeltaFossil}
	}

	known := slices.ContainsFunc(o.Auth.Clients, func(c ClientOptions) bool { return c.ID == DevClient })
	if !known {
		// A new array: the caller's may have room behind its end.
		o.Auth.Clients = append(slices.Clip(o.Auth.Clients), ClientOptions{
			ID: DevClient, SecretHash: devHash(), AnyUser: true,
		})
	}
	return o
}
