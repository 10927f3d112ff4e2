package backend

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Error is the backend's answer to a client that it refuses something.
type Error struct {
	Code      uint32 `json:"code"`
	Message   string `json:"message"`
	Temporary bool   `json:"temporary"`
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("backend: error %d: %s", e.Code, e.Message) }

// Disconnect is the backend's wish that the client goes.
type Disconnect struct {
	Code   uint16 `json:"code"`
	Reason string `json:"reason"`
}

// Error implements error.
func (d *Disconnect) Error() string {
	return fmt.Sprintf("backend: disconnect %d: %s", d.Code, d.Reason)
}

const (
	// The codes of a close frame that applications and protocols may use (RFC 6455,
	// section 7.4.2), and the most bytes behind one (section 5.5).
	leastDisconnect = 3000
	mostDisconnect  = 4999
	mostReason      = 123
)

// BoolValue is an option that is given or not.
type BoolValue struct {
	Value bool `json:"value"`
}

// Override is what the backend says of one subscription in the place of its
// namespace; nil: nothing.
type Override struct {
	Presence           *BoolValue `json:"presence"`
	JoinLeave          *BoolValue `json:"join_leave"`
	ForcePushJoinLeave *BoolValue `json:"force_push_join_leave"`
	ForceRecovery      *BoolValue `json:"force_recovery"`
	ForcePositioning   *BoolValue `json:"force_positioning"`
}

// The results. Bytes is the length of the answer. Info and Data hold what was
// given in base64 as well; nil: nothing was given. All of it is the caller's.

// SubscribeResult allows a subscription.
type SubscribeResult struct {
	Bytes    int             `json:"-"`
	ExpireAt int64           `json:"expire_at"` // Unix seconds; 0: never
	Info     json.RawMessage `json:"info"`
	B64Info  string          `json:"b64info"`
	Data     json.RawMessage `json:"data"`
	B64Data  string          `json:"b64data"`
	Override Override        `json:"override"`
}

// ConnectResult lets a client in.
type ConnectResult struct {
	Bytes    int                        `json:"-"`
	User     string                     `json:"user"`
	ExpireAt int64                      `json:"expire_at"`
	Info     json.RawMessage            `json:"info"`
	B64Info  string                     `json:"b64info"`
	Data     json.RawMessage            `json:"data"`
	B64Data  string                     `json:"b64data"`
	Channels []string                   `json:"channels"`
	Subs     map[string]SubscribeResult `json:"subs"`
	Meta     json.RawMessage            `json:"meta"`
}

// RefreshResult says how long a session or a subscription goes on.
type RefreshResult struct {
	Bytes    int             `json:"-"`
	Expired  bool            `json:"expired"`
	ExpireAt int64           `json:"expire_at"`
	Info     json.RawMessage `json:"info"`
	B64Info  string          `json:"b64info"`
	Meta     json.RawMessage `json:"meta"`
}

// PublishResult allows a publication; Data, where there is some, takes the place
// of the client's.
type PublishResult struct {
	Bytes          int               `json:"-"`
	Data           json.RawMessage   `json:"data"`
	B64Data        string            `json:"b64data"`
	SkipHistory    bool              `json:"skip_history"`
	Tags           map[string]string `json:"tags"`
	IdempotencyKey string            `json:"idempotency_key"`
	Delta          bool              `json:"delta"`
	Version        uint64            `json:"version"`
	VersionEpoch   string            `json:"version_epoch"`
}

// RPCResult answers a call.
type RPCResult struct {
	Bytes   int             `json:"-"`
	Data    json.RawMessage `json:"data"`
	B64Data string          `json:"b64data"`
}

// What can be wrong with an answer.
var (
	errNoResult = errors.New("backend: answer without result, error or disconnect")
	errCode     = errors.New("backend: answer with a code out of range")
	errExpireAt = errors.New("backend: expire_at below zero")
)

// result is what all results can do.
type result interface {
	// settle checks the result and folds the forms of a payload into one. n is the
	// length of the answer.
	settle(n int) error
}

type response[T any] struct {
	Result     *T          `json:"result"`
	Error      *Error      `json:"error"`
	Disconnect *Disconnect `json:"disconnect"`
}

// decode reads an answer. A refusal is an *Error or a *Disconnect; every other
// error says that the answer can't be read. An answer that says nothing allows
// nothing.
func decode[T any, R interface {
	*T
	result
}](body []byte) (R, error) {
	var r response[T]
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("backend: decode answer: %w", err)
	}
	switch {
	case r.Disconnect != nil:
		if r.Disconnect.Code < leastDisconnect || r.Disconnect.Code > mostDisconnect {
			return nil, errCode
		}
		r.Disconnect.Reason = shorten(r.Disconnect.Reason, mostReason)
		return nil, r.Disconnect
	case r.Error != nil:
		if r.Error.Code == 0 {
			return nil, errCode
		}
		return nil, r.Error
	case r.Result == nil:
		return nil, errNoResult
	}
	if err := R(r.Result).settle(len(body)); err != nil {
		return nil, err
	}
	return r.Result, nil
}

// shorten cuts s to n bytes, between characters.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// fold makes one payload of its two forms; that in base64 goes first.
func fold(raw *json.RawMessage, b64 *string) error {
	if *b64 != "" {
		b, err := base64.StdEncoding.DecodeString(*b64)
		if err != nil {
			return fmt.Errorf("backend: decode base64: %w", err)
		}
		*raw, *b64 = b, ""
	} else if bytes.Equal(*raw, []byte("null")) {
		*raw = nil
	}
	return nil
}

func (r *SubscribeResult) settle(n int) error {
	r.Bytes = n
	if r.ExpireAt < 0 {
		return errExpireAt
	}
	return errors.Join(fold(&r.Info, &r.B64Info), fold(&r.Data, &r.B64Data))
}

func (r *ConnectResult) settle(n int) error {
	r.Bytes = n
	if r.ExpireAt < 0 {
		return errExpireAt
	}
	for name, sub := range r.Subs {
		if err := sub.settle(0); err != nil {
			return err
		}
		r.Subs[name] = sub
	}
	return errors.Join(fold(&r.Info, &r.B64Info), fold(&r.Data, &r.B64Data), fold(&r.Meta, new(string)))
}

func (r *RefreshResult) settle(n int) error {
	r.Bytes = n
	if r.ExpireAt < 0 {
		return errExpireAt
	}
	return errors.Join(fold(&r.Info, &r.B64Info), fold(&r.Meta, new(string)))
}

func (r *PublishResult) settle(n int) error {
	r.Bytes = n
	return fold(&r.Data, &r.B64Data)
}

func (r *RPCResult) settle(n int) error {
	r.Bytes = n
	return fold(&r.Data, &r.B64Data)
}
