package cluster

import "perch/topic"

// Subjects below the prefix. The tokens in them stand for names that may hold
// what a subject can't.
const (
	subjectPublish = "p" // publications without a history: p.<shard>
	subjectStored  = "h" // into the streams: h.<namespace>.<topic>
	subjectDeliver = "d" // out of them, once they are stored: d.<namespace>.<topic>
	subjectSites   = "s" // of a leaf's site: s.<site>.h and s.<site>.d as above
	subjectUplink  = "o" // what waits there for the hub: s.<site>.o.<namespace>
	subjectMark    = "a" // and how much of it the hub has: s.<site>.a.!at
	subjectRead    = "u" // what sites ask of the hub's nodes: u.<namespace>

	// What the names of streams have behind the prefix.
	streamHistory  = "_h_" // and the namespace's token
	streamUplink   = "_uplink"
	streamUplinkAt = "_uplink_at"

	// tokenNone stands for the empty namespace, whose name no other can have.
	tokenNone = "_"
	// tokenEpoch is the place of a stream's epoch among its topics: no token of a
	// topic holds a '!'.
	tokenEpoch = "!epoch"
	// tokenPlace is, in a leaf's stream, that of how far it has the hub's, tokenMark
	// that of how much of its own the hub has.
	tokenPlace = "!hub"
	tokenMark  = "!at"
)

const hexDigits = "0123456789ABCDEF"

// token writes a name so that it is one token of a subject and can be part of the
// name of a stream: what is not a letter, a digit or one of -_:#$@,+~ is written
// as = and two digits.
func token(name string) string {
	plain := true
	for i := range len(name) {
		if !plainByte(name[i]) {
			plain = false
			break
		}
	}
	if plain {
		return name
	}
	b := make([]byte, 0, len(name)+16)
	for i := range len(name) {
		if c := name[i]; plainByte(c) {
			b = append(b, c)
		} else {
			b = append(b, '=', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

func plainByte(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	switch c {
	case '-', '_', ':', '#', '$', '@', ',', '+', '~':
		return true
	}
	return false
}

func namespaceToken(name string) string {
	if name == "" {
		return tokenNone
	}
	return token(name)
}

// namespaceOf is the namespace of a topic.
func namespaceOf(name string) string { return topic.NamespaceOf(name) }
