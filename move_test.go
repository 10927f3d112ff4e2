package perch

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"

	"perch/netpoll"
	"perch/session"
)

func runServer(t *testing.T, change ...func(*Options)) *Server {
	t.Helper()
	o := DefaultOptions()
	o.Listen, o.Admin, o.DataDir = "127.0.0.1:0", "127.0.0.1:0", t.TempDir()
	o.Auth.HMACSecret = strings.Repeat("s", 32)
	o.API.Key = "key"
	o.Topics.Default.AllowSubscribeForClient = true
	o.Log.Level = "error"
	for _, f := range change {
		f(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	<-s.Ready()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return s
}

// A session lives on in another server: subscribed, known by its user and by
// the client id that it was given, and pinged.
func TestSessionMoves(t *testing.T) {
	a, b := runServer(t), runServer(t)
	token, err := IssueToken(a.opts, TokenRequest{Subject: "alice", Channels: []string{"mine"}})
	if err != nil {
		t.Fatal(err)
	}
	c, _, _, err := ws.Dial(t.Context(), "ws://"+a.PublicAddr()+"/connection/websocket")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	read := func() string {
		t.Helper()
		got, _, err := wsutil.ReadServerData(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if err := wsutil.WriteClientText(c, []byte(`{"id":1,"connect":{"token":"`+token+`"}}`+"\n"+`{"id":2,"subscribe":{"channel":"news"}}`)); err != nil {
		t.Fatal(err)
	}
	hello := read()
	_, rest, _ := strings.Cut(hello, `"client":"`)
	client, _, ok := strings.Cut(rest, `"`)
	if !ok {
		t.Fatalf("no client id in %s", hello)
	}
	read()

	ids := make(chan session.ID, 1)
	<-a.net.EachSession(func(p *session.Session) { ids <- p.ID() })
	moved := make(chan error, 1)
	a.net.Export(<-ids, func(m netpoll.Moved, f *os.File, err error) {
		if err != nil {
			moved <- err
			return
		}
		go func() { moved <- b.net.Import(m, f) }()
	})
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	if n := a.registry.Count(); n != 0 {
		t.Errorf("%d sessions are left behind", n)
	}
	for _, name := range []string{"news", "mine"} {
		if err := b.Publish(t.Context(), name, []byte(`"to `+name+`"`)); err != nil {
			t.Fatal(err)
		}
		if got := read(); !strings.Contains(got, `"to `+name+`"`) {
			t.Errorf("got %s", got)
		}
	}
	api := func(method, body string) string {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+b.AdminAddr()+"/api/"+method, strings.NewReader(body))
		req.Header.Set("X-API-Key", "key")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		out, _ := io.ReadAll(resp.Body)
		return string(out)
	}
	defer http.DefaultClient.CloseIdleConnections()
	if got := api("unsubscribe", `{"user":"alice","channel":"news"}`); got != `{"result":{}}` {
		t.Errorf("unsubscribe: %s", got)
	}
	if got := read(); !strings.Contains(got, `"unsubscribe"`) {
		t.Errorf("got %s", got)
	}
	if got := api("disconnect", `{"user":"alice","client":"`+client+`"}`); got != `{"result":{}}` {
		t.Errorf("disconnect: %s", got)
	}
	if _, _, err := wsutil.ReadServerData(c); err == nil || !strings.Contains(err.Error(), "3503") {
		t.Errorf("got %v, want close 3503", err)
	}
}

// So does an event stream.
func TestEventStreamMoves(t *testing.T) {
	a, b := runServer(t), runServer(t)
	token, err := IssueToken(a.opts, TokenRequest{Subject: "alice", Channels: []string{"mine"}})
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.PublicAddr()+"/connection/uni_sse", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer func() { _ = resp.Body.Close() }()
	r := bufio.NewReader(resp.Body)
	data := func() string {
		t.Helper()
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				return strings.TrimSpace(data)
			}
		}
	}
	if got := data(); !strings.HasPrefix(got, `{"connect":`) {
		t.Fatalf("got %s", got)
	}
	ids := make(chan session.ID, 1)
	<-a.net.EachSession(func(p *session.Session) { ids <- p.ID() })
	moved := make(chan error, 1)
	a.net.Export(<-ids, func(m netpoll.Moved, f *os.File, err error) {
		if err != nil {
			moved <- err
			return
		}
		go func() { moved <- b.net.Import(m, f) }()
	})
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(t.Context(), "mine", []byte(`1`)); err != nil {
		t.Fatal(err)
	}
	if got := data(); got != `{"channel":"mine","pub":{"data":1}}` {
		t.Errorf("got %s", got)
	}
	<-b.net.EachSession(func(p *session.Session) { p.Close(session.ReasonForced) })
	if got := data(); got != `{"disconnect":{"code":3503,"reason":"force disconnect"}}` {
		t.Errorf("got %s", got)
	}
}
