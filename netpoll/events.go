package netpoll

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/panjf2000/gnet/v2"

	"perch/session"
)

// events is what gnet calls. A panic that leaves one of these would end the
// process, so each recovers.
type events struct {
	gnet.BuiltinEventEngine
	server *Server
}

// OnBoot implements gnet.EventHandler.
func (e *events) OnBoot(engine gnet.Engine) gnet.Action {
	e.server.engine = engine
	return gnet.None
}

// OnShutdown implements gnet.EventHandler. The listeners are still open.
func (e *events) OnShutdown(gnet.Engine) { e.server.listening.leave() }

// OnTick implements gnet.EventHandler. It has a goroutine of its own.
func (e *events) OnTick() (time.Duration, gnet.Action) {
	if e.server.stopping.Load() {
		return tick, gnet.Shutdown
	}
	return e.server.tickNow(), gnet.None
}

// OnOpen implements gnet.EventHandler. It runs on the loop, inline with the
// accept.
func (e *events) OnOpen(socket gnet.Conn) (out []byte, action gnet.Action) {
	s := e.server
	defer func() {
		if p := recover(); p != nil {
			s.panicked(p)
			action = gnet.Close
		}
	}()
	ad, _ := socket.Context().(*adopted)
	socket.SetContext(nil)
	n, limits := s.open.Add(1), s.limits.Load()
	if n > int64(limits.HardConnections) {
		s.open.Add(-1)
		s.refused.Add(1)
		s.tellRefused("connection limit")
		return nil, gnet.Close
	}
	l := s.loopOf(socket.EventLoop())
	l.storm.prepare(l, socket.Fd())
	p := s.portOf(socket)
	if ad != nil {
		p = ad.port
	}
	c := l.open(socket, p)
	socket.SetContext(c)
	if ad != nil {
		c.via = viaAdopted
		if ad.from.IsValid() {
			c.comesFrom(ad.from)
		}
	}
	if ad != nil && ad.moved != nil {
		c.welcome()
	} else if !c.greet(n) {
		s.refused.Add(1)
		s.tellRefused("too many connections to refuse each with an answer")
		c.mode, c.reason = modeLinger, session.ReasonHandshakeRefused
		return nil, gnet.Close
	}
	if ad != nil {
		l.guard(c, func() {
			if ad.moved != nil {
				c.restore(ad.moved)
			} else {
				c.input(ad.prefix)
			}
		})
		l.flushDirty()
	} else if s.opts.DeferAccept {
		c.readFirst()
	}
	l.storm.accepted(l.stats.Accepted.Load(), l.stats.Open.Load())
	l.storm.await(&l.inbox)
	return nil, gnet.None
}

// OnTraffic implements gnet.EventHandler. It runs on the loop.
func (e *events) OnTraffic(socket gnet.Conn) gnet.Action {
	c, ok := socket.Context().(*conn)
	b, _ := socket.Next(-1)
	if !ok {
		return gnet.Close
	}
	l := c.loop
	c.traffic(b)
	if l.inbox.bytes.Load() > inlineAt {
		l.turn(false)
	} else {
		l.flushDirty()
	}
	l.storm.await(&l.inbox)
	return gnet.None
}

// traffic is input, with its panics kept in.
func (c *conn) traffic(b []byte) {
	l := c.loop
	defer func() {
		if p := recover(); p != nil {
			l.panicked(p)
			l.scuttle(c)
		}
	}()
	c.input(b)
}

// OnClose implements gnet.EventHandler. It runs on the loop, within whatever
// call closes the connection.
func (e *events) OnClose(socket gnet.Conn, _ error) (action gnet.Action) {
	c, ok := socket.Context().(*conn)
	if !ok {
		return gnet.None
	}
	l := c.loop
	defer func() {
		if p := recover(); p != nil {
			l.panicked(p)
			// The handler has been told; what is left is ours to clear.
			c.closed()
		}
	}()
	c.closed()
	return gnet.None
}

func (s *Server) panicked(p any) {
	s.panics.Add(1)
	s.log.Error("panic on a loop", slog.String("err", fmt.Sprint(p)))
}

// gnetLog passes on what gnet says; its own errors are the only ones of
// interest above Debug.
type gnetLog struct {
	log    *slog.Logger
	server *Server
}

func (g gnetLog) say(level slog.Level, format string, args []any) {
	if g.log.Enabled(context.Background(), level) {
		g.log.Log(context.Background(), level, "event loop", slog.String("text", fmt.Sprintf(format, args...)))
	}
}

func (g gnetLog) Debugf(format string, args ...any) { g.say(slog.LevelDebug, format, args) }
func (g gnetLog) Infof(format string, args ...any)  { g.say(slog.LevelDebug, format, args) }
func (g gnetLog) Warnf(format string, args ...any)  { g.say(slog.LevelDebug, format, args) }
func (g gnetLog) Fatalf(format string, args ...any) { g.say(slog.LevelError, format, args) }
func (g gnetLog) Errorf(format string, args ...any) {
	if err := acceptError(format, args); err != nil {
		g.server.acceptFailed(err)
		return
	}
	g.say(slog.LevelWarn, format, args)
}

var _ session.Loops = (*Server)(nil)
