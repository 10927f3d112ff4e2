package netpoll

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"golang.org/x/sys/unix"

	"perch/session"
)

// numbered are n messages with their numbers.
func numbered(n int) (wire []byte, want []string) {
	for i := range n {
		text := fmt.Sprint(i)
		wire = append(wire, masked(ws.OpText, true, text)...)
		want = append(want, "text:"+text)
	}
	return wire, want
}

// checkIdleShares checks that nothing is put off and nobody waits for it.
func (r *rig) checkIdleShares() {
	r.t.Helper()
	if n := r.loop.stats.PutOffBytes.Load(); n != 0 {
		r.t.Errorf("%d bytes are put off", n)
	}
	if n := len(r.loop.late) - r.loop.lateAt; n != 0 {
		r.t.Errorf("%d conns wait for their share", n)
	}
	if r.loop.serving != nil {
		r.t.Error("a conn is being served")
	}
}

// What a peer sends beyond its share comes later, in order, and in between comes
// who has sent little.
func TestShare(t *testing.T) {
	r := newRig(t, nil)
	flood, good := r.upgraded(), r.upgraded()
	wire, want := numbered(3*turnShare + 7)
	r.handler.log = nil
	flood.feed(wire)
	if n := len(r.handler.log); n != turnShare {
		t.Fatalf("%d messages were handled at once", n)
	}
	if n := r.loop.stats.PutOffs.Load(); n != 1 {
		t.Errorf("%d were put off", n)
	}
	good.feed(masked(ws.OpText, true, "good"))
	if got := r.handler.log[turnShare]; got != "text:good" {
		t.Errorf("before a good peer's message came %s", got)
	}
	r.handler.log = append(r.handler.log[:turnShare:turnShare], r.handler.log[turnShare+1:]...)
	r.turn()
	if got := strings.Join(r.handler.log, " "); got != strings.Join(want, " ") {
		t.Errorf("got %.200s", got)
	}
	if n := r.loop.stats.MostShare.n.Load(); n != turnShare {
		t.Errorf("at most %d at once", n)
	}
	r.checkIdleShares()
	if flood.c.in != nil {
		t.Error("an idle conn keeps something")
	}
}

// While some are put off, the others' shares are small: a round of sockets, all
// of them full, is short.
func TestShareCrowded(t *testing.T) {
	r := newRig(t, nil)
	wire, _ := numbered(3 * turnShare)
	var peers []*peer
	for range 20 {
		peers = append(peers, r.upgraded())
	}
	r.handler.log = nil
	for _, p := range peers {
		p.feed(wire)
	}
	if n, most := len(r.handler.log), turnShare+19*crowdedShare; n != most {
		t.Errorf("%d messages in one round of sockets, want %d", n, most)
	}
	// In a slice of a turn all that waits has its share of what there is.
	r.loop.serveLate()
	if n, most := len(r.handler.log), turnShare+19*crowdedShare+lateShare; n != most {
		t.Errorf("%d messages after a slice, want %d", n, most)
	}
	for range 3 {
		peers[5].end() // also twice: who goes has nothing left
	}
	r.turn()
	if n, want := len(r.handler.log), 19*3*turnShare+crowdedShare+1; n != want {
		t.Errorf("%d messages in the end, want %d", n, want)
	}
	r.checkIdleShares()
}

// Each cut of the input gives the same messages in the same order, whatever is
// put off meanwhile.
func TestShareCuts(t *testing.T) {
	var wire []byte
	var want []string
	for i := range turnShare * 2 {
		switch i % 5 {
		case 3:
			wire = append(wire, masked(ws.OpText, false, fmt.Sprint(i))...)
			wire = append(wire, masked(ws.OpPing, true, "p")...)
			wire = append(wire, masked(ws.OpContinuation, true, "+")...)
			want = append(want, fmt.Sprintf("text:%d+", i))
		default:
			wire = append(wire, masked(ws.OpBinary, true, fmt.Sprint(i))...)
			want = append(want, fmt.Sprintf("binary:%d", i))
		}
	}
	for _, piece := range []int{1, 7, 100, 1000, 2500, len(wire)} {
		for _, turns := range []bool{false, true} {
			t.Run(fmt.Sprintf("pieces of %d, turns between %v", piece, turns), func(t *testing.T) {
				r := newRig(t, nil)
				p := r.upgraded()
				r.handler.log = nil
				for b := wire; len(b) > 0; b = b[min(piece, len(b)):] {
					p.feed(b[:min(piece, len(b))])
					if turns {
						r.step()
					}
				}
				r.turn()
				if got := strings.Join(r.handler.log, " "); got != strings.Join(want, " ") {
					t.Errorf("got %.300s", got)
				}
				r.checkIdleShares()
			})
		}
	}
}

// Where reads can't be stopped, what waits is bounded.
func TestShareBound(t *testing.T) {
	for _, c := range []struct {
		name     string
		encoding session.Encoding
		code     int
	}{{"plain", session.EncodingNone, 1008}, {"client protocol", session.EncodingJSON, 3013}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			p := r.upgraded()
			p.sess().Encoding = c.encoding
			r.handler.log = nil
			tiny := bytes.Repeat(masked(ws.OpText, true, ""), 64<<10/6)
			fed := 0
			for ; p.c.mode == modeWebSocket && fed < 10; fed++ {
				p.feed(tiny)
				if n := r.loop.stats.PutOffBytes.Load(); n > putOffBytes {
					t.Fatalf("%d bytes wait", n)
				}
			}
			if want := putOffBytes/len(tiny) + 1; fed != want {
				t.Errorf("closed after %d reads, want %d", fed, want)
			}
			sent, _ := frames(t, p.take())
			if code, _ := closeOf(sent[len(sent)-1]); code != c.code {
				t.Errorf("closed with %d", code)
			}
			r.turn()
			r.checkIdleShares()
		})
	}
}

// partHandler takes one byte of a message for a command.
type partHandler struct{ *recorder }

func (h partHandler) MessagePart(s *session.Session, data []byte, _ bool, done, most int) ([]byte, int) {
	n := min(most, len(data))
	h.note("%d..%d:%s", done, done+n, data[:n])
	if h.message != nil {
		h.message(s, data[:n], false)
	}
	return data[n:], n
}

// A message of many commands is handled in parts; what comes behind it waits.
func TestShareOfCommands(t *testing.T) {
	r := newRig(t, nil)
	h := partHandler{r.handler}
	for _, p := range r.server.ports {
		p.endpoints["/echo"].Handler, p.endpoints["/echo"].parts = h, h
	}
	p := r.upgraded()
	r.handler.log = nil
	long := strings.Repeat("x", turnShare*2)
	p.feed(append(masked(ws.OpText, true, long), masked(ws.OpText, true, "y")...))
	p.feed(masked(ws.OpText, true, "z"))
	r.turn()
	first := turnShare - 1 // the frame counts, too
	want := []string{
		fmt.Sprintf("0..%d:%s", first, long[:first]),
		fmt.Sprintf("%d..%d:%s", first, first+turnShare, long[:turnShare]),
		fmt.Sprintf("%d..%d:x", first+turnShare, turnShare*2), "0..1:y", "0..1:z",
	}
	if got := strings.Join(r.handler.log, " "); got != strings.Join(want, " ") {
		t.Errorf("got %s", got)
	}
	r.checkIdleShares()

	t.Run("in fragments", func(t *testing.T) {
		r.handler.log = nil
		p.feed(append(masked(ws.OpText, false, long[:100]), masked(ws.OpContinuation, true, long[100:])...))
		p.feed(masked(ws.OpText, true, "y"))
		r.turn()
		if got := r.handler.log[len(r.handler.log)-1]; got != "0..1:y" || len(r.handler.log) != 4 {
			t.Errorf("got %s", strings.Join(r.handler.log, " "))
		}
		r.checkIdleShares()
	})
	t.Run("closed by a part", func(t *testing.T) {
		n := 0
		r.handler.message = func(s *session.Session, _ []byte, _ bool) {
			if n++; n == 2 {
				s.Close(session.ReasonBadRequest)
			}
		}
		p.feed(append(masked(ws.OpText, true, long), masked(ws.OpText, true, "y")...))
		r.turn()
		if n != 2 {
			t.Errorf("%d parts", n)
		}
		r.checkIdleShares()
		r.handler.message = nil
	})
	t.Run("a part that panics", func(t *testing.T) {
		p := r.upgraded()
		n := 0
		r.handler.message = func(*session.Session, []byte, bool) {
			if n++; n == 2 {
				panic("on purpose")
			}
		}
		p.feed(append(masked(ws.OpText, true, long), masked(ws.OpText, true, "y")...))
		r.turn()
		sent, _ := frames(t, p.take())
		if code, _ := closeOf(sent[len(sent)-1]); code != 1011 || n != 2 {
			t.Errorf("closed with %d after %d parts", code, n)
		}
		r.checkIdleShares()
	})
}

// A flood on a real socket is answered whole and in order, at the pace at which
// it is served: what is put off stays within one read.
func TestShareStopsReads(t *testing.T) {
	t.Parallel()
	s, addr := start(t, func(o *Options) { o.Loops, o.PendingBytes = 1, 64<<20 })
	c := dial(t, addr, "/echo")
	const n = 40_000
	wire, _ := numbered(n)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(wire)
		wrote <- err
	}()
	for i := range n {
		got, _, err := wsutil.ReadServerData(c)
		if err != nil || string(got) != fmt.Sprint(i) {
			t.Fatalf("message %d: %q, %v", i, got, err)
		}
		if waits := s.Stats().Loops[0].PutOffBytes; i%100 == 0 && waits > 64<<10 {
			t.Fatalf("%d bytes are put off", waits)
		}
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	st := s.Stats().Loops[0]
	if st.PutOffs == 0 || st.MostWork != turnShare || st.MostBytes > 64<<10 {
		t.Errorf("%+v", st)
	}
	eventually(t, "nothing is put off", func() bool { return s.Stats().Loops[0].PutOffBytes == 0 })
	// Reads go on: also the end is seen.
	if err := wsutil.WriteClientText(c, []byte("last")); err != nil {
		t.Fatal(err)
	}
	if got, _, err := wsutil.ReadServerData(c); err != nil || string(got) != "last" {
		t.Errorf("got %q, %v", got, err)
	}
	_ = c.Close()
	eventually(t, "the connection is gone", func() bool { return s.Stats().Open == 0 })
}

// A peer whose reads are stopped may be closed, and go, as any other.
func TestShareEnds(t *testing.T) {
	t.Parallel()
	h := movingEcho{opened: make(chan session.ID, 1)}
	s, addr := start(t, func(o *Options) {
		o.Loops = 1
		o.Listeners[0].Endpoints[0].Handler = h
	})
	for _, how := range []string{"closed by us", "reset by the peer", "close frame in the flood"} {
		t.Run(how, func(t *testing.T) {
			c := raw(t, addr)
			_, _ = c.Write([]byte(upgradeHead))
			id := <-h.opened
			if _, err := io.ReadFull(c, make([]byte, len(switching))); err != nil {
				t.Fatal(err)
			}
			wire, _ := numbered(8000)
			if how == "close frame in the flood" {
				wire = append(wire, masked(ws.OpClose, true, "\x03\xe8")...)
			}
			before := s.Stats().Loops[0].PutOffs
			_, _ = c.Write(wire)
			eventually(t, "nothing was put off", func() bool { return s.Stats().Loops[0].PutOffs > before })
			switch how {
			case "closed by us":
				s.Loop(id.Loop()).PostClose(id, session.ReasonGoingAway, 1001, "going away")
				fallthrough
			case "close frame in the flood":
				all, err := io.ReadAll(c)
				if err != nil {
					t.Errorf("the last bytes were overtaken: %v", err)
				}
				if i := bytes.LastIndexByte(all, 0x88); i < 0 {
					t.Error("no close frame")
				}
			default:
				_ = c.SetLinger(0)
			}
			_ = c.Close()
			eventually(t, "the connection is gone", func() bool { st := s.Stats(); return st.Open == 0 && st.Loops[0].PutOffBytes == 0 })
		})
	}
}

// A session moves with what of its is put off.
func TestShareMoves(t *testing.T) {
	r := newRig(t, nil)
	h := movingEcho{opened: make(chan session.ID, 2)}
	for _, p := range r.server.ports {
		p.endpoints["/echo"].Handler = h
	}
	p := r.upgraded()
	wire, _ := numbered(turnShare + 20)
	p.feed(wire)
	m, f, err := p.c.export()
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if want := wire[len(wire)-len(m.Raw):]; len(m.Raw) == 0 || !bytes.Equal(m.Raw, want) {
		t.Errorf("%d bytes move", len(m.Raw))
	}
	if got, _ := frames(t, p.take()); len(got) != turnShare {
		t.Errorf("%d were answered", len(got))
	}
	r.turn()
	r.checkIdleShares()
}

// storms know gnet's epoll set by a descriptor in it; it is what stops reads.
func TestReadStops(t *testing.T) {
	r := newRig(t, nil)
	p := r.upgraded()
	if p.c.read(false) {
		t.Error("reads are stopped without a set")
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(ep) }()
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, int(p.c.fd), &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLPRI, Fd: p.c.fd}); err != nil {
		t.Fatal(err)
	}
	r.loop.storm.epfd, r.loop.storm.found = int32(ep), true
	ready := func() bool {
		n, _ := unix.EpollWait(ep, make([]unix.EpollEvent, 1), 0)
		return n > 0
	}
	if _, err := unix.Write(p.fd, []byte("x")); err != nil || !ready() {
		t.Fatal(err)
	}
	wire, _ := numbered(2 * turnShare)
	p.feed(wire)
	if ready() {
		t.Error("a peer is read that has sent more than its share")
	}
	r.turn()
	if !ready() {
		t.Error("a peer whose input was put off is not read any more")
	}
	// Whatever ends the session: a peer that is being closed is read, or its last
	// bytes would be overtaken by a reset.
	p.feed(wire)
	p.c.fail(session.ReasonGoingAway)
	if !ready() {
		t.Error("a peer that is being closed is not read")
	}
	r.turn()
	r.checkIdleShares()
}
