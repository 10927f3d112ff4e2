package perch_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch/topic"
)

var fleetNews = topic.NamespaceOptions{Name: "news", HistorySize: 100, HistoryTTL: time.Hour, HistoryMetaTTL: time.Hour, ForceRecovery: true}

// TestFleetDelivery: whoever publishes, and on whichever node, subscribers on
// all nodes get it once, and in one order.
func TestFleetDelivery(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetNews, fleetLong}})
	// That all three find the streams missing at once is no fault.
	for _, n := range c.nodes {
		if out := n.process.Output(); strings.Contains(out, "level=ERROR") {
			t.Errorf("%s does not start quietly:\n%s", n.name, out)
		}
	}
	for _, name := range []string{"plain", "news:a"} {
		t.Run(name, func(t *testing.T) {
			var subs []*subscription
			var clients []*sdk
			for i, n := range c.nodes {
				for k, create := range []func(string, centrifuge.Config) *centrifuge.Client{centrifuge.NewJsonClient, centrifuge.NewProtobufClient} {
					client := n.dial(t, create)
					sub := client.subscribe(t, name, centrifuge.SubscriptionConfig{})
					await(t, fmt.Sprintf("subscribed %d.%d", i, k), sub.subscribed)
					clients, subs = append(clients, client), append(subs, sub)
				}
			}
			const each = 10
			count := 0
			for i := range each {
				for k, n := range c.nodes {
					n.must(name, fmt.Sprintf("api-%d-%d", k, i))
					if _, err := clients[2*k+i%2].Publish(bounded(t), name, rawJSON(fmt.Sprintf("client-%d-%d", k, i))); err != nil {
						t.Fatal(err)
					}
					count += 2
				}
			}
			for k, n := range c.nodes { // behind which nothing comes
				n.must(name, fmt.Sprintf("api-%d-end", k))
				count++
			}
			var first []string
			for i, sub := range subs {
				var got []string
				last := map[string]string{}
				var offset uint64
				for range count {
					p := await(t, fmt.Sprintf("publication %d of %d at %d", len(got), count, i), sub.published)
					text := string(p.Data)
					got = append(got, text)
					// Each node's are in their order, with a history or without.
					from := text[:strings.LastIndexByte(text, '-')]
					if last[from] >= text {
						t.Errorf("subscriber %d: %s behind %s", i, text, last[from])
					}
					last[from] = text
					if strings.Contains(name, ":") && p.Offset <= offset {
						t.Errorf("subscriber %d: offset %d behind %d", i, p.Offset, offset)
					}
					offset = p.Offset
				}
				if strings.Contains(name, ":") {
					if first == nil {
						first = got
					} else if strings.Join(first, " ") != strings.Join(got, " ") {
						t.Errorf("subscriber %d has another order:\n%v\n%v", i, first, got)
					}
				}
			}
		})
	}
}

// TestFleetOrder: what many publish to a topic at a time on one node, all
// subscribers get in one order, those of other nodes too; with a history there is
// one order for the publications of all nodes.
func TestFleetOrder(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetNews}})
	for _, name := range []string{"plain", "news:a"} {
		t.Run(name, func(t *testing.T) {
			const publishers, each = 4, 20 // of each node: less than the queues of a subscription hold
			var subs []*subscription
			for _, n := range c.nodes {
				sub := n.dial(t, centrifuge.NewProtobufClient).subscribe(t, name, centrifuge.SubscriptionConfig{})
				await(t, "subscribed", sub.subscribed)
				subs = append(subs, sub)
			}
			count := 0
			var all sync.WaitGroup
			for _, n := range c.nodes {
				for k := range publishers {
					count += each
					all.Go(func() {
						for i := range each {
							if _, err := n.publish(bounded(t), fleetPublish{Channel: name, Data: rawJSON(fmt.Sprintf("%s %d %d", n.name, k, i))}); err != nil {
								t.Errorf("publish: %v", err)
							}
						}
					})
				}
			}
			all.Wait()
			first := map[string]string{}
			for i, sub := range subs {
				got := map[string]string{}
				for range count {
					text := string(await(t, "publication", sub.published).Data)
					from := "all"
					if name == "plain" {
						from, _, _ = strings.Cut(text, " ")
					}
					got[from] += text
				}
				for from, order := range got {
					if i == 0 {
						first[from] = order
					} else if order != first[from] {
						t.Errorf("subscribers of two nodes have the publications of %s in two orders:\n%s\n%s", from, order, first[from])
					}
				}
			}
		})
	}
}
