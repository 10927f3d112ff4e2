package testkit

import (
	"net"
	"sync"
)

// Proxy forwards TCP connections to one address, and can be a link that fails.
// Its methods are safe from any goroutine.
type Proxy struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	state linkState
	turn  chan struct{} // closed when the state changes
	conns map[net.Conn]struct{}
	done  sync.WaitGroup
}

type linkState int

const (
	linkWhole linkState = iota
	linkCut
	linkStalled
	linkClosed
)

// NewProxy listens on a free port of 127.0.0.1.
func NewProxy(to string) (*Proxy, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{l: l, to: to, turn: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	p.done.Go(p.accept)
	return p, nil
}

// Addr is where it listens.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Cut resets all connections, and each new one. The port stays taken, so that
// nobody else gets it.
func (p *Proxy) Cut() { p.set(linkCut) }

// Stall takes connections and keeps them, but lets nothing through in either
// direction: what a firewall does that drops packets.
func (p *Proxy) Stall() { p.set(linkStalled) }

// Heal lets everything through again, also what had come while it was stalled.
func (p *Proxy) Heal() { p.set(linkWhole) }

// Close ends it.
func (p *Proxy) Close() {
	_ = p.l.Close()
	p.set(linkClosed)
	p.done.Wait()
}

func (p *Proxy) set(s linkState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == linkClosed {
		return
	}
	p.state = s
	close(p.turn)
	p.turn = make(chan struct{})
	if s == linkCut || s == linkClosed {
		for c := range p.conns {
			p.resetLocked(c)
		}
	}
}

func (p *Proxy) resetLocked(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	delete(p.conns, c)
}

// keep notes a connection; false: it is reset.
func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == linkCut || p.state == linkClosed {
		p.resetLocked(c)
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

// pass waits while the link is stalled; false: it is cut.
func (p *Proxy) pass() bool {
	for {
		p.mu.Lock()
		state, turn := p.state, p.turn
		p.mu.Unlock()
		switch state {
		case linkWhole:
			return true
		case linkStalled:
			<-turn
		default:
			return false
		}
	}
}

func (p *Proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		if p.keep(c) {
			p.done.Go(func() { p.serve(c) })
		}
	}
}

func (p *Proxy) serve(c net.Conn) {
	defer p.drop(c)
	if !p.pass() {
		return
	}
	to, err := net.DialTimeout("tcp", p.to, Timeout)
	if err != nil || !p.keep(to) {
		return
	}
	defer p.drop(to)
	var both sync.WaitGroup
	both.Go(func() { p.forward(to, c) })
	p.forward(c, to)
	both.Wait()
}

// forward copies until one side ends, and then ends both.
func (p *Proxy) forward(to, from net.Conn) {
	defer p.drop(to)
	defer p.drop(from)
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !p.pass() {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, there := p.conns[c]; there {
		delete(p.conns, c)
		_ = c.Close()
	}
}
