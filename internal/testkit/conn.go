package testkit

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// Timeout is how long any one read or write of a Conn may take. It bounds a
// failing test; no passing one comes near it.
const Timeout = 10 * time.Second

// Key is the Sec-WebSocket-Key of test handshakes, from RFC 6455, section 1.3,
// and Accept the answer that it asks for.
const (
	Key    = "dGhlIHNhbXBsZSBub25jZQ=="
	Accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// AcceptOf is the Sec-WebSocket-Accept that answers key.
func AcceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// Conn is a client connection that sends what it is told to, and reads HTTP
// responses and server frames. One goroutine reads, one writes.
type Conn struct {
	net.Conn
	R *bufio.Reader
}

// Dial connects to host:port.
func Dial(addr string) (*Conn, error) {
	c, err := net.DialTimeout("tcp", addr, Timeout)
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: c, R: bufio.NewReaderSize(c, 64<<10)}, nil
}

// Head is an opening handshake for path, with the extra header lines (without
// line ends) behind the required ones.
func Head(host, path string, extra ...string) string {
	return HeadOf(append([]string{
		"GET " + path + " HTTP/1.1",
		"Host: " + host,
		"Upgrade: websocket",
		"Connection: Upgrade",
		"Sec-WebSocket-Key: " + Key,
		"Sec-WebSocket-Version: 13",
	}, extra...)...)
}

// HeadOf joins lines to a request head.
func HeadOf(lines ...string) string {
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// Open dials, upgrades and checks the handshake's answer.
func Open(addr, path string, extra ...string) (*Conn, error) {
	c, err := Dial(addr)
	if err != nil {
		return nil, err
	}
	if err := c.Send([]byte(Head(addr, path, extra...))); err != nil {
		c.Close()
		return nil, err
	}
	if _, err := c.Upgraded(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Upgraded reads the answer to Head and checks it, RFC 6455, section 4.1.
func (c *Conn) Upgraded() (*http.Response, error) {
	resp, err := c.Response("GET")
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode != http.StatusSwitchingProtocols:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return resp, fmt.Errorf("testkit: upgrade: %s %q", resp.Status, body)
	case !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket"),
		!strings.EqualFold(resp.Header.Get("Connection"), "upgrade"),
		resp.Header.Get("Sec-WebSocket-Accept") != Accept,
		resp.Header.Get("Sec-WebSocket-Extensions") != "":
		return resp, fmt.Errorf("testkit: upgrade: bad answer %v", resp.Header)
	}
	return resp, nil
}

// Response reads the head of an HTTP response to a request of method; the body
// is for the caller to read to its end.
func (c *Conn) Response(method string) (*http.Response, error) {
	if err := c.SetReadDeadline(time.Now().Add(Timeout)); err != nil {
		return nil, err
	}
	return http.ReadResponse(c.R, &http.Request{Method: method})
}

// Send writes p at once.
func (c *Conn) Send(p []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	_, err := c.Write(p)
	return err
}

// SendFrames writes the frames with one write.
func (c *Conn) SendFrames(frames ...Frame) error { return c.Send(Wire(frames...)) }

// cutPause lies between the pieces of a split write, so that the server reads
// them apart: TCP keeps no boundaries, and without it the pieces would mostly
// arrive as one. A test stays right when they do; it then covers less.
const cutPause = 300 * time.Microsecond

// SendCut writes p in pieces that end at the given places.
func (c *Conn) SendCut(p []byte, at ...int) error {
	from := 0
	for _, to := range append(at, len(p)) {
		if to <= from || to > len(p) {
			continue
		}
		if from > 0 {
			time.Sleep(cutPause)
		}
		if err := c.Send(p[from:to]); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// SendEach writes p byte by byte.
func (c *Conn) SendEach(p []byte) error {
	at := make([]int, len(p))
	for i := range at {
		at[i] = i + 1
	}
	return c.SendCut(p, at...)
}

// Frame reads the next server frame.
func (c *Conn) Frame() (Frame, error) { return c.FrameWithin(Timeout) }

// FrameWithin reads the next server frame, or fails after d.
func (c *Conn) FrameWithin(d time.Duration) (Frame, error) {
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return Frame{}, err
	}
	return ReadFrame(c.R)
}

// Message reads the next whole message. It fails on a close frame with a
// *CloseError; pings and pongs in between are skipped.
func (c *Conn) Message() ([]byte, error) {
	var msg []byte
	for {
		f, err := c.Frame()
		switch {
		case err != nil:
			return nil, err
		case f.Opcode == OpClose:
			return nil, &CloseError{Code: f.CloseCode(), Reason: f.CloseReason()}
		case f.Opcode > OpBinary:
			continue
		}
		msg = append(msg, f.Payload...)
		if f.Fin {
			return msg, nil
		}
	}
}

// Closed skips data frames up to the close frame and returns its code and
// reason.
func (c *Conn) Closed() (uint16, string, error) {
	for {
		_, err := c.Message()
		var ce *CloseError
		switch {
		case errors.As(err, &ce):
			return ce.Code, ce.Reason, nil
		case err != nil:
			return 0, "", err
		}
	}
}

// Ended reads until the server ends the connection, within d. What still
// arrives is dropped. A reset counts as an end.
func (c *Conn) Ended(d time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c.R)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	return nil
}

// Quiet fails when anything arrives, or the connection ends, within d.
func (c *Conn) Quiet(d time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	p, err := c.R.Peek(1)
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return nil
	case err != nil:
		return err
	}
	rest, _ := c.R.Peek(c.R.Buffered())
	return fmt.Errorf("testkit: not quiet: %d bytes, %q", len(rest), bytes.Clone(p))
}

// CloseWrite sends FIN and leaves the reading side open.
func (c *Conn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// Reset ends the connection with RST. It leaves no TIME_WAIT behind.
func (c *Conn) Reset() error {
	if err := c.Conn.(*net.TCPConn).SetLinger(0); err != nil {
		return err
	}
	return c.Conn.Close()
}

// CloseError is the server's close frame, met while a message was awaited.
type CloseError struct {
	Code   uint16
	Reason string
}

func (e *CloseError) Error() string { return fmt.Sprintf("testkit: closed: %d %q", e.Code, e.Reason) }
