package backend

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestDecode(t *testing.T) {
	on, off := &BoolValue{true}, &BoolValue{}
	for _, tt := range []struct {
		name, body string
		want       ConnectResult
	}{
		{"empty", `{"result":{}}`, ConnectResult{}},
		{"all", `{"result":{"user":"u","expire_at":7,"info":{"a":1},"data":[1],"channels":["a","b"],"meta":{"m":1},
			"subs":{"t":{"expire_at":8,"b64info":"AAE=","data":"d","override":{"presence":{"value":true},"join_leave":{"value":false},
			"force_push_join_leave":{"value":true},"force_recovery":{"value":true},"force_positioning":{"value":true}}}},
			"caps":[{"channels":["a"],"allow":["pub"]}],"labels":{"x":"y"}}}`, ConnectResult{
			User: "u", ExpireAt: 7, Info: []byte(`{"a":1}`), Data: []byte(`[1]`), Channels: []string{"a", "b"}, Meta: []byte(`{"m":1}`),
			Subs: map[string]SubscribeResult{"t": {ExpireAt: 8, Info: []byte{0, 1}, Data: []byte(`"d"`), Override: Override{
				Presence: on, JoinLeave: off, ForcePushJoinLeave: on, ForceRecovery: on, ForcePositioning: on,
			}}},
		}},
		{"base64 first", `{"result":{"info":1,"b64info":"AA==","b64data":"AQ=="}}`, ConnectResult{Info: []byte{0}, Data: []byte{1}}},
		{"nulls", `{"result":{"user":null,"info":null,"data":null,"meta":null,"subs":null,"channels":null},"error":null,"disconnect":null}`, ConnectResult{}},
	} {
		got, err := decode[ConnectResult, *ConnectResult]([]byte(tt.body))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		tt.want.Bytes = len(tt.body)
		if !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("%s: got %+v\nwant %+v", tt.name, *got, tt.want)
		}
	}
	var e *Error
	_, err := decode[RPCResult, *RPCResult]([]byte(`{"result":{},"error":{"code":1000,"message":"m","temporary":true}}`))
	if !errors.As(err, &e) || *e != (Error{1000, "m", true}) {
		t.Errorf("a refusal beside a result: %v", err)
	}
	var d *Disconnect
	_, err = decode[RPCResult, *RPCResult]([]byte(`{"error":{"code":1},"disconnect":{"code":4999,"reason":"` + strings.Repeat("é", 62) + `"}}`))
	if !errors.As(err, &d) || d.Code != 4999 || d.Reason != strings.Repeat("é", 61) {
		t.Errorf("a disconnect beside an error: %v", err)
	}
	for _, body := range []string{
		`{"result":{"expire_at":-1}}`, `{"result":{"expire_at":1.5}}`, `{"result":{"subs":{"a":{"expire_at":-1}}}}`, `{"result":{"user":7}}`,
		`{"result":{"subs":{"a":{"b64data":"*"}}}}`, `{"result":{"b64info":"*"}}`, `{"disconnect":{"code":2999}}`, `{"disconnect":{"code":5000}}`,
		`{"result":[]}`, `{"result":"yes"}`, `{"result":null}`, `[]`, `true`, ` `,
	} {
		if got, err := decode[ConnectResult, *ConnectResult]([]byte(body)); err == nil || refusal(err) {
			t.Errorf("%s: %+v, %v", body, got, err)
		}
	}
}

// FuzzDecode: an answer is a yes that says so, a refusal within its bounds, or an
// error, whatever the method.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"result":{}}`, `{"result":{"user":"u","expire_at":1,"subs":{"a":{"b64info":"AA=="}},"channels":["a"],"meta":{}}}`,
		`{"error":{"code":1,"message":"m","temporary":true}}`, `{"disconnect":{"code":4000,"reason":"r"}}`, `null`, `[]`, `{"result":null}`,
		`{"result":{"data":{"a":[1,2,{}]},"b64data":"","tags":{"a":"b"},"version":1,"skip_history":true}}`,
		`{"result":{"override":{"presence":{"value":true}}}}`, `{"RESULT":{}}`, `{"result":{"expired":true}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		results := []func() (any, error){
			func() (any, error) { r, err := decode[ConnectResult, *ConnectResult](body); return r, err },
			func() (any, error) { r, err := decode[RefreshResult, *RefreshResult](body); return r, err },
			func() (any, error) { r, err := decode[SubscribeResult, *SubscribeResult](body); return r, err },
			func() (any, error) { r, err := decode[PublishResult, *PublishResult](body); return r, err },
			func() (any, error) { r, err := decode[RPCResult, *RPCResult](body); return r, err },
		}
		for _, f := range results {
			r, err := f()
			var e *Error
			var d *Disconnect
			switch {
			case errors.As(err, &d):
				if d.Code < 3000 || d.Code > 4999 || len(d.Reason) > 123 || !utf8.ValidString(d.Reason) {
					t.Fatalf("%+v of %q", d, body)
				}
			case errors.As(err, &e):
				if e.Code == 0 || !utf8.ValidString(e.Message) {
					t.Fatalf("%+v of %q", e, body)
				}
			case err == nil:
				var top map[string]json.RawMessage
				if json.Unmarshal(body, &top) != nil || len(top) == 0 {
					t.Fatalf("a yes of %q", body)
				}
				if c, ok := r.(*ConnectResult); ok && (c.ExpireAt < 0 || !utf8.ValidString(c.User)) {
					t.Fatalf("%+v of %q", c, body)
				}
				// The result is the caller's own: the body may be used again.
				held, _ := json.Marshal(r)
				for i := range body {
					body[i] = 'x'
				}
				again, _ := json.Marshal(r)
				copy(body, before)
				if !bytes.Equal(held, again) {
					t.Fatalf("the result of %q is in the body", before)
				}
			}
		}
	})
}

func TestRequests(t *testing.T) {
	plain, _ := New(Options{})
	binary, _ := New(Options{Binary: true})
	p := &Peer{Client: "c", Transport: "websocket", Protocol: "json", User: "u", Meta: []byte(`{"m":1}`)}
	const about = `"client":"c","transport":"websocket","protocol":"json"`
	for _, tt := range []struct {
		name string
		r    request
		want string
	}{
		{"connect", plain.connectRequest(&Peer{Client: "c", Transport: "websocket", Protocol: "json"}, &ConnectRequest{
			Data: []byte(`{"<a>":"&"}`), Name: "n", Version: "v", Channels: []string{"b", "a"},
		}), `{` + about + `,"encoding":"json","data":{"<a>":"&"},"name":"n","version":"v","channels":["a","b"]}`},
		{"bare connect", plain.connectRequest(&Peer{Client: "c", Transport: "websocket", Protocol: "json"}, &ConnectRequest{}), `{` + about + `,"encoding":"json"}`},
		{"refresh", plain.topicRequest(p, ""), `{` + about + `,"encoding":"json","user":"u","meta":{"m":1}}`},
		{"anonymous", plain.topicRequest(&Peer{Client: "c", Transport: "websocket", Protocol: "json"}, "t"), `{` + about + `,"encoding":"json","user":"","channel":"t"}`},
		{"bytes", plain.payloadRequest(p, "t", []byte{0, 255}), `{` + about + `,"encoding":"binary","user":"u","channel":"t","meta":{"m":1},"b64data":"AP8="}`},
		{"publish", plain.payloadRequest(p, "t", []byte(`[ 1 ]`)), `{` + about + `,"encoding":"json","user":"u","channel":"t","meta":{"m":1},"data":[1]}`},
		{"binary", binary.payloadRequest(p, "t", []byte(`1`)), `{` + about + `,"encoding":"binary","user":"u","channel":"t","meta":{"m":1},"b64data":"MQ=="}`},
		{"rpc", plain.rpcRequest(&Peer{Client: "c", Transport: "websocket", Protocol: "json", Meta: []byte(`no JSON`)}, &RPCRequest{Data: []byte(`null`)}),
			`{` + about + `,"encoding":"json","user":"","method":"","data":null}`},
	} {
		if got, err := tt.r.encode(); err != nil || string(got) != tt.want {
			t.Errorf("%s: got %s, %v\nwant %s", tt.name, got, err, tt.want)
		}
	}
}

func TestChecks(t *testing.T) {
	for raw, ok := range map[string]bool{
		"http://a": true, "https://a.b:8/x?y=z": true, "http://[::1]:3/": true,
		"": false, "a": false, "ftp://a": false, "http://": false, "http://:80": false, "http://u:p@a": false, "http://a#b": false, "http://a\n": false,
	} {
		if err := CheckURL(raw); (err == nil) != ok {
			t.Errorf("URL %q: %v", raw, err)
		} else if err != nil && strings.Contains(err.Error(), "u:p") {
			t.Errorf("%v shows a password", err)
		}
	}
	for name, ok := range map[string]bool{
		"Cookie": true, "x-real-ip": true, "Authorization": true, "User-Agent": true,
		"": false, "a b": false, "a:": false, "é": false, "host": false, "Content-Length": false, "connection": false, "x-api-key": false,
		"sec-websocket-key": false, "Idempotency-Key": false, "x-idempotency-key": false, "TE": false, "Transfer-Encoding": false,
	} {
		if err := CheckHeader(name); (err == nil) != ok {
			t.Errorf("header %q: %v", name, err)
		}
	}
	for line, ok := range map[string]bool{
		"A: b": true, "A:": true, "A: b: c": true, "A": false, ": b": false, "Host: b": false, "A: secret\r\nB: c": false, "A: secret\x00": false,
	} {
		if err := CheckStatic(line); (err == nil) != ok {
			t.Errorf("header %q: %v", line, err)
		} else if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%v shows the value", err)
		}
	}
}
