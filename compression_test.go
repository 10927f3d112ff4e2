package perch_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"
	"github.com/gorilla/websocket"

	"perch"
	"perch/handler"
	"perch/internal/testkit"
)

const compressedAnswer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

func compressing(o *perch.Options) {
	o.Insecure, o.Echo = true, true
	o.WebSocket.Compression = true
}

// Another implementation talks to /echo, several peers at once, messages of all
// sizes under way together.
func TestCompressionEcho(t *testing.T) {
	s := start(t, compressing)
	var peers sync.WaitGroup
	for peer := range 8 {
		d := websocket.Dialer{EnableCompression: true, HandshakeTimeout: testkit.Timeout}
		c, resp, err := d.Dial("ws://"+s.public+"/echo", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if got := resp.Header.Get("Sec-WebSocket-Extensions"); got != compressedAnswer {
			t.Fatalf("the answer is %q", got)
		}
		_ = c.SetReadDeadline(time.Now().Add(4 * testkit.Timeout))
		kind := websocket.TextMessage + peer%2
		message := func(i int) []byte {
			return bytes.Repeat(fmt.Appendf(nil, "%d of %d, ", i, peer), 1+i*i%(1+i%7*300))
		}
		const n = 150
		peers.Go(func() {
			for i := range n {
				// Some as they are.
				c.EnableWriteCompression(i%4 != 3)
				if err := c.WriteMessage(kind, message(i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
		peers.Go(func() {
			for i := range n {
				k, got, err := c.ReadMessage()
				if err != nil || k != kind || !bytes.Equal(got, message(i)) {
					t.Errorf("message %d of %d: kind %d, %d bytes, %v", i, peer, k, len(got), err)
					return
				}
			}
		})
	}
	peers.Wait()
	for _, name := range []string{
		`perch_deflate_messages_total{direction="in"}`, `perch_deflate_messages_total{direction="out"}`,
		`perch_deflate_plain_bytes_total{direction="in"}`, `perch_deflate_bytes_total{direction="out"}`,
	} {
		if s.metric(t, name) == 0 {
			t.Errorf("%s is 0", name)
		}
	}
	if n := s.metric(t, "perch_deflate_sessions_total"); n != 8 {
		t.Errorf("%v sessions", n)
	}
	if n := s.metric(t, `perch_deflate_refused_total{direction="in"}`); n != 0 {
		t.Errorf("%v refused", n)
	}
	eventually(t, "the queue is empty", func() bool { return s.metric(t, "perch_deflate_queue_bytes") == 0 })
}

// A publication is compressed once for all subscribers of a loop and an encoding;
// those without the extension get it plain.
func TestCompressionSDK(t *testing.T) {
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		s := start(t, func(o *perch.Options) {
			compressing(o)
			o.Loops = 1
		})
		s.HandleRPC("echo", func(_ context.Context, r handler.RPCRequest) ([]byte, error) { return r.Data, nil })
		var subs []*subscription
		var first *sdk
		for i := range 6 {
			k := dial(t, s.url(), centrifuge.Config{EnableCompression: i > 0})
			k.connect(t)
			sub := k.subscribe(t, "news", centrifuge.SubscriptionConfig{})
			await(t, "subscribed", sub.subscribed)
			subs = append(subs, sub)
			first = k
		}
		text := `"` + strings.Repeat("hot news ", 200) + `"`
		before := s.metric(t, `perch_deflate_messages_total{direction="out"}`)
		s.api(t, "publish", `{"channel":"news","data":`+text+`}`)
		for i, sub := range subs {
			if e := await(t, "a publication", sub.published); string(e.Data) != text {
				t.Errorf("subscriber %d got %.40q", i, e.Data)
			}
		}
		if n := s.metric(t, `perch_deflate_messages_total{direction="out"}`) - before; n != 1 {
			t.Errorf("%v deflations for 5 subscribers", n)
		}
		// From a client, and back to it in order.
		for i := range 20 {
			data := fmt.Sprintf(`"%d %s"`, i, strings.Repeat("rpc ", 100))
			r, err := first.RPC(bounded(t), "echo", []byte(data))
			if err != nil || string(r.Data) != data {
				t.Fatalf("rpc %d: %.40q, %v", i, r.Data, err)
			}
		}
		if n := s.metric(t, `perch_deflate_messages_total{direction="in"}`); n < 20 {
			t.Errorf("%v inflations", n)
		}
	})
}

// Off unless configured, and on every way to a WebSocket where it is.
func TestCompressionNegotiated(t *testing.T) {
	on, off := start(t, compressing), start(t, func(o *perch.Options) { o.Insecure, o.Echo = true, true })
	const offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
	ask := func(s *server, path string, keptAlive bool) string {
		c, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if keptAlive {
			if err := c.Send([]byte(testkit.HeadOf("GET /healthz HTTP/1.1", "Host: "+s.public))); err != nil {
				t.Fatal(err)
			}
			resp, err := c.Response("GET")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
		}
		if err := c.Send([]byte(testkit.Head(s.public, path, offer))); err != nil {
			t.Fatal(err)
		}
		resp, err := c.Response("GET")
		if err != nil {
			t.Fatal(err)
		}
		return resp.Status + " " + resp.Header.Get("Sec-WebSocket-Extensions")
	}
	for _, path := range []string{"/connection/websocket", "/connection/uni_websocket", "/echo"} {
		if got, want := ask(on, path, false), "101 Switching Protocols "+compressedAnswer; got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
		if got, want := ask(off, path, false), "101 Switching Protocols "; got != want {
			t.Errorf("%s, off: %q, want %q", path, got, want)
		}
	}
	if got, want := ask(on, "/echo", true), "101 Switching Protocols "+compressedAnswer; got != want {
		t.Errorf("on a connection of net/http's: %q, want %q", got, want)
	}
}
