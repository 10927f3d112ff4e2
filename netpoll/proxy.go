package netpoll

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/pires/go-proxyproto"
)

// Who a connection is of, where it comes through a proxy. What a proxy says is
// believed where its own address is one of Options.Trusted, and nowhere else:
// anybody can write the header.

// via says how a connection came here.
type via uint8

const (
	viaAdopted via = 1 << iota // not accepted here
	viaEntered                 // its address has been looked at
	viaAddress                 // and counted, in the first scope
	viaSubnet                  // and in the second
	viaProxy                   // loop.clients knows whose it is
)

// trusts tells whether a is the address of a proxy that is believed.
func (s *Server) trusts(a netip.Addr) bool {
	for _, p := range s.opts.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// client is the address of the peer, seen through the proxies that are trusted.
func (c *conn) client() netip.AddrPort {
	if c.via&viaProxy != 0 {
		return c.loop.clients[c.slot]
	}
	return addrOf(c.socket.RemoteAddr())
}

// comesFrom notes whose connection it is, as a proxy says.
func (c *conn) comesFrom(a netip.AddrPort) {
	l := c.loop
	if l.clients == nil {
		l.clients = make(map[uint32]netip.AddrPort)
	}
	l.clients[c.slot] = a
	c.via |= viaProxy
}

// meet counts a new connection by its address, or leaves that until its proxy has
// said whose it is.
func (c *conn) meet() {
	s := c.loop.server
	if len(s.opts.Trusted) == 0 && !s.admission.looks.Load() {
		c.via |= viaEntered
		return
	}
	from := c.client().Addr()
	switch {
	case len(s.opts.Trusted) == 0 || !s.trusts(from):
		c.enter(from)
	case s.opts.ProxyProtocol && c.via&viaAdopted == 0:
		c.mode = modePreface
	}
}

// forwarded finds out whose the connection is of a request that has come through
// trusted proxies, and counts it. Runs where the head is whole.
func (c *conn) forwarded(list []byte) {
	if c.via&viaEntered != 0 {
		return
	}
	s := c.loop.server
	from := c.client()
	if a := s.Forwarded(from, string(list)); a != from {
		c.comesFrom(a)
		from = a
	}
	c.enter(from.Addr())
}

// Forwarded is whose a request is that has come from an address, with an
// X-Forwarded-For: from itself unless it is a trusted proxy's. Safe from any
// goroutine.
func (s *Server) Forwarded(from netip.AddrPort, list string) netip.AddrPort {
	if s.trusts(from.Addr()) {
		if a, ok := s.firstUntrusted(list); ok {
			return a
		}
	}
	return from
}

// firstUntrusted is the last address of an X-Forwarded-For that no trusted proxy
// has: each proxy appends whom it got the request from, and what stands before is
// the client's own word. Where all are trusted it is the first. False where there
// is none, or where what should be it is no address.
func (s *Server) firstUntrusted(list string) (a netip.AddrPort, ok bool) {
	for rest := list; rest != ""; {
		last := rest
		if i := strings.LastIndexByte(rest, ','); i >= 0 {
			rest, last = rest[:i], rest[i+1:]
		} else {
			rest = ""
		}
		next, good := parseForwarded(strings.Trim(last, " \t"))
		if !good {
			return netip.AddrPort{}, false
		}
		if a, ok = next, true; !s.trusts(a.Addr()) {
			return a, true
		}
	}
	return a, ok
}

// parseForwarded reads an element: an address, which some proxies write with a
// port, or in brackets.
func parseForwarded(e string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(e, "["), "]")); err == nil {
		return netip.AddrPortFrom(a.Unmap().WithZone(""), 0), true
	}
	a, err := netip.ParseAddrPort(e)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()), true
}

// The PROXY protocol: what a proxy sends ahead of the connection's own bytes.
const (
	prefaceV1     = "PROXY "
	prefaceV2     = "\r\n\r\n\x00\r\nQUIT\n"
	prefaceV1Most = 107 // with its line end
	prefaceV2Head = 16
	// prefaceV2Most is of the addresses and of what proxies tell beside them.
	prefaceV2Most = 2 << 10
)

var (
	errNoPreface  = errors.New("netpoll: no PROXY header")
	errBadPreface = errors.New("netpoll: malformed PROXY header")
)

// prefaceEnd is the length of the PROXY header at the front of b; 0 while it is
// incomplete.
func prefaceEnd(b []byte) (int, error) {
	switch {
	case len(b) == 0:
		return 0, nil
	case bytes.HasPrefix(b, []byte(prefaceV1[:min(len(b), len(prefaceV1))])):
		head := b[:min(len(b), prefaceV1Most)]
		if i := bytes.IndexByte(head, '\n'); i >= 0 {
			return i + 1, nil
		}
		if len(b) >= prefaceV1Most {
			return 0, errBadPreface
		}
		return 0, nil
	case bytes.HasPrefix(b, []byte(prefaceV2[:min(len(b), len(prefaceV2))])):
		if len(b) < prefaceV2Head {
			return 0, nil
		}
		n := prefaceV2Head + int(binary.BigEndian.Uint16(b[prefaceV2Head-2:]))
		switch {
		case n > prefaceV2Most:
			return 0, errBadPreface
		case len(b) < n:
			return 0, nil
		}
		return n, nil
	}
	return 0, errNoPreface
}

// parsePreface reads a whole PROXY header; known is false where the proxy speaks
// for itself (a health check), or does not know.
func parsePreface(b []byte) (from netip.AddrPort, known bool, err error) {
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b), max(len(b), 16)))
	if err != nil {
		return from, false, fmt.Errorf("%w: %w", errBadPreface, err)
	}
	if h.Command.IsLocal() {
		return from, false, nil
	}
	src, _, ok := h.TCPAddrs()
	if !ok {
		return from, false, nil
	}
	if from = addrOf(src); !from.IsValid() {
		return from, false, errBadPreface
	}
	return from, true, nil
}

// readPreface gathers the PROXY header and goes on behind it.
func (c *conn) readPreface(b []byte) {
	if c.in != nil && c.in.raw != nil {
		c.in.raw.B = append(c.in.raw.B, b...)
		b = c.in.raw.B
	}
	n, err := prefaceEnd(b)
	var from netip.AddrPort
	var known bool
	if err == nil && n > 0 {
		from, known, err = parsePreface(b[:n])
	}
	switch {
	case err != nil:
		// It is the proxy that is wrong, or our configuration.
		c.loop.server.tellRefused(err.Error())
		c.refuseHead(OutcomeBadProxy, http.StatusBadRequest, "a PROXY header must come first", "")
		return
	case n == 0:
		c.gather(b)
		return
	}
	if !known {
		from = addrOf(c.socket.RemoteAddr())
	} else {
		c.comesFrom(from)
	}
	// A proxy in front of that proxy may say more in the head.
	if !c.loop.server.trusts(from.Addr()) {
		c.enter(from.Addr())
	}
	c.mode = modeHead
	raw := c.takeRaw()
	if len(b) > n {
		c.readHead(b[n:])
	}
	if raw != nil {
		putInBuffer(raw)
	}
}
