package perch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch/internal/testkit"
	"perch/topic"
)

// failsTemporarily publishes into a history that can't be reached. The answer comes
// after nats.timeout, and not when the connection is given up, after 6 s or more.
func failsTemporarily(t *testing.T, n *fleetNode, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := n.publish(ctx, fleetPublish{Channel: name, Data: rawJSON("not known to be stored")})
	var answered *apiFailure
	if !errors.As(err, &answered) || answered.Code != 100 {
		t.Errorf("%s: publish to %s: got %v, want error 100", n.name, name, err)
	}
	req, err := http.NewRequestWithContext(bounded(t), http.MethodPost, "http://"+n.admin+"/api/publish",
		strings.NewReader(fmt.Sprintf(`{"channel":%q,"data":"not known to be stored"}`, name)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", fleetKey)
	req.Header.Set("X-Centrifugo-Error-Mode", "transport")
	resp, err := n.client.Do(req)
	if err != nil {
		t.Errorf("publish in transport mode: %v", err)
		return
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("publish in transport mode: %s, want 503", resp.Status)
	}
}

// next is the next publication that was known to be stored.
func next(t *testing.T, what string, c <-chan centrifuge.PublicationEvent) string {
	t.Helper()
	for {
		select {
		case p := <-c:
			if text := string(p.Data); text != `"not known to be stored"` {
				return text
			}
		case <-time.After(fleetPatience):
			t.Fatalf("not within %s: %s", fleetPatience, what)
		}
	}
}

// undisturbed checks that a client has neither lost its connection nor its
// subscription since it subscribed.
func undisturbed(t *testing.T, k *sdk, subs ...*subscription) {
	t.Helper()
	for _, sub := range subs {
		if len(sub.subscribed) > 0 || len(sub.unsubscribed) > 0 {
			t.Errorf("the subscription to %s was lost", sub.Channel)
		}
	}
	if len(k.connected) > 0 || len(k.disconnected) > 0 {
		t.Error("the connection was lost")
	}
}

// TestFleetLink: a node without NATS says so to publishers whose publications
// it can't store, and keeps its sessions; what goes on without NATS does. When
// NATS is back its subscribers get what they have missed.
func TestFleetLink(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetLong}, linked: 1, nodes: 2, timeout: time.Second})
	here, there := c.nodes[0], c.nodes[1]
	for _, kind := range []struct {
		name string
		fail func(*testkit.Proxy)
	}{
		{"cut", (*testkit.Proxy).Cut},
		{"stalled", (*testkit.Proxy).Stall},
	} {
		t.Run(kind.name, func(t *testing.T) {
			stored, plain := "long:"+kind.name, "plain-"+kind.name
			k := here.dial(t, centrifuge.NewProtobufClient)
			s, p := k.subscribe(t, stored, centrifuge.SubscriptionConfig{}), k.subscribe(t, plain, centrifuge.SubscriptionConfig{})
			await(t, "subscribed", s.subscribed)
			await(t, "subscribed", p.subscribed)
			there.must(stored, "before")
			if got := next(t, "the first publication", s.published); got != `"before"` {
				t.Errorf("got %s", got)
			}
			here.each(kind.fail)
			defer here.each((*testkit.Proxy).Heal)
			failsTemporarily(t, here, stored)
			_, err := k.Publish(bounded(t), stored, rawJSON("not known to be stored"))
			wantCode(t, err, 100)
			if _, err := here.history(bounded(t), stored); err == nil || !strings.HasPrefix(err.Error(), "100 ") {
				t.Errorf("history: %v, want error 100", err)
			}
			here.must(plain, "here")
			if got := next(t, "a publication without a history", p.published); got != `"here"` {
				t.Errorf("got %s", got)
			}
			// Publications go on while NATS comes back: some are read, the next ones come
			// by themselves.
			stop, count := make(chan struct{}), new(atomic.Int64)
			var publishing sync.WaitGroup
			defer publishing.Wait()
			publishing.Go(func() {
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-tick.C:
					}
					if _, err := there.publish(bounded(t), fleetPublish{Channel: stored, Data: rawJSON(fmt.Sprint("meanwhile ", i))}); err != nil {
						t.Errorf("publish at the other node: %v", err)
						return
					}
					count.Add(1)
				}
			})
			// So do those of other topics of the same stream.
			for range 4 {
				publishing.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						if _, err := there.publish(bounded(t), fleetPublish{Channel: stored + "-other", Data: rawJSON("other")}); err != nil {
							t.Errorf("publish at the other node: %v", err)
							return
						}
					}
				})
			}
			defer close(stop)
			patiently(t, "20 publications", func() bool { return count.Load() >= 20 })
			here.each((*testkit.Proxy).Heal)
			missed := count.Load()
			for i := range missed + 50 {
				want := fmt.Sprintf(`"meanwhile %d"`, i)
				if got := next(t, want, s.published); got != want {
					t.Fatalf("got %s, want %s", got, want)
				}
			}
			undisturbed(t, k, s, p)
			patiently(t, "a publication that is stored again", func() bool {
				_, err := here.publish(bounded(t), fleetPublish{Channel: stored, Data: rawJSON("after")})
				return err == nil
			})
			patiently(t, "a publication without a history of the other node", func() bool {
				there.must(plain, "there")
				return len(p.published) > 0
			})
			undisturbed(t, k, s, p)
		})
	}
}

// TestFleetLinkLost: a publication under way when the connection goes fails then,
// and does not wait for its timeout.
func TestFleetLinkLost(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetNews}, linked: 1, nodes: 1, timeout: time.Minute})
	n := c.nodes[0]
	n.must("news:a", "before")
	n.each((*testkit.Proxy).Stall)
	failed := make(chan error, 1)
	go func() {
		_, err := n.publish(t.Context(), fleetPublish{Channel: "news:a", Data: rawJSON("under way")})
		failed <- err
	}()
	eventually(t, "a publication under way", func() bool {
		_, page := n.page("/metrics")
		return strings.Contains(page, "\nperch_broker_waiting 1\n")
	})
	n.each((*testkit.Proxy).Cut)
	var answered *apiFailure
	if err := await(t, "an answer", failed); !errors.As(err, &answered) || answered.Code != 100 {
		t.Errorf("got %v, want error 100", err)
	}
	n.each((*testkit.Proxy).Heal)
}

// TestFleetMajority: with one server of three nothing can be stored, and
// publishers are told; with two it goes on.
func TestFleetMajority(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetNews}, nodes: 2})
	k := c.nodes[0].dial(t, centrifuge.NewJsonClient)
	sub := k.subscribe(t, "news:a", centrifuge.SubscriptionConfig{})
	plain := k.subscribe(t, "plain", centrifuge.SubscriptionConfig{})
	await(t, "subscribed", sub.subscribed)
	await(t, "subscribed", plain.subscribed)
	c.nodes[1].must("news:a", "before")
	next(t, "the first publication", sub.published)
	for _, s := range c.nats.Servers[:2] {
		s.Kill()
	}
	for _, n := range c.nodes {
		failsTemporarily(t, n, "news:a")
		n.must("plain", n.name)
	}
	patiently(t, "a publication without a history", func() bool { return len(plain.published) > 0 })
	if err := c.nats.Servers[0].Start(); err != nil {
		t.Fatal(err)
	}
	patiently(t, "a publication that is stored again", func() bool {
		_, err := c.nodes[1].publish(bounded(t), fleetPublish{Channel: "news:a", Data: rawJSON("after")})
		return err == nil
	})
	if got := next(t, "what is published afterwards", sub.published); got != `"after"` {
		t.Errorf("got %s", got)
	}
	undisturbed(t, k, sub, plain)
}

// TestFleetLateNATS: a node waits for NATS, says so, and begins when it is there.
func TestFleetLateNATS(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: []topic.NamespaceOptions{fleetNews}, nodes: 1, linked: 1, idle: true})
	n := c.nodes[0]
	waits := func() {
		t.Helper()
		n.start()
		eventually(t, "a node that says it is not ready", func() bool {
			status, _ := n.page("/readyz")
			return status == http.StatusServiceUnavailable
		})
		eventually(t, "a line in the log", func() bool { return strings.Contains(n.process.Output(), "the broker can't be reached") })
	}
	n.each((*testkit.Proxy).Cut)
	waits()
	if status, _ := n.page("/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d, want 200: it does not help to start it again", status)
	}
	if conn, err := testkit.Open(n.public, "/connection/websocket"); err == nil {
		conn.Close()
		t.Error("a connection was taken")
	}
	if count := strings.Count(n.process.Output(), "level=WARN") + strings.Count(n.process.Output(), "level=ERROR"); count != 1 {
		t.Errorf("%d lines of warnings and errors, want one:\n%s", count, n.process.Output())
	}
	if err := n.process.Stop(testkit.Timeout); err != nil {
		t.Errorf("told to end while it waits: %v", err)
	}
	waits()
	n.each((*testkit.Proxy).Heal)
	n.waitReady()
	n.must("news:a", "hello")
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Timeout)
	defer cancel()
	if h, err := n.history(ctx, "news:a"); err != nil || h.text() != `"hello"` {
		t.Errorf("history: %s, %v", h.text(), err)
	}
}
