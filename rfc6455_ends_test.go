package perch_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
)

// TestRFC6455Limits: section 10.4. The limit is of the message, and known at the
// header that goes beyond it, so the answer comes before the payload.
func TestRFC6455Limits(t *testing.T) {
	const limit = 2000
	s := start(t, func(o *perch.Options) {
		o.Echo, o.Insecure = true, true
		o.WebSocket.MessageSize = limit
	})
	// at is a command of n bytes; JSON may have blanks around it.
	json := dialects[1]
	p, _ := json.put("x")
	at := func(n int) []byte { return append(bytes.Clone(p), strings.Repeat(" ", n-len(p))...) }
	// cut is a message in fragments of the given sizes.
	cut := func(b []byte, sizes ...int) (fs []testkit.Frame) {
		op := testkit.OpText
		for _, n := range sizes {
			fs = append(fs, testkit.Client(op, b[:n]).More())
			b, op = b[n:], testkit.OpContinuation
		}
		fs[len(fs)-1].Fin = true
		return fs
	}
	good, big := replies(json.answer("x")), replies(gotClose(1009))
	declared := func(op byte, n uint64) testkit.Frame { return testkit.Client(op, nil).Declare(n) }
	for _, c := range []wireCase{
		{"10.4", "a byte below", frames(testkit.Client(testkit.OpText, at(limit-1))), good},
		{"10.4", "at the limit", frames(testkit.Client(testkit.OpText, at(limit))), good},
		{"10.4", "twice at the limit", frames(testkit.Client(testkit.OpText, at(limit)), testkit.Client(testkit.OpText, at(limit))), append(good, good...)},
		{"10.4", "a byte above", frames(testkit.Client(testkit.OpText, at(limit+1))), big},
		{"10.4", "a byte above, by its header", frames(declared(testkit.OpText, limit+1))[:4], big},
		{"10.4", "a byte above, of the other kind", frames(declared(testkit.OpBinary, limit+1)), big},
		{"10.4", "far above", frames(declared(testkit.OpText, 1<<40)), big},
		{"10.4", "far above, behind a good one", frames(testkit.Client(testkit.OpText, p), declared(testkit.OpText, 1<<40)), append(good, big...)},
		{"10.4", "at the limit, in two frames", frames(cut(at(limit), 400, limit-400)...), good},
		{"10.4", "at the limit, the last frame empty", frames(cut(at(limit), limit, 0)...), good},
		{"10.4", "at the limit, the first frame empty", frames(cut(at(limit), 0, limit)...), good},
		{"10.4", "at the limit, in ten frames", frames(cut(at(limit), 200, 200, 200, 200, 200, 200, 200, 200, 200, 200)...), good},
		{"10.4", "at the limit, control frames are not counted",
			frames(among(cut(at(limit), 1900, 100), 1, testkit.Ping(string(pattern(125))), testkit.Ping(string(pattern(125))))...),
			append(replies(gotPong(string(pattern(125))), gotPong(string(pattern(125)))), good...)},
		{"10.4", "a byte above, in two frames", frames(cut(at(limit+1), 400, limit-399)...), big},
		{"10.4", "a byte above, the last frame's", frames(cut(at(limit+1), limit, 1)...), big},
		{"10.4", "a byte above, by the last frame's header", frames(cut(at(limit), limit, 0)[0], declared(testkit.OpContinuation, 1))[:8+limit+2], big},
		{"10.4", "a byte above, behind an empty frame", frames(cut(at(limit+1), 0, limit+1)...), big},
		{"10.4", "a byte above, in eleven frames", frames(cut(at(limit+1), 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 1)...), big},
		{"10.4", "frames without end", frames(cut(at(limit), limit, 0)[0], testkit.Continuation("").More(), testkit.Continuation("").More(), testkit.Continuation("x").More()), big},
		{"10.4", "the sum of two lengths that no integer holds", frames(testkit.Client(testkit.OpText, []byte("x")).More(), declared(testkit.OpContinuation, 1<<63-1)), big},
	} {
		c.runOn(t, s.public, json)
	}
	const echo = 16 << 20
	p16 := pattern(echo)
	for _, c := range []wireCase{
		{"10.4", "echo, 16 MiB", frames(testkit.Binary(p16)), replies(gotBinary(p16))},
		{"10.4", "echo, 16 MiB in two frames", frames(testkit.Binary(p16[:1]).More(), testkit.Client(testkit.OpContinuation, p16[1:])), replies(gotBinary(p16))},
		{"10.4", "echo, a byte above 16 MiB", frames(declared(testkit.OpText, echo+1)), big},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.attempt(s.public, dialects[0]); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("close frame arrives although the payload is sent on", func(t *testing.T) {
		w, err := json.open(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Reset()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			// As far as it is taken: the server may end the connection in between.
			_ = w.Send(frames(testkit.Binary(make([]byte, 256<<10))))
		}()
		code, _, err := w.Closed()
		if err != nil || code != 1009 {
			t.Errorf("got close %d, %v, want 1009", code, err)
		}
		w.Reset()
		<-sent
	})
}

// TestRFC6455Ends: section 7.1.1 and what TCP adds to it.
func TestRFC6455Ends(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo = true })
	open := func(t *testing.T) *testkit.Conn {
		t.Helper()
		w, err := testkit.Open(s.public, "/echo")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Reset() })
		return w
	}
	t.Run("a peer that never answers the close is dropped", func(t *testing.T) {
		w := open(t)
		if err := w.SendFrames(testkit.Text("a").Unmasked()); err != nil {
			t.Fatal(err)
		}
		if code, _, err := w.Closed(); err != nil || code != 1002 {
			t.Fatalf("got close %d, %v", code, err)
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("the close handshake of the client ends the connection", func(t *testing.T) {
		w := open(t)
		if err := w.SendFrames(testkit.Close(1000, "")); err != nil {
			t.Fatal(err)
		}
		if code, _, err := w.Closed(); err != nil || code != 1000 {
			t.Fatalf("got close %d, %v", code, err)
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("half-closed in the middle of a frame", func(t *testing.T) {
		w := open(t)
		if err := w.Send(frames(testkit.Text("hello"))[:5]); err != nil {
			t.Fatal(err)
		}
		if err := w.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("the answer of a peer that shuts its side at once", func(t *testing.T) {
		w := open(t)
		if err := w.SendFrames(testkit.Text("a"), testkit.Close(1000, "")); err != nil {
			t.Fatal(err)
		}
		if err := w.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for _, r := range replies(gotText("a"), gotClose(1000)) {
			if err := r.check(w); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("reset in the middle of a frame", func(t *testing.T) {
		w := open(t)
		if err := w.Send(frames(testkit.Text("hello"))[:5]); err != nil {
			t.Fatal(err)
		}
		if err := w.Reset(); err != nil {
			t.Fatal(err)
		}
		// The server is still there for others.
		other := open(t)
		if err := other.SendFrames(testkit.Text("x")); err != nil {
			t.Fatal(err)
		}
		if err := gotText("x").check(other); err != nil {
			t.Error(err)
		}
	})
	t.Run("an idle connection stays open", func(t *testing.T) {
		w := open(t)
		if err := w.Quiet(300 * time.Millisecond); err != nil {
			t.Error(err)
		}
	})
}

// TestRFC6455Splits sends several messages with every pair of cuts, so that
// each piece begins and ends anywhere in a frame.
func TestRFC6455Splits(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo = true })
	p := frames(testkit.Text("é").More(), testkit.Ping("p"), testkit.Continuation("ü"), testkit.Binary([]byte{1, 2}))
	want := replies(gotPong("p"), gotText("éü"), gotBinary([]byte{1, 2}))
	w, err := testkit.Open(s.public, "/echo")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	for i := 1; i < len(p); i++ {
		for j := i + 1; j < len(p); j++ {
			if err := w.SendCut(p, i, j); err != nil {
				t.Fatalf("cut at %d and %d: %v", i, j, err)
			}
			for _, r := range want {
				if err := r.check(w); err != nil {
					t.Fatalf("cut at %d and %d: %v", i, j, err)
				}
			}
		}
	}
	var ce *testkit.CloseError
	if err := w.SendFrames(testkit.Close(1000, "")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Message(); !errors.As(err, &ce) || ce.Code != 1000 {
		t.Errorf("got %v, want a close frame", err)
	}
}
