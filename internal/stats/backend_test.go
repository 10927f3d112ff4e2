package stats

import (
	"fmt"
	"math"

	dto "github.com/prometheus/client_model/go"
)

// fullBackend is the part of full that is of the backend, wantBackend what the page
// says of it.
var (
	fullBackend = Backend{
		Methods: []BackendMethod{{
			Method: "rpc", Calls: map[string]uint64{"ok": 901}, Retries: 902, Waits: 903, Breaker: 2,
			Times: HistogramSnapshot{Buckets: map[float64]uint64{1: 904}, Count: 905, Sum: 906.5},
		}},
		Connections: []BackendConnections{{Backend: "b:1", InUse: 907, Idle: 908, Limit: 909}},
	}
	wantBackend = map[string]float64{
		`perch_backend_calls_total{method="rpc",outcome="ok"}`:    901,
		`perch_backend_retries_total{method="rpc"}`:               902,
		`perch_backend_waits_total{method="rpc"}`:                 903,
		`perch_backend_breaker{method="rpc"}`:                     2,
		`perch_backend_call_seconds{method="rpc"} le 1`:           904,
		`perch_backend_call_seconds{method="rpc"} count`:          905,
		`perch_backend_call_seconds{method="rpc"} sum`:            906.5,
		`perch_backend_connections{backend="b:1",state="in_use"}`: 907,
		`perch_backend_connections{backend="b:1",state="idle"}`:   908,
		`perch_backend_connections_limit{backend="b:1"}`:          909,
	}
)

// histogramValues puts a histogram into the values of a page.
func histogramValues(values map[string]float64, key string, h *dto.Histogram) {
	values[key+" count"], values[key+" sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
	for _, b := range h.GetBucket() {
		if !math.IsInf(b.GetUpperBound(), 1) {
			values[fmt.Sprintf("%s le %v", key, b.GetUpperBound())] = float64(b.GetCumulativeCount())
		}
	}
}
