package handler

import (
	"errors"
	"sync/atomic"
	"unicode/utf8"

	pb "github.com/centrifugal/protocol"

	"perch/backend"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

// Encoders is the table of the wire formats that this protocol fills. An
// encoder's result is a whole WebSocket frame. Safe from any goroutine.
func Encoders() topic.Encoders {
	var t topic.Encoders
	t[session.EncodingJSON] = encoder(protocol.JSON)
	t[session.EncodingProtobuf] = encoder(protocol.Protobuf)
	addUni(&t)
	return t
}

func encoder(e protocol.Encoding) topic.Encoder {
	return func(name string, p *topic.Publication, form topic.Form, data []byte) ([]byte, error) {
		out := protocol.Publication{Data: data, Tags: p.Tags, Offset: p.Offset, Delta: form == topic.FormPatch}
		if p.Info != nil {
			out.User, out.Client, out.ConnInfo, out.ChanInfo = p.Info.User, p.Info.Client, p.Info.ConnInfo, p.Info.ChanInfo
		}
		if form != topic.FormPlain && e == protocol.JSON {
			if !protocol.ValidPayload(p.Data, e) {
				return nil, protocol.ErrInvalidJSON
			}
			if !utf8.Valid(data) {
				// A patch may cut a character in two, which a JSON string can't say.
				out.Data, out.Delta = p.Data, false
			}
			out.Data = jsonString(out.Data)
		}
		return protocol.PublicationFrame(e, name, &out)
	}
}

// JoinEncoders is the table for the news of who comes and goes.
func JoinEncoders() topic.JoinEncoders {
	var t topic.JoinEncoders
	t[session.EncodingJSON] = joinEncoder(protocol.JSON)
	t[session.EncodingProtobuf] = joinEncoder(protocol.Protobuf)
	addUniJoins(&t)
	return t
}

func joinEncoder(e protocol.Encoding) topic.JoinEncoder {
	return func(name string, news []topic.News) ([]byte, error) {
		return protocol.PushesFrame(e, newsPushes(e, name, news))
	}
}

func newsPushes(e protocol.Encoding, name string, news []topic.News) []protocol.Push {
	pushes := make([]protocol.Push, len(news))
	for i := range news {
		pushes[i].Channel = name
		if info := clientInfo(&news[i].Client, e); news[i].Left {
			pushes[i].Leave = &pb.Leave{Info: info}
		} else {
			pushes[i].Join = &pb.Join{Info: info}
		}
	}
	return pushes
}

func (c *Commands) mayPublish(s *session.Session, ns *topic.Namespace, name string) bool {
	return c.may(s, name, ns.AllowPublishForClient, ns.AllowPublishForSubscriber, ns.AllowPublishForAnonymous,
		c.topics.Subscribed(s, name))
}

// publishing is a publication that the broker has. Whoever comes second, the
// loop that asks or the broker that answers, sees that the other was there.
type publishing struct {
	c     *Commands
	loop  session.Loop
	name  session.ID
	id    uint32
	err   error
	state atomic.Uint32
}

const (
	publishStarted  = iota
	publishAnswered // before the loop looked
	publishAwaited  // the loop has gone on; the answer is posted
)

func (c *Commands) publish(s *session.Session, cmd *protocol.Command) {
	req, id := cmd.Publish, cmd.Id
	name := req.Channel
	if name == "" {
		c.badRequest(s, "no topic")
		return
	}
	if req.Type != 0 {
		c.fail(s, id, protocol.ErrNotAvailable) // map publications
		return
	}
	ns, e := c.namespace(name)
	switch {
	case e != nil:
		c.fail(s, id, e)
		return
	case ns.PublishProxyEnabled && c.asks(backend.Publish):
		c.askPublish(s, id, ns, req)
		return
	case !c.mayPublish(s, ns, name):
		c.fail(s, id, protocol.ErrPermissionDenied)
		return
	case len(req.Data) == 0:
		c.fail(s, id, protocol.ErrBadRequest)
		return
	}
	c.publishTo(s, id, ns, name, &topic.Publication{Data: req.Data}, topic.PublishRequest{})
}

// publishTo publishes in the name of s and answers.
func (c *Commands) publishTo(s *session.Session, id uint32, ns *topic.Namespace, name string, pub *topic.Publication, r topic.PublishRequest) {
	loop := s.Loop()
	if !loop.Reserve(session.PostOverhead) {
		c.counters.PoolFull.Add(1)
		c.noRoom(s, id, noRoomQueue)
		return
	}
	info := c.topics.Info(s, name)
	pub.Info = &info
	p := &publishing{c: c, loop: loop, name: s.ID(), id: id}
	c.topics.Publish(ns, name, pub, r, p.done)
	if p.state.CompareAndSwap(publishStarted, publishAwaited) {
		needWork(s).busy = true
		return
	}
	loop.Release(session.PostOverhead)
	p.answer(s)
}

// done takes the broker's answer. Runs on any goroutine.
func (p *publishing) done(_ topic.Position, err error) {
	p.err = err
	if p.state.CompareAndSwap(publishStarted, publishAnswered) {
		return
	}
	p.loop.Post(session.PostOverhead, p.name, func(s *session.Session) { p.c.resume(s, p.answer) })
}

// answer runs on the loop.
func (p *publishing) answer(s *session.Session) {
	switch {
	case p.err == nil:
		p.c.reply(s, &protocol.Reply{Id: p.id, Publish: &pb.PublishResult{}})
	case errors.Is(p.err, topic.ErrFull):
		p.c.fail(s, p.id, protocol.ErrTooManyRequests)
	case errors.Is(p.err, topic.ErrUnknownTopic):
		p.c.fail(s, p.id, protocol.ErrUnknownChannel)
	case errors.Is(p.err, topic.ErrNotAvailable):
		p.c.fail(s, p.id, protocol.ErrNotAvailable)
	case errors.Is(p.err, topic.ErrUnavailable):
		p.c.fail(s, p.id, protocol.ErrInternal) // a temporary one
	default:
		p.c.log.Error("publish failed", "session", p.c.clientID(s), "err", p.err)
		p.c.fail(s, p.id, protocol.ErrInternal)
	}
}
