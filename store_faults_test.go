package perch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"perch/internal/testkit"
)

// device asks a server that runs as a process for tokens.
type device struct {
	client *http.Client
	public string
	name   string
}

type deviceTokens struct {
	Access      string `json:"access_token"`
	Refresh     string `json:"refresh_token"`
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

func (d *device) post(path string, form url.Values) (int, http.Header, deviceTokens, error) {
	req, err := http.NewRequest(http.MethodPost, "http://"+d.public+path, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, nil, deviceTokens{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(d.name, "sesame")
	resp, err := d.client.Do(req)
	if err != nil {
		return 0, nil, deviceTokens{}, err
	}
	defer resp.Body.Close()
	var tokens deviceTokens
	if path == "/v1/token" || resp.StatusCode != http.StatusOK {
		err = json.NewDecoder(resp.Body).Decode(&tokens)
	}
	return resp.StatusCode, resp.Header, tokens, err
}

func (d *device) grant() (int, http.Header, deviceTokens, error) {
	return d.post("/v1/token", url.Values{"grant_type": {"client_credentials"}})
}

func (d *device) refresh(token string) (int, http.Header, deviceTokens, error) {
	return d.post("/v1/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
}

func (d *device) revoke(token string) (int, http.Header, deviceTokens, error) {
	return d.post("/v1/token/revoke", url.Values{"token": {token}})
}

// deviceConfig is a file with so many clients, and its server's environment.
func deviceConfig(t *testing.T, n int) []string {
	t.Helper()
	var text strings.Builder
	text.WriteString("auth:\n  clients:\n")
	hash := hashOf(t, "sesame")
	for i := range n {
		fmt.Fprintf(&text, "    - id: device-%d\n      secret_hash: %q\n", i, hash)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "perch.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"PERCH_CONFIG=" + file, "PERCH_DATA_DIR=" + filepath.Join(dir, "data")}
}

// TestDiskFull: with a disk that takes nothing, requests that need it get 503
// with a reason, the rest goes on, and what was acknowledged before is good
// after.
func TestDiskFull(t *testing.T) {
	f := startFaulty(t, deviceConfig(t, 1)...)
	d := &device{&http.Client{Timeout: testkit.Timeout}, f.Public, "device-0"}
	t.Cleanup(d.client.CloseIdleConnections)
	must := func(what string, want int, f func() (int, http.Header, deviceTokens, error)) deviceTokens {
		t.Helper()
		status, header, tokens, err := f()
		if err != nil || status != want {
			t.Fatalf("%s: %d %+v %v, want %d", what, status, tokens, err, want)
		}
		if status == http.StatusServiceUnavailable && (tokens.Code != "temporarily_unavailable" || tokens.Description == "" || header.Get("Retry-After") == "") {
			t.Errorf("%s: %+v, Retry-After %q", what, tokens, header.Get("Retry-After"))
		}
		return tokens
	}
	first := must("grant", 200, d.grant)
	other := must("grant", 200, d.grant)

	stop := f.inject(t, "fsync", "error=ENOSPC")
	must("refresh on a full disk", 503, func() (int, http.Header, deviceTokens, error) { return d.refresh(first.Refresh) })
	must("refresh again", 503, func() (int, http.Header, deviceTokens, error) { return d.refresh(first.Refresh) })
	must("grant on a full disk", 503, d.grant)
	must("revoke on a full disk", 503, func() (int, http.Header, deviceTokens, error) { return d.revoke(other.Access) })
	f.echoes(t, "meanwhile")
	w, err := testkit.Open(f.Public, "/connection/websocket", "Authorization: Bearer "+first.Access)
	if err != nil {
		t.Errorf("a token that was issued before: %v", err)
	} else {
		w.Reset()
	}
	if f.metric(t, "perch_token_store_failing") != 1 || f.metric(t, "perch_token_store_failures_total") < 4 {
		t.Error("the metrics do not tell")
	}
	if n := strings.Count(f.Output(), "level=ERROR"); n != 1 {
		t.Errorf("%d lines of errors:\n%s", n, f.Output())
	}
	stop()
	f.alive(t)
	next := must("refresh afterwards", 200, func() (int, http.Header, deviceTokens, error) { return d.refresh(first.Refresh) })
	must("refresh of that", 200, func() (int, http.Header, deviceTokens, error) { return d.refresh(next.Refresh) })
	must("grant afterwards", 200, d.grant)
	must("revoke afterwards", 200, func() (int, http.Header, deviceTokens, error) { return d.revoke(other.Access) })
	if f.metric(t, "perch_token_store_failing") != 0 {
		t.Error("still failing")
	}
}

// TestKilled kills the server in the middle of refreshes and revocations, twice
// over the same files: after each start every refresh token that was
// acknowledged last is good, unless its own exchange was under way, and every
// revocation holds.
func TestKilled(t *testing.T) {
	const devices = 6
	env := deviceConfig(t, devices)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, bin, err := testkit.Perch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	begin := func() *testkit.Server {
		t.Helper()
		s, err := testkit.StartServer(ctx, bin, 0, env...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Stop(testkit.Timeout) })
		return s
	}
	for round := range 2 {
		s := begin()
		type acked struct {
			name    string
			tokens  deviceTokens
			open    bool     // an exchange had no answer
			revoked []string // access tokens
		}
		last := make([]acked, devices)
		enough := make(chan struct{})
		var once sync.Once
		var count sync.WaitGroup
		count.Add(devices * 8)
		go func() { count.Wait(); once.Do(func() { close(enough) }) }()
		var all sync.WaitGroup
		for i := range last {
			all.Go(func() {
				d := &device{&http.Client{Timeout: testkit.Timeout}, s.Public, fmt.Sprint("device-", i)}
				defer d.client.CloseIdleConnections()
				a := &last[i]
				a.name = d.name
				status, _, tokens, err := d.grant()
				if err != nil || status != http.StatusOK {
					t.Errorf("%s: grant: %d %v", d.name, status, err)
					for range 8 {
						count.Done()
					}
					return
				}
				a.tokens = tokens
				for n := 0; ; n++ {
					before := a.tokens.Access
					status, _, tokens, err := d.refresh(a.tokens.Refresh)
					if err != nil {
						a.open = true
						return
					}
					if status != http.StatusOK {
						t.Errorf("%s: refresh: %d %+v", d.name, status, tokens)
						return
					}
					a.tokens = tokens
					if n%2 == 1 {
						status, _, _, err := d.revoke(before)
						if err != nil {
							return
						}
						if status == http.StatusOK {
							a.revoked = append(a.revoked, before)
						}
					}
					if n < 8 {
						count.Done()
					}
				}
			})
		}
		await(t, "refreshes", enough)
		if err := s.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-s.Exited()
		all.Wait()

		s = begin()
		revoked := 0
		for _, a := range last {
			d := &device{&http.Client{Timeout: testkit.Timeout}, s.Public, a.name}
			status, _, tokens, err := d.refresh(a.tokens.Refresh)
			if err != nil {
				t.Fatal(err)
			}
			// Without an answer, the exchange may have reached the disk: then this was
			// the token's second use.
			if status != http.StatusOK && !(a.open && tokens.Code == "invalid_grant") {
				t.Errorf("round %d: %s: the refresh token that was acknowledged last: %d %+v (exchange open: %v)", round, a.name, status, tokens, a.open)
			}
			for _, token := range a.revoked {
				revoked++
				if w, err := testkit.Open(s.Public, "/connection/websocket", "Authorization: Bearer "+token); err == nil {
					w.Reset()
					t.Errorf("round %d: %s: a revoked token is good", round, a.name)
				}
			}
			d.client.CloseIdleConnections()
		}
		if revoked == 0 {
			t.Errorf("round %d: nothing was revoked", round)
		}
		if err := s.Stop(testkit.Timeout); err != nil {
			t.Errorf("stop: %v\n%s", err, s.Output())
		}
	}
}
