package perch_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"perch/topic"
)

// The model of recovery over many nodes: clients connect to a node chosen at random
// each time, publishers publish at a node chosen at random, and something fails
// meanwhile. Nothing that was acknowledged is lost or comes twice to a client that
// recovers; what was not acknowledged may be there, once.

var fleetModelTime = flag.Duration("fleetmodel", 4*time.Second, "how long the model of recovery runs over three nodes, for each kind of fault")

// fleetTopics are those of the model, each run's under names of its own. Not
// every fault leaves time for what is forgotten within milliseconds.
func fleetTopics(run string, forgetful bool) []modelTopic {
	var all []modelTopic
	for _, mt := range modelTopics {
		if ns, _, _ := strings.Cut(mt.name, ":"); ns != "gone" || forgetful {
			mt.name = ns + ":" + run
			all = append(all, mt)
		}
	}
	return all
}

func fleetNamespaces() []topic.NamespaceOptions {
	var all []topic.NamespaceOptions
	for _, mt := range modelTopics {
		ns := mt.options
		ns.Name, _, _ = strings.Cut(mt.name, ":")
		if ns.HistorySize == 100 {
			// In what a fault lasts, more is published than a history of 100 keeps.
			ns.HistorySize = 1500
		}
		all = append(all, ns)
	}
	return all
}

// fleetRetry is between two attempts of who is told to ask again.
const fleetRetry = 50 * time.Millisecond

// fleetModel is what a recoveryModel has besides, over many nodes.
type fleetModel struct {
	c *fleet
	m *recoveryModel
	// rough: something fails meanwhile; then clients and publishers may be told so.
	rough bool
	// restored is closed when nothing fails any more.
	restored chan struct{}

	mu      sync.Mutex
	rng     *rand.Rand
	keys    int
	down    map[*fleetNode]bool
	open    map[string]time.Time                // data of publications that are not known to be stored
	ends    map[string]map[string][]modelResult // the history of each topic at the end, by node
	faults  int                                 // what clients and publishers were told
	retried int
	unjust  []modelRefusal
}

type modelResult struct {
	at   topic.Position
	data string
}

func newFleetModel(c *fleet, run string, seed uint64, rough bool) *fleetModel {
	k := &fleetModel{
		c: c, m: newRecoveryModel(seed, fleetTopics(run, !rough)), rough: rough, restored: make(chan struct{}),
		rng: rand.New(rand.NewPCG(seed, 77)), down: map[*fleetNode]bool{}, open: map[string]time.Time{},
		ends: map[string]map[string][]modelResult{},
	}
	for i := range k.m.topics {
		mt := &k.m.topics[i]
		ns, _, _ := strings.Cut(mt.name, ":")
		for _, o := range fleetNamespaces() {
			if o.Name == ns {
				mt.options = o
			}
		}
	}
	k.m.fleet, k.m.limit = k, fleetRecoveryLimit
	k.m.every = 10 * time.Millisecond
	return k
}

// node is one that is not known to be down.
func (k *fleetModel) node(rng *rand.Rand) *fleetNode {
	k.mu.Lock()
	defer k.mu.Unlock()
	up := slices.DeleteFunc(slices.Clone(k.c.nodes), func(n *fleetNode) bool { return k.down[n] })
	if len(up) == 0 {
		up = k.c.nodes
	}
	if rng == nil {
		rng = k.rng
	}
	return up[rng.IntN(len(up))]
}

func (k *fleetModel) setDown(n *fleetNode, down bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down[n] = down
}

func (k *fleetModel) address(rng *rand.Rand) string { return k.node(rng).public }

func (k *fleetModel) fault() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults++
	return k.rough
}

// pardon lets a refusal pass that should not have been, where something fails;
// there must not be many.
func (k *fleetModel) pardon(r modelRefusal) bool {
	if k == nil || !k.rough || r.since.Epoch != r.top.Epoch {
		return false
	}
	k.unjust = append(k.unjust, r)
	return true
}

// publish publishes at one node, and half of what is not acknowledged once more at
// another, under the same key.
func (k *fleetModel) publish(ctx context.Context, name, data string, delta bool) error {
	p := fleetPublish{Channel: name, Data: json.RawMessage(data), Delta: delta}
	k.mu.Lock()
	if k.keys++; k.keys%2 == 0 {
		p.IdempotencyKey = fmt.Sprint(name, k.keys)
	}
	k.mu.Unlock()
	at := time.Now()
	again := time.NewTicker(fleetRetry)
	defer again.Stop()
	var err error
	for end := at.Add(fleetPatience); ; {
		bounded, cancel := context.WithTimeout(ctx, 4*time.Second)
		var pos topic.Position
		pos, err = k.node(nil).publish(bounded, p)
		cancel()
		if err == nil {
			k.m.acknowledged(name, pos, data, at)
			return nil
		}
		var answered *apiFailure
		if errors.As(err, &answered) && answered.Code != 100 && answered.Code != 111 {
			k.m.complain("publish: %v", err)
		}
		if p.IdempotencyKey == "" || !k.rough || time.Now().After(end) {
			break
		}
		k.mu.Lock()
		k.retried++
		k.mu.Unlock()
		<-again.C
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open[data] = at
	return err
}

// rest waits until nothing fails any more, and puts an end behind everything.
func (k *fleetModel) rest() {
	<-k.restored
	ctx, cancel := context.WithTimeout(context.Background(), fleetPatience)
	defer cancel()
	again := time.NewTicker(fleetRetry)
	defer again.Stop()
	for _, mt := range k.m.topics {
		for i := 0; ; i++ {
			if k.publish(ctx, mt.name, fmt.Sprintf(`{"publisher":-1,"n":%d}`, i), false) == nil {
				break
			}
			if ctx.Err() != nil {
				k.m.complain("%s: nothing can be published after all is whole again", mt.name)
				break
			}
		}
		if mt.options.HistoryTTL < time.Minute {
			continue
		}
		k.ends[mt.name] = map[string][]modelResult{}
		for _, n := range k.c.nodes {
			h, err := n.history(ctx, mt.name)
			for err != nil && strings.HasPrefix(err.Error(), "100 ") && ctx.Err() == nil {
				// For a moment after a fault: whoever asks may ask again.
				<-again.C
				h, err = n.history(ctx, mt.name)
			}
			if err != nil {
				k.m.complain("%s: history of %s: %v", n.name, mt.name, err)
				continue
			}
			for _, p := range h.Publications {
				at := topic.Position{Offset: p.Offset, Epoch: h.Epoch}
				k.ends[mt.name][n.name] = append(k.ends[mt.name][n.name], modelResult{at, string(p.Data)})
				k.m.saw(mt.name, at, string(p.Data))
			}
		}
	}
}

// adopt takes what was stored without having been acknowledged, and holds the
// histories against all that there is.
func (k *fleetModel) adopt() {
	m := k.m
	for name, all := range m.seen {
		once := map[string]topic.Position{}
		for at, data := range all {
			if before, twice := once[data]; twice {
				m.complain("%s: %.60s came at %v and at %v", name, data, before, at)
			}
			once[data] = at
			began, open := k.open[data]
			if _, known := m.published[name][at]; !known && open {
				m.published[name][at] = modelPublication{data, began}
			}
		}
	}
	for _, mt := range m.topics {
		all := m.published[mt.name]
		var order []topic.Position
		for at := range all {
			order = append(order, at)
		}
		slices.SortFunc(order, comparePositions)
		k.checkOrder(mt.name, order)
		for node, end := range k.ends[mt.name] {
			if len(end) > len(order) {
				m.complain("%s: %s has a history of %d, published were %d", mt.name, node, len(end), len(order))
				continue
			}
			if len(end) < min(len(order), mt.options.HistorySize) {
				m.complain("%s: %s has a history of %d, published were %d", mt.name, node, len(end), len(order))
			}
			for i, want := range order[len(order)-len(end):] {
				if got := end[i]; got.at != want || got.data != all[want].data {
					m.complain("%s: the history of %s has %v %.60s in the place of %v %.60s", mt.name, node, got.at, got.data, want, all[want].data)
					break
				}
			}
		}
	}
}

// checkOrder: what a publisher was told to be stored stands in the order in which
// it was published.
func (k *fleetModel) checkOrder(name string, order []topic.Position) {
	last := map[int]int{}
	for _, at := range order {
		p := k.m.published[name][at]
		if _, open := k.open[p.data]; open {
			continue
		}
		var d struct{ Publisher, N int }
		if err := json.Unmarshal([]byte(p.data), &d); err != nil {
			k.m.complain("%v", err)
			return
		}
		if d.N <= last[d.Publisher] && d.Publisher >= 0 {
			k.m.complain("%s: %d of publisher %d is stored behind %d", name, d.N, d.Publisher, last[d.Publisher])
		}
		last[d.Publisher] = d.N
	}
}

// report fails the test for what was wrong.
func (k *fleetModel) report(t *testing.T) {
	t.Helper()
	m := k.m
	for _, w := range m.wrong {
		t.Error(w)
	}
	published := 0
	for _, all := range m.published {
		published += len(all)
	}
	t.Logf("%d published (%d not acknowledged, %d tried again), %d received, %d recoveries, %d refused, %d of them unjustly, %d faults met",
		published, len(k.open), k.retried, m.received, m.recovered, len(m.refusals), len(k.unjust), k.faults)
	for i, r := range k.unjust {
		if i < 5 {
			t.Logf("unjust: %s from %v to %v: %s", r.name, r.since, r.top, m.unjust(r))
		}
	}
	if m.received == 0 || m.recovered == 0 {
		t.Error("the run shows nothing")
	}
	if len(k.unjust) > 20+m.recovered/10 {
		t.Errorf("%d recoveries of %d were refused without a reason", len(k.unjust), m.recovered+len(m.refusals))
	}
}

// run lets all do as they like while disturb does what it does, and returns when
// they have come to rest.
func (k *fleetModel) run(disturb func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer close(k.restored)
		defer cancel()
		disturb(ctx)
	}()
	k.m.run(ctx, 4, 16)
}

// TestFleetModel: while nothing fails, nobody is told that anything has.
func TestFleetModel(t *testing.T) {
	c := startFleet(t, fleetOptions{namespaces: fleetNamespaces()})
	k := newFleetModel(c, "still", 1, false)
	k.run(func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-time.After(*fleetModelTime):
		}
	})
	k.report(t)
	if len(k.m.refusals) == 0 {
		t.Error("the run shows nothing of what is gone")
	}
}
