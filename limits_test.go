package perch_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"perch"
	"perch/internal/testkit"
)

// TestSessionsPerUser: the session too many is told not to come back; another
// user's, and one after others have gone, are let in.
func TestSessionsPerUser(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Limits.SessionsPerUser = 2 })
	first := s.session(t, "alice")
	s.session(t, "alice")
	s.session(t, "bob")
	over := s.dial(t, "/connection/websocket")
	over.send(testkit.ConnectCommand(token("alice", testTTL)))
	over.closes(3504)
	_, e := s.stream(t, "token="+testkit.Token(testSecret, "alice", testTTL, nil))
	if p := e.want(t); p.Disconnect == nil || p.Disconnect.Code != 3504 {
		t.Errorf("an event stream too many: %+v", p)
	}
	if n := s.metric(t, "perch_user_sessions_refused_total"); n != 2 {
		t.Errorf("%v counted", n)
	}
	_ = first.Reset()
	eventually(t, "the first session's end", func() bool { return s.metric(t, "perch_sessions") == 2 })
	s.session(t, "alice")
}

// TestCommandRate: what is above the rate gets 111, or ends the session, as the
// policy says.
func TestCommandRate(t *testing.T) {
	for _, policy := range []string{"reply", "close"} {
		t.Run(policy, func(t *testing.T) {
			s := start(t, func(o *perch.Options) { o.Limits.CommandRate, o.Pool.Overflow = 20, policy })
			p := s.session(t, "alice")
			var commands []string
			for id := 2; id < 42; id++ {
				commands = append(commands, testkit.SubscribeCommand(id, fmt.Sprint("topic", id)))
			}
			p.send(commands...)
			if policy == "close" {
				p.closes(3013)
				return
			}
			good, refused := 0, 0
			for good+refused < 40 {
				for _, r := range p.lines() {
					switch e, _ := r["error"].(map[string]any); {
					case e == nil:
						good++
					case e["code"] == float64(111):
						refused++
					default:
						t.Fatalf("%v", r)
					}
				}
			}
			// The connect command was one of the burst; while they were on their way the
			// bucket has gained some.
			if good < 19 || refused < 10 {
				t.Errorf("%d done, %d refused", good, refused)
			}
			if n := s.metric(t, "perch_commands_rate_limited_total"); int(n) != refused {
				t.Errorf("%v counted, %d refused", n, refused)
			}
		})
	}
}

// TestForwardedForOverHTTP: the slowing of brute force goes by the address that a
// trusted proxy names; of anybody else by the socket's.
func TestForwardedForOverHTTP(t *testing.T) {
	guess := func(s *server, from string) int {
		req, err := http.NewRequest(http.MethodPost, "http://"+s.public+"/v1/token", strings.NewReader("grant_type=client_credentials"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("X-Forwarded-For", from)
		req.SetBasicAuth(perch.DevClient, "wrong")
		status, _ := do(t, req)
		return status
	}
	for _, trusted := range []bool{true, false} {
		s := start(t, func(o *perch.Options) {
			o.Dev = true
			if trusted {
				o.Proxy.Trusted = []string{"127.0.0.0/8"}
			}
		})
		status := 0
		for range 100 {
			if status = guess(s, "192.0.2.1"); status == http.StatusTooManyRequests {
				break
			}
		}
		if status != http.StatusTooManyRequests {
			t.Fatalf("guessing is not slowed: %d", status)
		}
		want := http.StatusTooManyRequests
		if trusted {
			want = http.StatusUnauthorized
		}
		if got := guess(s, "198.51.100.7:4711"); got != want {
			t.Errorf("trusted %v: another address gets %d, want %d", trusted, got, want)
		}
	}
}
