package cluster

import (
	"fmt"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// hubCluster is three servers that are one, each of which takes leaf nodes.
func hubCluster(t testing.TB) (all []*server.Server, leafPorts []int) {
	t.Helper()
	var ports []int
	var routes []*url.URL
	for range 3 {
		ports = append(ports, freePort(t))
		leafPorts = append(leafPorts, freePort(t))
		routes = append(routes, &url.URL{Scheme: "nats", Host: "127.0.0.1:" + strconv.Itoa(ports[len(ports)-1])})
	}
	for i := range 3 {
		o := &server.Options{
			ServerName: number("hub", i), Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
			MaxPayload: maxPayload, Routes: routes,
		}
		o.Cluster.Name, o.Cluster.Host, o.Cluster.Port = "hub", "127.0.0.1", ports[i]
		o.LeafNode.Host, o.LeafNode.Port, o.LeafNode.NoAdvertise = "127.0.0.1", leafPorts[i], true
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		all = append(all, s)
	}
	for _, s := range all {
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("the hub does not start")
		}
	}
	until(t, "one leader", func() bool {
		for _, s := range all {
			if s.JetStreamIsLeader() {
				return true
			}
		}
		return false
	})
	return all, leafPorts
}

// The hub is three servers that keep each history three times, whose leader changes
// while a site hands over what has waited.
func TestLeafHubCluster(t *testing.T) {
	all, ports := hubCluster(t)
	r := &rig{t: t, nats: all[0], port: ports[0]}
	r.ns = append(r.ns, long)
	urls := fmt.Sprintf("%s,%s,%s", all[0].ClientURL(), all[1].ClientURL(), all[2].ClientURL())
	r.hub = newNode(t, Options{URL: urls, Name: "hub", Replicas: 3}, r.ns...).waitReady()
	w := r.wan()
	s := r.site("berlin", w, LeafOptions{})
	s.waitUp(true)
	w.Cut()
	s.waitUp(false)
	const n = 1500
	for i := range n {
		s.put("news:x", number("a", i+1))
	}
	stop := make(chan struct{})
	stepped := make(chan int)
	go func() {
		k := 0
		defer func() { stepped <- k }()
		for k < 8 {
			if _, err := r.hub.link.nc.Request("$JS.API.STREAM.LEADER.STEPDOWN.perch_h_news", nil, 500*time.Millisecond); err == nil {
				k++
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	w.Heal()
	until(t, "nothing waiting", func() bool { return s.Counts().Leaf.Up && s.Counts().Leaf.Waiting == 0 })
	close(stop)
	t.Logf("%d leaders", <-stepped)
	same(t, "news:x", n, r.hub, s.node)
}
