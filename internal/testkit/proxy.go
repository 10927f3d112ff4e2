package testkit

import (
	"net"
	"strings"
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
	word  string // makes it deaf
	tail  string // what went there last
	done  sync.WaitGroup
}

type linkState int

const (
	linkWhole linkState = iota
	linkCut
	linkStalled
	linkDeaf
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

// Deaf holds back what comes back from there once a word has gone there, until the
// link is cut or healed; the word counts over a Heal that comes before it.
func (p *Proxy) Deaf(word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.word = word
}

// listen makes it deaf where b, which goes there next, ends the word.
func (p *Proxy) listen(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.word == "" {
		return
	}
	text := p.tail + string(b)
	p.tail = text[max(0, len(text)-len(p.word)):]
	if strings.Contains(text, p.word) && p.state == linkWhole {
		p.setLocked(linkDeaf)
	}
}

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
	p.setLocked(s)
}

func (p *Proxy) setLocked(s linkState) {
	if p.state == linkClosed {
		return
	}
	p.state = s
	if s != linkWhole { // a word that is waited for may come once the link is whole
		p.word, p.tail = "", ""
	}
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

// pass waits while the link is stalled, on the way back also while it is deaf;
// false: it is cut.
func (p *Proxy) pass(back bool) bool {
	for {
		p.mu.Lock()
		state, turn := p.state, p.turn
		p.mu.Unlock()
		switch state {
		case linkWhole:
			return true
		case linkStalled:
			<-turn
		case linkDeaf:
			if !back {
				return true
			}
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
	if !p.pass(false) {
		return
	}
	to, err := net.DialTimeout("tcp", p.to, Timeout)
	if err != nil || !p.keep(to) {
		return
	}
	defer p.drop(to)
	var both sync.WaitGroup
	both.Go(func() { p.forward(to, c, false) })
	p.forward(c, to, true)
	both.Wait()
}

// forward copies until one side ends, and then ends both; back: to who has
// connected.
func (p *Proxy) forward(to, from net.Conn, back bool) {
	defer p.drop(to)
	defer p.drop(from)
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !p.pass(back) {
				return
			}
			if !back {
				p.listen(buf[:n])
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
