package perch_test

import (
	"errors"
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

// request is an opening handshake that a case departs from.
type request struct {
	line  string
	lines []string
}

func handshake(host string) request {
	head := testkit.Head(host, "/echo")
	lines := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
	return request{line: lines[0], lines: lines[1:]}
}

func (r request) without(name string) request {
	r.lines = slices.DeleteFunc(slices.Clone(r.lines), func(l string) bool {
		return strings.EqualFold(l[:strings.IndexByte(l, ':')], name)
	})
	return r
}

func (r request) with(line string) request {
	r.lines = append(slices.Clone(r.lines), line)
	return r
}

// set replaces a header line.
func (r request) set(name, value string) request { return r.without(name).with(name + ": " + value) }

// renamed changes the names of the header lines.
func (r request) renamed(change func(string) string) request {
	r.lines = slices.Clone(r.lines)
	for i, l := range r.lines {
		name, value, _ := strings.Cut(l, ":")
		r.lines[i] = change(name) + ":" + value
	}
	return r
}

func (r request) start(line string) request { r.line = line; return r }

func (r request) String() string {
	return testkit.HeadOf(append([]string{r.line}, r.lines...)...)
}

// TestRFC6455Handshake: RFC 6455, section 4.1, 4.2 and 4.4; RFC 9112, section
// 2.2 (line ends), 3 (request line), 3.2 (Host) and 5.2 (folding).
func TestRFC6455Handshake(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo = true })
	ok := handshake(s.public)
	const (
		good = http.StatusSwitchingProtocols
		bad  = http.StatusBadRequest
		want = http.StatusUpgradeRequired
	)
	// fill makes a head of exactly n bytes.
	fill := func(n int) string {
		r := ok.with("X-Fill: ")
		return ok.with("X-Fill: " + strings.Repeat("f", n-len(r.String()))).String()
	}
	for _, c := range []struct {
		section, name string
		head          string
		status        int
	}{
		{"4.1", "as it should be", ok.String(), good},
		{"4.1", "with a query", ok.start("GET /echo?a=1&b=%20 HTTP/1.1").String(), good},
		{"4.1", "absolute target", ok.start("GET http://" + s.public + "/echo HTTP/1.1").String(), good},
		{"4.1", "another path", ok.start("GET /nowhere HTTP/1.1").String(), http.StatusNotFound},
		{"4.1", "POST", ok.start("POST /echo HTTP/1.1").String(), http.StatusMethodNotAllowed},
		{"4.1", "method in lower case", ok.start("get /echo HTTP/1.1").String(), http.StatusMethodNotAllowed},
		{"4.1", "HTTP/1.0", ok.start("GET /echo HTTP/1.0").String(), bad},
		{"4.1", "HTTP/2.0", ok.start("GET /echo HTTP/2.0").String(), bad},
		{"4.1", "no version", ok.start("GET /echo").String(), bad},
		{"4.1", "no HTTP", ok.start("GET /echo FTP/1.1").String(), bad},
		{"4.1", "two spaces", ok.start("GET  /echo HTTP/1.1").String(), bad},
		{"4.1", "control character in the target", ok.start("GET /ec\x01ho HTTP/1.1").String(), bad},

		{"4.1", "HEAD", ok.start("HEAD /echo HTTP/1.1").String(), http.StatusMethodNotAllowed},
		{"4.1", "PUT", ok.start("PUT /echo HTTP/1.1").String(), http.StatusMethodNotAllowed},
		{"4.1", "CONNECT", ok.start("CONNECT /echo HTTP/1.1").String(), http.StatusMethodNotAllowed},
		{"4.1", "an empty Host", ok.set("Host", "").String(), bad},
		{"4.1", "Host with a port", ok.set("Host", "x:1").String(), good},
		{"4.1", "Host of IPv6", ok.set("Host", "[::1]:8000").String(), good},
		{"4.1", "two Hosts that agree", ok.with("Host: " + s.public).String(), bad},
		{"4.1", "no Host", ok.without("Host").String(), bad},
		{"4.1", "two Hosts", ok.with("Host: other.example").String(), bad},
		{"4.1", "Host that is no host", ok.set("Host", "a b/c").String(), bad},

		{"4.2.1", "no Upgrade", ok.without("Upgrade").String(), want},
		{"4.2.1", "another Upgrade", ok.set("Upgrade", "h2c").String(), bad},
		{"4.2.1", "Upgrade in capitals", ok.set("Upgrade", "WebSocket").String(), good},
		{"4.2.1", "Upgrade as one of a list", ok.set("Upgrade", "h2c, websocket").String(), good},
		{"4.2.1", "an empty Upgrade", ok.set("Upgrade", "").String(), bad},
		{"4.2.1", "Upgrade with a version", ok.set("Upgrade", "websocket/13").String(), bad},
		{"4.2.1", "Upgrade in quotes", ok.set("Upgrade", `"websocket"`).String(), bad},
		{"4.2.1", "Upgrade that only ends so", ok.set("Upgrade", "xwebsocket").String(), bad},
		{"4.2.1", "Upgrade on two lines", ok.set("Upgrade", "h2c").with("Upgrade: websocket").String(), good},
		{"4.2.1", "Upgrade twice", ok.with("Upgrade: websocket").String(), good},
		{"4.2.1", "Upgrade in a list with empty entries", ok.set("Upgrade", ", ,websocket,,").String(), good},
		{"4.2.1", "Upgrade as one word of two", ok.set("Upgrade", "websocket h2c").String(), bad},
		{"4.2.1", "Upgrade that only begins so", ok.set("Upgrade", "websocketx").String(), bad},
		{"4.2.1", "header names in capitals", ok.renamed(strings.ToUpper).String(), good},
		{"4.2.1", "header names in lower case", ok.renamed(strings.ToLower).String(), good},

		{"4.2.1", "no Connection", ok.without("Connection").String(), bad},
		{"4.2.1", "Connection: keep-alive alone", ok.set("Connection", "keep-alive").String(), bad},
		{"4.2.1", "an empty Connection", ok.set("Connection", "").String(), bad},
		{"4.2.1", "Connection: close alone", ok.set("Connection", "close").String(), bad},
		{"4.2.1", "Connection that only begins so", ok.set("Connection", "Upgrades").String(), bad},
		{"4.2.1", "Connection with a parameter", ok.set("Connection", "Upgrade;q=1").String(), bad},
		{"4.2.1", "Connection as one word of two", ok.set("Connection", "keep-alive Upgrade").String(), bad},
		{"4.2.1", "Connection: close and upgrade", ok.set("Connection", "close, Upgrade").String(), good},
		{"4.2.1", "Connection in a list with empty entries", ok.set("Connection", ",\t, upgrade ,").String(), good},
		{"4.2.1", "Connection twice", ok.with("Connection: Upgrade").String(), good},
		{"4.2.1", "Connection as a list", ok.set("Connection", "keep-alive, Upgrade").String(), good},
		{"4.2.1", "Connection in another case", ok.set("Connection", "uPgRaDe").String(), good},
		{"4.2.1", "Connection on two lines", ok.set("Connection", "keep-alive").with("Connection: Upgrade").String(), good},
		{"4.2.1", "no space behind the colon", ok.without("Connection").with("Connection:Upgrade").String(), good},
		{"4.2.1", "spaces around the value", ok.without("Connection").with("Connection:  \tUpgrade \t").String(), good},

		{"4.2.1", "no key", ok.without("Sec-WebSocket-Key").String(), bad},
		{"4.2.1", "empty key", ok.set("Sec-WebSocket-Key", "").String(), bad},
		{"4.2.1", "key of 15 bytes", ok.set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAA").String(), bad},
		{"4.2.1", "key of 17 bytes", ok.set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAA=").String(), bad},
		{"4.2.1", "key that is no base64", ok.set("Sec-WebSocket-Key", "????????????????????????").String(), bad},
		{"4.2.1", "key without padding", ok.set("Sec-WebSocket-Key", strings.TrimRight(testkit.Key, "=")).String(), bad},
		{"4.2.1", "key with one padding", ok.set("Sec-WebSocket-Key", strings.TrimSuffix(testkit.Key, "=")).String(), bad},
		{"4.2.1", "key with a blank inside", ok.set("Sec-WebSocket-Key", "dGhlIHNhbXBs ZSBub25jZQ==").String(), bad},
		{"4.2.1", "key with a line's end, escaped", ok.set("Sec-WebSocket-Key", `dGhlIHNhbXBs\nZSBub25jZQ==`).String(), bad},
		{"4.2.1", "key in the alphabet of URLs", ok.set("Sec-WebSocket-Key", "--__--__--__--__--__--==").String(), bad},
		{"4.2.1", "key with padding in the middle", ok.set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSB=b25jZQ==").String(), bad},
		{"4.2.1", "key of 18 bytes, as long as one of 16", ok.set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZWFh").String(), bad},
		{"4.2.1", "key in a list", ok.set("Sec-WebSocket-Key", testkit.Key+", "+testkit.Key).String(), bad},
		{"4.2.1", "key with blanks around", ok.without("Sec-WebSocket-Key").with("Sec-WebSocket-Key: \t " + testkit.Key + " \t").String(), good},
		{"11.3.1", "two keys that differ", ok.with("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==").String(), bad},
		{"11.3.1", "two keys in two cases", ok.with("sec-websocket-key: " + testkit.Key).String(), bad},
		{"11.3.1", "two keys", ok.with("Sec-WebSocket-Key: " + testkit.Key).String(), bad},

		{"4.4", "no version", ok.without("Sec-WebSocket-Version").String(), want},
		{"4.4", "version 8", ok.set("Sec-WebSocket-Version", "8").String(), want},
		{"4.4", "version 14", ok.set("Sec-WebSocket-Version", "14").String(), want},
		{"4.4", "version 0", ok.set("Sec-WebSocket-Version", "0").String(), want},
		{"4.4", "version 1", ok.set("Sec-WebSocket-Version", "1").String(), want},
		{"4.4", "version 12", ok.set("Sec-WebSocket-Version", "12").String(), want},
		{"4.4", "version 113", ok.set("Sec-WebSocket-Version", "113").String(), want},
		{"4.4", "version 13.0", ok.set("Sec-WebSocket-Version", "13.0").String(), want},
		{"4.4", "version 013", ok.set("Sec-WebSocket-Version", "013").String(), want},
		{"4.4", "version +13", ok.set("Sec-WebSocket-Version", "+13").String(), want},
		{"4.4", "version 256", ok.set("Sec-WebSocket-Version", "256").String(), want},
		{"4.4", "an empty version", ok.set("Sec-WebSocket-Version", "").String(), want},
		{"4.4", "a list of versions", ok.set("Sec-WebSocket-Version", "13, 8").String(), want},
		{"4.4", "a list of versions, ours last", ok.set("Sec-WebSocket-Version", "8, 13").String(), want},
		{"4.4", "two versions that agree", ok.with("Sec-WebSocket-Version: 13").String(), want},
		{"4.4", "version with blanks around", ok.without("Sec-WebSocket-Version").with("Sec-WebSocket-Version: \t13 ").String(), good},
		{"4.4", "version that is no number", ok.set("Sec-WebSocket-Version", "x").String(), want},
		{"4.4", "two versions", ok.with("Sec-WebSocket-Version: 8").String(), want},

		{"4.2.1", "content length", ok.with("Content-Length: 5").String(), bad},
		{"4.2.1", "chunked body", ok.with("Transfer-Encoding: chunked").String(), bad},

		{"9112 2.2", "line ends without CR", strings.ReplaceAll(ok.String(), "\r\n", "\n"), bad},
		{"9112 2.2", "one line end without CR", strings.Replace(ok.String(), "\r\nUpgrade", "\nUpgrade", 1), bad},
		{"9112 2.2", "CR inside a line", ok.with("X-A: a\rb").String(), bad},
		{"9112 5.2", "folded line", ok.with("X-A: a\r\n b").String(), bad},
		{"9112 5.1", "space before the colon", ok.with("X-A : a").String(), bad},
		{"9112 5.1", "no colon", ok.with("nonsense").String(), bad},
		{"9112 5.1", "empty name", ok.with(": a").String(), bad},
		{"9110 5.5", "NUL in a value", ok.with("X-A: a\x00b").String(), bad},
		{"9110 5.5", "bytes above ASCII in a value", ok.with("X-A: \xe2\x82\xac").String(), good},
		{"9110 5.6.2", "name that is no token", ok.with("X(A): a").String(), bad},

		{"limits", "head of 8 KiB", fill(8 << 10), good},
		{"limits", "head of 8 KiB and a byte", fill(8<<10 + 1), http.StatusRequestHeaderFieldsTooLarge},
		{"limits", "head of 64 KiB", fill(64 << 10), http.StatusRequestHeaderFieldsTooLarge},
		{"limits", "target of 9 KiB", ok.start("GET /echo?" + strings.Repeat("q", 9<<10) + " HTTP/1.1").String(),
			http.StatusRequestHeaderFieldsTooLarge},
		{"limits", "no request at all", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", bad},
	} {
		t.Run(c.section+"/"+c.name, func(t *testing.T) {
			t.Parallel()
			// The client protocol's endpoint says the same.
			if got := statusOf(t, s.public, strings.Replace(c.head, "/echo", "/connection/websocket", 1)); got != c.status && c.section != "limits" {
				t.Errorf("/connection/websocket: got %d, want %d", got, c.status)
			}
			ways := []way{{name: "whole"}}
			if len(c.head) <= 1<<10 {
				ways = append(ways, eachByte(len(c.head)))
				for at := 1; at < len(c.head); at += 1 + len(c.head)/40 {
					ways = append(ways, way{fmt.Sprintf("cut at %d", at), []int{at}})
				}
			}
			hold(t, ways, func(at ...int) error { return attemptHandshake(s.public, c.head, c.status, at...) })
		})
	}
}

func attemptHandshake(addr, head string, status int, at ...int) error {
	w, err := testkit.Dial(addr)
	if err != nil {
		return err
	}
	defer w.Reset()
	sent := make(chan error, 1)
	go func() { sent <- w.SendCut([]byte(head), at...) }()
	method, _, _ := strings.Cut(head, " ")
	resp, err := w.Response(method)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	body := ""
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return fmt.Errorf("body: %w", err)
		}
		body = string(b)
	}
	switch {
	case resp.StatusCode != status:
		return fmt.Errorf("got %s %q, want %d", resp.Status, body, status)
	case status == http.StatusUpgradeRequired && resp.Header.Get("Sec-WebSocket-Version") != "13":
		return fmt.Errorf("426 without Sec-WebSocket-Version: 13: %v", resp.Header)
	case status != http.StatusSwitchingProtocols:
		return nil
	case resp.Header.Get("Sec-WebSocket-Accept") != testkit.Accept:
		return fmt.Errorf("Sec-WebSocket-Accept is %q, want %q", resp.Header.Get("Sec-WebSocket-Accept"), testkit.Accept)
	}
	if err := <-sent; err != nil {
		return err
	}
	if err := w.SendFrames(testkit.Text("x")); err != nil {
		return err
	}
	return gotText("x").check(w)
}

// TestRFC6455Keys: section 4.2.2, the accept value is that of each key.
func TestRFC6455Keys(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo = true })
	for _, key := range []string{testkit.Key, "AAAAAAAAAAAAAAAAAAAAAA==", "/+/+/+/+/+/+/+/+/+/+/w=="} {
		w, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Reset()
		if err := w.Send([]byte(handshake(s.public).set("Sec-WebSocket-Key", key).String())); err != nil {
			t.Fatal(err)
		}
		resp, err := w.Response("GET")
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("Sec-WebSocket-Accept"); resp.StatusCode != 101 || got != testkit.AcceptOf(key) {
			t.Errorf("key %q: %s, accept %q, want %q", key, resp.Status, got, testkit.AcceptOf(key))
		}
	}
}

// TestHandshakePipelined: frames that come in the same segment as the head are
// not lost, wherever the segment is cut.
func TestHandshakePipelined(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo = true })
	head := []byte(testkit.Head(s.public, "/echo"))
	all := append(slices.Clone(head), frames(testkit.Text("first").More(), testkit.Ping("p"), testkit.Continuation("!"), testkit.Text("second"))...)
	for at := len(head) - 6; at < len(all); at++ {
		w, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Reset()
		if err := w.SendCut(all, at); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Upgraded(); err != nil {
			t.Fatalf("cut at %d: %v", at, err)
		}
		for _, r := range replies(gotPong("p"), gotText("first!"), gotText("second")) {
			if err := r.check(w); err != nil {
				t.Fatalf("cut at %d: %v", at, err)
			}
		}
	}
}

// TestHandshakeSubprotocols: section 4.2.2, /subprotocol/. What the server
// picks is one that was offered, or none.
func TestHandshakeSubprotocols(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo, o.Insecure = true, true })
	const pb = "centrifuge-protobuf"
	for _, c := range []struct {
		name, path string
		offered    []string
		want       string
	}{
		{"none offered", "/connection/websocket", nil, ""},
		{"ours", "/connection/websocket", []string{pb}, pb},
		{"ours in a list", "/connection/websocket", []string{"foo, " + pb}, pb},
		{"ours on the second line", "/connection/websocket", []string{"foo", pb}, pb},
		{"another", "/connection/websocket", []string{"graphql-ws"}, ""},
		{"ours twice", "/connection/websocket", []string{pb + ", " + pb}, pb},
		{"the first of two of ours", "/connection/websocket", []string{"centrifuge-json, " + pb}, "centrifuge-json"},
		{"the first of two of ours, the other way round", "/connection/websocket", []string{pb, "centrifuge-json"}, pb},
		{"ours, with blanks and empty entries", "/connection/websocket", []string{" , \t" + pb + " ,, "}, pb},
		{"in another case", "/connection/websocket", []string{"Centrifuge-Protobuf"}, ""},
		{"an empty offer", "/connection/websocket", []string{""}, ""},
		{"a name that is no token", "/connection/websocket", []string{pb + ";q=1"}, ""},
		{"begins like ours", "/connection/websocket", []string{pb + "x"}, ""},
		{"on echo", "/echo", []string{pb}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var lines []string
			for _, o := range c.offered {
				lines = append(lines, "Sec-WebSocket-Protocol: "+o)
			}
			w, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Reset()
			if err := w.Send([]byte(testkit.Head(s.public, c.path, lines...))); err != nil {
				t.Fatal(err)
			}
			resp, err := w.Upgraded()
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	// Section 9.1: an extension that the server does not have is declined by
	// saying nothing; what is malformed does not matter then.
	for _, offer := range []string{
		"permessage-deflate; client_max_window_bits", "permessage-deflate; server_no_context_takeover; server_max_window_bits=10",
		"x-webkit-deflate-frame", "permessage-bzip2, permessage-foo; a=b", "", ";;,,==", `"permessage-deflate"`, strings.Repeat("e, ", 500) + "e",
	} {
		t.Run("no extension is accepted: "+offer[:min(30, len(offer))], func(t *testing.T) {
			w, err := testkit.Open(s.public, "/echo", "Sec-WebSocket-Extensions: "+offer)
			if err != nil {
				t.Fatal(err) // Open refuses an answer that names one
			}
			defer w.Reset()
			// RSV1 has no meaning, as none was chosen.
			if err := w.SendFrames(testkit.Text("x").Reserved(4)); err != nil {
				t.Fatal(err)
			}
			if err := gotClose(1002).check(w); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHandshakeAnswer: section 4.2.2, the whole of the 101, byte by byte: what
// it has to say and nothing else.
func TestHandshakeAnswer(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo, o.Insecure = true, true })
	const begin = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + testkit.Accept + "\r\n"
	bearer := "bearer." + token("alice", time.Hour)
	for _, c := range []struct {
		name, path string
		lines      []string
		want       string
	}{
		{"echo", "/echo", nil, begin + "\r\n"},
		{"echo, with all that can be offered", "/echo", []string{"Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Extensions: permessage-deflate", "Origin: http://" + s.public, "Cookie: a=b"}, begin + "\r\n"},
		{"JSON", "/connection/websocket", nil, begin + "\r\n"},
		{"Protobuf", "/connection/websocket", []string{"Sec-WebSocket-Protocol: centrifuge-protobuf"}, begin + "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n\r\n"},
		{"a token", "/connection/websocket", []string{"Sec-WebSocket-Protocol: " + bearer}, begin + "Sec-WebSocket-Protocol: " + bearer + "\r\n\r\n"},
		{"a token and Protobuf", "/connection/websocket", []string{"Sec-WebSocket-Protocol: " + bearer + ", centrifuge-protobuf"}, begin + "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := testkit.Dial(s.public)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Reset()
			// The close frame behind the answer shows that nothing else stands there.
			if err := w.Send(append([]byte(testkit.Head(s.public, c.path, c.lines...)), frames(testkit.Close(1000, ""))...)); err != nil {
				t.Fatal(err)
			}
			if err := w.SetReadDeadline(time.Now().Add(testkit.Timeout)); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(w.R)
			if want := c.want + "\x88\x02\x03\xe8"; err != nil || string(got) != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		})
	}
}

// TestHandshakeOrigins: section 10.2.
func TestHandshakeOrigins(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Insecure = true
		o.WebSocket.AllowedOrigins = []string{"https://*.example.com", "https://app.test:8443"}
	})
	for _, c := range []struct {
		name   string
		lines  []string
		status int
	}{
		{"none", nil, 101},
		{"same host", []string{"Origin: http://" + s.public}, 101},
		{"pattern", []string{"Origin: https://a.example.com"}, 101},
		{"exact", []string{"Origin: https://app.test:8443"}, 101},
		{"another scheme", []string{"Origin: http://a.example.com"}, 403},
		{"another port", []string{"Origin: https://app.test:8444"}, 403},
		{"pattern in the middle", []string{"Origin: https://a.example.com.evil.net"}, 403},
		{"pattern as a user", []string{"Origin: https://a.example.com@evil.net"}, 403},
		{"another host", []string{"Origin: https://evil.net"}, 403},
		{"null", []string{"Origin: null"}, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			attemptStatus(t, s.public, testkit.Head(s.public, "/connection/websocket", c.lines...), c.status)
		})
	}
}

func attemptStatus(t *testing.T, addr, head string, status int) *http.Response {
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
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		t.Errorf("got %s %q, want %d", resp.Status, body, status)
	}
	return resp
}

// TestHandshakeSlow: a head that does not come to its end in time is dropped,
// however busily it drips.
func TestHandshakeSlow(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Echo = true
		o.Limits.HandshakeTimeout = 300 * time.Millisecond
	})
	head := []byte(testkit.Head(s.public, "/echo"))
	dial := func(t *testing.T) *testkit.Conn {
		t.Helper()
		w, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Reset() })
		return w
	}
	t.Run("nothing sent", func(t *testing.T) {
		t.Parallel()
		if err := dial(t).Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("half a head", func(t *testing.T) {
		t.Parallel()
		w := dial(t)
		if err := w.Send(head[:len(head)/2]); err != nil {
			t.Fatal(err)
		}
		if err := w.Ended(testkit.Timeout); err != nil {
			t.Error(err)
		}
	})
	t.Run("dripping", func(t *testing.T) {
		t.Parallel()
		w := dial(t)
		ended := make(chan error, 1)
		go func() { ended <- w.Ended(testkit.Timeout) }()
		drip := time.NewTicker(10 * time.Millisecond)
		defer drip.Stop()
		// The head is long enough to last well over the timeout.
		for _, b := range head {
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
				return
			case <-drip.C:
				_ = w.Send([]byte{b}) // fails once the server has closed
			}
		}
		t.Error("the whole head was taken")
		w.Reset()
		<-ended
	})
	t.Run("in time stays", func(t *testing.T) {
		t.Parallel()
		w := dial(t)
		if err := w.Send(head); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Upgraded(); err != nil {
			t.Fatal(err)
		}
		if err := w.Quiet(time.Second); err != nil {
			t.Error(err)
		}
	})
	t.Run("half a head, then shut", func(t *testing.T) {
		t.Parallel()
		w := dial(t)
		if err := w.Send(head[:20]); err != nil {
			t.Fatal(err)
		}
		if err := w.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := w.Ended(testkit.Timeout); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}
