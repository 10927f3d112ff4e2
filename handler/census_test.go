package handler

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"perch/session"
	"perch/topic"
)

// fakePeers answers as others would, at once unless hold is set.
type fakePeers struct {
	alone bool
	asked []PeerQuestion
	say   func(q PeerQuestion) ([]PeerAnswer, error)
	hold  bool
	held  []func()
}

func (p *fakePeers) Alone() bool { return p.alone }

func (p *fakePeers) Ask(q PeerQuestion, done func([]PeerAnswer, error)) {
	p.asked = append(p.asked, q)
	answer := func() { done(p.say(q)) }
	if p.hold {
		p.held = append(p.held, answer)
		return
	}
	answer()
}

type fakeReader []topic.ClientInfo

func (r fakeReader) Presence(_ string, done func([]topic.ClientInfo, error)) { done(r, nil) }

// crowd is n clients from the first on, each user with two of them.
func crowd(first, n int) []topic.ClientInfo {
	all := make([]topic.ClientInfo, n)
	for i := range all {
		all[i] = topic.ClientInfo{Client: fmt.Sprintf("client-%d", first+i), User: fmt.Sprintf("user-%d", (first+i)/2)}
	}
	return all
}

// answering makes nodes out of crowds.
func answering(t *testing.T, crowds ...[]topic.ClientInfo) func(PeerQuestion) ([]PeerAnswer, error) {
	return func(q PeerQuestion) (out []PeerAnswer, _ error) {
		for i, all := range crowds {
			c := tallyOf(all)
			data := c.encode()
			if q.Method == peerPresence {
				var err error
				if data, err = encodePresence(all); err != nil {
					t.Error(err)
				}
			}
			out = append(out, PeerAnswer{Node: session.Node(i + 1), Data: data})
		}
		return out, nil
	}
}

func census2(t *testing.T, here []topic.ClientInfo, p Peers, method string) (c *census, err error) {
	t.Helper()
	called := 0
	takeCensus(fakeReader(here), p, method, "a", func(got *census, e error) {
		called++
		c, err = got, e
	})
	if called != 1 {
		t.Fatalf("called %d times", called)
	}
	return c, err
}

func TestCensus(t *testing.T) {
	full := []topic.ClientInfo{{User: "u", Client: "full", ConnInfo: []byte{0xff, 0}, ChanInfo: []byte(`{"a":1}`)}}
	p := &fakePeers{say: answering(t, crowd(8, 10), nil, full)}
	c, err := census2(t, crowd(0, 10), p, peerPresence)
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.list()
	if err != nil || len(all) != 19 { // 8 and 9 stand in both
		t.Fatalf("%d, %v", len(all), err)
	}
	seen := map[string]topic.ClientInfo{}
	for _, i := range all {
		seen[i.Client] = i
	}
	if got := seen["full"]; len(seen) != 19 || string(got.ConnInfo) != "\xff\x00" || string(got.ChanInfo) != `{"a":1}` || got.User != "u" {
		t.Errorf("%v", slices.Sorted(maps.Keys(seen)))
	}
	if c, err = census2(t, crowd(0, 10), p, peerPresenceStats); err != nil {
		t.Fatal(err)
	}
	if clients, users, err := c.stats(); err != nil || clients != 19 || users != 10 {
		t.Errorf("%d clients, %d users, %v", clients, users, err)
	}
	if q := p.asked[0]; q.Method != peerPresence || string(q.Params) != "a" || !q.Shared || q.Node != 0 {
		t.Errorf("%+v", q)
	}
}

func TestCensusErrors(t *testing.T) {
	for name, say := range map[string]func(PeerQuestion) ([]PeerAnswer, error){
		"not asked":   func(PeerQuestion) ([]PeerAnswer, error) { return nil, ErrPeersSilent },
		"one is mute": func(PeerQuestion) ([]PeerAnswer, error) { return []PeerAnswer{{}, {Err: ErrPeersSilent}}, nil },
	} {
		if _, err := census2(t, nil, &fakePeers{say: say}, peerPresence); !errors.Is(err, ErrPeersSilent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := &census{others: [][]byte{{0xff}}}
	if _, err := bad.list(); err == nil {
		t.Error("presence of garbage")
	}
	if _, _, err := bad.stats(); !errors.Is(err, errTally) {
		t.Errorf("%v", err)
	}
	if c, err := census2(t, crowd(0, 2), &fakePeers{alone: true}, peerPresence); err != nil || len(c.here) != 2 {
		t.Errorf("alone: %v", err)
	}
}

// TestCensusLarge: beyond what nodes tell one another, numbers are estimates.
func TestCensusLarge(t *testing.T) {
	const n = 8 * sketchMost
	for name, c := range map[string]struct {
		here, there    []topic.ClientInfo
		clients, users int
		exact          bool
	}{
		"apart":    {crowd(0, n), crowd(n, n), 2 * n, n, false},
		"the same": {crowd(0, n), crowd(0, n), n, n / 2, false},
		"half":     {crowd(0, n), crowd(n/2, n), 3 * n / 2, 3 * n / 4, false},
		"one few":  {crowd(0, n), crowd(n, 10), n + 10, n/2 + 5, false},
		"few":      {crowd(0, sketchMost), crowd(sketchMost/2, sketchMost), 3 * sketchMost / 2, 3 * sketchMost / 4, true},
	} {
		p := &fakePeers{say: answering(t, c.there)}
		got, err := census2(t, c.here, p, peerPresenceStats)
		if err != nil {
			t.Fatal(err)
		}
		clients, users, err := got.stats()
		if err != nil {
			t.Fatal(err)
		}
		off := func(got, want int) float64 { return math.Abs(float64(got-want)) / float64(want) }
		// Four standard errors.
		if most := 4 / math.Sqrt(sketchMost); off(clients, c.clients) > most || off(users, c.users) > most {
			t.Errorf("%s: %d clients of %d, %d users of %d", name, clients, c.clients, users, c.users)
		}
		if c.exact && (clients != c.clients || users != c.users) {
			t.Errorf("%s: %d clients of %d, %d users of %d", name, clients, c.clients, users, c.users)
		}
		if c.exact && len(got.others[0]) > 16*sketchMost+20 {
			t.Errorf("%d bytes", len(got.others[0]))
		}
	}
}

func FuzzTally(f *testing.F) {
	few := tallyOf(crowd(0, 3))
	f.Add(few.encode())
	f.Add([]byte{})
	f.Add([]byte{1, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeTally(b)
		if err != nil {
			return
		}
		for _, of := range []func(*tally) *sketch{func(t *tally) *sketch { return &t.clients }, func(t *tally) *sketch { return &t.users }} {
			if n := union([]tally{got, few}, of); n < 0 {
				t.Fatalf("%d", n)
			}
		}
		if again, err := decodeTally(got.encode()); err != nil || !slices.Equal(again.users.hashes, got.users.hashes) || again.clients.count != got.clients.count {
			t.Fatalf("%v", err)
		}
	})
}

func TestFarNews(t *testing.T) {
	news := []topic.News{
		{Client: topic.ClientInfo{User: "ann", Client: "1", ConnInfo: []byte("\xff")}},
		{Left: true, Client: topic.ClientInfo{Client: "2", ChanInfo: []byte(`[1]`)}},
		{Left: true, Client: topic.ClientInfo{Client: "3", ChanInfo: make([]byte, newsPart)}},
	}
	parts, err := EncodeNews(news)
	if err != nil || len(parts) != 2 {
		t.Fatalf("%d parts, %v", len(parts), err)
	}
	var got []topic.News
	for _, p := range parts {
		some, err := DecodeNews(p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, some...)
	}
	if fmt.Sprint(got) != fmt.Sprint(news) {
		t.Errorf("%v", got)
	}
}

func FuzzFarNews(f *testing.F) {
	parts, err := EncodeNews([]topic.News{{Client: topic.ClientInfo{User: "ann", Client: "1"}}, {Left: true, Client: topic.ClientInfo{Client: "2"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(parts[0])
	f.Add([]byte{3, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		news, err := DecodeNews(b)
		if err != nil {
			return
		}
		parts, err := EncodeNews(news)
		if err != nil {
			t.Fatal(err)
		}
		var again []topic.News
		for _, p := range parts {
			some, err := DecodeNews(p)
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, some...)
		}
		if fmt.Sprint(again) != fmt.Sprint(news) {
			t.Fatalf("%v\n%v", again, news)
		}
	})
}

// FuzzCensus: whatever a node answers, it is an error or a list.
func FuzzCensus(f *testing.F) {
	good, err := encodePresence(crowd(0, 2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0x0a, 0x03, 0x0a, 0x01, 'a'}) // a client of which nothing is said
	f.Add([]byte{0x0a, 0x00})
	t := tallyOf(crowd(0, 3))
	f.Add(t.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &census{here: crowd(0, 1), others: [][]byte{b}}
		_, _ = c.list()
		_, _, _ = c.stats()
		_, _ = DecodeNews(b)
	})
}
