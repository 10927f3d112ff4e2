package handler

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

// apiWave is how many sessions are asked at once. A user may have any number,
// and the inboxes' room is everybody's.
const apiWave = 1024

// apiMaxReason is what a close frame has room for behind the code (RFC 6455,
// section 5.5).
const apiMaxReason = 123

// apiTarget says which sessions are meant. A session has one id here: the
// client id.
type apiTarget struct {
	User    string `json:"user"`
	Client  string `json:"client"`
	Session string `json:"session"`
}

// client is the one session that is meant, if one is.
func (t *apiTarget) client() string {
	if t.Client == "" {
		return t.Session
	}
	return t.Client
}

type apiSubscribeRequest struct {
	apiTarget
	Channel  string          `json:"channel"`
	Info     json.RawMessage `json:"info"`
	B64Info  string          `json:"b64info"`
	Data     json.RawMessage `json:"data"`
	B64Data  string          `json:"b64data"`
	ExpireAt int64           `json:"expire_at"`
	// RecoverSince is where the peer stands.
	RecoverSince *apiPosition `json:"recover_since"`
	Override     *struct {
		Presence           *apiBool `json:"presence"`
		JoinLeave          *apiBool `json:"join_leave"`
		ForcePushJoinLeave *apiBool `json:"force_push_join_leave"`
		ForceRecovery      *apiBool `json:"force_recovery"`
		ForcePositioning   *apiBool `json:"force_positioning"`
	} `json:"override"`
}

type apiPosition struct {
	Offset uint64 `json:"offset"`
	Epoch  string `json:"epoch"`
}

func (p *apiPosition) topic() *topic.Position {
	if p == nil {
		return nil
	}
	return &topic.Position{Offset: p.Offset, Epoch: p.Epoch}
}

func (r *apiSubscribeRequest) override() auth.Override {
	o := r.Override
	if o == nil {
		return auth.Override{}
	}
	return auth.Override{Presence: o.Presence.value(), JoinLeave: o.JoinLeave.value(), ForcePushJoinLeave: o.ForcePushJoinLeave.value(),
		ForceRecovery: o.ForceRecovery.value(), ForcePositioning: o.ForcePositioning.value()}
}

func (b *apiBool) value() *bool {
	if b == nil {
		return nil
	}
	return &b.Value
}

type apiBool struct {
	Value bool `json:"value"`
}

type apiUnsubscribeRequest struct {
	apiTarget
	Channel string `json:"channel"`
}

type apiDisconnectRequest struct {
	apiTarget
	Whitelist  []string `json:"whitelist"`
	Disconnect *struct {
		Code   uint32 `json:"code"`
		Reason string `json:"reason"`
	} `json:"disconnect"`
}

type apiRefreshRequest struct {
	apiTarget
	Expired  bool            `json:"expired"`
	ExpireAt int64           `json:"expire_at"`
	Info     json.RawMessage `json:"info"`
}

// find lists the sessions of a target. That there are none is no error: a peer
// may go at any time.
func (a *api) find(t apiTarget) ([]session.ID, *apiError) {
	client := t.client()
	if client == "" {
		if t.User == "" {
			return nil, a.bad("user or client is required")
		}
		return a.Registry.ByUser(t.User, nil), nil
	}
	id, ok := a.Registry.ByClient(a.Node, client)
	if !ok || t.Session != "" && t.Session != client {
		return nil, nil
	}
	if t.User != "" && !slices.Contains(a.Registry.ByUser(t.User, nil), id) {
		return nil, nil
	}
	return []session.ID{id}, nil
}

// each runs do with each session that is connected, on its loop, and waits for
// all of them. n is how many bytes do carries. Where an inbox is full, no
// session of the wave is touched; what earlier waves did stays, so do must be
// safe to repeat. The first error wins. found is how many there are.
func (a *api) each(ctx context.Context, ids []session.ID, n int, do func(*session.Session) error) (found int, fault *apiError) {
	var there atomic.Int64
	n += session.PostOverhead
	for wave := range slices.Chunk(ids, apiWave) {
		loops := make([]session.Loop, len(wave))
		for i, id := range wave {
			l := a.Loops.Loop(id.Loop())
			if l != nil && !l.Reserve(n) {
				for _, r := range loops[:i] {
					if r != nil {
						r.Release(n)
					}
				}
				return int(there.Load()), apiTooManyRequests
			}
			loops[i] = l
		}
		g := newAPIGather(len(wave), errAPIUnanswered)
		for i, id := range wave {
			if loops[i] == nil {
				g.set(i, nil)
				continue
			}
			loops[i].Post(n, id, func(s *session.Session) {
				err := errAPIUnanswered
				// Deferred, so that a panic in do leaves nobody waiting.
				defer func() { g.set(i, err) }()
				if s == nil || s.State != session.StateConnected {
					err = nil
					return
				}
				there.Add(1)
				err = do(s)
			})
		}
		for _, err := range g.wait(ctx) {
			if fault := a.fault(ctx, err); fault != nil {
				return int(there.Load()), fault
			}
		}
	}
	return int(there.Load()), nil
}

func (a *api) subscribe(ctx context.Context, r *apiSubscribeRequest) (int, *apiError) {
	if r.Channel == "" {
		return 0, a.bad("channel is required")
	}
	ids, fault := a.find(r.apiTarget)
	if fault != nil {
		return 0, fault
	}
	if a.far && len(ids) == 0 {
		return 0, nil
	}
	if _, err := a.Topics.Namespace(r.Channel); err != nil {
		return 0, a.fault(ctx, err)
	}
	info, okInfo := apiBytes(r.Info, r.B64Info)
	data, okData := apiBytes(r.Data, r.B64Data)
	if !okInfo || !okData {
		return 0, a.bad("b64info or b64data is not base64")
	}
	if r.ExpireAt < 0 {
		return 0, a.bad("expire_at is negative")
	}
	if r.ExpireAt > 0 && r.ExpireAt <= time.Now().Unix() {
		return 0, apiExpired
	}
	sub := APISubscription{Topic: r.Channel, Info: info, Data: data, ExpireAt: r.ExpireAt,
		Since: r.RecoverSince.topic(), Override: r.override()}
	n := len(r.Channel) + len(info) + len(data)
	return a.each(ctx, ids, n, func(s *session.Session) error {
		err := a.Sessions.SubscribeSession(s, sub)
		if errors.Is(err, topic.ErrAlreadySubscribed) {
			return nil // what was asked for is so
		}
		return err
	})
}

func (a *api) unsubscribe(ctx context.Context, r *apiUnsubscribeRequest) (int, *apiError) {
	if r.Channel == "" {
		return 0, a.bad("channel is required")
	}
	ids, fault := a.find(r.apiTarget)
	if fault != nil {
		return 0, fault
	}
	if a.far && len(ids) == 0 {
		return 0, nil
	}
	if _, err := a.Topics.Namespace(r.Channel); err != nil {
		return 0, a.fault(ctx, err)
	}
	return a.each(ctx, ids, len(r.Channel), func(s *session.Session) error {
		return a.Sessions.UnsubscribeSession(s, r.Channel)
	})
}

func (a *api) refresh(ctx context.Context, r *apiRefreshRequest) (int, *apiError) {
	ids, fault := a.find(r.apiTarget)
	if fault != nil {
		return 0, fault
	}
	if r.ExpireAt < 0 {
		return 0, a.bad("expire_at is negative")
	}
	if r.Expired || r.ExpireAt > 0 && r.ExpireAt <= time.Now().Unix() {
		info := session.ReasonExpired.Info()
		found := a.there(ctx, &r.apiTarget, ids)
		a.closeAll(ids, session.ReasonExpired, info.Code, info.Text)
		return found, nil
	}
	refresh := APIRefresh{ExpireAt: r.ExpireAt, Info: apiJSON(r.Info)}
	return a.each(ctx, ids, len(refresh.Info), func(s *session.Session) error {
		return a.Sessions.RefreshSession(s, refresh)
	})
}

func (a *api) disconnect(ctx context.Context, r *apiDisconnectRequest) (int, *apiError) {
	ids, fault := a.find(r.apiTarget)
	if fault != nil {
		return 0, fault
	}
	reason, info := session.ReasonForced, session.ReasonForced.Info()
	code, text := info.Code, info.Text
	if d := r.Disconnect; d != nil {
		// Below 3000 are codes that RFC 6455 keeps for itself, above 4999 none.
		if d.Code < 3000 || d.Code > 4999 || len(d.Reason) > apiMaxReason || !utf8.ValidString(d.Reason) {
			return 0, a.bad("disconnect wants a code from 3000 to 4999 and a reason of 123 bytes at most")
		}
		reason, code, text = apiReason(uint16(d.Code)), uint16(d.Code), d.Reason
	}
	spared := make(map[session.ID]struct{}, len(r.Whitelist))
	for _, client := range r.Whitelist {
		if id, ok := a.Registry.ByClient(a.Node, client); ok {
			spared[id] = struct{}{}
		}
	}
	found := a.there(ctx, &r.apiTarget, ids) // those that are spared, too
	ids = slices.DeleteFunc(ids, func(id session.ID) bool {
		_, ok := spared[id]
		return ok
	})
	a.closeAll(ids, reason, code, text)
	return found, nil
}

// there is how many of the sessions exist. Only of one that is named it matters:
// its id may be that of a session that goes on in another node.
func (a *api) there(ctx context.Context, t *apiTarget, ids []session.ID) int {
	if t.client() == "" || a.Peers.Alone() && !a.far {
		return len(ids)
	}
	found, fault := a.each(ctx, ids, 0, func(*session.Session) error { return nil })
	if fault != nil {
		return len(ids)
	}
	return found
}

// closeAll does not wait: a close needs no room and is never dropped.
func (a *api) closeAll(ids []session.ID, r session.Reason, code uint16, text string) {
	for _, id := range ids {
		if l := a.Loops.Loop(id.Loop()); l != nil {
			l.PostClose(id, r, code, text)
		}
	}
}

// apiReason is the reason of the table that has the code, so that metrics tell
// it from a code of the backend's own.
func apiReason(code uint16) session.Reason {
	found := session.ReasonCustom
	session.Reasons(func(r session.Reason, info session.ReasonInfo) {
		if info.Code == code {
			found = r
		}
	})
	return found
}

func apiEmpty(fault *apiError) (any, *apiError) { return struct{}{}, fault }
