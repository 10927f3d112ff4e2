package handler

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"

	pb "github.com/centrifugal/protocol"

	"perch/auth"
	"perch/protocol"
	"perch/session"
	"perch/topic"
)

const (
	// rejectUnrecovered is the bit of SubscribeRequest.flag by which a client wants
	// error 112 where it can't recover.
	rejectUnrecovered = 1 << 1
	// patchBytes bounds the payloads of one answer of which patches are made on the
	// loop, at some 50 MB/s; what comes behind goes whole.
	patchBytes = 64 << 10
)

// wish is a subscription that has been allowed, with what its client asks for.
type wish struct {
	name     string
	ns       *topic.Namespace
	request  *pb.SubscribeRequest
	expires  int64 // Unix seconds; 0: never
	info     []byte
	data     []byte // for the client, with the answer
	override auth.Override
	id       uint32 // of the command; 0: there is none
	server   bool
	// beside counts the bytes of publications that go out in the same answer; nil:
	// there are none but its own.
	beside *int

	// What decide has found.
	recoverable bool
	positioned  bool
}

// or is what an override says or, where it says nothing, the namespace.
func or(override *bool, namespace bool) bool {
	if override != nil {
		return *override
	}
	return namespace
}

// decide finds out whether the subscription is to notice misses, and whether it
// may be recovered. Who may read the history may ask for both.
func (c *Commands) decide(s *session.Session, w *wish) {
	ns, r := w.ns, w.request
	if !ns.History() {
		return
	}
	w.recoverable = or(w.override.ForceRecovery, ns.ForceRecovery) ||
		(r.Recoverable || r.Recover) && (ns.AllowRecovery || c.mayHistory(s, ns, w.name, true))
	w.positioned = w.recoverable || or(w.override.ForcePositioning, ns.ForcePositioning) ||
		r.Positioned && (ns.AllowPositioning || c.mayHistory(s, ns, w.name, true))
}

// options are those of the subscription.
func (c *Commands) options(s *session.Session, w *wish) topic.SubscribeOptions {
	return topic.SubscribeOptions{
		Server: w.server, Position: w.positioned, Info: w.info, Delta: w.ns.Delta(w.request.Delta),
		Told: or(w.override.JoinLeave, w.ns.JoinLeave),
		News: or(w.override.ForcePushJoinLeave, w.ns.ForcePushJoinLeave) ||
			w.request.JoinLeave && w.ns.JoinLeave && c.mayPresence(s, w.ns, w.name, true),
		Hidden:    w.ns.Presence && !or(w.override.Presence, true),
		Namespace: w.ns,
	}
}

// since is what is to be recovered.
func (w *wish) since() topic.RecoverRequest {
	r := topic.RecoverRequest{Cache: w.ns.Cache()}
	if !w.recoverable {
		return r
	}
	r.Recover = w.request.Recover || w.ns.AutoCacheRecover
	if w.request.Recover {
		r.Since = topic.Position{Offset: w.request.Offset, Epoch: w.request.Epoch}
	}
	return r
}

// enter makes a subscription. One with a position is held back: catchUp must
// follow.
func (c *Commands) enter(s *session.Session, w *wish) (topic.SubscribeOptions, error) {
	c.decide(s, w)
	o := c.options(s, w)
	return o, c.topics.Subscribe(s, w.name, o)
}

// catchUp finds what a subscription that was entered with o has missed. done is
// called once on the loop of s, perhaps before catchUp returns, unless s ends
// meanwhile; with an error the subscription has ended. Nothing live is written
// before live.
func (c *Commands) catchUp(s *session.Session, w *wish, o *topic.SubscribeOptions, done func(*session.Session, *pb.SubscribeResult, error)) {
	result := &pb.SubscribeResult{Delta: o.Delta, Positioned: true, Recoverable: w.recoverable}
	r, name, beside := w.since(), w.name, w.beside
	c.topics.Recover(s, name, r, func(s *session.Session, got topic.Recovered, err error) {
		if err == nil {
			c.recovered(s, name, beside, result, &r, &got)
		}
		done(s, result, err)
	})
}

// join is enter and, where it is needed, catchUp. An error is returned where
// nothing was begun; done is not called then.
func (c *Commands) join(s *session.Session, w *wish, done func(*session.Session, *pb.SubscribeResult, error)) error {
	o, err := c.enter(s, w)
	switch {
	case err != nil:
		return err
	case o.Position:
		c.catchUp(s, w, &o, done)
	default:
		done(s, &pb.SubscribeResult{Delta: o.Delta}, nil)
	}
	return nil
}

// live lets a subscription begin whose client has been told of it.
func (c *Commands) live(s *session.Session, name string) {
	c.topics.Live(s, name)
	c.topics.Join(s, name)
}

// pause calls begin, which calls its argument when something is done, perhaps
// later: then the commands of s wait until next has run.
func (c *Commands) pause(s *session.Session, begin func(done func(*session.Session)), next func(*session.Session)) {
	answered, waiting := false, false
	begin(func(s *session.Session) {
		answered = true
		if waiting {
			c.resume(s, next)
		} else {
			next(s)
		}
	})
	if !answered {
		waiting = true
		needWork(s).busy = true
	}
}

// fits tells whether publications that a subscription has missed can go to the
// client at once, beside what is on its way to it already. More than that would
// make a slow consumer of it, each time that it came back. state says that they
// are the one that a topic is all about.
func (c *Commands) fits(s *session.Session, all []*topic.Publication, beside *int, state bool) bool {
	if len(all) == 0 || c.opts.ReplyBytes <= 0 {
		return true
	}
	n, before := weigh(all), s.Pending()
	if beside == nil {
		beside = new(int)
	}
	most := c.opts.ReplyBytes
	if state && before+*beside == 0 {
		most *= answerFactor // it has to come somehow
	}
	if before+*beside+n > most {
		return false
	}
	*beside += n
	return true
}

// recovered fills in what a subscription has found of the past.
func (c *Commands) recovered(s *session.Session, name string, beside *int, result *pb.SubscribeResult, r *topic.RecoverRequest, got *topic.Recovered) {
	result.Epoch, result.Offset = got.Position.Epoch, got.Position.Offset
	result.WasRecovering, result.Recovered = r.Recover, got.OK && c.fits(s, got.Publications, beside, r.Cache)
	var last *topic.Publication
	if result.Recovered {
		// The client goes on from the position that it has, with the publications.
		result.Offset = r.Since.Offset
		result.Publications, last = publications(encodingOf(s), got.Publications, result.Delta)
	}
	if n := len(got.Publications); result.Delta && n > 0 && last != got.Publications[n-1] {
		c.topics.Rebase(s, name, last)
	}
}

// weigh is about how many bytes an answer needs for publications.
func weigh(all []*topic.Publication) int {
	n := 0
	for _, p := range all {
		n += weight(p)
	}
	return n
}

func weight(p *topic.Publication) int {
	n := 32 + len(p.Data)
	for k, v := range p.Tags {
		n += 8 + len(k) + len(v)
	}
	if p.Info != nil {
		n += infoWeight(p.Info)
	}
	return n
}

// infoWeight is about how many bytes an answer needs for a client.
func infoWeight(i *topic.ClientInfo) int {
	return 48 + len(i.User) + len(i.Client) + len(i.ConnInfo) + len(i.ChanInfo)
}

// publications are those of a history as a client gets them. What its format
// can't carry is left out, as it is live. With delta each is a patch of the one
// before, where that is shorter. last is the last one that the client gets.
func publications(e protocol.Encoding, all []*topic.Publication, delta bool) (out []*pb.Publication, last *topic.Publication) {
	if len(all) == 0 {
		return nil, nil
	}
	out = make([]*pb.Publication, 0, len(all))
	patched := 0
	for _, p := range all {
		if !protocol.ValidPayload(p.Data, e) {
			continue
		}
		w := &pb.Publication{Data: p.Data, Tags: p.Tags, Offset: p.Offset, Info: clientInfo(p.Info, e)}
		if delta {
			if patched += len(p.Data); last != nil && patched <= patchBytes {
				if patch := p.Patch(last); patch != nil && (e != protocol.JSON || utf8.Valid(patch)) {
					w.Data, w.Delta = patch, true
				}
			}
			if e == protocol.JSON {
				w.Data = jsonString(w.Data)
			}
		}
		last = p
		out = append(out, w)
	}
	return out, last
}

// jsonString is data as a JSON string: so the payload of a subscription with
// deltas is written, of which a patch is no JSON value.
func jsonString(data []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(data) + len(data)/8 + 2)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(string(data)) // a string can be said
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}

// clientInfo is what a client is shown of another; nil of nil. Info that JSON
// can't carry is left out there.
func clientInfo(i *topic.ClientInfo, e protocol.Encoding) *pb.ClientInfo {
	if i == nil {
		return nil
	}
	out := &pb.ClientInfo{User: i.User, Client: i.Client}
	if protocol.ValidPayload(i.ConnInfo, e) {
		out.ConnInfo = i.ConnInfo
	}
	if protocol.ValidPayload(i.ChanInfo, e) {
		out.ChanInfo = i.ChanInfo
	}
	return out
}
