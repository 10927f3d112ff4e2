package netpoll

import (
	"testing"
	"testing/synctest"
	"time"

	"perch/session"
)

// TestClockJumps: the wall clock is set, by hours, while sessions live. What
// expires at a time of day goes by it, within a turn of the wheel; pings, pongs
// and deadlines go by the time that passes, and nobody is closed for it.
func TestClockJumps(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": 3 * time.Hour, "back": -3 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var offset time.Duration
				r := newRig(t, func(o *Options) { o.now = func() time.Time { return time.Now().Add(offset) } })
				expired := 0
				r.handler.expire = func(s *session.Session) { expired++; s.Close(session.ReasonExpired) }
				ends, stays := r.upgraded(), r.upgraded()
				r.post(func() { ends.sess().SetExpiry(time.Now().Add(time.Hour).Unix()) })
				pings := 0
				live := func() {
					for range stays.pinged() {
						pings++
						stays.feed(pong)
					}
					for range ends.pinged() {
						ends.feed(pong)
					}
				}
				r.pass(40*time.Second, live)
				handshake := r.accept() // its deadline is 5 s from now
				offset = jump
				r.pass(4*time.Second, live)
				if handshake.gone() {
					t.Error("the handshake's time is over before it is")
				}
				r.pass(4*time.Second, live)
				if !handshake.gone() {
					t.Error("the handshake's time does not end")
				}
				r.pass(2*time.Minute, live)
				if stays.gone() {
					t.Error("a session that does not expire is gone")
				}
				if pings < 6 || pings > 8 {
					t.Errorf("%d pings in 168 s", pings)
				}
				switch {
				case jump > 0 && (expired != 1 || !ends.gone()):
					t.Errorf("what has expired by the clock is there")
				case jump < 0 && (expired != 0 || ends.gone()):
					t.Errorf("what has not expired by the clock is gone")
				}
				if jump < 0 {
					// Set right again, and past the end.
					offset = time.Hour
					r.pass(time.Minute, live)
					if expired != 1 || !ends.gone() {
						t.Error("what has expired by the clock, set right, is there")
					}
				}
			})
		})
	}
}
