package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"perch/session"
	"perch/topic"
)

// What goes between nodes is a method with the parameters of its request. Each
// node does with its own sessions what the API would do were it alone, and the one
// that was asked puts the answers together.

// apiAct does with the sessions of this node what a request asks for, and tells
// how many it has found.
type apiAct func(ctx context.Context) (int, *apiError)

// apiAimed is a request that is about sessions.
type apiAimed[T any] interface {
	*T
	aim() *apiTarget
}

func (t *apiTarget) aim() *apiTarget { return t }

// apiBindAct reads parameters as T, as apiBind does.
func apiBindAct[T any, P apiAimed[T]](do func(context.Context, P) (int, *apiError)) func([]byte) (apiAct, *apiTarget, error) {
	return func(params []byte) (apiAct, *apiTarget, error) {
		req := P(new(T))
		if err := json.Unmarshal(params, req); err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context) (int, *apiError) { return do(ctx, req) }, req.aim(), nil
	}
}

// acts are the methods about sessions.
func (a *api) acts() map[string]func([]byte) (apiAct, *apiTarget, error) {
	return map[string]func([]byte) (apiAct, *apiTarget, error){
		"subscribe":   apiBindAct(a.subscribe),
		"unsubscribe": apiBindAct(a.unsubscribe),
		"disconnect":  apiBindAct(a.disconnect),
		"refresh":     apiBindAct(a.refresh),
	}
}

// everywhere makes a method of the API of an act: it is done here first, which
// also checks the request, and then on the other nodes.
func (a *api) everywhere(name string, bind func([]byte) (apiAct, *apiTarget, error)) apiMethod {
	return func(params []byte) (apiCall, error) {
		act, target, err := bind(params)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, *apiError) {
			found, fault := act(ctx)
			if fault == nil {
				fault = a.elsewhere(ctx, name, params, target, found)
			}
			return apiEmpty(fault)
		}, nil
	}
}

// elsewhere does an act on the other nodes. A session that is named is looked for
// where its client id was made; it may have moved from there.
func (a *api) elsewhere(ctx context.Context, name string, params []byte, t *apiTarget, found int) *apiError {
	if a.Peers.Alone() {
		return nil
	}
	if client := t.client(); client != "" {
		if found > 0 {
			return nil
		}
		if node, ok := session.NodeOf(client); ok && node != 0 && !node.Is(a.Node) {
			found, fault := a.actFar(ctx, PeerQuestion{Node: node, Method: name, Params: params})
			if fault != nil || found > 0 {
				return fault
			}
		}
	}
	_, fault := a.actFar(ctx, PeerQuestion{Method: name, Params: params})
	return fault
}

// peerDone is the answer of a node that was to act: Code is that of an error.
type peerDone struct {
	Sessions int    `json:"sessions"`
	Code     uint32 `json:"code,omitempty"`
}

// actFar asks other nodes to act; how many sessions they have found.
func (a *api) actFar(ctx context.Context, q PeerQuestion) (found int, fault *apiError) {
	answers, err := a.askPeers(ctx, q)
	if err != nil {
		return 0, a.fault(ctx, err)
	}
	for i := range answers {
		var one peerDone
		err := answers[i].Err
		if err == nil {
			err = json.Unmarshal(answers[i].Data, &one)
		}
		found += one.Sessions
		if fault != nil {
			continue
		}
		if fault = a.fault(ctx, err); fault == nil && one.Code != 0 {
			fault = apiErrorOf(one.Code)
		}
	}
	return found, fault
}

// askPeers waits for the answers of other nodes. errAPIUnanswered: ctx has ended.
func (a *api) askPeers(ctx context.Context, q PeerQuestion) ([]PeerAnswer, error) {
	return one(ctx, func(done func([]PeerAnswer, error)) { a.Peers.Ask(q, done) })
}

// NewPeerAnswers gives what answers other nodes' questions, of APIOptions as the
// API has them. It blocks until loops and broker have answered, or until ctx ends.
// Safe from any goroutine.
func NewPeerAnswers(o APIOptions) func(ctx context.Context, method string, params []byte) ([]byte, error) {
	o.Peers = nil
	a := newAPI(o)
	a.far = true
	acts := a.acts()
	return func(ctx context.Context, method string, params []byte) ([]byte, error) {
		switch method {
		case peerPresence, peerPresenceStats:
			all, err := one(ctx, func(done func([]topic.ClientInfo, error)) { a.Topics.Presence(string(params), done) })
			if errors.Is(err, topic.ErrFull) {
				err = ErrPeersBusy
			}
			if err != nil {
				return nil, err
			}
			if method == peerPresence {
				return encodePresence(all)
			}
			t := tallyOf(all)
			return t.encode(), nil
		case peerTopics:
			topics, err := a.Topics.Topics(string(params))
			if err != nil {
				return nil, err
			}
			return json.Marshal(topics)
		case peerInfo:
			return json.Marshal(a.self())
		}
		bind, known := acts[method]
		if !known {
			return nil, fmt.Errorf("handler: unknown method %q", method)
		}
		act, _, err := bind(params)
		if err != nil {
			return nil, err
		}
		found, fault := act(ctx)
		out := peerDone{Sessions: found}
		if fault != nil {
			out.Code = fault.Code
		}
		return json.Marshal(out)
	}
}
