package netpoll

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

var lan = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}

func TestFirstUntrusted(t *testing.T) {
	s := &Server{opts: Options{Trusted: lan}}
	for _, tt := range []struct{ list, want string }{
		{"192.0.2.7", "192.0.2.7:0"},
		{"192.0.2.7:443", "192.0.2.7:443"},
		{"[2001:db8::7]:443", "[2001:db8::7]:443"},
		{"[2001:db8::7]", "[2001:db8::7]:0"},
		{"2001:db8::7", "[2001:db8::7]:0"},
		{"::ffff:192.0.2.7", "192.0.2.7:0"},
		{"203.0.113.9, 192.0.2.7", "192.0.2.7:0"}, // the first is the client's own word
		{"203.0.113.9,192.0.2.7 ,\t10.1.1.1", "192.0.2.7:0"},
		{"192.0.2.7, 10.1.1.1, fd00::1", "192.0.2.7:0"},
		{"10.2.2.2, 10.1.1.1", "10.2.2.2:0"}, // a client of our own
		{"", ""},
		{"unknown", ""},
		{"_hidden, 10.1.1.1", ""},
		{"192.0.2.7,", ""},
		{"192.0.2.7, , 10.1.1.1", ""},
		{"127.1", ""},
		{"192.0.2.7:99999", ""},
	} {
		a, ok := s.firstUntrusted(tt.list)
		got := ""
		if ok {
			got = a.String()
		}
		if got != tt.want {
			t.Errorf("%q: %q, want %q", tt.list, got, tt.want)
		}
	}
}

// forwardedHead is an opening handshake that says through which proxies it came.
func forwardedHead(lines ...string) []byte {
	head := strings.TrimSuffix(upgradeHead, "\r\n")
	for _, l := range lines {
		head += "X-Forwarded-For: " + l + "\r\n"
	}
	return []byte(head + "\r\n")
}

// What X-Forwarded-For says is believed of a trusted proxy, and of nobody else:
// by the limits, and by who asks for the address.
func TestForwardedFor(t *testing.T) {
	var seen []string
	r := newRig(t, func(o *Options) {
		o.Trusted, o.PerAddress.Connections = lan, 1
		o.Listeners[0].Endpoints[0].Check = func(r *Request) (Decision, bool) {
			seen = append(seen, r.Remote())
			return Decision{}, true
		}
	})
	for _, tt := range []struct {
		name, from string
		lines      []string
		status     string
		remote     string
	}{
		{"a proxy's client", "10.0.0.1", []string{"192.0.2.1"}, "101", "192.0.2.1:0"},
		{"the same again", "10.0.0.1", []string{"192.0.2.1"}, "429", ""},
		{"the same through another proxy", "10.0.0.2", []string{"192.0.2.1, 10.0.0.9"}, "429", ""},
		{"another client of that proxy", "10.0.0.1", []string{"192.0.2.2"}, "101", "192.0.2.2:0"},
		{"on two lines", "10.0.0.1", []string{"203.0.113.1", "192.0.2.3"}, "101", "192.0.2.3:0"},
		{"a client that claims to be another", "10.0.0.1", []string{"198.51.100.1, 192.0.2.2"}, "429", ""},
		{"who is no proxy", "192.0.2.4", []string{"198.51.100.1"}, "101", "192.0.2.4:99"},
		{"who is no proxy, once more", "192.0.2.4", []string{"198.51.100.2"}, "429", ""},
		{"a proxy that says nothing", "10.0.0.3", nil, "101", "10.0.0.3:99"},
		{"a proxy that says what is no address", "10.0.0.4", []string{"unknown"}, "101", "10.0.0.4:99"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			seen = nil
			r.from(tt.from)
			p := r.accept()
			for _, b := range slices.Collect(slices.Chunk(forwardedHead(tt.lines...), 7)) {
				p.feed(bytes.Clone(b))
			}
			got := string(p.take())
			if !strings.HasPrefix(got, "HTTP/1.1 "+tt.status) {
				t.Errorf("answered %q, want %s", got, tt.status)
			}
			if got := strings.Join(seen, " "); got != tt.remote {
				t.Errorf("seen as %q, want %q", got, tt.remote)
			}
			if tt.status == "101" && p.sess().Remote() != tt.remote {
				t.Errorf("the session says %q, want %q", p.sess().Remote(), tt.remote)
			}
		})
	}
	r.t = t
}

// v2 is a PROXY header of version 2.
func v2(command, family byte, body []byte) []byte {
	b := append([]byte(prefaceV2), 0x20|command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// v2From is one of a TCP connection from an address.
func v2From(t testing.TB, from string) []byte {
	t.Helper()
	a := netip.MustParseAddrPort(from)
	to := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:80"))
	if a.Addr().Is6() {
		to = net.TCPAddrFromAddrPort(netip.MustParseAddrPort("[::1]:80"))
	}
	b, err := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(a), to).Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProxyProtocol(t *testing.T) {
	tlv := append(v2From(t, "192.0.2.7:1234"), 4, 0, 3, 'x', 'y', 'z')
	binary.BigEndian.PutUint16(tlv[14:], uint16(len(tlv)-16))
	for _, tt := range []struct {
		name    string
		preface string
		want    string // the address; empty: refused
	}{
		{"v1 over IPv4", "PROXY TCP4 192.0.2.7 198.51.100.1 1234 80\r\n", "192.0.2.7:1234"},
		{"v1 over IPv6", "PROXY TCP6 2001:db8::7 ::1 1234 80\r\n", "[2001:db8::7]:1234"},
		{"v1, unknown", "PROXY UNKNOWN\r\n", "10.0.0.1:99"},
		{"v1, unknown, and more", "PROXY UNKNOWN ffff:f::1 ffff::2 65535 65535\r\n", "10.0.0.1:99"},
		{"v2 over IPv4", string(v2From(t, "192.0.2.7:1234")), "192.0.2.7:1234"},
		{"v2 over IPv6", string(v2From(t, "[2001:db8::7]:1234")), "[2001:db8::7]:1234"},
		{"v2 with more behind the addresses", string(tlv), "192.0.2.7:1234"},
		{"v2, the proxy itself", string(v2(0, 0, nil)), "10.0.0.1:99"},
		{"v2, the proxy itself, with addresses", string(v2(0, 0x11, make([]byte, 12))), "10.0.0.1:99"},

		{"none", "", ""},
		{"v1, another word", "PROXI TCP4 192.0.2.7 198.51.100.1 1234 80\r\n", ""},
		{"v1 in lower case", "proxy TCP4 192.0.2.7 198.51.100.1 1234 80\r\n", ""},
		{"v1, a bare line feed", "PROXY TCP4 192.0.2.7 198.51.100.1 1234 80\n", ""},
		{"v1, no address", "PROXY TCP4 192.0.2 198.51.100.1 1234 80\r\n", ""},
		{"v1, no port", "PROXY TCP4 192.0.2.7 198.51.100.1 123456 80\r\n", ""},
		{"v1, too short", "PROXY TCP4\r\n", ""},
		{"v1, too long", "PROXY UNKNOWN " + strings.Repeat("x", 100) + "\r\n", ""},
		{"v2, version 3", strings.Replace(string(v2From(t, "192.0.2.7:1234")), "QUIT\n\x21", "QUIT\n\x31", 1), ""},
		{"v2, another command", string(v2(2, 0x11, make([]byte, 12))), ""},
		{"v2, too few bytes for its addresses", string(v2(1, 0x11, make([]byte, 11))), ""},
		{"v2, too long", string(v2(1, 0x11, make([]byte, prefaceV2Most))), ""},
		{"v2, another signature", "\r\n\r\n\x00\r\nQUIX\n!\x11\x00\x00", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Trusted, o.ProxyProtocol = lan, true })
			r.from("10.0.0.1")
			cuts([]byte(tt.preface+upgradeHead), func(how string, pieces [][]byte) {
				p := r.accept()
				defer p.end()
				got := string(p.feedAll(pieces))
				switch {
				case tt.want == "":
					if !strings.HasPrefix(got, "HTTP/1.1 400 ") {
						t.Fatalf("%s: answered %q", how, got)
					}
				case got != switching:
					t.Fatalf("%s: answered %q", how, got)
				case p.sess().Remote() != tt.want:
					t.Fatalf("%s: the session says %q, want %q", how, p.sess().Remote(), tt.want)
				}
			})
		})
	}
}

// Who is no trusted proxy can't say who it is, and who is one has to.
func TestProxyProtocolOfAStranger(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Trusted, o.ProxyProtocol = lan, true })
	r.from("192.0.2.1")
	p := r.accept()
	p.feed([]byte("PROXY TCP4 10.0.0.1 198.51.100.1 1234 80\r\n" + upgradeHead))
	if got := string(p.take()); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("a stranger's PROXY header: %q", got)
	}
	p.end()
	if q := r.wantStatus("192.0.2.1", "101"); q.sess().Remote() != "192.0.2.1:99" {
		t.Errorf("a stranger without one is %q", q.sess().Remote())
	}
	before := r.loop.stats.Outcomes[OutcomeBadProxy].Load()
	r.wantStatus("10.0.0.1", "400").end()
	if n := r.loop.stats.Outcomes[OutcomeBadProxy].Load() - before; n != 1 {
		t.Errorf("counted %d times", n)
	}
}

// A chain: a proxy speaks the PROXY protocol for another, which says more in the
// head.
func TestProxyBehindAProxy(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Trusted, o.ProxyProtocol = lan, true })
	r.from("10.0.0.1")
	for _, tt := range []struct{ first, list, want string }{
		{"10.0.0.2:5", "192.0.2.9", "192.0.2.9:0"},
		{"192.0.2.1:5", "192.0.2.9", "192.0.2.1:5"},
	} {
		p := r.accept()
		p.feed(append(v2From(t, tt.first), forwardedHead(tt.list)...))
		if got := string(p.take()); got != switching {
			t.Fatalf("answered %q", got)
		}
		if got := p.sess().Remote(); got != tt.want {
			t.Errorf("%s, %s: %s, want %s", tt.first, tt.list, got, tt.want)
		}
	}
}

// net/http sees the client's address as well, and so does an upgrade on its
// connection.
func TestProxyProtocolOverHTTP(t *testing.T) {
	s, addr := start(t, func(o *Options) {
		o.Trusted, o.ProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, true
		o.PerAddress.Connections = 1
	})
	seen := make(chan string, 1)
	hs := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.RemoteAddr })}
	go func() { _ = hs.Serve(s.Listener()) }()
	t.Cleanup(func() { _ = hs.Close() })
	c := raw(t, addr)
	_, _ = fmt.Fprintf(c, "%sGET /page HTTP/1.1\r\nHost: x\r\n\r\n", v2From(t, "192.0.2.7:1234"))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got := <-seen; got != "192.0.2.7:1234" {
		t.Errorf("net/http sees %s", got)
	}
	d := raw(t, addr)
	_, _ = fmt.Fprintf(d, "%s%s", v2From(t, "192.0.2.7:9"), upgradeHead)
	if resp, err = http.ReadResponse(bufio.NewReader(d), nil); err != nil || resp.StatusCode != http.StatusTooManyRequests {
		t.Fatalf("a second connection of it: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}

// FuzzProxy: whatever a proxy sends, in whatever pieces, is taken as a whole or
// refused, the same way each time, and the address is the one that the reference
// reads.
func FuzzProxy(f *testing.F) {
	for _, s := range []string{
		"PROXY TCP4 192.0.2.7 198.51.100.1 1234 80\r\n", "PROXY TCP6 2001:db8::7 ::1 1234 80\r\n", "PROXY UNKNOWN\r\n",
		string(v2From(f, "192.0.2.7:1234")), string(v2From(f, "[2001:db8::7]:1234")), string(v2(0, 0, nil)), "PROXY ", "\r\n\r\n\x00\r\n",
	} {
		f.Add([]byte(s), uint64(0))
		f.Add([]byte(s+upgradeHead), uint64(7))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		if len(b) > 16<<10 {
			return
		}
		r := newRig(t, func(o *Options) { o.Trusted, o.ProxyProtocol = lan, true })
		r.from("10.0.0.1")
		outcome := func(pieces [][]byte) string {
			p := r.accept()
			defer p.end()
			answer := string(p.feedAll(pieces))
			if h := r.handed(); h != nil {
				return "net/http"
			}
			if p.gone() {
				return "gone " + answer
			}
			return fmt.Sprint(p.c.mode, " ", p.c.client(), " ", answer)
		}
		whole := outcome([][]byte{b})
		if got := outcome(pieces(b, seed)); got != whole {
			t.Errorf("in pieces %q, whole %q", got, whole)
		}
		n, err := prefaceEnd(b)
		if err != nil || n == 0 {
			return
		}
		h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
		from, known, ours := parsePreface(b[:n])
		if (err == nil) != (ours == nil) {
			t.Errorf("the reference says %v, this %v", err, ours)
		}
		if known && h.SourceAddr.String() != net.TCPAddrFromAddrPort(from).String() && !strings.Contains(h.SourceAddr.String(), "::ffff:") {
			t.Errorf("the reference says %v, this %v", h.SourceAddr, from)
		}
	})
}
