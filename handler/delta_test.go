package handler

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	pb "github.com/centrifugal/protocol"
	fdelta "github.com/shadowspore/fossil-delta"

	"perch/auth"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

var deltaNamespaces = namespaces(
	kept("delta", func(o *topic.NamespaceOptions) {
		o.AllowRecovery, o.AllowedDeltaTypes, o.DeltaPublish = true, []string{topic.DeltaFossil}, true
	}),
	topic.NamespaceOptions{Name: "some", AllowSubscribeForClient: true, AllowedDeltaTypes: []string{topic.DeltaFossil}},
)

// deltaClient takes publications as an SDK does that has agreed on deltas.
type deltaClient struct {
	t       testing.TB
	json    bool
	base    []byte
	patches int
}

func (c *deltaClient) take(p *pb.Publication) string {
	c.t.Helper()
	data := p.Data
	if c.json {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			c.t.Fatalf("%q is no string: %v", data, err)
		}
		data = []byte(text)
	}
	if p.Delta {
		c.patches++
		var err error
		if data, err = fdelta.Apply(c.base, data); err != nil {
			c.t.Fatalf("offset %d: %v", p.Offset, err)
		}
	}
	c.base = data
	return string(data)
}

// hears checks that what p was told are publications with these payloads.
func (c *deltaClient) hears(p *fakePeer, want ...string) {
	c.t.Helper()
	var got []string
	for _, r := range p.replies() {
		if r.Push.GetPub() == nil {
			c.t.Fatalf("told %v", r)
		}
		got = append(got, c.take(r.Push.Pub))
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		c.t.Fatalf("got %.300q\nwant %.300q", got, want)
	}
}

func long(i int) string {
	return fmt.Sprintf(`{"text":%q,"n":%d}`, strings.Repeat("äöü some text that stays as it is ", 10), i)
}

func TestDelta(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, deltaNamespaces)
		c := &deltaClient{t: t, json: e == session.EncodingJSON}
		p, plain := r.user(e, "ann"), r.user(e, "bob")
		p.send(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil"}}`)
		p.wants(`{"id":2,"subscribe":{"delta":true}}`)
		plain.send(`{"id":2,"subscribe":{"channel":"delta:a"}}`)
		plain.wants(`{"id":2,"subscribe":{}}`)
		for i := range 4 {
			r.publish("delta:a", long(i))
			c.hears(p, long(i))
			if got := plain.replies(); len(got) != 1 || string(got[0].Push.Pub.Data) != long(i) || got[0].Push.Pub.Delta {
				t.Errorf("without delta: %v", got)
			}
		}
		if c.patches != 3 {
			t.Errorf("%d patches", c.patches)
		}
		// A patch that is not shorter, none at all, and the next.
		for _, data := range []string{`1`, `"\u2028 <&>"`, long(5), long(6)} {
			r.publish("delta:a", data)
			c.hears(p, data)
		}
		if c.patches != 4 {
			t.Errorf("%d patches", c.patches)
		}
		// Several in one turn.
		ns, _ := r.topics.Namespace("delta:a")
		for i := range 3 {
			r.topics.Publish(ns, "delta:a", &topic.Publication{Data: []byte(long(10 + i))}, topic.PublishRequest{}, func(topic.Position, error) {})
		}
		r.loop.turn()
		c.hears(p, long(10), long(11), long(12))
		if c.patches != 7 {
			t.Errorf("%d patches", c.patches)
		}
		// Whoever comes in between has no base: the first is whole.
		late := r.user(e, "eve")
		d := &deltaClient{t: t, json: c.json}
		late.send(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil"}}`)
		late.replies()
		r.publish("delta:a", long(13))
		c.hears(p, long(13))
		d.hears(late, long(13))
		if d.patches != 0 {
			t.Error("a patch of what was never sent")
		}
		r.publish("delta:a", long(14))
		c.hears(p, long(14))
		d.hears(late, long(14))
		if d.patches != 1 {
			t.Error("no patch")
		}
	})
}

func TestDeltaIsNegotiated(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, deltaNamespaces)
		p := r.user(e, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"a","delta":"fossil"}}`, `{"id":3,"subscribe":{"channel":"delta:a","delta":"other"}}`,
			`{"id":4,"subscribe":{"channel":"some:a","delta":"fossil"}}`)
		p.wants(`{"id":2,"subscribe":{}}`, `{"id":3,"subscribe":{}}`, `{"id":4,"subscribe":{"delta":true}}`)
		// Where not all have deltas, those have that ask.
		c := &deltaClient{t: t, json: e == session.EncodingJSON}
		for i, delta := range []bool{false, false, true, true, false} {
			r.publish("some:a", long(i), func(q *topic.PublishRequest) { q.Delta = delta })
			c.hears(p, long(i))
		}
		if c.patches != 2 {
			t.Errorf("%d patches", c.patches)
		}
	})
}

// A patch that cuts a character in two is no text: JSON gets the whole.
func TestDeltaOfCutCharacters(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, deltaNamespaces)
		c := &deltaClient{t: t, json: e == session.EncodingJSON}
		p := r.user(e, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil"}}`)
		p.replies()
		// The second byte of a character changes, the first stays: é and è.
		a := `"` + strings.Repeat("0123456789abcdef", 20) + "é" + strings.Repeat("fedcba9876543210", 20) + `"`
		b := strings.ReplaceAll(a, "é", "è")
		patch := topic.Patch([]byte(a), []byte(b))
		if patch == nil || json.Valid(patch) || strings.ToValidUTF8(string(patch), "") == string(patch) {
			t.Fatalf("the patch %q cuts nothing", patch)
		}
		for _, data := range []string{a, b, a, b} {
			r.publish("delta:a", data)
			c.hears(p, data)
		}
		want := 3
		if e == session.EncodingJSON {
			want = 0
		}
		if c.patches != want {
			t.Errorf("%d patches, want %d", c.patches, want)
		}
		// And what is recovered.
		back := r.user(e, "eve")
		d := &deltaClient{t: t, json: c.json}
		back.send(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil","recover":true}}`)
		for i, pub := range back.replies()[0].Subscribe.Publications {
			if got := d.take(pub); got != []string{a, b}[i%2] {
				t.Errorf("recovered %q", got)
			}
		}
		if d.patches != want {
			t.Errorf("%d patches recovered, want %d", d.patches, want)
		}
	})
}

// What JSON can't carry never becomes the base of what follows there.
func TestDeltaPastWhatIsNoJSON(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		r := newRig(t, deltaNamespaces)
		c := &deltaClient{t: t, json: e == session.EncodingJSON}
		p := r.user(e, "ann")
		p.send(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil"}}`)
		p.replies()
		bin := "\xff" + long(0)
		for i, data := range []string{long(1), bin, long(3), long(4)} {
			r.publish("delta:a", data)
			want := i // of patches
			if c.json {
				want = max(0, i-2)
			}
			if data == bin && c.json {
				c.hears(p)
			} else {
				c.hears(p, data)
			}
			if c.patches != want {
				t.Errorf("%d: %d patches, want %d", i, c.patches, want)
			}
		}

		// The same in what a subscription recovers, whose last one is left out.
		r.publish("delta:a", bin)
		back := r.user(e, "eve")
		d := &deltaClient{t: t, json: c.json}
		back.send(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil","recover":true}}`)
		res := back.replies()[0].Subscribe
		var got []string
		for _, pub := range res.Publications {
			got = append(got, d.take(pub))
		}
		want := []string{long(1), bin, long(3), long(4), bin}
		if c.json {
			want = []string{long(1), long(3), long(4)}
		}
		if !res.Delta || !res.Recovered || fmt.Sprint(got) != fmt.Sprint(want) || d.patches != len(want)-1 {
			t.Fatalf("recovered %q with %d patches", got, d.patches)
		}
		for i := range 2 {
			r.publish("delta:a", long(20+i))
			d.hears(back, long(20+i))
		}
		if want := len(want) + 1; d.patches < want-1 || !c.json && d.patches != want {
			t.Errorf("%d patches, want %d", d.patches, want)
		}
	})
}

// A recovery goes on with deltas, and one that was refused begins anew.
func TestDeltaRecovery(t *testing.T) {
	both(t, func(t *testing.T, e session.Encoding) {
		for _, tt := range []struct {
			since, pubs, patches int
		}{
			{4, 3, 4}, // two in the reply, and the live ones
			{6, 1, 2},
			{7, 0, 1},
			{1, 0, 1}, // too late
		} {
			r := newRig(t, deltaNamespaces)
			r.user(session.EncodingJSON, "there").send(`{"id":2,"subscribe":{"channel":"delta:a"}}`)
			for i := range 7 {
				r.publish("delta:a", long(i+1))
			}
			p := r.user(e, "ann")
			c := &deltaClient{t: t, json: e == session.EncodingJSON}
			p.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil","recover":true,"offset":%d}}`, tt.since))
			res := p.replies()[0].Subscribe
			if len(res.Publications) != tt.pubs {
				t.Fatalf("since %d: %v", tt.since, res)
			}
			for i, pub := range res.Publications {
				if got := c.take(pub); got != long(tt.since+i+1) {
					t.Fatalf("since %d: %q", tt.since, got)
				}
			}
			for i := range 2 {
				r.publish("delta:a", long(8+i))
				c.hears(p, long(8+i))
			}
			if c.patches != tt.patches {
				t.Errorf("since %d: %d patches, want %d", tt.since, c.patches, tt.patches)
			}
		}
		// What does not fit is no base either.
		r := newRig(t, deltaNamespaces, func(o *rigOptions) { o.ReplyBytes = 10 })
		r.user(session.EncodingJSON, "there").send(`{"id":2,"subscribe":{"channel":"delta:a"}}`)
		for i := range 7 {
			r.publish("delta:a", long(i+1))
		}
		p := r.user(e, "ann")
		c := &deltaClient{t: t, json: e == session.EncodingJSON}
		p.send(`{"id":2,"subscribe":{"channel":"delta:a","delta":"fossil","recover":true,"offset":6}}`)
		if res := p.replies()[0].Subscribe; res.Recovered || len(res.Publications) != 0 {
			t.Fatalf("%v", res)
		}
		r.publish("delta:a", long(8))
		c.hears(p, long(8))
	})
}

// A server-side subscription has deltas where the connect command asks.
func TestDeltaOnConnect(t *testing.T) {
	r := newRig(t, deltaNamespaces)
	r.verifier.claims["t"] = &auth.Claims{Subject: "ann", Channels: []string{"delta:a", "delta:b"}}
	p := r.open(session.EncodingJSON, nil)
	p.send(`{"id":1,"connect":{"token":"t","subs":{"delta:a":{"delta":"fossil"}}}}`)
	if c := p.connected(); !c.Subs["delta:a"].Delta || c.Subs["delta:b"].Delta {
		t.Errorf("%v", c.Subs)
	}
	c := &deltaClient{t: t, json: true}
	for i := range 2 {
		r.publish("delta:a", long(i))
		c.hears(p, long(i))
	}
	if c.patches != 1 {
		t.Error("no patch")
	}
}

func TestJSONString(t *testing.T) {
	for _, data := range []string{"", "a", `{"a":"<b>&\u2028"}`, "äöü\u2028\u2029\x00\n\"\\", strings.Repeat("x", 1000)} {
		got := jsonString([]byte(data))
		var back string
		if err := json.Unmarshal(got, &back); err != nil || back != data || strings.ContainsAny(string(got), "\n\r") || !protocol.ValidPayload(got, protocol.JSON) {
			t.Errorf("%q: %q, %v", data, got, err)
		}
	}
}
