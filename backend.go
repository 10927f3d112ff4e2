package perch

import (
	"fmt"
	"strings"
	"time"

	"perch/backend"
	"perch/handler"
	"perch/netpoll"
)

// backendCall is the most that a client waits for the backend, in a queue or for
// the answer.
const backendCall = 10 * time.Second

// urls are those of the methods.
func (o *BackendOptions) urls() [backend.MethodCount]string {
	return [backend.MethodCount]string{
		backend.Connect: o.Connect, backend.Refresh: o.Refresh, backend.Subscribe: o.Subscribe, backend.SubRefresh: o.SubRefresh,
		backend.Publish: o.Publish, backend.RPC: o.RPC,
	}
}

// backendTimeout leaves room below the connect timeout: who waits for the backend
// is told to come back, and is not closed as stale.
func (o *Options) backendTimeout() time.Duration {
	return min(backendCall, o.Limits.ConnectTimeout*3/4)
}

// wireBackend makes the client of the backend, where there is one.
func (s *Server) wireBackend() error {
	b := &s.opts.Backend
	if b.urls() == [backend.MethodCount]string{} {
		return nil
	}
	var err error
	s.backend, err = backend.New(backend.Options{
		URLs: b.urls(), Timeout: b.Timeout, Least: min(b.Timeout, s.opts.backendTimeout()/2), Connections: b.Connections, IdleTimeout: b.IdleTimeout, Wait: b.Wait,
		ResponseSize: b.ResponseSize, Retries: b.Retries, Secret: b.Secret, Static: b.StaticHeaders, Binary: b.Binary,
		BreakerFailures: b.BreakerFailures, BreakerOpen: b.BreakerOpen, Logger: s.log,
	})
	if err != nil {
		return fmt.Errorf("perch: %w", err)
	}
	if len(b.Headers) > 0 {
		s.passed = make(map[string]bool, len(b.Headers))
		for _, name := range b.Headers {
			s.passed[strings.ToLower(name)] = true
		}
	}
	return nil
}

// passedHeaders are the headers of an opening handshake that go with calls of the
// backend. Runs on the loop.
func (s *Server) passedHeaders(r *netpoll.Request) string {
	if s.passed == nil {
		return ""
	}
	var b strings.Builder
	r.Header(func(name, value string) {
		if s.passed[strings.ToLower(name)] {
			b.WriteString(name + ": " + value + "\r\n")
		}
	})
	return b.String()
}

// backend checks what is asked of whom.
func (c *checker) backend(o *Options) {
	b := &o.Backend
	any := false
	for m, raw := range b.urls() {
		if raw == "" {
			continue
		}
		any = true
		if err := backend.CheckURL(raw); err != nil {
			c.fail("backend."+backend.Method(m).String(), "%w", err)
		}
	}
	if b.Connect != "" && o.Auth.Require == string(handler.RequireHandshake) {
		c.fail("backend.connect", "is never asked with auth.require: handshake, which wants a token of everybody: use auth.require: connect")
	}
	for i, name := range b.Headers {
		if err := backend.CheckHeader(name); err != nil {
			c.fail(fmt.Sprintf("backend.headers[%d]", i), "%w", err)
		}
	}
	for i, line := range b.StaticHeaders {
		if err := backend.CheckStatic(line); err != nil {
			c.fail(fmt.Sprintf("backend.static_headers[%d]", i), "%w", err)
		}
	}
	if !printableASCII(b.Secret) || strings.TrimSpace(b.Secret) != b.Secret {
		c.fail("backend.secret", "must be printable ASCII without spaces around it, as it travels in a header")
	}
	c.duration("backend.timeout", b.Timeout, 10*time.Millisecond, time.Minute)
	if most := o.backendTimeout(); any && b.Timeout > most && b.Timeout <= time.Minute {
		c.fail("backend.timeout", "%s must not be above %s: a client waits 10s at the most, and three quarters of limits.connect_timeout (%s)",
			short(b.Timeout), short(most), short(o.Limits.ConnectTimeout))
	}
	c.count("backend.connections", b.Connections, 1, 1<<16)
	c.duration("backend.idle_timeout", b.IdleTimeout, 10*time.Millisecond, time.Hour)
	c.duration("backend.wait", b.Wait, time.Millisecond, time.Minute)
	c.count("backend.response_size", b.ResponseSize, 1<<10, 64<<20)
	c.count("backend.retries", b.Retries, -1, 10)
	c.count("backend.breaker_failures", b.BreakerFailures, -1, 1<<20)
	c.duration("backend.breaker_open", b.BreakerOpen, 10*time.Millisecond, time.Hour)
	c.proxied("topics.default", b, o.Topics.Default.SubscribeProxyEnabled, o.Topics.Default.SubRefreshProxyEnabled, o.Topics.Default.PublishProxyEnabled)
	for i, ns := range o.Topics.Namespaces {
		c.proxied(fmt.Sprintf("topics.namespaces[%d]", i), b, ns.SubscribeProxyEnabled, ns.SubRefreshProxyEnabled, ns.PublishProxyEnabled)
	}
}

// proxied checks that a namespace asks at URLs that there are.
func (c *checker) proxied(key string, b *BackendOptions, subscribe, subRefresh, publish bool) {
	for _, e := range []struct {
		on        bool
		name, url string
	}{{subscribe, "subscribe", b.Subscribe}, {subRefresh, "sub_refresh", b.SubRefresh}, {publish, "publish", b.Publish}} {
		if e.on && e.url == "" {
			c.fail(key+"."+e.name+"_proxy_enabled", "needs the URL to ask at: set backend.%s", e.name)
		}
	}
}
