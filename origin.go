package perch

import (
	"net/url"
	"path"
	"strings"
)

// origins decides which pages may open a WebSocket or read an answer (RFC
// 6454; against cross-site WebSocket hijacking).
type origins struct {
	patterns []string
	all      bool
}

func newOrigins(patterns []string) *origins {
	o := &origins{}
	for _, p := range patterns {
		if p == "*" {
			o.all = true
		}
		o.patterns = append(o.patterns, strings.ToLower(p))
	}
	return o
}

// allow tells whether a request with this Origin to this Host may pass: where
// there is no Origin (no browser), where the page comes from the same host, or
// where a pattern matches. Safe from any goroutine.
func (o *origins) allow(origin, host string) bool {
	if origin == "" || o.all {
		return true
	}
	if !printableASCII(origin) {
		return false // lower case would make others of some letters
	}
	origin = strings.ToLower(origin)
	u, err := url.Parse(origin)
	// "null" has no host; what has more than a scheme, a host and a port is no
	// origin, and a pattern would find its own in the rest.
	if err != nil || u.Host == "" || origin != u.Scheme+"://"+u.Host || !bracketsRight(u.Host) {
		return false
	}
	if u.Host == strings.ToLower(host) {
		return true
	}
	for _, p := range o.patterns {
		if ok, _ := path.Match(p, origin); ok {
			return true
		}
	}
	return false
}

// bracketsRight tells whether brackets stand where they may: around an IPv6
// address, at the front.
func bracketsRight(host string) bool {
	if !strings.ContainsAny(host, "[]") {
		return true
	}
	rest, ok := strings.CutPrefix(host, "[")
	address, port, closed := strings.Cut(rest, "]")
	return ok && closed && !strings.ContainsAny(address+port, "[]") && (port == "" || port[0] == ':')
}

// allowOrigin asks the origins that hold now. Safe from any goroutine.
func (s *Server) allowOrigin(origin, host string) bool { return s.origins.Load().allow(origin, host) }
