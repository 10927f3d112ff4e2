package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"perch/internal/pace"
)

// ServerOptions are of the NATS server in the process.
type ServerOptions struct {
	// Dir is where it keeps its streams; made with mode 0700.
	Dir string
	// Listen is a host:port at which clients of NATS are taken, empty: nowhere. They
	// need Options.User and Password, or Token, where these are set; with
	// Options.TLS.Cert the port speaks TLS.
	Listen string
	// StoreBytes bounds all that it keeps; 0: three quarters of what the file system
	// has free.
	StoreBytes int64
	// SyncInterval is how often what was written is forced to the disk; 0: before
	// each answer.
	SyncInterval time.Duration
	// Leaf joins it to a hub.
	Leaf LeafOptions
}

// LeafOptions join the embedded server to a cluster elsewhere.
type LeafOptions struct {
	// URL is where the hub takes leaf nodes, one or more with commas between; empty:
	// it is no leaf.
	URL string
	// Site names this leaf. No two of a hub have the same one.
	Site        string
	Credentials string
	TLS         TLSOptions
	// StoreBytes bounds what waits for the hub: 256 MiB where it is 0. Over it,
	// publications are refused, or the oldest dropped.
	StoreBytes int64
	DropOldest bool
}

const (
	startTimeout  = 30 * time.Second
	leafReconnect = time.Second
	syncBeside    = time.Second
	// leafPing finds an uplink that was cut without a word; two may go unanswered.
	leafPing  = 10 * time.Second
	leafPings = 2
)

// startServer starts the embedded server.
func startServer(o *Options) (*server.Server, error) {
	so := &o.Server
	if err := os.MkdirAll(so.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	opts := &server.Options{
		ServerName: o.Name, DontListen: so.Listen == "", NoSigs: true, NoLog: true, NoSystemAccount: false,
		JetStream: true, StoreDir: so.Dir, JetStreamMaxStore: so.StoreBytes,
		SyncInterval: so.SyncInterval,
		MaxPayload:   maxPayload, MaxPending: 64 << 20,
	}
	if so.SyncInterval == 0 {
		// Publications are forced to the disk before they are answered (blocks); this
		// is for what the server writes beside.
		opts.SyncInterval = syncBeside
	}
	if so.Listen != "" {
		host, port, err := net.SplitHostPort(so.Listen)
		if err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		opts.Host = host
		if opts.Port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		if err := free(so.Listen); err != nil {
			return nil, err
		}
		// Whoever comes over the port has to say what this node says of itself.
		opts.Username, opts.Password, opts.Authorization = o.User, o.Password, o.Token
		if o.TLS.Cert != "" {
			c, err := o.TLS.config()
			if err != nil {
				return nil, err
			}
			opts.TLS, opts.TLSConfig = true, c
		}
	}
	if err := so.Leaf.apply(opts); err != nil {
		return nil, err
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("cluster: start the embedded server: %w", err)
	}
	s.SetLoggerV2(&serverLog{log: o.Logger}, false, false, false)
	s.Start()
	if !s.ReadyForConnections(startTimeout) || !s.JetStreamEnabled() {
		s.Shutdown()
		return nil, errors.New("cluster: the embedded server does not start: see its lines in the log")
	}
	if err := os.Chmod(filepath.Join(so.Dir, "jetstream"), 0o700); err != nil && !os.IsNotExist(err) {
		s.Shutdown()
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return s, nil
}

// free tells whether a port can be had: the server does not say why it can't.
func free(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return l.Close()
}

// apply joins the server to its hub.
func (l *LeafOptions) apply(opts *server.Options) error {
	if l.URL == "" {
		return nil
	}
	remote := &server.RemoteLeafOpts{Credentials: l.Credentials}
	var err error
	if remote.URLs, err = parseURLs(l.URL); err != nil {
		return fmt.Errorf("cluster: the hub's address: %w", err)
	}
	if l.Credentials != "" {
		if err := readable(l.Credentials); err != nil {
			return err
		}
	}
	if l.TLS != (TLSOptions{}) {
		c, err := l.TLS.config()
		if err != nil {
			return err
		}
		remote.TLS, remote.TLSConfig = true, c
	}
	opts.JetStreamDomain = l.Site
	opts.LeafNode.ReconnectInterval = leafReconnect
	opts.PingInterval, opts.MaxPingsOut = leafPing, leafPings
	opts.LeafNode.Remotes = []*server.RemoteLeafOpts{remote}
	return nil
}

// serverLog brings the lines of the embedded server to ours. What it takes for
// news is of no use to most: Debug. Strangers at its port can make it say the rest
// often.
type serverLog struct {
	log    *slog.Logger
	seldom pace.Seldom
}

func (l *serverLog) say(level slog.Level, format string, v []any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	if level == slog.LevelDebug {
		l.log.Debug("nats server", "line", fmt.Sprintf(format, v...))
		return
	}
	if quiet, ok := l.seldom.Pass(time.Second); ok {
		l.log.Log(context.Background(), level, "nats server", "line", fmt.Sprintf(format, v...), "quiet", quiet)
	}
}
func (l *serverLog) Noticef(f string, v ...any) { l.say(slog.LevelDebug, f, v) }
func (l *serverLog) Warnf(f string, v ...any)   { l.say(slog.LevelWarn, f, v) }
func (l *serverLog) Fatalf(f string, v ...any)  { l.say(slog.LevelError, f, v) }
func (l *serverLog) Errorf(f string, v ...any)  { l.say(slog.LevelError, f, v) }
func (l *serverLog) Debugf(string, ...any)      {}
func (l *serverLog) Tracef(string, ...any)      {}
