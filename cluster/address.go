package cluster

import (
	"errors"
	"net/url"
	"strings"
)

// errAddress stands for what net/url says, which quotes the address, and with it a
// password whose signs were not escaped.
var errAddress = errors.New("not an address; escape /, %, ? and # in the password")

// CheckURL tells what is wrong with the addresses of servers, with commas between,
// or nil. It does not quote them.
func CheckURL(list string) error {
	_, err := parseURLs(list)
	return err
}

// parseURLs reads addresses with commas between. Without a scheme an address is
// nats://.
func parseURLs(list string) ([]*url.URL, error) {
	var out []*url.URL
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		u, err := url.Parse(s)
		// An '@' behind the host is the end of a password with such a sign in it.
		if err != nil || u.Host == "" || strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
			return nil, errAddress
		}
		out = append(out, u)
	}
	return out, nil
}

// withoutURL is err, unless it quotes an address.
func withoutURL(err error) error {
	if quotes := (*url.Error)(nil); errors.As(err, &quotes) {
		return errAddress
	}
	return err
}
