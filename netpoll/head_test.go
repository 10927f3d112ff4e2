package netpoll

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
)

// headCase is a request head and what becomes of it: the status of the answer,
// "net/http", or "waits".
type headCase struct {
	section string // of RFC 9112 unless another is named
	name    string
	head    string
	want    string
}

// request makes a head of lines: the request line, then headers.
func request(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

// asking is an opening handshake with lines more, some of which may take the
// place of its own: those that begin with "-" leave a header out.
func asking(line string, more ...string) string {
	own := []string{"Host: x", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	lines := []string{line}
	for _, m := range more {
		if name, ok := strings.CutPrefix(m, "-"); ok {
			for i, o := range own {
				if strings.HasPrefix(o, name+":") {
					own = append(own[:i:i], own[i+1:]...)
					break
				}
			}
		} else {
			lines = append(lines, m)
		}
	}
	return request(append(lines, own...)...)
}

const get = "GET /echo HTTP/1.1"

var headCases = []headCase{
	{"RFC 6455, 4.2.1", "the handshake", asking(get), "101"},
	{"2.2", "an empty line before", "\r\n" + asking(get), "101"},
	{"2.2", "two empty lines before", "\r\n\r\n" + asking(get), "101"},
	{"2.2", "nine empty lines before", strings.Repeat("\r\n", 9) + asking(get), "101"},
	{"2.2", "a bare LF before", "\n" + asking(get), "400"},
	{"2.2", "a bare CR before", "\r" + asking(get), "400"},
	{"2.2", "a bare CR before an empty line", "\r\r\n" + asking(get), "400"},
	{"2.2", "nothing but empty lines", "\r\n\r\n\r\n", "waits"},
	{"2.2", "a blank before", " " + asking(get), "400"},
	{"2.2", "bare LF behind the request line", strings.Replace(asking(get), "\r\n", "\n", 1), "400"},
	{"2.2", "bare LF behind a header", strings.Replace(asking(get), "x\r\n", "x\n", 1), "400"},
	{"2.2", "bare LF as the empty line", strings.TrimSuffix(asking(get), "\r\n") + "\n", "400"},
	{"2.2", "bare LF everywhere", strings.ReplaceAll(asking(get), "\r\n", "\n"), "400"},
	{"2.2", "LF before CR", strings.ReplaceAll(asking(get), "\r\n", "\n\r"), "400"},
	{"2.2", "bare CR in a value", asking(get, "X: a\rb"), "400"},
	{"2.2", "bare CR before a line's end", asking(get, "X: a\r"), "400"},
	{"2.2", "bare CR in the target", asking("GET /ec\rho HTTP/1.1"), "400"},
	{"2.2", "bare CR as an empty line", asking(get, "\r"), "400"},
	{"2.2", "whitespace line before the headers", asking(get, " "), "400"},

	{"3", "two blanks behind the method", asking("GET  /echo HTTP/1.1"), "400"},
	{"3", "two blanks before the version", asking("GET /echo  HTTP/1.1"), "400"},
	{"3", "tabs for blanks", asking("GET\t/echo\tHTTP/1.1"), "400"},
	{"3", "no version", asking("GET /echo"), "400"},
	{"3", "no target", asking("GET HTTP/1.1"), "400"},
	{"3", "a method alone", asking("GET"), "400"},
	{"3", "a long method alone", asking(strings.Repeat("G", 40)), "400"},
	{"3", "a blank behind the version", asking(get + " "), "400"},
	{"3.1", "a method that is no token", asking("G(T /echo HTTP/1.1"), "400"},
	{"3.1", "another method", asking("POST /echo HTTP/1.1"), "405"},
	{"3.1", "methods are case-sensitive", asking("get /echo HTTP/1.1"), "405"},
	{"3.2", "NUL in the target", asking("GET /ec\x00ho HTTP/1.1"), "400"},
	{"3.2", "a control byte in the target", asking("GET /echo?\x01 HTTP/1.1"), "400"},
	{"3.2", "DEL in the target", asking("GET /echo?\x7f HTTP/1.1"), "400"},
	{"3.2.1", "a query", asking("GET /echo?token=a%20b HTTP/1.1"), "101"},
	{"3.2.1", "another path", asking("GET /other HTTP/1.1"), "net/http"},
	{"3.2.1", "a path encoded", asking("GET /%65cho HTTP/1.1"), "net/http"},
	{"3.2.2", "absolute-form", asking("GET http://x/echo HTTP/1.1"), "101"},
	{"3.2.2", "absolute-form, upper case", asking("GET HTTP://X/echo HTTP/1.1"), "101"},
	{"3.2.2", "absolute-form of a WebSocket", asking("GET wss://x:1/echo?a=/b HTTP/1.1"), "101"},
	{"3.2.2", "absolute-form with a user", asking("GET http://u@x/echo HTTP/1.1"), "400"},
	{"3.2.2", "absolute-form with a user and a secret", asking("GET http://u:p@x/echo HTTP/1.1"), "400"},
	{"3.2.2", "absolute-form with a port that is none", asking("GET http://x:y/echo HTTP/1.1"), "400"},
	{"3.2.2", "absolute-form with an open bracket", asking("GET http://[::1/echo HTTP/1.1"), "400"},
	{"3.2.2", "absolute-form with a bad escape in the host", asking("GET http://%zz/echo HTTP/1.1"), "400"},
	{"3.2.2", "absolute-form without a host", asking("GET http:///echo HTTP/1.1"), "400"},
	{"3.2.2", "absolute-form, and no Host", asking("GET http://x/echo HTTP/1.1", "-Host"), "400"},
	{"3.2.2", "absolute-form, Host names another", asking("GET http://y/echo HTTP/1.1"), "101"},
	{"3.2.2", "absolute-form without a path", asking("GET http://x HTTP/1.1"), "net/http"},
	{"3.2.2", "absolute-form, a path in the query only", asking("GET http://x?/echo HTTP/1.1"), "net/http"},
	{"3.2.2", "absolute-form of another scheme", asking("GET ftp://x/echo HTTP/1.1"), "net/http"},
	{"3.2.3", "authority-form", request("CONNECT x:443 HTTP/1.1", "Host: x"), "net/http"},
	{"3.2.4", "asterisk-form", request("OPTIONS * HTTP/1.1", "Host: x"), "net/http"},
	{"2.3", "HTTP/1.0", asking("GET /echo HTTP/1.0"), "400"},
	{"2.3", "HTTP/1.0 without an upgrade", request("GET /echo HTTP/1.0"), "net/http"},
	{"2.3", "HTTP/2.0", asking("GET /echo HTTP/2.0"), "400"},
	{"2.3", "HTTP/9.9 is net/http's to answer", request("GET / HTTP/9.9"), "net/http"},
	{"2.3", "another protocol", asking("GET /echo RTSP/1.0"), "400"},
	{"2.3", "the name is case-sensitive", asking("GET /echo http/1.1"), "400"},
	{"RFC 9113, 3.4", "the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "net/http"},

	{"5.1", "a blank before the colon", asking(get, "X : a"), "400"},
	{"5.1", "a tab before the colon", asking(get, "X\t: a"), "400"},
	{"5.1", "no colon", asking(get, "X"), "400"},
	{"5.1", "no name", asking(get, ": a"), "400"},
	{"5.1", "a blank in the name", asking(get, "X Y: a"), "400"},
	{"5.1", "a name that is no token", asking(get, "X(: a"), "400"},
	{"5.1", "a name above ASCII", asking(get, "Ü: a"), "400"},
	{"5.1", "blanks around a value", asking(get, "X: \t a \t "), "101"},
	{"5.1", "no value", asking(get, "X:"), "101"},
	{"5.1", "a colon in a value", asking(get, "X::a:b"), "101"},
	{"5.2", "obs-fold", asking(get, "X: a", " b"), "400"},
	{"5.2", "obs-fold with a tab", asking(get, "X: a", "\tb"), "400"},
	{"5.2", "obs-fold that looks like a header", asking(get, "X: a", " Y: b"), "400"},
	{"RFC 9110, 5.5", "NUL in a value", asking(get, "X: a\x00b"), "400"},
	{"RFC 9110, 5.5", "a control byte in a value", asking(get, "X: a\x1bb"), "400"},
	{"RFC 9110, 5.5", "DEL in a value", asking(get, "X: a\x7fb"), "400"},
	{"RFC 9110, 5.5", "obs-text in a value", asking(get, "X: a\x80\xff"), "101"},
	{"RFC 9110, 5.5", "a tab in a value", asking(get, "X: a\tb"), "101"},

	{"RFC 9110, 7.6.1", "Connection is a list", asking(get, "-Connection", "Connection: keep-alive, Upgrade"), "101"},
	{"RFC 9110, 7.6.1", "empty elements", asking(get, "-Connection", "Connection: , ,upgrade,"), "101"},
	{"RFC 9110, 7.6.1", "several lines", asking(get, "-Connection", "Connection: upgrade", "Connection: close"), "101"},
	{"RFC 9110, 7.6.1", "any case", asking(get, "-Connection", "CONNECTION:\tUPGRADE "), "101"},
	{"RFC 9110, 7.6.1", "a longer token", asking(get, "-Connection", "Connection: upgrades"), "400"},
	{"RFC 9110, 7.6.1", "no list", asking(get, "-Connection", "Connection: keep-alive upgrade"), "400"},
	{"RFC 9110, 7.6.1", "no Connection", asking(get, "-Connection"), "400"},
	{"RFC 9110, 7.8", "Upgrade is a list", asking(get, "-Upgrade", "Upgrade: h2c, WebSocket"), "101"},
	{"RFC 9110, 7.8", "several lines", asking(get, "-Upgrade", "Upgrade: websocket", "Upgrade: h2c"), "101"},
	{"RFC 9110, 7.8", "another protocol", asking(get, "-Upgrade", "Upgrade: h2c"), "400"},
	{"RFC 9110, 7.8", "a version", asking(get, "-Upgrade", "Upgrade: websocket/13"), "400"},
	{"RFC 9110, 7.8", "no Upgrade", asking(get, "-Upgrade"), "net/http"},

	{"3.2", "no Host", asking(get, "-Host"), "400"},
	{"3.2", "two Hosts", asking(get, "Host: y"), "400"},
	{"3.2", "two Hosts that agree", asking(get, "Host: x"), "400"},
	{"3.2", "an empty Host", asking(get, "-Host", "Host:"), "400"},
	{"3.2", "a Host with a port", asking(get, "-Host", "Host: x.example:8000"), "101"},
	{"3.2", "a Host of IPv6", asking(get, "-Host", "Host: [::1]:8000"), "101"},
	{"3.2", "a Host that is none", asking(get, "-Host", "Host: x y"), "400"},
	{"6.2", "a body", asking(get, "Content-Length: 5") + "hello", "400"},
	{"6.2", "a body of 0", asking(get, "Content-Length: 0"), "101"},
	{"6.3", "two lengths", asking(get, "Content-Length: 0", "Content-Length: 5"), "400"},
	{"6.1", "a coding", asking(get, "Transfer-Encoding: chunked"), "400"},
	{"6.3", "two lengths that agree", asking(get, "Content-Length: 0", "Content-Length: 0"), "101"},
	{"6.2", "a length that is none", asking(get, "Content-Length: +0"), "400"},
	{"6.2", "a list of lengths", asking(get, "Content-Length: 0, 0"), "400"},
	{"6.2", "a length with blanks", asking(get, "Content-Length:  \t0 "), "101"},
	{"6.1", "a coding that is not chunked", asking(get, "Transfer-Encoding: identity"), "400"},
	{"6.1", "a coding without a value", asking(get, "Transfer-Encoding:"), "400"},
	{"6.1", "a length and a coding", request("POST /other HTTP/1.1", "Host: x", "Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\n", "400"},
	{"6.1", "a coding and a length", request("POST /other HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Content-Length: 5") + "0\r\n\r\n", "400"},
	{"6.1", "a length of 0 and a coding", request("POST /other HTTP/1.1", "Host: x", "Content-Length: 0", "Transfer-Encoding: chunked") + "0\r\n\r\n", "400"},
	{"6.1", "a coding in HTTP/1.0", request("POST /other HTTP/1.0", "Host: x", "Transfer-Encoding: chunked") + "0\r\n\r\n", "400"},
	{"6.1", "a coding alone", request("POST /other HTTP/1.1", "Host: x", "Transfer-Encoding: chunked") + "0\r\n\r\n", "net/http"},
	{"RFC 6585, 5", "a hundred header lines", asking(get, slices.Repeat([]string{"X: a"}, 95)...), "101"},
	{"RFC 6585, 5", "a hundred and one", asking(get, slices.Repeat([]string{"X: a"}, 96)...), "431"},
	{"RFC 6585, 5", "a hundred and one, for net/http", request(append([]string{"GET /other HTTP/1.1"}, slices.Repeat([]string{"X: a"}, 101)...)...), "431"},
	{"RFC 6454, 7.1", "an empty Origin", asking(get, "Origin:"), "400"},
	{"RFC 6455, 4.2.1", "no version", asking(get, "-Sec-WebSocket-Version"), "426"},
	{"RFC 6455, 4.2.1", "version 8", asking(get, "-Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"), "426"},
	{"RFC 6455, 4.2.1", "two versions", asking(get, "Sec-WebSocket-Version: 13"), "426"},
	{"RFC 6455, 4.2.1", "a list of versions", asking(get, "-Sec-WebSocket-Version", "Sec-WebSocket-Version: 13, 8"), "426"},
	{"RFC 6455, 4.2.1", "no key", asking(get, "-Sec-WebSocket-Key"), "400"},
	{"RFC 6455, 4.2.1", "two keys", asking(get, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), "400"},
	{"RFC 6455, 4.2.1", "a key of 15 bytes", asking(get, "-Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j"), "400"},
	{"RFC 6455, 4.2.1", "a key of 17 bytes", asking(get, "-Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZWE="), "400"},
	{"RFC 6455, 4.2.1", "a key of 18 bytes", asking(get, "-Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZWFh"), "400"},
	{"RFC 6455, 4.2.1", "a key that is not base64", asking(get, "-Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhb*BsZSBub25jZQ=="), "400"},
	{"RFC 6454, 7.3", "two Origins", asking(get, "Origin: a", "Origin: b"), "400"},

	{"2", "a TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"},
	{"2", "the first byte of one", "\x16", "400"},
	{"2", "half a handshake", asking(get)[:60], "waits"},
	{"2", "all but the last byte", strings.TrimSuffix(asking(get), "\n"), "waits"},
	{"3", "as large as allowed", padded(MaxHead), "101"},
	{"3", "a byte larger", padded(MaxHead + 1), "431"},
	{"3", "as large as allowed, and not at its end", padded(MaxHead + 2)[:MaxHead], "waits"},
	{"3", "a byte more, and not at its end", padded(MaxHead + 2)[:MaxHead+1], "431"},
	{"3", "malformed behind what is allowed", padded(MaxHead + 2)[:MaxHead+1] + "\n", "431"},
	{"2.2", "too many empty lines", strings.Repeat("\r\n", MaxHead/2+1), "431"},
}

// padded is an opening handshake of n bytes.
func padded(n int) string {
	h := asking(get, "X: ")
	return strings.Replace(h, "X: ", "X: "+strings.Repeat("a", n-len(h)), 1)
}

// outcome opens a connection, feeds it the pieces and tells what became of it.
func (r *rig) outcome(pieces [][]byte) string {
	p := r.accept()
	defer p.end()
	var prefix []byte
	var answer []byte
	for i, b := range pieces {
		p.feed(b)
		answer = append(answer, p.take()...)
		h := r.handed()
		if h == nil {
			continue
		}
		// What net/http reads is every byte that came.
		prefix = append(prefix, h.prefix...)
		if want := bytes.Join(pieces[:i+1], nil); !bytes.Equal(prefix, want) {
			r.t.Errorf("net/http was handed %q of %q", prefix, want)
		}
		if !p.gone() || len(answer) > 0 {
			r.t.Errorf("handed off, and answered %q, closed: %v", answer, p.gone())
		}
		return "net/http"
	}
	if len(answer) == 0 {
		if p.gone() || p.eof {
			return "closed"
		}
		return "waits"
	}
	status, ok := strings.CutPrefix(string(answer), "HTTP/1.1 ")
	if !ok || len(status) < 3 {
		r.t.Errorf("answered %q", answer)
		return "?"
	}
	if status = status[:3]; status == "101" {
		// The key may be another one, and frames may have stood behind the head.
		if at := strings.Index(switching, "s3pP"); len(answer) < len(switching) || string(answer[:at]) != switching[:at] {
			r.t.Errorf("answered %q", answer)
		}
		return status
	}
	// A refusal says that it closes, and is followed by the end.
	if !bytes.Contains(answer, []byte("\r\nConnection: close\r\n")) || !p.eof {
		r.t.Errorf("answered %q, closed: %v", answer, p.eof)
	}
	return status
}

func TestHead(t *testing.T) {
	r := newRig(t, nil)
	for _, tt := range headCases {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			n := 0
			cuts([]byte(tt.head), func(how string, pieces [][]byte) {
				if n++; n > 500 && n%67 != 0 && n < MaxHead-2 {
					return // of the long ones the ends and some between
				}
				if got := r.outcome(pieces); got != tt.want {
					t.Fatalf("%s: %s, want %s (section %s)", how, got, tt.want, tt.section)
				}
			})
		})
	}
	r.t = t
}

// What a loop does with a peer's first bytes is over soon, whatever they are.
func TestHeadCost(t *testing.T) {
	r := newRig(t, nil)
	for _, b := range []string{"\r\n", "\r", "A: b\r\n", "\r\n\r\nA"} {
		all := []byte(strings.Repeat(b, 64<<10/len(b))) // gnet's read buffer, full
		best := time.Hour                               // of a few: the machine may be busy
		for range 5 {
			start := time.Now()
			r.outcome([][]byte{all})
			best = min(best, time.Since(start))
		}
		if best > 20*time.Millisecond {
			t.Errorf("64 KiB of %q took %v of the loop", b, best)
		}
	}
}

func TestHeadFields(t *testing.T) {
	b := []byte(asking("GET /echo?a=b HTTP/1.1", "Origin: https://a.example", "Authorization: Bearer  t o",
		"User-Agent: u", "Sec-WebSocket-Protocol: a, b", "sec-websocket-protocol: c"))
	h, err := parseHead(b)
	if err != nil {
		t.Fatal(err)
	}
	path, query := h.path()
	got := strings.Join([]string{string(h.method), path, query, string(h.host), string(h.origin),
		string(h.authorization), string(h.agent), string(h.protocols), string(h.key), string(h.version)}, "|")
	const want = "GET|/echo|a=b|x|https://a.example|Bearer  t o|u|a, b, c|dGhlIHNhbXBsZSBub25jZQ==|13"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestHeadPath(t *testing.T) {
	for _, tt := range []struct{ target, path, query, host string }{
		{"/", "/", "", "own"},
		{"/a?b?c", "/a", "b?c", "own"},
		{"/a?", "/a", "", "own"},
		{"//a/b", "//a/b", "", "own"},
		{"*", "*", "", "own"},
		{"http://x/a?b", "/a", "b", "x"},
		{"https://x", "/", "", "x"},
		{"https://x?b", "/", "b", "x"},
		{"http://x?b/c", "/", "b/c", "x"},
		{"WS://X:1/a", "/a", "", "X:1"},
		{"http://[::1]:2/a", "/a", "", "[::1]:2"},
		{"http://", "http://", "", "own"},
		{"http:/a", "http:/a", "", "own"},
		{"ftp://x/a", "ftp://x/a", "", "own"},
	} {
		h := head{target: []byte(tt.target), host: []byte("own")}
		path, query := h.path()
		if path != tt.path || query != tt.query || string(h.host) != tt.host || h.badHost {
			t.Errorf("%s: got %q, %q and %q, want %q, %q and %q", tt.target, path, query, h.host, tt.path, tt.query, tt.host)
		}
	}
}
