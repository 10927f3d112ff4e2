package netpoll

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

// pieces cuts b at places that depend on seed alone.
func pieces(b []byte, seed uint64) (out [][]byte) {
	random := rand.New(rand.NewPCG(seed, 1))
	for len(b) > 0 {
		n := 1 + random.IntN(min(len(b), 1+random.IntN(64)))
		out = append(out, b[:n:n])
		b = b[n:]
	}
	return out
}

// FuzzHead holds the request head against itself, however it is cut, and
// against net/http: what is complete and well-formed here is a request there,
// with the same method, target, version and headers, and the other way round.
// Where the two differ on purpose stands in laxer and stricter.
func FuzzHead(f *testing.F) {
	for i, tt := range headCases {
		if len(tt.head) < 1000 {
			f.Add([]byte(tt.head), uint64(i))
		}
	}
	r := newRig(f, nil)
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		if len(b) == 0 {
			return
		}
		r.t = t
		defer func() { r.t = f }()
		whole := r.outcome([][]byte{b})
		if got := r.outcome(pieces(b, seed)); got != whole {
			t.Fatalf("whole: %s, in pieces: %s: %q", whole, got, b)
		}
		var single [][]byte
		for i := range b {
			single = append(single, b[i:i+1:i+1])
		}
		if got := r.outcome(single); got != whole {
			t.Fatalf("whole: %s, byte by byte: %s: %q", whole, got, b)
		}
		compare(t, b, whole)
	})
}

func compare(t *testing.T, b []byte, outcome string) {
	n, err := headEnd(b[:min(len(b), MaxHead)], 0)
	if err == nil && n == 0 {
		return
	}
	var h head
	if err == nil {
		h, err = parseHead(b[:n])
	}
	theirs, fields, theirErr := netHTTP(b)
	if err != nil || !plausible(b[:min(len(b), 16)]) {
		if outcome != "400" && outcome != "431" {
			t.Fatalf("malformed, and %s: %q", outcome, b)
		}
		if theirErr == nil && !stricter(b) {
			t.Fatalf("net/http takes what is malformed here: %q", b)
		}
		return
	}
	if theirErr != nil {
		if !laxer(&h, theirErr) {
			t.Fatalf("net/http says %v of what is well-formed here: %q", theirErr, b[:n])
		}
		if outcome == "101" {
			// The URL's rest is of no consequence to an upgrade: the path was found.
			var bad *url.Error
			if !errors.As(theirErr, &bad) {
				t.Fatalf("upgraded, where net/http says %v: %q", theirErr, b[:n])
			}
		}
		return
	}
	known := theirs.ProtoAtLeast(1, 0) && !theirs.ProtoAtLeast(1, 2)
	if theirs.Method != string(h.method) || theirs.RequestURI != string(h.target) || known && theirs.ProtoMinor != int(h.minor) {
		t.Fatalf("net/http reads %s %s 1.%d, not %s %s 1.%d", theirs.Method, theirs.RequestURI, theirs.ProtoMinor,
			h.method, h.target, h.minor)
	}
	for name, count := range map[string]int{"Host": h.hosts, "Origin": h.origins, "Sec-Websocket-Key": h.keys, "Sec-Websocket-Version": h.versions} {
		if got := len(fields[name]); got != count {
			t.Fatalf("net/http finds %d %s, not %d: %q", got, name, count, b[:n])
		}
	}
	all := make(textproto.MIMEHeader)
	eachField(string(b[:n]), func(name, value string) { all.Add(name, value) })
	if len(all) != len(fields) || !reflect.DeepEqual(all, fields) && len(fields) > 0 {
		t.Fatalf("net/http reads the fields %q, not %q", fields, all)
	}
	for name, value := range map[string][]byte{"Host": h.host, "Origin": h.origin, "Authorization": h.authorization, "User-Agent": h.agent} {
		if all := fields[name]; len(all) > 0 && all[len(all)-1] != string(value) {
			t.Fatalf("net/http reads %s: %q, not %q", name, all[len(all)-1], value)
		}
	}
	if got, want := string(h.protocols), strings.Join(fields["Sec-Websocket-Protocol"], ", "); got != want {
		t.Fatalf("net/http reads protocols %q, not %q", want, got)
	}
	if path, query := h.path(); outcome == "101" && (theirs.URL.Path != path || theirs.URL.RawQuery != query) {
		t.Fatalf("net/http reads path %q and query %q, not %q and %q", theirs.URL.Path, theirs.URL.RawQuery, path, query)
	}
}

// netHTTP is what net/http makes of a head, and all of its fields.
func netHTTP(b []byte) (*http.Request, textproto.MIMEHeader, error) {
	for bytes.HasPrefix(b, []byte("\r\n")) { // see laxer
		b = b[2:]
	}
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
	if err != nil {
		return nil, nil, err
	}
	tp := textproto.NewReader(bufio.NewReader(bytes.NewReader(b)))
	if _, err := tp.ReadLine(); err != nil {
		return nil, nil, err
	}
	fields, err := tp.ReadMIMEHeader()
	return req, fields, err
}

// laxer tells whether a head that net/http refuses is meant to pass here: it
// goes to net/http, which answers it. What is upgraded is none of these, save
// for an absolute URL's host.
//   - Empty lines before a request (RFC 9112, section 2.2), which net/http takes
//     behind a POST only; netHTTP leaves them out.
//   - Another version than 1.0 and 1.1: 505 is net/http's answer.
//   - A target that is no URL.
//   - A Content-Length or Transfer-Encoding that net/http doesn't like, more than one
//     Host.
func laxer(h *head, err error) bool {
	var bad *url.Error
	return h.minor == 0 || errors.As(err, &bad) || string(h.method) == "CONNECT" || h.length || h.coding || h.hosts > 1
}

// stricter tells whether a head that net/http takes is malformed here.
//   - A bare LF as a line's end (net/http: any).
//   - A bare CR before CRLF (net/http: trimmed with other blanks).
//   - obs-fold (net/http: joined), and lines of blanks alone.
//   - Blanks within or before the end of a name (net/http: kept).
//   - First bytes that can't begin a request.
func stricter(b []byte) bool {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if bytes.Contains(bytes.ReplaceAll(b, []byte("\r\n"), nil), []byte("\n")) ||
		bytes.Contains(bytes.ReplaceAll(b, []byte("\r\n"), nil), []byte("\r")) || end < 0 {
		return true
	}
	if !plausible(b[:min(len(b), 16)]) {
		return true
	}
	lines := bytes.Split(bytes.TrimLeft(b, "\r\n"), []byte("\r\n"))
	for _, line := range lines[1:] {
		if len(line) == 0 {
			break
		}
		name, _, ok := bytes.Cut(line, []byte(":"))
		if !ok || bytes.ContainsAny(name, " \t") || len(name) == 0 {
			return true
		}
	}
	return false
}

// netHTTP's own end of input must not be taken for a malformed head.
func TestNetHTTP(t *testing.T) {
	if _, _, err := netHTTP([]byte(asking(get))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := netHTTP([]byte("GET / HTTP/1.1\r\n")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("got %v", err)
	}
}
