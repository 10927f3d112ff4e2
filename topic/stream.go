package topic

import (
	"math/rand/v2"
	"strings"
	"time"
)

const (
	// streamOverhead is about what an empty stream takes, with its places in the
	// table and the queue; keptOverhead what a publication takes beside its bytes.
	streamOverhead = 320
	keptOverhead   = 128
	epochLength    = 8
)

// stream is what the memory keeps of a topic: its latest publications and its
// position. All of it stands under its shard's lock.
type stream struct {
	name  string
	epoch string
	top   uint64
	// kept are the publications, oldest first, from first on; their offsets have
	// no gap.
	kept  []kept
	first int
	bytes int // of kept
	// The last publication's version.
	version      uint64
	versionEpoch string

	forget int64 // when the position goes, unless it is used before
	due    int64 // when to look at the stream: never later than something is over
	queue  int   // of the shard's
	place  int   // in the queue
}

// kept is a publication in a history. Times are in nanoseconds, from the start of
// the memory.
type kept struct {
	p    *Publication
	ends int64
}

func newStream(name string, now int64, meta time.Duration) *stream {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	epoch := make([]byte, epochLength)
	for i := range epoch {
		epoch[i] = letters[rand.IntN(len(letters))]
	}
	s := &stream{name: name, epoch: string(epoch)}
	s.use(now, meta)
	s.due = s.forget
	return s
}

// use keeps the position for a while longer.
func (s *stream) use(now int64, meta time.Duration) { s.forget = max(s.forget, now+int64(meta)) }

func (s *stream) len() int           { return len(s.kept) - s.first }
func (s *stream) position() Position { return Position{s.top, s.epoch} }
func (s *stream) size() int {
	return streamOverhead + len(s.name) + len(s.versionEpoch) + s.bytes
}

// older tells whether a version is not newer than the last one.
func (s *stream) older(version uint64, epoch string) bool {
	return version > 0 && version <= s.version && (epoch == "" || epoch == s.versionEpoch)
}

// add takes the publication whose offset follows the top.
func (s *stream) add(p *Publication, now int64, o *PublishOptions) {
	s.top = p.Offset
	s.kept = append(s.kept, kept{p, now + int64(o.HistoryTTL)})
	s.bytes += p.weight() + keptOverhead
	if o.Version > 0 {
		s.version = o.Version
		if s.versionEpoch != o.VersionEpoch {
			s.versionEpoch = strings.Clone(o.VersionEpoch)
		}
	}
	s.due = min(s.due, now+int64(o.HistoryTTL))
}

// trim drops what is over, and the oldest beyond a number and a sum of bytes.
func (s *stream) trim(now int64, most, bytes int) {
	for s.first < len(s.kept) {
		k := &s.kept[s.first]
		if k.ends > now && s.len() <= most && s.bytes <= bytes {
			break
		}
		s.bytes -= k.p.weight() + keptOverhead
		*k = kept{}
		s.first++
	}
	switch n := s.len(); {
	case n == 0:
		s.kept, s.first = nil, 0
	case s.first > 16 && s.first > n:
		s.kept, s.first = append(make([]kept, 0, n+n/4), s.kept[s.first:]...), 0
	}
}

// next is when the stream is to be looked at again.
func (s *stream) next() int64 {
	if s.len() > 0 {
		return s.kept[s.first].ends
	}
	return s.forget
}

// read is the part of the history that f asks for, in a slice of its own.
func (s *stream) read(f *Filter) []*Publication {
	all := s.kept[s.first:]
	if f.Limit == 0 || len(all) == 0 {
		return nil
	}
	from, to := 0, len(all)
	if f.Since != nil {
		// The offset of all[i] is oldest+i.
		oldest := all[0].p.Offset
		if f.Reverse {
			to = int(min(uint64(to), f.Since.Offset-min(f.Since.Offset, oldest)))
		} else if f.Since.Offset >= oldest {
			from = int(min(uint64(to), f.Since.Offset-oldest+1))
		}
	}
	n := to - from
	if n <= 0 {
		return nil
	}
	if f.Limit > 0 {
		n = min(n, f.Limit)
	}
	out := make([]*Publication, n)
	for i := range out {
		if f.Reverse {
			out[i] = all[to-1-i].p
		} else {
			out[i] = all[from+i].p
		}
	}
	return out
}

// streamQueue orders streams by when they are due; see container/heap.
type streamQueue []*stream

func (q streamQueue) Len() int           { return len(q) }
func (q streamQueue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q streamQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *streamQueue) Push(x any) {
	s := x.(*stream)
	s.place = len(*q)
	*q = append(*q, s)
}

func (q *streamQueue) Pop() any {
	old := *q
	n := len(old) - 1
	s := old[n]
	old[n] = nil
	if *q = old[:n]; cap(old) > 64 && n < cap(old)/4 {
		*q = append(make(streamQueue, 0, cap(old)/2), old[:n]...)
	}
	return s
}
