package session

import (
	"fmt"
	"slices"
	"testing"
	"unsafe"
)

// Every idle session costs this much, whatever it does. Of the 1,000 bytes that
// an idle session may cost, each 8 more here are 8 of 10,000,000 in a process
// of a million sessions: what not all sessions have belongs behind Extra or
// Work.
func TestSessionSize(t *testing.T) {
	if got := unsafe.Sizeof(Session{}); got != 136 {
		t.Errorf("a Session takes %d bytes, it was 136: see the comment before changing the number", got)
	}
}

// recorder is a transport that writes down what it is asked for.
type recorder struct {
	s     *Session
	calls []string
}

func (r *recorder) note(format string, args ...any) {
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

func (r *recorder) WriteMessage(p []byte, binary bool) { r.note("message %s %v", p, binary) }
func (r *recorder) WriteFrame(f []byte)                { r.note("frame %s", f) }
func (r *recorder) Pending() int                       { return 7 }
func (r *recorder) StartHeartbeat()                    { r.note("heartbeat") }
func (r *recorder) Pong() bool                         { r.note("pong"); return true }
func (r *recorder) SetExpiry(unix int64)               { r.note("expiry %d", unix) }
func (r *recorder) Remote() string                     { return "192.0.2.1:80" }

func (r *recorder) CloseWith(reason Reason, code uint16, text string) {
	r.note("close %s %d %q", reason, code, text)
	r.s.State = StateClosed
}

type stubLoop struct {
	Loop
	index int
}

func (l stubLoop) Index() int { return l.index }

func TestSessionOpen(t *testing.T) {
	// The memory of a session is used again: nothing of the last peer stays.
	s := Session{
		user: "alice", Topics: 1, Work: 2, Extra: &Extra{Client: "c"}, Family: 3, Token: 4, State: StateClosed,
		Encoding: EncodingProtobuf, Anonymous: true, listed: true, Expires: 5,
	}
	s.next = &s
	r, l, id := &recorder{s: &s}, stubLoop{index: 3}, MakeID(3, 2, 1)
	s.Open(r, l, id)
	if s != (Session{transport: r, loop: l, id: id}) {
		t.Errorf("opened as %+v", s)
	}
	if s.ID() != id || s.Loop() != Loop(l) || s.User() != "" || s.Closed() || s.Pending() != 7 || s.Remote() != "192.0.2.1:80" {
		t.Errorf("opened as %+v", s)
	}
	if got := s.ClientID(testNode); got != testNode.ClientID(id) {
		t.Errorf("client id %q", got)
	}
	s.Extra = &Extra{Client: "from another server"}
	if got := s.ClientID(testNode); got != "from another server" {
		t.Errorf("client id %q", got)
	}
}

func TestSessionCalls(t *testing.T) {
	for _, tt := range []struct {
		name     string
		encoding Encoding
		call     func(*Session)
		want     string
	}{
		{"text", EncodingJSON, func(s *Session) { s.Write([]byte("x")) }, "message x false"},
		{"binary", EncodingProtobuf, func(s *Session) { s.Write([]byte("x")) }, "message x true"},
		{"no encoding", EncodingNone, func(s *Session) { s.Write([]byte("x")) }, "message x false"},
		{"as text", EncodingProtobuf, func(s *Session) { s.WriteKind([]byte("x"), false) }, "message x false"},
		{"as binary", EncodingJSON, func(s *Session) { s.WriteKind([]byte("x"), true) }, "message x true"},
		{"frame", EncodingJSON, func(s *Session) { s.WriteFrame([]byte("x")) }, "frame x"},
		{"close", EncodingJSON, func(s *Session) { s.Close(ReasonSlow) }, `close slow 3008 "slow"`},
		{"close by hand", EncodingJSON, func(s *Session) { s.CloseCustom(4001, "go") }, `close custom 4001 "go"`},
		{"heartbeat", EncodingJSON, func(s *Session) { s.StartHeartbeat() }, "heartbeat"},
		{"pong", EncodingJSON, func(s *Session) { s.Pong() }, "pong"},
		{"expiry", EncodingJSON, func(s *Session) { s.SetExpiry(5) }, "expiry 5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s Session
			r := &recorder{s: &s}
			s.Open(r, stubLoop{}, 1)
			s.Encoding = tt.encoding
			tt.call(&s)
			if !slices.Equal(r.calls, []string{tt.want}) {
				t.Errorf("%q, want %q", r.calls, tt.want)
			}
		})
	}
}

func TestSessionAfterClose(t *testing.T) {
	var s Session
	r := &recorder{s: &s}
	s.Open(r, stubLoop{}, 1)
	s.Close(ReasonForced)
	s.Close(ReasonSlow)
	s.CloseCustom(4000, "later")
	s.Write([]byte("x"))
	s.WriteKind([]byte("x"), true)
	s.WriteFrame([]byte("x"))
	if !s.Closed() {
		t.Error("not closed")
	}
	if want := []string{`close forced 3503 "force disconnect"`}; !slices.Equal(r.calls, want) {
		t.Errorf("%q, want %q: the first reason wins, nothing is written behind it", r.calls, want)
	}
}
