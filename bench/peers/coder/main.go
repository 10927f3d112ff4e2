// Command coder is coder/websocket behind net/http with its defaults, save for
// the size limit of a message. A publication goes through a bounded queue to a
// writing goroutine per subscriber, as in the library's chat example; the
// library has no frame that is encoded once.
package main

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"perch/bench/peers/internal/peer"
)

const (
	// queued is how many publications wait for a subscriber. One who falls behind
	// that far is closed.
	queued = 256
	// readLimit is as far as a message goes; the default is 32 KiB.
	readLimit = 16 << 20
)

type server struct {
	beating     bool
	all         peer.Set[*websocket.Conn]
	subscribers peer.Set[*subscriber]
}

type subscriber struct {
	conn  *websocket.Conn
	queue chan []byte
}

func main() {
	flags := peer.Parse()
	ln, err := net.Listen("tcp4", flags.Listen)
	if err != nil {
		peer.Exit(err)
	}
	s := &server{beating: flags.Ping > 0}
	go s.all.Beat(flags.Ping, func(c *websocket.Conn) {
		// Ping waits for the pong.
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), flags.Ping)
			defer cancel()
			_ = c.Ping(ctx)
		}()
	})
	peer.Exit((&http.Server{Handler: s}).Serve(ln))
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // of the Origin
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(readLimit)
	if s.beating {
		s.all.Add(c)
		defer s.all.Remove(c)
	}
	ctx := context.Background()
	if r.URL.Path == peer.TopicPath {
		s.topic(ctx, c)
		return
	}
	for {
		kind, p, err := c.Read(ctx)
		if err != nil {
			return
		}
		if err := c.Write(ctx, kind, p); err != nil {
			return
		}
	}
}

func (s *server) topic(ctx context.Context, c *websocket.Conn) {
	sub := &subscriber{conn: c, queue: make(chan []byte, queued)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go sub.write(ctx)
	s.subscribers.Add(sub)
	defer s.subscribers.Remove(sub)
	for {
		kind, p, err := c.Read(ctx)
		if err != nil {
			return
		}
		if kind != websocket.MessageText {
			continue
		}
		s.subscribers.Each(func(sub *subscriber) {
			select {
			case sub.queue <- p:
			default:
				go func() { _ = sub.conn.CloseNow() }()
			}
		})
	}
}

// writeTimeout is the chat example's.
const writeTimeout = 5 * time.Second

func (sub *subscriber) write(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-sub.queue:
			wctx, cancel := context.WithTimeout(ctx, writeTimeout)
			err := sub.conn.Write(wctx, websocket.MessageText, p)
			cancel()
			if err != nil {
				_ = sub.conn.CloseNow()
				return
			}
		}
	}
}
