package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// deliveries observes the stamped publications that come in.
func (g *generator) deliveries() {
	g.onReply = func(_ int, p []byte, at int64) {
		if due, ok := stamp(p); ok {
			g.m.observe(due, at)
			g.delivered = at
			return
		}
		if why, bad := g.refused(p); bad {
			g.m.fail(why)
		}
	}
}

// publisher is a session that is there, or -1.
func (g *generator) publisher() int {
	for i := range g.peers {
		if g.peers[i].ready {
			return i
		}
	}
	return -1
}

// publication is the frame of one.
func (g *generator) publication(dst []byte, topic string, due int64) []byte {
	data := stamped(due, g.o.Size)
	if !g.lines {
		return appendFrame(dst, opText, []byte(data))
	}
	g.commands++
	return appendFrame(dst, opText, publish(nil, g.commands+10, topic, data))
}

// single sends one publication, if the connection takes it.
func (g *generator) single(i int, topic string, due int64) {
	if g.c.full(i) {
		g.m.miss(1)
		return
	}
	g.c.send(i, g.publication(nil, topic, due))
}

// drained is how long after the last delivery nothing more is expected, and
// drainLimit how long that is waited for.
const (
	drained    = 200 * time.Millisecond
	drainLimit = 10 * time.Second
)

// outstanding is how many deliveries are to come yet, where one process has
// made all the publications and gets them all.
func (g *generator) outstanding() int64 {
	if g.whole.Processes > 1 {
		return 0
	}
	return g.m.owed*deliveriesOf(g.o.Scenario, g.ready) - g.m.count
}

// deliveriesOf is how many deliveries a publication makes.
func deliveriesOf(scenario string, sessions int) int64 {
	switch scenario {
	case Fanout:
		return int64(sessions)
	case Push:
		return 1
	}
	return 0 // of a mixture nobody can tell
}

// drain waits for the deliveries under way.
func (g *generator) drain() error {
	limit := now() + int64(g.answerLimit)
	for t := now(); t < limit && (t-g.delivered < int64(drained) || g.outstanding() > 0); t = now() {
		if err := g.loop(t+int64(20*time.Millisecond), nil); err != nil {
			return err
		}
	}
	return nil
}

// fanout publishes to all subscribers of one topic; where the server echoes, a
// message is meant to go to all. One process publishes.
func (g *generator) fanout() error {
	if err := g.open(g.o.Connections); err != nil {
		return err
	}
	g.deliveries()
	p := pacer{start: now(), rate: g.o.Rate}
	var frames []byte
	next := func(t int64) int64 {
		for g.index == 0 {
			due, ok := p.take(t)
			if !ok {
				return due
			}
			i := g.publisher()
			if i < 0 {
				break
			}
			if g.c.full(i) {
				g.m.miss(int64(g.o.Burst))
				continue
			}
			frames = frames[:0]
			for range g.o.Burst {
				frames = g.publication(frames, g.topic(g.number(i)), due)
			}
			g.m.sent(due, t)
			g.m.owe(due, int64(g.o.Burst))
			g.c.send(i, frames)
		}
		return t + int64(time.Second)
	}
	return g.publishing(next)
}

// publishing is measure for what is delivered: what is under way at its end is
// waited for.
func (g *generator) publishing(next func(int64) int64) error {
	if err := g.loop(now()+int64(g.o.Warmup), next); err != nil {
		return err
	}
	if err := g.drain(); err != nil {
		return err
	}
	if err := g.begin(); err != nil {
		return err
	}
	if err := g.loop(g.began+int64(g.o.Duration), next); err != nil {
		return err
	}
	g.delivered = now()
	if err := g.drain(); err != nil {
		return err
	}
	return g.end()
}

// The strides of spread: primes that few counts are a multiple of.
const (
	strideOne = 7919
	strideTwo = 7907
)

// spread is the place, of n, that a turn goes to: all in n turns, and for most n
// far from the one before, whose connection the server took at about the same
// time.
func spread(turn int64, n int) int {
	stride := int64(strideOne)
	if n%strideOne == 0 {
		stride = strideTwo // with a common divisor some would never be visited
	}
	return int(turn % int64(n) * stride % int64(n))
}

// mixed is a day's mixture: of ten events nine are publications to one
// session and one is a session that goes and comes back; and once a second there
// is a publication to all.
func (g *generator) mixed() error {
	if err := g.open(g.o.Connections); err != nil {
		return err
	}
	g.deliveries()
	p := pacer{start: now(), rate: g.o.Rate}
	all := pacer{start: now(), rate: 1}
	var failure error
	next := func(t int64) int64 {
		for failure == nil {
			due, ok := all.take(t)
			if !ok || g.index > 0 {
				break
			}
			if i := g.publisher(); i >= 0 {
				g.single(i, defaultTopic, due)
			}
		}
		for failure == nil {
			due, ok := p.take(t)
			if !ok {
				return min(due, all.due())
			}
			// Each kind goes its own round: with one for both, a multiple of ten
			// connections has its replaced among a tenth of the places.
			replaced := p.n / 10
			g.m.sent(due, t)
			if p.n%10 == 0 {
				failure = g.replace(spread(replaced, len(g.peers)), due)
				continue
			}
			if i := spread(p.n-replaced, len(g.peers)); g.peers[i].ready {
				g.single(i, g.topic(g.number(i)), due)
			}
		}
		return t + int64(time.Second)
	}
	if err := g.publishing(next); err != nil {
		return err
	}
	return failure
}

const (
	// apiCalls are under way at once.
	apiCalls = 8
	// apiQueue is what may wait for them; a server whose API is slower than the rate
	// fails by what does not fit.
	apiQueue   = 4096
	apiTimeout = 10 * time.Second
)

// backend publishes by the server API, off the generator's goroutine.
type backend struct {
	url, key string
	client   *http.Client
	queue    chan publishing
	ctx      context.Context // ends with it
	cancel   context.CancelFunc
	workers  sync.WaitGroup
	mu       sync.Mutex
	failed   int64
	first    string
}

type publishing struct{ topic, data string }

func newBackend(ctx context.Context, admin, key string) *backend {
	b := &backend{
		url: strings.TrimSuffix(admin, "/") + "/api/publish", key: key,
		client: &http.Client{Timeout: apiTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: apiCalls}},
		queue:  make(chan publishing, apiQueue),
	}
	b.ctx, b.cancel = context.WithCancel(ctx)
	for range apiCalls {
		b.workers.Go(func() {
			for p := range b.queue {
				if err := b.publish(p); err != nil {
					b.fail(err.Error())
				}
			}
		})
	}
	return b
}

func (b *backend) fail(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed++
	def(&b.first, why)
}

// stop ends what is still under way or waits, which has failed then, and counts
// what failed into m. An API that hangs must not hold the run up.
func (b *backend) stop(m *meter) {
	b.cancel()
	close(b.queue)
	b.workers.Wait()
	b.client.CloseIdleConnections()
	m.failed += b.failed
	def(&m.first, b.first)
}

func (b *backend) publish(p publishing) error {
	body, err := json.Marshal(map[string]any{"channel": p.topic, "data": json.RawMessage(p.data)})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(b.ctx, http.MethodPost, b.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", b.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := b.client.Do(req)
	if err != nil {
		if b.ctx.Err() != nil {
			return errors.New("publish: not answered")
		}
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Error *struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("publish: %s", resp.Status)
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if answer.Error != nil {
		return fmt.Errorf("publish: error %d %s", answer.Error.Code, answer.Error.Message)
	}
	return nil
}

// push publishes to single sessions by the server API.
func (g *generator) push() error {
	if err := g.open(g.o.Connections); err != nil {
		return err
	}
	b := newBackend(g.ctx, g.o.Admin, g.o.APIKey)
	stopped := false
	defer func() {
		if !stopped {
			b.stop(g.m)
		}
	}()
	g.deliveries()
	p := pacer{start: now(), rate: g.o.Rate}
	next := func(t int64) int64 {
		for {
			due, ok := p.take(t)
			if !ok {
				return due
			}
			g.m.sent(due, t)
			i := spread(p.n, len(g.peers))
			select {
			case b.queue <- publishing{g.topic(g.number(i)), stamped(due, g.o.Size)}:
				g.m.owe(due, 1)
			default:
				g.m.fail("the server API is slower than the rate")
			}
		}
	}
	if err := g.publishing(next); err != nil {
		return err
	}
	stopped = true
	b.stop(g.m)
	return nil
}
