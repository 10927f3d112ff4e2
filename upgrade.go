package perch

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"perch/auth"
	"perch/handler"
	"perch/netpoll"
	"perch/session"
)

const (
	// bearerScheme begins an Authorization header with a token (RFC 6750, section
	// 2.1; the scheme's case does not matter).
	bearerScheme = "bearer "
	// bearerProtocol begins a subprotocol entry with a token: the one place where
	// a browser can put a token that is in no log.
	bearerProtocol   = "bearer."
	jsonProtocol     = "centrifuge-json"
	protobufProtocol = "centrifuge-protobuf"
)

// upgradeRequest is what the opening handshake of the client protocol asks
// for.
type upgradeRequest struct {
	token    string
	query    url.Values // nil: there is none
	decision netpoll.Decision
	// identity is what the handler is told, beside the token's claims.
	identity handler.Identity
}

// readUpgrade finds the encoding, the subprotocol and the token. ok is false
// where the query can't be read.
func readUpgrade(r *netpoll.Request) (u upgradeRequest, ok bool) {
	u.decision.Encoding = session.EncodingJSON
	bearer := ""
	for p := range strings.SplitSeq(r.Protocols, ",") {
		p = strings.Trim(p, " \t")
		switch {
		case strings.HasPrefix(p, bearerProtocol):
			if bearer == "" {
				bearer = p
			}
		case u.decision.Protocol != "":
		case p == jsonProtocol:
			u.decision.Protocol = p
		case p == protobufProtocol:
			u.decision.Protocol, u.decision.Encoding = p, session.EncodingProtobuf
		}
	}
	if u.decision.Protocol == "" {
		// A browser takes the connection for failed where it offered subprotocols and
		// none is chosen.
		u.decision.Protocol = bearer
	}
	if r.Query != "" {
		q, err := url.ParseQuery(r.Query)
		if err != nil {
			return u, false
		}
		u.query = q
		if q.Get("format") == "protobuf" || q.Get("cf_protocol") == "protobuf" {
			u.decision.Encoding = session.EncodingProtobuf
		}
		u.identity.FramePings = q.Get("cf_ws_frame_ping_pong") == "true"
		// RFC 6750, section 2.3, and the shorter name.
		if u.token = q.Get("access_token"); u.token == "" {
			u.token = q.Get("token")
		}
	}
	if bearer != "" {
		u.token = bearer[len(bearerProtocol):]
	}
	if a := r.Authorization; len(a) > len(bearerScheme) && strings.EqualFold(a[:len(bearerScheme)], bearerScheme) {
		u.token = strings.TrimSpace(a[len(bearerScheme):])
	}
	return u, true
}

// checkUpgrade decides about an opening handshake of the client protocol. Runs
// on the loop.
func (s *Server) checkUpgrade(r *netpoll.Request) (d netpoll.Decision, now bool) {
	if !s.allowOrigin(r.Origin, r.Host) {
		return netpoll.Decision{Status: http.StatusForbidden, Text: "origin not allowed"}, true
	}
	u, ok := readUpgrade(r)
	if !ok {
		return netpoll.Decision{Status: http.StatusBadRequest, Text: "malformed query"}, true
	}
	u.decision.FramePings = u.identity.FramePings
	u.identity.Headers = s.passedHeaders(r)
	return s.admitUpgrade(r, u, s.opts.Auth.Require == string(handler.RequireHandshake))
}

// admitUpgrade verifies the token of an opening handshake, which needs to have
// one where it is required. What is not cheap to verify goes to the pool.
func (s *Server) admitUpgrade(r *netpoll.Request, u upgradeRequest, required bool) (d netpoll.Decision, now bool) {
	// Names and tokens point into the request head.
	u.decision.Protocol = chosen(u.decision.Protocol)
	switch {
	case u.token == "" && required && !s.opts.Insecure:
		return u.refused(http.StatusUnauthorized, "a token is needed"), true
	case u.token == "":
		return u.admitted(), true
	case s.authority.Cheap(u.token):
		claims, err := s.authority.Connect(u.token)
		if err != nil {
			s.log.Debug("token refused", "remote", r.Remote(), "err", err)
		}
		return u.verified(claims, err), true
	}
	u.token = strings.Clone(u.token)
	later := r.Later()
	taken := s.pool.Submit(session.PostOverhead+len(u.token), func() {
		d := u.refused(http.StatusInternalServerError, "internal error")
		// The pool keeps a panic in; the peer is answered all the same.
		defer func() { later(d) }()
		claims, err := s.authority.Connect(u.token)
		if err != nil {
			s.log.Debug("token refused", "err", err)
		}
		d = u.verified(claims, err)
	})
	if !taken {
		return u.refused(http.StatusServiceUnavailable, "too many requests"), true
	}
	return netpoll.Decision{}, false
}

// chosen is a subprotocol that outlives the request head.
func chosen(p string) string {
	switch p {
	case "":
		return ""
	case jsonProtocol:
		return jsonProtocol
	case protobufProtocol:
		return protobufProtocol
	}
	return strings.Clone(p)
}

// verified is the decision when the token has been looked at.
func (u upgradeRequest) verified(claims *auth.Claims, err error) netpoll.Decision {
	switch {
	case errors.Is(err, auth.ErrKeysUnavailable):
		return u.refused(http.StatusServiceUnavailable, "keys unavailable")
	case errors.Is(err, auth.ErrTokenExpired):
		return u.refused(http.StatusUnauthorized, "token expired")
	case err != nil:
		return u.refused(http.StatusUnauthorized, "invalid token")
	}
	u.identity.Claims = claims
	return u.admitted()
}

// refused is a decision against the request, which may be read by the page that
// made it.
func (u upgradeRequest) refused(status int, text string) netpoll.Decision {
	return netpoll.Decision{Status: status, Text: text, Header: u.decision.Header}
}

func (u upgradeRequest) admitted() netpoll.Decision {
	if id := u.identity; id != (handler.Identity{}) {
		u.decision.Identity = &id
	}
	return u.decision
}

// checkEcho lets everybody from an allowed origin echo.
func (s *Server) checkEcho(r *netpoll.Request) (netpoll.Decision, bool) {
	if !s.allowOrigin(r.Origin, r.Host) {
		return netpoll.Decision{Status: http.StatusForbidden, Text: "origin not allowed"}, true
	}
	return netpoll.Decision{}, true
}

// adoptable tells whether an upgrade request that net/http has read may go to
// the event loops: its head, written anew, has to mean there what it meant
// here. net/http has decoded the path, and taken in a body's framing.
func adoptable(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.ProtoMinor == 1 && r.ContentLength == 0 && len(r.TransferEncoding) == 0 &&
		r.URL.RawPath == "" && r.URL.EscapedPath() == r.URL.Path && strings.HasPrefix(r.RequestURI, "/")
}

// adopt gives an upgrade request that came on a connection of net/http's to the
// event loops, the head written anew.
func (s *Server) adopt(w http.ResponseWriter, r *http.Request) {
	if !adoptable(r) {
		w.Header().Set("Connection", "close")
		http.Error(w, "malformed opening handshake", http.StatusBadRequest)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the connection can't be upgraded", http.StatusInternalServerError)
		return
	}
	rest, _ := rw.Reader.Peek(rw.Reader.Buffered())
	if err := s.net.Adopt(conn, append(headAgain(r), rest...)); err != nil {
		s.log.Debug("adoption failed", "remote", r.RemoteAddr, "err", err)
	}
}

// headAgain is the head of a request that net/http has read.
func headAgain(r *http.Request) []byte {
	var head bytes.Buffer
	head.WriteString(r.Method + " " + r.RequestURI + " HTTP/1.1\r\nHost: " + r.Host + "\r\n")
	// net/http has checked the fields; writing to a Buffer does not fail.
	_ = r.Header.Write(&head)
	head.WriteString("\r\n")
	return head.Bytes()
}
