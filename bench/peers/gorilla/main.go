// Command gorilla is gorilla/websocket behind net/http with its defaults. A
// publication is prepared once and goes through a bounded queue to a writing
// goroutine per subscriber, as in the library's chat example.
package main

import (
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"perch/bench/peers/internal/peer"
)

// queued is how many publications wait for a subscriber, as in the chat
// example. One who falls behind that far is closed.
const queued = 256

type server struct {
	beating     bool
	upgrader    websocket.Upgrader
	all         peer.Set[*websocket.Conn]
	subscribers peer.Set[*subscriber]
}

type subscriber struct {
	conn  *websocket.Conn
	queue chan *websocket.PreparedMessage
}

func main() {
	flags := peer.Parse()
	ln, err := net.Listen("tcp4", flags.Listen)
	if err != nil {
		peer.Exit(err)
	}
	s := &server{beating: flags.Ping > 0}
	s.upgrader.CheckOrigin = func(*http.Request) bool { return true }
	go s.all.Beat(flags.Ping, func(c *websocket.Conn) {
		_ = c.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
	})
	peer.Exit((&http.Server{Handler: s}).Serve(ln))
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	if s.beating {
		s.all.Add(c)
		defer s.all.Remove(c)
	}
	if r.URL.Path == peer.TopicPath {
		s.topic(c)
		return
	}
	for {
		kind, p, err := c.ReadMessage()
		if err != nil {
			return
		}
		if err := c.WriteMessage(kind, p); err != nil {
			return
		}
	}
}

func (s *server) topic(c *websocket.Conn) {
	sub := &subscriber{conn: c, queue: make(chan *websocket.PreparedMessage, queued)}
	done := make(chan struct{})
	defer close(done)
	go sub.write(done)
	s.subscribers.Add(sub)
	defer s.subscribers.Remove(sub)
	for {
		kind, p, err := c.ReadMessage()
		if err != nil {
			return
		}
		if kind != websocket.TextMessage {
			continue
		}
		m, err := websocket.NewPreparedMessage(kind, p)
		if err != nil {
			return
		}
		s.subscribers.Each(func(sub *subscriber) {
			select {
			case sub.queue <- m:
			default:
				_ = sub.conn.Close()
			}
		})
	}
}

func (sub *subscriber) write(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case m := <-sub.queue:
			if err := sub.conn.WritePreparedMessage(m); err != nil {
				_ = sub.conn.Close()
				return
			}
		}
	}
}
