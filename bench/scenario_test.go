package bench

import (
	"bufio"
	"bytes"
	"net"
	"sync"
	"testing"
	"time"
)

// newTopicServer is a server of the protocol that takes every command, and
// tells of each topic that a client publishes to.
func newTopicServer(t *testing.T, published func(topic string)) net.Addr {
	return scripted(t, func(_ int, c *net.TCPConn, r *bufio.Reader) {
		if upgrade(c, r) != nil {
			return
		}
		for {
			_, p, err := readClientFrame(r)
			if err != nil {
				return
			}
			for line := range splitLines(p) {
				if _, rest, ok := bytes.Cut(line, []byte(`"publish":{"channel":"`)); ok {
					topic, _, _ := bytes.Cut(rest, []byte(`"`))
					published(string(topic))
				}
				if _, err := c.Write(textFrame(`{"id":1}`)); err != nil {
					return
				}
			}
		}
	})
}

// TestMixedReachesAll: every session goes and comes back in its turn, and every
// session is published to, whatever the number of connections.
func TestMixedReachesAll(t *testing.T) {
	for _, connections := range []int{20, 21} {
		var mu sync.Mutex
		topics := map[string]bool{}
		addr := newTopicServer(t, func(topic string) {
			mu.Lock()
			defer mu.Unlock()
			topics[topic] = true
		})
		g := newTestGenerator(t, Options{Scenario: Mixed, URL: "ws://" + addr.String() + "/connection/websocket",
			Connections: connections, Rate: 1000, Duration: 600 * time.Millisecond, Warmup: -1})
		if _, err := g.run(); err != nil {
			t.Fatal(err)
		}
		stayed := 0
		for _, dials := range g.c.generation {
			if dials < 2 {
				stayed++
			}
		}
		if stayed > 0 {
			t.Errorf("%d of %d sessions were never replaced", stayed, connections)
		}
		mu.Lock()
		if delete(topics, defaultTopic); len(topics) != connections {
			t.Errorf("%d of %d sessions were published to", len(topics), connections)
		}
		mu.Unlock()
	}
}

// TestSpread: each n turns visit n places once each, far from in a row.
func TestSpread(t *testing.T) {
	for _, n := range []int{1, 2, 10, 1000, strideOne, 2 * strideOne, strideTwo, 18000} {
		seen := make([]bool, n)
		for turn := range int64(n) {
			seen[spread(3*int64(n)+turn, n)] = true
		}
		for i, ok := range seen {
			if !ok {
				t.Fatalf("place %d of %d has no turn", i, n)
			}
		}
	}
	if a, b := spread(1, 1000), spread(2, 1000); b-a == 1 {
		t.Error("in a row")
	}
}
