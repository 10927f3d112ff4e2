package netpoll

import (
	"context"
	"log/slog"
	"time"

	"github.com/panjf2000/gnet/v2"

	"perch/session"
)

// mode is the framing that reads a conn's bytes.
type mode uint8

const (
	modeHead      mode = iota // the request head is not complete
	modePreface               // nor is the PROXY header before it
	modeWaiting               // the head is whole, and waits for its turn
	modeChecking              // the head is with Endpoint.Check
	modeWebSocket             // frames
	modeEvents                // an event stream, in which the peer says nothing
	modeLinger                // all is said: what still comes is thrown away
	modeGone                  // closed; the slot is not yet free
	modeFree                  // no connection has this slot
)

// lingerFor is how long a peer has to take the last bytes and close its side.
const lingerFor = time.Second

// conn is one connection: its stream, its framing and its session. All of it
// belongs to the loop. It stands in the loop's table, by value, and costs the
// same for every connection; what not all have stands behind a pointer.
type conn struct {
	sess session.Session

	socket   gnet.Conn
	loop     *loop
	endpoint *endpoint // since the head; of the listener before
	in       *inbound  // an incomplete head or frame
	out      *outbound // frames that wait
	fd       int32

	// The name: slot never changes, gen with each connection.
	slot uint32
	gen  uint32

	// The wheel's.
	next, prev, due uint32

	deadline uint32 // of the mode, in ticks; 0 for none
	pinged   uint32 // the tick of the last ping, or from which the next counts; before the upgrade, of the head's turn
	expiry   uint32 // Unix seconds; 0 for never

	mode     mode
	reason   session.Reason
	misses   uint8
	beating  bool    // the heartbeat runs
	awaiting bool    // a ping has no pong yet
	frames   bool    // pings are those of RFC 6455
	sessions bool    // the session has been opened and not closed
	refuse   verdict // other than admitted: the head is answered with it
	half     bool    // the sending side is shut
	via      via
	owed     uint8 // pongs that may still come, of this ping and of earlier ones
	deflate  byte  // of permessage-deflate (deflate_offer.go); 0 without it
}

// live tells whether the session reads and writes.
func (c *conn) live() bool { return c.mode == modeWebSocket || c.mode == modeEvents }

// id names the connection, and its session.
func (c *conn) id() session.ID { return session.MakeID(c.loop.index, c.gen, c.slot) }

// open takes a new connection in.
func (l *loop) open(socket gnet.Conn, port *port) *conn {
	c := l.take()
	c.socket = socket
	c.fd = int32(socket.Fd())
	c.endpoint = port.none
	l.stats.Accepted.Add(1)
	l.stats.Open.Add(1)
	c.setDeadline(l.server.limits.Load().HandshakeTimeout)
	return c
}

// closed is the end of every connection, however it came about. gnet calls it
// from within the closing call.
func (c *conn) closed() {
	l := c.loop
	if c.mode == modeFree {
		return
	}
	if c.mode <= modeChecking {
		l.stats.Outcomes[OutcomeAborted].Add(1)
	}
	c.end(session.ReasonPeerGone)
	c.mode = modeGone
	l.unschedule(c)
	l.stats.Timers.Set(int64(l.wheel.count))
	c.releaseIn()
	c.unlist()
	c.releaseOut()
	if l.stats.Open.Add(-1) == 0 {
		l.press.clear()
	}
	l.server.open.Add(-1)
	c.leave()
	if c.via&viaProxy != 0 {
		delete(l.clients, c.slot)
	}
	l.stats.Closes[c.reason].Add(1)
	l.give(c)
}

// unlist takes c out of the loop's list of conns with frames to send.
func (c *conn) unlist() {
	if c.out == nil || !c.out.listed {
		return
	}
	for i, d := range c.loop.dirty {
		if d == c {
			c.loop.dirty[i] = nil
		}
	}
}

// end gives the session its reason, if it has none, and tells its handler.
func (c *conn) end(r session.Reason) {
	if c.reason == session.ReasonNone {
		c.reason = r
	}
	if !c.sessions {
		return
	}
	c.sessions = false
	c.beating = false
	c.loop.stats.Sessions.Add(-1)
	c.sess.State = session.StateClosed
	c.endpoint.Handler.Closed(&c.sess, c.reason)
}

// drop closes the connection now, unsent bytes and all. Afterwards c is gone.
func (c *conn) drop() {
	if c.mode == modeGone || c.mode == modeFree {
		return
	}
	if err := c.loop.events.Close(c.socket); err != nil {
		c.loop.server.log.Debug("close failed", "err", err)
	}
}

// fail ends a connection for a reason of the table.
func (c *conn) fail(r session.Reason) {
	info := r.Info()
	c.CloseWith(r, info.Code, info.Text)
}

// CloseWith implements session.Transport: the close frame, or the last event, is
// sent, our side is shut, and the peer has lingerFor to take it and close its
// own.
func (c *conn) CloseWith(r session.Reason, code uint16, text string) {
	switch c.mode {
	case modeGone, modeFree, modeLinger:
		return
	case modeWebSocket:
		c.tell(r)
		c.end(r)
		c.endLine()
		c.writeClose(code, text)
		c.linger()
	case modeEvents:
		c.tell(r)
		c.end(r)
		c.writeLast(code, text)
		c.linger()
	default:
		c.reason = r
		c.drop()
	}
}

// tell logs that the server ends a session, for whoever looks for one peer.
func (c *conn) tell(r session.Reason) {
	log := c.loop.server.log
	if r != session.ReasonPeerClosed && log.Enabled(context.Background(), slog.LevelDebug) {
		log.Debug("session closed", slog.Int("loop", c.loop.index), slog.String("remote", c.Remote()), slog.String("reason", r.String()))
	}
}

// linger waits for what is written to leave, shuts our side and gives the peer
// a moment, so that the last bytes are not overtaken by a reset.
func (c *conn) linger() {
	if c.mode == modeGone || c.mode == modeFree {
		return
	}
	c.mode = modeLinger
	c.beating, c.expiry = false, 0
	c.releaseIn()
	c.setDeadline(lingerFor)
	c.list()
}

// setDeadline asks for the end of the mode's time.
func (c *conn) setDeadline(d time.Duration) {
	c.deadline = c.loop.present() + ticks(d) + 1
	c.reschedule()
}

// reschedule puts c at the first of its deadlines.
func (c *conn) reschedule() {
	l := c.loop
	due := uint32(0)
	first := func(t uint32) {
		if t != 0 && (due == 0 || t < due) {
			due = t
		}
	}
	first(c.deadline)
	if c.in != nil {
		first(c.in.due)
	}
	if c.beating {
		if c.awaiting {
			first(c.answerBy())
		} else {
			first(c.pinged + l.server.pingTicks)
		}
	}
	if c.expiry != 0 {
		left := time.Unix(int64(c.expiry), 0).Sub(l.server.opts.now())
		first(l.wheel.now + ticks(max(0, left)))
	}
	if due == 0 {
		l.unschedule(c)
		return
	}
	l.schedule(c, due)
}

// fire looks at what has come due. It may have come up early.
func (c *conn) fire() {
	l := c.loop
	now := l.wheel.now
	if c.deadline != 0 && now >= c.deadline {
		c.deadline = 0
		c.overdue()
		if !c.live() {
			return
		}
	}
	if c.in != nil && c.in.due != 0 && now >= c.in.due {
		c.fail(session.ReasonMessageTimeout)
		return
	}
	if c.expiry != 0 && l.server.opts.now().Unix() >= int64(c.expiry) {
		c.expiry = 0
		c.endpoint.Handler.Expire(&c.sess)
		if !c.live() {
			return
		}
	}
	if c.beating {
		c.beat(now)
		if !c.live() {
			return
		}
	}
	c.reschedule()
	// A ping leaves at once: no turn of this conn's follows.
}

// overdue is what happens at the end of a mode's time.
func (c *conn) overdue() {
	switch c.mode {
	case modeWaiting:
		c.itsTurn()
	case modeHead, modePreface, modeChecking:
		c.loop.stats.Outcomes[OutcomeTimeout].Add(1)
		c.mode = modeLinger
		c.reason = session.ReasonHandshakeTimeout
		c.drop()
	case modeLinger:
		c.drop()
	case modeWebSocket, modeEvents:
		if c.sess.State < session.StateConnected {
			c.fail(session.ReasonStale)
		}
	}
}

// answerBy is the tick by which the pong has to be there. A loop that stood
// still, as the whole process may, has not read pongs that came in time: from
// the end of a stall everybody has the whole time again.
func (c *conn) answerBy() uint32 {
	l := c.loop
	from := c.pinged
	if int32(l.stalled-from) > 0 {
		from = l.stalled
	}
	return from + l.server.pongTicks
}

// beat sends the ping that is due, or counts the miss of the last one.
func (c *conn) beat(now uint32) {
	s := c.loop.server
	if c.mode == modeEvents {
		c.beatEvents(now)
		return
	}
	if c.awaiting {
		if now < c.answerBy() || c.inflating() || c.in != nil && c.in.later != nil {
			return // a pong may be among what is held
		}
		c.misses++
		if int(c.misses) >= s.opts.PingMisses {
			if c.sess.Encoding == session.EncodingNone {
				c.fail(session.ReasonPongTimeout)
			} else {
				c.fail(session.ReasonNoPong)
			}
			return
		}
	} else if now < c.pinged+s.pingTicks {
		return
	}
	c.awaiting = true
	c.pinged = c.loop.present()
	c.owed = min(c.owed, 254) + 1
	c.loop.stats.Pings.Add(1)
	frame := c.endpoint.Pings[c.sess.Encoding]
	if c.frames || frame == nil {
		frame = pingFrame
	}
	c.WriteFrame(frame)
}

// StartHeartbeat implements session.Transport. The first ping comes after a
// random part of the interval, so that a storm's pings are spread.
func (c *conn) StartHeartbeat() {
	s := c.loop.server
	if s.pingTicks == 0 || !c.live() {
		return
	}
	if c.sess.State >= session.StateConnected {
		c.deadline = 0
	}
	c.beating = true
	early := uint32(c.loop.rand() % uint64(s.pingTicks))
	c.pinged = c.loop.wheel.now - early
	c.reschedule()
}

// Pong implements session.Transport.
func (c *conn) Pong() bool {
	// With misses to spare there may be more than one ping under way, and each is
	// answered.
	if c.owed == 0 {
		return false
	}
	c.owed--
	c.awaiting = false
	c.misses = 0
	c.loop.stats.Pongs.Add(1)
	// The wheel is lazy: the entry of the pong's deadline finds the answer.
	return true
}

// SetExpiry implements session.Transport.
func (c *conn) SetExpiry(unix int64) {
	c.expiry = uint32(min(max(unix, 0), 1<<32-1))
	if c.live() {
		c.reschedule()
	}
}

// Remote implements session.Transport.
func (c *conn) Remote() string {
	if a := c.client(); a.IsValid() {
		return a.String()
	}
	return ""
}
