package perch

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

const upgradeFields = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// The loops look at the target as it is sent, Gin at the path that it means.
// What is an endpoint for Gin alone must not go back and forth between them.
func TestUpgradeOfAnotherSpelling(t *testing.T) {
	s := runServer(t)
	for _, target := range []string{
		"/connection%2Fwebsocket", "/connection/%77ebsocket", "foo://x/connection/websocket", "//connection/websocket",
	} {
		t.Run(target, func(t *testing.T) {
			c, err := net.Dial("tcp", s.PublicAddr())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			before := s.net.Stats().Handshakes["handed_off"]
			_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\n%s\r\n", target, upgradeFields)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode < 400 || resp.StatusCode >= 500 {
				t.Errorf("status %d", resp.StatusCode)
			}
			if n := s.net.Stats().Handshakes["handed_off"] - before; n > 2 { // the count may lag by one
				t.Errorf("handed off %d times", n)
			}
		})
	}
}

// What is refused in place is refused as well when it comes second on a
// connection that net/http has.
func TestUpgradeOnKeptConnection(t *testing.T) {
	s := runServer(t)
	for name, request := range map[string]string{
		"chunked":  "GET /connection/websocket HTTP/1.1\r\n" + upgradeFields + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"body":     "GET /connection/websocket HTTP/1.1\r\n" + upgradeFields + "Content-Length: 2\r\n\r\nhi",
		"HTTP/1.0": "GET /connection/websocket HTTP/1.0\r\n" + upgradeFields + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.PublicAddr())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			r := bufio.NewReader(c)
			_, _ = fmt.Fprintf(c, "GET /none HTTP/1.1\r\nHost: x\r\n\r\n%s", request)
			for _, want := range []int{http.StatusNotFound, http.StatusBadRequest} {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != want {
					t.Errorf("status %d, want %d", resp.StatusCode, want)
				}
			}
		})
	}
}
