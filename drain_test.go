package perch_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"perch"
	"perch/handler"
	"perch/internal/testkit"
	"perch/topic"
)

// refused tells whether the kernel resets who connects.
func refused(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

func logged(s *server, text string) bool { return strings.Contains(s.log.String(), text) }

// TestDrainDelay: through the delay the server says that it is not ready, and
// serves all the same.
func TestDrainDelay(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo, o.Drain.Delay = true, time.Hour })
	old := s.session(t, "alice")
	if status, _ := get(t, "http://"+s.admin+"/readyz"); status != http.StatusOK {
		t.Fatalf("readyz: %d", status)
	}
	s.cancel()
	eventually(t, "readyz says no", func() bool {
		status, body := get(t, "http://"+s.admin+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, `"draining"`)
	})
	next := s.session(t, "bob")
	for _, p := range []*peer{old, next} {
		p.send(testkit.SubscribeCommand(2, "news"))
		p.reply(2)
	}
	s.api(t, "publish", `{"channel":"news","data":1}`)
	// Abort is what a second signal does: the delay does not hold it.
	s.Abort()
	<-s.done
	if !errors.Is(s.err, perch.ErrAborted) {
		t.Errorf("Run: %v", s.err)
	}
	s.err = nil
}

// TestDrainRefuses: while sessions are still being closed, the kernel resets
// who connects, the port can be taken by another process, and the admin port
// answers.
func TestDrainRefuses(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Drain.Budget = time.Minute })
	entered, release := make(chan struct{}), make(chan struct{})
	s.HandleRPC("hold", func(ctx context.Context, _ handler.RPCRequest) ([]byte, error) {
		close(entered)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return []byte("1"), nil
	})
	p := s.session(t, "alice")
	p.send(`{"id":2,"rpc":{"method":"hold"}}`)
	await(t, "the call", entered)
	s.cancel()
	eventually(t, "the kernel refuses connections", func() bool { return refused(s.public) })
	l, err := net.Listen("tcp", s.public)
	if err != nil {
		t.Errorf("the port is still taken: %v", err)
	} else {
		l.Close()
	}
	if status, _ := get(t, "http://"+s.admin+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("readyz: %d", status)
	}
	close(release)
	// The call is answered, then the session is sent away.
	p.reply(2)
	p.closes(3001)
	await(t, "the end", s.done)
}

// TestDrainAnswers: what was accepted before the end is answered: calls, sends,
// publications of clients and of the server API that the broker still has.
func TestDrainAnswers(t *testing.T) {
	broker := &heldBroker{arrived: make(chan string, 8), release: make(chan struct{})}
	s := start(t, func(o *perch.Options) {
		o.Drain.Budget = time.Minute
		perch.SetBroker(o, func(m topic.MemoryOptions) topic.Broker {
			broker.Broker = topic.NewMemory(m)
			return broker
		})
	})
	sent := make(chan struct{})
	entered := make(chan struct{}, 8)
	s.HandleSend(func(context.Context, handler.SendRequest) error {
		entered <- struct{}{}
		<-broker.release
		close(sent)
		return nil
	})
	s.HandleRPC("slow", func(context.Context, handler.RPCRequest) ([]byte, error) {
		entered <- struct{}{}
		<-broker.release
		return []byte(`"done"`), nil
	})
	sub := s.session(t, "sub")
	sub.send(testkit.SubscribeCommand(2, "held-a"), testkit.SubscribeCommand(3, "free"))
	sub.reply(2)
	sub.reply(3)
	caller, sender, publisher := s.session(t, "caller"), s.session(t, "sender"), s.session(t, "publisher")
	caller.send(`{"id":2,"rpc":{"method":"slow"}}`, testkit.PublishCommand(3, "free", `"behind"`))
	sender.send(`{"send":{"data":1}}`)
	publisher.send(testkit.PublishCommand(2, "held-a", `"client"`))
	api := make(chan string, 1)
	go func() { api <- s.apiAnswer("publish", `{"channel":"held-a","data":"api"}`) }()
	for range 2 {
		await(t, "a method at work", entered)
		await(t, "a publication with the broker", broker.arrived)
	}
	s.cancel()
	eventually(t, "the kernel refuses connections", func() bool { return refused(s.public) })
	close(broker.release)

	caller.reply(2)
	caller.reply(3) // it waited behind the call
	caller.closes(3001)
	publisher.reply(2)
	publisher.closes(3001)
	await(t, "the message's end", sent)
	sender.closes(3001)
	if answer := await(t, "the answer of the API", api); !strings.Contains(answer, `"result"`) {
		t.Errorf("api: %s", answer)
	}
	if code, _, err := sub.Closed(); err != nil || code != 3001 {
		t.Errorf("subscriber: %d %v", code, err)
	}
	await(t, "the end", s.done)
	if s.err != nil {
		t.Errorf("Run: %v", s.err)
	}
}

// apiAnswer is api for a goroutine that must not end the test.
func (s *server) apiAnswer(method, body string) string {
	req, err := http.NewRequest(http.MethodPost, "http://"+s.admin+"/api/"+method, strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("X-API-Key", s.apiKey)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testkit.Timeout}).Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var b strings.Builder
	_ = resp.Write(&b)
	return b.String()
}

// heldBroker keeps publications to topics "held…" until release is closed.
type heldBroker struct {
	topic.Broker
	arrived chan string
	release chan struct{}
}

func (b *heldBroker) Publish(name string, p *topic.Publication, o topic.PublishOptions, done func(topic.Position, error)) {
	if !strings.HasPrefix(name, "held") {
		b.Broker.Publish(name, p, o, done)
		return
	}
	go func() {
		b.arrived <- name
		<-b.release
		b.Broker.Publish(name, p, o, done)
	}()
}

// TestDrainLosesNothing: every publication that was acknowledged before the
// drain reaches every subscriber before its close frame, however much of it
// still waits; and what comes while the waves go is a row without a gap.
func TestDrainLosesNothing(t *testing.T) {
	t.Parallel()
	const subscribers, before = 40, 200
	s := start(t, func(o *perch.Options) {
		o.Drain.Budget, o.Drain.Rate = 20*time.Second, 20 // two seconds for all
		o.Limits.PendingBytes = 16 << 20
	})
	blob := strings.Repeat("x", 4<<10)
	var peers []*peer
	for i := range subscribers {
		p := s.session(t, fmt.Sprint("sub", i))
		p.send(testkit.SubscribeCommand(2, "news"))
		p.reply(2)
		peers = append(peers, p)
	}
	publish := func(n int) error {
		return s.Publish(t.Context(), "news", fmt.Appendf(nil, `{"n":%d,"x":"%s"}`, n, blob))
	}
	// Nobody reads yet, so that most of it waits on the server.
	for n := range before {
		if err := publish(n); err != nil {
			t.Fatal(err)
		}
	}
	s.cancel()
	eventually(t, "the drain has begun", func() bool { return logged(s, "msg=draining") })
	var all sync.WaitGroup
	acked := before
	all.Go(func() {
		for ; publish(acked) == nil && acked < before+400; acked++ {
			select {
			case <-s.done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	counts := make([]int, len(peers))
	for i, p := range peers {
		all.Go(func() {
			want := 0
			for {
				msg, err := p.Message()
				var end *testkit.CloseError
				if errors.As(err, &end) {
					counts[i] = want
					if end.Code != 3001 {
						t.Errorf("subscriber %d: close %d", i, end.Code)
					}
					return
				}
				if err != nil {
					t.Errorf("subscriber %d after %d: %v", i, want, err)
					return
				}
				for line := range strings.Lines(string(msg)) {
					if !strings.Contains(line, fmt.Sprintf(`{"n":%d,`, want)) {
						t.Errorf("subscriber %d: got %.60s, want publication %d", i, line, want)
						return
					}
					want++
				}
			}
		})
	}
	await(t, "the end", s.done)
	all.Wait()
	different := map[int]bool{}
	for i, n := range counts {
		if n < before {
			t.Errorf("subscriber %d got %d of the %d that were acknowledged before the drain", i, n, before)
		}
		if n > acked+1 {
			t.Errorf("subscriber %d got %d, only %d were acknowledged", i, n, acked)
		}
		different[n] = true
	}
	// They went one after another, not all at once.
	if len(different) < 5 {
		t.Errorf("the subscribers were closed at %d moments: %v", len(different), counts)
	}
}

// TestDrainStuck: methods that never return, peers that say nothing, half a
// request head, a body that does not come: none of it holds the server beyond
// its budget.
func TestDrainStuck(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Drain.Budget, o.Pool.Workers, o.Limits.AcceptSilent = 2*time.Second, 4, true
	})
	entered, release := make(chan struct{}, 64), make(chan struct{})
	defer close(release)
	s.HandleRPC("stuck", func(context.Context, handler.RPCRequest) ([]byte, error) {
		entered <- struct{}{}
		<-release // its context is nothing to it
		return nil, nil
	})
	var peers []*peer
	for i := range 8 {
		p := s.session(t, fmt.Sprint("user", i))
		p.send(`{"id":2,"rpc":{"method":"stuck"}}`)
		peers = append(peers, p)
	}
	await(t, "a stuck method", entered)
	for _, text := range []string{
		"", "GET /connection/websocket HTTP/1.1\r\nHost: x\r\n", "POST /v1/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx",
	} {
		w, err := testkit.Dial(s.public)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Reset() })
		if err := w.Send([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	s.cancel()
	for _, p := range peers {
		p.closes(3001)
	}
	await(t, "the end", s.done)
	if s.err != nil {
		t.Errorf("Run: %v", s.err)
	}
	// What the drain says of itself: the budget, and a moment for the loops to end.
	if !logged(s, "forced=8") {
		t.Errorf("the log does not say that 8 sessions were forced")
	}
	if !logged(s, "methods are still at work") {
		t.Error("the log does not say that methods are at work")
	}
}

// TestDrainStreams: event streams are told, too.
func TestDrainStreams(t *testing.T) {
	s := start(t, uniTopics)
	var readers []*eventReader
	for range 5 {
		_, r := s.stream(t, "token="+uniToken("news"))
		readers = append(readers, r)
	}
	s.cancel()
	for _, r := range readers {
		for {
			p, err := r.next()
			if err != nil {
				t.Fatalf("no disconnect: %v", err)
			}
			if p.Disconnect != nil {
				if p.Disconnect.Code != 3001 {
					t.Errorf("disconnect %+v", p.Disconnect)
				}
				break
			}
		}
	}
}
