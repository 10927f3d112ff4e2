package perch

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

// WithDefaults is o with the default in the place of every zero value. Lists
// and switches have no other default than theirs.
func (o Options) WithDefaults() Options {
	fillZero(reflect.ValueOf(&o).Elem(), reflect.ValueOf(DefaultOptions()))
	return o
}

func fillZero(dst, def reflect.Value) {
	for i := range dst.NumField() {
		switch f := dst.Field(i); {
		case f.Kind() == reflect.Struct:
			fillZero(f, def.Field(i))
		case f.IsZero() && f.CanSet():
			f.Set(def.Field(i))
		}
	}
}

// Check tells everything that is wrong with the options, each error one line
// that begins with the key's path; nil where they are good. Zero values are
// checked as the defaults that they stand for, and dev mode as what it turns
// on. It reads the key files and binds nothing. Safe from any goroutine.
func (o Options) Check() []error {
	o = o.WithDefaults()
	if o.Dev {
		o = o.WithDev()
	}
	var c checker
	c.server(&o)
	c.auth(&o)
	c.topics(&o)
	c.nats(&o)
	c.paths(&o)
	c.webSocket(&o.WebSocket)
	c.proxy(&o.Proxy)
	c.numbers(&o)
	c.backend(&o)
	return c.errs
}

// checker collects what is wrong.
type checker struct{ errs []error }

func (c *checker) fail(key, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
}

func (c *checker) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		c.fail(key, "%q must be one of %s", value, strings.Join(allowed, ", "))
	}
}

func (c *checker) count(key string, v, least, most int) {
	if v < least || v > most {
		c.fail(key, "%d must be from %d to %d", v, least, most)
	}
}

func (c *checker) duration(key string, v, least, most time.Duration) {
	if v < least || v > most {
		c.fail(key, "%s must be from %s to %s", short(v), short(least), short(most))
	}
}

// short writes a duration without its zeros: 1h instead of 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func (c *checker) server(o *Options) {
	listenOK := c.address("listen", o.Listen, o.Dev)
	adminOK := c.address("admin", o.Admin, o.Dev)
	if listenOK && adminOK && sameAddress(o.Listen, o.Admin) {
		c.fail("admin", "%s is taken by listen (%s): give it a port of its own", o.Admin, o.Listen)
	}
	if info, err := os.Stat(o.DataDir); err == nil && !info.IsDir() {
		c.fail("data_dir", "%q is not a directory", o.DataDir)
	}
	c.count("loops", o.Loops, 0, session.MaxLoops)
	c.oneOf("log.level", o.Log.Level, "debug", "info", "warn", "error")
	c.oneOf("log.format", o.Log.Format, "text", "json")
	if !printableASCII(o.API.Key) || strings.TrimSpace(o.API.Key) != o.API.Key {
		c.fail("api.key", "must be printable ASCII without spaces around it, as it travels in a header")
	}
}

// address checks host:port. Names are not looked up: that would make the
// check depend on the network.
func (c *checker) address(key, addr string, dev bool) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		c.fail(key, "%q must be host:port, such as 127.0.0.1:8000 or :8000", addr)
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		c.fail(key, "%q must end in a port from 0 to 65535", addr)
		return false
	} else if strconv.FormatUint(n, 10) != port {
		c.fail(key, "%q must have its port written as %d", addr, n)
		return false
	}
	if strings.ContainsAny(host, "/?#@ *") {
		c.fail(key, "%q must have an address or a host name before the port", addr)
		return false
	}
	if dev && !loopback(host) {
		c.fail(key, "%s can be reached from outside, which dev mode's known secret forbids: use 127.0.0.1:%s, or leave dev out", addr, port)
		return false
	}
	return true
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// sameAddress tells whether two addresses can't be bound at once. Port 0 is
// never the same: the system chooses.
func sameAddress(a, b string) bool {
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	if portA != portB || portA == "0" {
		return false
	}
	return hostA == hostB || everyAddress(hostA) || everyAddress(hostB)
}

func everyAddress(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

func (c *checker) auth(o *Options) {
	a := &o.Auth
	c.oneOf("auth.require", a.Require, "connect", "handshake", "none")
	ids := map[string]int{}
	for i, k := range a.Keys {
		key := fmt.Sprintf("auth.keys[%d]", i)
		if first, ok := ids[k.ID]; ok && k.ID != "" {
			c.fail(key+".id", "%q is the id of auth.keys[%d] already", k.ID, first)
		}
		ids[k.ID] = i
		c.keyFile(key+".file", k)
	}
	if a.JWKSURL != "" {
		u, err := url.Parse(a.JWKSURL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			c.fail("auth.jwks_url", "must be an http or https URL, such as https://id.example.com/.well-known/jwks.json")
		}
	}
	c.duration("auth.jwks_refresh", a.JWKSRefresh, time.Second, 24*time.Hour)
	c.lifetimes("auth", a.TokenTTL, a.RefreshTTL)
	c.clients(o)
}

// tokenMost bounds lifetimes: past a few years an access token is a password.
const (
	tokenMost   = 10 * 365 * 24 * time.Hour
	refreshMost = 10 * 365 * 24 * time.Hour
)

func (c *checker) lifetimes(key string, token, refresh time.Duration) {
	c.duration(key+".token_ttl", token, time.Second, tokenMost)
	if refresh < 0 {
		return // no refresh tokens
	}
	c.duration(key+".refresh_ttl", refresh, time.Second, refreshMost)
	if refresh < token && refresh >= time.Second {
		c.fail(key+".refresh_ttl", "%s must not be shorter than %s.token_ttl (%s)", short(refresh), key, short(token))
	}
}

func (c *checker) keyFile(key string, k KeyOptions) {
	if k.File == "" {
		c.fail(key, "is missing: give the path of a PEM file")
		return
	}
	if err := auth.CheckKeyFile(auth.KeyOptions{ID: k.ID, File: k.File}); err != nil {
		c.fail(key, "%w", err)
	}
}

func (c *checker) clients(o *Options) {
	ids := map[string]int{}
	for i, cl := range o.Auth.Clients {
		key := fmt.Sprintf("auth.clients[%d]", i)
		first, again := ids[cl.ID]
		switch {
		case cl.ID == "":
			c.fail(key+".id", "is missing")
		case !printableASCII(cl.ID):
			c.fail(key+".id", "%q must be printable ASCII (RFC 6749, appendix A.1)", cl.ID)
		case again:
			c.fail(key+".id", "%q is the id of auth.clients[%d] already", cl.ID, first)
		}
		ids[cl.ID] = i
		c.secretHash(key+".secret_hash", cl.SecretHash)
		for j, name := range cl.Channels {
			c.topicName(fmt.Sprintf("%s.channels[%d]", key, j), name, &o.Topics)
		}
		token, refresh := cl.TokenTTL, cl.RefreshTTL
		if token == 0 {
			token = o.Auth.TokenTTL
		}
		if refresh == 0 {
			refresh = o.Auth.RefreshTTL
			if refresh >= 0 {
				refresh = max(refresh, token) // its own token_ttl is no fault of auth's
			}
		}
		if cl.TokenTTL != 0 || cl.RefreshTTL != 0 {
			c.lifetimes(key, token, refresh)
		}
	}
}

// secretHash never shows the hash: who has it can guess at leisure.
func (c *checker) secretHash(key, hash string) {
	if hash == "" {
		c.fail(key, "is missing: give a bcrypt or argon2id hash of the secret")
		return
	}
	if err := auth.CheckSecretHash(hash); err != nil {
		c.fail(key, "must be a bcrypt ($2a$…) or argon2id ($argon2id$…) hash, in quotes: %w", err)
	}
}

func (c *checker) topics(o *Options) {
	t := &o.Topics
	if t.Default.Name != "" {
		c.fail("topics.default.name", "must be empty: the default rules are those of topics without a namespace")
	} else {
		c.namespace("topics.default", &t.Default)
	}
	names := map[string]int{}
	for i := range t.Namespaces {
		ns := &t.Namespaces[i]
		key := fmt.Sprintf("topics.namespaces[%d]", i)
		if first, ok := names[ns.Name]; ok && ns.Name != "" {
			c.fail(key+".name", "%q is the name of topics.namespaces[%d] already", ns.Name, first)
		}
		names[ns.Name] = i
		if ns.Name == "" {
			c.fail(key+".name", "is missing")
		}
		c.namespace(key, ns)
	}
	if t.PersonalNamespace != "" && !hasNamespace(t, t.PersonalNamespace) {
		c.fail("topics.personal_namespace", "%q is not in topics.namespaces", t.PersonalNamespace)
	}
	c.count("topics.max_subscriptions", t.MaxSubscriptions, 1, 1<<20)
	c.count("topics.max_length", t.MaxLength, 1, 1<<16-1)
	c.count("topics.history_bytes", t.HistoryBytes, 1<<20, 1<<40)
	c.count("topics.history_topic_bytes", t.HistoryTopicBytes, 1<<10, t.HistoryBytes)
	c.count("topics.history_limit", t.HistoryLimit, 1, 1<<16)
	c.count("topics.recovery_limit", t.RecoveryLimit, 1, 1<<16)
	c.duration("topics.history_meta_ttl", t.HistoryMetaTTL, time.Second, 365*24*time.Hour)
	c.duration("topics.idempotency_ttl", t.IdempotencyTTL, time.Second, 24*time.Hour)
	c.duration("topics.join_leave_interval", t.JoinLeaveInterval, time.Millisecond, time.Minute)
	c.duration("topics.position_interval", t.PositionInterval, time.Second, time.Hour)
}

// namespace: the error of its Check begins with the key inside the namespace.
func (c *checker) namespace(key string, ns *topic.NamespaceOptions) {
	if err := ns.Check(); err != nil {
		c.errs = append(c.errs, fmt.Errorf("%s.%w", key, err))
	}
}

func hasNamespace(t *TopicOptions, name string) bool {
	return slices.ContainsFunc(t.Namespaces, func(ns topic.NamespaceOptions) bool { return ns.Name == name })
}

func (c *checker) topicName(key, name string, t *TopicOptions) {
	if name == "" {
		c.fail(key, "is empty")
		return
	}
	if len(name) > t.MaxLength {
		c.fail(key, "is longer than topics.max_length (%d bytes)", t.MaxLength)
	}
	ns, _, ok := strings.Cut(strings.TrimPrefix(name, "$"), topic.Separator)
	if ok && !hasNamespace(t, ns) {
		c.fail(key, "%q is of the namespace %q, which is not in topics.namespaces", name, ns)
	}
}

// servedPaths are those of the public port's other endpoints.
var servedPaths = []string{"/", "/echo", "/demo", "/v1", "/.well-known"}

// paths are those of the endpoints that a loop serves.
func (c *checker) paths(o *Options) {
	d := DefaultOptions()
	taken := make(map[string]string)
	for _, e := range []struct{ key, path, fallback string }{
		{"websocket.path", o.WebSocket.Path, d.WebSocket.Path},
		{"websocket.uni_path", o.WebSocket.UniPath, d.WebSocket.UniPath},
		{"sse.path", o.SSE.Path, d.SSE.Path},
	} {
		if e.path == PathOff && e.key != "websocket.path" {
			continue
		}
		c.path(e.key, e.path, e.fallback)
		if other := taken[e.path]; other != "" {
			c.fail(e.key, "%q is %s already: choose another, such as %s", e.path, other, e.fallback)
		}
		taken[e.path] = e.key
	}
}

func (c *checker) path(key, p, fallback string) {
	switch {
	case !strings.HasPrefix(p, "/"):
		c.fail(key, "%q must begin with /", p)
	case path.Clean(p) != p || strings.ContainsAny(p, "?#% \"\\") || !printableASCII(p):
		c.fail(key, "%q must be a plain path, such as %s", p, fallback)
	default:
		for _, other := range servedPaths {
			if p == other || other != "/" && strings.HasPrefix(p, other+"/") {
				c.fail(key, "%q is served already (%s): choose another, such as %s", p, other, fallback)
			}
		}
	}
}

func (c *checker) webSocket(w *WebSocketOptions) {
	for i, pattern := range w.AllowedOrigins {
		if !originPattern(pattern) {
			c.fail(fmt.Sprintf("websocket.allowed_origins[%d]", i),
				`%q must be scheme://host[:port], such as https://app.example.com or https://*.example.com, or "*" for all`, pattern)
		}
	}
	// Below 1 KiB not even a connect command with its token would pass.
	c.count("websocket.message_size", w.MessageSize, 1<<10, 64<<20)
	// Pings of the client protocol stay below it.
	c.count("websocket.compression_threshold", w.CompressionThreshold, 32, 64<<20)
}

// originPattern: an origin has a scheme, a host and maybe a port, nothing else
// (RFC 6454, section 6.2).
func originPattern(p string) bool {
	if p == "*" {
		return true
	}
	scheme, host, ok := strings.Cut(p, "://")
	if _, err := path.Match(p, ""); err != nil {
		return false // as patterns are matched
	}
	return ok && scheme != "" && host != "" && !strings.ContainsAny(p, " ,?#@\\") && !strings.Contains(host, "/") &&
		printableASCII(p)
}

func (c *checker) proxy(p *ProxyOptions) {
	for i, n := range p.Trusted {
		if _, err := parseNetwork(n); err != nil {
			c.fail(fmt.Sprintf("proxy.trusted[%d]", i), "%q must be a network or an address, such as 10.0.0.0/8 or 2001:db8::7", n)
		}
	}
	if p.Protocol && len(p.Trusted) == 0 {
		c.fail("proxy.protocol", "needs proxy.trusted: the networks of the proxies that send it")
	}
}

// parseNetwork reads a network, or an address as one of its own.
func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		return a.WithZone("").Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, err
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// networks are the proxies that are believed.
func (p *ProxyOptions) networks() (out []netip.Prefix) {
	for _, s := range p.Trusted {
		if n, err := parseNetwork(s); err == nil { // Check has seen it
			out = append(out, n)
		}
	}
	return out
}

func (c *checker) numbers(o *Options) {
	h := &o.Heartbeat
	c.duration("heartbeat.interval", h.Interval, 10*time.Millisecond, time.Hour)
	c.duration("heartbeat.timeout", h.Timeout, 10*time.Millisecond, time.Hour)
	if h.Timeout >= h.Interval {
		c.fail("heartbeat.timeout", "%s must be shorter than heartbeat.interval (%s)", short(h.Timeout), short(h.Interval))
	}
	c.count("heartbeat.misses", h.Misses, 1, 100)

	l := &o.Limits
	c.count("limits.connections", l.Connections, 0, 1<<30)
	c.count("limits.connections_per_address", l.ConnectionsPerAddress, 0, 1<<30)
	c.count("limits.connections_per_subnet", l.ConnectionsPerSubnet, 0, 1<<30)
	c.count("limits.connection_rate_per_address", l.ConnectionRatePerAddress, 0, 1<<30)
	c.count("limits.connection_rate_per_subnet", l.ConnectionRatePerSubnet, 0, 1<<30)
	c.count("limits.connection_rate", l.ConnectionRate, 0, 1<<30)
	c.duration("limits.connection_wait", l.ConnectionWait, time.Millisecond, time.Minute)
	c.count("limits.sessions_per_user", l.SessionsPerUser, 0, 1<<30)
	c.count("limits.message_rate", l.MessageRate, 0, 1<<30)
	c.count("limits.command_rate", l.CommandRate, 0, 1<<30)
	c.duration("limits.message_timeout", l.MessageTimeout, 10*time.Millisecond, time.Hour)
	c.count("limits.http_connections", l.HTTPConnections, 1, 1<<20)
	c.duration("limits.handshake_timeout", l.HandshakeTimeout, 10*time.Millisecond, time.Hour)
	c.duration("limits.connect_timeout", l.ConnectTimeout, 10*time.Millisecond, time.Hour)
	c.duration("limits.http_timeout", l.HTTPTimeout, 10*time.Millisecond, time.Hour)
	c.count("limits.pending_bytes", l.PendingBytes, 1<<10, 1<<30)
	c.count("limits.inbox_bytes", l.InboxBytes, 1<<10, 1<<30)

	if o.Memory.Budget != 0 {
		c.count("memory.budget", o.Memory.Budget, memoryLeast, 1<<50)
	}

	p := &o.Pool
	c.count("pool.workers", p.Workers, 1, 1<<16)
	c.count("pool.queue_bytes", p.QueueBytes, 1<<10, 1<<30)
	c.count("pool.session_bytes", p.SessionBytes, 1<<10, 1<<30)
	c.oneOf("pool.overflow", p.Overflow, "reply", "close")

	c.duration("pool.call_timeout", p.CallTimeout, time.Millisecond, time.Hour)

	c.duration("drain.budget", o.Drain.Budget, 0, time.Hour)
	c.duration("drain.delay", o.Drain.Delay, 0, time.Hour)
	c.count("drain.rate", o.Drain.Rate, 1, 1<<30)
}

func printableASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}
