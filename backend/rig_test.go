package backend

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// service is a backend that counts what it is asked and its connections.
type service struct {
	*httptest.Server
	asked atomic.Int64
	mu    sync.Mutex
	open  map[net.Conn]bool
	most  int // connections at once
	ever  int
}

func newService(t *testing.T, answer http.HandlerFunc) *service {
	b := &service{open: make(map[net.Conn]bool)}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.asked.Add(1)
		_, _ = io.Copy(io.Discard, r.Body) // else the server would not notice that the caller goes
		answer(w, r)
	}))
	b.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	b.Config.ConnState = func(c net.Conn, s http.ConnState) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch s {
		case http.StateNew:
			b.open[c] = true
			b.ever++
			b.most = max(b.most, len(b.open))
		case http.StateClosed, http.StateHijacked:
			delete(b.open, c)
		}
	}
	b.Start()
	t.Cleanup(func() {
		b.CloseClientConnections()
		b.Close()
	})
	return b
}

func (b *service) connections() (most, ever int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most, b.ever
}

// says answers with a text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// silent answers nothing while its caller waits.
func silent(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// newClient makes a client that asks b about methods.
func newClient(t *testing.T, url string, o Options, methods ...Method) (*Client, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	o.Logger = slog.New(slog.NewTextHandler(log, nil))
	for _, m := range methods {
		o.URLs[m] = url + "/" + m.String()
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		// Whatever came, each connection has come back and can be closed.
		for _, or := range c.origins {
			eventually(t, "no connection is left", func() bool {
				c.Close()
				return or.inUse.Load() == 0 && or.open.Load() == 0 && len(or.slots) == 0
			})
		}
	})
	return c, log
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("not in time: %s", what)
		panic("unreachable")
	}
}

func (c *Client) rpc(ctx context.Context) error {
	_, err := c.RPC(ctx, &Peer{Client: "c"}, &RPCRequest{Method: "m"})
	return err
}

func (c *Client) connect(ctx context.Context) error {
	_, err := c.Connect(ctx, &Peer{Client: "c"}, &ConnectRequest{})
	return err
}

func (c *Client) outcomes(m Method) map[string]uint64 { return c.endpoints[m].calls.Map() }

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
