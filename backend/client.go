package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"perch/internal/stats"
)

// What can go wrong with a call, beside a refusal of the backend's (*Error,
// *Disconnect). The package has logged and counted it.
var (
	// ErrOpen: the method has failed so often that it is not asked now.
	ErrOpen = errors.New("backend: circuit breaker open")
	// ErrFailed: no answer, or none that can be read.
	ErrFailed = errors.New("backend: call failed")

	errTooLarge = errors.New("backend: answer larger than backend.response_size")
	// errLate: the caller's time was over, or too little of it was left to ask.
	errLate = errors.New("backend: waited too long for a worker")
	// errTimeout: backend.timeout was over.
	errTimeout = fmt.Errorf("backend: no answer within backend.timeout: %w", context.DeadlineExceeded)
	// errGone: the caller has gone.
	errGone = errors.New("backend: caller has gone")
)

// statusError is an answer other than 200.
type statusError int

func (e statusError) Error() string {
	return fmt.Sprintf("backend: answered with HTTP status %d", int(e))
}

// Client calls the backends of a server. A nil Client serves no method.
type Client struct {
	opts      Options
	static    http.Header
	endpoints [MethodCount]*endpoint
	origins   []*origin
}

// endpoint is where one method is asked.
type endpoint struct {
	method  Method
	url     *url.URL
	origin  *origin
	share   chan struct{} // of the origin's slots
	wait    time.Duration
	breaker *gobreaker.CircuitBreaker[struct{}] // nil: none
	waits   stats.Counter
	retries stats.Counter
	calls   stats.Vec[string] // by outcome
	times   stats.Histogram
	log     complaints
}

// New makes a client. It dials nothing. Its error is that of CheckURL or
// CheckStatic.
func New(o Options) (*Client, error) {
	o.fill()
	c := &Client{opts: o, static: make(http.Header)}
	for _, line := range o.Static {
		if err := CheckStatic(line); err != nil {
			return nil, fmt.Errorf("backend: static header: %w", err)
		}
		name, value, _ := strings.Cut(line, ":")
		c.static.Add(name, strings.Trim(value, " \t"))
	}
	if o.Secret != "" {
		c.static.Set(secretHeader, o.Secret)
	}
	byName := make(map[string]*origin)
	sharing := make(map[*origin]int)
	for m, raw := range o.URLs {
		if raw == "" {
			continue
		}
		if err := CheckURL(raw); err != nil {
			return nil, fmt.Errorf("backend: URL of %s: %w", Method(m), err)
		}
		u, err := url.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("backend: URL of %s: %w", Method(m), err)
		}
		name := strings.ToLower(u.Scheme + "://" + u.Host)
		if byName[name] == nil {
			byName[name] = newOrigin(strings.ToLower(u.Host), &c.opts)
			c.origins = append(c.origins, byName[name])
		}
		e := &endpoint{method: Method(m), url: u, origin: byName[name], wait: o.Wait}
		e.log = complaints{log: o.Logger, method: e.method.String(), backend: e.origin.name}
		e.breaker = newBreaker(e, &c.opts)
		sharing[e.origin]++
		c.endpoints[m] = e
	}
	for _, e := range c.endpoints {
		if e == nil {
			continue
		}
		share := o.Connections
		if sharing[e.origin] > 1 {
			// One method whose answers don't come leaves the others what they need.
			share = (share + 1) / 2
		}
		e.share = make(chan struct{}, share)
	}
	return c, nil
}

// Serves tells whether a method is asked.
func (c *Client) Serves(m Method) bool { return c != nil && c.endpoints[m] != nil }

// Close gives the idle connections back. Calls under way end with their contexts.
func (c *Client) Close() {
	for _, o := range c.origins {
		o.transport.CloseIdleConnections()
	}
}

// Connect asks who a client is that brings no token.
func (c *Client) Connect(ctx context.Context, p *Peer, q *ConnectRequest) (*ConnectResult, error) {
	r := c.connectRequest(p, q)
	return call[ConnectResult](ctx, c, Connect, p, &r)
}

// Refresh asks whether a session goes on that has come to its end.
func (c *Client) Refresh(ctx context.Context, p *Peer) (*RefreshResult, error) {
	r := c.topicRequest(p, "")
	return call[RefreshResult](ctx, c, Refresh, p, &r)
}

// Subscribe asks whether a client may subscribe.
func (c *Client) Subscribe(ctx context.Context, p *Peer, q *SubscribeRequest) (*SubscribeResult, error) {
	r := c.payloadRequest(p, q.Channel, q.Data)
	return call[SubscribeResult](ctx, c, Subscribe, p, &r)
}

// SubRefresh asks whether a subscription goes on that has come to its end.
func (c *Client) SubRefresh(ctx context.Context, p *Peer, topic string) (*RefreshResult, error) {
	r := c.topicRequest(p, topic)
	return call[RefreshResult](ctx, c, SubRefresh, p, &r)
}

// Publish asks whether a client may publish, and what.
func (c *Client) Publish(ctx context.Context, p *Peer, q *PublishRequest) (*PublishResult, error) {
	r := c.payloadRequest(p, q.Channel, q.Data)
	return call[PublishResult](ctx, c, Publish, p, &r)
}

// RPC passes a call on.
func (c *Client) RPC(ctx context.Context, p *Peer, q *RPCRequest) (*RPCResult, error) {
	r := c.rpcRequest(p, q)
	return call[RPCResult](ctx, c, RPC, p, &r)
}

// call asks, within the breaker, the time of a call and the connections.
func call[T any, R interface {
	*T
	result
}](ctx context.Context, c *Client, m Method, p *Peer, r *request) (R, error) {
	e := c.endpoints[m]
	start := time.Now()
	var out R
	ask := func() (struct{}, error) {
		body, err := r.encode()
		if err != nil {
			return struct{}{}, err
		}
		// From start, not from now: a caller with just enough time left is not late.
		own, cancel := context.WithDeadlineCause(ctx, start.Add(c.opts.Timeout), errTimeout)
		defer cancel()
		answer, err := c.ask(own, e, c.header(p), body)
		if err != nil {
			return struct{}{}, ended(own, err)
		}
		if out, err = decode[T, R](answer); err != nil && !refusal(err) {
			err = &unreadable{err}
		}
		return struct{}{}, err
	}
	var err error
	asked := true
	if until, ok := ctx.Deadline(); ok && until.Sub(start) < c.opts.Least {
		// Not the breaker's matter: it would only take the place of a call that can
		// still be answered.
		asked, err = false, errLate
	} else if e.breaker == nil {
		_, err = ask()
	} else {
		_, err = e.breaker.Execute(ask)
	}
	o := outcomeOf(err)
	e.calls.Inc(o)
	if asked && o != outcomeOpen && o != outcomeBusy {
		e.times.Observe(time.Since(start))
	}
	switch o {
	case outcomeOK:
		return out, nil
	case outcomeError, outcomeDisconnect:
		return nil, err
	case outcomeOpen:
		return nil, ErrOpen // the breaker has said so when it opened
	case outcomeCancelled:
		return nil, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	e.log.add(o, err)
	return nil, fmt.Errorf("%w: %w", ErrFailed, err)
}

// ended is the error of a call that failed within ctx. Where its caller's time has
// ended, and not its own, that says nothing about the backend.
func ended(ctx context.Context, err error) error {
	var status statusError
	switch cause := context.Cause(ctx); {
	case cause == nil, errors.Is(cause, errTimeout), errors.As(err, &status), errors.Is(err, errTooLarge):
		return err
	case errors.Is(cause, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", errLate, err)
	}
	return fmt.Errorf("%w: %w", errGone, err)
}

// header is that of a call. The configured headers take the place of a client's.
func (c *Client) header(p *Peer) http.Header {
	h := make(http.Header, 4+len(c.static))
	for line := range strings.SplitSeq(p.Headers, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			h.Add(name, strings.Trim(value, " \t"))
		}
	}
	if len(h["User-Agent"]) == 0 {
		h.Set("User-Agent", "perch")
	}
	for name, values := range c.static {
		h[name] = values
	}
	h.Set("Content-Type", "application/json")
	h.Set("Accept", "application/json")
	return h
}

// ask makes the attempts of a call. A method that can't be repeated is asked
// again only where no connection could be made: the backend has seen nothing then.
func (c *Client) ask(ctx context.Context, e *endpoint, h http.Header, body []byte) ([]byte, error) {
	for try := 0; ; try++ {
		answer, sent, err := c.attempt(ctx, e, h, body)
		if err == nil || try >= c.opts.Retries || ctx.Err() != nil || !again(err) || sent && !e.method.repeatable() {
			return answer, err
		}
		if !pause(ctx, try) {
			return nil, err
		}
		e.retries.Inc()
	}
}

// again tells whether another attempt may fare better.
func again(err error) bool {
	var status statusError
	if errors.As(err, &status) {
		switch int(status) {
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
			return true
		}
		return false
	}
	return !errors.Is(err, errTooLarge) && !errors.Is(err, errBusy)
}

// pause spreads the second attempts of those who failed together; false: ctx has
// ended.
func pause(ctx context.Context, try int) bool {
	d := 20 * time.Millisecond << min(try, 5)
	t := time.NewTimer(d + rand.N(2*d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// attempt sends one request and reads the answer. sent is false where there was
// no connection to send it on. The body is closed here, whatever comes; nothing
// but bytes leaves.
func (c *Client) attempt(ctx context.Context, e *endpoint, h http.Header, body []byte) (answer []byte, sent bool, err error) {
	if err := e.take(ctx); err != nil {
		return nil, false, err
	}
	defer e.give()
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url.String(), bytes.NewReader(body))
	if err != nil {
		return nil, false, fmt.Errorf("backend: make request: %w", err)
	}
	req.Header = h
	// Not http.Client: it would follow redirects, with the secret.
	resp, err := e.origin.transport.RoundTrip(req)
	if err != nil {
		return nil, connected.Load(), fmt.Errorf("backend: send request: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or is not worth reading
	if resp.StatusCode != http.StatusOK {
		// A short page of an error is read, so that the connection lives on.
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
		return nil, true, statusError(resp.StatusCode)
	}
	most := int64(c.opts.ResponseSize)
	if resp.ContentLength > most {
		return nil, true, errTooLarge
	}
	var b bytes.Buffer
	if resp.ContentLength > 0 {
		b.Grow(int(resp.ContentLength) + bytes.MinRead)
	}
	n, err := b.ReadFrom(io.LimitReader(resp.Body, most+1))
	switch {
	case err != nil:
		return nil, true, fmt.Errorf("backend: read answer: %w", err)
	case n > most:
		return nil, true, errTooLarge
	}
	return b.Bytes(), true, nil
}

// unreadable is an answer that makes no sense.
type unreadable struct{ err error }

func (u *unreadable) Error() string { return u.err.Error() }
func (u *unreadable) Unwrap() error { return u.err }

func refusal(err error) bool {
	var e *Error
	var d *Disconnect
	return errors.As(err, &e) || errors.As(err, &d)
}

// Outcomes of a call: values of a metric label.
const (
	outcomeOK          = "ok"
	outcomeError       = "error"       // the backend's
	outcomeDisconnect  = "disconnect"  // the backend's
	outcomeUnreachable = "unreachable" // no connection, or a broken one
	outcomeTimeout     = "timeout"
	outcomeStatus      = "status" // not 200
	outcomeTooLarge    = "too_large"
	outcomeMalformed   = "malformed"
	outcomeBusy        = "busy"
	outcomeOpen        = "breaker_open"
	outcomeLate        = "late"      // its caller's time was over, or nearly
	outcomeCancelled   = "cancelled" // the session has gone, or the server ends
)

// outcomeOf names what has come of a call.
func outcomeOf(err error) string {
	var refused *Error
	var gone *Disconnect
	var status statusError
	var garbage *unreadable
	var slow net.Error
	switch {
	case err == nil:
		return outcomeOK
	case errors.As(err, &refused):
		return outcomeError
	case errors.As(err, &gone):
		return outcomeDisconnect
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		return outcomeOpen
	case errors.Is(err, errGone):
		return outcomeCancelled
	case errors.Is(err, errLate):
		return outcomeLate
	case errors.Is(err, errBusy):
		return outcomeBusy
	case errors.As(err, &status):
		return outcomeStatus
	case errors.Is(err, errTooLarge):
		return outcomeTooLarge
	case errors.As(err, &garbage):
		return outcomeMalformed
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &slow) && slow.Timeout():
		return outcomeTimeout
	}
	return outcomeUnreachable
}
