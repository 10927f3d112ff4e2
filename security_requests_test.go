package perch_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"perch"
	"perch/internal/testkit"
)

// smuggled is a request that an attacker hides in another one. Its answer would
// be the only 200 on the connection.
func smuggled(host string) string {
	return testkit.HeadOf("GET /demo HTTP/1.1", "Host: "+host, "X-Smuggled: yes")
}

// answers reads responses until the connection ends or nothing comes any more,
// and returns their statuses. ended: the server has closed.
func answers(t *testing.T, w *testkit.Conn, method string) (statuses []int, ended bool) {
	t.Helper()
	for {
		if err := w.SetReadDeadline(time.Now().Add(testkit.Timeout)); err != nil {
			t.Fatal(err)
		}
		if len(statuses) > 0 {
			// A connection that is kept is told by its answer to one more request, which
			// the caller has put at the end.
			if _, err := w.R.Peek(1); err != nil {
				return statuses, true
			}
		}
		resp, err := http.ReadResponse(w.R, &http.Request{Method: method})
		if err != nil {
			if len(statuses) == 0 {
				return nil, true
			}
			t.Fatalf("behind %v: %v", statuses, err)
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return append(statuses, resp.StatusCode), false
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return append(statuses, resp.StatusCode), true
		}
		statuses = append(statuses, resp.StatusCode)
		if resp.Close {
			_, err := w.R.Peek(1)
			if err == nil {
				t.Fatalf("bytes behind an answer that ends the connection: %v", statuses)
			}
			return statuses, true
		}
	}
}

// TestSecuritySmuggling: RFC 9112, section 11.2. What two readers may take for
// one request or for two ends the connection, and what is hidden in it is
// answered by nobody. The attack stands behind nothing, and behind another
// request, where net/http reads it.
func TestSecuritySmuggling(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Demo, o.Echo = true, true })
	host := "Host: " + s.public
	const form = "Content-Type: application/x-www-form-urlencoded"
	hidden := smuggled(s.public)
	// Nobody is at this path: who looks for a handler at all says 404.
	post := func(body string, lines ...string) string {
		return testkit.HeadOf(append([]string{"POST /nowhere HTTP/1.1", host, form}, lines...)...) + body
	}
	// This path's handler reads the body.
	token := func(body string) string {
		return testkit.HeadOf("POST /v1/token HTTP/1.1", host, form, "Transfer-Encoding: chunked") + body
	}
	chunks := "0\r\n\r\n" + hidden
	length := fmt.Sprintf("Content-Length: %d", len(chunks))
	upgrade := func(body string, lines ...string) string { return testkit.Head(s.public, "/echo", lines...) + body }
	for _, c := range []struct {
		section string // of RFC 9112
		name    string
		send    string
		// first is the one status where the attack is the connection's first request;
		// behind is that where net/http reads it; 0: not tried.
		first, behind int
	}{
		{"6.3", "two lengths", post(hidden, "Content-Length: 0", length), 400, 400},
		{"6.3", "two lengths, the long one first", post(hidden, length, "Content-Length: 0"), 400, 400},
		{"6.3", "a list of lengths", post(hidden, "Content-Length: 0, 5"), 400, 400},
		{"6.2", "a length with a sign", post(hidden, "Content-Length: +0"), 400, 400},
		{"6.2", "a length below zero", post(hidden, "Content-Length: -1"), 400, 400},
		{"6.2", "a length in hex", post(hidden, "Content-Length: 0x0"), 400, 400},
		{"6.2", "a length with an underscore", post(hidden, "Content-Length: 1_0"), 400, 400},
		{"6.2", "a length that no integer holds", post(hidden, "Content-Length: 18446744073709551616"), 400, 400},
		{"6.2", "an empty length", post(hidden, "Content-Length:"), 400, 400},
		{"6.1", "a length and chunks", post(chunks, length, "Transfer-Encoding: chunked"), 400, 404},
		{"6.1", "chunks and a length", post(chunks, "Transfer-Encoding: chunked", length), 400, 404},
		{"6.1", "chunks and a length of 0", post(chunks, "Transfer-Encoding: chunked", "Content-Length: 0"), 400, 404},
		{"6.1", "chunks in HTTP/1.0", strings.Replace(post(chunks, "Transfer-Encoding: chunked"), "HTTP/1.1", "HTTP/1.0", 1), 400, 404},
		{"6.1", "another coding", post(chunks, "Transfer-Encoding: xchunked"), 501, 501},
		{"6.1", "identity", post(chunks, "Transfer-Encoding: identity"), 501, 501},
		{"6.1", "a list of codings", post(chunks, "Transfer-Encoding: chunked, identity"), 501, 501},
		{"6.1", "a list with an empty coding", post(chunks, "Transfer-Encoding: ,chunked"), 501, 501},
		{"6.1", "chunked twice", post(chunks, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 501, 501},
		{"6.1", "two codings on two lines", post(chunks, "Transfer-Encoding: chunked", "Transfer-Encoding: identity"), 501, 501},
		{"6.1", "chunked in quotes", post(chunks, `Transfer-Encoding: "chunked"`), 501, 501},
		{"6.1", "chunked with a parameter", post(chunks, "Transfer-Encoding: chunked;q=1"), 501, 501},
		{"6.1", "chunked behind a vertical tab", post(chunks, "Transfer-Encoding: \vchunked"), 400, 400},
		{"5.1", "a blank before the colon of the coding", post(chunks, "Transfer-Encoding : chunked"), 400, 400},
		{"5.1", "a tab before the colon of the length", post(hidden, "Content-Length\t: 0"), 400, 400},
		{"5.2", "a folded coding", post(chunks, "Transfer-Encoding:\r\n chunked"), 400, 404},
		// net/http makes one line of it, as section 5.2 allows.
		{"5.2", "a header hidden in a fold", post(hidden, "X: a\r\n Transfer-Encoding: chunked"), 400, 0},
		{"5.2", "a fold behind the request line", testkit.HeadOf("POST /nowhere HTTP/1.1", " X: a", host) + hidden, 400, 400},
		{"2.2", "a bare CR in a value", post(hidden, "X: a\rContent-Length: 5"), 400, 400},
		{"2.2", "a bare CR as a line's end", post(hidden, "X: a\r\rContent-Length: 5"), 400, 400},
		{"9110 5.5", "NUL in a value", post(hidden, "X: a\x00Content-Length: 5"), 400, 400},
		{"9110 5.5", "NUL in a name", post(hidden, "X\x00: a"), 400, 400},
		{"5.1", "an empty name", post(hidden, ": a"), 400, 400},
		{"3", "a blank in the target", testkit.HeadOf("GET /demo HTTP/1.1 HTTP/1.1", host) + hidden, 400, 400},
		{"7.1", "a chunk that is none", token("zz\r\n" + hidden), 400, 400},
		{"7.1", "a chunk longer than an integer", token("10000000000000000\r\n" + hidden), 400, 400},
		{"7.1", "a chunk with a bare LF behind its size", token("0\n\r\n" + hidden), 400, 400},
		{"7.1.1", "a bare LF in a chunk's extension", token("0;x\ny\r\n\r\n" + hidden), 400, 400},
		{"7.1", "chunks, and a request behind them", post(chunks, "Transfer-Encoding: chunked"), 404, 404},

		{"6455 4.1", "an upgrade with a length", upgrade(chunks, length), 400, 400},
		{"6455 4.1", "an upgrade with chunks", upgrade(chunks, "Transfer-Encoding: chunked"), 400, 400},
		{"6455 4.1", "an upgrade with both", upgrade(chunks, "Transfer-Encoding: chunked", length), 400, 400},
		{"6455 4.1", "an upgrade that is none, and a request behind it", strings.Replace(upgrade(hidden), "Version: 13", "Version: 12", 1), 426, 426},
		{"6455 4.1", "an upgrade with two keys", upgrade(hidden, "Sec-WebSocket-Key: "+testkit.Key), 400, 400},
	} {
		t.Run(c.section+"/"+c.name, func(t *testing.T) {
			t.Parallel()
			open := func() *testkit.Conn {
				w, err := testkit.Dial(s.public)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { w.Reset() })
				return w
			}
			w := open()
			if err := w.Send([]byte(c.send)); err != nil {
				t.Fatal(err)
			}
			if got, ended := answers(t, w, "POST"); !slices.Equal(got, []int{c.first}) || !ended {
				t.Errorf("alone: answered %v, ended %v, want %d and the end", got, ended, c.first)
			}
			if c.behind == 0 {
				return
			}
			w = open()
			if err := w.Send([]byte(testkit.HeadOf("GET /demo HTTP/1.1", host))); err != nil {
				t.Fatal(err)
			}
			readPage(t, w)
			if err := w.Send([]byte(c.send)); err != nil {
				t.Fatal(err)
			}
			if got, ended := answers(t, w, "POST"); !slices.Equal(got, []int{c.behind}) || !ended {
				t.Errorf("behind a page: answered %v, ended %v, want %d and the end", got, ended, c.behind)
			}
		})
	}
}

// TestSecurityPipelined: what stands behind an upgrade is frames and nothing
// else, and what stands behind a request is answered once, in its order.
func TestSecurityPipelined(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Demo, o.Echo = true, true })
	page := testkit.HeadOf("GET /demo HTTP/1.1", "Host: "+s.public)
	t.Run("a request behind an upgrade", func(t *testing.T) {
		for _, before := range []string{"", page} {
			w, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Reset()
			if err := w.Send([]byte(before + testkit.Head(s.public, "/echo") + smuggled(s.public))); err != nil {
				t.Fatal(err)
			}
			if before != "" {
				readPage(t, w)
			}
			if _, err := w.Upgraded(); err != nil {
				t.Fatal(err)
			}
			// "GET" is a frame with reserved bits.
			if err := gotClose(1002).check(w); err != nil {
				t.Fatal(err)
			}
			if err := lastWord(w); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("requests behind one that is handed off", func(t *testing.T) {
		w, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Reset()
		missing := testkit.HeadOf("GET /missing HTTP/1.1", "Host: "+s.public)
		if err := w.Send([]byte(page + missing + page + missing + testkit.HeadOf("GET /demo HTTP/1.1", "Host: "+s.public, "Connection: close") + page)); err != nil {
			t.Fatal(err)
		}
		if got, ended := answers(t, w, "GET"); !slices.Equal(got, []int{200, 404, 200, 404, 200}) || !ended {
			t.Errorf("answered %v, ended %v", got, ended)
		}
	})
	t.Run("an upgrade in the body of a request", func(t *testing.T) {
		w, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Reset()
		body := testkit.Head(s.public, "/echo")
		if err := w.Send([]byte(testkit.HeadOf("POST /v1/token HTTP/1.1", "Host: "+s.public, "Connection: close", fmt.Sprintf("Content-Length: %d", len(body))) + body)); err != nil {
			t.Fatal(err)
		}
		if got, ended := answers(t, w, "POST"); len(got) != 1 || got[0]/100 != 4 || !ended {
			t.Errorf("answered %v, ended %v", got, ended)
		}
	})
}

// TestSecurityTargets: RFC 9112, section 3.2; RFC 3986, section 6: only one
// spelling leads to a path.
func TestSecurityTargets(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Demo, o.Echo = true, true })
	long := strings.Repeat("a", 4<<10)
	for _, c := range []struct {
		name, line   string
		get, upgrade int // the status as a plain request, and as an upgrade
	}{
		{"as it should be", "GET /echo HTTP/1.1", 426, 101},
		{"with a query", "GET /echo?a=b HTTP/1.1", 426, 101},
		{"with an empty query", "GET /echo? HTTP/1.1", 426, 101},
		{"with a path in the query", "GET /missing?/echo HTTP/1.1", 404, 404},
		{"absolute", "GET http://" + s.public + "/echo HTTP/1.1", 426, 101},
		{"absolute, another host", "GET http://other.example/echo HTTP/1.1", 426, 101},
		{"absolute, with a user", "GET http://user@" + s.public + "/echo HTTP/1.1", 426, 400},
		{"absolute, no host", "GET http:///echo HTTP/1.1", 426, 400},
		{"absolute, a path in the authority", "GET http:/echo HTTP/1.1", 426, 400},
		{"absolute, another scheme", "GET gopher://" + s.public + "/echo HTTP/1.1", 426, 400},
		{"absolute, a scheme without slashes", "GET http:echo HTTP/1.1", 404, 404},
		{"two slashes", "GET //echo HTTP/1.1", 404, 404},
		{"two slashes and a host", "GET //" + s.public + "/echo HTTP/1.1", 404, 404},
		{"a slash behind", "GET /echo/ HTTP/1.1", 404, 404},
		{"a dot segment", "GET /./echo HTTP/1.1", 404, 404},
		{"two dots", "GET /x/../echo HTTP/1.1", 404, 404},
		{"two dots above the root", "GET /../echo HTTP/1.1", 404, 404},
		{"a backslash", `GET \echo HTTP/1.1`, 400, 400},
		{"a slash and a backslash", `GET /\echo HTTP/1.1`, 404, 404},
		{"an escaped letter", "GET /%65cho HTTP/1.1", 426, 400},
		{"an escaped slash", "GET %2fecho HTTP/1.1", 400, 400},
		{"an escaped slash behind", "GET /echo%2f HTTP/1.1", 404, 404},
		{"an escaped NUL", "GET /echo%00 HTTP/1.1", 404, 404},
		{"an escaped line end", "GET /echo%0d%0aX:%20a HTTP/1.1", 404, 404},
		{"a double escape", "GET /%2565cho HTTP/1.1", 404, 404},
		{"a bad escape", "GET /ech%6 HTTP/1.1", 400, 400},
		{"a fragment", "GET /echo#x HTTP/1.1", 404, 404},
		{"a parameter", "GET /echo;x HTTP/1.1", 404, 404},
		{"upper case", "GET /ECHO HTTP/1.1", 404, 404},
		{"letters above ASCII", "GET /ech\xc3\xb6 HTTP/1.1", 404, 404},
		{"no path", "GET echo HTTP/1.1", 400, 400},
		{"an asterisk", "GET * HTTP/1.1", 404, 404},
		{"a very long path", "GET /" + long + " HTTP/1.1", 404, 404},
		{"a very long query", "GET /echo?" + long + " HTTP/1.1", 426, 101},
		{"a target beyond the bound", "GET /echo?" + long + long + " HTTP/1.1", 431, 431},
		{"OPTIONS of an authority", "OPTIONS " + s.public + " HTTP/1.1", 400, 400},
		{"CONNECT", "CONNECT " + s.public + " HTTP/1.1", 404, 404},
		{"CONNECT of the admin port", "CONNECT " + s.admin + " HTTP/1.1", 404, 404},
		{"CONNECT of a path", "CONNECT /echo HTTP/1.1", 405, 405},
		{"TRACE", "TRACE /echo HTTP/1.1", 405, 405},
		{"a method of ours", "PERCH /echo HTTP/1.1", 405, 405},
		{"HTTP/0.9", "GET /echo", 400, 400},
		{"HTTP/1.0", "GET /echo HTTP/1.0", 426, 400},
		{"HTTP/1.2", "GET /echo HTTP/1.2", 426, 400},
		{"HTTP/2.0", "GET /echo HTTP/2.0", 505, 400},
		{"HTTP/1.1 in lower case", "GET /echo http/1.1", 400, 400},
		{"HTTP/01.1", "GET /echo HTTP/01.1", 400, 400},
		{"HTTP/1.10", "GET /echo HTTP/1.10", 400, 400},
		{"a version of another protocol", "GET /echo ICAP/1.0", 400, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			up := handshake(s.public).start(c.line)
			for kind, head := range map[string]string{"plain": testkit.HeadOf(c.line, "Host: "+s.public), "upgrade": up.String()} {
				want := c.get
				if kind == "upgrade" {
					want = c.upgrade
				}
				if got := statusOf(t, s.public, head); got != want {
					t.Errorf("%s: got %d, want %d", kind, got, want)
				}
				// Behind another request net/http reads it, and gives an upgrade back to the
				// loop where both read the same.
				if len(head) > 8<<10 {
					continue
				}
				if got := statusBehind(t, s.public, head); got != want && (got != 400 || want != 101) && got != 505 {
					t.Errorf("%s, behind a page: got %d, want %d", kind, got, want)
				}
			}
		})
	}
}

// statusBehind sends a request behind one for a page.
func statusBehind(t testing.TB, addr, head string) int {
	t.Helper()
	w, err := testkit.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	if err := w.Send([]byte(testkit.HeadOf("GET /demo HTTP/1.1", "Host: "+addr) + head)); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		resp, err := w.Response("GET")
		if err != nil {
			return 0
		}
		if i == 1 {
			return resp.StatusCode
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
	}
}

// statusOf sends a request and reads the status; 0: the connection ended
// without one.
func statusOf(t testing.TB, addr, head string) int {
	t.Helper()
	w, err := testkit.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Reset()
	if err := w.Send([]byte(head)); err != nil {
		t.Fatal(err)
	}
	resp, err := w.Response("GET")
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

// TestSecurityHeads: RFC 9112, section 3.2 (Host), 5 and 2.2; RFC 6585, section
// 5: the same answer whether an event loop reads the head or, behind another
// request, net/http does.
func TestSecurityHeads(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Demo, o.Echo = true, true })
	page := func(lines ...string) string {
		return testkit.HeadOf(append([]string{"GET /demo HTTP/1.1"}, lines...)...)
	}
	host := "Host: " + s.public
	lines := func(n int) []string { return slices.Repeat([]string{"X-A: 1"}, n) }
	sized := func(n int) string {
		return page(host, "X-Fill: "+strings.Repeat("f", n-len(page(host, "X-Fill: "))))
	}
	for _, c := range []struct {
		name, head    string
		first, behind int
	}{
		{"Host", page(host), 200, 200},
		{"no Host", page(), 400, 400},
		{"no Host in HTTP/1.0", strings.Replace(page("Connection: keep-alive"), "1.1", "1.0", 1), 200, 200},
		{"two Hosts", page(host, "Host: other"), 400, 400},
		{"two Hosts that agree", page(host, host), 400, 400},
		{"an empty Host", page("Host:"), 200, 200},
		{"a Host with a blank", page("Host: a b"), 400, 400},
		{"a Host with a slash", page("Host: a/b"), 400, 400},
		{"a Host with a user", page("Host: u@a"), 400, 400},
		{"a Host with a query", page("Host: a?b"), 400, 400},
		{"a Host with a fragment", page("Host: a#b"), 400, 400},
		{"a Host with a backslash", page(`Host: a\b`), 400, 400},
		{"a Host above ASCII", page("Host: \xc3\xa9"), 400, 400},
		{"a Host with a control byte", page("Host: a\x01"), 400, 400},
		{"a hundred lines", page(append(lines(99), host)...), 200, 200},
		{"a hundred and one", page(append(lines(100), host)...), 431, 431},
		{"a thousand short ones", page(append(slices.Repeat([]string{"a:"}, 1000), host)...), 431, 431},
		{"a head of 8 KiB", sized(8 << 10), 200, 200},
		{"a head of 8 KiB and a byte", sized(8<<10 + 1), 431, 0},
		{"a head of 13 KiB", sized(13 << 10), 431, 431},
		{"a head of a megabyte", sized(1 << 20), 431, 431},
		{"a name of 7 KiB", page(host, strings.Repeat("n", 7<<10)+": a"), 200, 200},
		{"a method of 7 KiB", strings.Replace(page(host), "GET", strings.Repeat("G", 7<<10), 1), 405, 405},
		{"Connection lists a header of ours", page(host, "Connection: keep-alive, Host, Origin"), 200, 200},
		{"Connection lists close", page(host, "Connection: keep-alive, close"), 200, 200},
		{"Connection is no list", page(host, "Connection: \"a, b\""), 200, 200},
		{"an upgrade to HTTP/2", page(host, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), 200, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := statusOf(t, s.public, c.head); got != c.first {
				t.Errorf("alone: got %d, want %d", got, c.first)
			}
			if c.behind == 0 {
				return // net/http has a buffer beyond the bound
			}
			w, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Reset()
			if err := w.Send([]byte(page(host))); err != nil {
				t.Fatal(err)
			}
			readPage(t, w)
			_ = w.Send([]byte(c.head)) // a head that is too large need not be taken to its end
			resp, err := w.Response("GET")
			if err != nil || resp.StatusCode != c.behind {
				t.Errorf("behind a page: got %v, %v, want %d", resp, err, c.behind)
			}
		})
	}
}

// TestSecurityStrangers: what is no HTTP/1 is refused by its first bytes, where
// they say so, and never reaches a handler.
func TestSecurityStrangers(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Demo, o.Echo = true, true
		o.Limits.HandshakeTimeout = 500 * time.Millisecond
	})
	for _, c := range []struct {
		name, send string
		status     int // 0: ended without an answer, at the latest with the handshake's time
	}{
		{"a TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 500), 400},
		{"a TLS alert", "\x15\x03\x01\x00\x02\x02\x28", 400},
		{"an SSL 2 hello", "\x80\x2e\x01\x00\x02", 400},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505},
		{"HTTP/0.9", "GET /demo\r\n", 0},
		{"HTTP/0.9 with an empty line", "GET /demo\r\n\r\n", 400},
		{"MQTT", "\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04perc", 400},
		{"SSH", "SSH-2.0-OpenSSH_9.9\r\n", 0},
		{"SMTP", "EHLO mail.example.com\r\nMAIL FROM:<a@example.com>\r\n\r\n", 400},
		{"Redis", "*1\r\n$4\r\nPING\r\n\r\n", 400},
		{"SOCKS 5", "\x05\x01\x00", 400},
		{"PostgreSQL", "\x00\x00\x00\x08\x04\xd2\x16\x2f", 400},
		{"AMQP", "AMQP\x00\x00\x09\x01", 400},
		{"a WebSocket frame", string(frames(testkit.Text("hello"))), 400},
		{"zeros", strings.Repeat("\x00", 100), 400},
		{"blanks", strings.Repeat(" ", 100), 400},
		{"line feeds", "\n\n\n\n", 400},
		{"an answer", "HTTP/1.1 200 OK\r\n\r\n", 400},
		{"a byte order mark", "\xef\xbb\xbfGET /demo HTTP/1.1\r\n\r\n", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := statusOf(t, s.public, c.send); got != c.status {
				t.Errorf("got %d, want %d", got, c.status)
			}
		})
	}
}
