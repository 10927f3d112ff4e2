package handler

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"

	"perch/topic"
)

// apiMaxItems bounds the topics of a broadcast and the commands of a batch: each
// costs a hundred times its bytes in the request.
const apiMaxItems = 1 << 16

// apiContent is what publish and broadcast have in common.
type apiContent struct {
	Data    json.RawMessage   `json:"data"`
	B64Data string            `json:"b64data"`
	Tags    map[string]string `json:"tags"`
	// SkipHistory keeps the publication out of the history.
	SkipHistory bool `json:"skip_history"`
	// IdempotencyKey makes the same publication again do nothing.
	IdempotencyKey string `json:"idempotency_key"`
	Delta          bool   `json:"delta"`
	Version        uint64 `json:"version"`
	VersionEpoch   string `json:"version_epoch"`
}

// apiMaxKey bounds an idempotency key and the epoch of a version, in bytes.
const apiMaxKey = 256

func (r *apiContent) request() topic.PublishRequest {
	return topic.PublishRequest{SkipHistory: r.SkipHistory, IdempotencyKey: r.IdempotencyKey, Delta: r.Delta,
		Version: r.Version, VersionEpoch: r.VersionEpoch}
}

type apiPublishRequest struct {
	Channel string `json:"channel"`
	apiContent
}

type apiBroadcastRequest struct {
	Channels []string `json:"channels"`
	apiContent
}

type apiPublishResult struct {
	Offset uint64 `json:"offset,omitempty"`
	Epoch  string `json:"epoch,omitempty"`
}

type apiBroadcastResult struct {
	Responses []apiReply `json:"responses"`
}

// payload is the bytes to publish; nobody changes them any more.
func (a *api) payload(r *apiContent) ([]byte, *apiError) {
	data, ok := apiBytes(r.Data, r.B64Data)
	if !ok {
		return nil, a.bad("b64data is not base64")
	}
	if len(data) == 0 {
		return nil, a.bad("data is required")
	}
	if len(r.IdempotencyKey) > apiMaxKey || len(r.VersionEpoch) > apiMaxKey {
		return nil, a.bad("idempotency_key and version_epoch have 256 bytes at most")
	}
	return data, nil
}

// apiBytes picks the base64 form where it is given. A JSON null is nothing.
func apiBytes(raw json.RawMessage, b64 string) ([]byte, bool) {
	if b64 != "" {
		b, err := base64.StdEncoding.DecodeString(b64)
		return b, err == nil
	}
	return apiJSON(raw), true
}

// apiJSON is raw without line ends, which would cut a message of the JSON
// protocol in two: there, commands are separated by them. Inside of JSON
// strings there are none. A null is nil.
func apiJSON(raw json.RawMessage) []byte {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	if bytes.ContainsAny(raw, "\r\n") {
		var b bytes.Buffer
		if json.Compact(&b, raw) == nil {
			return b.Bytes()
		}
	}
	return raw
}

func (a *api) publish(ctx context.Context, r *apiPublishRequest) (any, *apiError) {
	if r.Channel == "" {
		return nil, a.bad("channel is required")
	}
	data, fault := a.payload(&r.apiContent)
	if fault != nil {
		return nil, fault
	}
	replies := a.publishAll(ctx, []string{r.Channel}, data, &r.apiContent)
	return replies[0].Result, replies[0].Error
}

func (a *api) broadcast(ctx context.Context, r *apiBroadcastRequest) (any, *apiError) {
	if len(r.Channels) == 0 {
		return nil, a.bad("channels are required")
	}
	if len(r.Channels) > apiMaxItems {
		return nil, apiLimitExceeded
	}
	data, fault := a.payload(&r.apiContent)
	if fault != nil {
		return nil, fault
	}
	return apiBroadcastResult{a.publishAll(ctx, r.Channels, data, &r.apiContent)}, nil
}

type apiPublished struct {
	position topic.Position
	err      error
}

// publishAll publishes to each topic and waits for all of them. The bytes and
// the tags are shared by the publications.
func (a *api) publishAll(ctx context.Context, names []string, data []byte, r *apiContent) []apiReply {
	replies := make([]apiReply, len(names))
	g := newAPIGather(len(names), apiPublished{err: errAPIUnanswered})
	for i, name := range names {
		if name == "" {
			replies[i].Error = a.bad("channel is empty")
			g.set(i, apiPublished{})
			continue
		}
		ns, err := a.Topics.Namespace(name)
		if err != nil {
			replies[i].Error = apiFault(err)
			g.set(i, apiPublished{})
			continue
		}
		a.Topics.Publish(ns, name, &topic.Publication{Data: data, Tags: r.Tags}, r.request(), func(p topic.Position, err error) {
			g.set(i, apiPublished{p, err})
		})
	}
	var ours error // one of them is enough for the log
	for i, p := range g.wait(ctx) {
		if replies[i].Error != nil {
			continue
		}
		switch f := apiFault(p.err); f {
		case nil:
			replies[i].Result = apiPublishResult{p.position.Offset, p.position.Epoch}
		case apiInternal:
			ours = p.err
			fallthrough
		default:
			replies[i].Error = f
		}
	}
	if ours != nil {
		a.fault(ctx, ours)
	}
	return replies
}
