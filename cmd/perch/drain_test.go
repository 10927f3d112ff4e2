package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"perch/internal/testkit"
)

var publishedNumber = regexp.MustCompile(`"n":(\d+)`)

// TestDrainProcess: a process under load is told to end. What the server API
// acknowledged before is with every subscriber, in order and without a gap;
// everybody is told to come back, calls of the API are answered to the end, and
// the exit code is 0.
func TestDrainProcess(t *testing.T) {
	const subscribers = 60
	dir := t.TempDir()
	s := supervise(t, dir, []string{"PERCH_DRAIN_RATE=60", "PERCH_HEARTBEAT_INTERVAL=1h", "PERCH_LIMITS_ACCEPT_SILENT=true"}, "--insecure")
	s.told(t)
	key, err := os.ReadFile(filepath.Join(dir, "perch-data", apiKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	var peers []*testkit.Conn
	for range subscribers {
		w, err := testkit.Open(s.public, "/connection/websocket")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Reset() })
		if err := w.SendFrames(testkit.Text(string(testkit.Commands(testkit.ConnectCommand(""), testkit.SubscribeCommand(2, "news"))))); err != nil {
			t.Fatal(err)
		}
		for got := ""; !strings.Contains(got, `"id":2`); {
			msg, err := w.Message()
			if err != nil {
				t.Fatal(err)
			}
			got = string(msg)
		}
		peers = append(peers, w)
	}
	// Who says nothing, or half of it, is in nobody's way.
	for _, text := range []string{"", "GET / HTTP/1.1\r\n"} {
		c, err := net.Dial("tcp", s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}

	var acked atomic.Int64
	begun := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		client := &http.Client{Timeout: testkit.Timeout}
		defer client.CloseIdleConnections()
		for n := 0; ; n++ {
			req, _ := http.NewRequest(http.MethodPost, "http://"+s.admin+"/api/publish",
				strings.NewReader(fmt.Sprintf(`{"channel":"news","data":{"n":%d}}`, n)))
			req.Header.Set("X-API-Key", strings.TrimSpace(string(key)))
			resp, err := client.Do(req)
			if err != nil {
				// The end: the port is gone, and no call was cut in the middle of its answer.
				if errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("call %d was cut off: %v", n, err)
				}
				return
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"result"`) {
				t.Errorf("call %d: %s %s %v", n, resp.Status, body, err)
				return
			}
			if acked.Add(1) == 50 {
				close(begun)
			}
		}
	})
	<-begun
	before := acked.Load()
	s.signal(t, syscall.SIGTERM)
	counts := make([]int, len(peers))
	for i, w := range peers {
		all.Go(func() {
			for want := 0; ; {
				msg, err := w.Message()
				var end *testkit.CloseError
				if errors.As(err, &end) && end.Code == 3001 {
					counts[i] = want
					return
				}
				if err != nil {
					t.Errorf("subscriber %d, after %d: %v", i, want, err)
					return
				}
				for _, m := range publishedNumber.FindAllStringSubmatch(string(msg), -1) {
					if m[1] != strconv.Itoa(want) {
						t.Errorf("subscriber %d: got %s, want %d", i, m[1], want)
						return
					}
					want++
				}
			}
		})
	}
	s.ends(t, 0)
	all.Wait()
	different := map[int]bool{}
	for i, n := range counts {
		if int64(n) < before {
			t.Errorf("subscriber %d got %d of the %d that were acknowledged before", i, n, before)
		}
		different[n] = true
	}
	if len(different) < subscribers/6 {
		t.Errorf("%d subscribers were sent away at %d moments", subscribers, len(different))
	}
}
