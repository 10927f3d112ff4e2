package handler

import (
	"errors"
	"runtime/debug"
	"strings"

	pb "github.com/centrifugal/protocol"

	"perch/protocol"
	"perch/session"
	"perch/topic"
)

const (
	// answerOnLoop is up to how many bytes an answer is written on the loop: at
	// some 200 MB/s, a third of a millisecond.
	answerOnLoop = 64 << 10
	// presenceOnLoop is up to how many clients.
	presenceOnLoop = 256
	// answerFactor is by how much an answer may be longer than what may wait for a
	// peer: where nothing else waits a frame of any length may be sent.
	answerFactor = 8
)

// mayRead tells whether one of the three permissions that history and presence
// have lets s read. subscribing says that s is about to subscribe.
func (c *Commands) mayRead(s *session.Session, name string, subscriber, client, anonymous, subscribing bool) bool {
	subscribed := subscribing || c.topics.Subscribed(s, name)
	return c.may(s, name, client, subscriber, anonymous, subscribed)
}

// may tells whether a permission of all clients, or that of subscribers, is one
// of s, who has none without a user unless anonymous. What only a token or a
// user's name opens is for those who are in.
func (c *Commands) may(s *session.Session, name string, client, subscriber, anonymous, subscribed bool) bool {
	switch {
	case c.opts.Insecure:
		return true
	case s.Anonymous && !anonymous:
		return false
	case subscribed:
		return client || subscriber
	}
	return client && !strings.HasPrefix(name, privatePrefix) && mayUse(name, s.User())
}

func (c *Commands) mayHistory(s *session.Session, ns *topic.Namespace, name string, subscribing bool) bool {
	return c.mayRead(s, name, ns.AllowHistoryForSubscriber, ns.AllowHistoryForClient, ns.AllowHistoryForAnonymous, subscribing)
}

func (c *Commands) mayPresence(s *session.Session, ns *topic.Namespace, name string, subscribing bool) bool {
	return c.mayRead(s, name, ns.AllowPresenceForSubscriber, ns.AllowPresenceForClient, ns.AllowPresenceForAnonymous, subscribing)
}

// historyFilter is what a client or a backend asks for; false: nothing can be
// meant by it.
func historyFilter(limit int32, since *topic.Position, reverse bool) (topic.Filter, bool) {
	if reverse && since != nil && since.Offset == 0 {
		return topic.Filter{}, false
	}
	return topic.Filter{Since: since, Limit: int(limit), Reverse: reverse}, true
}

func (c *Commands) history(s *session.Session, cmd *protocol.Command) {
	req, id := cmd.History, cmd.Id
	name := req.Channel
	if name == "" {
		c.badRequest(s, "no topic")
		return
	}
	var since *topic.Position
	if req.Since != nil {
		since = &topic.Position{Offset: req.Since.Offset, Epoch: req.Since.Epoch}
	}
	f, ok := historyFilter(req.Limit, since, req.Reverse)
	ns, e := c.namespace(name)
	switch {
	case e != nil:
		c.fail(s, id, e)
		return
	case !ns.History():
		c.fail(s, id, protocol.ErrNotAvailable)
		return
	case !c.mayHistory(s, ns, name, false):
		c.fail(s, id, protocol.ErrPermissionDenied)
		return
	case !ok:
		c.fail(s, id, protocol.ErrBadRequest)
		return
	}
	encoding := encodingOf(s)
	c.await(s, id, func(answer func(func(*session.Session))) {
		c.topics.History(ns, name, f, func(pubs []*topic.Publication, at topic.Position, err error) {
			if err != nil {
				answer(func(s *session.Session) { c.fail(s, id, c.readError(s, err)) })
				return
			}
			pubs, size := c.shorten(pubs)
			build := func() (*protocol.Reply, error) {
				r := &pb.HistoryResult{Publications: []*pb.Publication{}, Offset: at.Offset, Epoch: at.Epoch}
				if len(pubs) > 0 {
					r.Publications, _ = publications(encoding, pubs, false)
				} // SDKs expect a list, not null
				return &protocol.Reply{Id: id, History: r}, nil
			}
			if size > answerOnLoop {
				c.answerInPool(id, encoding, size, build, answer)
				return
			}
			answer(func(s *session.Session) {
				reply, _ := build()
				c.reply(s, reply)
			})
		})
	})
}

// shorten cuts a history to what may wait for a peer, but not to nothing, as
// the limit of an answer does: who reads on from the last one loses nothing.
func (c *Commands) shorten(all []*topic.Publication) ([]*topic.Publication, int) {
	size := 0
	for i, p := range all {
		n := weight(p)
		if i > 0 && c.opts.ReplyBytes > 0 && size+n > c.opts.ReplyBytes {
			return all[:i], size
		}
		size += n
	}
	return all, size
}

// readError is what a client hears of an error of History or Presence.
func (c *Commands) readError(s *session.Session, err error) *Error {
	switch {
	case errors.Is(err, topic.ErrUnrecoverable):
		return protocol.ErrUnrecoverablePosition
	case errors.Is(err, topic.ErrFull), errors.Is(err, ErrPeersBusy):
		return protocol.ErrTooManyRequests
	case errors.Is(err, ErrPeersTooLarge):
		return protocol.ErrLimitExceeded
	case errors.Is(err, ErrPeersAway), errors.Is(err, ErrPeersSilent):
		return protocol.ErrInternal // a temporary one
	case errors.Is(err, topic.ErrNotAvailable):
		return protocol.ErrNotAvailable
	case errors.Is(err, topic.ErrUnavailable):
		return protocol.ErrInternal // a temporary one
	}
	c.log.Error("topic not read", "session", c.clientID(s), "err", err)
	return protocol.ErrInternal
}

// await does something that is answered on any goroutine, once, and perhaps
// before begin returns: what is given to answer then runs on the loop, before the
// later commands of s.
func (c *Commands) await(s *session.Session, id uint32, begin func(answer func(func(*session.Session)))) {
	loop, name := s.Loop(), s.ID()
	if !loop.Reserve(session.PostOverhead) {
		c.counters.PoolFull.Add(1)
		c.noRoom(s, id, noRoomQueue)
		return
	}
	needWork(s).busy = true
	begin(func(f func(*session.Session)) {
		loop.Post(session.PostOverhead, name, func(s *session.Session) { c.resume(s, f) })
	})
}

// presence answers who is subscribed to a topic on all nodes, or with
// peerPresenceStats how many. What is long, or to be put together of what other
// nodes say, is written in the pool.
func (c *Commands) presence(s *session.Session, id uint32, name, method string) {
	if name == "" {
		c.badRequest(s, "no topic")
		return
	}
	ns, e := c.namespace(name)
	switch {
	case e != nil:
		c.fail(s, id, e)
		return
	case !ns.Presence:
		c.fail(s, id, protocol.ErrNotAvailable)
		return
	case !c.mayPresence(s, ns, name, false):
		c.fail(s, id, protocol.ErrPermissionDenied)
		return
	}
	encoding := encodingOf(s)
	c.await(s, id, func(answer func(func(*session.Session))) {
		takeCensus(c.topics, c.opts.Peers, method, name, func(all *census, err error) {
			if err != nil {
				answer(func(s *session.Session) { c.fail(s, id, c.readError(s, err)) })
				return
			}
			if c.opts.ReplyBytes > 0 && method == peerPresence && all.size > answerFactor*c.opts.ReplyBytes {
				answer(func(s *session.Session) { c.fail(s, id, protocol.ErrLimitExceeded) })
				return
			}
			build := func() (*protocol.Reply, error) { return presenceReply(encoding, id, method, all) }
			if len(all.others) > 0 || len(all.here) > presenceOnLoop || all.size > answerOnLoop {
				c.answerInPool(id, encoding, all.size, build, answer)
				return
			}
			answer(func(s *session.Session) {
				reply, err := build()
				if err != nil {
					c.fail(s, id, c.readError(s, err))
					return
				}
				c.reply(s, reply)
			})
		})
	})
}

// answerInPool writes a long answer in the pool, where it counts size bytes.
func (c *Commands) answerInPool(id uint32, e protocol.Encoding, size int, build func() (*protocol.Reply, error), answer func(func(*session.Session))) {
	size = min(size, c.pool.bytes/4) // there must be a time when there is room
	taken := c.pool.Submit(session.PostOverhead+size, func() {
		done := func(s *session.Session) { c.fail(s, id, protocol.ErrInternal) }
		defer func() {
			if r := recover(); r != nil {
				c.log.Error("panic in pool", "err", r, "stack", string(debug.Stack()))
			}
			answer(done)
		}()
		reply, err := build()
		if err != nil {
			done = func(s *session.Session) { c.fail(s, id, c.readError(s, err)) }
			return
		}
		frame, err := protocol.ReplyFrame(e, reply)
		done = func(s *session.Session) { c.answered(s, id, frame, err) }
	})
	if !taken {
		c.counters.PoolFull.Add(1)
		answer(func(s *session.Session) { c.noRoom(s, id, noRoomQueue) })
	}
}

// answered sends what was written in the pool.
func (c *Commands) answered(s *session.Session, id uint32, frame []byte, err error) {
	most := c.opts.ReplyBytes
	switch {
	case err != nil:
		c.notSaid(s, id, &c.unsaid, err)
	case most > 0 && len(frame) > answerFactor*most:
		c.fail(s, id, protocol.ErrLimitExceeded)
	case most > 0 && len(frame) > most && s.Pending() > 0:
		// Behind what waits already it would make a slow consumer of the peer.
		c.failFor(s, id, protocol.ErrTooManyRequests, noRoomPending)
	default:
		s.WriteFrame(frame)
	}
}

func presenceReply(e protocol.Encoding, id uint32, method string, c *census) (*protocol.Reply, error) {
	if method == peerPresenceStats {
		clients, users, err := c.stats()
		return &protocol.Reply{Id: id, PresenceStats: &pb.PresenceStatsResult{NumClients: uint32(clients), NumUsers: uint32(users)}}, err
	}
	all, err := c.list()
	if err != nil {
		return nil, err
	}
	p := make(map[string]*pb.ClientInfo, len(all))
	for i := range all {
		p[all[i].Client] = clientInfo(&all[i], e)
	}
	return &protocol.Reply{Id: id, Presence: &pb.PresenceResult{Presence: p}}, nil
}

// presenceStats counts the clients, of which one may stand twice, and their
// users; all without a user are one.
func presenceStats(all []topic.ClientInfo) (clients, users int) {
	c, u := make(map[string]struct{}, len(all)), make(map[string]struct{})
	for i := range all {
		c[all[i].Client] = struct{}{}
		u[all[i].User] = struct{}{}
	}
	return len(c), len(u)
}
