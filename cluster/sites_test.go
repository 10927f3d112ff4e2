package cluster

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"perch/topic"
)

// A connection of the hub's that breaks while it answers loses what is in its buffer,
// and the rest goes out on the next one. Where something of an answer is lost, the
// site asks for all of it again.
func TestLeafTornAnswer(t *testing.T) {
	const all = 5
	for name, c := range map[string]struct {
		from, to int    // what of the first answer comes
		rows     string // how many its end speaks of
		times    int64  // also of those after it
	}{
		"the first ones lost":      {3, all, "5", 1},
		"the last ones lost":       {1, 3, "5", 1},
		"all lost":                 {1, 0, "5", 1},
		"more than were sent":      {1, all, "4", 1},
		"an end that has no count": {3, all, "", 1},
		"again and again":          {3, all, "5", 4},
	} {
		t.Run(name, func(t *testing.T) {
			port := freePort(t)
			srv := hubServer(t, t.TempDir(), -1, port)
			r := &rig{t: t, nats: srv, port: port, ns: []topic.NamespaceOptions{long}}
			nc, err := nats.Connect(srv.ClientURL(), nats.NoEcho())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			var asked atomic.Int64
			answer := func(m *nats.Msg) {
				var q readQuestion
				if err := json.Unmarshal(m.Data, &q); err != nil {
					t.Error(err)
				}
				from, to := int(q.From), all
				rows := strconv.Itoa(max(to-from+1, 0))
				if asked.Add(1) <= c.times {
					from, to, rows = c.from, c.to, c.rows
				}
				for i := from; i <= to; i++ {
					data := encode("news:x", &topic.Publication{Data: []byte(number("h", i))}, &longStored)
					_ = nc.PublishMsg(&nats.Msg{Subject: m.Reply, Data: data, Header: nats.Header{headerSequence: {strconv.Itoa(i)}}})
				}
				end := nats.Header{headerState: {stateEnd}, headerEpoch: {"one"}, headerBegan: {"1"}, headerMore: {"false"}}
				if rows != "" {
					end[headerRows] = []string{rows}
				}
				_ = nc.PublishMsg(&nats.Msg{Subject: m.Reply, Header: end})
			}
			if _, err := nc.QueueSubscribe("perch."+subjectRead+".*", sitesGroup, answer); err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			s := r.site("berlin", r.wan(), LeafOptions{})
			s.waitUp(true)
			until(t, "more than one answer", func() bool { return asked.Load() > c.times })
			want := []string{"h1", "h2", "h3", "h4", "h5"}
			until(t, "all at the site", func() bool { return len(s.all("news:x")) >= all || asked.Load() > c.times+1 })
			if have := s.all("news:x"); !slices.Equal(have, want) {
				t.Errorf("the site has %v", have)
			}
		})
	}
}

// A publication that the hub could store, but can't send with what an answer adds,
// keeps a site from itself alone, not from what is behind it.
func TestLeafTooLargeToRead(t *testing.T) {
	r := newRig(t)
	most := maxPayload - len(encode("news:x", &topic.Publication{}, &longStored))
	for _, data := range []string{"h1", strings.Repeat("x", most), "h2"} {
		r.hub.put("news:x", data)
	}
	s := r.site("berlin", r.wan(), LeafOptions{})
	until(t, "what is behind it at the site", func() bool { return slices.Equal(s.all("news:x"), []string{"h1", "h2"}) })
	if r.hub.unsent.Load() == 0 {
		t.Error("not counted")
	}
}

// What of an answer stands behind a message that can't be written is not written:
// the end of it least of all.
func TestTornMessages(t *testing.T) {
	srv := natsServer(t)
	l := linkTo(t, Options{URL: srv.ClientURL()})
	hears, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer hears.Close()
	sub, err := hears.SubscribeSync("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := hears.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := l.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	var failed atomic.Int64
	s := newSender(l.nc, nil, 1<<30, func(*message, error) { failed.Add(1) })
	defer s.close()
	var torn, whole atomic.Bool
	large := make([]byte, l.nc.MaxPayload()+1)
	for _, m := range []*message{
		{data: []byte("first"), torn: &torn}, {data: large, torn: &torn}, {data: []byte("end"), torn: &torn},
		{data: []byte("alone")}, {data: []byte("other"), torn: &whole},
	} {
		m.subject = "x"
		if !s.send(m) {
			t.Fatal("no room")
		}
	}
	var have []string
	for !slices.Contains(have, "other") {
		m, err := sub.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(have, err)
		}
		have = append(have, string(m.Data))
	}
	if got := strings.Join(have, " "); got != "first alone other" || failed.Load() != 1 {
		t.Errorf("%s, %d failed", got, failed.Load())
	}
	until(t, "no room taken", func() bool { return s.queued() == 0 })
}
