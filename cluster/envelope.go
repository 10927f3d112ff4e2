package cluster

import (
	"bytes"
	"encoding/json"
	"strconv"

	"perch/session"
)

const (
	envelopeVersion = 1
	// maxName bounds what another node calls itself: it goes into logs.
	maxName = 255
)

// envelope is what nodes tell one another beside publications: a line of JSON,
// and behind it what it carries. What it is says its subject. Fields that a
// later version adds are passed over; one that changes their meaning has another
// version.
type envelope struct {
	Version int    `json:"v"`
	Node    string `json:"node"` // who says it, in hex

	// Of an announcement. Started is in Unix seconds; Ask wants to be told at once
	// who else is there, Bye is the last one.
	Name    string `json:"name,omitempty"`
	Build   string `json:"version,omitempty"`
	Started int64  `json:"started,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Ask     bool   `json:"ask,omitempty"`
	Bye     bool   `json:"bye,omitempty"`

	// Of a question and of the answers to it. Millis is how long an answer is
	// waited for. An answer comes in parts, of which all but the last say More.
	ID     uint64 `json:"id,omitempty"`
	Method string `json:"method,omitempty"`
	Millis int64  `json:"ms,omitempty"`
	Part   int    `json:"part,omitempty"`
	More   bool   `json:"more,omitempty"`
	Err    string `json:"err,omitempty"`

	// Of news.
	Topic string `json:"topic,omitempty"`

	from session.Node
}

func nodeHex(n session.Node) string {
	const digits = 16
	s := strconv.FormatUint(uint64(n), 16)
	return "0000000000000000"[:digits-len(s)] + s
}

func (e *envelope) encode(body []byte) []byte {
	e.Version = envelopeVersion
	head, err := json.Marshal(e)
	if err != nil {
		panic("cluster: encode: " + err.Error()) // strings and numbers only
	}
	out := make([]byte, 0, len(head)+1+len(body))
	return append(append(append(out, head...), '\n'), body...)
}

// decodeEnvelope gives out the body as a slice of b.
func decodeEnvelope(b []byte) (e envelope, body []byte, ok bool) {
	head, body, ok := bytes.Cut(b, []byte{'\n'})
	if !ok || json.Unmarshal(head, &e) != nil || e.Version != envelopeVersion || len(e.Node) != 16 || len(e.Name) > maxName || len(e.Build) > maxName {
		return envelope{}, nil, false
	}
	n, err := strconv.ParseUint(e.Node, 16, 64)
	if err != nil || n == 0 || e.Part < 0 || e.Millis < 0 {
		return envelope{}, nil, false
	}
	e.from = session.Node(n)
	return e, body, true
}
