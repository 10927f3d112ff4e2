package session

// Reason says why a session ended. Each session has one: the first wins.
type Reason uint8

// The reasons. Codes from 1000 to 1014 are of RFC 6455, section 7.4.1 and the
// IANA registry; 3000 to 3999 are of the Centrifuge protocol, where 3500 and
// above tell the client not to come back.
const (
	ReasonNone                  Reason = iota
	ReasonPeerClosed                   // the peer sent a close frame
	ReasonPeerGone                     // the peer closed or reset the connection
	ReasonNormal                       // 1000
	ReasonGoingAway                    // 1001
	ReasonProtocolError                // 1002
	ReasonUnsupportedData              // 1003
	ReasonInvalidPayload               // 1007
	ReasonPolicyViolation              // 1008
	ReasonMessageTooBig                // 1009
	ReasonServerError                  // 1011
	ReasonServiceRestart               // 1012
	ReasonMessageTimeout               // a message that did not come whole in time
	ReasonMemory                       // its pending bytes are needed for others: 3008
	ReasonMemoryPlain                  // the same, no client protocol: 1013
	ReasonHandshakeTimeout             // no opening handshake in time
	ReasonHandshakeRefused             // answered with an HTTP status
	ReasonHandedOff                    // gone to net/http
	ReasonPongTimeout                  // RFC 6455 pings unanswered
	ReasonSlowConsumerPlain            // pending bytes over the bound, no client protocol
	ReasonShutdown                     // 3001
	ReasonExpired                      // 3005
	ReasonSlow                         // 3008
	ReasonWriteError                   // 3009
	ReasonInsufficientState            // 3010
	ReasonForceReconnect               // 3011
	ReasonNoPong                       // 3012
	ReasonTooManyRequests              // 3013
	ReasonInvalidToken                 // 3500
	ReasonBadRequest                   // 3501
	ReasonStale                        // 3502
	ReasonForced                       // 3503
	ReasonConnectionLimit              // 3504
	ReasonTopicLimit                   // 3505
	ReasonInappropriateProtocol        // 3506
	ReasonPermissionDenied             // 3507
	ReasonNotAvailable                 // 3508
	ReasonTooManyErrors                // 3509
	ReasonCustom                       // a code and a text given by the backend
	reasonCount
)

// ReasonInfo is a row of the table of close reasons.
type ReasonInfo struct {
	// Code goes into the close frame; 0 where none is sent.
	Code uint16
	// Text goes into the close frame behind the code, at most 123 bytes.
	Text string
	// Reconnect says whether a client should come back.
	Reconnect bool
	// Label is the value of the metric label "reason".
	Label string
}

var reasons = [reasonCount]ReasonInfo{
	ReasonNone:                  {0, "", true, "none"},
	ReasonPeerClosed:            {0, "", true, "peer_closed"},
	ReasonPeerGone:              {0, "", true, "peer_gone"},
	ReasonNormal:                {1000, "", true, "normal"},
	ReasonGoingAway:             {1001, "going away", true, "going_away"},
	ReasonProtocolError:         {1002, "protocol error", true, "protocol_error"},
	ReasonUnsupportedData:       {1003, "unsupported data", true, "unsupported_data"},
	ReasonInvalidPayload:        {1007, "invalid payload data", true, "invalid_payload"},
	ReasonPolicyViolation:       {1008, "policy violation", true, "policy_violation"},
	ReasonMessageTooBig:         {1009, "message too big", false, "message_too_big"},
	ReasonServerError:           {1011, "internal server error", true, "server_error"},
	ReasonServiceRestart:        {1012, "service restart", true, "service_restart"},
	ReasonMessageTimeout:        {1008, "message timeout", true, "message_timeout"},
	ReasonMemory:                {3008, "slow", true, "memory"},
	ReasonMemoryPlain:           {1013, "try again later", true, "memory_plain"},
	ReasonHandshakeTimeout:      {0, "", true, "handshake_timeout"},
	ReasonHandshakeRefused:      {0, "", true, "handshake_refused"},
	ReasonHandedOff:             {0, "", true, "handed_off"},
	ReasonPongTimeout:           {1002, "no pong", true, "pong_timeout"},
	ReasonSlowConsumerPlain:     {1008, "slow consumer", true, "slow_consumer"},
	ReasonShutdown:              {3001, "shutdown", true, "shutdown"},
	ReasonExpired:               {3005, "connection expired", true, "expired"},
	ReasonSlow:                  {3008, "slow", true, "slow"},
	ReasonWriteError:            {3009, "write error", true, "write_error"},
	ReasonInsufficientState:     {3010, "insufficient state", true, "insufficient_state"},
	ReasonForceReconnect:        {3011, "force reconnect", true, "force_reconnect"},
	ReasonNoPong:                {3012, "no pong", true, "no_pong"},
	ReasonTooManyRequests:       {3013, "too many requests", true, "too_many_requests"},
	ReasonInvalidToken:          {3500, "invalid token", false, "invalid_token"},
	ReasonBadRequest:            {3501, "bad request", false, "bad_request"},
	ReasonStale:                 {3502, "stale", false, "stale"},
	ReasonForced:                {3503, "force disconnect", false, "forced"},
	ReasonConnectionLimit:       {3504, "connection limit", false, "connection_limit"},
	ReasonTopicLimit:            {3505, "channel limit", false, "topic_limit"},
	ReasonInappropriateProtocol: {3506, "inappropriate protocol", false, "inappropriate_protocol"},
	ReasonPermissionDenied:      {3507, "permission denied", false, "permission_denied"},
	ReasonNotAvailable:          {3508, "not available", false, "not_available"},
	ReasonTooManyErrors:         {3509, "too many errors", false, "too_many_errors"},
	ReasonCustom:                {0, "", true, "custom"},
}

// Info is the row of r in the table. Safe from any goroutine.
func (r Reason) Info() ReasonInfo {
	if r >= reasonCount {
		return reasons[ReasonNone]
	}
	return reasons[r]
}

// String is the metric label of r. Safe from any goroutine.
func (r Reason) String() string { return r.Info().Label }

// Reasons calls f with each reason of the table, in order. Safe from any
// goroutine.
func Reasons(f func(Reason, ReasonInfo)) {
	for r := range reasons {
		f(Reason(r), reasons[r])
	}
}
