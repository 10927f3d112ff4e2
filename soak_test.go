package perch_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"perch"
	"perch/handler"
	"perch/session"
	"perch/topic"
)

// The soak: thousands of sessions that stay, beside those that come and go, are
// cut off at any byte, read slowly, send garbage, get stuck in a method; loops are
// kept busy and histories shed. Whoever stays gets every publication that was
// acknowledged, once and in order; whoever comes back gets what it missed, or is
// told (the model of recovery). In the end nothing is left of all that.

var soakTime = flag.Duration("soak", 3*time.Second, "how long the soak runs")

const (
	soakFew   = 800  // sessions that stay, in a run of seconds
	soakMany  = 4500 // in a longer one; with those that come and go they are 5,000
	soakLong  = 20 * time.Second
	soakNames = 20 // topics of those who stay
	// What may be on the heap in the end that was not there before: histories up to
	// their bound, and what is kept for the next ones. A session costs 700 bytes
	// and more, and a run of a minute has tens of thousands.
	soakHistory = 2 << 20
	soakHeap    = soakHistory + 3<<20
)

// soak is one run.
type soak struct {
	t      *testing.T
	server *server
	stay   *stayers
	token  string

	mu      sync.Mutex
	release chan struct{} // closed where methods that are stuck may go on
	wrong   []string

	visits, published, refused atomic.Int64
}

func (k *soak) complain(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.wrong) < 20 {
		k.wrong = append(k.wrong, fmt.Sprintf(format, args...))
	}
}

// until runs f at random times, about every so often, until ctx ends.
func (k *soak) until(ctx context.Context, seed uint64, every time.Duration, f func(rng *rand.Rand)) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(rng.Int64N(int64(2 * every)))):
			f(rng)
		}
	}
}

func (k *soak) options(o *perch.Options, m *recoveryModel) {
	o.Loops = 2
	o.Heartbeat.Interval, o.Heartbeat.Timeout, o.Heartbeat.Misses = 5*time.Second, 4*time.Second, 3
	o.Limits.HandshakeTimeout, o.Limits.ConnectTimeout = time.Second, time.Second
	o.Limits.PendingBytes, o.WebSocket.MessageSize = 64<<10, 16<<10
	o.Pool.Workers = 16
	o.Topics.HistoryBytes, o.Topics.HistoryTopicBytes = soakHistory, soakHistory/4
	o.Drain.Budget = 5 * time.Second
	o.Logger = nil
	o.Log.Level = "error"
	m.configure(o)
	o.Topics.Namespaces = append(o.Topics.Namespaces,
		topic.NamespaceOptions{Name: "stay", HistorySize: 50, HistoryTTL: time.Hour, ForceRecovery: true, AllowSubscribeForClient: true},
		topic.NamespaceOptions{Name: "fill", HistorySize: 50, HistoryTTL: 10 * time.Second, AllowSubscribeForClient: true, AllowPublishForClient: true,
			Presence: true, JoinLeave: true, AllowPresenceForSubscriber: true, ForcePushJoinLeave: true},
	)
}

// stuck is a method that returns when it is let go, or nobody waits any more.
func (k *soak) stuck(ctx context.Context, r handler.RPCRequest) ([]byte, error) {
	k.mu.Lock()
	release := k.release
	k.mu.Unlock()
	select {
	case <-release:
		return r.Data, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// letGo ends the methods that are stuck.
func (k *soak) letGo() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.release)
	k.release = make(chan struct{})
}

// faults are what happens to the server itself.
func (k *soak) faults(ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() {
		k.until(ctx, 11, 100*time.Millisecond, func(*rand.Rand) { k.letGo() })
	})
	wg.Go(func() { // a loop is busy
		k.until(ctx, 12, 100*time.Millisecond, func(rng *rand.Rand) {
			if l := k.server.Net().Loop(rng.IntN(2)); l != nil {
				busy := time.Duration(rng.IntN(20)) * time.Millisecond
				l.Post(0, 0, func(*session.Session) {
					for from := time.Now(); time.Since(from) < busy; {
					}
				})
			}
		})
	})
	wg.Go(func() { // histories are shed: what is kept of these ends first
		k.until(ctx, 13, 5*time.Millisecond, func(rng *rand.Rand) {
			name := fmt.Sprintf("fill:%d", rng.IntN(3000))
			if err := k.server.Publish(ctx, name, []byte(`"`+strings.Repeat("f", rng.IntN(16<<10))+`"`)); err != nil && ctx.Err() == nil {
				k.refused.Add(1)
			}
		})
	})
	wg.Go(func() { // what is pushed at those who don't read
		data := []byte(`"` + strings.Repeat("p", 12<<10) + `"`)
		k.until(ctx, 14, 5*time.Millisecond, func(*rand.Rand) {
			for range 4 {
				_ = k.server.Publish(ctx, "flood", data)
			}
		})
	})
	wg.Go(func() { // the operator ends sessions
		k.until(ctx, 15, 200*time.Millisecond, func(*rand.Rand) {
			for _, id := range k.server.SessionRegistry().ByUser("visitor", nil) {
				if l := k.server.Net().Loop(id.Loop()); l != nil && id.Slot()%8 == 0 {
					l.PostClose(id, session.ReasonForceReconnect, 3011, "force reconnect")
				}
			}
		})
	})
}

// traces are what a run could leave behind.
type traces struct {
	open, sessions, http, registry, subscriptions, topics, timers int
	pending, inbox, putOff                                        int64
	depth, busy                                                   int
}

func (k *soak) traces() traces {
	n, t, p := k.server.NetStats(), k.server.TopicCounts(), k.server.PoolStats()
	out := traces{
		open: n.Open, sessions: n.Sessions, http: n.HTTP, registry: k.server.SessionRegistry().Count(),
		subscriptions: t.Subscriptions, topics: t.Topics, pending: n.PendingBytes, depth: p.Depth, busy: p.Workers - p.Idle,
	}
	for _, l := range n.Loops {
		out.timers += int(l.Timers)
		out.inbox += l.InboxBytes
		out.putOff += l.PutOffBytes
	}
	return out
}

// wants waits until the server has come to rest with n sessions, each with its
// subscription.
func (k *soak) wants(n, topics int) {
	k.t.Helper()
	want := traces{open: n, sessions: n, registry: n, subscriptions: n, topics: topics, timers: n}
	var got traces
	end := time.Now().Add(soakPatience)
	for got = k.traces(); got != want && time.Now().Before(end); got = k.traces() {
		k.stay.hold(20 * time.Millisecond)
	}
	if got != want {
		k.t.Fatalf("left behind:\n     %+v\nwant %+v", got, want)
	}
}

const soakPatience = 20 * time.Second

// kept is what the process holds.
type kept struct{ heap, descriptors, goroutines int }

// holds counts, when collections have left what lives.
func (k *soak) holds() kept {
	k.t.Helper()
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		k.t.Fatal(err)
	}
	return kept{heap: int(m.HeapAlloc), descriptors: len(entries), goroutines: runtime.NumGoroutine()}
}

func TestSoak(t *testing.T) {
	n := soakFew
	if *soakTime >= soakLong {
		n = soakMany
	}
	k := &soak{t: t, release: make(chan struct{}), token: token("visitor", 24*time.Hour)}
	model := newRecoveryModel(1, modelTopics[:3]) // those whose histories outlive the run
	model.every = 50 * time.Millisecond
	k.server = start(t, func(o *perch.Options) {
		k.options(o, model)
		o.Engine = perch.EngineMemory // it counts offsets
	})
	model.server = k.server
	k.server.HandleRPC("echo", func(_ context.Context, r handler.RPCRequest) ([]byte, error) { return r.Data, nil })
	k.server.HandleRPC("stuck", k.stuck)
	k.server.HandleSend(func(context.Context, handler.SendRequest) error { return nil })

	// What is made once, and kept, is made before: the tables grow to their size.
	k.stay = newStayers(k, n)
	k.visit(rand.New(rand.NewPCG(0, 0)))
	k.stay.close()
	k.wants(0, 0)
	before := k.holds()

	k.stay = newStayers(k, n)
	ctx, cancel := context.WithTimeout(t.Context(), *soakTime)
	defer cancel()
	var running, publishing sync.WaitGroup
	k.faults(ctx, &running)
	for i := range soakVisitors {
		running.Go(func() { k.until(ctx, uint64(100+i), 5*time.Millisecond, k.visit) })
	}
	running.Go(func() { model.run(ctx, 1, 24) })
	for i := range soakNames {
		publishing.Go(func() { k.publisher(ctx, i) })
	}
	k.stay.follow(ctx)
	publishing.Wait()
	// Those who stay are followed until all is over, or they would miss their pings.
	ended := make(chan struct{})
	go func() {
		running.Wait()
		k.letGo()
		close(ended)
	}()
	k.stay.complete(ended)
	k.wants(n, soakNames)
	k.stay.close()
	k.wants(0, 0)

	received, recovered, refusedRecoveries := model.received, model.recovered, len(model.refusals)
	k.wrong = append(k.wrong, model.wrong...)
	for _, w := range k.wrong {
		t.Error(w)
	}
	*model = recoveryModel{}
	after := k.holds()
	st := k.server.NetStats()
	t.Logf("%d who stayed took %d publications each of %d; %d visits; %d accepted; the model: %d received, %d recovered, %d refused; %v",
		n, k.published.Load()/soakNames, k.published.Load(), k.visits.Load(), st.Accepted, received, recovered, refusedRecoveries, st.Closes)
	t.Logf("before %+v, after %+v, histories %d", before, after, k.server.TopicCounts().History.Bytes)
	if k.published.Load() == 0 || k.visits.Load() == 0 || received == 0 || recovered == 0 {
		t.Error("the run shows nothing")
	}
	if after.heap > before.heap+soakHeap {
		t.Errorf("%d bytes more on the heap than before", after.heap-before.heap)
	}
	// The pool keeps its workers, and the server a few descriptors for what is idle.
	if after.goroutines > before.goroutines+16+4 {
		t.Errorf("%d goroutines more than before", after.goroutines-before.goroutines)
	}
	if after.descriptors > before.descriptors+4 {
		t.Errorf("%d descriptors more than before", after.descriptors-before.descriptors)
	}
	for _, l := range st.Loops {
		if l.Panics > 0 || l.MostWork > turnWork || l.MostPosts > turnPosts {
			t.Errorf("%+v", l)
		}
	}
}

// publisher publishes numbers to a topic, each when the one before has been
// acknowledged, some over the server API.
func (k *soak) publisher(ctx context.Context, i int) {
	name := stayTopic(i)
	at := topic.Position{}
	k.until(ctx, uint64(1000+i), 20*time.Millisecond, func(*rand.Rand) {
		number := fmt.Sprint(at.Offset + 1)
		pos, err := k.server.PublishRequest(context.WithoutCancel(ctx), name, &topic.Publication{Data: []byte(number)}, topic.PublishRequest{})
		if err != nil {
			k.complain("%s: publication %s: %v", name, number, err)
			return
		}
		if pos.Offset != at.Offset+1 || at.Epoch != "" && pos.Epoch != at.Epoch {
			k.complain("%s: acknowledged at %v behind %v", name, pos, at)
		}
		at = pos
		k.published.Add(1)
		k.stay.acknowledged[i].Store(pos.Offset)
	})
}
