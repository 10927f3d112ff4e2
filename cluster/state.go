package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A stream says of itself that less was kept of a topic once than is now: of a
// place up to metaUntil, metaLeast messages may be all that is left.
const (
	metaLeast = "perch_least"
	metaUntil = "perch_least_until"
)

// streamState is how a stream is, as the leader says.
type streamState struct {
	first, last uint64
	most        int64 // messages kept of a topic
	created     time.Time
	meta        map[string]string
	messages    uint64
	bytes       uint64
}

// keptSince is how many messages of a topic were kept, at least, since a place.
func (s *streamState) keptSince(seq uint64) int64 {
	if least, until := leastOf(s.meta); seq <= until {
		return min(s.most, least)
	}
	return s.most
}

// leastOf reads what withLeast has written. What can't be read holds for all.
func leastOf(meta map[string]string) (least int64, until uint64) {
	if meta[metaLeast] == "" {
		return math.MaxInt64, 0
	}
	least, err := strconv.ParseInt(meta[metaLeast], 10, 64)
	if err != nil {
		least = 0
	}
	if until, err = strconv.ParseUint(meta[metaUntil], 10, 64); err != nil {
		until = math.MaxUint64
	}
	return least, until
}

func withLeast(meta map[string]string, least int64, until uint64) map[string]string {
	out := maps.Clone(meta)
	if out == nil {
		out = make(map[string]string)
	}
	out[metaLeast], out[metaUntil] = strconv.FormatInt(least, 10), strconv.FormatUint(until, 10)
	return out
}

// state asks where the stream stands.
func (s *stream) state() (streamState, error) {
	ctx, cancel := context.WithTimeout(s.life, s.timeout())
	defer cancel()
	st, err := s.b.link.js.Stream(ctx, s.name)
	if err != nil {
		return streamState{}, fmt.Errorf("look at the stream: %w", err)
	}
	return stateOf(st.CachedInfo()), nil
}

func stateOf(i *jetstream.StreamInfo) streamState {
	return streamState{i.State.FirstSeq, i.State.LastSeq, i.Config.MaxMsgsPerSubject, i.Created, i.Config.Metadata, i.State.Msgs, i.State.Bytes}
}

// look is state for those who can't wait.
func (s *stream) look(done func(streamState, error)) {
	s.ask("$JS.API.STREAM.INFO."+s.name, struct{}{}, func(m *nats.Msg, err error) bool {
		if err != nil {
			done(streamState{}, err)
			return false
		}
		var a struct {
			Error *jetstream.APIError `json:"error"`
			jetstream.StreamInfo
		}
		if len(m.Data) == 0 || json.Unmarshal(m.Data, &a) != nil || a.Error != nil {
			done(streamState{}, ErrUnavailable)
			return false
		}
		done(stateOf(&a.StreamInfo), nil)
		return false
	})
}
