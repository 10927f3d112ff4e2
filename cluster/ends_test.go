package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"perch/topic"
)

// TestMarkDiscarded: a bound of bytes that large publications exceed does not take
// the epoch away.
func TestMarkDiscarded(t *testing.T) {
	srv := natsServer(t)
	l, err := Open(Options{URL: srv.ClientURL(), Name: "n", Logger: slogTo(t.Output())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	n := begin(t, l, BrokerOptions{HistoryBytes: 1 << 20}, 50*time.Millisecond, []topic.NamespaceOptions{news}).waitReady()
	var at topic.Position
	for i := range 20 {
		at = n.must(number("news:", i), strings.Repeat("x", 200<<10))
	}
	s := n.streamFor("news:x")
	until(t, "written again", func() bool {
		last, err := s.lastSync(s.stored + tokenEpoch)
		return err == nil && last != nil && last.seq > 1
	})
	if now := *s.epoch.Load(); now != at.Epoch {
		t.Errorf("the epoch is %s, was %s", now, at.Epoch)
	}
	b := newNode(t, Options{URL: srv.ClientURL(), Name: "b"}, news).waitReady()
	if now := *b.streamFor("news:x").epoch.Load(); now != at.Epoch {
		t.Errorf("the epoch of a node that starts is %s, was %s", now, at.Epoch)
	}
}

// TestMarkContested: an epoch's name that comes and goes while it is written again
// stays the same.
func TestMarkContested(t *testing.T) {
	srv := natsServer(t)
	n := newNode(t, Options{URL: srv.ClientURL(), Name: "n"}, news).waitReady()
	s := n.streamFor("news:x")
	epoch := *s.epoch.Load()
	st, err := n.link.js.Stream(t.Context(), s.name)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var other sync.WaitGroup
	other.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := st.Purge(t.Context(), jetstream.WithPurgeSubject(s.stored+tokenEpoch)); err != nil {
				t.Error(err)
				return
			}
			if _, err := n.link.js.Publish(t.Context(), s.stored+tokenEpoch, encodeEpoch(epoch, 1)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 500 {
		s.mu.Lock()
		s.mark = mark{at: time.Now()}
		err := s.refreshLocked(streamState{first: 1, last: 1}) // the mark is gone
		now := *s.epoch.Load()
		s.mu.Unlock()
		if now != epoch || err != nil && !errors.Is(err, errConflict) {
			t.Errorf("the epoch is %s, was %s: %v", now, epoch, err)
			break
		}
	}
	close(stop)
	other.Wait()
}

// TestEpochOnce: where two nodes find that a stream has lost something, the one that is
// second takes the epoch of the first.
func TestEpochOnce(t *testing.T) {
	n := newNode(t, Options{URL: natsServer(t).ClientURL()}, news).waitReady()
	s := n.streamFor("news:x")
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.epoch.Load()
	if _, err := n.link.js.Publish(t.Context(), s.stored+tokenEpoch, encodeEpoch("first", 0)); err != nil {
		t.Fatal(err)
	}
	if err := s.readEpoch(old); err != nil || *s.epoch.Load() != "first" {
		t.Errorf("the epoch is %s behind %s: %v", *s.epoch.Load(), old, err)
	}
}

// TestEpochBegan: where an epoch began is known to nodes that start behind its
// renewal.
func TestEpochBegan(t *testing.T) {
	srv := natsServer(t)
	a := newNode(t, Options{URL: srv.ClientURL(), Name: "a"}, news).waitReady()
	a.must("news:x", "1")
	s := a.streamFor("news:x")
	st, err := s.state()
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	before := s.mark.seq
	s.mark.at = time.Time{}
	err = s.refreshLocked(st)
	after, began := s.mark.seq, s.began.Load()
	s.mu.Unlock()
	if err != nil || after <= before || began != before {
		t.Fatalf("renewed at %d, was at %d, began at %d: %v", after, before, began, err)
	}
	b := newNode(t, Options{URL: srv.ClientURL(), Name: "b"}, news).waitReady()
	if got := b.streamFor("news:x").began.Load(); got != began {
		t.Errorf("a node that starts says that it began at %d, not %d", got, began)
	}
}

// TestAfterClose: whoever asks a broker that has ended is answered.
func TestAfterClose(t *testing.T) {
	a, _ := pair(t, news)
	s := a.streamFor("news:x")
	_ = a.Close()
	done := make(chan error, 3)
	s.store(s.stored+"x", nil, []byte("x"), func(_ uint64, err error) { done <- err })
	s.last(s.stored+"x", func(_ *row, err error) { done <- err })
	a.Publish("news:x", nil, stored, func(_ topic.Position, err error) { done <- err })
	for range 3 {
		select {
		case err := <-done:
			if err == nil {
				t.Error("done")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("nobody is told")
		}
	}
	if n := a.Counts().Queued; n != 0 {
		t.Errorf("%d bytes wait", n)
	}
}

// TestBlocksAnew: the files of a stream that has been made anew begin at 1 again.
func TestBlocksAnew(t *testing.T) {
	dir := t.TempDir()
	file := func(n int) string { return filepath.Join(dir, strconv.Itoa(n)+blockFile) }
	touch := func(n int) {
		t.Helper()
		if err := os.WriteFile(file(n), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	touch(7)
	b, err := openBlocks(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	if err := os.Remove(file(7)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	b.wait(func(err error) { done <- err })
	if err := <-done; err == nil {
		t.Error("answered without a file")
	}
	touch(1)
	touch(2)
	b.wait(func(err error) { done <- err })
	if err := <-done; err != nil || b.from != 2 {
		t.Errorf("%v, stands at block %d", err, b.from)
	}
}

// TestEpochTaken: without its epoch a stream that nobody follows is another one.
func TestEpochTaken(t *testing.T) {
	srv := natsServer(t)
	a := newNode(t, Options{URL: srv.ClientURL(), Name: "a"}, news).waitReady()
	at := a.must("news:x", "1")
	s := a.streamFor("news:x")
	_ = a.Close()
	st, err := a.link.js.Stream(t.Context(), s.name)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Purge(t.Context(), jetstream.WithPurgeSubject(s.stored+tokenEpoch)); err != nil {
		t.Fatal(err)
	}
	b := newNode(t, Options{URL: srv.ClientURL(), Name: "b"}, news).waitReady()
	if now := *b.streamFor("news:x").epoch.Load(); now == at.Epoch {
		t.Error("the epoch is the same")
	}
}

// TestBackwardsBehind: a server that is behind the leader is asked again, backwards
// too.
func TestBackwardsBehind(t *testing.T) {
	a, _ := pair(t, news)
	at := a.must("news:x", "1")
	s := a.streamFor("news:x")
	read := make(chan string, 1)
	r := &reading{s: s, name: "news:x", subject: s.stored + token("news:x"), f: topic.Filter{Limit: -1, Reverse: true},
		done: func(pubs []*topic.Publication, _ topic.Position, err error) {
			if err != nil {
				t.Error(err)
			}
			read <- text(pubs)
		}}
	// The leader has one more than the server that is read.
	r.gotLast(&row{seq: at.Offset + 1, data: encode("news:x", &topic.Publication{}, &stored)}, nil)
	select {
	case got := <-read:
		t.Fatalf("read %q", got)
	case <-time.After(staleWait):
	}
	a.must("news:x", "2")
	if got := <-read; got != "2 1" {
		t.Errorf("read %q", got)
	}
}

// TestBatchTorn: of a batch that has lost a message on its way nothing is taken.
func TestBatchTorn(t *testing.T) {
	srv := natsServer(t)
	n := newNode(t, Options{URL: srv.ClientURL(), Name: "n"}, news).waitReady()
	l, err := Open(Options{URL: srv.ClientURL(), Name: "server"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	torn := &stream{b: n.Broker, name: "torn"}
	for _, c := range []struct {
		name  string
		rows  [][2]int // sequence, and that of the one before
		end   int
		whole bool
	}{
		{"whole", [][2]int{{5, 0}, {7, 5}}, 7, true},
		{"first", [][2]int{{7, 5}}, 7, false},
		{"middle", [][2]int{{5, 0}, {9, 7}}, 9, false},
		{"last", [][2]int{{5, 0}}, 7, false},
	} {
		sub, err := l.nc.Subscribe(torn.direct(), func(m *nats.Msg) {
			for _, r := range c.rows {
				_ = l.nc.PublishMsg(&nats.Msg{Subject: m.Reply, Data: []byte("x"), Header: nats.Header{
					headerSequence: {strconv.Itoa(r[0])}, headerBefore: {strconv.Itoa(r[1])}}})
			}
			_ = l.nc.PublishMsg(&nats.Msg{Subject: m.Reply, Header: nats.Header{
				"Status": {statusEnd}, headerBefore: {strconv.Itoa(c.end)}}})
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.nc.Flush(); err != nil {
			t.Fatal(err)
		}
		rows, err := waitFor(t.Context(), func(done func([]row, error)) {
			torn.batch("x", 1, 10, 1000, func(rows []row, _ bool, err error) { done(rows, err) })
		})
		if (err == nil) != c.whole {
			t.Errorf("%s: %d rows, %v", c.name, len(rows), err)
		}
		_ = sub.Unsubscribe()
		if err := l.nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTooLarge: what the server does not take is refused, and said once; the
// connection stays.
func TestTooLarge(t *testing.T) {
	var log strings.Builder
	srv := natsServer(t)
	n := newNode(t, Options{URL: srv.ClientURL(), Name: "n", Logger: slogTo(&log)}, news).waitReady()
	if _, err := n.publish("news:x", strings.Repeat("x", maxPayload), stored); !errors.Is(err, topic.ErrUnavailable) {
		t.Errorf("with a history: %v", err)
	}
	if _, err := n.publish("plain", strings.Repeat("x", maxPayload), topic.PublishOptions{}); err != nil {
		t.Errorf("without one: %v", err)
	}
	until(t, "counted", func() bool { return n.Counts().Unsent == 1 })
	n.must("news:x", "1")
	if c := n.Counts(); c.Losses != 0 || c.Queued != 0 || c.Waiting != 0 {
		t.Errorf("counts: %+v", c)
	}
	_ = n.Close()
	if !strings.Contains(log.String(), "max_payload") {
		t.Errorf("the log says: %s", log.String())
	}
}
