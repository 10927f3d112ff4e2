package handler

import (
	"context"
	"fmt"
	"sync"
	"time"

	"perch/internal/stats"
)

type apiInfoRequest struct{}

type apiInfoResult struct {
	Nodes []apiNode `json:"nodes"`
}

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

func (a *api) info(context.Context, *apiInfoRequest) (any, *apiError) {
	counts := a.Topics.Counts()
	n := apiNode{
		UID:           fmt.Sprintf("%016x", uint64(a.Node)),
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
	return apiInfoResult{[]apiNode{n}}, nil
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

func (a *api) list(_ context.Context, r *apiListRequest) (any, *apiError) {
	topics, err := a.Topics.Topics(r.Pattern)
	if err != nil {
		return nil, a.bad(err.Error())
	}
	out := make(map[string]apiListed, len(topics))
	for name, n := range topics {
		out[name] = apiListed{n}
	}
	return apiListResult{out}, nil
}
