// Command gobwas is gobwas/ws on blocking sockets: a goroutine and a buffered
// reader per connection.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"time"

	"github.com/gobwas/ws"

	"perch/bench/peers/internal/peer"
)

// maxPayload keeps a header from asking for all the memory there is.
const maxPayload = 16 << 20

var errTooBig = errors.New("gobwas: frame too big")

type server struct {
	beating          bool
	all, subscribers peer.Set[net.Conn]
}

func main() {
	flags := peer.Parse()
	ln, err := net.Listen("tcp4", flags.Listen)
	if err != nil {
		peer.Exit(err)
	}
	s := &server{beating: flags.Ping > 0}
	// A whole frame in one Write needs no lock: net.Conn has one.
	go s.all.Beat(flags.Ping, func(c net.Conn) { _, _ = c.Write(ws.CompiledPing) })
	for {
		c, err := ln.Accept()
		if err != nil {
			peer.Exit(err)
		}
		go s.open(c)
	}
}

func (s *server) open(c net.Conn) {
	topic := false
	upgrader := ws.Upgrader{OnRequest: func(uri []byte) error {
		path, _, _ := bytes.Cut(uri, []byte("?"))
		topic = string(path) == peer.TopicPath
		return nil
	}}
	if _, err := upgrader.Upgrade(c); err != nil {
		_ = c.Close()
		return
	}
	// On a goroutine of its own, so that the stack of the upgrade is given back.
	go s.serve(c, topic)
}

func (s *server) serve(c net.Conn, topic bool) {
	if topic {
		s.subscribers.Add(c)
	}
	if s.beating {
		s.all.Add(c)
	}
	_ = s.read(c, topic)
	_ = c.Close()
	if topic {
		s.subscribers.Remove(c)
	}
	if s.beating {
		s.all.Remove(c)
	}
}

func (s *server) read(c net.Conn, topic bool) error {
	br := bufio.NewReader(c)
	var (
		payload []byte
		message []byte    // the fragments so far
		op      ws.OpCode // of the message
	)
	state := ws.StateServerSide
	for {
		h, err := ws.ReadHeader(br)
		if err != nil {
			return err
		}
		if err := ws.CheckHeader(h, state); err != nil {
			return err
		}
		if h.Length > maxPayload {
			return errTooBig
		}
		if int64(cap(payload)) < h.Length {
			payload = make([]byte, h.Length)
		}
		payload = payload[:h.Length]
		if _, err := io.ReadFull(br, payload); err != nil {
			return err
		}
		ws.Cipher(payload, h.Mask, 0)
		switch h.OpCode {
		case ws.OpPing:
			err = write(c, ws.NewPongFrame(payload))
		case ws.OpPong:
		case ws.OpClose:
			_ = write(c, ws.NewCloseFrame(payload))
			return io.EOF
		default:
			if h.OpCode != ws.OpContinuation {
				op, message = h.OpCode, message[:0]
			}
			whole := payload
			if !h.Fin || h.OpCode == ws.OpContinuation {
				message = append(message, payload...)
				whole = message
			}
			if state = state.Set(ws.StateFragmented); h.Fin {
				state = state.Clear(ws.StateFragmented)
				err = s.message(c, topic, ws.NewFrame(op, true, whole))
			}
		}
		if err != nil {
			return err
		}
	}
}

func (s *server) message(c net.Conn, topic bool, f ws.Frame) error {
	if !topic {
		return write(c, f)
	}
	if f.Header.OpCode != ws.OpText {
		return nil
	}
	b, err := ws.CompileFrame(f)
	if err != nil {
		return err
	}
	s.subscribers.Each(func(c net.Conn) {
		if _, err := c.Write(b); err != nil {
			_ = c.SetDeadline(time.Unix(1, 0)) // its reader closes it
		}
	})
	return nil
}

func write(c net.Conn, f ws.Frame) error {
	b, err := ws.CompileFrame(f)
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}
