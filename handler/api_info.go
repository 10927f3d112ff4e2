package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"perch/internal/stats"
	"perch/session"
)

type apiInfoRequest struct{}

type apiInfoResult struct {
	Nodes []apiNode `json:"nodes"`
	// Unanswered are the nodes that have not answered in time.
	Unanswered []apiSilent `json:"unanswered,omitempty"`
}

type apiSilent struct {
	UID  string `json:"uid"`
	Name string `json:"name"`
}

// The questions that nodes ask one another for info and channels; that of
// channels has the pattern as its parameter, and an object of numbers for an
// answer.
const (
	peerInfo   = "info"
	peerTopics = "channels"
)

type apiNode struct {
	UID           string     `json:"uid"`
	Name          string     `json:"name"`
	Version       string     `json:"version"`
	Clients       int        `json:"num_clients"`
	Users         int        `json:"num_users"`
	Subscriptions int        `json:"num_subs"`
	Topics        int        `json:"num_channels"`
	Uptime        int64      `json:"uptime"` // seconds
	Process       apiProcess `json:"process"`
}

type apiProcess struct {
	CPU float64 `json:"cpu"` // percent of one processor
	RSS int64   `json:"rss"` // bytes
}

// info tells of all nodes. It is what one looks at when something is wrong: a node
// that has not answered is named and keeps nothing from the others.
func (a *api) info(ctx context.Context, _ *apiInfoRequest) (any, *apiError) {
	out := apiInfoResult{Nodes: []apiNode{a.self()}}
	answers, err := a.askPeers(ctx, PeerQuestion{Method: peerInfo, Shared: true})
	if err != nil && !errors.Is(err, ErrPeersAway) {
		return nil, a.fault(ctx, err)
	}
	for i := range answers {
		var n apiNode
		if answers[i].Err != nil || json.Unmarshal(answers[i].Data, &n) != nil {
			out.Unanswered = append(out.Unanswered, apiSilent{nodeUID(answers[i].Node), answers[i].Name})
			continue
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out, nil
}

func nodeUID(n session.Node) string { return fmt.Sprintf("%016x", uint64(n)) }

// self tells of this node.
func (a *api) self() apiNode {
	counts := a.Topics.Counts()
	n := apiNode{
		UID:           nodeUID(a.Node),
		Name:          a.Name,
		Version:       a.Version,
		Clients:       a.Registry.Count(),
		Users:         a.Registry.Users(),
		Subscriptions: counts.Subscriptions,
		Topics:        counts.Topics,
		Process:       a.usage.read(),
	}
	if !a.Started.IsZero() {
		n.Uptime = int64(time.Since(a.Started) / time.Second)
	}
	return n
}

// apiUsageInterval is the least time over which use of the processor is
// averaged. Within it callers get the same number, so that they don't take the
// interval away from one another.
const apiUsageInterval = time.Second

// apiUsage turns the CPU time of the process into a share.
type apiUsage struct {
	mu   sync.Mutex
	at   time.Time
	cpu  time.Duration
	last float64
}

// read tells the share since an earlier call.
func (u *apiUsage) read() apiProcess {
	p, now := stats.ReadProcess(), time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	if d := now.Sub(u.at); d >= apiUsageInterval {
		if !u.at.IsZero() {
			u.last = 100 * float64(p.CPU-u.cpu) / float64(d)
		}
		u.at, u.cpu = now, p.CPU
	}
	return apiProcess{CPU: u.last, RSS: p.RSS}
}

type apiListRequest struct {
	Pattern string `json:"pattern"`
}

type apiListResult struct {
	Topics map[string]apiListed `json:"channels"`
}

type apiListed struct {
	Clients int `json:"num_clients"`
}

func (a *api) list(ctx context.Context, r *apiListRequest) (any, *apiError) {
	topics, err := a.Topics.Topics(r.Pattern)
	if err != nil {
		return nil, a.bad(err.Error())
	}
	answers, err := a.askPeers(ctx, PeerQuestion{Method: peerTopics, Params: []byte(r.Pattern), Shared: true})
	if err = firstPeerError(answers, err); err != nil {
		return nil, a.fault(ctx, err)
	}
	for i := range answers {
		var far map[string]int
		if err := json.Unmarshal(answers[i].Data, &far); err != nil {
			return nil, a.fault(ctx, err)
		}
		for name, n := range far {
			topics[name] += n
		}
	}
	out := make(map[string]apiListed, len(topics))
	for name, n := range topics {
		out[name] = apiListed{n}
	}
	return apiListResult{out}, nil
}
