package handler

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

func TestPublishReachesBothEncodings(t *testing.T) {
	r := newRig(t)
	r.verifier.claims["info"] = &auth.Claims{Subject: "ann", Info: []byte(`{"n":1}`)}
	a, b := r.open(session.EncodingJSON, nil), r.user(session.EncodingProtobuf, "bob")
	a.connect("info")
	a.send(`{"id":2,"subscribe":{"channel":"news"}}`)
	b.send(`{"id":2,"subscribe":{"channel":"news"}}`)
	a.replies()
	b.replies()
	pub := func(p *fakePeer, info string) string {
		return fmt.Sprintf(`{"push":{"channel":"news","pub":{"data":{"t":1},"info":{"user":%q,"client":%q%s}}}}`, p.s.User(), r.c.clientID(&p.s), info)
	}
	a.send(`{"id":3,"publish":{"channel":"news","data":{"t":1}}}`)
	r.loop.turn()
	a.wants(`{"id":3,"publish":{}}`, pub(a, `,"conn_info":{"n":1}`))
	b.wants(pub(a, `,"conn_info":{"n":1}`))
	b.send(`{"id":4,"publish":{"channel":"news","data":{"t":1}}}`)
	r.loop.turn()
	a.wants(pub(b, ""))
	b.wants(`{"id":4,"publish":{}}`, pub(b, ""))
	// What is no JSON goes to those that can have it.
	raw := append([]byte{15, 8, 5, 0x3a, 11, 0x0a, 4}, "news\x12\x03\xff\x00\x01"...)
	r.c.Message(&b.s, raw, true)
	r.loop.turn()
	if got := b.replies(); len(got) != 2 || string(got[1].Push.Pub.Data) != "\xff\x00\x01" {
		t.Errorf("%v", got)
	}
	a.wants()
	a.idle()
	b.idle()
}

func TestPublishPermissions(t *testing.T) {
	tests := []struct {
		name, user, topic, data string
		insecure                bool
		want                    string
	}{
		{name: "allowed", user: "ann", topic: "a", want: `"publish":{}`},
		{name: "closed", user: "ann", topic: "closed:a", want: errDenied},
		{name: "unknown", user: "ann", topic: "nope:a", want: errUnknown},
		{name: "too long", user: "ann", topic: strings.Repeat("x", 41), want: errRequest},
		{name: "no data", user: "ann", topic: "a", data: `{}`, want: errRequest},
		{name: "anonymous", topic: "a", want: errDenied},
		{name: "anonymous allowed", topic: "open:a", want: `"publish":{}`},
		{name: "subscriber", user: "ann", topic: "chat:in", want: `"publish":{}`},
		{name: "no subscriber", user: "ann", topic: "chat:out", want: errDenied},
		{name: "another's", user: "ann", topic: "#bob", want: errDenied},
		{name: "insecure", insecure: true, topic: "closed:a", want: `"publish":{}`},
		{name: "insecure another's", insecure: true, topic: "#bob", want: `"publish":{}`},
		{name: "insecure unknown", insecure: true, topic: "nope:a", want: errUnknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(o *rigOptions) { o.Insecure, o.Require = tt.insecure, RequireNone })
			p := r.user(session.EncodingJSON, tt.user)
			p.send(`{"id":2,"subscribe":{"channel":"chat:in"}}`)
			p.replies()
			data := `,"data":1`
			if tt.data != "" {
				data = ""
			}
			p.send(fmt.Sprintf(`{"id":3,"publish":{"channel":%q%s}}`, tt.topic, data))
			if got := strings.Split(p.said(), "\n")[0]; got != answer(3, tt.want) {
				t.Errorf("answered %s, want %s", got, tt.want)
			}
		})
	}
}

func TestPublishErrors(t *testing.T) {
	for err, want := range map[error]string{
		topic.ErrFull:                                errTooMany,
		fmt.Errorf("broker: %w", topic.ErrFull):      errTooMany,
		topic.ErrNotAvailable:                        errUnavailable,
		topic.ErrUnknownTopic:                        errUnknown,
		errors.New("broker: the other side is gone"): errInternal,
	} {
		r := newRig(t)
		p := r.user(session.EncodingJSON, "ann")
		r.broker.err = err
		p.send(`{"id":2,"publish":{"channel":"a","data":1}}`)
		p.wants(answer(2, want))
		p.idle()
		if logged := strings.Contains(r.log.String(), "publish failed"); logged != (want == errInternal) {
			t.Errorf("%v: logged %q", err, r.log.String())
		}
		// The same, when the answer comes later.
		r.broker.hold = true
		p.send(`{"id":3,"publish":{"channel":"a","data":1}}`, `{"id":4,"unsubscribe":{"channel":"a"}}`)
		p.wants()
		r.broker.held[0](err)
		r.loop.turn()
		p.wants(answer(3, want), `{"id":4,"unsubscribe":{}}`)
		p.idle()
	}
}

func TestPublishIsNotOvertaken(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t)
		p, other := r.user(e, "ann"), r.user(e, "bob")
		r.broker.hold = true
		p.send(`{"id":2,"publish":{"channel":"a","data":1}}`, `{"id":3,"subscribe":{"channel":"a"}}`)
		p.send(`{"id":4,"publish":{"channel":"a","data":2}}`, `{"id":5,"unsubscribe":{"channel":"a"}}`)
		other.send(`{"id":2,"subscribe":{"channel":"b"}}`)
		other.wants(`{"id":2,"subscribe":{}}`)
		p.pinged = true
		p.send(`{}`)
		p.wants()
		if p.pinged {
			t.Error("a pong waits")
		}
		r.broker.held[0](nil)
		r.loop.turn()
		p.wants(`{"id":2,"publish":{}}`, `{"id":3,"subscribe":{}}`)
		if len(r.broker.held) != 2 {
			t.Fatalf("%d publications", len(r.broker.held))
		}
		r.broker.held[1](nil)
		r.loop.turn()
		if got := p.replies(); len(got) != 2 || got[0].Id != 4 || got[1].Id != 5 {
			t.Errorf("%v", got)
		}
		p.idle()
		// The session ends before the answer.
		p.send(`{"id":6,"publish":{"channel":"a","data":3}}`, `{"id":7,"subscribe":{"channel":"a"}}`)
		p.CloseWith(session.ReasonPeerGone, 0, "")
		r.broker.held[2](nil)
		r.loop.turn()
		p.wants()
		p.idle()
	})
}

func TestPublishWithoutRoom(t *testing.T) {
	r := newRig(t)
	p := r.user(session.EncodingJSON, "ann")
	r.loop.room = session.PostOverhead - 1
	p.send(`{"id":2,"publish":{"channel":"a","data":1}}`)
	p.wants(answer(2, errTooMany))
	p.idle()
	if n := r.c.Counters().Snapshot().PoolFull; n != 1 {
		t.Errorf("%d counted", n)
	}
}
