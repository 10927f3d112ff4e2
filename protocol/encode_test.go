package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	pb "github.com/centrifugal/protocol"
	"github.com/gobwas/ws"
)

func TestAppendReplyIsReadByTheLibrary(t *testing.T) {
	replies := []*Reply{
		{Id: 1, Connect: &pb.ConnectResult{Client: "c", Ping: 25, Pong: true, Subs: map[string]*pb.SubscribeResult{"a": {Data: []byte(`1`)}}}},
		{Id: 2, Error: ErrTooManyRequests.wire()},
		{Id: 3, Rpc: &pb.RPCResult{Data: []byte("{\n\"a\":\n1}")}},
		{Id: 4, Publish: &pb.PublishResult{}},
		{Push: &Push{Channel: "x", Unsubscribe: &pb.Unsubscribe{Code: 2501, Reason: "r"}}},
		{},
	}
	for _, e := range []Encoding{JSON, Protobuf} {
		msg := []byte("kept")
		for i, r := range replies {
			var err error
			if e == JSON && i > 0 {
				msg = append(msg, '\n')
			}
			if msg, err = AppendReply(msg, e, r); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(msg, []byte("kept")) {
			t.Fatal("what stood in the buffer is gone")
		}
		msg = msg[len("kept"):]
		var d pb.ReplyDecoder = pb.NewJSONReplyDecoder(msg)
		if e == Protobuf {
			d = pb.NewProtobufReplyDecoder(msg)
		} else if n := bytes.Count(msg, []byte("\n")); n != len(replies)-1 {
			t.Fatalf("%d newlines for %d replies", n, len(replies))
		}
		for i, want := range replies {
			got, err := d.Decode()
			if err != nil {
				t.Fatalf("encoding %d, reply %d: %v", e, i, err)
			}
			if !bytes.Equal(got.AppendJSON(nil), want.AppendJSON(nil)) {
				t.Errorf("encoding %d: reply %s, want %s", e, got.AppendJSON(nil), want.AppendJSON(nil))
			}
		}
	}
}

func TestAppendReplyRefusesWhatJSONCannotSay(t *testing.T) {
	bad := []byte(`1,"x":2`)
	for name, r := range map[string]*Reply{
		"rpc":       {Id: 1, Rpc: &pb.RPCResult{Data: bad}},
		"connect":   {Id: 1, Connect: &pb.ConnectResult{Data: bad}},
		"sub":       {Id: 1, Connect: &pb.ConnectResult{Subs: map[string]*pb.SubscribeResult{"a": {Data: bad}}}},
		"subscribe": {Id: 1, Subscribe: &pb.SubscribeResult{Data: bad}},
		"pub":       {Push: &Push{Pub: &pb.Publication{Data: bad}}},
		"pub empty": {Push: &Push{Pub: &pb.Publication{}}},
		"info":      {Push: &Push{Pub: &pb.Publication{Data: []byte("1"), Info: &pb.ClientInfo{ConnInfo: bad}}}},
		"message":   {Push: &Push{Message: &pb.Message{Data: bad}}},
		"push sub":  {Push: &Push{Subscribe: &pb.Subscribe{Data: bad}}},
		"join":      {Push: &Push{Join: &pb.Join{Info: &pb.ClientInfo{ChanInfo: bad}}}},
		"leave":     {Push: &Push{Leave: &pb.Leave{Info: &pb.ClientInfo{ChanInfo: bad}}}},
		"recovered": {Id: 1, Subscribe: &pb.SubscribeResult{Publications: []*pb.Publication{{Data: []byte("1")}, {Data: bad}}}},
		"connect's": {Id: 1, Connect: &pb.ConnectResult{Subs: map[string]*pb.SubscribeResult{"a": {Publications: []*pb.Publication{{Data: bad}}}}}},
		"history":   {Id: 1, History: &pb.HistoryResult{Publications: []*pb.Publication{{Data: bad}}}},
		"publisher": {Id: 1, History: &pb.HistoryResult{Publications: []*pb.Publication{{Data: []byte("1"), Info: &pb.ClientInfo{ConnInfo: bad}}}}},
		"presence":  {Id: 1, Presence: &pb.PresenceResult{Presence: map[string]*pb.ClientInfo{"a": {}, "b": {ChanInfo: bad}}}},
	} {
		out, err := AppendReply([]byte("kept"), JSON, r)
		if !errors.Is(err, ErrInvalidJSON) || string(out) != "kept" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
		if _, err := AppendReply(nil, Protobuf, r); err != nil {
			t.Errorf("%s: Protobuf carries all bytes: %v", name, err)
		}
	}
}

func TestErrorTable(t *testing.T) {
	want := []string{
		"internal server error", "unauthorized", "unknown channel", "permission denied", "method not found",
		"already subscribed", "limit exceeded", "bad request", "not available", "token expired", "expired",
		"too many requests", "unrecoverable position", "concurrent pagination",
	}
	table := []*Error{
		ErrInternal, ErrUnauthorized, ErrUnknownChannel, ErrPermissionDenied, ErrMethodNotFound, ErrAlreadySubscribed,
		ErrLimitExceeded, ErrBadRequest, ErrNotAvailable, ErrTokenExpired, ErrExpired, ErrTooManyRequests,
		ErrUnrecoverablePosition, ErrConcurrentPagination,
	}
	for i, e := range table {
		code := uint32(FirstErrorCode + i)
		temporary := code == 100 || code == 111 || code == 113
		if e.Code != code || e.Message != want[i] || e.Temporary != temporary {
			t.Errorf("%+v stands at %d", e, code)
		}
	}
	if len(table) != LastErrorCode-FirstErrorCode+1 {
		t.Error("the bounds of the table")
	}
	out, err := AppendError(nil, JSON, 3, ErrTooManyRequests)
	if err != nil || string(out) != `{"id":3,"error":{"code":111,"message":"too many requests","temporary":true}}` {
		t.Errorf("%s, %v", out, err)
	}
}

// open reads one frame with another implementation of RFC 6455.
func open(t *testing.T, frame []byte) (ws.Header, []byte) {
	t.Helper()
	r := bytes.NewReader(frame)
	h, err := ws.ReadHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	if !h.Fin || h.Masked || h.Rsv != 0 || int(h.Length) != r.Len() {
		t.Fatalf("header %+v before %d bytes", h, r.Len())
	}
	return h, frame[len(frame)-r.Len():]
}

func TestPublicationFrame(t *testing.T) {
	for _, size := range []int{1, 80, 125, 126, 127, 1000, 65535, 65536, 70000} {
		data, _ := json.Marshal(strings.Repeat("x", size))
		p := &Publication{
			Data: data, Offset: 9, Tags: map[string]string{"k": "v"},
			User: "u", Client: "c", ConnInfo: []byte(`{"n":1}`),
		}
		for _, e := range []Encoding{JSON, Protobuf} {
			frame, err := PublicationFrame(e, "news:1", p)
			if err != nil {
				t.Fatal(err)
			}
			if cap(frame) != len(frame) {
				t.Errorf("%d bytes stand in %d", len(frame), cap(frame))
			}
			h, payload := open(t, frame)
			var d pb.ReplyDecoder = pb.NewJSONReplyDecoder(payload)
			op := ws.OpText
			if e == Protobuf {
				d, op = pb.NewProtobufReplyDecoder(payload), ws.OpBinary
			}
			r, err := d.Decode()
			if err != nil || h.OpCode != op {
				t.Fatalf("opcode %v, %v", h.OpCode, err)
			}
			pub := r.Push.Pub
			if r.Id != 0 || r.Push.Channel != "news:1" || !bytes.Equal(pub.Data, data) || pub.Offset != 9 ||
				pub.Tags["k"] != "v" || pub.Info.User != "u" || pub.Info.Client != "c" || string(pub.Info.ConnInfo) != `{"n":1}` {
				t.Errorf("encoding %d, size %d: %v", e, size, r)
			}
		}
	}
}

func TestPublicationFrameOfWhatJSONCannotCarry(t *testing.T) {
	for _, data := range []string{"", "\xff", "{", "1 2", "\n"} {
		if _, err := PublicationFrame(JSON, "a", &Publication{Data: []byte(data)}); !errors.Is(err, ErrInvalidJSON) {
			t.Errorf("%q: %v", data, err)
		}
		if _, err := PublicationFrame(Protobuf, "a", &Publication{Data: []byte(data)}); err != nil {
			t.Errorf("%q: %v", data, err)
		}
	}
	// Info that is no JSON does not keep the payload from JSON's subscribers.
	frame, err := PublicationFrame(JSON, "a", &Publication{Data: []byte("1"), Client: "c", ConnInfo: []byte("\xff")})
	if err != nil {
		t.Fatal(err)
	}
	if _, payload := open(t, frame); string(payload) != `{"push":{"channel":"a","pub":{"data":1,"info":{"user":"","client":"c"}}}}` {
		t.Errorf("%s", payload)
	}
}

func TestPublicationFrameOfASubscription(t *testing.T) {
	for _, e := range []Encoding{JSON, Protobuf} {
		frame, err := PublicationFrame(e, "a", &Publication{Data: []byte(`"x"`), Delta: true, Client: "c", ChanInfo: []byte(`[1]`)})
		if err != nil {
			t.Fatal(err)
		}
		_, payload := open(t, frame)
		pub := decodeReplies(t, e, payload)[0].Push.Pub
		if !pub.Delta || string(pub.Info.ChanInfo) != "[1]" || pub.Info.ConnInfo != nil {
			t.Errorf("%v", pub)
		}
	}
	frame, err := PublicationFrame(JSON, "a", &Publication{Data: []byte("1"), Client: "c", ChanInfo: []byte("\xff")})
	if err != nil {
		t.Fatal(err)
	}
	if _, payload := open(t, frame); string(payload) != `{"push":{"channel":"a","pub":{"data":1,"info":{"user":"","client":"c"}}}}` {
		t.Errorf("%s", payload)
	}
}

func decodeReplies(t *testing.T, e Encoding, payload []byte) (all []*Reply) {
	t.Helper()
	var d pb.ReplyDecoder = pb.NewJSONReplyDecoder(payload)
	if e == Protobuf {
		d = pb.NewProtobufReplyDecoder(payload)
	}
	for {
		r, err := d.Decode()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
}

func TestPushesFrame(t *testing.T) {
	for _, e := range []Encoding{JSON, Protobuf} {
		for _, n := range []int{1, 2, 3000} {
			pushes := make([]Push, n)
			for i := range pushes {
				pushes[i] = Push{Channel: "a", Join: &pb.Join{Info: &pb.ClientInfo{User: "u", Client: strings.Repeat("c", i%50), ConnInfo: []byte("{\n}")}}}
			}
			frame, err := PushesFrame(e, pushes)
			if err != nil || cap(frame) != len(frame) {
				t.Fatalf("%d bytes in %d, %v", len(frame), cap(frame), err)
			}
			h, payload := open(t, frame)
			if (h.OpCode == ws.OpText) != (e == JSON) {
				t.Errorf("opcode %v", h.OpCode)
			}
			got := decodeReplies(t, e, payload)
			if len(got) != n {
				t.Fatalf("%d of %d pushes", len(got), n)
			}
			if lines := bytes.Count(payload, []byte{'\n'}); e == JSON && lines != n-1 {
				t.Errorf("%d line ends between %d pushes", lines, n)
			}
			for i, r := range got {
				if r.Id != 0 || r.Push.Channel != "a" || r.Push.Join.Info.Client != pushes[i].Join.Info.Client {
					t.Fatalf("push %d: %v", i, r)
				}
			}
		}
	}
	bad := []Push{{Join: &pb.Join{}}, {Join: &pb.Join{Info: &pb.ClientInfo{ConnInfo: []byte("{")}}}}
	if _, err := PushesFrame(JSON, bad); !errors.Is(err, ErrInvalidJSON) {
		t.Errorf("%v", err)
	}
	// The buffer of the one that failed is as good as new.
	frame, err := PushesFrame(JSON, bad[:1])
	if err != nil {
		t.Fatal(err)
	}
	if _, payload := open(t, frame); string(payload) != `{"push":{"join":{}}}` {
		t.Errorf("%s", payload)
	}
}

func TestReplyFrame(t *testing.T) {
	for _, e := range []Encoding{JSON, Protobuf} {
		for _, size := range []int{1, 200, 100_000} {
			r := &Reply{Id: 9, Rpc: &pb.RPCResult{Data: []byte(`"` + strings.Repeat("x", size) + `"`)}}
			frame, err := ReplyFrame(e, r)
			if err != nil {
				t.Fatal(err)
			}
			want, err := AppendReply(nil, e, r)
			if err != nil {
				t.Fatal(err)
			}
			if h, payload := open(t, frame); !bytes.Equal(payload, want) || (h.OpCode == ws.OpText) != (e == JSON) {
				t.Errorf("encoding %d, size %d", e, size)
			}
		}
	}
	if _, err := ReplyFrame(JSON, &Reply{Id: 1, Rpc: &pb.RPCResult{Data: []byte("{")}}); !errors.Is(err, ErrInvalidJSON) {
		t.Errorf("%v", err)
	}
}

func TestFrameHeaderBoundaries(t *testing.T) {
	for size, want := range map[int]int{0: 2, 125: 2, 126: 4, 65535: 4, 65536: 10} {
		h := AppendFrameHeader(nil, Protobuf, size)
		got, err := ws.ReadHeader(bytes.NewReader(h))
		if err != nil || len(h) != want || int(got.Length) != size || got.OpCode != ws.OpBinary || !got.Fin {
			t.Errorf("size %d: % x, %+v, %v", size, h, got, err)
		}
	}
}

func TestPingFrames(t *testing.T) {
	if h, p := open(t, PingFrame(JSON)); h.OpCode != ws.OpText || string(p) != "{}" {
		t.Errorf("%v %q", h.OpCode, p)
	}
	if h, p := open(t, PingFrame(Protobuf)); h.OpCode != ws.OpBinary || string(p) != "\x00" {
		t.Errorf("%v %q", h.OpCode, p)
	}
	for _, e := range []Encoding{JSON, Protobuf} {
		_, p := open(t, PingFrame(e))
		if r, err := AppendReply(nil, e, &Reply{}); err != nil || !bytes.Equal(r, p) {
			t.Errorf("an empty reply is % x, %v", r, err)
		}
	}
}

func TestAllocations(t *testing.T) {
	data := []byte(`{"temperature":21.5}`)
	pin := func(name string, want float64, f func()) {
		t.Helper()
		f()
		if got := testing.AllocsPerRun(200, f); got > want {
			t.Errorf("%s: %v allocations, want %v at most", name, got, want)
		}
	}
	for _, e := range []Encoding{JSON, Protobuf} {
		buf := make([]byte, 0, 4096)
		pong := message(t, e, &Command{})
		pin("pong", 0, func() {
			if !IsPong(pong, e) {
				t.Fatal("no pong")
			}
		})
		pin("ping", 0, func() { _ = PingFrame(e) })
		many := message(t, e, commands...)
		pin("frame", 0, func() {
			frame := NewFrame(many, e)
			for {
				if _, err := frame.Next(); err != nil {
					return
				}
			}
		})
		subscribed := &pb.SubscribeResult{Expires: true, Ttl: 60}
		published := &pb.PublishResult{}
		rpc := &pb.RPCResult{Data: data}
		replies := []*Reply{{Id: 1, Subscribe: subscribed}, {Id: 1, Publish: published}, {Id: 1, Rpc: rpc}, {Id: 1, Error: ErrInternal.wire()}}
		pin("replies", 0, func() {
			for _, r := range replies {
				if _, err := AppendReply(buf[:0], e, r); err != nil {
					t.Fatal(err)
				}
			}
		})
		p := &Publication{Data: data, Offset: 3}
		// The frame; under -race the pool forgets its buffers now and then.
		pin("publication", 3, func() {
			if _, err := PublicationFrame(e, "news", p); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func BenchmarkPublicationFrame(b *testing.B) {
	p := &Publication{Data: []byte(`{"temperature":21.5,"unit":"C"}`), User: "u", Client: "c"}
	for _, e := range []Encoding{JSON, Protobuf} {
		b.Run(map[Encoding]string{JSON: "json", Protobuf: "protobuf"}[e], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := PublicationFrame(e, "sensors:1", p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendReply(b *testing.B) {
	for _, e := range []Encoding{JSON, Protobuf} {
		b.Run(map[Encoding]string{JSON: "json", Protobuf: "protobuf"}[e], func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 0, 256)
			for b.Loop() {
				r := Reply{Id: 7, Subscribe: &pb.SubscribeResult{}}
				if _, err := AppendReply(buf[:0], e, &r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
