// Command gws is lxzan/gws as its README has it: its own server, a goroutine
// per connection, messages handled one after the other.
package main

import (
	"bufio"
	"net"
	"net/http"

	"github.com/lxzan/gws"

	"perch/bench/peers/internal/peer"
)

func main() {
	flags := peer.Parse()
	ln, err := net.Listen("tcp4", flags.Listen)
	if err != nil {
		peer.Exit(err)
	}
	option := &gws.ServerOption{ParallelEnabled: false}
	all := &connections{beating: flags.Ping > 0}
	server := gws.NewServer(&echo{connections: all}, option)
	onTopic := gws.NewUpgrader(&topic{connections: all}, option)
	server.OnError = func(net.Conn, error) {} // a probe that sends no request
	server.OnRequest = func(c net.Conn, br *bufio.Reader, r *http.Request) {
		upgrader := server.GetUpgrader()
		if r.URL.Path == peer.TopicPath {
			upgrader = onTopic
		}
		socket, err := upgrader.UpgradeFromConn(c, br, r)
		if err != nil {
			return
		}
		// On a goroutine of its own, so that the request and the stack that read it
		// are given back.
		go socket.ReadLoop()
	}
	go all.Beat(flags.Ping, func(c *gws.Conn) { _ = c.WritePing(nil) })
	peer.Exit(server.RunListener(ln))
}

// connections are those that get pings.
type connections struct {
	gws.BuiltinEventHandler
	peer.Set[*gws.Conn]
	beating bool
}

func (s *connections) OnOpen(c *gws.Conn) {
	if s.beating {
		s.Add(c)
	}
}

func (s *connections) OnClose(c *gws.Conn, _ error) {
	if s.beating {
		s.Remove(c)
	}
}

func (*connections) OnPing(c *gws.Conn, payload []byte) { _ = c.WritePong(payload) }

type echo struct{ *connections }

func (*echo) OnMessage(c *gws.Conn, m *gws.Message) {
	defer func() { _ = m.Close() }()
	_ = c.WriteMessage(m.Opcode, m.Bytes())
}

type topic struct {
	*connections
	subscribers peer.Set[*gws.Conn]
}

func (t *topic) OnOpen(c *gws.Conn) {
	t.subscribers.Add(c)
	t.connections.OnOpen(c)
}

func (t *topic) OnClose(c *gws.Conn, err error) {
	t.subscribers.Remove(c)
	t.connections.OnClose(c, err)
}

func (t *topic) OnMessage(_ *gws.Conn, m *gws.Message) {
	defer func() { _ = m.Close() }()
	if m.Opcode != gws.OpcodeText {
		return
	}
	b := gws.NewBroadcaster(m.Opcode, m.Bytes())
	defer func() { _ = b.Close() }()
	t.subscribers.Each(func(c *gws.Conn) { _ = b.Broadcast(c) })
}
