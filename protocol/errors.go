package protocol

import (
	"fmt"

	pb "github.com/centrifugal/protocol"
)

// Error is an answer to a command that could not be done. Codes up to 399 are
// the protocol's, an application's are from 400 to 1999.
type Error struct {
	Code    uint32
	Message string
	// Temporary says that the same command may succeed later.
	Temporary bool
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("protocol: %d: %s", e.Code, e.Message) }

func (e *Error) wire() *pb.Error {
	return &pb.Error{Code: e.Code, Message: e.Message, Temporary: e.Temporary}
}

// The errors of the protocol, as the SDKs' users know them.
var (
	ErrInternal              = &Error{100, "internal server error", true}
	ErrUnauthorized          = &Error{101, "unauthorized", false}
	ErrUnknownChannel        = &Error{102, "unknown channel", false}
	ErrPermissionDenied      = &Error{103, "permission denied", false}
	ErrMethodNotFound        = &Error{104, "method not found", false}
	ErrAlreadySubscribed     = &Error{105, "already subscribed", false}
	ErrLimitExceeded         = &Error{106, "limit exceeded", false}
	ErrBadRequest            = &Error{107, "bad request", false}
	ErrNotAvailable          = &Error{108, "not available", false}
	ErrTokenExpired          = &Error{109, "token expired", false}
	ErrExpired               = &Error{110, "expired", false}
	ErrTooManyRequests       = &Error{111, "too many requests", true}
	ErrUnrecoverablePosition = &Error{112, "unrecoverable position", false}
	ErrConcurrentPagination  = &Error{113, "concurrent pagination", true}
)

// FirstErrorCode and LastErrorCode bound the protocol's own errors.
const (
	FirstErrorCode = 100
	LastErrorCode  = 113
)

// Codes of the push that ends a subscription; from 2500 on the client
// subscribes again.
const (
	UnsubscribedByServer          uint32 = 2000
	UnsubscribedInsufficientState uint32 = 2500
	UnsubscribedExpired           uint32 = 2501
)
