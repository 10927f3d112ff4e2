package perch

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"perch/topic"
)

// budgetPositioned is what a subscription with a position may cost more.
const budgetPositioned = 250

// stream opens an event stream.
func (b *bare) stream(token string) int {
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
	b.write(fd, []byte("GET /connection/uni_sse HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+token+"\r\n\r\n"))
	b.until(fd, `{"connect":`)
	return fd
}

// TestHeapPerListener: an idle session of a peer that only listens costs no more
// than one of the client protocol that has one subscription.
func TestHeapPerListener(t *testing.T) {
	for _, c := range []struct {
		name, topic string
		events      bool
		budget      int
	}{
		{"WebSocket", "news", false, budgetShared},
		{"event stream", "news", true, budgetShared},
		{"event stream with a position", "kept:news", true, budgetShared + budgetPositioned},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := runServer(t, func(o *Options) {
				o.Loops = 1
				o.Heartbeat.Interval = time.Hour
				o.Topics.Namespaces = append(o.Topics.Namespaces, topic.NamespaceOptions{
					Name: "kept", HistorySize: 10, HistoryTTL: time.Hour, ForceRecovery: true,
				})
			})
			b := newBare(t, s, budgetChunk/2+budgetSessions)
			for i := range b.tokens {
				var err error
				b.tokens[i], err = IssueToken(s.opts, TokenRequest{Subject: fmt.Sprintf("user%08d", i), Channels: []string{c.topic}})
				if err != nil {
					t.Fatal(err)
				}
			}
			var live []int
			for _, n := range []int{0, budgetChunk / 2, budgetSessions} {
				for range n {
					token := b.tokens[len(b.fds)%len(b.tokens)]
					if c.events {
						b.stream(token)
						continue
					}
					b.dial("/connection/uni_websocket", "Authorization: Bearer "+token+"\r\n")
				}
				collect()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				live = append(live, int(m.HeapAlloc))
			}
			per := (live[2] - live[1]) / budgetSessions
			t.Logf("%d bytes of heap a session", per)
			if per > c.budget {
				t.Errorf("%d bytes of heap a session, more than the %d of the budget", per, c.budget)
			}
			if n := s.topics.Counts().Subscriptions; n != len(b.fds) {
				t.Errorf("%d subscriptions of %d sessions", n, len(b.fds))
			}
		})
	}
}
