package topic

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"

	fdelta "github.com/shadowspore/fossil-delta"

	"perch/session"
)

var deltaNamespace = NamespaceOptions{AllowedDeltaTypes: []string{DeltaFossil}, HistorySize: 10, HistoryTTL: time.Minute}

// document is a payload of which a later one differs little.
func document(n int) string { return strings.Repeat("0123456789abcdef,", 8) + fmt.Sprint(n) }

// applying is what a client does with what it gets.
type applying struct {
	t    testing.TB
	base []byte
	got  []string
	// kinds says what came: '.' plain, '=' whole, '~' a patch.
	kinds string
}

// take takes a write of plainEncoders, whose payloads hold no ';' — a patch ends
// with one, which it may hold anywhere, so that a patch is found by applying.
func (a *applying) take(frame []byte) {
	for len(frame) > 0 {
		kind := frame[1]
		switch kind {
		case '=':
			data, rest, _ := bytes.Cut(frame[2:], []byte(";"))
			a.base, frame = data, rest
		case '~':
			end := -1
			for i, c := range frame {
				if c != ';' || i < 2 || i+1 < len(frame) && frame[i+1] != ';' {
					continue
				}
				if out, err := fdelta.Apply(a.base, frame[2:i+1]); err == nil {
					a.base, end = out, i+2
					break
				}
			}
			if end < 0 {
				a.t.Fatalf("a patch that does not fit: %q to %q", frame, a.base)
			}
			frame = frame[end:]
		default:
			data, rest, _ := bytes.Cut(frame[1:], []byte(";"))
			a.base, frame, kind = data, rest, '.'
		}
		a.got = append(a.got, string(a.base))
		a.kinds += string(kind)
	}
}

func newApplying(t testing.TB, topics *Topics, l *fakeLoop, e session.Encoding) (*fakePeer, *applying) {
	p, a := newFakePeer(topics, l, e), &applying{t: t}
	p.onWrite = a.take
	return p, a
}

func TestDelta(t *testing.T) {
	type step struct {
		data  string
		delta bool
	}
	d := func(n int) step { return step{document(n), true} }
	long := step{strings.Repeat("x", deltaMost) + document(1), true}
	for _, tt := range []struct {
		name  string
		steps []step
		kinds string
	}{
		{"the first is whole", []step{d(1), d(2), d(3)}, "=~~"},
		{"without leave of the publisher", []step{d(1), {document(2), false}, d(3)}, "==~"},
		{"nothing in common", []step{d(1), {strings.Repeat("z", 40), true}, d(3)}, "==="},
		{"too small for one", []step{{"1", true}, {"2", true}}, "=="},
		{"the same again", []step{d(1), d(1)}, "=~"},
		{"empty", []step{d(1), {"", true}, d(2)}, "==="},
		{"too long for one", []step{d(1), long, long, d(2), d(3)}, "====~"},
	} {
		for _, together := range []bool{false, true} {
			for _, position := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, together %v, position %v", tt.name, together, position), func(t *testing.T) {
					r := newRecoverRig(t, false, Options{Default: deltaNamespace})
					loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
					var with []*applying
					var want []string
					for i := range 6 {
						p, a := newApplying(t, r.Topics, loops[i%2], session.EncodingJSON+session.Encoding(i/2%2))
						o := SubscribeOptions{Delta: true}
						if position {
							r.live(p, o)
						} else if err := r.Subscribe(&p.s, "a", o); err != nil {
							t.Fatal(err)
						}
						with = append(with, a)
					}
					plain, without := newApplying(t, r.Topics, loops[0], session.EncodingJSON)
					mustSubscribe(t, r.Topics, plain, "a")
					drain := func() {
						for _, l := range loops {
							l.drain()
						}
					}
					for _, s := range tt.steps {
						if _, err := publishAs(r.Topics, "a", s.data, PublishRequest{Delta: s.delta}); err != nil {
							t.Fatal(err)
						}
						if want = append(want, s.data); !together {
							drain()
						}
					}
					drain()
					for i, a := range append(with, without) {
						kinds := tt.kinds
						if a == without {
							kinds = strings.Repeat(".", len(tt.kinds))
						}
						if a.kinds != kinds || strings.Join(a.got, "|") != strings.Join(want, "|") {
							t.Errorf("peer %d: kinds %s, want %s; the payloads are right: %v", i, a.kinds, kinds,
								strings.Join(a.got, "|") == strings.Join(want, "|"))
						}
					}
					// Made once for each format, and once more in JSON for who has no deltas.
					if c := r.Counts(); c.Encodings != uint64(3*len(tt.kinds)) {
						t.Errorf("%d encodings of %d publications", c.Encodings, len(tt.kinds))
					}
					checkQuiet(t, r.Topics, loops...)
				})
			}
		}
	}
}

// Who comes later gets the first whole, and those that were there a patch; each
// form is made once a format.
func TestDeltaForLatecomers(t *testing.T) {
	r := newRecoverRig(t, false, Options{Default: deltaNamespace})
	l := newFakeLoop(t, 0)
	var all []*applying
	come := func(n int) {
		for range n {
			p, a := newApplying(t, r.Topics, l, session.EncodingJSON)
			r.live(p, SubscribeOptions{Delta: true})
			all = append(all, a)
		}
	}
	publish := func(n int) {
		if _, err := publishAs(r.Topics, "a", document(n), PublishRequest{Delta: true}); err != nil {
			t.Fatal(err)
		}
	}
	come(3)
	publish(1)
	come(3)
	publish(2)
	publish(3)
	l.drain()
	for i, a := range all {
		want := "=~~"
		if i >= 3 {
			want = "=~"
		}
		if a.kinds != want || a.got[len(a.got)-1] != document(3) {
			t.Errorf("peer %d: %s", i, a.kinds)
		}
	}
	if c := r.Counts(); c.Encodings != 1+2+1 {
		t.Errorf("%d encodings", c.Encodings)
	}
}

// A publication that a format can't carry is no base for it.
func TestDeltaBehindWhatCantBeSaid(t *testing.T) {
	for _, together := range []bool{false, true} {
		encoders := plainEncoders()
		plain := encoders[session.EncodingJSON]
		encoders[session.EncodingJSON] = func(name string, p *Publication, form Form, data []byte) ([]byte, error) {
			if strings.HasPrefix(string(p.Data), "!") {
				return nil, errModelFormat
			}
			return plain(name, p, form, data)
		}
		r := newRecoverRig(t, false, Options{Default: deltaNamespace, Encoders: encoders})
		l := newFakeLoop(t, 0)
		p, a := newApplying(t, r.Topics, l, session.EncodingJSON)
		q, b := newApplying(t, r.Topics, l, session.EncodingProtobuf)
		r.live(p, SubscribeOptions{Delta: true})
		r.live(q, SubscribeOptions{Delta: true})
		for _, data := range []string{document(1), document(2), "!" + document(3), document(4), document(5)} {
			if _, err := publishAs(r.Topics, "a", data, PublishRequest{Delta: true}); err != nil {
				t.Fatal(err)
			}
			if !together {
				l.drain()
			}
		}
		l.drain()
		if a.kinds != "=~=~" || a.got[3] != document(5) || len(r.lost) > 0 {
			t.Errorf("together %v: %s, lost %v", together, a.kinds, r.lost)
		}
		if b.kinds != "=~~~~" || b.got[4] != document(5) {
			t.Errorf("together %v, in the other format: %s", together, b.kinds)
		}
	}
}

// A recovery ends with a base, save where the client says that it has another.
func TestDeltaBehindRecovery(t *testing.T) {
	for _, tt := range []struct {
		name   string
		since  uint64
		rebase func(r *recoverRig, p *fakePeer)
		kinds  string
	}{
		{"what was missed", 1, nil, "~~"},
		{"nothing missed", 3, nil, "=~"},
		{"not all of it could be said", 1, func(r *recoverRig, p *fakePeer) { r.Rebase(&p.s, "a", nil) }, "=~"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRecoverRig(t, false, Options{Default: deltaNamespace})
			l := newFakeLoop(t, 0)
			publish := func(n int) (at Position) {
				at, err := publishAs(r.Topics, "a", document(n), PublishRequest{Delta: true})
				if err != nil {
					t.Fatal(err)
				}
				return at
			}
			keep := newFakePeer(r.Topics, l, session.EncodingJSON)
			// The topic remembers what was last, for a subscriber that has deltas.
			if err := r.Subscribe(&keep.s, "a", SubscribeOptions{Delta: true}); err != nil {
				t.Fatal(err)
			}
			var at Position
			for i := range 3 {
				at = publish(i)
			}
			p, a := newApplying(t, r.Topics, l, session.EncodingJSON)
			got := r.recover(p, SubscribeOptions{Delta: true}, since(tt.since)(at.Epoch))
			if n := len(got.Publications); n > 0 {
				a.base = got.Publications[n-1].Data
			}
			publish(3)
			if tt.rebase != nil {
				tt.rebase(r, p)
			}
			r.Live(&p.s, "a")
			l.drain()
			publish(4)
			l.drain()
			if a.kinds != tt.kinds || a.got[0] != document(3) || a.got[1] != document(4) {
				t.Errorf("%s, want %s", a.kinds, tt.kinds)
			}
			checkQuiet(t, r.Topics, l)
		})
	}
}

// Nothing is remembered for deltas where there are none.
func TestNoDeltaNoBase(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	p := newFakePeer(topics, l, session.EncodingJSON)
	mustSubscribe(t, topics, p, "a")
	mustPublish(t, topics, "a", document(1))
	l.drain()
	if topics.shard("a").topics["a"].rare != nil {
		t.Error("the topic keeps its last publication")
	}
}

func TestPatch(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 4))
	made := 0
	for range 2000 {
		from := make([]byte, rng.IntN(2000))
		for i := range from {
			from[i] = byte('a' + rng.IntN(1+rng.IntN(26)))
		}
		to := bytes.Clone(from)
		for range rng.IntN(4) {
			at := rng.IntN(len(to) + 1)
			switch cut := rng.IntN(len(to) - at + 1); rng.IntN(3) {
			case 0:
				to = append(to[:at:at], to[at+cut:]...)
			case 1:
				to = append(to[:at:at], append([]byte(fmt.Sprint(rng.Int())), to[at:]...)...)
			default:
				to = append(to, from...)
			}
		}
		p := Patch(from, to)
		if p == nil {
			continue
		}
		made++
		if len(p) >= len(to) {
			t.Fatalf("%d bytes instead of %d", len(p), len(to))
		}
		if got, err := fdelta.Apply(from, p); err != nil || !bytes.Equal(got, to) {
			t.Fatalf("%v: %q is not %q", err, got, to)
		}
	}
	if made < 500 {
		t.Errorf("%d patches", made)
	}
}

// A patch is made once for its base, live and for those who recover, and does
// not keep what it is a patch of.
func TestPatchIsMadeOnce(t *testing.T) {
	r := newRecoverRig(t, false, Options{Default: deltaNamespace})
	l := newFakeLoop(t, 0)
	p, _ := newApplying(t, r.Topics, l, session.EncodingJSON)
	r.live(p, SubscribeOptions{Delta: true})
	for i := range 2 {
		if _, err := publishAs(r.Topics, "a", document(i), PublishRequest{Delta: true}); err != nil {
			t.Fatal(err)
		}
	}
	l.drain()
	r.History(r.rules.Load().fallback, "a", allOf, func(all []*Publication, _ Position, _ error) {
		live := all[1].patch.Load()
		if live == nil || live.data == nil {
			t.Fatal("no patch was made")
		}
		if n := testing.AllocsPerRun(10, func() { all[1].Patch(all[0]) }); n > 0 || &all[1].Patch(all[0])[0] != &live.data[0] {
			t.Errorf("made again, %v allocations", n)
		}
		if other := all[1].Patch(&Publication{Data: []byte("something else")}); other != nil {
			t.Errorf("of something else: %q", other)
		}
	})
	base := &Publication{Data: []byte(document(7))}
	gone := weak.Make(base)
	next := &Publication{Data: []byte(document(8))}
	next.Patch(base)
	base = nil
	runtime.GC()
	if gone.Value() != nil {
		t.Error("a patch holds its base")
	}
	runtime.KeepAlive(next)
}

func FuzzPatch(f *testing.F) {
	f.Add([]byte(document(1)), []byte(document(2)))
	f.Add([]byte{}, []byte{})
	f.Add(bytes.Repeat([]byte("a"), 100), bytes.Repeat([]byte("a"), 99))
	f.Fuzz(func(t *testing.T, from, to []byte) {
		p := Patch(from, to)
		if p == nil {
			return
		}
		if got, err := fdelta.Apply(from, p); err != nil || !bytes.Equal(got, to) {
			t.Errorf("%v: %q is not %q", err, got, to)
		}
	})
}

// What is kept for deltas goes with the last subscriber that has them, and no
// delta is made of what is long: it is not kept either.
func TestDeltaBaseGoes(t *testing.T) {
	r := newRecoverRig(t, false, Options{Default: deltaNamespace})
	l := newFakeLoop(t, 0)
	stay := newFakePeer(r.Topics, l, session.EncodingJSON)
	mustSubscribe(t, r.Topics, stay, "a")
	last := func(data string) *Publication {
		if _, err := publishAs(r.Topics, "a", data, PublishRequest{Delta: true}); err != nil {
			t.Fatal(err)
		}
		l.drain()
		if rare := r.shard("a").topics["a"].rare; rare != nil {
			return rare.last
		}
		return nil
	}
	if last(document(1)) != nil {
		t.Error("kept for nobody")
	}
	p := newFakePeer(r.Topics, l, session.EncodingJSON)
	if err := r.Subscribe(&p.s, "a", SubscribeOptions{Delta: true}); err != nil {
		t.Fatal(err)
	}
	if last(document(2)) == nil {
		t.Error("not kept")
	}
	if last(strings.Repeat("x", deltaMost+1)) != nil {
		t.Error("kept, though no delta is made of it")
	}
	if last(document(3)) == nil {
		t.Error("not kept behind a long one")
	}
	p.s.Close(session.ReasonNormal)
	if r.shard("a").topics["a"].rare.last != nil {
		t.Error("kept when its subscriber has gone")
	}
}
