package netpoll

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"perch/session"
)

// workers stand for the pool: no job runs unless the test lets it.
type workers struct {
	jobs []func()
	full bool
}

func (w *workers) submit(_ int, run func()) bool {
	if !w.full {
		w.jobs = append(w.jobs, run)
	}
	return !w.full
}

func (w *workers) work() {
	for len(w.jobs) > 0 {
		run := w.jobs[0]
		w.jobs = w.jobs[1:]
		run()
	}
}

// deflateRig is a rig whose conns may have permessage-deflate, for messages of
// testThreshold on.
type deflateRig struct {
	*rig
	workers workers
}

const testThreshold = 128

func newDeflateRig(t testing.TB, change func(*Options)) *deflateRig {
	d := &deflateRig{}
	// Behind the rig's own end.
	t.Cleanup(func() {
		d.settle()
		if n := d.loop.inbox.bytes.Load(); n != 0 {
			t.Errorf("%d bytes of the inbox are still reserved", n)
		}
		p := &d.loop.press
		if p.shared != nil || len(p.recent) > 0 || p.held != 0 || len(p.orders) > 0 || p.resumed.held != nil {
			t.Errorf("the loop keeps %+v", p)
		}
		if n := d.server.deflater.queued(); n != 0 {
			t.Errorf("%d bytes are queued", n)
		}
	})
	d.rig = newRig(t, func(o *Options) {
		o.PingInterval = 0 // no pings in between
		o.InboxBytes = 64 << 20
		o.Deflate = Deflate{Submit: d.workers.submit, Threshold: testThreshold, Workers: 2}
		if change != nil {
			change(o)
		}
	})
	return d
}

// echoes makes the handler send messages back.
func (d *deflateRig) echoes() {
	d.handler.message = func(s *session.Session, data []byte, binary bool) { s.WriteKind(data, binary) }
}

// settle lets the workers and the loop finish.
func (d *deflateRig) settle() {
	for d.turn(); len(d.workers.jobs) > 0; d.turn() {
		d.workers.work()
	}
}

const plainOffer = "permessage-deflate"

// offers opens a connection that offers extensions; answer is the value of the
// answer's header.
func (r *rig) offers(value string) (p *peer, answer string) {
	r.t.Helper()
	p = r.accept()
	p.feed([]byte(strings.TrimSuffix(upgradeHead, "\r\n") + "Sec-WebSocket-Extensions: " + value + "\r\n\r\n"))
	got := string(p.take())
	head := strings.TrimSuffix(switching, "\r\n")
	if !strings.HasPrefix(got, head) {
		r.t.Fatalf("the handshake's answer is %q", got)
	}
	rest := strings.TrimSuffix(got[len(head):], "\r\n")
	answer, _ = strings.CutPrefix(rest, "Sec-WebSocket-Extensions: ")
	return p, strings.TrimSuffix(answer, "\r\n")
}

// deflating is a peer with permessage-deflate and the offer's window.
func (r *rig) deflating(params ...string) *peer {
	r.t.Helper()
	p, answer := r.offers(strings.Join(append([]string{plainOffer}, params...), "; "))
	if answer == "" {
		r.t.Fatal("the offer has been declined")
	}
	return p
}

// squeezed is a payload as a client deflates it, by compress/flate.
func squeezed(payload string) string {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		panic(err)
	}
	if _, err := io.WriteString(w, payload); err != nil {
		panic(err)
	}
	if err := w.Flush(); err != nil {
		panic(err)
	}
	return strings.TrimSuffix(b.String(), tail[:4])
}

// compressed is a client's frame with RSV1.
func compressed(op ws.OpCode, fin bool, payload string) []byte {
	b := masked(op, fin, payload)
	b[0] |= rsv1
	return b
}

// packedText is a whole message, deflated.
func packedText(payload string) []byte { return compressed(ws.OpText, true, squeezed(payload)) }

// unsqueezed inflates what a server has deflated, by compress/flate.
func unsqueezed(payload []byte) (string, error) {
	r := flate.NewReader(io.MultiReader(bytes.NewReader(payload), strings.NewReader(tail)))
	b, err := io.ReadAll(r)
	return string(b), err
}

// reads takes apart what a server has sent: messages as "opcode:payload", deflated
// ones as "opcode*payload", the close frame as its code.
func reads(t testing.TB, b []byte) (out []string) {
	t.Helper()
	for len(b) > 0 {
		r := bytes.NewReader(b)
		f, err := readFrame(r)
		if err != nil {
			t.Fatalf("half a frame: %x", b)
		}
		b = b[len(b)-r.Len():]
		h := f.Header
		switch code, _ := closeOf(f); {
		case h.Rsv&^4 != 0 || h.Rsv != 0 && (h.OpCode.IsControl() || h.OpCode == ws.OpContinuation):
			t.Fatalf("a frame with reserved bits: %+v", h)
		case code >= 0:
			out = append(out, fmt.Sprintf("8:%d", code))
		case h.Rsv != 0:
			s, err := unsqueezed(f.Payload)
			if err != nil {
				t.Fatalf("a deflated frame: %v: %x", err, f.Payload)
			}
			out = append(out, fmt.Sprintf("%d*%s", h.OpCode, s))
		default:
			out = append(out, fmt.Sprintf("%d:%s", h.OpCode, f.Payload))
		}
	}
	return out
}

// words is text of n bytes in which much comes again, at all distances.
func words(n int, seed uint64) string {
	var b strings.Builder
	for b.Len() < n {
		seed = seed*6364136223846793005 + 1442695040888963407
		fmt.Fprintf(&b, "sensor-%x ", (seed>>33)%2048*2654435761)
	}
	return b.String()[:n]
}

// noise is text of n bytes that can't be made shorter by much.
func noise(n int, seed uint64) string {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = ' ' + byte(seed>>40%95)
	}
	return string(b)
}

// puff is a small inflater that knows how far back its input refers (RFC 1951).
type puff struct {
	in       []byte
	at       uint // bit
	out      []byte
	furthest int
}

var errPuff = errors.New("not deflated")

func (p *puff) bits(n uint) (v int) {
	for i := range n {
		if p.at/8 >= uint(len(p.in)) {
			panic(errPuff)
		}
		v |= int(p.in[p.at/8]>>(p.at%8)&1) << i
		p.at++
	}
	return v
}

// code is a Huffman code by its lengths: how many there are of each, and the symbols
// in order.
type code struct {
	count  [16]int
	symbol []int
}

func codeOf(lengths []int) (c code) {
	for _, n := range lengths {
		c.count[n]++
	}
	c.count[0] = 0
	for n := 1; n < 16; n++ {
		for s, l := range lengths {
			if l == n {
				c.symbol = append(c.symbol, s)
			}
		}
	}
	return c
}

func (p *puff) decode(c code) int {
	v, first, index := 0, 0, 0
	for n := 1; n < 16; n++ {
		v |= p.bits(1)
		if v-first < c.count[n] {
			return c.symbol[index+v-first]
		}
		index += c.count[n]
		first = (first + c.count[n]) << 1
		v <<= 1
	}
	panic(errPuff)
}

// block reads one block and tells whether it was the last.
func (p *puff) block() (last bool) {
	last = p.bits(1) == 1
	var lit, dist code
	switch p.bits(2) {
	case 0:
		p.at = (p.at + 7) &^ 7
		n := p.bits(16)
		if p.bits(16) != n^0xffff {
			panic(errPuff)
		}
		for range n {
			p.out = append(p.out, byte(p.bits(8)))
		}
		return last
	case 1:
		l := make([]int, 288)
		for i := range l {
			l[i] = [...]int{8, 9, 7, 8}[min(i/144, 1)+min(i/256, 1)+min(i/280, 1)]
		}
		lit = codeOf(l)
		dist = codeOf([]int{5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5})
	case 2:
		nlit, ndist, ncode := p.bits(5)+257, p.bits(5)+1, p.bits(4)+4
		l := make([]int, 19)
		for i := range ncode {
			l[[...]int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}[i]] = p.bits(3)
		}
		lengths := codeOf(l)
		l = nil
		for len(l) < nlit+ndist {
			s, again, times := p.decode(lengths), 0, 1
			switch s {
			case 16:
				again, times = l[len(l)-1], 3+p.bits(2)
			case 17:
				times = 3 + p.bits(3)
			case 18:
				times = 11 + p.bits(7)
			default:
				again = s
			}
			for range times {
				l = append(l, again)
			}
		}
		lit, dist = codeOf(l[:nlit]), codeOf(l[nlit:])
	default:
		panic(errPuff)
	}
	for {
		s := p.decode(lit)
		switch {
		case s < 256:
			p.out = append(p.out, byte(s))
			continue
		case s == 256:
			return last
		}
		s -= 257
		n := [...]int{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}[s]
		if s >= 8 && s < 28 {
			n += p.bits(uint(s/4 - 1))
		}
		s = p.decode(dist)
		d := s + 1
		if s >= 4 {
			extra := uint(s/2 - 1)
			d = 1 + (2+s&1)<<extra + p.bits(extra)
		}
		p.furthest = max(p.furthest, d)
		for range n {
			p.out = append(p.out, p.out[len(p.out)-d])
		}
	}
}

// furthest is how far back a deflated message refers, and the message.
func furthest(t testing.TB, payload []byte) (int, string) {
	t.Helper()
	p := puff{in: append(bytes.Clone(payload), tail...)}
	for !p.block() {
	}
	return p.furthest, string(p.out)
}
