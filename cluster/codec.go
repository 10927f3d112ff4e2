package cluster

import (
	"encoding/binary"
	"errors"

	"perch/topic"
)

// A publication travels as one message: a byte that names the format, one of
// flags, then strings with their length before them, and the payload to the end.
const (
	formatOne = 1

	flagDelta   = 1 << 0 // subscribers that agreed on deltas have one
	flagTags    = 1 << 1
	flagInfo    = 1 << 2
	flagVersion = 1 << 3
	// flagRemoved marks that the history before it has been removed: no publication.
	flagRemoved = 1 << 4
	// flagEpoch marks a message that holds the epoch of its stream.
	flagEpoch = 1 << 5
	// flagPlace marks a message that says up to where a leaf has the hub's stream.
	flagPlace = 1 << 6
)

// record is a message of a stream or between nodes.
type record struct {
	flags        byte
	topic        string
	version      uint64
	versionEpoch string
	// previous is, with flagRemoved, the offset at which the topic stood; with
	// flagPlace that of the hub's stream; with flagEpoch where the epoch began, 0: with
	// this message.
	previous uint64
	pub      *topic.Publication
	epoch    string // with flagEpoch, and flagPlace: the hub's
}

var errFormat = errors.New("cluster: not a message of this version")

// maxTags bounds what a count of tags can make us allocate.
const maxTags = 1 << 16

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// encode is the message of a publication.
func encode(name string, p *topic.Publication, o *topic.PublishOptions) []byte {
	n := 32 + len(name) + len(p.Data) + len(o.VersionEpoch)
	for k, v := range p.Tags {
		n += len(k) + len(v) + 6
	}
	var flags byte
	if p.Info != nil {
		flags |= flagInfo
		n += len(p.Info.User) + len(p.Info.Client) + len(p.Info.ConnInfo) + len(p.Info.ChanInfo) + 12
	}
	if o.Delta {
		flags |= flagDelta
	}
	if len(p.Tags) > 0 {
		flags |= flagTags
	}
	if o.Version > 0 {
		flags |= flagVersion
	}
	b := append(make([]byte, 0, n), formatOne, flags)
	b = appendString(b, name)
	if o.Version > 0 {
		b = appendString(binary.AppendUvarint(b, o.Version), o.VersionEpoch)
	}
	if len(p.Tags) > 0 {
		b = binary.AppendUvarint(b, uint64(len(p.Tags)))
		for k, v := range p.Tags {
			b = appendString(appendString(b, k), v)
		}
	}
	if i := p.Info; i != nil {
		b = appendString(appendString(b, i.User), i.Client)
		b = appendString(appendString(b, string(i.ConnInfo)), string(i.ChanInfo))
	}
	return append(b, p.Data...)
}

// encodeRemoved marks that the history of a topic is gone up to an offset.
func encodeRemoved(name string, previous uint64) []byte {
	return binary.AppendUvarint(appendString([]byte{formatOne, flagRemoved}, name), previous)
}

// encodeEpoch names the epoch of a stream; began is 0 where it begins with this.
func encodeEpoch(epoch string, began uint64) []byte {
	return append(binary.AppendUvarint(appendString([]byte{formatOne, flagEpoch}, ""), began), epoch...)
}

// encodePlace notes that a leaf has the hub's stream up to an offset.
func encodePlace(epoch string, at uint64) []byte {
	return append(binary.AppendUvarint(appendString([]byte{formatOne, flagPlace}, ""), at), epoch...)
}

// peek reads the front of a message, its flags and the topic; read reads the rest.
func peek(b []byte) (r record, rest decoder, err error) {
	d := decoder{b: b}
	r.flags = d.head()
	r.topic = d.string()
	return r, d, d.err
}

// topicOf is the name in a message, without the rest of it.
func topicOf(b []byte) (string, error) {
	r, _, err := peek(b)
	return r.topic, err
}

// decode reads a message; the publication holds on to b.
func decode(b []byte) (record, error) {
	r, rest, err := peek(b)
	if err != nil {
		return r, err
	}
	return r.read(rest)
}

// read reads what is behind the front. The publication holds on to what is read.
func (r record) read(d decoder) (record, error) {
	switch {
	case r.flags&(flagEpoch|flagPlace) != 0:
		r.previous = d.uvarint()
		r.epoch = string(d.b)
		return r, d.err
	case r.flags&flagRemoved != 0:
		r.previous = d.uvarint()
		return r, d.err
	}
	if r.flags&flagVersion != 0 {
		r.version = d.uvarint()
		r.versionEpoch = d.string()
	}
	p := &topic.Publication{}
	if r.flags&flagTags != 0 {
		n := d.uvarint()
		if n > maxTags || n > uint64(len(d.b)) {
			return r, errFormat
		}
		p.Tags = make(map[string]string, n)
		for range n {
			k := d.string()
			p.Tags[k] = d.string()
		}
	}
	if r.flags&flagInfo != 0 {
		p.Info = &topic.ClientInfo{User: d.string(), Client: d.string(), ConnInfo: d.bytes(), ChanInfo: d.bytes()}
	}
	p.Data = d.b
	r.pub = p
	return r, d.err
}

// decoder reads from the front; after an error it reads nothing more.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) head() byte {
	if len(d.b) < 2 || d.b[0] != formatOne {
		d.fail()
		return 0
	}
	flags := d.b[1]
	d.b = d.b[2:]
	return flags
}

func (d *decoder) fail() { d.b, d.err = nil, errFormat }

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes are part of what is read; nil where there are none.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string { return string(d.bytes()) }
