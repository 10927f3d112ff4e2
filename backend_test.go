package perch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch"
	"perch/handler"
	"perch/internal/testkit"
)

// service is a backend of a test. What its methods answer may be changed while it
// runs; by default everything is allowed.
type service struct {
	*httptest.Server
	mu      sync.Mutex
	answers map[string]func(w http.ResponseWriter, r *http.Request, q map[string]any)
	asked   map[string][]question
}

// question is one that the service was asked.
type question struct {
	body   map[string]any
	header http.Header
}

func newService(t testing.TB) *service {
	b := &service{answers: make(map[string]func(http.ResponseWriter, *http.Request, map[string]any)), asked: make(map[string][]question)}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the caller has gone
		}
		var q map[string]any
		if err := json.Unmarshal(body, &q); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("asked with %s %q: %v", r.Method, body, err)
		}
		method := strings.TrimPrefix(r.URL.Path, "/")
		b.mu.Lock()
		b.asked[method] = append(b.asked[method], question{q, r.Header.Clone()})
		answer := b.answers[method]
		b.mu.Unlock()
		if answer == nil {
			answer = says(`{"result":{}}`)
		}
		answer(w, r, q)
	}))
	t.Cleanup(func() {
		b.CloseClientConnections()
		b.Close()
	})
	return b
}

// says answers with a text.
func says(text string) func(http.ResponseWriter, *http.Request, map[string]any) {
	return func(w http.ResponseWriter, _ *http.Request, _ map[string]any) { _, _ = io.WriteString(w, text) }
}

// silent answers nothing while its caller waits.
func silent(_ http.ResponseWriter, r *http.Request, _ map[string]any) { <-r.Context().Done() }

func (b *service) on(method string, answer func(http.ResponseWriter, *http.Request, map[string]any)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers[method] = answer
}

func (b *service) questions(method string) []question {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]question(nil), b.asked[method]...)
}

// last is the last question of a method.
func (b *service) last(t testing.TB, method string) question {
	t.Helper()
	all := b.questions(method)
	if len(all) == 0 {
		t.Fatalf("%s was not asked", method)
	}
	return all[len(all)-1]
}

// serve makes o ask b about methods.
func (b *service) serve(o *perch.Options, methods ...string) {
	for _, m := range methods {
		url := b.URL + "/" + m
		switch m {
		case "connect":
			o.Backend.Connect = url
		case "refresh":
			o.Backend.Refresh = url
		case "subscribe":
			o.Backend.Subscribe = url
			o.Topics.Default.SubscribeProxyEnabled = true
		case "sub_refresh":
			o.Backend.SubRefresh = url
			o.Topics.Default.SubRefreshProxyEnabled = true
		case "publish":
			o.Backend.Publish = url
			o.Topics.Default.PublishProxyEnabled = true
		case "rpc":
			o.Backend.RPC = url
		}
	}
}

// wantBody compares what was asked with JSON; "client" is not looked at.
func wantBody(t testing.TB, got map[string]any, want string) {
	t.Helper()
	var w map[string]any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if c, _ := got["client"].(string); c == "" {
		t.Error("asked without a client")
	}
	g := make(map[string]any)
	for k, v := range got {
		if k != "client" {
			g[k] = v
		}
	}
	if !reflect.DeepEqual(g, w) {
		b, _ := json.Marshal(g)
		t.Errorf("asked with %s\nwant %s", b, want)
	}
}

// TestBackendShapes drives each method with the published SDK: what the backend
// is asked, and what comes of its answers.
func TestBackendShapes(t *testing.T) {
	b := newService(t)
	s := start(t, func(o *perch.Options) {
		b.serve(o, "connect", "subscribe", "publish", "rpc")
		o.Topics.Default.AllowSubscribeForClient, o.Topics.Default.AllowPublishForClient = false, false
		o.Topics.Default.HistorySize, o.Topics.Default.HistoryTTL = 10, time.Minute
		o.Topics.Default.Presence, o.Topics.Default.AllowPresenceForSubscriber = true, true
		o.Backend.Headers = []string{"cookie", "X-Real-Ip"}
		o.Backend.StaticHeaders = []string{"X-From: perch"}
		o.Backend.Secret = "between us"
	})
	b.on("connect", says(`{"result":{"user":"u1","info":{"name":"Ann"},"data":{"hello":1},"meta":{"m":1},
		"channels":["one"],"subs":{"two":{"info":"second","b64data":"eyJ4IjoyfQ=="}},"caps":[]}}`))
	b.on("subscribe", func(w http.ResponseWriter, r *http.Request, q map[string]any) {
		switch q["channel"] {
		case "good":
			says(`{"result":{"info":{"i":1},"data":{"d":1},"override":{"force_recovery":{"value":true}}}}`)(w, r, q)
		case "temporary":
			says(`{"error":{"code":1001,"message":"later","temporary":true}}`)(w, r, q)
		case "gone":
			says(`{"disconnect":{"code":4501,"reason":"go away"}}`)(w, r, q)
		default:
			says(`{"error":{"code":403,"message":"no"}}`)(w, r, q)
		}
	})
	b.on("publish", func(w http.ResponseWriter, r *http.Request, q map[string]any) {
		if q["channel"] == "other" {
			says(`{"error":{"code":1002,"message":"not you"}}`)(w, r, q)
			return
		}
		says(`{"result":{"data":{"changed":true},"tags":{"t":"v"}}}`)(w, r, q)
	})
	b.on("rpc", func(w http.ResponseWriter, r *http.Request, q map[string]any) {
		switch q["method"] {
		case "sum":
			says(`{"result":{"data":{"sum":3}}}`)(w, r, q)
		case "b64":
			says(`{"result":{"b64data":"eyJiIjoxfQ=="}}`)(w, r, q)
		case "empty":
			says(`{"result":{}}`)(w, r, q)
		default:
			says(`{"error":{"code":404,"message":"no such method"}}`)(w, r, q)
		}
	})
	s.HandleRPC("own", func(context.Context, handler.RPCRequest) ([]byte, error) { return []byte(`"in process"`), nil })

	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		name := strings.ToLower(t.Name()[strings.LastIndexByte(t.Name(), '/')+1:])
		k := dial(t, s.url(), centrifuge.Config{
			Data: []byte(`{"password":"<secret>"}`), Name: "app", Version: "1.2",
			Header: http.Header{"Cookie": {"session=1"}, "X-Real-Ip": {"10.0.0.1"}, "X-Other": {"no"}},
		})
		e := k.connect(t)
		if string(e.Data) != `{"hello":1}` {
			t.Errorf("data %s", e.Data)
		}
		q := b.last(t, "connect")
		wantBody(t, q.body, fmt.Sprintf(`{"transport":"websocket","protocol":%q,"encoding":"json","data":{"password":"<secret>"},"name":"app","version":"1.2"}`, name))
		if q.body["client"] != e.ClientID {
			t.Errorf("client %v, want %s", q.body["client"], e.ClientID)
		}
		for range 2 {
			await(t, "server-side subscription", k.subscribed)
		}
		about := fmt.Sprintf(`"transport":"websocket","protocol":%q,"encoding":"json","user":"u1","meta":{"m":1}`, name)

		sub := k.subscribe(t, "good", centrifuge.SubscriptionConfig{Data: []byte(`{"want":1}`)})
		if e := await(t, "subscribed", sub.subscribed); string(e.Data) != `{"d":1}` || !e.Recoverable {
			t.Errorf("subscribed with %+v", e)
		}
		wantBody(t, b.last(t, "subscribe").body, `{`+about+`,"channel":"good","data":{"want":1}}`)
		p, err := sub.Presence(bounded(t))
		if c := p.Clients[e.ClientID]; err != nil || string(c.ChanInfo) != `{"i":1}` || string(c.ConnInfo) != `{"name":"Ann"}` || c.User != "u1" {
			t.Errorf("presence %+v, %v", c, err)
		}
		no := k.subscribe(t, "closed", centrifuge.SubscriptionConfig{})
		if e := await(t, "unsubscribed", no.unsubscribed); e.Code != 403 || e.Reason != "no" {
			t.Errorf("refused with %+v", e)
		}
		later := k.subscribe(t, "temporary", centrifuge.SubscriptionConfig{})
		wantCode(t, unwrapped(await(t, "subscription error", later.failed)), 1001)
		_ = later.Unsubscribe()
		// Private names are for tokens: nobody is asked.
		before := len(b.questions("subscribe"))
		private := k.subscribe(t, "$private", centrifuge.SubscriptionConfig{})
		if e := await(t, "unsubscribed", private.unsubscribed); e.Code != 103 {
			t.Errorf("refused with %+v", e)
		}
		byToken := k.subscribe(t, "$opened", centrifuge.SubscriptionConfig{Token: testkit.SubscriptionToken(testSecret, "u1", "$opened", time.Hour)})
		await(t, "subscribed by a token", byToken.subscribed)
		for _, q := range b.questions("subscribe")[before:] {
			if q.body["channel"] != "temporary" { // of which the SDK may have asked again
				t.Errorf("asked about %v", q.body["channel"])
			}
		}

		if _, err := k.Publish(bounded(t), "good", []byte(`{"raw":1}`)); err != nil {
			t.Error(err)
		}
		wantBody(t, b.last(t, "publish").body, `{`+about+`,"channel":"good","data":{"raw":1}}`)
		if e := await(t, "publication", sub.published); string(e.Data) != `{"changed":true}` || e.Tags["t"] != "v" || e.Info == nil || e.Info.User != "u1" || e.Offset == 0 {
			t.Errorf("published %+v", e)
		}
		b.mu.Lock()
		kept := b.answers["publish"]
		b.answers["publish"] = says(`{"result":{"skip_history":true}}`)
		b.mu.Unlock()
		if _, err := k.Publish(bounded(t), "good", []byte(`{"raw":2}`)); err != nil {
			t.Error(err)
		}
		if e := await(t, "publication", sub.published); string(e.Data) != `{"raw":2}` || e.Offset != 0 {
			t.Errorf("published %+v", e)
		}
		b.on("publish", kept)
		_, err = k.Publish(bounded(t), "other", []byte(`1`))
		wantCode(t, err, 1002)

		for method, want := range map[string]string{"sum": `{"sum":3}`, "b64": `{"b":1}`, "empty": "", "own": `"in process"`} {
			if r, err := k.RPC(bounded(t), method, []byte(`[1,2]`)); err != nil || string(r.Data) != want {
				t.Errorf("%s: %s, %v", method, r.Data, err)
			}
			if method != "own" {
				wantBody(t, b.last(t, "rpc").body, `{`+about+fmt.Sprintf(`,"method":%q,"data":[1,2]}`, method))
			}
		}
		_, err = k.RPC(bounded(t), "none", nil)
		wantCode(t, err, 404)
		for _, method := range []string{"connect", "subscribe", "publish", "rpc"} {
			h := b.last(t, method).header
			for name, want := range map[string]string{
				"Cookie": "session=1", "X-Real-Ip": "10.0.0.1", "X-Other": "", "X-From": "perch", "X-Api-Key": "between us",
				"Authorization": "", "Sec-Websocket-Key": "", "Accept-Encoding": "",
			} {
				if got := h.Get(name); got != want {
					t.Errorf("%s: header %s is %q, want %q", method, name, got, want)
				}
			}
		}
		k.subscribe(t, "gone", centrifuge.SubscriptionConfig{})
		if e := await(t, "disconnected", k.disconnected); e.Code != 4501 || e.Reason != "go away" {
			t.Errorf("disconnected with %+v", e)
		}
	})
}

// unwrapped is the protocol's error inside one of the SDK's.
func unwrapped(err error) error {
	if e, ok := err.(centrifuge.SubscriptionSubscribeError); ok {
		return e.Err
	}
	return err
}

// TestBackendConnect: a token goes before the backend, and what the backend
// refuses stays out.
func TestBackendConnect(t *testing.T) {
	b := newService(t)
	s := start(t, func(o *perch.Options) { b.serve(o, "connect") })
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		k := dial(t, s.url(), centrifuge.Config{Token: token("alice", time.Hour)})
		k.connect(t)
		if n := len(b.questions("connect")); n != 0 {
			t.Errorf("asked %d times beside a token", n)
		}
		b.on("connect", says(`{"result":{"user":""}}`))
		dial(t, s.url(), centrifuge.Config{}).connect(t)
		b.on("connect", says(`{"error":{"code":1000,"message":"banned"}}`))
		k = dial(t, s.url(), centrifuge.Config{})
		_ = k.Connect()
		if e := await(t, "disconnected", k.disconnected); e.Code != 1000 || e.Reason != "banned" {
			t.Errorf("disconnected with %+v", e)
		}
		b.on("connect", says(`{"disconnect":{"code":4500,"reason":"`+strings.Repeat("é", 100)+`"}}`))
		k = dial(t, s.url(), centrifuge.Config{})
		_ = k.Connect()
		if e := await(t, "disconnected", k.disconnected); e.Code != 4500 || e.Reason != strings.Repeat("é", 61) {
			t.Errorf("disconnected with %+v", e)
		}
		b.mu.Lock()
		clear(b.asked)
		b.mu.Unlock()
	})
	b.on("connect", func(w http.ResponseWriter, r *http.Request, q map[string]any) {
		says(`{"result":{"user":"binary","b64data":"AAH/"}}`)(w, r, q)
	})
	k := newSDK(t, centrifuge.NewProtobufClient(s.url(), centrifuge.Config{Data: []byte{0, 1, 255}, Name: "x"}))
	if e := k.connect(t); string(e.Data) != "\x00\x01\xff" {
		t.Errorf("data %q", e.Data)
	}
	wantBody(t, b.last(t, "connect").body, `{"transport":"websocket","protocol":"protobuf","encoding":"binary","name":"x","b64data":"AAH/"}`)
}

// TestBackendUni: peers that only listen come in through the backend as well.
func TestBackendUni(t *testing.T) {
	b := newService(t)
	s := start(t, func(o *perch.Options) {
		b.serve(o, "connect")
		o.Backend.Headers = []string{"Cookie"}
	})
	b.on("connect", func(w http.ResponseWriter, r *http.Request, q map[string]any) {
		if r.Header.Get("Cookie") != "session=1" {
			says(`{"error":{"code":401,"message":"who?"}}`)(w, r, q)
			return
		}
		says(`{"result":{"user":"u1","channels":["news"],"data":"hi"}}`)(w, r, q)
	})
	wantConnect := func(p push) {
		t.Helper()
		if p.Connect == nil || string(p.Connect.Data) != `"hi"` || len(p.Connect.Subs) != 1 {
			t.Errorf("told %+v", p)
		}
	}
	_, events := s.stream(t, "", "Cookie: session=1")
	wantConnect(events.want(t))
	wantBody(t, b.last(t, "connect").body, `{"transport":"uni_sse","protocol":"json","encoding":"json"}`)
	s.api(t, "publish", `{"channel":"news","data":1}`)
	if p := events.want(t); p.Pub == nil || string(p.Pub.Data) != "1" {
		t.Errorf("told %+v", p)
	}
	_, events = s.stream(t, "cf_connect="+`%7B%22data%22%3A%7B%22a%22%3A1%7D%7D`, "Cookie: session=1")
	wantConnect(events.want(t))
	wantBody(t, b.last(t, "connect").body, `{"transport":"uni_sse","protocol":"json","encoding":"json","data":{"a":1}}`)
	_, events = s.stream(t, "")
	if p := events.want(t); p.Disconnect == nil || p.Disconnect.Code != 3507 {
		t.Errorf("told %+v", p)
	}

	c, err := testkit.Open(s.public, "/connection/uni_websocket", "Cookie: session=1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SendFrames(testkit.Text(`{"name":"plain","subs":{"news":{}}}`)); err != nil {
		t.Fatal(err)
	}
	wantConnect(nextPush(t, c))
	wantBody(t, b.last(t, "connect").body, `{"transport":"uni_websocket","protocol":"json","encoding":"json","name":"plain","channels":["news"]}`)
}
