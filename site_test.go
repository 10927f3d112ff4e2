package perch_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"
	natsserver "github.com/nats-io/nats-server/v2/server"

	"perch"
	"perch/internal/testkit"
	"perch/topic"
)

// startHub runs a NATS server that takes leaf nodes, and a server of ours on it; the
// way of sites to it can be cut.
func startHub(t *testing.T, change func(*perch.Options)) (*server, *testkit.Proxy) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().(*net.TCPAddr)
	_ = ln.Close()
	o := &natsserver.Options{
		ServerName: "hub", Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), MaxPayload: 8 << 20,
	}
	o.LeafNode.Host, o.LeafNode.Port, o.LeafNode.NoAdvertise = "127.0.0.1", addr.Port, true
	n, err := natsserver.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	t.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	if !n.ReadyForConnections(testkit.Timeout) {
		t.Fatal("the nats server does not start")
	}
	w, err := testkit.NewProxy(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return start(t, func(o *perch.Options) {
		o.NATS.URL, o.NATS.Name = n.ClientURL(), "hub"
		change(o)
	}), w
}

// A site works on while its uplink is gone: its clients publish and are delivered to
// at once; when it is back, everybody has everything.
func TestSite(t *testing.T) {
	both := func(o *perch.Options) {
		o.Engine = perch.EngineNATS
		o.Topics.Namespaces = []topic.NamespaceOptions{{
			Name: "news", HistorySize: 100, HistoryTTL: time.Hour, ForceRecovery: true,
			AllowSubscribeForClient: true, AllowPublishForClient: true,
		}}
	}
	hub, wan := startHub(t, both)
	site := start(t, func(o *perch.Options) {
		both(o)
		o.NATS.Leaf.URL, o.NATS.Leaf.Site = "nats-leaf://"+wan.Addr(), "berlin"
	})
	up := func(want float64) {
		t.Helper()
		eventually(t, "uplink", func() bool { return site.metric(t, "perch_leaf_up") == want })
	}
	up(1)
	client := func(s *server) (*sdk, *subscription) {
		k := newSDK(t, centrifuge.NewJsonClient(s.url(), centrifuge.Config{Token: token("u", time.Hour), HandshakeTimeout: testkit.Timeout}))
		k.connect(t)
		sub := k.subscribe(t, "news:x", centrifuge.SubscriptionConfig{})
		await(t, "subscribed", sub.subscribed)
		return k, sub
	}
	_, atSite := client(site)
	_, atHub := client(hub)
	want := func(what string, sub *subscription, want ...string) {
		t.Helper()
		for _, w := range want {
			if e := await(t, what, sub.published); string(e.Data) != w {
				t.Errorf("%s: %s instead of %s", what, e.Data, w)
			}
		}
	}
	say := func(sub *subscription, text string) {
		t.Helper()
		if _, err := sub.Publish(bounded(t), []byte(text)); err != nil {
			t.Fatalf("publish %s: %v", text, err)
		}
	}
	say(atSite, `"s1"`)
	want("site", atSite, `"s1"`)
	want("hub", atHub, `"s1"`)
	say(atHub, `"h1"`)
	want("site", atSite, `"h1"`)
	want("hub", atHub, `"h1"`)

	wan.Cut()
	up(0)
	for i := range 5 {
		say(atSite, fmt.Sprintf(`"s%d"`, i+2))
		want("site", atSite, fmt.Sprintf(`"s%d"`, i+2))
		say(atHub, fmt.Sprintf(`"h%d"`, i+2))
		want("hub", atHub, fmt.Sprintf(`"h%d"`, i+2))
	}
	if code, body := get(t, "http://"+site.admin+"/readyz"); code != 200 {
		t.Errorf("the site without its hub: %d %s", code, body)
	}
	eventually(t, "counted", func() bool { return site.metric(t, "perch_leaf_waiting") == 5 })

	wan.Heal()
	up(1)
	want("hub", atHub, `"s2"`, `"s3"`, `"s4"`, `"s5"`, `"s6"`)
	want("site", atSite, `"h2"`, `"h3"`, `"h4"`, `"h5"`, `"h6"`)
	eventually(t, "counted", func() bool {
		return site.metric(t, "perch_leaf_waiting") == 0 && site.metric(t, "perch_leaf_forwarded_total") == 6 &&
			site.metric(t, "perch_leaf_received_total") == 6
	})

	// Offsets are the site's own: who moves to the hub is told so.
	here := site.dial(t, "/connection/websocket")
	here.send(testkit.ConnectCommand(token("u", time.Hour)))
	here.reply(1)
	here.send(`{"id":2,"subscribe":{"channel":"news:x"}}`)
	at := here.reply(2)["subscribe"].(map[string]any)
	there := hub.dial(t, "/connection/websocket")
	there.send(testkit.ConnectCommand(token("u", time.Hour)))
	there.reply(1)
	there.send(fmt.Sprintf(`{"id":2,"subscribe":{"channel":"news:x","recover":true,"offset":%v,"epoch":%q}}`, at["offset"], at["epoch"]))
	if r := there.reply(2)["subscribe"].(map[string]any); r["recovered"] == true || r["was_recovering"] != true || at["epoch"] == "" {
		t.Errorf("%v, after %v", r, at)
	}
}
