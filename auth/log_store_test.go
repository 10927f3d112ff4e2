package auth_test

import (
	"log/slog"
	"testing"

	"perch/auth"
	"perch/auth/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Open {
		dir := t.TempDir()
		return func(o storetest.Options) auth.TokenStore {
			s, err := auth.OpenStore(auth.StoreOptions{
				Dir: dir, Logger: slog.New(slog.DiscardHandler),
				FamiliesPerClient: o.FamiliesPerClient, MaxRevocations: o.MaxRevocations, Now: o.Now,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		}
	})
}
