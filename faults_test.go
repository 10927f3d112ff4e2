package perch_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"perch/internal/testkit"
)

// faulty is a server as it ships, with sessions that must notice nothing of
// what goes wrong.
type faulty struct {
	*testkit.Server
	admin *http.Client // with a connection that is open already
	good  []*testkit.Conn
}

func startFaulty(t *testing.T, env ...string) *faulty {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	f := &faulty{Server: startProcess(ctx, t, 0, append([]string{"PERCH_ECHO=true", "PERCH_LIMITS_CONNECTIONS=100", "PERCH_HEARTBEAT_INTERVAL=1h"}, env...)...)}
	f.admin = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: testkit.Timeout}
	t.Cleanup(f.admin.CloseIdleConnections)
	for range 4 {
		w, err := testkit.Open(f.Public, "/echo")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Reset() })
		f.good = append(f.good, w)
	}
	f.metric(t, "perch_connections")
	return f
}

// echoes has every good session send and get a message.
func (f *faulty) echoes(t *testing.T, text string) {
	t.Helper()
	for i, w := range f.good {
		if err := w.SendFrames(testkit.Text(text)); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		if err := gotText(text).check(w); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
	}
}

// metric is the value of a line of /metrics, asked for on a connection that is
// open already; 0 where there is none.
func (f *faulty) metric(t *testing.T, name string) float64 {
	t.Helper()
	resp, err := f.admin.Get("http://" + f.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(body)
	if m == nil {
		return 0
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// knock connects and sends an opening handshake; whether it is answered is for
// later.
func (f *faulty) knock(t *testing.T) *testkit.Conn {
	t.Helper()
	w, err := testkit.Dial(f.Public)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Reset() })
	if err := w.Send([]byte(testkit.Head(f.Public, "/echo"))); err != nil {
		t.Fatal(err)
	}
	return w
}

// alive checks that the process is there and ends as it should.
func (f *faulty) alive(t *testing.T) {
	t.Helper()
	select {
	case <-f.Exited():
		t.Fatalf("the process ended:\n%s", f.Output())
	default:
	}
}

// inject has strace make system calls of the process fail until stop is called.
func (f *faulty) inject(t *testing.T, call, fault string) (stop func()) {
	t.Helper()
	log := &logBuffer{}
	cmd := exec.Command("strace", "-f", "-p", strconv.Itoa(f.PID()), "-o", "/dev/null", "-e", "trace="+call, "-e", "inject="+call+":"+fault)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatalf("strace: %v", err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		<-done
	}
	t.Cleanup(stop)
	eventually(t, "strace has the process", func() bool {
		select {
		case <-done:
			t.Fatalf("strace: %s", log)
		default:
		}
		return strings.Contains(log.String(), "attached")
	})
	return stop
}

// starved is the part of the tests of a failing accept that is the same for all:
// sessions live, who knocks waits and comes in at the end, and the listener does
// not make the loops spin.
func (f *faulty) starved(t *testing.T, cause string, relieve func()) {
	t.Helper()
	name := fmt.Sprintf("perch_accept_errors_total{cause=%q}", cause)
	begin := time.Now()
	waiting := []*testkit.Conn{f.knock(t), f.knock(t), f.knock(t)}
	eventually(t, name, func() bool { return f.metric(t, name) >= 5 })
	f.echoes(t, "meanwhile")
	// Each of the loops may fail once before the pause, which is a tick.
	if n, most := f.metric(t, name), 4*(2+time.Since(begin).Seconds()*10); n > most {
		t.Errorf("%v accepts failed in %s: the loops spin", n, time.Since(begin))
	}
	f.alive(t)
	relieve()
	for i, w := range waiting {
		if _, err := w.Upgraded(); err != nil {
			t.Errorf("connection %d, which waited: %v", i, err)
		}
	}
	f.echoes(t, "afterwards")
	if n := strings.Count(f.Output(), "can't be accepted"); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, f.Output())
	}
	f.alive(t)
}

// TestOutOfDescriptors: a process that has no descriptor left keeps its
// sessions, and takes connections again when it has.
func TestOutOfDescriptors(t *testing.T) {
	f := startFaulty(t)
	var before unix.Rlimit
	none := unix.Rlimit{Cur: 3} // those that are open stay so
	if err := unix.Prlimit(f.PID(), unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	none.Max = before.Max
	if err := unix.Prlimit(f.PID(), unix.RLIMIT_NOFILE, &none, nil); err != nil {
		t.Fatal(err)
	}
	f.starved(t, "emfile", func() {
		if err := unix.Prlimit(f.PID(), unix.RLIMIT_NOFILE, &before, nil); err != nil {
			t.Fatal(err)
		}
	})
	if status, _ := get(t, "http://"+f.Admin+"/readyz"); status != http.StatusOK {
		t.Errorf("readyz: %d", status)
	}
}

// TestAcceptFails: so does one whose kernel can't give it a connection, also on
// the admin port.
func TestAcceptFails(t *testing.T) {
	for _, errno := range []string{"ENFILE", "ENOBUFS", "ENOMEM"} {
		t.Run(errno, func(t *testing.T) {
			f := startFaulty(t)
			stop := f.inject(t, "accept4", "error="+errno)
			admin := make(chan int, 1)
			go func() {
				resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testkit.Timeout}).Get("http://" + f.Admin + "/readyz")
				if err != nil {
					admin <- 0
					return
				}
				resp.Body.Close()
				admin <- resp.StatusCode
			}()
			f.starved(t, strings.ToLower(errno), stop)
			if status := await(t, "the admin port", admin); status != http.StatusOK {
				t.Errorf("readyz on a connection that waited: %d", status)
			}
		})
	}
}

// TestEpollFails: where the kernel does not take a connection into an epoll set,
// that connection ends and nothing else.
func TestEpollFails(t *testing.T) {
	for _, errno := range []string{"ENOMEM", "ENOSPC"} {
		t.Run(errno, func(t *testing.T) {
			f := startFaulty(t)
			before := f.metric(t, "perch_connections")
			stop := f.inject(t, "epoll_ctl", "error="+errno)
			for range 3 {
				w := f.knock(t)
				if _, err := w.Upgraded(); err == nil {
					t.Error("a connection was served that epoll has not taken")
				}
			}
			f.echoes(t, "meanwhile")
			stop()
			f.alive(t)
			if _, err := f.knock(t).Upgraded(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			f.echoes(t, "afterwards")
			if got := f.metric(t, "perch_connections"); got != before+1 {
				t.Errorf("%v connections are counted, want %v", got, before+1)
			}
		})
	}
}

// TestWriteFails: a peer that the kernel can't send to is gone; the others stay.
func TestWriteFails(t *testing.T) {
	f := startFaulty(t)
	victim, err := testkit.Open(f.Public, "/echo")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Reset()
	// The loops alone use this call, and nobody else is sent anything.
	stop := f.inject(t, "sendto", "error=ENOBUFS")
	if err := victim.SendFrames(testkit.Text("x")); err != nil {
		t.Fatal(err)
	}
	if err := victim.Ended(testkit.Timeout); err != nil {
		t.Errorf("the peer is still there: %v", err)
	}
	stop()
	f.alive(t)
	f.echoes(t, "afterwards")
	if _, err := f.knock(t).Upgraded(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
