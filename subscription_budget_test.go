package perch

import (
	"runtime"
	"testing"
	"time"

	"perch/session"
	"perch/topic"
)

// TestHeapPerSubscription: what a further subscription adds to an idle session.
func TestHeapPerSubscription(t *testing.T) {
	for _, c := range []struct {
		name, topic string
		budget      int
	}{
		{"plain", "all", 64},
		{"with recovery, presence and joins", "kept:all", budgetPositioned},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := runServer(t, func(o *Options) {
				o.Loops = 1
				o.Heartbeat.Interval = time.Hour
				o.Topics.JoinLeaveInterval = time.Millisecond // what waits to be told is no subscription's
				o.Topics.Namespaces = append(o.Topics.Namespaces, topic.NamespaceOptions{
					Name: "kept", AllowSubscribeForClient: true, HistorySize: 10, HistoryTTL: time.Hour, ForceRecovery: true,
					Presence: true, JoinLeave: true, AllowPresenceForSubscriber: true,
				})
			})
			b := newBare(t, s, budgetSessions)
			for range budgetSessions {
				b.session(session.EncodingJSON, "news")
			}
			var live []int
			look := func() {
				collect()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				live = append(live, int(m.HeapAlloc))
			}
			look()
			for _, fd := range b.fds {
				b.write(fd, b.frame(0x81, []byte(`{"id":3,"subscribe":{"channel":"`+c.topic+`"}}`)))
				b.until(fd, `"id":3`)
			}
			look()
			per := (live[1] - live[0]) / budgetSessions
			t.Logf("%d bytes of heap a subscription", per)
			if n := s.topics.Counts().Subscriptions; n != 2*budgetSessions {
				t.Errorf("%d subscriptions", n)
			}
			if per > c.budget {
				t.Errorf("%d bytes of heap a subscription, more than the %d of the budget", per, c.budget)
			}
		})
	}
}
