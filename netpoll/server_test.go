package netpoll

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"go.uber.org/goleak"

	"perch/session"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// gnet's worker pool lives as long as the process.
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).purgeStaleWorkers"),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*poolCommon).ticktock"),
		goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*goWorker).run.func1"))
}

// echo sends back what it gets.
type echo struct{ closed chan session.Reason }

func (echo) Open(*session.Session, any) {}
func (echo) Message(s *session.Session, data []byte, binary bool) {
	if string(data) == "panic" {
		panic("asked for")
	}
	s.WriteKind(data, binary)
}
func (echo) Expire(*session.Session) {}
func (e echo) Closed(_ *session.Session, r session.Reason) {
	if e.closed != nil {
		e.closed <- r
	}
}

func accept(*Request) (Decision, bool) { return Decision{}, true }

// taken holds the addresses given out: with SO_REUSEPORT two tests would share
// one without a word.
var taken sync.Map

func freeAddr(t testing.TB) string {
	t.Helper()
	for {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := ln.Addr().String()
		_ = ln.Close()
		if _, again := taken.LoadOrStore(addr, true); !again {
			return addr
		}
	}
}

func start(t testing.TB, change func(*Options)) (*Server, string) {
	t.Helper()
	addr := freeAddr(t)
	o := options(addr, echo{})
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- s.Run() }()
	select {
	case <-s.Started():
	case err := <-ran:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return s, addr
}

func dial(t testing.TB, addr, path string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, br, _, err := ws.Dial(ctx, "ws://"+addr+path)
	if err != nil {
		t.Fatal(err)
	}
	if br != nil {
		t.Fatal("bytes behind the handshake")
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestEcho(t *testing.T) {
	t.Parallel()
	s, addr := start(t, nil)
	c := dial(t, addr, "/echo")
	for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20, 16 << 20} {
		want := strings.Repeat("x", n)
		errs := make(chan error, 1)
		go func() { errs <- wsutil.WriteClientText(c, []byte(want)) }()
		got, op, err := wsutil.ReadServerData(c)
		if err != nil || op != ws.OpText || string(got) != want {
			t.Fatalf("%d bytes: got %d, %v, %v", n, len(got), op, err)
		}
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	st := s.Stats()
	if st.MessagesIn != 8 || st.MessagesOut != 8 || st.Open != 1 || st.PendingBytes != 0 {
		t.Errorf("stats: %+v", st)
	}
}

func TestPanicHarmsOne(t *testing.T) {
	t.Parallel()
	s, addr := start(t, nil)
	a, b := dial(t, addr, "/echo"), dial(t, addr, "/echo")
	if err := wsutil.WriteClientText(a, []byte("panic")); err != nil {
		t.Fatal(err)
	}
	_, _, err := wsutil.ReadServerData(a)
	var closed wsutil.ClosedError
	if ok := asClosed(err, &closed); !ok || closed.Code != 1011 {
		t.Fatalf("got %v, want close 1011", err)
	}
	if err := wsutil.WriteClientText(b, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got, _, err := wsutil.ReadServerData(b); err != nil || string(got) != "x" {
		t.Fatalf("got %q, %v", got, err)
	}
	if n := s.Stats().Panics; n != 1 {
		t.Errorf("%d panics counted", n)
	}
}

func asClosed(err error, to *wsutil.ClosedError) bool {
	c, ok := err.(wsutil.ClosedError)
	if ok {
		*to = c
	}
	return ok
}

func TestHandOffAndAdopt(t *testing.T) {
	t.Parallel()
	s, addr := start(t, nil)
	hs := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			var head strings.Builder
			fmt.Fprintf(&head, "GET %s HTTP/1.1\r\nHost: %s\r\n", r.RequestURI, r.Host)
			_ = r.Header.Write(&head)
			head.WriteString("\r\n")
			rest, _ := rw.Reader.Peek(rw.Reader.Buffered())
			if err := s.Adopt(c, append([]byte(head.String()), rest...)); err != nil {
				t.Error(err)
			}
			return
		}
		_, _ = fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
	})}
	go func() { _ = hs.Serve(s.Listener()) }()
	defer func() { _ = hs.Close() }()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	br := bufio.NewReader(c)
	for i := range 3 {
		_, _ = fmt.Fprintf(c, "GET /a%d HTTP/1.1\r\nHost: x\r\n\r\n", i)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		if want := fmt.Sprintf("GET /a%d", i); string(body) != want {
			t.Fatalf("got %q, want %q", body, want)
		}
	}
	if n := s.Stats().HTTP; n != 1 {
		t.Errorf("%d with net/http", n)
	}
	frame := ws.MustCompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte("early"))))
	_, _ = c.Write(append([]byte("GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"), frame...))
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("got %v, %v", resp, err)
	}
	got, _, err := wsutil.ReadServerData(struct {
		io.Reader
		io.Writer
	}{br, c})
	if err != nil || string(got) != "early" {
		t.Fatalf("got %q, %v", got, err)
	}
	if n := s.Stats().HTTP; n != 0 {
		t.Errorf("%d with net/http", n)
	}
}

func TestSlowConsumer(t *testing.T) {
	t.Parallel()
	closed := make(chan session.Reason, 1)
	_, addr := start(t, func(o *Options) {
		o.PendingBytes = 64 << 10
		o.Listeners[0].Endpoints[0].Handler = echo{closed}
		o.Listeners[0].Endpoints[0].MessageSize = 32 << 10
	})
	c := dial(t, addr, "/echo")
	msg := make([]byte, 32<<10)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for wsutil.WriteClientBinary(c, msg) == nil {
		}
	}()
	select {
	case r := <-closed:
		if r != session.ReasonSlowConsumerPlain {
			t.Errorf("closed for %v", r)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("not closed")
	}
	// What was under way ends whole, then comes the close frame.
	for {
		h, err := ws.ReadHeader(c)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, h.Length)
		if _, err := io.ReadFull(c, p); err != nil {
			t.Fatal(err)
		}
		if h.OpCode == ws.OpClose {
			if code, _ := ws.ParseCloseFrameData(p); code != 1008 {
				t.Errorf("close code %d", code)
			}
			break
		}
	}
	_ = c.Close()
	<-stop
}

// readFrame reads one frame of the server's.
func readFrame(r io.Reader) (ws.Frame, error) {
	h, err := ws.ReadHeader(r)
	if err != nil {
		return ws.Frame{}, err
	}
	f := ws.Frame{Header: h, Payload: make([]byte, h.Length)}
	_, err = io.ReadFull(r, f.Payload)
	return f, err
}
