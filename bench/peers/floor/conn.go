//go:build linux

package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	guid     = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
	switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
	badHead  = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

var (
	keyHeader = []byte("Sec-WebSocket-Key:")
	headEnd   = []byte("\r\n\r\n")
)

// readable reads once and does all that the bytes ask for.
func (l *loop) readable(fd int32, c *conn) {
	b, had := l.buf, 0
	if c.rest != restNone {
		rest := l.rests[fd]
		if had = len(rest); c.rest == restBig {
			b = rest[:cap(rest)]
		} else {
			copy(b, rest)
		}
	}
	n, errno := read(fd, b[had:])
	if n == 0 {
		if errno != unix.EAGAIN && errno != unix.EINTR {
			l.close(fd, c)
		}
		return
	}
	b = b[:had+n]
	if c.state == stateHead {
		end := bytes.Index(b, headEnd)
		if end < 0 {
			if len(b) == len(l.buf) {
				l.close(fd, c)
				return
			}
			l.keep(fd, c, b, 0)
			return
		}
		if !l.upgrade(fd, c, b[:end+2]) {
			return
		}
		if b = b[end+4:]; len(b) == 0 {
			l.forget(fd, c)
			return
		}
	}
	topic := c.state == stateTopic
	l.control = l.control[:0]
	r := frames(b, topic, &l.control)
	out := r.out
	if topic {
		l.pub = append(l.pub, out...)
		out = l.control
	}
	if len(out) > 0 && !l.send(fd, c, out) {
		return
	}
	switch {
	case r.end:
		l.close(fd, c)
	case r.used < len(b):
		l.keep(fd, c, b[r.used:], r.need)
	case c.rest != restNone:
		l.forget(fd, c)
	}
}

// keep copies what is incomplete. need is its size when whole, 0 where that is
// not known yet.
func (l *loop) keep(fd int32, c *conn, rest []byte, need int) {
	if c.rest == restBig && need == cap(l.rests[fd]) {
		l.rests[fd] = rest // where it is already
		return
	}
	kind := uint8(restSmall)
	var b []byte
	if need > len(l.buf) {
		kind, b = restBig, make([]byte, 0, need)
	} else if c.rest == restSmall {
		b = l.rests[fd][:0]
	}
	l.rests[fd] = append(b, rest...)
	c.rest = kind
}

func (l *loop) forget(fd int32, c *conn) {
	if c.rest != restNone {
		delete(l.rests, fd)
		c.rest = restNone
	}
}

// upgrade answers an opening handshake. False means that the connection is
// closed.
func (l *loop) upgrade(fd int32, c *conn, head []byte) bool {
	line, fields, _ := bytes.Cut(head, headEnd[:2])
	var key []byte
	for len(fields) > 0 && key == nil {
		var field []byte
		field, fields, _ = bytes.Cut(fields, headEnd[:2])
		if len(field) > len(keyHeader) && bytes.EqualFold(field[:len(keyHeader)], keyHeader) {
			key = bytes.TrimSpace(field[len(keyHeader):])
		}
	}
	target, ok := bytes.CutPrefix(line, []byte("GET "))
	if !ok || len(key) != 24 {
		_, _ = write(fd, []byte(badHead))
		l.close(fd, c)
		return false
	}
	var challenge [24 + len(guid)]byte
	copy(challenge[copy(challenge[:], key):], guid)
	sum := sha1.Sum(challenge[:])
	l.answer = append(l.answer[:0], switched...)
	l.answer = base64.StdEncoding.AppendEncode(l.answer, sum[:])
	l.answer = append(l.answer, "\r\n\r\n"...)

	path, _, _ := bytes.Cut(target, []byte(" "))
	path, _, _ = bytes.Cut(path, []byte("?"))
	if c.state = stateEcho; string(path) == "/topic" {
		l.subscribe(fd, c)
	}
	return l.send(fd, c, l.answer)
}

func (l *loop) subscribe(fd int32, c *conn) {
	c.state, c.sub = stateTopic, int32(len(l.subs))
	l.subs = append(l.subs, fd)
	l.subscribers.Store(int32(len(l.subs)))
}

func (l *loop) unsubscribe(c *conn) {
	last := len(l.subs) - 1
	moved := l.subs[last]
	l.subs[c.sub] = moved
	l.conn(moved).sub = c.sub
	l.subs = l.subs[:last]
	l.subscribers.Store(int32(last))
}

// deliver hands the turn's publications to the other loops and, together with
// what came from them, to the subscribers here: one write each. woken says that
// something may have come.
func (l *loop) deliver(woken bool) {
	if len(l.pub) > 0 {
		for _, o := range l.others {
			if o.subscribers.Load() > 0 {
				o.post(l.pub)
			}
		}
	}
	if woken {
		l.mu.Lock()
		l.inbox, l.taken = l.taken[:0], l.inbox
		l.mu.Unlock()
		l.pub = append(l.pub, l.taken...)
	}
	if len(l.pub) == 0 {
		return
	}
	// From the back: a subscriber that is closed has the last one take its place.
	for i := len(l.subs) - 1; i >= 0; i-- {
		fd := l.subs[i]
		l.send(fd, l.conn(fd), l.pub)
	}
	l.pub = l.pub[:0]
}

// one is what is added to an eventfd.
var one = [8]byte{1}

// post gives publications to a loop. Safe from any goroutine.
func (l *loop) post(p []byte) {
	l.mu.Lock()
	first := len(l.inbox) == 0
	l.inbox = append(l.inbox, p...)
	l.mu.Unlock()
	if first {
		_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(l.wake), uintptr(unsafe.Pointer(&one)), 8)
	}
}
