package session

import (
	"regexp"
	"testing"
	"unicode/utf8"
)

func TestReasons(t *testing.T) {
	// What a metric label's value may hold so that no tool has to quote it.
	label := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	labels := make(map[string]Reason)
	codes := make(map[uint16]Reason)
	next := ReasonNone
	Reasons(func(r Reason, info ReasonInfo) {
		if r != next || info != r.Info() || r.String() != info.Label {
			t.Errorf("reason %d comes where %d is due, as %+v", r, next, info)
		}
		next++
		if !label.MatchString(info.Label) {
			t.Errorf("reason %d: label %q", r, info.Label)
		}
		if before, ok := labels[info.Label]; ok {
			t.Errorf("reasons %d and %d share the label %q", before, r, info.Label)
		}
		labels[info.Label] = r

		// RFC 6455, section 5.5: a control frame carries 125 bytes, two of them the
		// code.
		if len(info.Text) > 123 || !utf8.ValidString(info.Text) {
			t.Errorf("%s: text %q", info.Label, info.Text)
		}
		switch {
		case info.Code == 0:
			if info.Text != "" {
				t.Errorf("%s: a text without a code", info.Label)
			}
		case info.Code >= 3000 && info.Code < 4000:
			// To a client it is one thing whether its own bound is reached or all of them
			// together are too much.
			if before, ok := codes[info.Code]; ok && !(before == ReasonMemory && r == ReasonSlow) {
				t.Errorf("%s and %s share the code %d", before, r, info.Code)
			}
			codes[info.Code] = r
			if info.Text == "" {
				t.Errorf("%s: no text", info.Label)
			}
		case info.Code == 1004, info.Code == 1005, info.Code == 1006, info.Code == 1010, info.Code == 1015,
			info.Code < 1000, info.Code > 1014:
			t.Errorf("%s: a server may not send %d", info.Label, info.Code)
		}
		// The SDKs take 1009 for final as well: the message would be too big again.
		if want := (info.Code < 3500 || info.Code >= 4000) && info.Code != 1009; info.Reconnect != want {
			t.Errorf("%s: %d tells a client to come back: %v, the table says %v", info.Label, info.Code, want, info.Reconnect)
		}
	})
	if next != reasonCount {
		t.Errorf("%d reasons of %d", next, reasonCount)
	}
}

// The clients know these by heart.
func TestReasonCodes(t *testing.T) {
	for r, code := range map[Reason]uint16{
		ReasonNormal: 1000, ReasonGoingAway: 1001, ReasonProtocolError: 1002, ReasonUnsupportedData: 1003,
		ReasonInvalidPayload: 1007, ReasonPolicyViolation: 1008, ReasonMessageTooBig: 1009, ReasonServerError: 1011,
		ReasonServiceRestart: 1012,
		ReasonShutdown:       3001, ReasonExpired: 3005, ReasonSlow: 3008, ReasonWriteError: 3009,
		ReasonInsufficientState: 3010, ReasonForceReconnect: 3011, ReasonNoPong: 3012, ReasonTooManyRequests: 3013,
		ReasonInvalidToken: 3500, ReasonBadRequest: 3501, ReasonStale: 3502, ReasonForced: 3503, ReasonConnectionLimit: 3504,
		ReasonTopicLimit: 3505, ReasonInappropriateProtocol: 3506, ReasonPermissionDenied: 3507, ReasonNotAvailable: 3508,
		ReasonTooManyErrors: 3509,
	} {
		if got := r.Info().Code; got != code {
			t.Errorf("%s: %d, want %d", r, got, code)
		}
	}
	for _, r := range []Reason{ReasonPeerGone, ReasonHandshakeRefused, ReasonHandedOff} {
		if r.Info().Code != 0 {
			t.Errorf("%s: there is nobody to read a close frame", r)
		}
	}
}

func TestReasonOutOfTheTable(t *testing.T) {
	for _, r := range []Reason{reasonCount, 255} {
		if r.Info() != ReasonNone.Info() || r.String() != "none" {
			t.Errorf("%d: %+v", uint8(r), r.Info())
		}
	}
}
