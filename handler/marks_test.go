package handler

import (
	"fmt"
	"testing"

	"perch/auth"
	"perch/session"
)

// TestRevokes: a revocation ends the sessions that it names, and no others.
func TestRevokes(t *testing.T) {
	claims := map[string]auth.Claims{
		"a1": {ClientID: "a", Family: "f1", ID: "j1"}, "a2": {ClientID: "a", Family: "f1", ID: "j2"},
		"a3": {ClientID: "a", Family: "f2", ID: "j3"}, "a4": {ClientID: "a", ID: "j4"}, "a5": {ClientID: "a"},
		"b1": {ClientID: "b", Family: "f3", ID: "j5"}, "b2": {ClientID: "b", Family: "f1", ID: "j1"},
		"own": {ID: "j1", Family: "f1"}, "nobody": {},
	}
	sessions := make(map[string]*session.Session)
	for name, c := range claims {
		sessions[name] = &session.Session{}
		mark(sessions[name], &c)
	}
	for _, tt := range []struct {
		r    auth.Revocation
		want string
	}{
		{auth.Revocation{Client: "a", Family: "f1"}, "a1 a2"},
		{auth.Revocation{Client: "a", ID: "j1"}, "a1"},
		{auth.Revocation{Client: "a", ID: "j4"}, "a4"},
		{auth.Revocation{Client: "a", Revision: 1}, "a1 a2 a3 a4 a5"},
		{auth.Revocation{Client: "b", Revision: 1}, "b1 b2"},
		{auth.Revocation{Client: "c", Revision: 1}, ""},
		{auth.Revocation{Family: "f1"}, "own"},
		{auth.Revocation{}, ""},
	} {
		got := ""
		var set revokedSet
		set.add(tt.r)
		for _, name := range []string{"a1", "a2", "a3", "a4", "a5", "b1", "b2", "own", "nobody"} {
			if set.has(sessions[name]) {
				if got != "" {
					got += " "
				}
				got += name
			}
		}
		if got != tt.want {
			t.Errorf("%+v: ends %q, want %q", tt.r, got, tt.want)
		}
	}
}

// TestRevokedSinceVerified: a token that is revoked between its check and the moment
// from which on a revocation finds the session lets nobody in.
func TestRevokedSinceVerified(t *testing.T) {
	revoked := false
	r := newRig(t, func(o *rigOptions) {
		o.Options.Revoked = func(c *auth.Claims) bool { return revoked && c.ID == "j" }
	})
	r.verifier.claims["good"] = &auth.Claims{Subject: "ann", ID: "i", ExpiresAt: epoch + 60}
	r.verifier.claims["late"] = &auth.Claims{Subject: "ann", ID: "j", ExpiresAt: epoch + 60}
	revoked = true
	p := r.open(session.EncodingJSON, nil)
	p.send(`{"id":1,"connect":{"token":"late"}}`)
	p.wantsClose(session.ReasonInvalidToken)
	p = r.open(session.EncodingJSON, &Identity{Claims: r.verifier.claims["late"]})
	p.send(`{"id":1,"connect":{}}`)
	p.wantsClose(session.ReasonInvalidToken)
	p = r.open(session.EncodingJSON, nil)
	p.connect("good")
	p.send(`{"id":2,"refresh":{"token":"late"}}`)
	p.wantsClose(session.ReasonInvalidToken)
}

// TestMarksOfManyClients: ids that hardly differ are told apart.
func TestMarksOfManyClients(t *testing.T) {
	seen := make(map[[2]uint64]string)
	for i := range 500_000 {
		id := fmt.Sprintf("sensor-%06d", i)
		family, token := marks(id, "f", "j")
		key := [2]uint64{family >> nameBits, token >> nameBits}
		if other, ok := seen[key]; ok {
			t.Fatalf("%s and %s are one", id, other)
		}
		seen[key] = id
	}
}
