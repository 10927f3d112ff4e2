package topic

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"perch/session"
)

// A wire with a Writer gets each publication of a positioned subscription by it, with
// the place that it brings the session to; all else is written as to other wires.
func TestWriters(t *testing.T) {
	var got []string
	topics := newTopics(t, Options{
		Namespaces: []NamespaceOptions{{Name: "kept", HistorySize: 10, HistoryTTL: time.Hour}},
		Writers: Writers{session.EncodingProtobuf: func(s *session.Session, name string, at Position, frame []byte) {
			got = append(got, fmt.Sprintf("%s %d %s", name, at.Offset, frame))
		}},
	})
	l := newFakeLoop(t, 0)
	p, other := newFakePeer(topics, l, session.EncodingProtobuf), newFakePeer(topics, l, session.EncodingJSON)
	at := func(p *fakePeer) (out string) {
		topics.EachPosition(&p.s, func(name string, at Position) { out += fmt.Sprintf("%s=%d ", name, at.Offset) })
		return out
	}
	for _, p := range []*fakePeer{p, other} {
		mustSubscribe(t, topics, p, "plain")
		for _, name := range []string{"kept:a", "kept:b"} {
			if err := topics.Subscribe(&p.s, name, SubscribeOptions{Position: true}); err != nil {
				t.Fatal(err)
			}
		}
		if got := at(p); got != "" {
			t.Errorf("positions %s before they are known", got)
		}
		for _, name := range []string{"kept:a", "kept:b"} {
			topics.Recover(&p.s, name, RecoverRequest{}, func(*session.Session, Recovered, error) {})
			topics.Live(&p.s, name)
		}
	}
	for _, name := range []string{"kept:a", "plain", "kept:b", "kept:a", "kept:a"} {
		if err := publish(topics, name, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := publishAs(topics, "kept:b", "y", PublishRequest{SkipHistory: true}); err != nil {
		t.Fatal(err)
	}
	l.drain()
	want := []string{"kept:a 1 px;", "kept:a 2 px;", "kept:a 3 px;", "kept:b 1 px;", "kept:b 0 py;"}
	// Each topic has a list of its own, and the loop goes from one to the other.
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("written %q, want %q", got, want)
	}
	if p.text() != "px;" || len(other.frames) >= 6 {
		t.Errorf("frames %q, and %q to another wire", p.text(), other.text())
	}
	if at(p) != "kept:a=3 kept:b=1 " || at(other) != at(p) {
		t.Errorf("they stand at %s, %s", at(p), at(other))
	}
	for _, p := range []*fakePeer{p, other} {
		topics.Unsubscribe(&p.s, "kept:a")
		if at(p) != "kept:b=1 " {
			t.Errorf("then at %s", at(p))
		}
		topics.Leave(&p.s)
		if at(p) != "" {
			t.Errorf("at last at %s", at(p))
		}
	}
	checkQuiet(t, topics, l)
}
