package handler

import (
	"context"
	"errors"
	"net/http"

	"perch/topic"
)

// apiError is an error of the server API as backends see it. The codes and the
// texts are those of the client protocol.
type apiError struct {
	Code    uint32 `json:"code"`
	Message string `json:"message"`
}

var (
	apiInternal        = &apiError{100, "internal server error"}
	apiUnavailable     = &apiError{100, "broker unavailable, try again"}
	apiUnauthorized    = &apiError{101, "unauthorized"}
	apiUnknownTopic    = &apiError{102, "unknown channel"}
	apiMethodNotFound  = &apiError{104, "method not found"}
	apiLimitExceeded   = &apiError{106, "limit exceeded"}
	apiBadRequest      = &apiError{107, "bad request"}
	apiNotAvailable    = &apiError{108, "not available"}
	apiExpired         = &apiError{110, "expired"}
	apiTooManyRequests = &apiError{111, "too many requests"}
	apiUnrecoverable   = &apiError{112, "unrecoverable position"}
	apiUnanswered      = &apiError{100, "a node has not answered, try again"}
)

// apiErrorOf is the error of a code that another node has answered.
func apiErrorOf(code uint32) *apiError {
	for _, e := range []*apiError{apiUnknownTopic, apiLimitExceeded, apiBadRequest, apiNotAvailable, apiExpired, apiTooManyRequests} {
		if e.Code == code {
			return e
		}
	}
	return apiInternal
}

// errAPIUnanswered stands in the place of an answer that has not come.
var errAPIUnanswered = errors.New("handler: no answer")

// apiFault turns an error of a broker or a session into one that a backend
// understands. What it does not know is internal.
func apiFault(err error) *apiError {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, topic.ErrUnknownTopic):
		return apiUnknownTopic
	case errors.Is(err, topic.ErrTooMany):
		return apiLimitExceeded
	case errors.Is(err, topic.ErrNotAvailable):
		return apiNotAvailable
	case errors.Is(err, topic.ErrUnrecoverable):
		return apiUnrecoverable
	case errors.Is(err, topic.ErrFull), errors.Is(err, ErrPeersBusy):
		return apiTooManyRequests
	case errors.Is(err, topic.ErrUnavailable):
		return apiUnavailable
	case errors.Is(err, ErrPeersTooLarge):
		return apiLimitExceeded
	case errors.Is(err, ErrPeersAway), errors.Is(err, ErrPeersSilent):
		return apiUnanswered
	}
	return apiInternal
}

// fault is apiFault for the one error of a call; an internal one is logged,
// unless the caller went away before the answer came.
func (a *api) fault(ctx context.Context, err error) *apiError {
	f := apiFault(err)
	if f == apiInternal && !errors.Is(ctx.Err(), context.Canceled) {
		a.Logger.Error("api call failed", "err", err)
	}
	return f
}

// bad answers 107; why is for the log of whoever debugs a backend.
func (a *api) bad(why string) *apiError {
	a.Logger.Debug("api bad request", "err", why)
	return apiBadRequest
}

// apiErrorMode is the header by which a caller wants errors as HTTP statuses:
// "transport".
const apiErrorMode = "X-Centrifugo-Error-Mode"

// status is the HTTP status of an error in that mode.
func (e *apiError) status() int {
	switch e {
	case apiUnauthorized:
		return http.StatusUnauthorized
	case apiUnknownTopic, apiMethodNotFound:
		return http.StatusNotFound
	case apiLimitExceeded, apiBadRequest, apiExpired:
		return http.StatusBadRequest
	case apiNotAvailable:
		return http.StatusNotImplemented
	case apiTooManyRequests:
		return http.StatusTooManyRequests
	case apiUnanswered:
		return http.StatusServiceUnavailable
	case apiUnrecoverable:
		return http.StatusRequestedRangeNotSatisfiable
	case apiUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
