package cluster

import (
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"perch/topic"
)

// hubServer is a NATS server of a hub: it takes leaf nodes.
func hubServer(t testing.TB, dir string, port, leafPort int) *server.Server {
	t.Helper()
	o := &server.Options{
		ServerName: "hub", Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true, MaxPayload: maxPayload,
	}
	o.LeafNode.Host, o.LeafNode.Port = "127.0.0.1", leafPort
	o.LeafNode.NoAdvertise = true                       // else the site finds a way beside the wan
	o.LeafNode.Compression.Mode = server.CompressionOff // the tests read along
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the hub does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// freePort is one that nobody has now.
func freePort(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port
}

// wan is the way from a site to its hub, which can be cut.
type wan struct {
	t    testing.TB
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

func newWAN(t testing.TB, to string) *wan {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wan{t: t, ln: ln, to: to}
	w.done.Go(w.accept)
	t.Cleanup(func() { _ = ln.Close(); w.cut(); w.done.Wait() })
	return w
}

func (w *wan) url() string { return "nats-leaf://" + w.ln.Addr().String() }

func (w *wan) accept() {
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

// stalling holds back what goes to the site while the wan is deaf.
type stalling struct {
	w *wan
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

// listening makes the wan deaf once a word goes to the hub.
type listening struct {
	w *wan
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

// deaf holds back what the hub says from a word to it on, until the wan is cut.
func (w *wan) deaf(word string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.word = word
}

// cut ends what is there and takes nothing new.
func (w *wan) cut() {
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

func (w *wan) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}

// rig is a hub with a node, behind wans of which sites are.
type rig struct {
	t    testing.TB
	nats *server.Server
	port int // of leaf nodes
	hub  *node
	ns   []topic.NamespaceOptions
}

// long keeps what the tests publish.
var (
	long       = topic.NamespaceOptions{Name: "news", HistorySize: 2000, HistoryTTL: time.Hour}
	longStored = topic.PublishOptions{HistorySize: 2000, HistoryTTL: time.Hour}
)

func newRig(t testing.TB) *rig {
	t.Helper()
	port := freePort(t)
	s := hubServer(t, t.TempDir(), -1, port)
	r := &rig{t: t, nats: s, port: port, ns: []topic.NamespaceOptions{long}}
	r.hub = newNode(t, Options{URL: s.ClientURL(), Name: "hub"}, r.ns...).waitReady()
	return r
}

func (r *rig) wan() *wan {
	return newWAN(r.t, "127.0.0.1:"+strconv.Itoa(r.port))
}

// site is a node whose embedded server is a leaf. It can be ended and begun again.
type site struct {
	*node
	link *Link
	dir  string
	name string
	opts LeafOptions
	ns   []topic.NamespaceOptions
}

func (r *rig) site(name string, w *wan, leaf LeafOptions) *site {
	r.t.Helper()
	leaf.URL, leaf.Site = w.url(), name
	s := &site{dir: r.t.TempDir(), name: name, opts: leaf, ns: r.ns}
	s.start(r.t)
	return s
}

func (s *site) start(t testing.TB) {
	t.Helper()
	l, err := Open(Options{
		Name: s.name, Timeout: 2 * time.Second,
		Server: ServerOptions{Dir: s.dir, SyncInterval: time.Minute, StoreBytes: 1 << 30, Leaf: s.opts},
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, Broker: NewBroker(l, BrokerOptions{}), got: newReceiver()}
	n.SetNamespaces(namespaces(t, s.ns))
	if err := n.Start(n.got); err != nil {
		t.Fatal(err)
	}
	s.node, s.link = n, l
	t.Cleanup(func() { _ = n.Close(); l.Close() })
	n.waitReady()
}

// kill takes the site's server and connection away under the broker's hands.
func (s *site) kill() {
	s.link.nc.Close()
	s.link.server.Shutdown()
	s.link.server.WaitForShutdown()
	_ = s.Broker.Close()
}

func (s *site) waitUp(up bool) {
	s.t.Helper()
	until(s.t, "uplink as wanted", func() bool { return s.Counts().Leaf.Up == up })
}

// put publishes to a topic with a long history.
func (n *node) put(name, data string) topic.Position {
	n.t.Helper()
	at, err := n.publish(name, data, longStored)
	if err != nil {
		n.t.Fatalf("publish %s to %s: %v", data, name, err)
	}
	return at
}

// all is the history of a topic.
func (n *node) all(name string) []string {
	n.t.Helper()
	pubs, _, err := n.read(name, topic.Filter{Limit: -1})
	if errors.Is(err, topic.ErrUnavailable) {
		return nil
	}
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for _, p := range pubs {
		out = append(out, string(p.Data))
	}
	return out
}

// same waits until a topic's history at each node has n publications, and fails
// where one is there twice, or those of one origin are out of order.
func same(t testing.TB, name string, n int, nodes ...*node) {
	t.Helper()
	var first []string
	for i, at := range nodes {
		late := time.After(30 * time.Second)
		for len(at.all(name)) < n {
			select {
			case <-late:
				t.Fatalf("%s at %s: %d of %d: %v", name, at.link.Name(), len(at.all(name)), n, at.all(name))
			case <-time.After(10 * time.Millisecond):
			}
		}
		have := at.all(name)
		if len(have) != n {
			t.Errorf("%s at %s: %d instead of %d: %v", name, at.link.Name(), len(have), n, have)
		}
		ordered(t, name+" at "+at.link.Name(), have)
		sorted := slices.Sorted(slices.Values(have))
		if i == 0 {
			first = sorted
		} else if !slices.Equal(first, sorted) {
			t.Errorf("%s: %s has %v, %s %v", name, nodes[0].link.Name(), first, at.link.Name(), sorted)
		}
		got := at.got.wait(t, name, 1)
		chained(t, got)
		var delivered []string
		for _, g := range got {
			delivered = append(delivered, g.data)
		}
		ordered(t, name+" delivered at "+at.link.Name(), delivered)
	}
}

// ordered checks data such as a1 a2 b1 a3: once each, and of each letter in order.
func ordered(t testing.TB, what string, all []string) {
	t.Helper()
	last := map[byte]int{}
	for _, s := range all {
		n, err := strconv.Atoi(s[1:])
		if err != nil {
			t.Fatal(err)
		}
		if n <= last[s[0]] {
			t.Errorf("%s: %s comes behind %c%d", what, s, s[0], last[s[0]])
		}
		last[s[0]] = n
	}
}
