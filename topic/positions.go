package topic

import "perch/session"

// Writer brings the frame of a publication to a session, in the place of
// Session.WriteFrame, for a wire that says with each publication where the
// session stands: at is the publication's place in the topic's stream; its offset is
// 0 where it has none. Runs on the loop of s, which may be closed afterwards.
type Writer func(s *session.Session, topic string, at Position, frame []byte)

// Writers is the table of them, for subscriptions with a position; nil: frames
// are shared, not written one by one.
type Writers [session.EncodingCount]Writer

// EachPosition calls f with where each subscription of s stands that has a
// position, and knows it by now; f does not subscribe or unsubscribe. Runs on the
// loop of s.
func (t *Topics) EachPosition(s *session.Session, f func(topic string, at Position)) {
	m := memberOf(s)
	if m == nil {
		return
	}
	m.one.position(f)
	for i := range m.more {
		m.more[i].position(f)
	}
}

func (s *subscription) position(f func(string, Position)) {
	if k := s.track; s.list != nil && k != nil && k.is(trackPosition) && k.epoch != "" {
		f(s.list.topic.name, Position{k.offset, k.epoch})
	}
}
