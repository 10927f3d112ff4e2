package perch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"perch/auth"
	"perch/cluster"
	"perch/internal/stats"
)

// natsDir is where the embedded server keeps its streams, in the data directory.
const natsDir = "nats"

const (
	// brokerPatience is how long a broker that is not there is worth no line in the
	// log, brokerSay how often it is worth one then.
	brokerPatience = time.Second
	brokerSay      = 10 * time.Second
)

// wireLink opens the way to NATS, where the engine is that. It does not wait for a
// cluster outside.
func (s *Server) wireLink() error {
	o := &s.opts
	if o.Engine != EngineNATS {
		return nil
	}
	// Said in the words of the configuration.
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	var err error
	// Before the embedded server opens what it keeps there.
	if s.lock, err = auth.LockDir(o.DataDir); err != nil {
		return o.dataDirError(err)
	}
	if s.link, err = cluster.Open(o.linkOptions(s)); err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	s.tokens = cluster.NewTokens(s.link, cluster.TokensOptions{})
	s.clients = cluster.NewRegistry(s.link, s.tokens)
	return nil
}

// startRegistry returns once this node knows all revocations that are in force;
// ctx ends the wait.
func (s *Server) startRegistry(ctx context.Context) error {
	if err := s.tokens.Start(ctx); err != nil {
		return err
	}
	return s.clients.Start(ctx)
}

// linkOptions are those of package cluster.
func (o *Options) linkOptions(s *Server) cluster.Options {
	n := &o.NATS
	interval, _ := n.syncInterval() // Check has seen it
	return cluster.Options{
		URL: n.URL, Name: s.nodeName(), Prefix: n.Prefix, Credentials: n.Credentials, NKey: n.NKey,
		User: n.User, Password: n.Password, Token: n.Token, TLS: cluster.TLSOptions(n.TLS),
		Replicas: n.Replicas, Timeout: n.Timeout, Logger: s.log,
		Server: cluster.ServerOptions{
			Dir: filepath.Join(o.DataDir, natsDir), Listen: n.Listen, StoreBytes: int64(n.StoreBytes), SyncInterval: interval,
			Leaf: cluster.LeafOptions{
				URL: n.Leaf.URL, Site: n.Leaf.Site, Credentials: n.Leaf.Credentials, TLS: cluster.TLSOptions(n.Leaf.TLS),
				StoreBytes: int64(n.Leaf.StoreBytes), DropOldest: n.Leaf.Full == LeafDropOldest,
			},
		},
	}
}

// syncInterval is 0 where each answer waits for the disk.
func (n *NATSOptions) syncInterval() (time.Duration, error) {
	if n.Sync == SyncAlways {
		return 0, nil
	}
	return time.ParseDuration(n.Sync)
}

// nodeName is what operators see of this node.
func (s *Server) nodeName() string {
	if s.opts.NATS.Name != "" {
		return s.opts.NATS.Name
	}
	host, err := os.Hostname()
	if err != nil {
		host = "perch"
	}
	return fmt.Sprintf("%s-%08x", host, uint32(s.node))
}

// errNotWaited: the server was told to end before its broker was there.
var errNotWaited = errors.New("perch: ended before the broker was there")

// notWaited is what Run returns then: nothing went wrong where it was asked to end.
func notWaited(err error) error {
	if errors.Is(err, errNotWaited) {
		return nil
	}
	return err
}

// awaitBroker returns once the broker is there, and with it the streams of all
// namespaces. Until then the admin port says that the server is not ready, and the
// public one takes nobody.
func (s *Server) awaitBroker(ctx context.Context, failed <-chan error) error {
	if s.broker == nil {
		return nil
	}
	wait, end := context.WithCancel(ctx)
	defer end()
	ready := make(chan error, 1)
	go func() {
		err := s.broker.Wait(wait)
		if err == nil {
			// Nobody is let in before it is known what has been revoked.
			err = s.startRegistry(wait)
		}
		ready <- err
	}()
	say := time.NewTicker(brokerSay)
	defer say.Stop()
	first := time.NewTimer(brokerPatience)
	defer first.Stop()
	for {
		select {
		case err := <-ready:
			if wait.Err() != nil {
				return errNotWaited
			}
			return err
		case err := <-failed:
			end()
			<-ready
			return err
		case <-s.abort:
			end()
			<-ready
			return errNotWaited
		case <-first.C:
		case <-say.C:
		}
		if s.link.Connected() {
			stream, _ := s.broker.Ready()
			s.log.Warn("not ready: the broker does not have this history yet", "stream", stream)
		} else {
			var why []any
			if err := s.link.LastError(); err != nil {
				why = []any{"err", err}
			}
			s.log.Warn("not ready: the broker can't be reached, see nats.url; trying on", why...)
		}
	}
}

// leafStats is what /metrics shows of the way to the hub; nil: there is none.
func (s *Server) leafStats() *stats.Leaf {
	if s.broker == nil {
		return nil
	}
	l := s.broker.Counts().Leaf
	if l == nil {
		return nil
	}
	return &stats.Leaf{
		Up: l.Up, Waiting: l.Waiting, WaitingBytes: l.WaitingBytes, WaitingLimit: l.WaitingMost,
		Forwarded: l.Forwarded, Refused: l.Refused, Dropped: l.Dropped, Received: l.Received,
	}
}

// natsAddress never shows the address: a password may stand in it.
func (c *checker) natsAddress(key, url string) {
	if url == "" {
		return
	}
	if err := cluster.CheckURL(url); err != nil {
		c.fail(key, "%v", err)
	}
}

// nats checks what engine nats needs.
func (c *checker) nats(o *Options) {
	n := &o.NATS
	c.oneOf("engine", o.Engine, EngineMemory, EngineNATS)
	if err := cluster.CheckPrefix(n.Prefix); err != nil {
		c.fail("nats.prefix", "%v", err)
	}
	c.count("nats.replicas", n.Replicas, 1, 5)
	c.duration("nats.timeout", n.Timeout, 100*time.Millisecond, time.Minute)
	c.count("nats.queue_bytes", n.QueueBytes, 1<<20, 1<<40)
	c.count("nats.history_bytes", n.HistoryBytes, 0, 1<<50)
	c.count("nats.store_bytes", n.StoreBytes, 0, 1<<50)
	if d, err := n.syncInterval(); err != nil {
		c.fail("nats.sync", "%q must be %q or a duration, such as 1s", n.Sync, SyncAlways)
	} else if n.Sync != SyncAlways {
		c.duration("nats.sync", d, 10*time.Millisecond, time.Hour)
	}
	c.natsAddress("nats.url", n.URL)
	c.natsAddress("nats.leaf.url", n.Leaf.URL)
	if o.Engine == EngineMemory {
		// With it a node would run alone that is meant to be one of several.
		for _, k := range []struct{ key, value string }{
			{"nats.url", n.URL}, {"nats.listen", n.Listen}, {"nats.leaf.url", n.Leaf.URL},
		} {
			if k.value != "" {
				c.fail(k.key, "is of engine: nats, and engine is memory: set engine: nats, or leave it out")
			}
		}
	}
	if n.URL != "" {
		for _, k := range []struct {
			key string
			set bool
		}{{"nats.listen", n.Listen != ""}, {"nats.store_bytes", n.StoreBytes > 0}, {"nats.leaf.url", n.Leaf.URL != ""}} {
			if k.set {
				c.fail(k.key, "is of the server in the process, and nats.url names one outside: leave one of them out")
			}
		}
	} else if n.Replicas > 1 {
		c.fail("nats.replicas", "%d need a cluster outside (nats.url): the server in the process is one", n.Replicas)
	}
	if n.Listen != "" {
		if host, _, err := net.SplitHostPort(n.Listen); c.address("nats.listen", n.Listen, o.Dev) && err == nil &&
			!loopback(host) && n.Password == "" && n.Token == "" {
			c.fail("nats.listen", "%s can be reached from outside, and who comes there reads and writes all histories: set nats.user and nats.password, or nats.token", n.Listen)
		}
	}
	if (n.Leaf.URL == "") != (n.Leaf.Site == "") {
		c.fail("nats.leaf.site", "nats.leaf.url and nats.leaf.site: set both, or neither")
	}
	if n.Leaf.Site != "" {
		if err := cluster.CheckPrefix(n.Leaf.Site); err != nil {
			c.fail("nats.leaf.site", "%v", err)
		}
	}
	c.count("nats.leaf.store_bytes", n.Leaf.StoreBytes, 1<<20, 1<<50)
	c.oneOf("nats.leaf.full", n.Leaf.Full, LeafRefuse, LeafDropOldest)
	if n.Leaf.URL != "" && n.Listen != "" {
		c.fail("nats.listen", "takes other nodes, and with nats.leaf.url a site is one node: leave one of them out")
	}
	for _, f := range []struct{ key, file string }{
		{"nats.credentials", n.Credentials}, {"nats.nkey", n.NKey}, {"nats.tls.ca", n.TLS.CA}, {"nats.tls.cert", n.TLS.Cert},
		{"nats.tls.key", n.TLS.Key}, {"nats.leaf.credentials", n.Leaf.Credentials}, {"nats.leaf.tls.ca", n.Leaf.TLS.CA},
		{"nats.leaf.tls.cert", n.Leaf.TLS.Cert}, {"nats.leaf.tls.key", n.Leaf.TLS.Key},
	} {
		if f.file == "" {
			continue
		}
		if _, err := os.Stat(f.file); err != nil {
			c.fail(f.key, "%v", err)
		}
	}
}
