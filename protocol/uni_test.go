package protocol

import (
	"bytes"
	"errors"
	"testing"

	pb "github.com/centrifugal/protocol"
)

func TestDecodeConnect(t *testing.T) {
	raw := []byte(` {"token":"t","subs":{"a":{"recover":true,"offset":18446744073709551615,"epoch":"e"}},"later":[{}]}` + "\n")
	r, err := DecodeConnect(raw)
	if err != nil {
		t.Fatal(err)
	}
	clear(raw)
	if r.Token != "t" || len(r.Subs) != 1 || !r.Subs["a"].Recover || r.Subs["a"].Offset != 1<<64-1 || r.Subs["a"].Epoch != "e" {
		t.Errorf("%+v", r)
	}
	for _, bad := range []string{"", "x", "[]", `{"token":1}`, `{"token":"t"}x`, `{"token":"t"} {}`, `{"subs":[]}`} {
		if r, err := DecodeConnect([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %+v", bad, r)
		}
	}
}

// Every push in both forms: one line of JSON, with no line end within.
func TestBarePushes(t *testing.T) {
	spread := []byte("{\r\n \"a\":\r1\n}")
	for _, tt := range []struct {
		name string
		push *Push
		want string // of the event; the text frame keeps the \r
	}{
		{"publication", &Push{Channel: "x", Pub: &pb.Publication{Data: spread, Offset: 7}}, `{"channel":"x","pub":{"data":{ "a":1},"offset":7}}`},
		{"connect", &Push{Connect: &pb.Connect{Client: "c", Subs: map[string]*pb.SubscribeResult{
			"x": {Publications: []*pb.Publication{{Data: []byte("[1,\r\n2]")}}}}}},
			`{"connect":{"client":"c","subs":{"x":{"publications":[{"data":[1,2]}]}}}}`},
		{"message", &Push{Message: &pb.Message{Data: []byte(`"\r\n\u2028"`)}}, `{"message":{"data":"\r\n\u2028"}}`},
		{"disconnect", &Push{Disconnect: &pb.Disconnect{Code: 3000, Reason: "a\nb"}}, `{"disconnect":{"code":3000,"reason":"a\nb"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := AppendEvent([]byte("kept"), []byte("ID"), tt.push)
			if want := "keptid: ID\ndata: " + tt.want + "\n\n"; err != nil || string(b) != want {
				t.Errorf("%q, %v, want %q", b, err, want)
			}
			if b, err = AppendEvent(nil, nil, tt.push); err != nil || string(b) != "data: "+tt.want+"\n\n" {
				t.Errorf("%q, %v", b, err)
			}
			b, err = AppendBarePush([]byte("kept"), tt.push)
			if err != nil || string(bytes.ReplaceAll(b, []byte("\r"), nil)) != "kept"+tt.want || bytes.IndexByte(b, '\n') >= 0 {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	if b, err := AppendEvent(nil, []byte{}, &Push{}); err != nil || string(b) != "id: \ndata: {}\n\n" {
		t.Errorf("an empty id: %q, %v", b, err)
	}
}

func TestBarePushesRefuse(t *testing.T) {
	bad := []byte(`1,"x":2`)
	for name, p := range map[string]*Push{
		"publication":          {Channel: "x", Pub: &pb.Publication{Data: bad}},
		"nothing published":    {Channel: "x", Pub: &pb.Publication{}},
		"connect":              {Connect: &pb.Connect{Data: bad}},
		"a subscription":       {Connect: &pb.Connect{Subs: map[string]*pb.SubscribeResult{"x": {Data: bad}}}},
		"what it has missed":   {Connect: &pb.Connect{Subs: map[string]*pb.SubscribeResult{"x": {Publications: []*pb.Publication{{Data: bad}}}}}},
		"a later subscription": {Subscribe: &pb.Subscribe{Data: bad}},
		"join":                 {Join: &pb.Join{Info: &pb.ClientInfo{ConnInfo: bad}}},
	} {
		if b, err := AppendEvent([]byte("kept"), []byte("id"), p); !errors.Is(err, ErrInvalidJSON) || string(b) != "kept" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if b, err := AppendBarePush([]byte("kept"), p); !errors.Is(err, ErrInvalidJSON) || string(b) != "kept" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	pushes := []Push{{Channel: "x", Pub: &pb.Publication{Data: []byte("1")}}, {Channel: "x", Pub: &pb.Publication{Data: bad}}}
	if b, err := PushesEvents(pushes); err == nil || b != nil {
		t.Errorf("%q", b)
	}
	if b, err := BarePushesFrames(pushes); err == nil || b != nil {
		t.Errorf("%q", b)
	}
}

func TestBareFrames(t *testing.T) {
	p := &Publication{Data: []byte("1"), Offset: 2, User: "u", Client: "c", ConnInfo: []byte("no JSON"), ChanInfo: []byte("{}"), Tags: map[string]string{"k": "v"}}
	text := `{"channel":"x","pub":{"data":1,"info":{"user":"u","client":"c","chan_info":{}},"offset":2,"tags":{"k":"v"}}}`
	f, err := BarePublicationFrame("x", p)
	if want := append([]byte{0x81, byte(len(text))}, text...); err != nil || !bytes.Equal(f, want) || cap(f) != len(f) {
		t.Errorf("%q, %v", f, err)
	}
	e, err := PublicationEvent("x", p)
	if err != nil || string(e) != "data: "+text+"\n\n" || cap(e) != len(e) {
		t.Errorf("%q, %v", e, err)
	}
	if e, err = PublicationEvent("x", &Publication{Data: []byte("x")}); !errors.Is(err, ErrInvalidJSON) || e != nil {
		t.Errorf("%q, %v", e, err)
	}
	if got := string(DisconnectEvent(3503, `a "b"`+"\n\xff")); got != `data: {"disconnect":{"code":3503,"reason":"a \"b\"\n`+"\ufffd"+`"}}`+"\n\n" &&
		got != `data: {"disconnect":{"code":3503,"reason":"a \"b\"\n\ufffd"}}`+"\n\n" {
		t.Errorf("%q", got)
	}
	// A buffer that was used for an event is not kept by it.
	again, _ := PublicationEvent("x", p)
	if _, err := PublicationEvent("y", &Publication{Data: []byte(`"another"`)}); err != nil || string(again) != "data: "+text+"\n\n" {
		t.Errorf("%q", again)
	}
}
