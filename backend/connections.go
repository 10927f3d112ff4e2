package backend

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// errBusy: no connection was free in time.
var errBusy = errors.New("backend: no connection free")

// origin is one backend: what is asked at one scheme, host and port.
type origin struct {
	name      string // host:port
	transport *http.Transport
	// slots bounds the attempts under way. One attempt has one connection, since
	// HTTP/2 is not spoken: a bound on its connections would bound nothing.
	slots chan struct{}
	open  atomic.Int64 // connections
	inUse atomic.Int64 // attempts under way
}

func newOrigin(name string, o *Options) *origin {
	or := &origin{name: name, slots: make(chan struct{}, o.Connections)}
	dialer := &net.Dialer{Timeout: o.Timeout, KeepAlive: 15 * time.Second}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	or.transport = &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			or.open.Add(1)
			return &counted{Conn: c, origin: or}, nil
		},
		Protocols:           protocols,
		TLSHandshakeTimeout: o.Timeout,
		// The transport may begin a dial that it then finds no use for: its own bound
		// counts those as well.
		MaxConnsPerHost:     o.Connections,
		MaxIdleConnsPerHost: o.Connections,
		IdleConnTimeout:     o.IdleTimeout,
		// What is not asked for can't be a bomb.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return or
}

// counted is a connection that counts.
type counted struct {
	net.Conn
	origin *origin
	once   sync.Once
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.once.Do(func() { c.origin.open.Add(-1) })
	return c.Conn.Close()
}

// take waits for a place among the attempts of the method and of its backend, for
// e's wait at the most. give must follow.
func (e *endpoint) take(ctx context.Context) error {
	select {
	case e.share <- struct{}{}:
		select {
		case e.origin.slots <- struct{}{}:
			e.origin.inUse.Add(1)
			return nil
		default:
			<-e.share
		}
	default:
	}
	e.waits.Inc()
	limit := time.NewTimer(e.wait)
	defer limit.Stop()
	for _, queue := range []chan struct{}{e.share, e.origin.slots} {
		select {
		case queue <- struct{}{}:
			continue
		case <-limit.C:
		case <-ctx.Done():
		}
		if queue == e.origin.slots {
			<-e.share
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		return errBusy // also where the call's time is below the wait
	}
	e.origin.inUse.Add(1)
	return nil
}

func (e *endpoint) give() {
	e.origin.inUse.Add(-1)
	<-e.origin.slots
	<-e.share
}
