package topic

import "perch/session"

// Rebase says which publication the client of s has last of a topic, for the
// deltas that follow; nil: none that one can be made against. It is for a
// recovery whose publications did not all go to the client, before Live. Runs on
// the loop of s.
func (t *Topics) Rebase(s *session.Session, name string, p *Publication) {
	if sub := memberOf(s).find(name); sub != nil && sub.track != nil && sub.track.is(trackDelta) {
		sub.track.base = p
	}
}

// Quiet lets s leave its topics without a word to the others: it goes on in
// another server. Runs on the loop of s.
func (t *Topics) Quiet(s *session.Session) {
	for sub := range memberOf(s).all() {
		if sub.track != nil {
			sub.track.flags &^= trackJoined
		}
	}
}
