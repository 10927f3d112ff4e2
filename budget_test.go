package perch

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The bytes of heap that an idle session may cost: connected with an HMAC
// token, subscribed, its heartbeat running. docs/memory.md says what they are
// made of. They are counted in the process, so the peers' side must cost it
// nothing: the clients are bare descriptors.
const (
	budgetShared = 740
	budgetOwn    = 915
	// budgetSessions fills whole chunks of the loops' tables, give or take one.
	budgetSessions = 4096
)

func TestHeapPerSession(t *testing.T) {
	for _, c := range []struct {
		name   string
		topic  func(i int) string
		budget int
	}{
		{"shared topic", func(int) string { return "news" }, budgetShared},
		{"own topic", func(i int) string { return fmt.Sprintf("device%d", i) }, budgetOwn},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := runServer(t)
			addr := netip.MustParseAddrPort(s.PublicAddr())
			buf := make([]byte, 4096)
			request := make([]byte, 0, 4096)
			fds := make([]int, 0, budgetSessions+1)
			defer func() {
				for _, fd := range fds {
					_ = unix.Close(fd)
				}
			}()
			token := make([]string, 64) // 64 users are enough to be told apart
			for i := range token {
				var err error
				if token[i], err = IssueToken(s.opts, TokenRequest{Subject: fmt.Sprintf("user%08d", i)}); err != nil {
					t.Fatal(err)
				}
			}
			open := func(i int) {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				fds = append(fds, fd)
				if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
					t.Fatal(err)
				}
				ask := func(request []byte, until string) {
					if _, err := unix.Write(fd, request); err != nil {
						t.Fatal(err)
					}
					n := 0
					for !bytes.Contains(buf[:n], []byte(until)) {
						m, err := unix.Read(fd, buf[n:])
						if err != nil || m == 0 {
							t.Fatalf("read: %d, %v after %q", m, err, buf[:n])
						}
						n += m
					}
				}
				ask([]byte("GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
					"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"), "\r\n\r\n")
				msg := `{"id":1,"connect":{"token":"` + token[i%len(token)] + `"}}` + "\n" +
					`{"id":2,"subscribe":{"channel":"` + c.topic(i) + `"}}`
				request = append(request[:0], 0x81, 0x80|126, byte(len(msg)>>8), byte(len(msg)), 0, 0, 0, 0)
				ask(append(request, msg...), `"id":2`)
			}
			live := func() int {
				// Twice: what stands in a sync.Pool outlives the first.
				runtime.GC()
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int(m.HeapAlloc)
			}
			open(0) // what the first session makes for all
			before := live()
			for i := range budgetSessions {
				open(1 + i)
			}
			per := (live() - before) / budgetSessions
			t.Logf("%d bytes of heap a session", per)
			if per > c.budget {
				t.Errorf("%d bytes of heap a session, more than the %d of the budget", per, c.budget)
			}
			if st := s.net.Stats(); st.Sessions != budgetSessions+1 {
				t.Errorf("%d sessions", st.Sessions)
			}
			if n := s.topics.Counts().Subscriptions; n != budgetSessions+1 {
				t.Errorf("%d subscriptions", n)
			}
		})
	}
}
