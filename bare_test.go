package perch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	pb "github.com/centrifugal/protocol"
	"golang.org/x/sys/unix"

	"perch/internal/frame"
	"perch/protocol"
	"perch/session"
)

// bare are clients that are descriptors and nothing more: what is counted in
// the process of the tests is the server's. Their buffers are made once, and
// all of it runs on the test's goroutine.
type bare struct {
	t      testing.TB
	to     *unix.SockaddrInet4
	tokens []string
	fds    []int
	buf    []byte
	out    []byte
}

// bareTimeout is how long a client waits for bytes that should be there.
const bareTimeout = 20

// newBare makes room for n clients of s, which are closed when the test ends.
func newBare(t testing.TB, s *Server, n int) *bare {
	t.Helper()
	addr := netip.MustParseAddrPort(s.PublicAddr())
	b := &bare{
		t: t, to: &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()},
		tokens: make([]string, 64), // 64 users are enough to be told apart
		fds:    make([]int, 0, n), buf: make([]byte, 64<<10), out: make([]byte, 0, 64<<10),
	}
	for i := range b.tokens {
		var err error
		if b.tokens[i], err = IssueToken(s.opts, TokenRequest{Subject: fmt.Sprintf("user%08d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(b.close)
	return b
}

func (b *bare) close() {
	for _, fd := range b.fds {
		_ = unix.Close(fd)
	}
	b.fds = b.fds[:0]
}

// dial opens a WebSocket; header is a header line or nothing.
func (b *bare) dial(path, header string) int {
	b.t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.fds = append(b.fds, fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: bareTimeout}); err != nil {
		b.t.Fatal(err)
	}
	if err := unix.Connect(fd, b.to); err != nil {
		b.t.Fatal(err)
	}
	b.write(fd, []byte("GET "+path+" HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+header+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))
	b.until(fd, "\r\n\r\n")
	return fd
}

// session opens a session of the client protocol that subscribes to a topic.
func (b *bare) session(e session.Encoding, topic string) int {
	b.t.Helper()
	header := ""
	if e == session.EncodingProtobuf {
		header = "Sec-WebSocket-Protocol: " + protobufProtocol + "\r\n"
	}
	fd := b.dial("/connection/websocket", header)
	connect := `{"id":1,"connect":{"token":"` + b.tokens[len(b.fds)%len(b.tokens)] + `"}}`
	subscribe := `{"id":2,"subscribe":{"channel":"` + topic + `"}}`
	if e == session.EncodingProtobuf {
		b.write(fd, b.frame(0x82, protobufCommands(b.t, connect, subscribe)))
		b.until(fd, "\x08\x02\x32\x00") // id: 2, subscribe: {}
	} else {
		b.write(fd, b.frame(0x81, []byte(connect+"\n"+subscribe)))
		b.until(fd, `"id":2`)
	}
	return fd
}

// protobufCommands is a message of commands that are written in JSON.
func protobufCommands(t testing.TB, commands ...string) []byte {
	t.Helper()
	var out []byte
	for _, text := range commands {
		var c pb.Command
		if err := protocol.Decode([]byte(text), protocol.JSON, &c); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		raw, err := c.MarshalCF()
		if err != nil {
			t.Fatal(err)
		}
		out = append(binary.AppendUvarint(out, uint64(len(raw))), raw...)
	}
	return out
}

// frame is a client's frame, masked with zeros; it lives until the next one.
func (b *bare) frame(first byte, payload []byte) []byte {
	b.out = append(b.out[:0], first)
	if n := len(payload); n < 126 {
		b.out = append(b.out, 0x80|byte(n))
	} else {
		b.out = append(b.out, 0x80|126, byte(n>>8), byte(n))
	}
	b.out = append(b.out, 0, 0, 0, 0)
	b.out = append(b.out, payload...)
	return b.out
}

func (b *bare) write(fd int, p []byte) {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil && err != unix.EINTR {
			b.t.Fatalf("write: %v", err)
		}
		p = p[max(n, 0):]
	}
}

// more reads once, behind the n bytes that are in the buffer.
func (b *bare) more(fd, n int) int {
	for {
		m, err := unix.Read(fd, b.buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			b.t.Fatalf("read: %d, %v after %q", m, err, b.buf[:n])
		}
		return n + m
	}
}

// until reads up to a text.
func (b *bare) until(fd int, text string) []byte {
	n := 0
	for !bytes.Contains(b.buf[:n], []byte(text)) {
		n = b.more(fd, n)
	}
	return b.buf[:n]
}

// take reads frames of fd until want has come k times, answers the pings on the
// way and returns how many these were. Anything else ends the test. With k of 0
// it reads once.
func (b *bare) take(fd int, want []byte, k int) (pings int) {
	for n, at := 0, 0; ; {
		n = b.more(fd, n)
		for at < n {
			_, _, size := frame.Next(b.buf[at:n])
			if size == 0 {
				break
			}
			f := b.buf[at : at+size]
			at += size
			if k > 0 && bytes.Equal(f, want) {
				k--
			} else if pong := pongFor(f); pong != nil {
				b.write(fd, pong)
				pings++
			} else {
				b.t.Fatalf("read %.200q, want %.200q %d times", f, want, k)
			}
		}
		if k == 0 && at == n {
			return pings
		}
	}
}

// The client's answers to pings, masked with zeros.
var (
	pongJSON     = []byte{0x81, 0x82, 0, 0, 0, 0, '{', '}'}
	pongProtobuf = []byte{0x82, 0x81, 0, 0, 0, 0, 0}
	pongFrame    = []byte{0x8a, 0x80, 0, 0, 0, 0}
)

// pongFor is the answer to a frame, nil where that is no ping.
func pongFor(f []byte) []byte {
	switch {
	case bytes.Equal(f, protocol.PingFrame(protocol.JSON)):
		return pongJSON
	case bytes.Equal(f, protocol.PingFrame(protocol.Protobuf)):
		return pongProtobuf
	case len(f) == 2 && f[0] == 0x89:
		return pongFrame
	}
	return nil
}
