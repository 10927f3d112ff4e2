package backend

import (
	"errors"
	"fmt"
	"log/slog"
	"net/textproto"
	"net/url"
	"strings"
	"time"
)

// Method is what the backend is asked.
type Method uint8

// The methods.
const (
	Connect Method = iota
	Refresh
	Subscribe
	SubRefresh
	Publish
	RPC
	MethodCount
)

var methodNames = [MethodCount]string{"connect", "refresh", "subscribe", "sub_refresh", "publish", "rpc"}

// String is the metric label of m, and its key in the configuration.
func (m Method) String() string {
	if m >= MethodCount {
		return "none"
	}
	return methodNames[m]
}

// repeatable tells whether asking twice does no more than asking once. What a
// publication or a call does, only the backend knows.
func (m Method) repeatable() bool { return m != Publish && m != RPC }

// Options configure a Client. Zero values mean the defaults.
type Options struct {
	// URLs are where the methods are asked; empty: not at all. Those of one
	// scheme, host and port are one backend.
	URLs [MethodCount]string
	// Timeout bounds a call with all its attempts; 0 means 3 s.
	Timeout time.Duration
	// Least is how much of its caller's time a call must find left to begin; 0 means
	// Timeout. Less than that lets calls end before the backend's time is over.
	Least time.Duration
	// Connections bounds those to one backend, in use and idle; 0 means 64. Where
	// several methods share a backend, one has half of them at the most.
	Connections int
	// IdleTimeout is how long a connection is kept that nobody uses; 0 means 30 s.
	IdleTimeout time.Duration
	// Wait is how long a call waits for a connection; 0 means 500 ms.
	Wait time.Duration
	// ResponseSize bounds the body of an answer, in bytes; 0 means 1 MiB.
	ResponseSize int
	// Retries is how often a call is repeated that can be; 0 means once, below 0
	// never.
	Retries int
	// Secret, where set, goes with each call as X-API-Key.
	Secret string
	// Static are headers of each call, as "Name: value".
	Static []string
	// Binary sends all payloads in base64.
	Binary bool
	// BreakerFailures is how many calls of a method fail in a row until the breaker
	// opens; 0 means 10, below 0 never. BreakerOpen is for how long; 0 means 5 s.
	BreakerFailures int
	BreakerOpen     time.Duration
	Logger          *slog.Logger
}

const (
	defaultTimeout      = 3 * time.Second
	defaultConnections  = 64
	defaultIdleTimeout  = 30 * time.Second
	defaultWait         = 500 * time.Millisecond
	defaultResponseSize = 1 << 20
	defaultRetries      = 1
	defaultFailures     = 10
	defaultOpen         = 5 * time.Second
)

func (o *Options) fill() {
	set(&o.Timeout, defaultTimeout)
	set(&o.Least, o.Timeout)
	set(&o.Connections, defaultConnections)
	set(&o.IdleTimeout, defaultIdleTimeout)
	set(&o.Wait, defaultWait)
	set(&o.ResponseSize, defaultResponseSize)
	set(&o.Retries, defaultRetries)
	set(&o.BreakerFailures, defaultFailures)
	set(&o.BreakerOpen, defaultOpen)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func set[T comparable](v *T, to T) {
	if *v == *new(T) {
		*v = to
	}
}

// CheckURL tells what is wrong with the URL of a method. A URL is shown in
// errors and logs: secrets have a place of their own.
func CheckURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return errors.New("must be an http or https URL, such as http://127.0.0.1:3000/perch/connect")
	case u.User != nil:
		return errors.New("must hold no user and password: put a secret into backend.secret")
	case u.Fragment != "":
		return errors.New("must have no fragment (#)")
	}
	return nil
}

// secretHeader carries Options.Secret. It is not Authorization, which a client's
// handshake may have and a backend may want to see.
const secretHeader = "X-Api-Key"

// ownHeaders are those that a call makes itself, that speak of a connection and
// not of its peer (RFC 9110, section 7.6.1), or that would let net/http repeat
// what must not be repeated (Idempotency-Key).
var ownHeaders = map[string]bool{
	secretHeader: true, "Accept": true, "Accept-Encoding": true, "Connection": true, "Content-Encoding": true,
	"Content-Length": true, "Content-Type": true, "Expect": true, "Host": true, "Idempotency-Key": true,
	"Keep-Alive": true, "Proxy-Authorization": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "X-Idempotency-Key": true,
}

// CheckHeader tells what is wrong with the name of a header that goes with calls.
func CheckHeader(name string) error {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	}) {
		return fmt.Errorf("%q must be the name of a header, such as Cookie", name)
	}
	if key := textproto.CanonicalMIMEHeaderKey(name); ownHeaders[key] || strings.HasPrefix(key, "Sec-Websocket-") {
		return fmt.Errorf("%s can't go with calls: leave it out", name)
	}
	return nil
}

// CheckStatic tells what is wrong with a header of Options.Static. Its error does
// not show the value.
func CheckStatic(line string) error {
	name, value, ok := strings.Cut(line, ":")
	if !ok {
		return errors.New(`must be "Name: value"`)
	}
	if err := CheckHeader(name); err != nil {
		return err
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return fmt.Errorf("the value of %s must be one line of text", name)
	}
	return nil
}
