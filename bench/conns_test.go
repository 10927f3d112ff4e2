package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// heard keeps what conns say.
type heard struct {
	up        []int
	messages  []string // opcode and payload
	lostWhy   []string
	onMessage func(i int)
}

func (h *heard) upgraded(i int) { h.up = append(h.up, i) }

func (h *heard) message(i int, opcode byte, p []byte, _ int64) {
	h.messages = append(h.messages, fmt.Sprintf("%d %s", opcode, p))
	if h.onMessage != nil {
		h.onMessage(i)
	}
}

func (h *heard) lost(_ int, why string) { h.lostWhy = append(h.lostWhy, why) }

// dialled makes conns with n connections under way to addr.
func dialled(t *testing.T, addr net.Addr, n int) (*conns, *heard) {
	t.Helper()
	h := &heard{}
	to := netip.MustParseAddrPort(addr.String())
	c, err := newConns(target{addr: to, head: requestHead(to.String(), "/", nil)}, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	c.add(n)
	for i := range n {
		if err := c.dial(i); err != nil {
			t.Fatal(err)
		}
	}
	return c, h
}

// pollUntil polls until what is waited for is so.
func pollUntil(t *testing.T, c *conns, what string, so func() bool) {
	t.Helper()
	for limit := now() + int64(patience); !so(); {
		if now() > limit {
			t.Fatalf("not within %s: %s; %d open, %d under way", patience, what, c.open, c.under)
		}
		if err := c.poll(now() + int64(20*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
}

// inPieces is a server that writes answer up to each of the cuts, and goes on
// when the test says so.
func inPieces(t *testing.T, answer []byte, cuts func(n int) []int) (addr net.Addr, next chan struct{}) {
	next = make(chan struct{})
	addr = scripted(t, func(n int, c *net.TCPConn, r *bufio.Reader) {
		if _, err := readRequest(r); err != nil {
			return
		}
		at := 0
		for _, cut := range append(cuts(n), len(answer)) {
			if _, err := c.Write(answer[at:cut]); err != nil {
				return
			}
			if at = cut; at < len(answer) {
				<-next
			}
		}
		_, _ = r.ReadByte() // the client's end
	})
	return addr, next
}

func TestUpgradePieces(t *testing.T) {
	answer := append([]byte(upgradeAnswer), textFrame("hello")...)
	answer = append(answer, serverFrame(finBit|opPing, []byte("p"))...)
	want := []string{"1 hello", "9 p"}
	check := func(t *testing.T, c *conns, h *heard) {
		t.Helper()
		pollUntil(t, c, "the messages", func() bool { return len(h.messages) == len(want) })
		if !slices.Equal(h.messages, want) || !slices.Equal(h.up, []int{0}) || h.lostWhy != nil {
			t.Fatalf("messages %q, upgraded %v, lost %q", h.messages, h.up, h.lostWhy)
		}
		if c.open != 1 || c.under != 0 || c.all[0].in != nil || c.bytes != int64(len(answer)) {
			t.Fatalf("%d open, %d under way, %d bytes kept, %d read", c.open, c.under, len(c.all[0].in), c.bytes)
		}
	}
	t.Run("whole", func(t *testing.T) {
		addr, _ := inPieces(t, answer, func(int) []int { return nil })
		c, h := dialled(t, addr, 1)
		check(t, c, h)
	})
	t.Run("byte by byte", func(t *testing.T) {
		addr, next := inPieces(t, answer, func(int) (cuts []int) {
			for cut := 1; cut < len(answer); cut++ {
				cuts = append(cuts, cut)
			}
			return cuts
		})
		c, h := dialled(t, addr, 1)
		for cut := 1; cut < len(answer); cut++ {
			pollUntil(t, c, "a byte", func() bool { return c.bytes == int64(cut) })
			next <- struct{}{}
		}
		check(t, c, h)
	})
	t.Run("cut", func(t *testing.T) {
		addr, next := inPieces(t, answer, func(n int) []int { return []int{n + 1} })
		for cut := 1; cut < len(answer); cut++ {
			c, h := dialled(t, addr, 1)
			pollUntil(t, c, "the first part", func() bool { return c.bytes == int64(cut) })
			next <- struct{}{}
			check(t, c, h)
			c.drop(0, true)
		}
	})
}

func TestUpgradeFails(t *testing.T) {
	for _, test := range []struct{ name, answer, want string }{
		{"refused", "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\nbusy", `upgrade: "HTTP/1.1 503 Service Unavailable"`},
		{"wrong key", strings.Replace(upgradeAnswer, acceptAnswer, "AAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1), `upgrade: "HTTP/1.1 101 Switching Protocols"`},
		{"not HTTP", "220 mail ready\r\n\r\n", `upgrade: "220 mail ready"`},
		{"half an answer", "HTTP/1.1 101 Swit", "EOF"},
		{"nothing", "", "EOF"},
		{"no end", "HTTP/1.1 101 x\r\n" + strings.Repeat("X-Pad: 0123456789\r\n", 8000), "upgrade: the answer does not end"},
		{"masked", upgradeAnswer + string(appendFrame(nil, opText, []byte("x"))), "a frame is masked"},
		{"fragment of nothing", upgradeAnswer + string(serverFrame(finBit|opContinuation, []byte("x"))), "a message's fragments are wrong"},
		{"message in a message", upgradeAnswer + string(serverFrame(opText, []byte("x"))) + string(textFrame("y")), "a message's fragments are wrong"},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr := scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
				if _, err := readRequest(r); err != nil {
					return
				}
				_, _ = io.WriteString(c, test.answer)
				_ = c.CloseWrite()
				_, _ = r.ReadByte()
			})
			c, h := dialled(t, addr, 1)
			pollUntil(t, c, "the loss", func() bool { return len(h.lostWhy) > 0 })
			if h.lostWhy[0] != test.want {
				t.Fatalf("lost: %q", h.lostWhy)
			}
			if c.open != 0 || c.under != 0 || c.all[0].state != stateGone || len(c.parts) != 0 || len(h.lostWhy) != 1 {
				t.Fatalf("%d open, %d under way, lost %q", c.open, c.under, h.lostWhy)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c, h := dialled(t, l.Addr(), 1)
	pollUntil(t, c, "the refusal", func() bool { return len(h.lostWhy) > 0 })
	if h.lostWhy[0] != "connect: connection refused" || c.under != 0 {
		t.Fatalf("lost: %q, %d under way", h.lostWhy, c.under)
	}
}

// told is a server whose connections, once upgraded, do what the script says at
// a word of the test; said tells that it is done.
func told(t *testing.T, script func(c *net.TCPConn)) (addr net.Addr, say, said chan struct{}) {
	say, said = make(chan struct{}), make(chan struct{})
	addr = scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		if upgrade(c, r) != nil {
			return
		}
		<-say
		script(c)
		said <- struct{}{}
		_, _ = r.ReadByte()
	})
	return addr, say, said
}

func TestEnds(t *testing.T) {
	for _, test := range []struct {
		name     string
		end      func(c *net.TCPConn)
		messages []string
		want     string
	}{
		{"close frame", func(c *net.TCPConn) {
			_, _ = c.Write(serverFrame(finBit|opClose, append([]byte{1001 >> 8, 1001 & 0xff}, "bye"...)))
		}, nil, `closed with 1001 "bye"`},
		{"close frame without a code", func(c *net.TCPConn) { _, _ = c.Write(serverFrame(finBit|opClose, nil)) }, nil, "closed"},
		{"message behind a close frame", func(c *net.TCPConn) {
			_, _ = c.Write(append(serverFrame(finBit|opClose, nil), textFrame("late")...))
		}, nil, "closed"},
		{"FIN", func(c *net.TCPConn) { _ = c.CloseWrite() }, nil, "EOF"},
		// The set is edge-triggered: both come with one edge.
		{"message and FIN", func(c *net.TCPConn) {
			_, _ = c.Write(textFrame("last"))
			_ = c.CloseWrite()
		}, []string{"1 last"}, "EOF"},
		{"half a message and FIN", func(c *net.TCPConn) {
			_, _ = c.Write(textFrame("last")[:4])
			_ = c.CloseWrite()
		}, nil, "EOF"},
		{"RST", func(c *net.TCPConn) {
			_ = c.SetLinger(0)
			_ = c.Close()
		}, nil, "read: connection reset by peer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr, say, said := told(t, test.end)
			c, h := dialled(t, addr, 1)
			pollUntil(t, c, "the upgrade", func() bool { return c.open == 1 })
			say <- struct{}{}
			<-said // all of it is in the socket before it is looked at
			pollUntil(t, c, "the loss", func() bool { return len(h.lostWhy) > 0 })
			if !slices.Equal(h.lostWhy, []string{test.want}) || !slices.Equal(h.messages, test.messages) {
				t.Fatalf("lost %q, messages %q", h.lostWhy, h.messages)
			}
			if c.open != 0 || c.under != 0 {
				t.Fatalf("%d open, %d under way", c.open, c.under)
			}
		})
	}
}

func TestMessages(t *testing.T) {
	large := pattern(1 << 20)
	var many []byte
	for i := range 1000 {
		many = append(many, textFrame(fmt.Sprint(i))...)
	}
	for _, test := range []struct {
		name  string
		bytes []byte
		last  string
		count int
	}{
		{"1 MiB", serverFrame(finBit|opBinary, large), "2 " + string(large), 1},
		{"1 MiB and a small one", append(serverFrame(finBit|opBinary, large), textFrame("x")...), "1 x", 2},
		{"a thousand at once", many, "1 999", 1000},
		{"in fragments, a ping between", slices.Concat(serverFrame(opText, []byte("ab")), serverFrame(finBit|opPing, nil),
			serverFrame(opContinuation, []byte("cd")), serverFrame(finBit|opContinuation, []byte("ef"))), "1 abcdef", 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr, say, said := told(t, func(c *net.TCPConn) { _, _ = c.Write(test.bytes) })
			c, h := dialled(t, addr, 1)
			pollUntil(t, c, "the upgrade", func() bool { return c.open == 1 })
			say <- struct{}{}
			pollUntil(t, c, "the messages", func() bool { return len(h.messages) == test.count })
			<-said
			if got := h.messages[test.count-1]; got != test.last {
				t.Fatalf("the last of %d has %d bytes, want %d", len(h.messages), len(got), len(test.last))
			}
			if c.all[0].in != nil || len(c.parts) != 0 || h.lostWhy != nil {
				t.Fatalf("%d bytes kept, %d parts, lost %q", len(c.all[0].in), len(c.parts), h.lostWhy)
			}
		})
	}
}

func TestPeerDoesNotRead(t *testing.T) {
	var want bytes.Buffer
	frame := appendFrame(nil, opBinary, pattern(256<<10))
	got, read := make(chan []byte, 1), make(chan int)
	addr := scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		if upgrade(c, r) != nil {
			return
		}
		n := <-read
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			b = nil
		}
		got <- b
		_, _ = r.ReadByte()
	})
	c, _ := dialled(t, addr, 1)
	pollUntil(t, c, "the upgrade", func() bool { return c.open == 1 })
	for range 200 {
		c.send(0, frame)
		want.Write(frame)
		if len(c.all[0].out) > 0 {
			break
		}
	}
	pending := len(c.all[0].out)
	if pending == 0 {
		t.Fatalf("the kernel took %d bytes", want.Len())
	}
	// Behind what waits, in order.
	for _, s := range []string{"one", "two"} {
		f := appendFrame(nil, opText, []byte(s))
		c.send(0, f)
		want.Write(f)
		pending += len(f)
	}
	if len(c.all[0].out) != pending {
		t.Fatalf("%d pending, want %d", len(c.all[0].out), pending)
	}
	if err := c.poll(now()); err != nil {
		t.Fatal(err)
	}
	read <- want.Len()
	pollUntil(t, c, "that all is written", func() bool { return c.all[0].out == nil })
	if b := <-got; !bytes.Equal(b, want.Bytes()) {
		t.Fatalf("%d bytes arrived, not the %d that were sent", len(b), want.Len())
	}
}

// In one batch of events, the first makes the place of the second a new
// connection's: the former's event must not reach it.
func TestPlaceIsReused(t *testing.T) {
	written := make(chan struct{})
	say := make(chan struct{})
	addr := scripted(t, func(n int, c *net.TCPConn, r *bufio.Reader) {
		if upgrade(c, r) != nil {
			return
		}
		if n < 2 {
			<-say
			_, _ = c.Write(textFrame("old"))
			written <- struct{}{}
		} else {
			_, _ = c.Write(textFrame("new"))
		}
		_, _ = r.ReadByte()
	})
	c, h := dialled(t, addr, 2)
	pollUntil(t, c, "the upgrades", func() bool { return c.open == 2 })
	for range 2 {
		say <- struct{}{}
	}
	for range 2 {
		<-written
	}
	other := -1
	h.onMessage = func(i int) {
		h.onMessage = nil
		other = 1 - i
		c.drop(other, true)
		if err := c.dial(other); err != nil {
			t.Error(err)
		}
	}
	if err := c.poll(now() + int64(patience)); err != nil {
		t.Fatal(err)
	}
	if other < 0 || c.all[other].state != stateConnecting || !slices.Equal(h.messages, []string{"1 old"}) {
		t.Fatalf("messages %q, place %d", h.messages, other)
	}
	pollUntil(t, c, "the new one's message", func() bool { return len(h.messages) == 2 })
	if h.messages[1] != "1 new" || h.lostWhy != nil || c.open != 2 || c.under != 0 {
		t.Fatalf("messages %q, lost %q, %d open, %d under way", h.messages, h.lostWhy, c.open, c.under)
	}
}

func TestDropIsSilent(t *testing.T) {
	s := newEchoServer(t)
	c, h := dialled(t, s.addr, 3)
	c.drop(2, false) // while it connects
	pollUntil(t, c, "the upgrades", func() bool { return c.open == 2 })
	c.drop(0, true)
	c.drop(0, true)
	c.send(0, []byte("x"))
	if c.open != 1 || c.under != 0 || h.lostWhy != nil {
		t.Fatalf("%d open, %d under way, lost %q", c.open, c.under, h.lostWhy)
	}
}

func TestSources(t *testing.T) {
	from := make(chan string, 6)
	addr := scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		from <- host
		_, _ = r.ReadByte()
	})
	to := netip.MustParseAddrPort(addr.String())
	c, err := newConns(target{addr: to, sources: 3, first: 0x10203}, &heard{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.add(6)
	for i := range 6 {
		if err := c.dial(i); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]int{}
	for range 6 {
		seen[<-from]++
	}
	for _, a := range []string{"127.1.2.3", "127.1.2.4", "127.1.2.5"} {
		if seen[a] != 2 {
			t.Fatalf("sources: %v", seen)
		}
	}
}

func TestBackoff(t *testing.T) {
	for attempt := range 300 {
		most := min(20*time.Second, 2*(500*time.Millisecond<<min(attempt, 10)))
		for range 20 {
			if d := backoff(attempt); d < 500*time.Millisecond || d > most {
				t.Fatalf("attempt %d: %s", attempt, d)
			}
		}
	}
}
