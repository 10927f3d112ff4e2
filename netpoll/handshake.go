package netpoll

import (
	"crypto/sha1" //nolint:gosec // RFC 6455, section 4.2.2 prescribes SHA-1.
	"encoding/base64"
	"net/http"
	"strconv"
	"unsafe"

	"github.com/valyala/bytebufferpool"

	"perch/session"
)

// acceptGUID is of RFC 6455, section 1.3.
const acceptGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// readHead gathers the request head and goes on when it is whole.
func (c *conn) readHead(b []byte) {
	from := 0
	if c.in != nil && c.in.raw != nil {
		from = len(c.in.raw.B)
		c.in.raw.B = append(c.in.raw.B, b...)
		b = c.in.raw.B
	}
	if from < 16 && !plausible(b[:min(len(b), 16)]) {
		c.refuseHead(OutcomeBadRequest, http.StatusBadRequest, "malformed request", "")
		return
	}
	// What is behind MaxHead is not looked at, however much has come at once.
	n, err := headEnd(b[:min(len(b), MaxHead)], from)
	if err == nil && n == 0 && len(b) > MaxHead {
		err = errHeadTooLarge
	}
	switch {
	case err == errHeadTooLarge:
		c.refuseHead(OutcomeTooLarge, http.StatusRequestHeaderFieldsTooLarge, "request head too large", "")
		return
	case err != nil:
		c.refuseHead(OutcomeBadRequest, http.StatusBadRequest, "malformed request", "")
		return
	case n == 0:
		c.gather(b)
		return
	case c.pinged != 0 && c.refuse == admitted && c.pinged > c.loop.present():
		c.mode = modeWaiting
		c.deadline = c.pinged
		c.reschedule()
		c.gather(b)
		return
	}
	// The buffer is let go of first, as what follows may end c.
	raw := c.takeRaw()
	c.request(b, n)
	if raw != nil {
		putInBuffer(raw)
	}
}

// request decides about a whole head, the first n bytes of b.
func (c *conn) request(b []byte, n int) {
	h, err := parseHead(b[:n])
	if err == errHeadTooLarge {
		c.refuseHead(OutcomeTooLarge, http.StatusRequestHeaderFieldsTooLarge, "too many header lines", "")
		return
	}
	if err != nil {
		c.refuseHead(OutcomeBadRequest, http.StatusBadRequest, "malformed request", "")
		return
	}
	path, query := h.path()
	ep := c.endpoint.port.endpoints[path]
	served := ep != nil && ep.takes(&h)
	if served {
		c.forwarded(h.forwarded)
	}
	if c.refuse != admitted || c.loop.server.draining.Load() {
		c.overload()
		return
	}
	if !served {
		if c.via&viaAdopted != 0 {
			// net/http gave it to us: it would only come back.
			c.refuseHead(OutcomeRefused, http.StatusNotFound, "not served here", "")
			return
		}
		c.handOff(b)
		return
	}
	c.endpoint = ep
	if !c.checkForm(&h) || !c.offered(&h) {
		return
	}
	c.mode = modeChecking
	rest := b[n:]
	r := &c.loop.request
	*r = Request{
		Path: path, Query: query, Host: text(h.host), Origin: text(h.origin),
		Authorization: text(h.authorization), Protocols: text(h.protocols), UserAgent: text(h.agent),
		LastEventID: text(h.lastEvent), head: text(b[:n]), conn: c,
	}
	copy(r.key[:], h.key)
	key := r.key
	d, now := ep.Check(r)
	*r = Request{}
	if now {
		c.decide(&d, key, rest)
		return
	}
	c.holdChecking(rest)
}

// gather keeps what is incomplete, all of it so far.
func (c *conn) gather(b []byte) {
	in := c.inbound()
	if in.raw == nil {
		in.raw = inBuffers.Get()
		in.raw.B = append(in.raw.B, b...)
	}
	c.accountIn()
	c.brake()
}

// takeRaw takes the incomplete bytes out of c: they are whole now.
func (c *conn) takeRaw() (raw *bytebufferpool.ByteBuffer) {
	if c.in == nil {
		return nil
	}
	raw, c.in.raw = c.in.raw, nil
	c.releaseIn()
	return raw
}

// itsTurn goes on with a head that has waited.
func (c *conn) itsTurn() {
	c.mode, c.pinged = modeHead, 0
	c.setDeadline(c.loop.server.limits.Load().HandshakeTimeout)
	raw := c.takeRaw()
	c.readHead(raw.B)
	putInBuffer(raw)
}

// text is b as a string without a copy: it dies with b.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// checkForm checks the rules of RFC 6455, section 4.2.1, or those of an event
// stream's request.
func (c *conn) checkForm(h *head) bool {
	if c.endpoint.Events {
		return c.checkRequest(h)
	}
	bad := func(text string) bool {
		c.refuseHead(OutcomeBadRequest, http.StatusBadRequest, text, "")
		return false
	}
	switch {
	case string(h.method) != http.MethodGet:
		c.refuseHead(OutcomeBadRequest, http.StatusMethodNotAllowed, "the opening handshake is a GET", "Allow: GET\r\n")
		return false
	case h.minor != 1:
		return bad("the opening handshake needs HTTP/1.1")
	case h.hosts != 1 || h.badHost:
		return bad("one Host header is needed, and a valid one")
	case h.length || h.coding:
		return bad("the opening handshake has no body")
	case !h.upgrade:
		return bad("Upgrade must name websocket")
	case !h.connection:
		return bad("Connection must name upgrade")
	case h.versions != 1 || string(h.version) != "13":
		c.refuseHead(OutcomeBadVersion, http.StatusUpgradeRequired, "WebSocket version 13 is needed",
			"Sec-WebSocket-Version: 13\r\n")
		return false
	case h.keys != 1 || !validKey(h.key):
		return bad("Sec-WebSocket-Key must be 16 bytes in base64")
	case h.origins > 1 || h.authorizations > 1:
		return bad("one Origin and one Authorization header at the most")
	case h.origins == 1 && len(h.origin) == 0:
		return bad("Origin must name one") // an empty one would pass for none
	}
	return true
}

// validKey tells whether k is the base64 of 16 bytes.
func validKey(k []byte) bool {
	if len(k) != 24 {
		return false
	}
	var buf [18]byte
	n, err := base64.StdEncoding.Decode(buf[:], k)
	return err == nil && n == 16
}

// holdChecking keeps what a peer sends before it is let in.
func (c *conn) holdChecking(b []byte) {
	if len(b) == 0 || c.mode != modeChecking && c.mode != modeWaiting {
		return
	}
	in := c.inbound()
	if in.raw == nil {
		in.raw = inBuffers.Get()
	}
	if len(in.raw.B)+len(b) > pooledMax {
		c.refuseHead(OutcomeTooLarge, http.StatusRequestEntityTooLarge, "too much before the upgrade", "")
		return
	}
	in.raw.B = append(in.raw.B, b...)
	c.accountIn()
	c.brake()
}

// decide carries out what Endpoint.Check said. rest are the bytes behind the
// head, where they have not been held.
func (c *conn) decide(d *Decision, key [24]byte, rest []byte) {
	if c.loop.server.draining.Load() {
		c.overload()
		return
	}
	if d.Status != 0 {
		o, extra := OutcomeRefused, ""
		switch d.Status {
		case http.StatusUnauthorized:
			o, extra = OutcomeUnauthorized, "WWW-Authenticate: Bearer\r\n"
		case http.StatusForbidden:
			o = OutcomeBadOrigin
		}
		c.refuseHead(o, d.Status, d.Text, extra+d.Header)
		return
	}
	if c.endpoint.Events {
		c.beginEvents(d)
	} else {
		c.switchProtocols(d, key)
	}
	c.upgrade(d)
	// What the peer has sent ahead comes now.
	if c.in != nil && c.in.raw != nil {
		held := c.takeRaw()
		c.further(held.B)
		putInBuffer(held)
	}
	c.further(rest)
}

// further takes what came behind the head.
func (c *conn) further(b []byte) {
	switch c.mode {
	case modeWebSocket:
		c.readFrames(b)
	case modeEvents:
		c.readNothing(b)
	}
}

// switchProtocols answers the head (section 4.2.2).
func (c *conn) switchProtocols(d *Decision, key [24]byte) {
	var buf [384]byte
	b := append(buf[:0], "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	b = appendAccept(b, key)
	if d.Protocol != "" {
		b = append(b, "\r\nSec-WebSocket-Protocol: "...)
		b = append(b, d.Protocol...)
	}
	b = c.appendExtension(b)
	b = append(b, "\r\n"...)
	b = append(b, d.Header...)
	b = append(b, "\r\n"...)
	c.writeRaw(b)
}

// upgrade makes c a WebSocket, or an event stream, and opens its session.
func (c *conn) upgrade(d *Decision) {
	l := c.loop
	l.stats.Outcomes[c.endpoint.outcome()].Add(1)
	l.stats.Sessions.Add(1)
	c.mode = c.endpoint.mode()
	c.deadline, c.pinged = 0, 0
	if c.endpoint.ConnectTimeout > 0 {
		c.deadline = l.present() + ticks(c.endpoint.ConnectTimeout) + 1
	}
	c.frames = d.FramePings
	c.sess.Open(c, l, c.id())
	c.sess.Encoding = d.Encoding
	c.sessions = true
	c.reschedule()
	if d.Encoding == session.EncodingNone {
		c.StartHeartbeat()
	}
	c.endpoint.Handler.Open(&c.sess, d.Identity)
}

// appendAccept appends the Sec-WebSocket-Accept of a key (section 4.2.2).
func appendAccept(b []byte, key [24]byte) []byte {
	var in [24 + len(acceptGUID)]byte
	copy(in[:], key[:])
	copy(in[24:], acceptGUID)
	sum := sha1.Sum(in[:]) //nolint:gosec // see the import
	return base64.StdEncoding.AppendEncode(b, sum[:])
}

// overload answers a head with 503 or 429 and a time to come back that is spread, so
// that those who are refused together don't come back together.
func (c *conn) overload() {
	after := 1 + c.loop.rand()%10
	status, text := http.StatusServiceUnavailable, "too many connections"
	if c.loop.server.draining.Load() {
		c.refuseAs(overDrain)
	}
	c.loop.stats.Refusals[c.refuse].Add(1)
	switch c.refuse {
	case overDrain:
		text = "the server is stopping"
	case overMemory:
		text = "no memory for more connections"
	case overRate:
		text = "too many connections at once"
	case overAddress:
		status, text = http.StatusTooManyRequests, "too many connections from this address"
	case overSubnet:
		status, text = http.StatusTooManyRequests, "too many connections from this subnet"
	case overPace:
		status, text = http.StatusTooManyRequests, "too many new connections from this address"
	}
	c.loop.server.tellRefused(text)
	c.refuseHead(OutcomeOverload, status, text, "Retry-After: "+strconv.FormatUint(after, 10)+"\r\n")
}

// refuseHead answers a head that goes no further, and closes in such a way
// that the answer arrives.
func (c *conn) refuseHead(o Outcome, status int, text, extra string) {
	c.loop.stats.Outcomes[o].Add(1)
	c.reason = session.ReasonHandshakeRefused
	b := make([]byte, 0, 384)
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	kind := "text/plain; charset=utf-8"
	if c.endpoint.Events {
		kind, text = "application/json", problem(status, text)
	}
	b = append(b, "\r\nContent-Type: "...)
	b = append(b, kind...)
	b = append(b, "\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n"...)
	b = append(b, extra...)
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, int64(len(text)+1), 10)
	b = append(b, "\r\n\r\n"...)
	b = append(b, text...)
	b = append(b, '\n')
	c.writeRaw(b)
	c.linger()
}
