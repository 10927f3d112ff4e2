package handler

import (
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"perch/auth"
	"perch/session"
)

// BenchmarkFirstMessage is what a session costs its loop besides system calls
// and frames: its token, its subscription, the answers, and its end.
func BenchmarkFirstMessage(b *testing.B) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"sub": "user000123", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
	}).SignedString(secret)
	if err != nil {
		b.Fatal(err)
	}
	keys, err := auth.NewKeySet(auth.KeySetOptions{HMACSecret: string(secret)})
	if err != nil {
		b.Fatal(err)
	}
	r := newRig(b, func(o *rigOptions) { o.Now = time.Now })
	r.c.opts.Verifier = auth.NewVerifier(auth.VerifierOptions{Keys: keys})
	msg := []byte(`{"id":1,"connect":{"token":"` + token + `","name":"js"}}` + "\n" + `{"id":2,"subscribe":{"channel":"news"}}`)
	p := &fakePeer{t: b, rig: r}
	b.ReportAllocs()
	slot := uint32(0)
	for b.Loop() {
		slot++
		p.s = session.Session{}
		p.s.Open(quiet{p}, r.loop, session.MakeID(3, 9, slot))
		p.s.Encoding = session.EncodingJSON
		r.c.Open(&p.s, nil)
		r.c.Message(&p.s, msg, false)
		if p.s.State != session.StateConnected {
			b.Fatal("not connected")
		}
		r.c.Closed(&p.s, session.ReasonPeerGone)
	}
}
