package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"perch/internal/pace"
	"perch/topic"
)

// maxPayload is the largest message: a publication of the largest size and what
// it brings along.
const maxPayload = 8 << 20

// ErrUnavailable is returned while NATS can't be reached or does not answer in
// time: whoever asked may ask again.
var ErrUnavailable = topic.ErrUnavailable

// Link is a connection to NATS, and the server behind it where that runs in the
// process. It comes back by itself. Its methods are safe from any goroutine.
type Link struct {
	opts   Options
	log    *slog.Logger
	server *server.Server // nil: outside
	nc     *nats.Conn
	js     jetstream.JetStream
	noted  bool // that the embedded server's streams are open

	connected atomic.Bool
	dialError atomic.Pointer[error] // of the last attempt that did not come through
	losses    atomic.Uint64
	dropped   atomic.Uint64 // messages that nobody here took in time
	slow      pace.Seldom

	mu      sync.Mutex
	changes []*change
}

// Open starts the embedded server or begins to connect; it does not wait for an
// outside one (Wait does). An error is one of the options: a file that can't be
// read, a port that is taken.
func Open(o Options) (*Link, error) {
	o = o.withDefaults()
	opts, err := o.natsOptions()
	if err != nil {
		return nil, err
	}
	l := &Link{opts: o, log: o.Logger}
	url := servers(o.URL)
	if url == "" {
		if l.server, err = startServer(&l.opts); err != nil {
			return nil, err
		}
		opts = append(opts, nats.InProcessServer(l.server))
	}
	opts = append(opts, nats.ConnectHandler(l.onConnect), nats.ReconnectHandler(l.onConnect),
		nats.ReconnectErrHandler(l.onNoConnect), nats.DisconnectErrHandler(l.onDisconnect), nats.ErrorHandler(l.onError))
	if l.nc, err = nats.Connect(url, opts...); err != nil {
		l.Close()
		return nil, fmt.Errorf("cluster: connect: %w", withoutURL(err))
	}
	if l.js, err = jetstream.New(l.nc, jetstream.WithDefaultTimeout(o.Timeout)); err != nil {
		l.Close()
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if l.server != nil {
		if err := l.opened(); err != nil {
			l.Close()
			return nil, fmt.Errorf("cluster: open the streams: %w", err)
		}
	}
	if l.nc.IsConnected() {
		l.connected.Store(true)
	}
	return l, nil
}

// Conn is the connection. It does not hear what it has itself published.
func (l *Link) Conn() *nats.Conn { return l.nc }

// JetStream is the client of the streams.
func (l *Link) JetStream() jetstream.JetStream { return l.js }

// Prefix is the first token of every subject, and begins the names of streams.
func (l *Link) Prefix() string { return l.opts.Prefix }

// Name is this node's.
func (l *Link) Name() string { return l.opts.Name }

// Replicas is how many servers keep each stream.
func (l *Link) Replicas() int { return l.opts.Replicas }

// Timeout bounds what NATS is asked.
func (l *Link) Timeout() time.Duration { return l.opts.Timeout }

// Embedded tells whether the server runs in this process.
func (l *Link) Embedded() bool { return l.server != nil }

// Alone tells that no other node can ever be reached: the server is in this
// process, takes no clients and is no leaf.
func (l *Link) Alone() bool {
	return l.server != nil && l.opts.Server.Listen == "" && l.opts.Server.Leaf.URL == ""
}

// Connected tells whether NATS can be reached now.
func (l *Link) Connected() bool { return l.connected.Load() }

// LastError is why NATS can't be reached, as far as that is known. It shows no
// address with a password.
func (l *Link) LastError() error {
	if err := l.nc.LastError(); err != nil {
		return withoutURL(err)
	}
	// A server that takes no connection is no error of the connection's.
	if err := l.dialError.Load(); err != nil {
		return withoutURL(*err)
	}
	return nil
}

// Losses is how often the connection was lost.
func (l *Link) Losses() uint64 { return l.losses.Load() }

// Dropped is how many messages were dropped because they came faster than they
// could be taken.
func (l *Link) Dropped() uint64 { return l.dropped.Load() }

// Wait returns once NATS is reached; ctx ends the wait.
func (l *Link) Wait(ctx context.Context) error {
	back := make(chan struct{}, 1)
	defer l.OnChange(func() { poke(back) }, nil)()
	for !l.Connected() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-back:
		}
	}
	return nil
}

// OnChange has back called whenever the connection is there again, and lost
// whenever it is gone, until forget is called; either may be nil. They run on a
// goroutine of the connection's and do not block.
func (l *Link) OnChange(back, lost func()) (forget func()) {
	c := &change{back, lost}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changes = append(l.changes, c)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		// Another list: the one before may be gone through now.
		l.changes = slices.DeleteFunc(slices.Clone(l.changes), func(o *change) bool { return o == c })
	}
}

// change is what is called when the connection is back, or lost.
type change struct{ back, lost func() }

func (l *Link) each(of func(*change) func()) {
	l.mu.Lock()
	all := l.changes
	l.mu.Unlock()
	for _, c := range all {
		if f := of(c); f != nil {
			f()
		}
	}
}

func (l *Link) onConnect(nc *nats.Conn) {
	l.connected.Store(true)
	l.dialError.Store(nil)
	if l.server == nil {
		l.log.Info("broker connected", "server", nc.ConnectedUrlRedacted())
	}
	l.each(func(c *change) func() { return c.back })
}

// onNoConnect is told of each attempt that did not come through.
func (l *Link) onNoConnect(_ *nats.Conn, err error) { l.dialError.Store(&err) }

func (l *Link) onDisconnect(_ *nats.Conn, err error) {
	if !l.connected.Swap(false) {
		return
	}
	l.losses.Add(1)
	if err != nil {
		l.log.Warn("broker lost: publications with a history fail until it is back", "err", err)
	}
	l.each(func(c *change) func() { return c.lost })
}

// onError is told of what no call can return.
func (l *Link) onError(_ *nats.Conn, sub *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrSlowConsumer) {
		l.dropped.Add(1)
		if quiet, ok := l.slow.Pass(time.Second); ok {
			l.log.Warn("messages of the broker come faster than they can be taken", "subject", subjectOf(sub), "quiet", quiet)
		}
		return
	}
	l.log.Warn("broker error", "subject", subjectOf(sub), "err", err)
}

func subjectOf(sub *nats.Subscription) string {
	if sub == nil {
		return ""
	}
	return sub.Subject
}

// Close ends the connection, and the embedded server.
func (l *Link) Close() {
	if l.nc != nil {
		l.nc.Close()
	}
	if l.server != nil {
		l.server.Shutdown()
		l.server.WaitForShutdown()
		if !l.noted {
			return
		}
		if err := closed(l.opts.Server.Dir); err != nil {
			l.log.Error("close streams failed", "err", err)
		}
	}
}

// streamPrefix begins the subjects of streams: those of a leaf's site are its own,
// so that the hub's streams don't take what the site's have.
func (l *Link) streamPrefix() string {
	if l.opts.Server.Leaf.URL != "" {
		return l.Prefix() + "." + subjectSites + "." + l.opts.Server.Leaf.Site
	}
	return l.Prefix()
}
