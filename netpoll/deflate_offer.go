package netpoll

import (
	"net/http"
	"strings"
)

// deflateName is the extension's name (RFC 7692, section 7).
const deflateName = "permessage-deflate"

// What a conn knows of permessage-deflate: the bits of the window that the
// server keeps to, 0 without the extension, and whether the answer says them.
const (
	windowBits = 0x0f
	windowSaid = 0x10
)

// offered finds the offer of permessage-deflate that is taken. false: the head
// has been refused.
func (c *conn) offered(h *head) bool {
	if c.loop.server.deflater == nil || c.endpoint.Events || len(h.extensions) == 0 {
		return true
	}
	taken, declined, ok := negotiate(text(h.extensions))
	c.loop.stats.DeflateDeclined.Add(uint64(declined))
	if !ok {
		// RFC 6455, section 9.1: what does not conform ends the handshake.
		c.refuseHead(OutcomeBadRequest, http.StatusBadRequest, "malformed Sec-WebSocket-Extensions", "")
		return false
	}
	c.deflate = taken
	return true
}

// appendExtension appends the header that answers the offer taken (RFC 7692,
// section 7.1). Both sides begin every message anew: the server may say so of
// either, asked or not. A smaller window of the client's would save nothing here.
func (c *conn) appendExtension(b []byte) []byte {
	if c.deflate == 0 {
		return b
	}
	c.loop.stats.DeflateSessions.Add(1)
	b = append(b, "\r\nSec-WebSocket-Extensions: "+deflateName+"; server_no_context_takeover; client_no_context_takeover"...)
	if c.deflate&windowSaid != 0 {
		b = append(b, "; server_max_window_bits="...)
		if n := c.deflate & windowBits; n >= 10 {
			b = append(b, '1', '0'+n-10)
		} else {
			b = append(b, '0'+n)
		}
	}
	return b
}

// negotiate reads the value of Sec-WebSocket-Extensions and takes the first offer
// of permessage-deflate that can be kept; 0: none. declined are those before it
// that can't. ok is false where the value breaks the grammar of RFC 6455, section
// 9.1.
func negotiate(value string) (taken byte, declined int, ok bool) {
	p := offers{value}
	for {
		// Empty elements of a list are no elements (RFC 9110, section 5.6.1).
		for p.skip(',') {
		}
		if p.rest == "" {
			return taken, declined, true
		}
		name, ok := p.token()
		if !ok {
			return 0, declined, false
		}
		o := offer{bits: fullWindow}
		for p.skip(';') {
			param, ok := p.token()
			if !ok {
				return 0, declined, false
			}
			val, given := "", p.skip('=')
			if given {
				if val, ok = p.value(); !ok {
					return 0, declined, false
				}
			}
			o.param(param, val, given)
		}
		if p.rest != "" && p.rest[0] != ',' {
			return 0, declined, false
		}
		switch {
		case name != deflateName || taken != 0:
		case o.bad:
			declined++
		default:
			taken = o.bits
		}
	}
}

// offer is one offer of permessage-deflate. It is declined where a parameter is
// unknown, comes twice, or has a value that is not its own (RFC 7692, section 7.1).
type offer struct {
	bits byte
	seen byte
	bad  bool
}

func (o *offer) param(name, value string, given bool) {
	var which byte
	switch name {
	case "server_no_context_takeover": // 7.1.1.1
		which, o.bad = 1, o.bad || given
	case "client_no_context_takeover": // 7.1.1.2
		which, o.bad = 2, o.bad || given
	case "server_max_window_bits": // 7.1.2.1
		bits := windowOf(value)
		which, o.bad = 4, o.bad || bits == 0
		o.bits = bits | windowSaid
	case "client_max_window_bits": // 7.1.2.2: a hint, with a value or without
		which, o.bad = 8, o.bad || given && windowOf(value) == 0
	default:
		o.bad = true
	}
	o.bad = o.bad || o.seen&which != 0
	o.seen |= which
}

// windowOf reads 8 to 15, without leading zeros; 0: it is not that.
func windowOf(s string) byte {
	switch {
	case len(s) == 1 && (s[0] == '8' || s[0] == '9'):
		return s[0] - '0'
	case len(s) == 2 && s[0] == '1' && s[1] >= '0' && s[1] <= '5':
		return 10 + s[1] - '0'
	}
	return 0
}

// offers takes a list of extensions apart.
type offers struct{ rest string }

// skip takes b, with blanks around it, off the front; false: it is not there.
func (p *offers) skip(b byte) bool {
	p.rest = strings.TrimLeft(p.rest, " \t")
	if p.rest == "" || p.rest[0] != b {
		return false
	}
	p.rest = strings.TrimLeft(p.rest[1:], " \t")
	return true
}

func (p *offers) token() (string, bool) {
	n := 0
	for n < len(p.rest) && tokenByte[p.rest[n]] {
		n++
	}
	t := p.rest[:n]
	p.rest = strings.TrimLeft(p.rest[n:], " \t")
	return t, n > 0
}

// value is a token, or a quoted string that holds one.
func (p *offers) value() (string, bool) {
	if p.rest == "" || p.rest[0] != '"' {
		return p.token()
	}
	var v []byte
	for i := 1; i < len(p.rest); i++ {
		b := p.rest[i]
		if b == '"' {
			p.rest = strings.TrimLeft(p.rest[i+1:], " \t")
			return string(v), token(v)
		}
		if b == '\\' {
			if i++; i == len(p.rest) {
				break
			}
			b = p.rest[i]
		}
		v = append(v, b)
	}
	return "", false
}
