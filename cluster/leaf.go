package cluster

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// joinedPause is how often a leaf looks whether it has its hub.
	joinedPause = 500 * time.Millisecond
	// headerSite, on what came to the hub from a site, names that site.
	headerSite = "Perch-Site"
	// headerHub, on what came to a site from the hub, is its place in the hub's stream.
	headerHub = "Perch-Hub"
)

// leaf makes a site of its own out of a node whose server is a leaf of a hub. The
// site's streams are what its clients read, with epochs and offsets of their own.
// What is published here goes up from them (uplink), what the hub's streams have
// comes down into them (downlink), each in its order, whenever the hub is there.
type leaf struct {
	b    *Broker
	log  *slog.Logger
	site string
	up   *uplink

	joined atomic.Bool

	received  atomic.Uint64 // publications of the hub and of other sites
	malformed atomic.Uint64

	mu    sync.Mutex
	downs map[*stream]*downlink
}

// LeafCounts is what a leaf tells of itself.
type LeafCounts struct {
	Up           bool   // the hub's server can be reached
	Waiting      int64  // messages that the hub does not have yet
	WaitingBytes int64  // what they take on the disk
	WaitingMost  int64  // what they may
	Forwarded    uint64 // what the hub has taken
	Refused      uint64 // publications for which there was no room
	Dropped      uint64 // what was dropped to make room before the hub had it
	Received     uint64 // what came from the hub
}

func newLeaf(b *Broker) *leaf {
	o := &b.link.opts.Server.Leaf
	l := &leaf{b: b, site: o.Site, log: b.log.With("site", o.Site), downs: make(map[*stream]*downlink)}
	l.up = newUplink(l)
	return l
}

// begin lets a stream of the site begin: what of it is on the way to the hub is
// known then, and what the hub has comes.
func (l *leaf) begin(s *stream) error {
	if err := l.up.open(); err != nil {
		return err
	}
	if err := l.up.repair(s); err != nil {
		return err
	}
	d := &downlink{l: l, s: s, wake: make(chan struct{}, 1)}
	if err := d.place(); err != nil {
		return err
	}
	l.mu.Lock()
	l.downs[s] = d
	l.mu.Unlock()
	l.b.done.Go(func() {
		d.run()
		l.mu.Lock()
		delete(l.downs, s)
		l.mu.Unlock()
	})
	return nil
}

// run looks whether the hub is there, and sends up what waits for it.
func (l *leaf) run() {
	l.b.done.Go(l.up.run)
	tick := time.NewTicker(joinedPause)
	defer tick.Stop()
	begun := time.Now()
	told := false
	for {
		now := l.b.link.server.NumLeafNodes() > 0
		switch {
		case now == l.joined.Load():
			if !now && !told && time.Since(begun) > dialTimeout {
				told = true
				l.log.Warn("uplink is down: the site works on, publications wait for the hub")
			}
		case now:
			l.log.Info("uplink is there", "waiting", l.up.waiting().messages)
			told = true
			l.joined.Store(true)
			l.wake()
		default:
			l.log.Warn("uplink lost: the site works on, publications wait for the hub")
			l.joined.Store(false)
		}
		select {
		case <-l.b.life.Done():
			return
		case <-tick.C:
		}
	}
}

// wake has everything tried at once that waits for the hub.
func (l *leaf) wake() {
	poke(l.up.wake)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.downs {
		poke(d.wake)
	}
}

// counts is nil where the node is no leaf.
func (l *leaf) counts() *LeafCounts {
	if l == nil {
		return nil
	}
	u, waits := l.up, l.up.waiting()
	return &LeafCounts{
		Up: l.joined.Load(), Waiting: waits.messages, WaitingBytes: waits.bytes, WaitingMost: u.most,
		Forwarded: u.forwarded.Load(), Refused: u.refused.Load(), Dropped: u.dropped.Load(), Received: l.received.Load(),
	}
}
