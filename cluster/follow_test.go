package cluster

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"perch/internal/testkit"
	"perch/topic"
)

// natsAgain starts a server that can be started again: on a port and a directory
// of its own.
func natsAgain(t testing.TB, port int, dir string) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true, MaxPayload: maxPayload,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s
}

func portOf(t testing.TB, s *server.Server) int {
	t.Helper()
	return s.Addr().(*net.TCPAddr).Port
}

// TestRepair: what does not come is read, each once and in its order.
func TestRepair(t *testing.T) {
	a, b := pair(t, news)
	a.must("news:x", "1")
	b.got.wait(t, "news:x", 1)
	s := b.streamFor("news:x")
	if err := s.sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	if err := b.link.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	a.must("news:x", "2")
	a.must("news:y", "y")
	a.must("news:x", "3")
	s.mu.Lock()
	s.sub = nil
	s.mu.Unlock()
	sub, err := b.link.nc.Subscribe(s.deliver+"*", s.take)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.link.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.sub = sub
	s.mu.Unlock()
	a.must("news:x", "4") // shows the gap
	all := b.got.wait(t, "news:x", 4)
	if data(all) != "1 2 3 4" {
		t.Errorf("delivered: %s", data(all))
	}
	chained(t, all)
	if n := b.Counts().Repaired; n != 3 {
		t.Errorf("%d were read", n)
	}
}

// TestRepairSees that more was published than is kept: subscribers are not told
// that they have all.
func TestRepairSees(t *testing.T) {
	a, b := pair(t, news)
	first := a.must("news:x", "0")
	b.got.wait(t, "news:x", 1)
	s := b.streamFor("news:x")
	s.mu.Lock() // what comes waits
	for i := range 12 {
		a.must("news:x", number("p", i))
	}
	if !s.repairLocked(first.Offset + 12) {
		t.Error("not repaired")
	}
	s.mu.Unlock()
	all := b.got.wait(t, "news:x", 7)
	if got := all[1]; got.prev <= first.Offset {
		t.Errorf("%v does not tell that others are gone", got)
	}
	for i := 2; i < len(all); i++ {
		if all[i].prev > all[i-1].at.Offset {
			t.Errorf("%v does not follow on %v", all[i], all[i-1])
		}
	}
}

// TestServerAway: while NATS is away, publications with a history fail at once,
// those without go on here; what was stored meanwhile comes when it is back.
func TestServerAway(t *testing.T) {
	dir := t.TempDir()
	srv := natsAgain(t, -1, dir)
	port := portOf(t, srv)
	url := srv.ClientURL()
	a := newNode(t, Options{URL: url, Name: "a"}, news).waitReady()
	b := newNode(t, Options{URL: url, Name: "b"}, news).waitReady()
	at := a.must("news:x", "1")
	b.got.wait(t, "news:x", 1)
	srv.Shutdown()
	srv.WaitForShutdown()
	until(t, "lost", func() bool { return !a.link.Connected() && !b.link.Connected() })
	if _, err := a.publish("news:x", "2", stored); !errors.Is(err, topic.ErrUnavailable) {
		t.Errorf("stored: %v", err)
	}
	if _, _, err := a.read("news:x", topic.Filter{Limit: 1}); !errors.Is(err, topic.ErrUnavailable) {
		t.Errorf("read: %v", err)
	}
	if _, err := a.publish("plain", "p", topic.PublishOptions{}); err != nil {
		t.Errorf("plain: %v", err)
	}
	a.got.wait(t, "plain", 1)
	if c := a.Counts(); c.Unsent != 1 || c.Failed != 1 || c.Connected || c.Losses != 1 {
		t.Errorf("counts: %+v", c)
	}
	srv = natsAgain(t, port, dir)
	defer func() { srv.Shutdown(); srv.WaitForShutdown() }()
	until(t, "back", func() bool {
		_, err := a.publish("news:x", "3", stored)
		return err == nil
	})
	all := b.got.wait(t, "news:x", 2)
	if data(all) != "1 3" || all[1].at.Epoch != at.Epoch {
		t.Errorf("delivered: %v", all)
	}
	chained(t, all)
	if len(b.got.of("plain")) != 0 {
		t.Error("a publication without a history was kept for later")
	}
}

// TestAwayAtStart: a node waits for NATS, and is ready when it comes.
func TestAwayAtStart(t *testing.T) {
	srv := natsAgain(t, -1, t.TempDir())
	port := portOf(t, srv)
	url := srv.ClientURL()
	srv.Shutdown()
	srv.WaitForShutdown()
	n := newNode(t, Options{URL: url, Name: "n"}, news)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := n.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: %v", err)
	}
	if _, err := n.publish("news:x", "1", stored); !errors.Is(err, topic.ErrUnavailable) {
		t.Errorf("publish: %v", err)
	}
	srv = natsAgain(t, port, t.TempDir())
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if err := n.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.must("news:x", "1")
	n.got.wait(t, "news:x", 1)
}

// TestLostStream: a stream that has been lost has another epoch when it is back,
// with all nodes, and what comes then is delivered.
func TestLostStream(t *testing.T) {
	dir := t.TempDir()
	srv := natsAgain(t, -1, dir)
	port := portOf(t, srv)
	url := srv.ClientURL()
	a := newNode(t, Options{URL: url, Name: "a"}, news).waitReady()
	b := newNode(t, Options{URL: url, Name: "b"}, news).waitReady()
	var before topic.Position
	for i := range 10 {
		before = a.must("news:x", number("p", i))
	}
	b.got.wait(t, "news:x", 10)
	srv.Shutdown()
	srv.WaitForShutdown()
	until(t, "lost", func() bool { return !a.link.Connected() && !b.link.Connected() })
	srv = natsAgain(t, port, t.TempDir()) // another disk
	defer func() { srv.Shutdown(); srv.WaitForShutdown() }()
	epoch := func(n *node) string { return *n.streamFor("news:x").epoch.Load() }
	until(t, "of a new epoch", func() bool { return epoch(a) != before.Epoch && epoch(a) == epoch(b) })
	var at topic.Position
	until(t, "published", func() bool {
		var err error
		at, err = a.publish("news:x", "new", stored)
		return err == nil
	})
	if at.Epoch != epoch(b) {
		t.Errorf("at %v, the epoch is %s", at, epoch(b))
	}
	all := b.got.wait(t, "news:x", 11)
	if last := all[len(all)-1]; last.data != "new" || last.at != at {
		t.Errorf("delivered: %v, want it at %v", last, at)
	}
	if _, _, err := b.read("news:x", topic.Filter{Limit: 10, Since: &before}); !errors.Is(err, topic.ErrUnrecoverable) {
		t.Errorf("since a place of the old one: %v", err)
	}
}

// TestEpochStays: the mark of the epoch is written again before its time is over,
// though nothing is published.
func TestEpochStays(t *testing.T) {
	brief := topic.NamespaceOptions{Name: "brief", HistorySize: 5, HistoryTTL: time.Second, HistoryMetaTTL: time.Second}
	a, b := pair(t, brief)
	s := a.streamFor("brief:x")
	before := *s.epoch.Load()
	s.mu.Lock()
	first := s.mark.seq
	s.mu.Unlock()
	until(t, "written again", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.mark.seq > first
	})
	if now, there := *s.epoch.Load(), *b.streamFor("brief:x").epoch.Load(); now != before || there != before {
		t.Errorf("the epoch was %s and is %s and %s", before, now, there)
	}
}

// TestUnclean: after a stop of the machine, what was delivered may be gone, so
// there is another epoch; after one of the process, and after a clean end, there
// is not.
func TestUnclean(t *testing.T) {
	dir := t.TempDir()
	start := func() (epoch string, end func()) {
		l, err := Open(Options{Name: "n", Server: ServerOptions{Dir: dir, SyncInterval: time.Second}})
		if err != nil {
			t.Fatal(err)
		}
		n := begin(t, l, BrokerOptions{}, 0, []topic.NamespaceOptions{news}).waitReady()
		return *n.streamFor("news:x").epoch.Load(), func() { _ = n.Close(); l.Close() }
	}
	boot := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, bootFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, end := start()
	end()
	again, end := start()
	end()
	if again != first {
		t.Errorf("after a clean end: %s, was %s", again, first)
	}
	boot(bootID())
	again, end = start()
	end()
	if again != first {
		t.Errorf("after an end of the process: %s, was %s", again, first)
	}
	boot("another run of the machine")
	again, end = start()
	end()
	if again == first {
		t.Error("after a stop of the machine the epoch is the same")
	}
	first = again
	// A start that ends before any stream is followed changes nothing of that.
	boot("a third run")
	l, err := Open(Options{Name: "n", Server: ServerOptions{Dir: dir, SyncInterval: time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	again, end = start()
	end()
	if again == first {
		t.Error("after a stop of the machine, and a start that was given up, the epoch is the same")
	}
	first = again
	again, end = start()
	end()
	if again != first {
		t.Errorf("after that: %s, was %s", again, first)
	}
}

// TestFullLoop: a delivery for which a loop has no room waits for it, and is given
// up in the end: then positions are compared.
func TestFullLoop(t *testing.T) {
	a, b := pair(t, news)
	full := func(on bool) {
		b.got.mu.Lock()
		b.got.full = on
		b.got.mu.Unlock()
	}
	full(true)
	at := a.must("news:x", "1")
	full(false)
	b.got.wait(t, "news:x", 1)
	if _, top, err := b.read("news:x", topic.Filter{Check: true}); err != nil || top.Offset != 0 || top.Epoch != at.Epoch {
		t.Errorf("a check of what is not in doubt: %v, %v", top, err)
	}
	full(true)
	at = a.must("news:x", "2")
	until(t, "given up", func() bool { return b.Counts().Undone == 1 })
	full(false)
	if _, top, err := b.read("news:x", topic.Filter{Check: true}); err != nil || top != at {
		t.Errorf("a check after that: %v, %v, want %v", top, err, at)
	}
}

// TestLoopStands: a loop that stands still holds the others up once.
func TestLoopStands(t *testing.T) {
	a, b := pair(t, news)
	b.got.mu.Lock()
	b.got.full = true
	b.got.mu.Unlock()
	const n = 200 // a second for each would take too long
	for i := range n {
		a.must(number("news:", i), "1")
	}
	until(t, "given up", func() bool { return b.Counts().Undone == n })
}

// TestQueueBound: with a server that answers nothing, so much waits and no more;
// what waits fails in its time.
func TestQueueBound(t *testing.T) {
	srv := natsServer(t)
	l, err := Open(Options{URL: srv.ClientURL(), Name: "n", Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	n := begin(t, l, BrokerOptions{QueueBytes: 64 << 10}, 0, []topic.NamespaceOptions{news}).waitReady()
	s := n.streamFor("news:x")
	listen, err := Open(Options{URL: srv.ClientURL(), Name: "listener"})
	if err != nil {
		t.Fatal(err)
	}
	defer listen.Close()
	if _, err := listen.nc.SubscribeSync("perch.nobody.*"); err != nil {
		t.Fatal(err)
	}
	if err := listen.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1000)
	for range 200 {
		s.store("perch.nobody.x", nil, make([]byte, 1000), func(_ uint64, err error) { done <- err })
	}
	var full, unavailable int
	for range 200 {
		switch err := <-done; {
		case errors.Is(err, topic.ErrFull):
			full++
		case errors.Is(err, topic.ErrUnavailable):
			unavailable++
		default:
			t.Errorf("answered %v", err)
		}
	}
	if full < 100 || unavailable < 10 || full+unavailable != 200 {
		t.Errorf("%d were refused and %d failed", full, unavailable)
	}
	if c := n.Counts(); c.Queued != 0 || c.Waiting != 0 {
		t.Errorf("counts: %+v", c)
	}
}

// TestQueueBoundVersions: publications with a version count while the last one is asked
// for, which a broker that stands still does not answer.
func TestQueueBoundVersions(t *testing.T) {
	srv := natsServer(t)
	way, err := testkit.NewProxy(strings.TrimPrefix(srv.ClientURL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(way.Close)
	l := linkTo(t, Options{URL: "nats://" + way.Addr()})
	n := begin(t, l, BrokerOptions{QueueBytes: 64 << 10}, 0, []topic.NamespaceOptions{news}).waitReady()
	way.Stall()
	o := stored
	o.Version = 1
	const all = 100 // their questions alone would all have room
	done := make(chan error, all)
	for range all {
		n.Publish("news:x", &topic.Publication{Data: make([]byte, 2000)}, o, func(_ topic.Position, err error) { done <- err })
	}
	full := 0
	for range all {
		if err := <-done; errors.Is(err, topic.ErrFull) {
			full++
		} else if !errors.Is(err, topic.ErrUnavailable) {
			t.Errorf("answered %v", err)
		}
	}
	if most := (64 << 10) / 2000; full < all-most {
		t.Errorf("%d of %d were refused: at most %d have room", full, all, most)
	}
	until(t, "the room given back", func() bool { return n.Counts().Queued == 0 })
}

// TestBlocks: nobody is answered before the disk has what was written, those who
// come together share one forcing, and where it fails they are told.
func TestBlocks(t *testing.T) {
	dir := t.TempDir()
	touch := func(n int) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(n)+blockFile), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openBlocks(filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there was opened")
	}
	if _, err := openBlocks(dir); err == nil {
		t.Error("a stream without files was opened")
	}
	touch(3)
	b, err := openBlocks(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	forced := make(chan string, 16)
	release := make(chan error)
	b.sync = func(name string) error {
		forced <- filepath.Base(name)
		return <-release
	}
	done := make(chan error, 8)
	answer := func(err error) { done <- err }
	b.wait(answer)
	if name := <-forced; name != "3.blk" {
		t.Errorf("forced %s", name)
	}
	b.wait(answer)
	b.wait(answer)
	select {
	case err := <-done:
		t.Fatalf("answered before the disk had it: %v", err)
	default:
	}
	release <- nil
	if err := <-done; err != nil {
		t.Error(err)
	}
	touch(4) // the server has gone on to another file
	<-forced
	release <- nil // 3
	for _, want := range []string{filepath.Base(dir), "4.blk"} {
		if name := <-forced; name != want {
			t.Errorf("forced %s, want %s", name, want)
		}
		release <- nil
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	b.wait(answer)
	<-forced
	release <- errors.New("no disk")
	if err := <-done; err == nil {
		t.Error("answered although the disk has failed")
	}
	// Files that have gone, and others in their place.
	touch(9)
	for _, n := range []int{3, 4} {
		if err := os.Remove(filepath.Join(dir, strconv.Itoa(n)+blockFile)); err != nil {
			t.Fatal(err)
		}
	}
	b.sync = forceFile
	b.wait(answer)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if b.from != 9 {
		t.Errorf("stands at block %d", b.from)
	}
}

// TestTwoConfigurations: a node with another configuration changes the stream, and
// says so.
func TestTwoConfigurations(t *testing.T) {
	srv := natsServer(t)
	newNode(t, Options{URL: srv.ClientURL(), Name: "a"}, news).waitReady()
	var log strings.Builder
	other := news
	other.HistorySize = 50
	b := newNode(t, Options{URL: srv.ClientURL(), Name: "b", Logger: slogTo(&log)}, other).waitReady()
	st, err := b.link.js.Stream(t.Context(), "perch_h_news")
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().Config.MaxMsgsPerSubject; n != 51 {
		t.Errorf("%d are kept of a topic", n)
	}
	if !strings.Contains(log.String(), "size=50 size_before=5") {
		t.Errorf("the log says: %s", log.String())
	}
}
