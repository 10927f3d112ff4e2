package netpoll

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestSubject(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "2001:db8:1:2:ffff::": "2001:db8:1:2::",
	} {
		got, ok := subject(&net.TCPAddr{IP: net.ParseIP(in)})
		if !ok || got.String() != want {
			t.Errorf("%s: got %v, want %s", in, got, want)
		}
	}
}

func TestRate(t *testing.T) {
	a := newAdmission(0, 10)
	now := a.updated
	took := 0
	for range 100 {
		if a.spend(now) {
			took++
		}
	}
	if took != 10 {
		t.Errorf("a full bucket gave %d", took)
	}
	if a.spend(now.Add(50 * time.Millisecond)) {
		t.Error("half a token was enough")
	}
	if !a.spend(now.Add(100 * time.Millisecond)) {
		t.Error("no token after a tenth of a second")
	}
	took = 0
	for range 100 {
		if a.spend(now.Add(time.Hour)) {
			took++
		}
	}
	if took != 10 {
		t.Errorf("an hour later the bucket gave %d", took)
	}
}

// refused sends a head and returns the answer's status, after a look at its
// Retry-After.
func answer(t *testing.T, addr string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = fmt.Fprintf(c, "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || n < 1 {
			t.Errorf("%d with Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
		}
	}
	return resp.StatusCode
}

func TestAddressCap(t *testing.T) {
	s, addr := start(t, func(o *Options) { o.ConnectionsPerAddress = 2 })
	a, b := dial(t, addr, "/echo"), dial(t, addr, "/echo")
	if got := answer(t, addr); got != http.StatusTooManyRequests {
		t.Errorf("third connection: %d", got)
	}
	_ = a.Close()
	_ = b.Close()
	eventually(t, "the others don't go", func() bool { return s.Stats().Open == 0 })
	if got := answer(t, addr); got != http.StatusSwitchingProtocols {
		t.Errorf("after the others have gone: %d", got)
	}
}

func TestHandshakeRate(t *testing.T) {
	_, addr := start(t, func(o *Options) { o.ConnectionRate = 1 })
	if got := answer(t, addr); got != http.StatusSwitchingProtocols {
		t.Errorf("first connection: %d", got)
	}
	refused := 0
	for range 5 {
		if answer(t, addr) == http.StatusServiceUnavailable {
			refused++
		}
	}
	if refused < 3 {
		t.Errorf("%d of 5 at once were refused", refused)
	}
}

// However many are refused, the log says so once in a while.
func TestRefusalsAreTold(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	_, addr := start(t, func(o *Options) {
		o.ConnectionRate = 1
		o.Logger = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), nil))
	})
	for range 6 {
		answer(t, addr)
	}
	mu.Lock()
	defer mu.Unlock()
	if n := bytes.Count(log.Bytes(), []byte("connections are refused")); n != 1 {
		t.Errorf("told %d times: %s", n, log.Bytes())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
