package testkit

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// Server is a perch process as it ships, and what a measurement needs to know
// of it.
type Server struct {
	*Process
	Public string // host:port
	Admin  string
	Secret string // of HMAC tokens
	dir    string
}

// StartServer runs bin with a data directory of its own on free ports; every
// topic may be subscribed and published to. env is added to its environment.
// descriptors, where not 0, limits its open files.
func StartServer(ctx context.Context, bin string, descriptors int, env ...string) (*Server, error) {
	s := &Server{Secret: "testkit-secret-0123456789abcdef0123456789"}
	var err error
	if s.Public, err = FreeAddr(); err != nil {
		return nil, err
	}
	if s.Admin, err = FreeAddr(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "perch-server-"); err != nil {
		return nil, err
	}
	s.Process, err = StartProcess(bin, []string{"serve"}, append([]string{
		"PERCH_LISTEN=" + s.Public,
		"PERCH_ADMIN=" + s.Admin,
		"PERCH_DATA_DIR=" + filepath.Join(s.dir, "data"),
		"PERCH_AUTH_HMAC_SECRET=" + s.Secret,
		"PERCH_TOPICS_DEFAULT_ALLOW_SUBSCRIBE_FOR_CLIENT=true",
		"PERCH_TOPICS_DEFAULT_ALLOW_PUBLISH_FOR_CLIENT=true",
	}, env...), descriptors)
	if err != nil {
		os.RemoveAll(s.dir)
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := s.WaitHTTP(wait, "http://"+s.Admin+"/readyz"); err != nil {
		_ = s.Stop(0)
		return nil, err
	}
	return s, nil
}

// Stop ends the server within d and deletes its files.
func (s *Server) Stop(d time.Duration) error {
	err := s.Process.Stop(d)
	if rm := os.RemoveAll(s.dir); err == nil {
		err = rm
	}
	return err
}

var goroutinesMetric = regexp.MustCompile(`(?m)^go_goroutines (\S+)$`)

// Goroutines is the server's number of goroutines, from its metrics.
func (s *Server) Goroutines() (int, error) {
	client := &http.Client{Timeout: Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + s.Admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	m := goroutinesMetric.FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("testkit: no go_goroutines in the metrics (%s)", resp.Status)
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	return int(n), err
}

// SessionOptions are those of a Dense whose sessions connect with an HMAC
// token and subscribe, in one first frame as the JavaScript SDK does.
func (s *Server) SessionOptions(topic func(i int) string) DenseOptions {
	return SessionOptions(s.Public, "/connection/websocket", s.Secret, topic)
}

// SessionOptions are those of a Dense whose sessions connect to path with a
// token signed with secret, each for a user of its own, and subscribe.
func SessionOptions(addr, path, secret string, topic func(i int) string) DenseOptions {
	return DenseOptions{Addr: addr, Path: path, Replies: 2, First: func(i int) []byte {
		token := Token(secret, "user"+strconv.Itoa(i), time.Hour, nil)
		return Commands(ConnectCommand(token), SubscribeCommand(2, topic(i)))
	}}
}

// SharedTopic is one topic for all, OwnTopic one for each.
func SharedTopic(int) string { return "news" }
func OwnTopic(i int) string  { return "device" + strconv.Itoa(i) }

// MemoryOptions say what Memory measures. The defaults are those of the
// project's memory budget.
type MemoryOptions struct {
	Sessions int              // 0: 10,000
	Warm     int              // come and gone before; 0: 200
	Topic    func(int) string // nil: SharedTopic
	Settle   time.Duration    // from the last connect to the measurement; 0: 3 s
	// Messages of Size bytes that each session sends afterwards and gets back as
	// publications of its topic; 0: none. It wants OwnTopic.
	Messages, Size int
	Cool           time.Duration // from the burst to the measurement; 0: 1 minute
	Log            func(format string, args ...any)
}

// MemoryResult is what Memory measured. The per-session numbers are bytes of
// RssAnon over what the server had before.
type MemoryResult struct {
	Sessions   int     `json:"sessions"`
	Before     int64   `json:"rss_before"`
	PerSession float64 `json:"per_session"`
	// Peak is measured as the burst ends, AfterBurst when it has cooled.
	Peak       float64    `json:"per_session_peak,omitempty"`
	AfterBurst float64    `json:"per_session_after_burst,omitempty"`
	Goroutines [2]int     `json:"goroutines"` // without and with the sessions
	Stats      DenseStats `json:"client"`
}

// Memory measures what an idle session costs the server, which must be fresh.
func Memory(ctx context.Context, s *Server, o MemoryOptions) (MemoryResult, error) {
	if o.Sessions == 0 {
		o.Sessions = 10000
	}
	if o.Warm == 0 {
		o.Warm = 200
	}
	if o.Topic == nil {
		o.Topic = SharedTopic
	}
	if o.Settle == 0 {
		o.Settle = 3 * time.Second
	}
	if o.Cool == 0 {
		o.Cool = time.Minute
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	r := MemoryResult{Sessions: o.Sessions}
	warm, err := NewDense(s.SessionOptions(o.Topic))
	if err != nil {
		return r, err
	}
	err = warm.Open(ctx, o.Warm)
	warm.Close(false)
	if err != nil {
		return r, err
	}
	if r.Goroutines[0], err = s.Goroutines(); err != nil {
		return r, err
	}
	d, err := NewDense(s.SessionOptions(o.Topic))
	if err != nil {
		return r, err
	}
	defer func() {
		r.Stats = d.Stats()
		d.Close(true)
	}()
	if err := d.Hold(ctx, o.Settle); err != nil {
		return r, err
	}
	if r.Before, err = s.RssAnon(); err != nil {
		return r, err
	}
	start := time.Now()
	if err := d.Open(ctx, o.Sessions); err != nil {
		return r, err
	}
	o.Log("%d sessions in %s", o.Sessions, time.Since(start).Round(time.Millisecond))
	if err := d.Hold(ctx, o.Settle); err != nil {
		return r, err
	}
	per := func() (float64, error) {
		rss, err := s.RssAnon()
		return float64(rss-r.Before) / float64(o.Sessions), err
	}
	if r.PerSession, err = per(); err != nil {
		return r, err
	}
	o.Log("%.0f B a session (RssAnon was %d KiB)", r.PerSession, r.Before>>10)
	if r.Goroutines[1], err = s.Goroutines(); err != nil {
		return r, err
	}
	if o.Messages > 0 {
		start := time.Now()
		blob := Blob(o.Size)
		// A publish is answered by a reply, and comes back as a push.
		err := d.Burst(ctx, o.Messages, o.Sessions, 2, func(i, k int) []byte {
			return Commands(PublishCommand(k+3, o.Topic(i), blob))
		})
		if err != nil {
			return r, err
		}
		if r.Peak, err = per(); err != nil {
			return r, err
		}
		o.Log("%d messages of %d B each sent and received in %s; %.0f B a session", o.Messages, o.Size,
			time.Since(start).Round(time.Millisecond), r.Peak)
		if err := d.Hold(ctx, o.Cool); err != nil {
			return r, err
		}
		if r.AfterBurst, err = per(); err != nil {
			return r, err
		}
		o.Log("%.0f B a session %s later", r.AfterBurst, o.Cool)
	}
	st := d.Stats()
	if st.Closed > 0 || st.Errors > 0 {
		return r, fmt.Errorf("testkit: memory: %d sessions closed, %d errors, first: %s", st.Closed, st.Errors, st.FirstError)
	}
	return r, nil
}

// stormPause lies between the rounds of a storm.
const stormPause = 500 * time.Millisecond

// StormResult is the server CPU of one connection in a storm, in rounds that
// alternate between the two servers.
type StormResult struct {
	Perch []time.Duration `json:"perch_ns"` // upgrade, token, subscribe, answered
	Bare  []time.Duration `json:"bare_ns"`  // upgrade
	// Ratio is that of the medians.
	Ratio float64 `json:"ratio"`
}

// Storm lets n connections storm s and a bare server at addr, in turns,
// rounds times, and compares what that costs them. The first round warms up
// and is not counted.
func Storm(ctx context.Context, s *Server, bare *Process, addr string, n, rounds int) (StormResult, error) {
	var r StormResult
	one := func(round int, p *Process, o DenseOptions) (time.Duration, error) {
		// Each round comes from an address of its own, for the sake of TIME_WAIT.
		o.FirstSource = 2 + round
		d, err := NewDense(o)
		if err != nil {
			return 0, err
		}
		defer d.Close(true)
		before, err := p.CPU()
		if err != nil {
			return 0, err
		}
		if err := d.Open(ctx, n); err != nil {
			return 0, err
		}
		after, err := p.CPU()
		return (after - before) / time.Duration(n), err
	}
	for round := range rounds + 1 {
		full, err := one(round, s.Process, s.SessionOptions(SharedTopic))
		if err != nil {
			return r, err
		}
		base, err := one(round, bare, DenseOptions{Addr: addr, Path: "/"})
		if err != nil {
			return r, err
		}
		// Both are still taking leave of their connections.
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(stormPause):
		}
		if round > 0 {
			r.Perch, r.Bare = append(r.Perch, full), append(r.Bare, base)
		}
	}
	r.Ratio = float64(Median(r.Perch)) / float64(Median(r.Bare))
	return r, nil
}

// StartBare runs bin, the bare server of bench/peers, on a free port.
func StartBare(ctx context.Context, bin string) (*Process, string, error) {
	addr, err := FreeAddr()
	if err != nil {
		return nil, "", err
	}
	p, err := StartProcess(bin, []string{"-listen", addr}, nil, 0)
	if err != nil {
		return nil, "", err
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := p.WaitTCP(wait, addr); err != nil {
		_ = p.Stop(0)
		return nil, "", err
	}
	return p, addr, nil
}
