package netpoll

import (
	"bytes"
	"errors"
	"strings"
)

// Errors of a request head; each is answered with its own status.
var (
	errMalformedHead = errors.New("netpoll: malformed request head")
	errHeadTooLarge  = errors.New("netpoll: request head too large")
)

// head is what the front door needs to know of a request head (RFC 9112). Its
// slices point into the head and die with it.
type head struct {
	method, target       []byte
	minor                byte // of HTTP/1.x
	hosts                int
	host                 []byte
	badHost              bool
	upgrade              bool // Upgrade names websocket
	upgrades             bool // there is an Upgrade
	connection           bool // Connection names upgrade
	keys                 int
	key                  []byte
	versions             int
	version              []byte
	protocols            []byte // all Sec-WebSocket-Protocol lines, joined
	origins              int
	origin               []byte
	authorizations       int
	authorization, agent []byte
	lastEvent            []byte // Last-Event-ID
	unknown              bool   // the version is not HTTP/1.0 or HTTP/1.1
	length, coding       bool   // Content-Length other than 0, Transfer-Encoding
}

// headEnd is the length of the head at the front of b, with the empty line; 0
// while it is incomplete. from is where the search begins. A line feed without
// a carriage return is malformed: what tolerates it can be made to see other
// requests than its proxy did.
func headEnd(b []byte, from int) (int, error) {
	// A request may be preceded by empty lines (RFC 9112, section 2.2); they are
	// part of what net/http gets.
	first := 0
	for first < len(b) && (b[first] == '\r' || b[first] == '\n') {
		first++
	}
	for i := max(0, from-3); i < len(b); i++ {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return 0, nil
		}
		i += j
		if i == 0 || b[i-1] != '\r' {
			return 0, errMalformedHead
		}
		if i >= 3 && b[i-2] == '\n' && first < i-1 {
			return i + 1, nil
		}
	}
	return 0, nil
}

// plausible tells from the first bytes whether this can be HTTP at all: a TLS
// hello or a binary protocol is refused before its head is waited for.
func plausible(b []byte) bool {
	for i, c := range b {
		switch {
		case c == '\r' || c == '\n':
		case tokenByte[c]:
		case c == ' ' && i > 0:
			return true
		default:
			return false
		}
	}
	return true
}

// tokenByte marks the bytes of a token (RFC 9110, section 5.6.2).
var tokenByte = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()

func token(b []byte) bool {
	for _, c := range b {
		if !tokenByte[c] {
			return false
		}
	}
	return len(b) > 0
}

// parseHead reads a complete head, the empty line included.
func parseHead(b []byte) (h head, err error) {
	for bytes.HasPrefix(b, []byte("\r\n")) {
		b = b[2:]
	}
	line, b := cutLine(b)
	var rest []byte
	var ok bool
	if h.method, rest, ok = bytes.Cut(line, []byte{' '}); !ok || !token(h.method) {
		return h, errMalformedHead
	}
	if h.target, rest, ok = bytes.Cut(rest, []byte{' '}); !ok || len(h.target) == 0 {
		return h, errMalformedHead
	}
	for _, c := range h.target {
		if c <= ' ' || c == 0x7f {
			return h, errMalformedHead
		}
	}
	if len(rest) != 8 || string(rest[:7]) != "HTTP/1." || rest[7] != '0' && rest[7] != '1' {
		// net/http knows better what to say of other versions.
		if !bytes.HasPrefix(rest, []byte("HTTP/")) {
			return h, errMalformedHead
		}
		h.unknown = true
	} else {
		h.minor = rest[7] - '0'
	}
	for {
		line, b = cutLine(b)
		if len(line) == 0 {
			return h, nil
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		// A name is a token, without blanks before the colon, and a line that
		// begins with a blank (obs-fold) is no header (RFC 9112, section 5).
		if !ok || !token(name) {
			return h, errMalformedHead
		}
		value = bytes.Trim(value, " \t")
		for _, c := range value {
			if c < ' ' && c != '\t' || c == 0x7f {
				return h, errMalformedHead
			}
		}
		h.field(name, value)
	}
}

// validHost tells whether b can be a Host: uri-host, with an optional port (RFC
// 9110, section 7.2). It looks at the bytes, as net/http does.
func validHost(b []byte) bool {
	for _, c := range b {
		if !(tokenByte[c] && c != '^' && c != '`' && c != '|' && c != '#') && c != ':' && c != '[' && c != ']' &&
			c != '(' && c != ')' && c != ',' && c != ';' && c != '=' {
			return false
		}
	}
	return len(b) > 0
}

func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 {
		return nil, nil
	}
	return b[:i-1], b[i+1:]
}

func (h *head) field(name, value []byte) {
	switch len(name) {
	case 4:
		if fold(name, "host") {
			h.hosts++
			h.host = value
			h.badHost = h.badHost || !validHost(value)
		}
	case 6:
		if fold(name, "origin") {
			h.origins++
			h.origin = value
		}
	case 7:
		if fold(name, "upgrade") {
			h.upgrades = true
			h.upgrade = h.upgrade || listed(value, "websocket")
		}
	case 10:
		if fold(name, "connection") {
			h.connection = h.connection || listed(value, "upgrade")
		} else if fold(name, "user-agent") {
			h.agent = value
		}
	case 13:
		if fold(name, "authorization") {
			h.authorizations++
			h.authorization = value
		} else if fold(name, "last-event-id") {
			h.lastEvent = value
		}
	case 14:
		if fold(name, "content-length") {
			h.length = h.length || string(value) != "0"
		}
	case 17:
		if fold(name, "sec-websocket-key") {
			h.keys++
			h.key = value
		} else if fold(name, "transfer-encoding") {
			h.coding = true
		}
	case 21:
		if fold(name, "sec-websocket-version") {
			h.versions++
			h.version = value
		}
	case 22:
		if fold(name, "sec-websocket-protocol") {
			if h.protocols == nil {
				h.protocols = value
			} else {
				h.protocols = append(append(bytes.Clone(h.protocols), ',', ' '), value...)
			}
		}
	}
}

// fold compares a header's name with a lower-case one of the same length.
func fold(b []byte, lower string) bool {
	for i := range b {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// listed tells whether a comma-separated list holds a token, in any case. An
// Upgrade's protocol may carry a version behind a slash, which websocket never
// has.
func listed(list []byte, lower string) bool {
	for len(list) > 0 {
		var e []byte
		e, list, _ = bytes.Cut(list, []byte{','})
		e = bytes.Trim(e, " \t")
		if len(e) == len(lower) && fold(e, lower) {
			return true
		}
	}
	return false
}

// path and query of the target. An absolute-form target (RFC 9112, section
// 3.2.2) is taken by its path. Both die with the head.
func (h *head) path() (path, query string) {
	t := text(h.target)
	if !strings.HasPrefix(t, "/") {
		for _, scheme := range [...]string{"http://", "https://", "ws://", "wss://"} {
			if len(t) > len(scheme) && strings.EqualFold(t[:len(scheme)], scheme) {
				t = t[len(scheme):]
				if i := strings.IndexAny(t, "/?"); i < 0 {
					t = "/"
				} else if t = t[i:]; t[0] == '?' {
					return "/", t[1:] // what stands behind the ? is not the path
				}
				break
			}
		}
	}
	path, query, _ = strings.Cut(t, "?")
	return path, query
}
