package netpoll

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"perch/session"
)

// movingEcho is an echo whose sessions can move.
type movingEcho struct {
	echo
	opened chan session.ID
}

func (e movingEcho) Open(s *session.Session, _ any)          { e.opened <- s.ID() }
func (e movingEcho) Export(*session.Session) ([]byte, error) { return []byte("x"), nil }
func (e movingEcho) Import(_ *session.Session, state []byte) error {
	if string(state) != "x" {
		return errors.New("not mine")
	}
	return nil
}

type moved struct {
	state Moved
	file  *os.File
	err   error
}

func export(t *testing.T, s *Server, id session.ID) moved {
	t.Helper()
	got := make(chan moved, 1)
	s.Export(id, func(m Moved, f *os.File, err error) { got <- moved{m, f, err} })
	select {
	case m := <-got:
		return m
	case <-time.After(5 * time.Second):
		t.Fatal("no answer to Export")
		panic("unreachable")
	}
}

// A connection moves between two servers in the middle of the second fragment
// of a message, cut at each byte of that frame.
func TestMoveMidFrame(t *testing.T) {
	h := movingEcho{opened: make(chan session.ID, 1)}
	with := func(o *Options) { o.Listeners[0].Endpoints[0].Handler = h }
	a, addr := start(t, with)
	b, _ := start(t, with)
	first := ws.MustCompileFrame(ws.MaskFrame(ws.NewFrame(ws.OpText, false, []byte("Hello, "))))
	last := ws.MustCompileFrame(ws.MaskFrame(ws.NewFrame(ws.OpContinuation, true, []byte("world"))))
	for cut := range len(last) {
		c := dial(t, addr, "/echo")
		id := <-h.opened
		before := a.Stats().BytesIn
		if _, err := c.Write(append(append([]byte(nil), first...), last[:cut]...)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the bytes don't arrive", func() bool { return a.Stats().BytesIn >= before+uint64(len(first)+cut) })
		m := export(t, a, id)
		if m.err != nil {
			t.Fatal(m.err)
		}
		if err := b.Import(m.state, m.file); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(last[cut:]); err != nil {
			t.Fatal(err)
		}
		if got, _, err := wsutil.ReadServerData(c); err != nil || string(got) != "Hello, world" {
			t.Fatalf("cut at %d: got %q, %v", cut, got, err)
		}
		_ = c.Close()
	}
	if n := a.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions are left behind", n)
	}
}

// What the peer has not taken yet goes along, the frame under way first.
func TestMovePending(t *testing.T) {
	h := movingEcho{opened: make(chan session.ID, 1)}
	with := func(o *Options) {
		o.PendingBytes = 64 << 20
		o.Listeners[0].Endpoints[0].Handler = h
	}
	a, addr := start(t, with)
	b, _ := start(t, with)
	c := dial(t, addr, "/echo")
	id := <-h.opened
	const n, size = 24, 512 << 10
	go func() {
		for i := range n {
			msg := make([]byte, size)
			msg[0] = byte(i)
			if err := wsutil.WriteClientBinary(c, msg); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	eventually(t, "nothing is pending", func() bool {
		st := a.Stats()
		return st.MessagesIn == n && st.PendingBytes > 0
	})
	m := export(t, a, id)
	if m.err != nil || len(m.state.Pending) == 0 {
		t.Fatalf("pending %d, %v", len(m.state.Pending), m.err)
	}
	if err := b.Import(m.state, m.file); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		got, _, err := wsutil.ReadServerData(c)
		if err != nil || len(got) != size || got[0] != byte(i) {
			t.Fatalf("message %d: %d bytes, %v", i, len(got), err)
		}
	}
}

func TestMoveRefused(t *testing.T) {
	s, addr := start(t, nil)
	if m := export(t, s, session.MakeID(9, 1, 1)); !errors.Is(m.err, ErrGone) {
		t.Errorf("export of nobody: %v", m.err)
	}
	c := dial(t, addr, "/echo")
	ids := make(chan session.ID, 1)
	<-s.EachSession(func(p *session.Session) { ids <- p.ID() })
	if m := export(t, s, <-ids); !errors.Is(m.err, ErrNoMove) {
		t.Errorf("export from a handler that keeps its sessions: %v", m.err)
	}
	if err := wsutil.WriteClientText(c, []byte("still here")); err != nil {
		t.Fatal(err)
	}
	if got, _, err := wsutil.ReadServerData(c); err != nil || string(got) != "still here" {
		t.Errorf("got %q, %v", got, err)
	}
}
