// Command nbio is lesismal/nbio in its default mode: non-blocking sockets on
// epoll loops, messages handled by its pool of goroutines.
package main

import (
	"flag"
	"net/http"

	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	"github.com/lesismal/nbio/nbhttp/websocket"

	"perch/bench/peers/internal/peer"
)

func main() {
	loops := flag.Int("loops", 2, "pollers")
	flags := peer.Parse()
	logging.SetLevel(logging.LevelError)
	s := &server{beating: flags.Ping > 0}
	s.echo = s.upgrader(nil, func(c *websocket.Conn, kind websocket.MessageType, p []byte) {
		_ = c.WriteMessage(kind, p)
	})
	s.topic = s.upgrader(&s.subscribers, func(_ *websocket.Conn, kind websocket.MessageType, p []byte) {
		if kind == websocket.TextMessage {
			s.subscribers.Each(func(c *websocket.Conn) { _ = c.WriteMessage(kind, p) })
		}
	})
	engine := nbhttp.NewEngine(nbhttp.Config{
		Network:                 "tcp4",
		Addrs:                   []string{flags.Listen},
		NPoller:                 *loops,
		Handler:                 s,
		IOMod:                   nbhttp.IOModNonBlocking,
		ReleaseWebsocketPayload: true,
	})
	if err := engine.Start(); err != nil {
		peer.Exit(err)
	}
	s.all.Beat(flags.Ping, func(c *websocket.Conn) { _ = c.WriteMessage(websocket.PingMessage, nil) })
	select {}
}

type server struct {
	beating          bool
	echo, topic      *websocket.Upgrader
	all, subscribers peer.Set[*websocket.Conn]
}

// upgrader makes connections that are members of the set, if there is one.
func (s *server) upgrader(set *peer.Set[*websocket.Conn], f func(*websocket.Conn, websocket.MessageType, []byte)) *websocket.Upgrader {
	u := websocket.NewUpgrader()
	u.KeepaliveTime = 0 // no timer per connection: the others have none
	u.CheckOrigin = func(*http.Request) bool { return true }
	u.OnMessage(f)
	u.OnOpen(func(c *websocket.Conn) {
		if set != nil {
			set.Add(c)
		}
		if s.beating {
			s.all.Add(c)
		}
	})
	u.OnClose(func(c *websocket.Conn, _ error) {
		if set != nil {
			set.Remove(c)
		}
		if s.beating {
			s.all.Remove(c)
		}
	})
	return u
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u := s.echo
	if r.URL.Path == peer.TopicPath {
		u = s.topic
	}
	_, _ = u.Upgrade(w, r, nil)
}
