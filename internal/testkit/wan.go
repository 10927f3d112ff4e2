package testkit

import (
	"io"
	"net"
	"strings"
	"sync"
)

// WAN is the way from a site to its hub, over TCP, which can be cut.
type WAN struct {
	ln   net.Listener
	to   string
	mu   sync.Mutex
	down bool
	all  []net.Conn
	// hears, where set, is closed when the hub is heard again.
	hears chan struct{}
	word  string // makes it deaf
	tail  string // what went to the hub last
	done  sync.WaitGroup
}

// NewWAN begins to take connections for the hub at to; Close ends it.
func NewWAN(to string) (*WAN, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &WAN{ln: ln, to: to}
	w.done.Go(w.accept)
	return w, nil
}

// Close cuts it for good.
func (w *WAN) Close() {
	_ = w.ln.Close()
	w.Cut()
	w.done.Wait()
}

// Addr is where a site connects to.
func (w *WAN) Addr() string { return w.ln.Addr().String() }

func (w *WAN) accept() {
	for {
		c, err := w.ln.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		down := w.down
		var hub net.Conn
		if !down {
			hub, err = net.Dial("tcp", w.to)
		}
		if down || err != nil {
			w.mu.Unlock()
			_ = c.Close()
			continue
		}
		w.all = append(w.all, c, hub)
		w.mu.Unlock()
		w.done.Go(func() {
			_, _ = io.Copy(listening{w: w, Conn: hub}, c)
			_, _ = hub.Close(), c.Close()
		})
		w.done.Go(func() {
			_, _ = io.Copy(stalling{w, c}, hub)
			_, _ = hub.Close(), c.Close()
		})
	}
}

// stalling holds back what goes to the site while the WAN is deaf.
type stalling struct {
	w *WAN
	net.Conn
}

func (s stalling) Write(b []byte) (int, error) {
	s.w.mu.Lock()
	hears := s.w.hears
	s.w.mu.Unlock()
	if hears != nil {
		<-hears
	}
	return s.Conn.Write(b)
}

// listening makes the WAN deaf once a word goes to the hub.
type listening struct {
	w *WAN
	net.Conn
}

func (l listening) Write(b []byte) (int, error) {
	l.w.mu.Lock()
	if word := l.w.word; word != "" {
		text := l.w.tail + string(b)
		if strings.Contains(text, word) {
			l.w.hears, l.w.word = make(chan struct{}), ""
		}
		l.w.tail = text[max(0, len(text)-len(word)):]
	}
	l.w.mu.Unlock()
	return l.Conn.Write(b)
}

// Deaf holds back what the hub says from a word to it on, until it is cut.
func (w *WAN) Deaf(word string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.word = word
}

// Cut ends what is there and takes nothing new.
func (w *WAN) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down, w.word = true, ""
	for _, c := range w.all {
		_ = c.Close()
	}
	if w.hears != nil {
		close(w.hears)
		w.hears = nil
	}
	w.all = nil
}

// Mend takes new connections again.
func (w *WAN) Mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}
