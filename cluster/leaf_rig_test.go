package cluster

import (
	"errors"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"perch/internal/testkit"
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

// wan is the way from a site to its hub.
type wan struct{ *testkit.Proxy }

func (w wan) url() string { return "nats-leaf://" + w.Addr() }

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

func (r *rig) wan() wan {
	w, err := testkit.NewProxy("127.0.0.1:" + strconv.Itoa(r.port))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(w.Close)
	return wan{w}
}

// site is a node whose embedded server is a leaf. It can be ended and begun again.
type site struct {
	*node
	link *Link
	dir  string
	name string
	opts LeafOptions
	more BrokerOptions
	sync time.Duration // 0: each answer waits for the disk
	ns   []topic.NamespaceOptions
}

func (r *rig) site(name string, w wan, leaf LeafOptions) *site {
	r.t.Helper()
	leaf.URL, leaf.Site = w.url(), name
	s := &site{dir: r.t.TempDir(), name: name, opts: leaf, ns: r.ns}
	s.start(r.t)
	return s
}

// cutSite is a site that has been up, one publication each way, and is cut off.
func cutSite(t testing.TB) (*rig, wan, *site) {
	t.Helper()
	r := newRig(t)
	w := r.wan()
	s := r.site("berlin", w, LeafOptions{})
	s.waitUp(true)
	s.put("news:x", "a1")
	r.hub.put("news:x", "h1")
	same(t, "news:x", 2, s.node, r.hub)
	w.Cut()
	s.waitUp(false)
	return r, w, s
}

func (s *site) start(t testing.TB) {
	t.Helper()
	l, err := Open(Options{
		Name: s.name, Timeout: 2 * time.Second,
		Server: ServerOptions{Dir: s.dir, SyncInterval: s.sync, StoreBytes: 1 << 30, Leaf: s.opts},
	})
	if err != nil {
		t.Fatal(err)
	}
	n := begin(t, l, s.more, 0, s.ns)
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
