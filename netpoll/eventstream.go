package netpoll

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"perch/session"
)

// The framing of an event stream: the body of an HTTP answer that lasts, as the
// HTML standard has it (text/event-stream). Only the server speaks.

// eventsHead begins the answer. There is no length and no coding: the stream
// ends with the connection (RFC 9112, section 6.3). X-Accel-Buffering keeps
// proxies from gathering events.
const eventsHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n" +
	"X-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n"

// Clients come back after a time of retryLeast to retryLeast + retrySpread, in
// milliseconds, which is their own: by themselves they would all take the same, and
// those that a server lost together would be back together.
const (
	retryLeast  = 1000
	retrySpread = 4000
)

// eventPing is a comment, which clients skip.
var eventPing = []byte(":\n\n")

// mode is the framing of e's connections.
func (e *endpoint) mode() mode {
	if e.Events {
		return modeEvents
	}
	return modeWebSocket
}

func (e *endpoint) outcome() Outcome {
	if e.Events {
		return OutcomeStreamed
	}
	return OutcomeUpgraded
}

// takes tells whether a request is e's; if not, it is net/http's.
func (e *endpoint) takes(h *head) bool {
	if e.Events {
		return string(h.method) == http.MethodGet && !h.unknown
	}
	return h.upgrades
}

// checkRequest checks the form of an event stream's request. Proxies speak
// HTTP/1.0 to what is behind them, so that is taken as well.
func (c *conn) checkRequest(h *head) bool {
	why := ""
	switch {
	case h.hosts > 1 || h.minor == 1 && h.hosts == 0 || h.badHost:
		why = "one Host header is needed, and a valid one"
	case h.length || h.coding:
		why = "the request has no body"
	case h.upgrade:
		why = "this path is no WebSocket"
	case h.origins > 1 || h.authorizations > 1:
		why = "one Origin and one Authorization header at the most"
	case h.origins == 1 && len(h.origin) == 0:
		why = "Origin must name one"
	default:
		return true
	}
	c.refuseHead(OutcomeBadRequest, http.StatusBadRequest, why, "")
	return false
}

// problem is a refusal as the public port's other answers say it.
func problem(status int, text string) string {
	code := strings.ReplaceAll(strings.ToLower(http.StatusText(status)), " ", "_")
	b, _ := json.Marshal(struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{code, text}) // strings can be said
	return string(b)
}

// beginEvents answers the request.
func (c *conn) beginEvents(d *Decision) {
	var buf [512]byte
	b := append(buf[:0], eventsHead...)
	b = append(b, d.Header...)
	b = append(b, "\r\nretry: "...)
	b = strconv.AppendUint(b, retryLeast+c.loop.rand()%retrySpread, 10)
	b = append(b, "\n\n"...)
	c.writeRaw(b)
}

// readNothing ends a stream whose peer speaks: a client that sends more than its
// request takes this for something else.
func (c *conn) readNothing(b []byte) {
	if len(b) > 0 {
		c.fail(session.ReasonBadRequest)
	}
}

// beatEvents sends the ping that is due.
func (c *conn) beatEvents(now uint32) {
	if now < c.pinged+c.loop.server.pingTicks {
		return
	}
	c.pinged = c.loop.present()
	c.loop.stats.Pings.Add(1)
	c.WriteFrame(eventPing)
}

// writeLast tells the peer why the stream ends.
func (c *conn) writeLast(code uint16, text string) {
	if c.endpoint.Last == nil || code == 0 {
		return
	}
	e := c.endpoint.Last(code, text)
	o := c.outbound()
	buf := o.grow(len(e))
	buf.B = append(buf.B, e...)
	o.bytes += len(e)
	c.loop.stats.FramesOut.Add(1)
	c.list()
}

// eventLength is the length of the event at the front of p.
func eventLength(p []byte) int {
	if i := bytes.Index(p, []byte("\n\n")); i >= 0 {
		return i + 2
	}
	return len(p)
}
