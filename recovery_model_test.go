package perch_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"perch"
	"perch/topic"
)

// The model of recovery: clients on real sockets come, go, are cut off at any
// byte, read slowly, subscribe and unsubscribe, while publishers publish and
// histories expire. What each has seen is held against an oracle: never a gap, a
// duplicate, an inversion or a wrong payload; "not recovered" only where the
// history really had it no more; and in the end everybody has everything.

var modelTime = flag.Duration("model", 5*time.Second, "how long the model of recovery runs, over all its seeds")

// modelTopic is one of its topics, with the options of its namespace.
type modelTopic struct {
	name    string
	options topic.NamespaceOptions
	delta   bool
}

var modelTopics = []modelTopic{
	{"long:a", topic.NamespaceOptions{HistorySize: 100, HistoryTTL: time.Hour, ForceRecovery: true}, false},
	{"delta:a", topic.NamespaceOptions{HistorySize: 100, HistoryTTL: time.Hour, ForceRecovery: true, AllowedDeltaTypes: []string{topic.DeltaFossil}}, true},
	{"short:a", topic.NamespaceOptions{HistorySize: 7, HistoryTTL: time.Hour, ForceRecovery: true, JoinLeave: true, ForcePushJoinLeave: true}, false},
	{"brief:a", topic.NamespaceOptions{HistorySize: 100, HistoryTTL: 150 * time.Millisecond, ForceRecovery: true}, false},
	{"gone:a", topic.NamespaceOptions{HistorySize: 50, HistoryTTL: 100 * time.Millisecond, HistoryMetaTTL: 200 * time.Millisecond, ForceRecovery: true}, false},
}

const modelRecoveryLimit = 60

// recoveryModel is one run.
type recoveryModel struct {
	server *server
	// fleet, where set, takes the place of server.
	fleet  *fleetModel
	seed   uint64
	topics []modelTopic
	limit  int           // of publications that a recovery hands over
	every  time.Duration // the time between two bursts of a publisher

	mu sync.Mutex
	// published is what the oracle knows: by topic, epoch and offset.
	published map[string]map[topic.Position]modelPublication
	tops      map[string]topic.Position
	sorted    map[string][]topic.Position            // of published, at the end
	late      map[string][]time.Time                 // by the same places: when the last up to it was published
	links     map[modelStream]map[[2]uint64]struct{} // what came to a client behind what
	// seen is what clients were given under a name, and refusals what they were told
	// to be lost.
	seen      map[string]map[topic.Position]string
	refusals  []modelRefusal
	begun     []modelRefusal // where subscriptions were told to begin; since is not set
	wrong     []string
	recovered int
	received  int
}

type modelPublication struct {
	data string
	at   time.Time // before it was published
}

// modelRefusal is a recovery that failed.
type modelRefusal struct {
	name       string
	since, top topic.Position
	at         time.Time // when the client heard of it
}

func (m *recoveryModel) complain(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.wrong) < 20 {
		m.wrong = append(m.wrong, fmt.Sprintf(format, args...))
	}
}

// saw notes what a client was given; the oracle looks at it in the end, since the
// publisher may not know yet that it has published it.
func (m *recoveryModel) saw(name string, at topic.Position, data string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.received++
	before, ok := m.seen[name][at]
	if ok && before != data {
		m.wrong = append(m.wrong, fmt.Sprintf("%s: %v is %.60s to one and %.60s to another", name, at, before, data))
	}
	m.seen[name][at] = data
}

// publish makes one publication and tells the oracle.
func (m *recoveryModel) publish(ctx context.Context, name, data string, delta bool) error {
	if m.fleet != nil {
		return m.fleet.publish(ctx, name, data, delta)
	}
	at := time.Now()
	pos, err := m.server.PublishRequest(ctx, name, &topic.Publication{Data: []byte(data)}, topic.PublishRequest{Delta: delta})
	if err != nil {
		return err
	}
	m.acknowledged(name, pos, data, at)
	return nil
}

// acknowledged tells the oracle of a publication that was begun at a time.
func (m *recoveryModel) acknowledged(name string, pos topic.Position, data string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, twice := m.published[name][pos]; twice {
		m.wrong = append(m.wrong, fmt.Sprintf("%s: %v was given twice", name, pos))
	}
	m.published[name][pos] = modelPublication{data, at}
	if top := m.tops[name]; top.Epoch != pos.Epoch || top.Offset < pos.Offset {
		m.tops[name] = pos
	}
}

// address is where a client connects to.
func (m *recoveryModel) address(rng *rand.Rand) string {
	if m.fleet != nil {
		return m.fleet.address(rng)
	}
	return m.server.public
}

// fault is what happens to a client only where something else has failed.
func (m *recoveryModel) fault(format string, args ...any) {
	if m.fleet == nil || !m.fleet.fault() {
		m.complain(format, args...)
	}
}

// follows tells whether an offset may come behind where a client stands. In a
// stream those of other topics come between; whether any of this one do is seen in
// the end.
func (m *recoveryModel) follows(p *modelPlace, offset uint64) bool {
	if m.fleet == nil && *testEngine == perch.EngineMemory {
		return offset == p.at.Offset+1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := modelStream{p.name, p.at.Epoch}
	if m.links[key] == nil {
		m.links[key] = map[[2]uint64]struct{}{}
	}
	m.links[key][[2]uint64{p.at.Offset, offset}] = struct{}{}
	return offset > p.at.Offset
}

// modelStream is a topic in one of its epochs.
type modelStream struct{ name, epoch string }

// checkLinks: nothing stands between what came to a client and what came next.
func (m *recoveryModel) checkLinks() {
	for in, links := range m.links {
		order := m.sorted[in.name]
		for link := range links {
			from, to := topic.Position{Offset: link[0], Epoch: in.epoch}, topic.Position{Offset: link[1], Epoch: in.epoch}
			i, found := slices.BinarySearchFunc(order, from, comparePositions)
			if found {
				i++
			}
			if i < len(order) && comparePositions(order[i], to) < 0 {
				m.complain("%s: %v came behind %v, between them is %v %.60s", in.name, to, from, order[i], m.published[in.name][order[i]].data)
			}
		}
	}
}

func (m *recoveryModel) top(name string) topic.Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tops[name]
}

// check holds all against the oracle, when everybody has come to rest.
func (m *recoveryModel) check() {
	if m.fleet != nil {
		m.fleet.adopt()
	}
	m.sorted, m.late = map[string][]topic.Position{}, map[string][]time.Time{}
	for name, all := range m.published {
		m.sorted[name] = slices.SortedFunc(maps.Keys(all), comparePositions)
		for i, at := range m.sorted[name] {
			when := all[at].at
			if i > 0 && m.sorted[name][i-1].Epoch == at.Epoch && m.late[name][i-1].After(when) {
				when = m.late[name][i-1]
			}
			m.late[name] = append(m.late[name], when)
		}
	}
	m.checkLinks()
	for name, all := range m.seen {
		for at, data := range all {
			if p, ok := m.published[name][at]; !ok {
				m.complain("%s: %v was never published, but seen: %.60s", name, at, data)
			} else if p.data != data {
				m.complain("%s: %v is %.60s, published was %.60s", name, at, data, p.data)
			}
		}
	}
	for _, r := range m.begun {
		// A top that was not there yet hides what comes next.
		if at, ok := m.latest(r.name, r.top); ok && at.After(r.at) {
			m.complain("%s: said to stand at %v, before which something was published later", r.name, r.top)
		}
	}
	for _, r := range m.refusals {
		if why := m.unjust(r); why != "" && !m.fleet.pardon(r) {
			m.complain("%s: recovery from %v to %v refused: %s", r.name, r.since, r.top, why)
		}
	}
}

// latest is when the last of the publications of a topic was made that stand at or
// before a position, in its epoch.
func (m *recoveryModel) latest(name string, top topic.Position) (time.Time, bool) {
	i, found := slices.BinarySearchFunc(m.sorted[name], top, comparePositions)
	if !found {
		i--
	}
	if i < 0 || m.sorted[name][i].Epoch != top.Epoch {
		return time.Time{}, false
	}
	return m.late[name][i], true
}

// between are the publications of a topic behind one position and up to another, in
// their order; most of them, at the most.
func (m *recoveryModel) between(name string, since, top topic.Position, most int) []modelPublication {
	i, _ := slices.BinarySearchFunc(m.sorted[name], since, comparePositions)
	var all []modelPublication
	for ; i < len(m.sorted[name]) && len(all) < most && comparePositions(m.sorted[name][i], top) <= 0; i++ {
		if at := m.sorted[name][i]; at != since {
			all = append(all, m.published[name][at])
		}
	}
	return all
}

func comparePositions(a, b topic.Position) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Offset, b.Offset))
}

// unjust says why a recovery should have succeeded, or nothing.
func (m *recoveryModel) unjust(r modelRefusal) string {
	i := slices.IndexFunc(m.topics, func(t modelTopic) bool { return t.name == r.name })
	o := m.topics[i].options
	if r.since.Epoch != r.top.Epoch {
		if o.HistoryMetaTTL > 0 || r.since.Epoch == "" {
			return "" // forgotten, as it may be
		}
		return "the epoch has changed"
	}
	if r.top.Offset < r.since.Offset {
		return "the topic went backwards"
	}
	missed := m.between(r.name, r.since, r.top, m.limit+o.HistorySize+1)
	if len(missed) > min(o.HistorySize, m.limit) {
		return ""
	}
	if len(missed) > 0 && !missed[0].at.Add(o.HistoryTTL).After(r.at) {
		return ""
	}
	if len(missed) == 0 && o.HistoryMetaTTL > 0 {
		return "" // where it stood may be forgotten
	}
	return fmt.Sprintf("only %d were missed, none of them over", len(missed))
}

func newRecoveryModel(seed uint64, topics []modelTopic) *recoveryModel {
	m := &recoveryModel{
		seed: seed, topics: topics, limit: modelRecoveryLimit, every: 2 * time.Millisecond, tops: map[string]topic.Position{},
		published: map[string]map[topic.Position]modelPublication{}, seen: map[string]map[topic.Position]string{},
		links: map[modelStream]map[[2]uint64]struct{}{},
	}
	for _, mt := range topics {
		m.published[mt.name] = map[topic.Position]modelPublication{}
		m.seen[mt.name] = map[topic.Position]string{}
	}
	return m
}

// configure sets what the server of the model needs.
func (m *recoveryModel) configure(o *perch.Options) {
	o.Topics.RecoveryLimit = modelRecoveryLimit
	o.Topics.HistoryMetaTTL = time.Hour
	o.Topics.JoinLeaveInterval = 5 * time.Millisecond
	for _, mt := range m.topics {
		ns := mt.options
		ns.Name, _, _ = strings.Cut(mt.name, ":")
		ns.AllowSubscribeForClient = true
		o.Topics.Namespaces = append(o.Topics.Namespaces, ns)
	}
}

// runRecoveryModel lets clients and publishers do as they like for a while, then lets all of
// them come to rest, and returns what was wrong.
func runRecoveryModel(t *testing.T, seed uint64, lasts time.Duration, broker func(topic.MemoryOptions) topic.Broker) *recoveryModel {
	m := newRecoveryModel(seed, modelTopics)
	m.server = start(t, func(o *perch.Options) {
		o.Loops = 2
		m.configure(o)
		perch.SetBroker(o, broker)
	})
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	m.run(ctx, 3, 12)
	return m
}

// run returns when ctx has ended and all have come to rest.
func (m *recoveryModel) run(ctx context.Context, publishers, clients int) {
	var publishing, reading sync.WaitGroup
	for k := range publishers {
		publishing.Go(func() { m.publisher(ctx, k) })
	}
	rest := make(chan struct{})
	for k := range clients {
		reading.Go(func() { newModelClient(m, k, rest).run(ctx) })
	}
	publishing.Wait()
	if m.fleet != nil {
		m.fleet.rest()
	}
	close(rest) // what is published is known: the clients can tell when they have it
	reading.Wait()
	m.check()
}

// publisher publishes bursts of one to twenty.
func (m *recoveryModel) publisher(ctx context.Context, k int) {
	rng := rand.New(rand.NewPCG(m.seed, uint64(1000+k)))
	tick := time.NewTicker(m.every)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for range 1 + rng.IntN(20)*rng.IntN(2) {
			n++
			mt := m.topics[rng.IntN(len(m.topics))]
			data := fmt.Sprintf(`{"publisher":%d,"n":%d,"ü":"%s"}`, k, n, strings.Repeat("x", rng.IntN(60)))
			if mt.delta {
				data = fmt.Sprintf(`{"publisher":%d,"document":"%s","n":%d}`, k, strings.Repeat("the same each time ", 20), n)
			}
			if err := m.publish(context.WithoutCancel(ctx), mt.name, data, mt.delta && rng.IntN(5) > 0); err != nil {
				m.fault("publish: %v", err)
			}
		}
	}
}

// lateBroker answers about the history later, from another goroutine, and with
// a fault where there is one.
type lateBroker struct {
	topic.Broker
	fault func(f topic.Filter, pubs []*topic.Publication, at *topic.Position) []*topic.Publication
	late  bool
}

func (b *lateBroker) History(name string, f topic.Filter, done func([]*topic.Publication, topic.Position, error)) {
	b.Broker.History(name, f, func(pubs []*topic.Publication, at topic.Position, err error) {
		if b.fault != nil && err == nil {
			pubs = b.fault(f, pubs, &at)
		}
		if !b.late {
			done(pubs, at, err)
			return
		}
		time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, func() { done(pubs, at, err) })
	})
}

func late(o topic.MemoryOptions) topic.Broker {
	return &lateBroker{Broker: topic.NewMemory(o), late: true}
}

func TestRecoveryModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4}
	for i, seed := range seeds {
		var broker func(topic.MemoryOptions) topic.Broker
		if i%2 == 1 {
			broker = late
		}
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			m := runRecoveryModel(t, seed, *modelTime/time.Duration(len(seeds)), broker)
			for _, w := range m.wrong {
				t.Error(w)
			}
			t.Logf("%d received, %d recoveries, %d refused", m.received, m.recovered, len(m.refusals))
			if m.received == 0 || m.recovered == 0 || len(m.refusals) == 0 {
				t.Error("the run shows nothing")
			}
		})
	}
}

// TestRecoveryModelFindsFaults: each fault in what the history answers is found.
func TestRecoveryModelFindsFaults(t *testing.T) {
	for name, fault := range map[string]func(f topic.Filter, pubs []*topic.Publication, at *topic.Position) []*topic.Publication{
		"the first is missing": func(f topic.Filter, pubs []*topic.Publication, _ *topic.Position) []*topic.Publication {
			if f.Since != nil && len(pubs) > 1 {
				return pubs[1:]
			}
			return pubs
		},
		"one too early": func(f topic.Filter, pubs []*topic.Publication, _ *topic.Position) []*topic.Publication {
			if f.Since != nil && len(pubs) > 0 {
				return append([]*topic.Publication{{Data: []byte(`{"again":1}`), Offset: f.Since.Offset, Previous: f.Since.Offset - 1}}, pubs...)
			}
			return pubs
		},
		"the top is one too low": func(f topic.Filter, pubs []*topic.Publication, at *topic.Position) []*topic.Publication {
			if f.Since != nil && len(pubs) > 1 {
				at.Offset--
				return pubs[: len(pubs)-1 : len(pubs)-1]
			}
			return pubs
		},
		"the top is one too high": func(f topic.Filter, pubs []*topic.Publication, at *topic.Position) []*topic.Publication {
			if f.Since == nil && at.Offset > 0 {
				at.Offset++
			}
			return pubs
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := runRecoveryModel(t, 5, time.Second, func(o topic.MemoryOptions) topic.Broker {
				return &lateBroker{Broker: topic.NewMemory(o), fault: fault}
			})
			if len(m.wrong) == 0 {
				t.Error("the fault was not found")
			} else {
				t.Log(m.wrong[0])
			}
		})
	}
}
