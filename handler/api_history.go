package handler

import (
	"context"
	"encoding/json"

	"perch/protocol"
	"perch/topic"
)

type apiTopicRequest struct {
	Channel string `json:"channel"`
}

type apiHistoryRequest struct {
	apiTopicRequest
	Limit   int32        `json:"limit"`
	Since   *apiPosition `json:"since"`
	Reverse bool         `json:"reverse"`
}

// apiPublication is a publication of a history. Data that is no JSON value
// stands in base64.
type apiPublication struct {
	Data    json.RawMessage   `json:"data,omitempty"`
	B64Data []byte            `json:"b64data,omitempty"`
	Info    *apiClient        `json:"info,omitempty"`
	Offset  uint64            `json:"offset"`
	Tags    map[string]string `json:"tags,omitempty"`
}

type apiHistoryResult struct {
	Publications []apiPublication `json:"publications"`
	Epoch        string           `json:"epoch"`
	Offset       uint64           `json:"offset"`
}

// apiClient is what backends see of a subscriber. Info that is no JSON value is
// left out.
type apiClient struct {
	User     string          `json:"user"`
	Client   string          `json:"client"`
	ConnInfo json.RawMessage `json:"conn_info,omitempty"`
	ChanInfo json.RawMessage `json:"chan_info,omitempty"`
}

type apiPresenceResult struct {
	Presence map[string]apiClient `json:"presence"`
}

type apiPresenceStatsResult struct {
	Clients int `json:"num_clients"`
	Users   int `json:"num_users"`
}

func apiClientOf(i *topic.ClientInfo) apiClient {
	c := apiClient{User: i.User, Client: i.Client}
	if len(i.ConnInfo) > 0 && protocol.ValidPayload(i.ConnInfo, protocol.JSON) {
		c.ConnInfo = i.ConnInfo
	}
	if len(i.ChanInfo) > 0 && protocol.ValidPayload(i.ChanInfo, protocol.JSON) {
		c.ChanInfo = i.ChanInfo
	}
	return c
}

// namespace checks the topic of a request.
func (a *api) namespace(ctx context.Context, name string) (*topic.Namespace, *apiError) {
	if name == "" {
		return nil, a.bad("channel is required")
	}
	ns, err := a.Topics.Namespace(name)
	return ns, a.fault(ctx, err)
}

// apiOne is an answer that is waited for.
type apiOne[T any] struct {
	value T
	err   error
}

// one waits for what begin hands to its argument, once.
func one[T any](ctx context.Context, begin func(func(T, error))) (T, error) {
	g := newAPIGather(1, apiOne[T]{err: errAPIUnanswered})
	begin(func(v T, err error) { g.set(0, apiOne[T]{v, err}) })
	got := g.wait(ctx)[0]
	return got.value, got.err
}

func (a *api) history(ctx context.Context, r *apiHistoryRequest) (any, *apiError) {
	ns, fault := a.namespace(ctx, r.Channel)
	if fault != nil {
		return nil, fault
	}
	f, ok := historyFilter(r.Limit, r.Since.topic(), r.Reverse)
	if !ok {
		return nil, a.bad("reverse from offset 0")
	}
	type read struct {
		pubs []*topic.Publication
		at   topic.Position
	}
	got, err := one(ctx, func(done func(read, error)) {
		a.Topics.History(ns, r.Channel, f, func(pubs []*topic.Publication, at topic.Position, err error) {
			done(read{pubs, at}, err)
		})
	})
	if err != nil {
		return nil, a.fault(ctx, err)
	}
	out := apiHistoryResult{Publications: make([]apiPublication, len(got.pubs)), Epoch: got.at.Epoch, Offset: got.at.Offset}
	for i, p := range got.pubs {
		to := &out.Publications[i]
		to.Offset, to.Tags = p.Offset, p.Tags
		if protocol.ValidPayload(p.Data, protocol.JSON) {
			to.Data = p.Data
		} else {
			to.B64Data = p.Data
		}
		if p.Info != nil {
			info := apiClientOf(p.Info)
			to.Info = &info
		}
	}
	return out, nil
}

func (a *api) historyRemove(ctx context.Context, r *apiTopicRequest) (any, *apiError) {
	ns, fault := a.namespace(ctx, r.Channel)
	if fault != nil {
		return nil, fault
	}
	_, err := one(ctx, func(done func(struct{}, error)) {
		a.Topics.RemoveHistory(ns, r.Channel, func(err error) { done(struct{}{}, err) })
	})
	return apiEmpty(a.fault(ctx, err))
}

// present asks all nodes for the subscribers of a topic whose namespace has
// presence.
func (a *api) present(ctx context.Context, method, name string) (*census, *apiError) {
	ns, fault := a.namespace(ctx, name)
	if fault != nil {
		return nil, fault
	}
	if !ns.Presence {
		return nil, apiNotAvailable
	}
	c, err := one(ctx, func(done func(*census, error)) { takeCensus(a.Topics, a.Peers, method, name, done) })
	return c, a.fault(ctx, err)
}

func (a *api) presence(ctx context.Context, r *apiTopicRequest) (any, *apiError) {
	c, fault := a.present(ctx, peerPresence, r.Channel)
	if fault != nil {
		return nil, fault
	}
	all, err := c.list()
	if err != nil {
		return nil, a.fault(ctx, err)
	}
	out := make(map[string]apiClient, len(all))
	for i := range all {
		out[all[i].Client] = apiClientOf(&all[i])
	}
	return apiPresenceResult{out}, nil
}

func (a *api) presenceStats(ctx context.Context, r *apiTopicRequest) (any, *apiError) {
	c, fault := a.present(ctx, peerPresenceStats, r.Channel)
	if fault != nil {
		return nil, fault
	}
	clients, users, err := c.stats()
	return apiPresenceStatsResult{clients, users}, a.fault(ctx, err)
}
