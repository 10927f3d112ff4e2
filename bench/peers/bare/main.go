// Command bare is what Perch is measured against: gnet with gobwas/ws and
// nothing else. It upgrades any request and echoes messages; it has no limits,
// no timeouts and no sessions.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/gobwas/ws"
	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/logging"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8100", "IPv4 host:port")
	loops := flag.Int("loops", 2, "event loops")
	flag.Parse()
	err := gnet.Run(&server{}, "tcp4://"+*listen,
		gnet.WithNumEventLoop(*loops), gnet.WithReusePort(true), gnet.WithReuseAddr(true),
		gnet.WithLogLevel(logging.ErrorLevel))
	if err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

type server struct{ gnet.BuiltinEventEngine }

// upgraded is the context of connections whose handshake is done: one value
// for all, since nothing else is kept.
var upgraded = new(byte)

// rw gives ws.Upgrader a head that is complete, and takes its answer.
type rw struct {
	io.Reader
	io.Writer
}

func (*server) OnTraffic(c gnet.Conn) gnet.Action {
	if c.Context() == nil {
		p, _ := c.Peek(-1)
		end := bytes.Index(p, []byte("\r\n\r\n"))
		if end < 0 {
			return gnet.None
		}
		end += 4
		var answer bytes.Buffer
		_, err := ws.Upgrade(rw{bytes.NewReader(p[:end]), &answer})
		_, _ = c.Discard(end)
		if _, werr := c.Write(answer.Bytes()); err != nil || werr != nil {
			return gnet.Close
		}
		c.SetContext(upgraded)
	}
	for {
		p, _ := c.Peek(-1)
		r := bytes.NewReader(p)
		h, err := ws.ReadHeader(r)
		if err != nil || int64(r.Len()) < h.Length {
			return gnet.None
		}
		at := len(p) - r.Len()
		payload := p[at : at+int(h.Length)]
		ws.Cipher(payload, h.Mask, 0)
		switch {
		case h.OpCode == ws.OpClose:
			_, _ = c.Write(ws.CompiledCloseNormalClosure)
			return gnet.Close
		case h.OpCode == ws.OpPing:
			err = reply(c, ws.NewPongFrame(payload))
		case h.OpCode != ws.OpPong:
			err = reply(c, ws.NewFrame(h.OpCode, h.Fin, payload))
		}
		if err != nil {
			return gnet.Close
		}
		_, _ = c.Discard(at + int(h.Length))
	}
}

func reply(c gnet.Conn, f ws.Frame) error {
	b, err := ws.CompileFrame(f)
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}
