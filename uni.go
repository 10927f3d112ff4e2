package perch

import (
	"net/http"

	"perch/backend"
	"perch/handler"
	"perch/netpoll"
	"perch/protocol"
	"perch/session"
)

// served tells whether an endpoint has a path.
func served(path string) bool { return path != PathOff }

// uniEndpoints are those of peers that only listen.
func (s *Server) uniEndpoints() (out []*netpoll.Endpoint) {
	o, h := &s.opts, s.commands.Unidirectional()
	if served(o.WebSocket.UniPath) {
		out = append(out, &netpoll.Endpoint{
			Path: o.WebSocket.UniPath, Handler: h, MessageSize: o.WebSocket.MessageSize,
			ConnectTimeout: o.Limits.ConnectTimeout, Check: s.checkUni,
		})
	}
	if served(o.SSE.Path) {
		out = append(out, &netpoll.Endpoint{
			Path: o.SSE.Path, Handler: h, MessageSize: o.WebSocket.MessageSize, ConnectTimeout: o.Limits.ConnectTimeout,
			Events: true, Last: protocol.DisconnectEvent, Check: s.checkEvents,
		})
	}
	return out
}

// checkUni decides about a unidirectional WebSocket. Its token may come in the
// first message as well. Runs on the loop.
func (s *Server) checkUni(r *netpoll.Request) (netpoll.Decision, bool) {
	u := upgradeRequest{}
	u.decision.Encoding = session.EncodingUniJSON
	// No pong of the protocol's own could come.
	u.decision.FramePings = true
	return s.checkListener(r, u, s.opts.Auth.Require == string(handler.RequireHandshake))
}

// checkEvents decides about an event stream. Runs on the loop.
func (s *Server) checkEvents(r *netpoll.Request) (netpoll.Decision, bool) {
	u := upgradeRequest{}
	u.decision.Encoding = session.EncodingEvents
	if r.Origin != "" {
		u.decision.Header = "Access-Control-Allow-Origin: " + r.Origin + "\r\nVary: Origin\r\n"
	}
	return s.checkListener(r, u, s.opts.Auth.Require != string(handler.RequireNone) && !s.backend.Serves(backend.Connect))
}

// checkListener decides about a peer that only listens; as says what it becomes.
func (s *Server) checkListener(r *netpoll.Request, as upgradeRequest, required bool) (netpoll.Decision, bool) {
	if !s.allowOrigin(r.Origin, r.Host) {
		return netpoll.Decision{Status: http.StatusForbidden, Text: "origin not allowed"}, true
	}
	u, ok := readUpgrade(r)
	if !ok {
		return as.refused(http.StatusBadRequest, "malformed query"), true
	}
	if u.decision.Encoding != session.EncodingJSON {
		return as.refused(http.StatusBadRequest, "JSON only"), true
	}
	as.decision.Protocol, as.token = u.decision.Protocol, u.token
	lastEvent := ""
	if as.decision.Encoding == session.EncodingEvents {
		lastEvent = lastEventID(r, u)
	}
	uni, token, err := s.commands.UniRequest(u.query.Get("cf_connect"), lastEvent)
	if err != nil {
		return as.refused(http.StatusBadRequest, "malformed cf_connect"), true
	}
	as.identity.Uni, as.identity.Headers = uni, s.passedHeaders(r)
	if as.token == "" {
		as.token = token
	}
	return s.admitUpgrade(r, as, required)
}

// lastEventID is the id that the peer saw last: browsers send the header when
// they come back, and what begins anew with an id that it has kept can put it
// into the address only. The header is newer.
func lastEventID(r *netpoll.Request, u upgradeRequest) string {
	for _, id := range []string{r.LastEventID, u.query.Get("last_event_id"), u.query.Get("lastEventId")} {
		if id != "" {
			return id
		}
	}
	return ""
}
