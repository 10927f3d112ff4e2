package perch

import (
	"bufio"
	"bytes"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"
)

// FuzzAdopt: a head that net/http has read and that goes to the event loops is
// the same request when it is written anew, and only that: no line more, none
// less, and in a form that leaves nothing to be understood. What the loops make
// of such a head is held against net/http by FuzzHead of package netpoll.
func FuzzAdopt(f *testing.F) {
	handshake := "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for _, line := range []string{
		"GET /echo HTTP/1.1", "GET /echo?a=b HTTP/1.1", "GET /echo? HTTP/1.1", "GET /ech%6f HTTP/1.1", "GET http://y/echo HTTP/1.1", "GET //x/echo HTTP/1.1",
		"GET /echo HTTP/1.2", "GET /echo#x HTTP/1.1", "GET /echo?\x80 HTTP/1.1", "OPTIONS * HTTP/1.1",
	} {
		f.Add([]byte(line + "\r\n" + handshake + "\r\n"))
	}
	for _, more := range []string{
		"X: a\r\n b\r\n", "X: a\n", "X:\r\n", "X: a\r\nX: b\r\n", "x-a: 1\r\nX-A: 2\r\n", "Origin: http://x\r\nOrigin: http://y\r\n", "X: \x80\xff\r\n", "X: a\tb \r\n",
		"Content-Length: 0\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Trailer: X\r\n", "Expect: 100-continue\r\n", "Host: y\r\n", "X y: a\r\n", "X_Y: a\r\n",
	} {
		f.Add([]byte("GET /echo HTTP/1.1\r\n" + handshake + more + "\r\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil || !adoptable(r) || r.Host == "" || !servable(r) {
			return
		}
		again := headAgain(r)
		lines := strings.Split(strings.TrimSuffix(string(again), "\r\n\r\n"), "\r\n")
		want := 2
		for _, values := range r.Header {
			want += len(values)
		}
		if len(lines) != want || strings.ContainsAny(strings.Join(lines, ""), "\r\n") {
			t.Fatalf("%d lines, want %d: %q", len(lines), want, again)
		}
		in := bufio.NewReader(bytes.NewReader(again))
		second, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("%q: %v", again, err)
		}
		if second.Method != r.Method || second.RequestURI != r.RequestURI || second.URL.Path != r.URL.Path || second.Host != r.Host ||
			second.ContentLength != 0 || len(second.TransferEncoding) > 0 || second.ProtoMinor != 1 || in.Buffered() > 0 ||
			!maps.EqualFunc(second.Header, r.Header, slices.Equal[[]string]) {
			t.Fatalf("%q became %q", b, again)
		}
	})
}

// servable is what net/http's server checks of a request beyond ReadRequest.
func servable(r *http.Request) bool {
	for name, values := range r.Header {
		if !httpguts.ValidHeaderFieldName(name) || slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return false
		}
	}
	return httpguts.ValidHostHeader(r.Host)
}
