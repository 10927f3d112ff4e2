// Package peers_test builds every server and drives it as a client would.
package peers_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// raceBuild is true where the test has the race detector: the servers get it
// too.
var raceBuild bool

// unordered are those that are built without: nbio hands connections from the
// goroutine that accepts to a poller by way of the kernel, which the detector
// does not see, and reports.
var unordered = map[string]bool{"nbio": true}

var servers = []string{"floor", "bare", "gws", "nbio", "gorilla", "coder", "gobwas"}

// parsers are the servers that parse frames themselves.
var parsers = []string{"floor", "bare"}

// looped are the servers with the flag -loops.
var looped = map[string]bool{"floor": true, "bare": true, "nbio": true}

var binaries string

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "peers")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		binaries = dir
		for _, s := range servers {
			args := []string{"build", "-o", filepath.Join(dir, s)}
			if raceBuild && !unordered[s] {
				args = append(args, "-race")
			}
			if out, err := exec.Command("go", append(args, "./"+s)...).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
				return 1
			}
		}
		return m.Run()
	}()
	os.Exit(code)
}

// start runs a server until the test ends and returns its address. What it
// prints fails the test: a race, a panic.
func start(t *testing.T, name string, flags ...string) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	cmd := exec.Command(filepath.Join(binaries, name), append([]string{"-listen", addr}, flags...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var stopping atomic.Bool
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		stopping.Store(true)
		_ = cmd.Process.Kill()
		if err := <-ended; err != nil && !strings.Contains(err.Error(), "killed") {
			t.Errorf("%s ended: %v", name, err)
		}
		for line := range strings.Lines(out.String()) {
			if !strings.Contains(line, "\tINFO\t") { // gnet's only level below none
				t.Fatalf("%s printed:\n%s", name, out.Bytes())
			}
		}
	})
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for late := time.After(patience); ; {
		c, err := net.Dial("tcp4", addr)
		if err == nil {
			_ = c.Close()
			return addr
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v", name, err)
		case <-late:
			t.Fatalf("%s does not listen: %v", name, err)
		case <-again.C:
		}
	}
}

func dial(t *testing.T, addr, path string) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{HandshakeTimeout: patience}
	c, answer, err := d.Dial("ws://"+addr+path, nil)
	if err != nil {
		t.Fatalf("dial: %v (%v)", err, answer)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(patience))
	return c
}

// expect reads one message.
func expect(t *testing.T, c *websocket.Conn, kind int, want []byte) {
	t.Helper()
	got, p, err := c.ReadMessage()
	if err != nil {
		t.Fatalf("read, want kind %d, %d bytes: %v", kind, len(want), err)
	}
	if got != kind || !bytes.Equal(p, want) {
		t.Fatalf("got kind %d, %d bytes (%.40q), want kind %d, %d bytes (%.40q)", got, len(p), p, kind, len(want), want)
	}
}

// each runs f beside every server.
func each(t *testing.T, names []string, flags []string, f func(t *testing.T, addr string)) {
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, start(t, name, flags...))
		})
	}
}

// text is n bytes of ASCII that differ from place to place.
func text(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte('!' + (i*7+i/90)%90)
	}
	return p
}

func TestEcho(t *testing.T) {
	each(t, servers, nil, func(t *testing.T, addr string) {
		for _, path := range []string{"/echo", "/", "/any/other?topic=/topic"} {
			c := dial(t, addr, path)
			for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 100000, 1 << 20, 5} {
				if n == 0 && filepath.Base(t.Name()) == "nbio" {
					continue // v1.6.9 does not pass empty messages on
				}
				for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
					if err := c.WriteMessage(kind, text(n)); err != nil {
						t.Fatal(err)
					}
					expect(t, c, kind, text(n))
				}
			}
		}
	})
}

func TestPingAndClose(t *testing.T) {
	for _, path := range []string{"/echo", "/topic"} {
		t.Run(path, func(t *testing.T) {
			each(t, servers, nil, func(t *testing.T, addr string) {
				c := dial(t, addr, path)
				pong := ""
				c.SetPongHandler(func(p string) error { pong = p; return nil })
				if err := c.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				if err := c.WriteMessage(websocket.TextMessage, []byte("after")); err != nil {
					t.Fatal(err)
				}
				expect(t, c, websocket.TextMessage, []byte("after"))
				// On /topic the pong and the publication need not keep their order.
				if err := c.WriteMessage(websocket.TextMessage, []byte("again")); err != nil {
					t.Fatal(err)
				}
				expect(t, c, websocket.TextMessage, []byte("again"))
				if pong != "are you there" {
					t.Errorf("pong %q", pong)
				}
				bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
				if err := c.WriteControl(websocket.CloseMessage, bye, time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				_, _, err := c.ReadMessage()
				if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
					t.Errorf("closed with %v", err)
				}
			})
		})
	}
}

// frame is a client's.
func frame(op byte, payload []byte) []byte {
	mask := [4]byte{0x12, 0xf4, 0x56, 0x9a}
	f := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		f = append(f, 0x80|byte(n))
	case n < 1<<16:
		f = binary.BigEndian.AppendUint16(append(f, 0x80|126), uint16(n))
	default:
		f = binary.BigEndian.AppendUint64(append(f, 0x80|127), uint64(n))
	}
	f = append(f, mask[:]...)
	for i, b := range payload {
		f = append(f, b^mask[i&3])
	}
	return f
}

// message is the i-th of a row of different sizes.
func message(i int) []byte { return fmt.Appendf(nil, "%d:%s", i, text(i*i*3%700)) }

func TestPipelined(t *testing.T) {
	each(t, servers, nil, func(t *testing.T, addr string) {
		c := dial(t, addr, "/echo")
		for round := range 50 {
			var all []byte
			for i := range 16 {
				all = append(all, frame(1+byte(i%2), message(round+i))...)
			}
			if _, err := c.NetConn().Write(all); err != nil {
				t.Fatal(err)
			}
			for i := range 16 {
				expect(t, c, 1+i%2, message(round+i))
			}
		}
	})
}

// standstill is how long a write that makes no headway waits for a server that
// has stopped reading.
const standstill = 100 * time.Millisecond

// Far more than a read buffer and than the socket buffers hold, by a peer that
// reads only after some time.
func TestFlood(t *testing.T) {
	each(t, servers, nil, func(t *testing.T, addr string) {
		c := dial(t, addr, "/echo")
		const n = 20000
		var all []byte
		for i := range n {
			all = append(all, frame(2, message(i))...)
		}
		// Nothing is read until the server takes no more, or has it all.
		raw := c.NetConn()
		for len(all) > 0 {
			_ = raw.SetWriteDeadline(time.Now().Add(standstill))
			k, err := raw.Write(all[:min(len(all), 64<<10)])
			all = all[k:]
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		_ = raw.SetWriteDeadline(time.Now().Add(patience))
		failed := make(chan error, 1)
		go func() {
			_, err := raw.Write(all)
			failed <- err
		}()
		for i := range n {
			expect(t, c, websocket.BinaryMessage, message(i))
		}
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	})
}

const head = "GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"

// split writes p in two pieces that do not arrive as one.
func split(t *testing.T, c net.Conn, p []byte, at int) {
	t.Helper()
	for _, piece := range [][]byte{p[:at], p[at:]} {
		if len(piece) == 0 {
			continue
		}
		if _, err := c.Write(piece); err != nil {
			t.Fatal(err)
		}
		consumed(t, c)
	}
}

// consumed waits until the server has read all that c has sent: the kernel's
// table shows nothing on its way from our end, and nothing unread at the
// other.
func consumed(t *testing.T, c net.Conn) {
	t.Helper()
	ours, theirs := inTable(c.LocalAddr()), inTable(c.RemoteAddr())
	for end := time.Now().Add(patience); time.Now().Before(end); {
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		var sent, read bool
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line) // number, local, remote, state, tx_queue:rx_queue
			if len(f) < 5 {
				continue
			}
			unsent, unread, _ := strings.Cut(f[4], ":")
			switch {
			case f[1] == ours && f[2] == theirs:
				sent = unsent == "00000000"
			case f[1] == theirs && f[2] == ours:
				read = unread == "00000000"
			}
		}
		if sent && read {
			return
		}
		runtime.Gosched()
	}
	t.Fatal("the server does not read")
}

// inTable is an address as /proc/net/tcp has it.
func inTable(a net.Addr) string {
	p := a.(*net.TCPAddr).AddrPort()
	ip := p.Addr().Unmap().As4()
	return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(ip[:]), p.Port())
}

func TestCut(t *testing.T) {
	each(t, parsers, nil, func(t *testing.T, addr string) {
		// A row of all kinds of frames, cut at every boundary.
		row := bytes.Join([][]byte{
			frame(1, []byte("text")), frame(9, []byte("ping")), frame(2, []byte{0}), frame(10, nil),
			frame(1, nil), frame(2, text(126)),
		}, nil)
		answer := append([]byte("\x81\x04text\x8a\x04ping\x82\x01\x00\x81\x00\x82\x7e\x00\x7e"), text(126)...)
		c := open(t, addr, "/echo", 0)
		for at := range len(row) {
			split(t, c, row, at)
			receive(t, c, answer)
		}
		// Byte by byte.
		for i := range row[:40] {
			split(t, c, row[i:i+1], 1)
		}
		split(t, c, row[40:], 0)
		receive(t, c, answer)
		// The opening handshake, with a frame behind it in the same piece.
		for at := 0; at < len(head)+10; at += 7 {
			open(t, addr, "/echo", at)
		}
	})
}

// open shakes hands by itself, its request and one message cut in two.
func open(t *testing.T, addr, path string, at int) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	p := append(fmt.Appendf(nil, head, path), frame(1, []byte("first"))...)
	split(t, c, p, min(at, len(p)))
	var got []byte
	for !bytes.Contains(got, []byte("\r\n\r\n")) {
		b := make([]byte, 1)
		if _, err := c.Read(b); err != nil {
			t.Fatalf("handshake cut at %d: %v", at, err)
		}
		got = append(got, b...)
	}
	if !bytes.HasPrefix(got, []byte("HTTP/1.1 101 ")) || !bytes.Contains(got, []byte("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n")) {
		t.Fatalf("handshake answered with %q", got)
	}
	receive(t, c, []byte("\x81\x05first"))
	return c
}

func receive(t *testing.T, c net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %q (%d bytes, %v), want %q", got[:n], n, err, want)
	}
}

func TestRefused(t *testing.T) {
	unmasked := []byte("\x81\x05hello")
	endless := []byte{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}
	each(t, parsers, nil, func(t *testing.T, addr string) {
		for name, p := range map[string][]byte{"unmasked": unmasked, "endless": endless} {
			c := open(t, addr, "/echo", 0)
			if _, err := c.Write(p); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
		}
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(c).ReadString('\n')
		if strings.HasPrefix(line, "HTTP/1.1 101") {
			t.Errorf("a plain request was answered with %q", line)
		}
	})
}

// subscribe dials /topic and waits until the server's subscription stands: its
// own publication comes back.
func subscribe(t *testing.T, addr string, n int) []*websocket.Conn {
	t.Helper()
	subs := make([]*websocket.Conn, n)
	for i := range subs {
		subs[i] = dial(t, addr, "/topic")
		hello := fmt.Appendf(nil, "hello %d", i)
		if err := subs[i].WriteMessage(websocket.TextMessage, hello); err != nil {
			t.Fatal(err)
		}
		for _, c := range subs[:i+1] {
			expect(t, c, websocket.TextMessage, hello)
		}
	}
	return subs
}

func TestTopic(t *testing.T) {
	each(t, servers, nil, func(t *testing.T, addr string) {
		subs := subscribe(t, addr, 5)
		other := dial(t, addr, "/echo")
		for _, from := range []int{0, 3} {
			var all []byte
			for i := range 20 {
				all = append(all, frame(1, message(i))...)
				all = append(all, frame(2, []byte("binary is not published"))...)
			}
			if _, err := subs[from].NetConn().Write(all); err != nil {
				t.Fatal(err)
			}
			for _, c := range subs {
				for i := range 20 {
					expect(t, c, websocket.TextMessage, message(i))
				}
			}
		}
		// Who leaves does not disturb the others.
		_ = subs[1].Close()
		_ = subs[0].Close()
		left := subs[2:]
		for i := range 30 {
			if err := left[i%3].WriteMessage(websocket.TextMessage, message(i)); err != nil {
				t.Fatal(err)
			}
			for _, c := range left {
				expect(t, c, websocket.TextMessage, message(i))
			}
		}
		// Echo is not on the topic.
		if err := other.WriteMessage(websocket.TextMessage, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		expect(t, other, websocket.TextMessage, []byte("mine"))
	})
}

// The publications that arrive in one read leave in one write.
func TestTopicOneWrite(t *testing.T) {
	each(t, parsers, []string{"-loops", "2"}, func(t *testing.T, addr string) {
		subs := subscribe(t, addr, 8) // on both loops, all but surely
		var all, want []byte
		for range 20 {
			all = append(all, frame(1, []byte("publication"))...)
			want = append(want, "\x81\x0bpublication"...)
		}
		if _, err := subs[0].NetConn().Write(all); err != nil {
			t.Fatal(err)
		}
		for i, c := range subs {
			got := make([]byte, 2*len(want))
			// One segment on the loopback comes as one read.
			n, err := c.NetConn().Read(got)
			if err != nil || !bytes.Equal(got[:n], want) {
				t.Errorf("subscriber %d read %d bytes of %d (%v)", i, n, len(want), err)
			}
		}
	})
}

// A subscriber that stops reading holds up nobody where writing does not block,
// and gets everything later.
func TestTopicSlow(t *testing.T) {
	each(t, parsers, nil, func(t *testing.T, addr string) {
		subs := subscribe(t, addr, 3)
		const n = 400
		large := text(40000)
		for range n {
			// The client of the library would send fragments.
			if _, err := subs[0].NetConn().Write(frame(1, large)); err != nil {
				t.Fatal(err)
			}
			expect(t, subs[0], websocket.TextMessage, large)
			expect(t, subs[1], websocket.TextMessage, large)
		}
		for range n {
			expect(t, subs[2], websocket.TextMessage, large)
		}
	})
}

func TestPings(t *testing.T) {
	const every = 200 * time.Millisecond
	for _, path := range []string{"/echo", "/topic"} {
		t.Run(path, func(t *testing.T) {
			each(t, servers, []string{"-ping", every.String()}, func(t *testing.T, addr string) {
				const conns, rounds = 4, 5
				// Each gets its pings while it answers, in about the time that the rounds take.
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				took := make(chan time.Duration, conns)
				for range conns {
					c := dial(t, addr, path)
					go func() {
						begin := time.Now()
						pings := 0
						answer := c.PingHandler()
						c.SetPingHandler(func(p string) error {
							if pings++; pings == rounds {
								took <- time.Since(begin)
							}
							return answer(p)
						})
						for {
							if _, _, err := c.ReadMessage(); err != nil {
								return
							}
						}
					}()
				}
				for range conns {
					select {
					case d := <-took:
						// The first comes within a round; a busy machine is late, never early.
						if d < (rounds-2)*every {
							t.Errorf("%d pings in %v", rounds, d)
						}
					case <-ctx.Done():
						t.Fatal("the pings do not come")
					}
				}
			})
		})
	}
}

// Every flag that the bench passes is understood.
func TestFlags(t *testing.T) {
	for _, name := range servers {
		out, _ := exec.Command(filepath.Join(binaries, name), "-h").CombinedOutput()
		for _, flag := range []string{"-listen", "-ping"} {
			if !bytes.Contains(out, []byte(flag)) {
				t.Errorf("%s has no %s", name, flag)
			}
		}
		if got := bytes.Contains(out, []byte("-loops")); got != looped[name] {
			t.Errorf("%s: -loops %v", name, got)
		}
	}
}
