package perch

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"perch/session"
)

// The bytes of heap that an idle session may cost: connected with an HMAC
// token, subscribed, its heartbeat running. docs/memory.md says what they are
// made of.
const (
	budgetShared = 715
	budgetOwn    = 895
	// budgetChunk is how many connections a loop's table grows by. What is counted
	// is whole chunks, on one loop: the last one's free places are no session's.
	budgetChunk    = 282
	budgetSessions = 14 * budgetChunk
)

// budgetCases are the sessions that the budget and the table of docs/memory.md
// are about.
var budgetCases = []struct {
	name   string
	topic  func(i int) string
	budget int
}{
	{"shared topic", func(int) string { return "news" }, budgetShared},
	{"own topic", func(i int) string { return fmt.Sprintf("device%d", i) }, budgetOwn},
}

// hold calls look with no session, with half a chunk of them, and with
// budgetSessions more. The clients cost the process nothing.
func hold(t *testing.T, topic func(i int) string, look func()) {
	t.Helper()
	s := runServer(t, func(o *Options) {
		o.Loops = 1
		o.Heartbeat.Interval = time.Hour
	})
	b := newBare(t, s, budgetChunk/2+budgetSessions)
	look()
	for _, n := range []int{budgetChunk / 2, budgetSessions} {
		for range n {
			b.session(session.EncodingJSON, topic(len(b.fds)))
		}
		look()
	}
	if st := s.net.Stats(); st.Sessions != len(b.fds) {
		t.Errorf("%d sessions", st.Sessions)
	}
	if n := s.topics.Counts().Subscriptions; n != len(b.fds) {
		t.Errorf("%d subscriptions", n)
	}
}

// collect leaves what lives on the heap. Twice: what stands in a sync.Pool
// outlives the first.
func collect() {
	runtime.GC()
	runtime.GC()
}

func TestHeapPerSession(t *testing.T) {
	for _, c := range budgetCases {
		t.Run(c.name, func(t *testing.T) {
			var live []int
			hold(t, c.topic, func() {
				collect()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				live = append(live, int(m.HeapAlloc))
			})
			per := (live[2] - live[1]) / budgetSessions
			t.Logf("%d bytes of heap a session", per)
			if per > c.budget {
				t.Errorf("%d bytes of heap a session, more than the %d of the budget", per, c.budget)
			}
		})
	}
}
