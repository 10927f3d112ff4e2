package handler

import (
	pb "github.com/centrifugal/protocol"

	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// Unidirectional peers say who they are when they connect, and then listen. All
// subscriptions of theirs are the server's. What would be answered with an error
// ends their session instead.

// unidirectional is the session.Handler of their endpoints.
type unidirectional struct{ *Commands }

var _ session.Mover = unidirectional{}

// Unidirectional is the session.Handler for unidirectional endpoints; it is also
// a session.Mover. Everything but the form is shared with c.
func (c *Commands) Unidirectional() session.Handler { return unidirectional{c} }

// UniRequest is what the opening handshake of a unidirectional endpoint said
// beside its token.
type UniRequest struct {
	connect *protocol.ConnectRequest // nil: there was none
	// positions are those of the Last-Event-ID, by the topic's hash; nil: there was
	// none, or it could not be read.
	positions map[uint64]topic.Position
}

// UniRequest reads what stands in a handshake: connect is a ConnectRequest in JSON,
// lastEventID the id of the event that the peer saw last; each may be empty. token
// is that of connect. A lastEventID that can't be read is counted and goes for
// none: the peer is told, by what it gets, that nothing was recovered. Safe from
// any goroutine.
func (c *Commands) UniRequest(connect, lastEventID string) (r *UniRequest, token string, err error) {
	if connect == "" && lastEventID == "" {
		return nil, "", nil
	}
	r = &UniRequest{}
	if connect != "" {
		if r.connect, err = protocol.DecodeConnect([]byte(connect)); err != nil {
			return nil, "", err
		}
		token, r.connect.Token = r.connect.Token, ""
	}
	if lastEventID != "" {
		if r.positions, err = parseEventID(lastEventID); err != nil {
			c.counters.EventIDs.Add(1)
		}
	}
	return r, token, nil
}

// Open implements session.Handler: the session begins at once, unless a token is
// needed and has not come yet.
func (u unidirectional) Open(s *session.Session, identity any) {
	u.Commands.Open(s, identity)
	var id Identity
	if w := workOf(s); w != nil {
		id = w.identity
	}
	req := &protocol.ConnectRequest{}
	switch {
	case id.Uni != nil && id.Uni.connect != nil:
		req = id.Uni.connect
	case id.Claims == nil && !u.opts.Insecure && u.opts.Require != RequireNone && s.Encoding != session.EncodingEvents:
		return
	}
	u.begin(s, req)
}

func (u unidirectional) begin(s *session.Session, req *protocol.ConnectRequest) {
	u.counters.commands[kindConnect].Add(1)
	u.connect(s, &protocol.Command{Connect: req})
}

// MessagePart takes the place of that of Commands: these messages are one command.
func (u unidirectional) MessagePart(s *session.Session, data []byte, binary bool, _, _ int) (rest []byte, n int) {
	u.Message(s, data, binary)
	return nil, 1
}

// Message implements session.Handler: the first message may be a ConnectRequest.
// Later ones that ask for nothing are ignored, as clients send one to every
// server; a token, which would change who the peer is, comes too late.
func (u unidirectional) Message(s *session.Session, data []byte, binary bool) {
	if binary {
		s.Close(session.ReasonUnsupportedData)
		return
	}
	req, err := protocol.DecodeConnect(data)
	switch {
	case err != nil:
		u.malformed(s, err)
	case s.State == session.StateOpened && (workOf(s) == nil || !workOf(s).busy):
		u.begin(s, req)
	case req.Token != "":
		u.badRequest(s, "the session has begun")
	}
}

// requested is what a peer wants of a server-side subscription; known is what its
// connect request says of it, or nil. An event stream asks for recovery wherever
// it may have it, and its last event stands above the request, which is as old as
// the stream's address.
func (c *Commands) requested(s *session.Session, name string, known *pb.SubscribeRequest) *pb.SubscribeRequest {
	if known == nil {
		known = &pb.SubscribeRequest{}
	}
	if !s.Encoding.Unidirectional() {
		return known
	}
	r := &pb.SubscribeRequest{
		Recover: known.Recover, Offset: known.Offset, Epoch: known.Epoch, Recoverable: known.Recoverable,
		Positioned: known.Positioned, JoinLeave: known.JoinLeave,
	}
	if s.Encoding != session.EncodingEvents {
		return r
	}
	r.Recoverable = true
	if w := workOf(s); w != nil && w.identity.Uni != nil && w.identity.Uni.positions != nil {
		at, ok := w.identity.Uni.positions[TokenHash(name)]
		r.Recover, r.Offset, r.Epoch = ok, at.Offset, at.Epoch
	}
	return r
}

// tell sends a unidirectional peer what r says; r is a push or answers a connect.
func (c *Commands) tell(s *session.Session, r *protocol.Reply) {
	p := r.Push
	if a := r.Connect; a != nil {
		p = &protocol.Push{Connect: &pb.Connect{
			Client: a.Client, Version: a.Version, Data: a.Data, Subs: a.Subs, Expires: a.Expires, Ttl: a.Ttl,
		}}
	}
	if p == nil {
		return // nothing else was asked for
	}
	st := c.at(s)
	var err error
	buf := st.buf[:0]
	if s.Encoding == session.EncodingEvents {
		buf, err = protocol.AppendEvent(buf, c.idOfPush(s, st, p), p)
	} else {
		buf, err = protocol.AppendBarePush(buf, p)
	}
	if err != nil {
		c.notSaid(s, 0, &c.unsaid, err)
		if r.Connect != nil {
			s.Close(session.ReasonServerError)
		}
		return
	}
	c.write(s, st, buf)
}

// failUni ends the session of a unidirectional peer whose connect has failed.
func (c *Commands) failUni(s *session.Session, e *Error) {
	r := session.ReasonServerError
	switch e.Code {
	case protocol.ErrTokenExpired.Code, protocol.ErrExpired.Code:
		r = session.ReasonExpired
	case protocol.ErrTooManyRequests.Code:
		r = session.ReasonTooManyRequests
	case protocol.ErrPermissionDenied.Code, protocol.ErrUnauthorized.Code:
		r = session.ReasonPermissionDenied
	case protocol.ErrBadRequest.Code, protocol.ErrUnknownChannel.Code:
		// Its token names what there is not: it would name it again.
		r = session.ReasonBadRequest
	case protocol.ErrLimitExceeded.Code:
		r = session.ReasonTopicLimit
	case protocol.ErrNotAvailable.Code:
		r = session.ReasonNotAvailable
	default:
		if !e.Temporary {
			// The backend's own: it would say the same again.
			r = session.ReasonPermissionDenied
		}
	}
	s.Close(r)
}

// addUni fills in the unidirectional formats.
func addUni(t *topic.Encoders) {
	t[session.EncodingUniJSON] = uniEncoder(protocol.BarePublicationFrame)
	t[session.EncodingEvents] = uniEncoder(protocol.PublicationEvent)
}

// uniEncoder writes payloads whole: no unidirectional peer agrees on deltas.
func uniEncoder(frame func(string, *protocol.Publication) ([]byte, error)) topic.Encoder {
	return func(name string, p *topic.Publication, _ topic.Form, _ []byte) ([]byte, error) {
		out := protocol.Publication{Data: p.Data, Tags: p.Tags, Offset: p.Offset}
		if p.Info != nil {
			out.User, out.Client, out.ConnInfo, out.ChanInfo = p.Info.User, p.Info.Client, p.Info.ConnInfo, p.Info.ChanInfo
		}
		return frame(name, &out)
	}
}

// addUniJoins is addUni for who comes and goes.
func addUniJoins(t *topic.JoinEncoders) {
	for e, frames := range map[session.Encoding]func([]protocol.Push) ([]byte, error){
		session.EncodingUniJSON: protocol.BarePushesFrames, session.EncodingEvents: protocol.PushesEvents,
	} {
		t[e] = func(name string, news []topic.News) ([]byte, error) {
			return frames(newsPushes(protocol.JSON, name, news))
		}
	}
}
