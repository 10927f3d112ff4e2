package backend

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/sony/gobreaker/v2"

	"perch/internal/pace"
)

// newBreaker makes the circuit breaker of e, one a method: where one place of a
// service is broken, the others are asked as before.
func newBreaker(e *endpoint, o *Options) *gobreaker.CircuitBreaker[struct{}] {
	if o.BreakerFailures < 0 {
		return nil
	}
	return gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Name:    e.method.String(),
		Timeout: o.BreakerOpen,
		ReadyToTrip: func(n gobreaker.Counts) bool {
			return int(n.ConsecutiveFailures) >= o.BreakerFailures
		},
		IsSuccessful:  working,
		IsExcluded:    unasked,
		OnStateChange: func(_ string, _, to gobreaker.State) { e.log.breaker(to) },
	})
}

// working tells whether a call shows that the backend does its work. That it
// refuses one client, or says too much to one, does not speak against it.
func working(err error) bool {
	var status statusError
	if errors.As(err, &status) {
		return status < http.StatusInternalServerError && status >= http.StatusBadRequest &&
			status != http.StatusTooManyRequests && status != http.StatusRequestTimeout
	}
	return err == nil || refusal(err) || errors.Is(err, errTooLarge)
}

// unasked tells whether a call says nothing about the backend: its session went
// away, its caller's time ended before its own, or there was no connection to ask
// on. The last two are our overload, which a working backend is not punished for.
func unasked(err error) bool {
	return errors.Is(err, errGone) || errors.Is(err, errLate) || errors.Is(err, errBusy)
}

// logEvery is how often the failures of one method are logged.
const logEvery = 10 * time.Second

// complaints logs the failures of a method, some of them: a backend that is down
// fails thousands of calls a second.
type complaints struct {
	log             *slog.Logger
	method, backend string
	seldom          pace.Seldom
}

func (c *complaints) add(outcome string, err error) {
	if quiet, ok := c.seldom.Pass(logEvery); ok {
		c.log.Error("backend call failed", "method", c.method, "backend", c.backend, "reason", outcome, "more", quiet, "err", err)
	}
}

// breaker is called under the breaker's lock.
func (c *complaints) breaker(to gobreaker.State) {
	switch to {
	case gobreaker.StateOpen:
		c.log.Warn("backend is not asked for a while: its circuit breaker is open", "method", c.method, "backend", c.backend)
	case gobreaker.StateClosed:
		c.log.Info("backend is asked again", "method", c.method, "backend", c.backend)
	}
}
