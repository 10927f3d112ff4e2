package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	defaultPrefix  = "perch"
	defaultTimeout = 5 * time.Second
	// pingInterval is how often the connection is tried while it is silent; after
	// two without an answer it is given up.
	pingInterval = 3 * time.Second
	// reconnectWait is between two attempts to come back, with a jitter of the same.
	reconnectWait = 250 * time.Millisecond
	dialTimeout   = 3 * time.Second
	// writeTimeout is how long a server may take nothing: whoever writes waits, and
	// with it the end of the connection.
	writeTimeout = 5 * time.Second
)

// Options say which NATS is used, and how.
type Options struct {
	// URL is the outside cluster, one or more addresses with commas between; empty:
	// a server runs in the process.
	URL string
	// Name is the node's, shown to others and in the lists of NATS.
	Name string
	// Prefix is the first token of every subject and of the names of streams: nodes
	// with the same one are one cluster. Empty: perch.
	Prefix string

	// Of an outside cluster. Credentials is a .creds file, NKey a file with a seed.
	Credentials string
	NKey        string
	User        string
	Password    string
	Token       string
	TLS         TLSOptions

	Server ServerOptions

	// Replicas is of the streams of an outside cluster; 0: 1.
	Replicas int
	// Timeout bounds what NATS is asked; 0: 5 s.
	Timeout time.Duration
	Logger  *slog.Logger
}

// TLSOptions are PEM files; all empty: the system's authorities.
type TLSOptions struct {
	CA   string
	Cert string
	Key  string
}

var prefixName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// withDefaults fills in what is not set.
func (o Options) withDefaults() Options {
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Replicas == 0 || o.URL == "" {
		o.Replicas = 1
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// CheckPrefix tells what is wrong with a prefix, or nil.
func CheckPrefix(prefix string) error {
	if !prefixName.MatchString(prefix) {
		return fmt.Errorf("%q must be 1 to 64 of letters, digits, '-', '_'", prefix)
	}
	return nil
}

// natsOptions are those of the client; errors name the file that is wrong.
func (o *Options) natsOptions() ([]nats.Option, error) {
	out := []nats.Option{
		nats.Name(o.Name), nats.NoEcho(), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(reconnectWait), nats.ReconnectJitter(reconnectWait, reconnectWait),
		nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(2), nats.Timeout(dialTimeout),
		nats.FlusherTimeout(writeTimeout), nats.ReconnectOnFlusherError(),
		// What could not be sent is told to whoever published it, not sent later.
		nats.ReconnectBufSize(-1), nats.IgnoreAuthErrorAbort(),
		// Subjects are made here, of tokens that are known to be good.
		nats.SkipSubjectValidation(),
	}
	if o.User != "" {
		out = append(out, nats.UserInfo(o.User, o.Password))
	}
	if o.Token != "" {
		out = append(out, nats.Token(o.Token))
	}
	if o.Credentials != "" {
		if err := readable(o.Credentials); err != nil {
			return nil, err
		}
		out = append(out, nats.UserCredentials(o.Credentials))
	}
	if o.NKey != "" {
		key, err := nats.NkeyOptionFromSeed(o.NKey)
		if err != nil {
			return nil, fmt.Errorf("cluster: read %s: %w", o.NKey, err)
		}
		out = append(out, key)
	}
	if o.TLS != (TLSOptions{}) {
		c, err := o.TLS.config()
		if err != nil {
			return nil, err
		}
		out = append(out, nats.Secure(c))
	}
	return out, nil
}

func readable(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return f.Close()
}

func (t *TLSOptions) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		b, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("cluster: %s holds no certificate", t.CA)
		}
	}
	if (t.Cert == "") != (t.Key == "") {
		return nil, errors.New("cluster: a certificate needs its key, and a key its certificate")
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// servers are the addresses of a URL option, with the scheme that NATS wants.
func servers(url string) string {
	list := strings.Split(url, ",")
	for i, s := range list {
		list[i] = strings.TrimSpace(s)
	}
	return strings.Join(list, ",")
}
