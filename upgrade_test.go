package perch

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
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

// A token of a public key is verified in the pool: the handshake waits for it,
// with the frames that came along, and the loop does not.
func TestUpgradeVerifiedInPool(t *testing.T) {
	s := runServer(t, func(o *Options) {
		o.Auth.HMACSecret = ""
		o.Auth.Require = "handshake"
	})
	good, err := IssueToken(s.opts, TokenRequest{Subject: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if s.authority.Cheap(good) {
		t.Fatal("the token is verified on the loop")
	}
	connect := ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte(`{"id":1,"connect":{}}`))))
	for name, tt := range map[string]struct {
		token  string
		status int
	}{
		"good":      {good, http.StatusSwitchingProtocols},
		"forged":    {good[:len(good)-8] + "AAAAAAAA", http.StatusUnauthorized},
		"malformed": {"x.y.z", http.StatusUnauthorized},
		"none":      {"", http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.PublicAddr())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			head := "GET /connection/websocket HTTP/1.1\r\n" + upgradeFields
			if tt.token != "" {
				head += "Authorization: Bearer " + tt.token + "\r\n"
			}
			_, _ = c.Write(append([]byte(head+"\r\n"), connect...))
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status {
				t.Fatalf("status %d, want %d", resp.StatusCode, tt.status)
			}
			if tt.status != http.StatusSwitchingProtocols {
				return
			}
			got, _, err := wsutil.ReadServerData(struct {
				io.Reader
				io.Writer
			}{r, c})
			if err != nil || !strings.Contains(string(got), `"client":`) {
				t.Errorf("got %s, %v", got, err)
			}
		})
	}
	if n := s.registry.ByUser("alice", nil); len(n) > 1 {
		t.Errorf("%d sessions", len(n))
	}
}
