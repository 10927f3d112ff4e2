package topic

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"perch/session"
)

func TestBatch(t *testing.T) {
	topics := newTopics(t, Options{})
	l := newFakeLoop(t, 0)
	first := newFakePeer(topics, l, session.EncodingJSON)
	second := newFakePeer(topics, l, session.EncodingProtobuf)
	mustSubscribe(t, topics, first, "a")
	mustSubscribe(t, topics, second, "a")
	for i := range 5 {
		mustPublish(t, topics, "a", fmt.Sprint(i))
	}
	l.drain()
	if got := first.text(); got != "j0;j1;j2;j3;j4;" {
		t.Errorf("posted together, written as %q", got)
	}
	if got := second.text(); got != "p0;p1;p2;p3;p4;" {
		t.Errorf("posted together, written as %q", got)
	}
	if c := topics.Counts(); c.Encodings != 10 || c.Deliveries != 10 {
		t.Errorf("counts %+v", c)
	}
	checkQuiet(t, topics, l)
}

// A publication alone goes out as the encoder made it, without a copy: all
// subscribers of all loops share it.
func TestSharedFrame(t *testing.T) {
	topics := newTopics(t, Options{})
	loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
	peers := append(fakePeers(topics, loops[0], 2), fakePeers(topics, loops[1], 2)...)
	for _, p := range peers {
		mustSubscribe(t, topics, p, "a")
	}
	mustPublish(t, topics, "a", "1")
	loops[0].drain()
	loops[1].drain()
	for i, p := range peers {
		if len(p.frames) != 1 || &p.frames[0][0] != &peers[0].frames[0][0] {
			t.Errorf("peer %d has a frame of its own", i)
		}
	}
}

func TestRoundBytes(t *testing.T) {
	// What a frame takes beside the data of a publication to the topic "a".
	frame := (&delivery{Delivery: Delivery{Publication: &Publication{}}, name: "a"}).frameSize()
	part := roundBytes/2 - frame
	for _, tt := range []struct {
		name   string
		sizes  []int
		writes []int // publications in each
	}{
		{"just fits", []int{part, part}, []int{2}},
		{"one byte too many", []int{part, part + 1}, []int{1, 1}},
		{"one over the bound alone", []int{roundBytes + 1, 1, 1}, []int{1, 2}},
		{"a small one before", []int{1, roundBytes, 1}, []int{1, 1, 1}},
		{"many", []int{part, part, part, part, part}, []int{2, 2, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topics := newTopics(t, Options{})
			l := newFakeLoop(t, 0)
			p := newFakePeer(topics, l, session.EncodingJSON)
			mustSubscribe(t, topics, p, "a")
			want := ""
			for i, n := range tt.sizes {
				data := strings.Repeat(string(rune('a'+i)), n)
				want += "j" + data + ";"
				mustPublish(t, topics, "a", data)
			}
			l.drain()
			var writes []int
			got := ""
			for _, f := range p.frames {
				writes = append(writes, strings.Count(string(f), ";"))
				got += string(f)
			}
			if !slices.Equal(writes, tt.writes) || got != want {
				t.Errorf("writes of %v publications, want %v; in order: %v", writes, tt.writes, got == want)
			}
			checkQuiet(t, topics, l)
		})
	}
}

func TestEncoderError(t *testing.T) {
	encoders := plainEncoders()
	plain := encoders[session.EncodingProtobuf]
	calls := 0
	encoders[session.EncodingProtobuf] = func(name string, p *Publication, form Form, data []byte) ([]byte, error) {
		calls++
		if string(p.Data) == "bad" {
			return []byte("never sent"), errModelFormat
		}
		return plain(name, p, form, data)
	}
	for _, tt := range []struct {
		name         string
		publications []string
		json, proto  string
	}{
		{"alone", []string{"bad"}, "jbad;", ""},
		{"in a batch", []string{"1", "bad", "2"}, "j1;jbad;j2;", "p1;p2;"},
		{"first", []string{"bad", "1"}, "jbad;j1;", "p1;"},
		{"nothing but", []string{"bad", "bad"}, "jbad;jbad;", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls = 0
			topics := newTopics(t, Options{Encoders: encoders})
			loops := []*fakeLoop{newFakeLoop(t, 0), newFakeLoop(t, 1)}
			var peers []*fakePeer
			for _, l := range loops {
				for _, e := range []session.Encoding{session.EncodingJSON, session.EncodingProtobuf} {
					p := newFakePeer(topics, l, e)
					mustSubscribe(t, topics, p, "a")
					peers = append(peers, p)
				}
			}
			bad := uint64(0)
			for _, data := range tt.publications {
				mustPublish(t, topics, "a", data)
				if data == "bad" {
					bad++
				}
			}
			for _, l := range loops {
				l.drain()
			}
			for i, p := range peers {
				if want := []string{tt.json, tt.proto}[i%2]; p.text() != want {
					t.Errorf("peer %d got %q, want %q", i, p.text(), want)
				}
			}
			if c := topics.Counts(); c.EncodeErrors != bad || calls != len(tt.publications) {
				t.Errorf("%d errors counted, %d calls", c.EncodeErrors, calls)
			}
		})
	}
}

// Loops that need a frame at the same moment make it once.
func TestFrameIsMadeOnce(t *testing.T) {
	const callers = 8
	var calls atomic.Int32
	var arrived sync.WaitGroup
	slow := func(_ string, p *Publication, _ Form, _ []byte) ([]byte, error) {
		calls.Add(1)
		arrived.Wait() // the others have come meanwhile
		return p.Data, nil
	}
	topics := newTopics(t, Options{Encoders: Encoders{session.EncodingJSON: slow}})
	for range 10 {
		calls.Store(0)
		d := &delivery{Delivery: Delivery{Publication: &Publication{Data: []byte("1")}}, topics: topics}
		var loops sync.WaitGroup
		arrived.Add(callers)
		for range callers {
			loops.Go(func() {
				arrived.Done()
				if got := d.frame(session.EncodingJSON, FormPlain); string(got) != "1" {
					t.Errorf("frame %q", got)
				}
			})
		}
		loops.Wait()
		if n := calls.Load(); n != 1 {
			t.Fatalf("made %d times", n)
		}
	}
}
