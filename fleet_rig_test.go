package perch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch/internal/testkit"
	"perch/topic"
)

// fleetNATS is the NATS of all tests with many nodes: three servers. Each test
// has a prefix of its own there, and leaves all three running.
var fleetNATS struct {
	sync.Mutex
	c    *testkit.NATS
	used int
}

func closeFleetNATS() {
	fleetNATS.Lock()
	defer fleetNATS.Unlock()
	if fleetNATS.c != nil {
		_ = fleetNATS.c.Close()
		fleetNATS.c = nil
	}
}

// fleetPatience is what anything may take that waits for NATS to choose another
// leader, which it does after 4 to 9 s.
const fleetPatience = 45 * time.Second

// fleet is a number of nodes, each a process, on three NATS servers.
type fleet struct {
	t      *testing.T
	nats   *testkit.NATS
	nodes  []*fleetNode
	prefix string
	topics string // the configuration
}

type fleetNode struct {
	c             *fleet
	name          string
	public, admin string
	config        string
	links         []*testkit.Proxy // to the servers of NATS; none: it goes there directly
	client        *http.Client
	process       *testkit.Process
	killed        bool // by the test
}

type fleetOptions struct {
	nodes      int // 0: 3
	namespaces []topic.NamespaceOptions
	linked     int           // so many nodes, from the first, go to NATS through links that can be cut
	timeout    time.Duration // nats.timeout; 0: 3 s
	idle       bool          // nodes are not started
}

// startFleet starts NATS, where it does not run, and the nodes.
func startFleet(t *testing.T, o fleetOptions) *fleet {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*fleetPatience)
	defer cancel()
	root, bin, err := testkit.Perch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &fleet{t: t, topics: namespacesYAML(o.namespaces)}
	fleetNATS.Lock()
	if fleetNATS.c == nil {
		if fleetNATS.c, err = testkit.StartNATS(ctx, root, 3); err != nil {
			fleetNATS.Unlock()
			t.Fatal(err)
		}
	}
	fleetNATS.used++
	c.nats, c.prefix = fleetNATS.c, fmt.Sprint("t", fleetNATS.used)
	fleetNATS.Unlock()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), fleetPatience)
		defer cancel()
		if err := c.nats.Restore(ctx); err != nil {
			t.Error(err)
			closeFleetNATS() // the next test has another
		}
	})
	if o.nodes == 0 {
		o.nodes = 3
	}
	if o.timeout == 0 {
		o.timeout = 3 * time.Second
	}
	for i := range o.nodes {
		n := &fleetNode{c: c, name: fmt.Sprint("p", i), client: &http.Client{Timeout: testkit.Timeout, Transport: &http.Transport{}}}
		c.nodes = append(c.nodes, n)
		t.Cleanup(n.client.CloseIdleConnections)
		urls := c.nats.URL()
		if i < o.linked {
			urls = ""
			for _, s := range c.nats.Servers {
				p, err := testkit.NewProxy(s.Addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(p.Close)
				n.links = append(n.links, p)
				urls += "nats://" + p.Addr() + ","
			}
			urls = strings.TrimSuffix(urls, ",")
		}
		n.configure(urls, o.timeout)
	}
	if o.idle {
		return c
	}
	for _, n := range c.nodes {
		n.begin(bin)
	}
	for _, n := range c.nodes {
		n.waitReady()
	}
	return c
}

// namespacesYAML writes the options that tests of fleets use.
func namespacesYAML(all []topic.NamespaceOptions) string {
	var b strings.Builder
	for _, ns := range all {
		fmt.Fprintf(&b, "    - name: %s\n      allow_subscribe_for_client: true\n      allow_publish_for_client: true\n", ns.Name)
		if ns.HistorySize > 0 {
			fmt.Fprintf(&b, "      history_size: %d\n      history_ttl: %s\n      history_meta_ttl: %s\n", ns.HistorySize, ns.HistoryTTL, ns.HistoryMetaTTL)
			fmt.Fprintf(&b, "      allow_history_for_client: true\n      force_recovery: %v\n", ns.ForceRecovery)
		}
		if ns.ForceRecoveryMode != "" {
			fmt.Fprintf(&b, "      force_recovery_mode: %s\n      auto_cache_recover: %v\n", ns.ForceRecoveryMode, ns.AutoCacheRecover)
		}
		if len(ns.AllowedDeltaTypes) > 0 {
			fmt.Fprintf(&b, "      allowed_delta_types: [%s]\n      delta_publish: %v\n", strings.Join(ns.AllowedDeltaTypes, ", "), ns.DeltaPublish)
		}
		if ns.JoinLeave {
			fmt.Fprintf(&b, "      join_leave: true\n      force_push_join_leave: %v\n", ns.ForcePushJoinLeave)
		}
	}
	return b.String()
}

const fleetKey = "fleet-api-key"

func (n *fleetNode) configure(urls string, timeout time.Duration) {
	n.c.t.Helper()
	dir := n.c.t.TempDir()
	var err error
	if n.public, err = testkit.FreeAddr(); err != nil {
		n.c.t.Fatal(err)
	}
	if n.admin, err = testkit.FreeAddr(); err != nil {
		n.c.t.Fatal(err)
	}
	n.config = filepath.Join(dir, "perch.yaml")
	text := fmt.Sprintf(`listen: %s
admin: %s
data_dir: %s
engine: nats
nats:
  url: %s
  name: %s
  prefix: %s
  replicas: 3
  timeout: %s
api:
  key: %s
auth:
  hmac_secret: %s
heartbeat:
  interval: 1h
drain:
  budget: 2s
topics:
  recovery_limit: %[10]d
  history_limit: %[10]d
  join_leave_interval: 5ms
  default:
    allow_subscribe_for_client: true
    allow_publish_for_client: true
  namespaces:
%[11]s`, n.public, n.admin, filepath.Join(dir, "data"), urls, n.name, n.c.prefix, timeout, fleetKey, testSecret, fleetRecoveryLimit, n.c.topics)
	if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
		n.c.t.Fatal(err)
	}
}

const fleetRecoveryLimit = 2000

// start starts the node, for the first time or again, and does not wait.
func (n *fleetNode) start() {
	n.c.t.Helper()
	_, bin, err := testkit.Perch(n.c.t.Context())
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.begin(bin)
}

func (n *fleetNode) begin(bin string) {
	n.c.t.Helper()
	p, err := testkit.StartProcess(bin, []string{"serve", "--config", n.config}, nil, 0)
	if err != nil {
		n.c.t.Fatal(err)
	}
	first := n.process == nil
	n.process, n.killed = p, false
	if !first {
		return
	}
	n.c.t.Cleanup(func() {
		_ = n.process.Signal(syscall.SIGCONT)
		if err := n.process.Stop(20 * time.Second); err != nil && !n.killed {
			n.c.t.Errorf("%s: stop: %v", n.name, err)
		}
		out := n.process.Output()
		if strings.Contains(out, "level=ERROR msg=\"panic") || strings.Contains(out, "\npanic: ") || strings.Contains(out, "DATA RACE") {
			n.c.t.Errorf("%s has panicked", n.name)
		}
		if n.c.t.Failed() {
			n.c.t.Logf("log of %s:\n%s", n.name, out)
		}
	})
}

func (n *fleetNode) waitReady() {
	n.c.t.Helper()
	ctx, cancel := context.WithTimeout(n.c.t.Context(), fleetPatience)
	defer cancel()
	if err := n.process.WaitHTTP(ctx, "http://"+n.admin+"/readyz"); err != nil {
		n.c.t.Fatal(err)
	}
}

// kill ends the node at once.
func (n *fleetNode) kill() {
	n.killed = true
	_ = n.process.Signal(syscall.SIGKILL)
	<-n.process.Exited()
}

func (n *fleetNode) each(do func(*testkit.Proxy)) {
	for _, p := range n.links {
		do(p)
	}
}

// stream is the name of a namespace's stream.
func (c *fleet) stream(namespace string) string { return c.prefix + "_h_" + namespace }

// leader is the server that leads a namespace's stream.
func (c *fleet) leader(namespace string) *testkit.NATSServer {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), fleetPatience)
	defer cancel()
	for {
		s, err := c.nats.Leader(ctx, c.stream(namespace))
		if err == nil {
			return s
		}
		if ctx.Err() != nil {
			c.t.Fatal(err)
		}
	}
}

// apiFailure is an error that the server API has answered.
type apiFailure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (e *apiFailure) Error() string { return fmt.Sprintf("%d %s", e.Code, e.Message) }

// call calls a method of the server API. An *apiFailure is its answer; other
// errors leave open what has been done.
func (n *fleetNode) call(ctx context.Context, method string, body, to any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.admin+"/api/"+method, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", fleetKey)
	resp, err := n.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %s", method, resp.Status, raw)
	}
	var a struct {
		Result json.RawMessage `json:"result"`
		Error  *apiFailure     `json:"error"`
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return err
	}
	if a.Error != nil {
		return a.Error
	}
	if to == nil {
		return nil
	}
	return json.Unmarshal(a.Result, to)
}

type fleetPublish struct {
	Channel        string          `json:"channel"`
	Data           json.RawMessage `json:"data"`
	IdempotencyKey string          `json:"idempotency_key,omitempty"`
	Delta          bool            `json:"delta,omitempty"`
	Version        uint64          `json:"version,omitempty"`
	VersionEpoch   string          `json:"version_epoch,omitempty"`
}

func (n *fleetNode) publish(ctx context.Context, p fleetPublish) (topic.Position, error) {
	var r struct {
		Offset uint64 `json:"offset"`
		Epoch  string `json:"epoch"`
	}
	err := n.call(ctx, "publish", p, &r)
	return topic.Position{Offset: r.Offset, Epoch: r.Epoch}, err
}

// must publishes, or fails the test.
func (n *fleetNode) must(name string, data any) topic.Position {
	n.c.t.Helper()
	at, err := n.publish(n.c.t.Context(), fleetPublish{Channel: name, Data: rawJSON(data)})
	if err != nil {
		n.c.t.Fatalf("%s: publish to %s: %v", n.name, name, err)
	}
	return at
}

func rawJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

type fleetHistory struct {
	Publications []struct {
		Data   json.RawMessage `json:"data"`
		Offset uint64          `json:"offset"`
	} `json:"publications"`
	Offset uint64 `json:"offset"`
	Epoch  string `json:"epoch"`
}

func (h *fleetHistory) text() string {
	var out []string
	for _, p := range h.Publications {
		out = append(out, string(p.Data))
	}
	return strings.Join(out, " ")
}

// history reads all of a topic's.
func (n *fleetNode) history(ctx context.Context, name string) (*fleetHistory, error) {
	h := new(fleetHistory)
	return h, n.call(ctx, "history", map[string]any{"channel": name, "limit": -1}, h)
}

// dial connects a client of the SDK to the node.
func (n *fleetNode) dial(t *testing.T, create func(string, centrifuge.Config) *centrifuge.Client) *sdk {
	t.Helper()
	k := newSDK(t, create("ws://"+n.public+"/connection/websocket", centrifuge.Config{
		Token: token("u-"+n.name, time.Hour), HandshakeTimeout: testkit.Timeout,
	}))
	k.connect(t)
	return k
}

// page is a page of the node's admin port.
func (n *fleetNode) page(path string) (int, string) {
	resp, err := n.client.Get("http://" + n.admin + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// patiently polls ok for as long as NATS may take.
func patiently(t *testing.T, what string, ok func() bool) {
	t.Helper()
	within(t, fleetPatience, what, ok)
}
