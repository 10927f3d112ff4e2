package backend

import (
	"github.com/sony/gobreaker/v2"

	"perch/internal/stats"
)

// Stats is what a Client tells of itself.
func (c *Client) Stats() stats.Backend {
	var out stats.Backend
	if c == nil {
		return out
	}
	for _, e := range c.endpoints {
		if e == nil {
			continue
		}
		m := stats.BackendMethod{
			Method: e.method.String(), Calls: e.calls.Map(), Retries: e.retries.Load(), Waits: e.waits.Load(), Times: e.times.Snapshot(),
		}
		if e.breaker != nil {
			switch e.breaker.State() {
			case gobreaker.StateHalfOpen:
				m.Breaker = 1
			case gobreaker.StateOpen:
				m.Breaker = 2
			}
		}
		out.Methods = append(out.Methods, m)
	}
	for _, o := range c.origins {
		inUse := o.inUse.Load()
		out.Connections = append(out.Connections, stats.BackendConnections{
			Backend: o.name, InUse: inUse, Idle: max(0, o.open.Load()-inUse), Limit: int64(cap(o.slots)),
		})
	}
	return out
}
