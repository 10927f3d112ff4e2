// Command bare is what Perch is measured against: gnet with gobwas/ws and
// nothing else. It upgrades any request, echoes messages or passes them on to
// a topic; it has no limits, no timeouts and no sessions.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/logging"
)

// maxPayload keeps a header from asking for all the memory there is.
const maxPayload = 16 << 20

func main() {
	listen := flag.String("listen", "127.0.0.1:8100", "IPv4 host:port")
	loops := flag.Int("loops", 2, "event loops")
	ping := flag.Duration("ping", 0, "time between two pings of a connection; 0: none")
	flag.Parse()
	s := &server{every: *ping, loops: make(map[gnet.EventLoop]*loop)}
	err := gnet.Run(s, "tcp4://"+*listen,
		gnet.WithNumEventLoop(*loops), gnet.WithReusePort(true), gnet.WithReuseAddr(true),
		gnet.WithTicker(*ping > 0), gnet.WithLogLevel(logging.ErrorLevel))
	if err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

type server struct {
	gnet.BuiltinEventEngine
	every time.Duration

	mu    sync.Mutex
	loops map[gnet.EventLoop]*loop // those that have or had a member
}

// upgraded is the context of connections whose handshake is done and that are
// members of nothing: one value for all, since nothing else is kept.
var upgraded = new(byte)

// rw gives ws.Upgrader a head that is complete, and takes its answer.
type rw struct {
	io.Reader
	io.Writer
}

// turn is what one OnTraffic works with.
type turn struct {
	in       bytes.Reader
	out, pub bytes.Buffer
}

var turns = sync.Pool{New: func() any { return new(turn) }}

func (s *server) OnTraffic(c gnet.Conn) gnet.Action {
	if c.Context() == nil {
		p, _ := c.Peek(-1)
		end := bytes.Index(p, []byte("\r\n\r\n"))
		if end < 0 {
			return gnet.None
		}
		end += 4
		path, _, _ := bytes.Cut(bytes.TrimPrefix(p[:end], []byte("GET ")), []byte(" "))
		path, _, _ = bytes.Cut(path, []byte("?"))
		topic := string(path) == "/topic"
		var answer bytes.Buffer
		_, err := ws.Upgrade(rw{bytes.NewReader(p[:end]), &answer})
		_, _ = c.Discard(end)
		if _, werr := c.Write(answer.Bytes()); err != nil || werr != nil {
			return gnet.Close
		}
		if topic || s.every > 0 {
			c.SetContext(s.join(c, topic))
		} else {
			c.SetContext(upgraded)
		}
	}
	p, _ := c.Peek(-1)
	if len(p) == 0 {
		return gnet.None
	}
	t := turns.Get().(*turn)
	defer turns.Put(t)
	m, _ := c.Context().(*member)
	used, err := t.frames(p, m != nil && m.topic)
	if used > 0 { // Discard(0) would take everything
		_, _ = c.Discard(used)
	}
	if t.pub.Len() > 0 {
		s.publish(m.loop, t.pub.Bytes())
	}
	// The publisher is closed by now where it could not be written to.
	if t.out.Len() > 0 && !(m != nil && m.gone) {
		if _, werr := c.Write(t.out.Bytes()); werr != nil {
			return gnet.Close
		}
	}
	if err != nil {
		return gnet.Close
	}
	return gnet.None
}

var (
	errClosed  = errors.New("bare: closed by the peer")
	errRefused = errors.New("bare: frame not accepted")
)

// frames takes the whole frames off p. What they come to is in t.out and t.pub.
func (t *turn) frames(p []byte, topic bool) (used int, err error) {
	t.out.Reset()
	t.pub.Reset()
	for {
		t.in.Reset(p[used:])
		h, err := ws.ReadHeader(&t.in)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return used, nil
		}
		if err != nil {
			return used, err
		}
		if !h.Masked || h.Length > maxPayload {
			return used, errRefused
		}
		if int64(t.in.Len()) < h.Length {
			return used, nil
		}
		at := len(p) - t.in.Len()
		used = at + int(h.Length)
		payload := p[at:used]
		ws.Cipher(payload, h.Mask, 0)
		switch {
		case h.OpCode == ws.OpClose:
			_ = ws.WriteFrame(&t.out, ws.NewCloseFrame(payload))
			return used, errClosed
		case h.OpCode == ws.OpPing:
			err = ws.WriteFrame(&t.out, ws.NewPongFrame(payload))
		case h.OpCode == ws.OpPong:
		case !topic:
			err = ws.WriteFrame(&t.out, ws.NewFrame(h.OpCode, h.Fin, payload))
		case !h.Fin || h.OpCode == ws.OpContinuation:
			return used, errRefused // fragments of several publishers would mix
		case h.OpCode == ws.OpText:
			err = ws.WriteFrame(&t.pub, ws.NewTextFrame(payload))
		}
		if err != nil {
			return used, err
		}
	}
}
