package perch_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
)

// slowTimeout is the configured time of a request in these tests: short, and
// far beyond what an honest client on loopback takes.
const slowTimeout = 400 * time.Millisecond

// TestSecuritySlow: a peer that takes its time over HTTP, in whatever way, is
// closed, gives its place back, and keeps nobody else waiting meanwhile.
func TestSecuritySlow(t *testing.T) {
	const (
		places = 256
		each   = 10 // peers of each kind, all at once
	)
	s := start(t, func(o *perch.Options) {
		o.Demo, o.Echo = true, true
		o.Limits.HTTPConnections = places
		o.Limits.HandshakeTimeout, o.Limits.HTTPTimeout = slowTimeout, slowTimeout
	})
	host := "Host: " + s.public
	page := testkit.HeadOf("GET /demo HTTP/1.1", host)
	post := func(lines ...string) string {
		return testkit.HeadOf(append([]string{"POST /v1/token HTTP/1.1", host, "Content-Type: application/x-www-form-urlencoded"}, lines...)...)
	}
	held := func() string {
		_, text := get(t, "http://"+s.admin+"/metrics")
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(line, "perch_http_connections "); ok {
				return strings.TrimSpace(v)
			}
		}
		return "none"
	}
	var wg sync.WaitGroup
	for _, c := range []struct {
		name string
		// page: the client fetches a page first, so that net/http has the connection.
		page bool
		send string
		// drip is sent behind it, a byte at a time, for as long as it is taken.
		drip string
		// status is what may be answered before the end; 0: nothing.
		status int
	}{
		{"a head without end", false, "GET /demo HTTP/1.1\r\n" + host + "\r\n", "X: " + strings.Repeat("x", 4000), 0},
		{"an upgrade's head without end", false, "GET /echo HTTP/1.1\r\n" + host + "\r\n", "X: " + strings.Repeat("x", 4000), 0},
		{"no head at all", false, "", "", 0},
		{"half a request line", false, "GET /de", "", 0},
		{"empty lines without end", false, "", strings.Repeat("\r\n", 2000), 0},
		{"a later head without end", true, "GET /demo HTTP/1.1\r\n" + host + "\r\n", "X: " + strings.Repeat("x", 4000), 0},
		{"half a later head", true, "GET /demo HTTP/1.1\r\nHo", "", 400},
		{"silence behind an answer", true, "", "", 0},
		{"no body", false, post("Content-Length: 100"), "", 400},
		{"a body that drips", false, post("Content-Length: 4000"), "grant_type=" + strings.Repeat("x", 3900), 400},
		{"half a body", false, post("Content-Length: 100") + "grant_type=", "", 400},
		{"chunks that drip", false, post("Transfer-Encoding: chunked"), strings.Repeat("1\r\nx\r\n", 600), 400},
		{"a chunk's extension without end", false, post("Transfer-Encoding: chunked"), "1;x=" + strings.Repeat("x", 3900), 400},
		{"a trailer without end", false, post("Transfer-Encoding: chunked") + "0\r\n", "X: " + strings.Repeat("x", 3900), 400},
		{"a body that was waited for", false, post("Content-Length: 100", "Expect: 100-continue"), "", 400},
		{"a body that nobody reads", false, testkit.HeadOf("POST /nowhere HTTP/1.1", host, "Content-Length: 200000"), strings.Repeat("b", 4000), 404},
		{"a later body that drips", true, post("Content-Length: 4000"), "grant_type=" + strings.Repeat("x", 3900), 400},
	} {
		for range each {
			wg.Go(func() {
				if err := slowPeer(s.public, map[bool]string{true: page}[c.page], c.send, c.drip, c.status); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			})
		}
	}
	// Meanwhile others are served, over HTTP and as WebSockets.
	for range 10 {
		if got := statusOf(t, s.public, page); got != http.StatusOK {
			t.Errorf("meanwhile: %d", got)
		}
		w, err := testkit.Open(s.public, "/echo")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.SendFrames(testkit.Text("x")); err != nil {
			t.Error(err)
		}
		if err := gotText("x").check(w); err != nil {
			t.Error(err)
		}
		w.Reset()
	}
	wg.Wait()
	eventually(t, "every place is free again", func() bool { return held() == "0" })
	t.Run("more of them than places", func(t *testing.T) {
		var slow []*testkit.Conn
		for range places {
			w, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Reset()
			if err := w.Send([]byte(post("Content-Length: 100"))); err != nil {
				t.Fatal(err)
			}
			slow = append(slow, w)
		}
		// WebSockets have places of their own, and who waits for a place gets one when
		// the time of those who dawdle is over.
		w, err := testkit.Open(s.public, "/echo")
		if err != nil {
			t.Fatal(err)
		}
		w.Reset()
		eventually(t, "a place is free", func() bool { return statusOf(t, s.public, page) == http.StatusOK })
		for _, w := range slow {
			if err := w.Ended(testkit.Timeout); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("an answer that nobody takes", func(t *testing.T) {
		for range each {
			wg.Go(func() {
				if err := greedyPeer(s.public, page); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		eventually(t, "every place is free again", func() bool { return held() == "0" })
	})
}

// slowPeer sends what it has to, slowly, and waits for its end.
func slowPeer(addr, page, send, drip string, status int) error {
	w, err := testkit.Dial(addr)
	if err != nil {
		return err
	}
	defer w.Reset()
	if page != "" {
		if err := w.Send([]byte(page)); err != nil {
			return err
		}
		resp, err := w.Response("GET")
		if err != nil {
			return err
		}
		if _, err := w.R.Discard(int(resp.ContentLength)); err != nil {
			return err
		}
	}
	if err := w.Send([]byte(send)); err != nil {
		return err
	}
	over := make(chan struct{})
	dripped := make(chan bool, 1)
	go func() {
		tick := time.NewTicker(slowTimeout / 20)
		defer tick.Stop()
		for i := range len(drip) {
			select {
			case <-over:
				dripped <- false
				return
			case <-tick.C:
				_ = w.Send([]byte(drip[i : i+1])) // fails once the server has closed
			}
		}
		dripped <- drip != ""
	}()
	var got int
	resp, err := w.Response("POST")
	for err == nil && resp.StatusCode == http.StatusContinue {
		resp, err = w.Response("POST")
	}
	if err == nil {
		got = resp.StatusCode
	}
	ended := w.Ended(testkit.Timeout)
	close(over)
	if <-dripped {
		return fmt.Errorf("all of it was taken")
	}
	if ended != nil {
		return fmt.Errorf("not ended: %w", ended)
	}
	if got != 0 && got != status {
		return fmt.Errorf("answered %d, want %d or nothing", got, status)
	}
	return nil
}

// greedyPeer asks for pages and takes none.
func greedyPeer(addr, page string) error {
	w, err := testkit.Dial(addr)
	if err != nil {
		return err
	}
	defer w.Reset()
	for {
		// What the server can't write it keeps, and it reads no more meanwhile; at the
		// end of its patience the connection is reset or shut.
		if err := w.SetWriteDeadline(time.Now().Add(testkit.Timeout)); err != nil {
			return err
		}
		if _, err := w.Write([]byte(strings.Repeat(page, 100))); err != nil {
			if strings.Contains(err.Error(), "timeout") {
				return fmt.Errorf("still open: %w", err)
			}
			return nil
		}
	}
}
