package perch

import (
	"regexp"
	"strings"
	"testing"
)

// origin is what RFC 6454, section 6.2 makes of one, with the host names and
// addresses that browsers send.
var originForm = regexp.MustCompile(`^[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\x00-\x20/?#@\\:\[\]\x7f-\xff]+)(:[0-9]*)?$`)

// FuzzOrigin: what is let in is an origin and nothing more, and either the
// host's own or one of the patterns', by the end of its host.
func FuzzOrigin(f *testing.F) {
	for _, s := range []string{
		"https://a.example.com", "http://own.test:8000", "null", "https://u@a.example.com", "https://evil.net?.example.com",
		"https://evil.net#.example.com", `https://evil.net\.example.com`, "https://[::1].example.com", "https://[::1]", "https://evil.net:1.example.com",
		"https://evil.net%2f.example.com", "https://a.exam\u212ale.com", "HTTPS://A.EXAMPLE.COM", "https://a.example.com:443", "//a.example.com",
		"https://].example.com", "https://[].example.com", "https://[::1]]", "https://[.example.com",
	} {
		f.Add(s, "own.test:8000")
	}
	o := newOrigins([]string{"https://*.example.com", "https://app.test:8443"})
	f.Fuzz(func(t *testing.T, origin, host string) {
		if origin == "" || !o.allow(origin, host) {
			return
		}
		lower := strings.ToLower(origin)
		if !originForm.MatchString(lower) {
			t.Fatalf("%q is no origin, and let in to %q", origin, host)
		}
		scheme, at, _ := strings.Cut(lower, "://")
		own := at == strings.ToLower(host)
		sub := scheme == "https" && strings.HasSuffix(at, ".example.com") && !strings.Contains(at, ":")
		if !own && !sub && lower != "https://app.test:8443" {
			t.Fatalf("%q is let in to %q", origin, host)
		}
	})
}
