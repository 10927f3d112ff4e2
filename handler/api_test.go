package handler

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"perch/session"
	"perch/topic"
)

var _ APITopics = (*topic.Topics)(nil)

func TestAPIKey(t *testing.T) {
	x := newAPITest(t)
	for name, c := range map[string]struct {
		headers []string
		status  int
	}{
		"X-API-Key":              {[]string{"X-API-Key", apiTestKey}, 200},
		"Authorization":          {[]string{"Authorization", "apikey " + apiTestKey}, 200},
		"scheme in capitals":     {[]string{"Authorization", "ApiKey " + apiTestKey}, 200},
		"none":                   {[]string{}, 401},
		"empty":                  {[]string{"X-API-Key", ""}, 401},
		"wrong":                  {[]string{"X-API-Key", "b-key-for-tests"}, 401},
		"prefix":                 {[]string{"X-API-Key", apiTestKey[:5]}, 401},
		"longer":                 {[]string{"X-API-Key", apiTestKey + "x"}, 401},
		"another scheme":         {[]string{"Authorization", "Bearer " + apiTestKey}, 401},
		"scheme alone":           {[]string{"Authorization", "apikey"}, 401},
		"wrong one goes first":   {[]string{"X-API-Key", "x", "Authorization", "apikey " + apiTestKey}, 401},
		"other header unchanged": {[]string{"Api-Key", apiTestKey}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			status, header, body := x.send("info", "{}", c.headers...)
			if status != c.status {
				t.Fatalf("status %d, want %d", status, c.status)
			}
			if status == http.StatusUnauthorized {
				wantJSON(t, "401", body, apiErrorJSON(101))
				if header.Get("WWW-Authenticate") == "" {
					t.Error("no WWW-Authenticate")
				}
			}
		})
	}
	if status, _, _ := x.send("info?api_key="+apiTestKey, "{}", "X", "y"); status != 401 {
		t.Errorf("a key in the address, which proxies log: status %d, want 401", status)
	}
	if status, _, _ := x.send("nosuch", "{}", "X", "y"); status != 401 {
		t.Errorf("unknown method without a key: status %d, want 401", status)
	}
	if strings.Contains(x.log.String(), apiTestKey[:5]) {
		t.Error("the key is in the log")
	}
}

func TestAPIWithoutKeyIsClosed(t *testing.T) {
	x := newAPITest(t, func(o *APIOptions) { o.Key = "" })
	for _, headers := range [][]string{{}, {"X-API-Key", ""}, {"Authorization", "apikey "}} {
		if status, _, _ := x.send("info", "{}", headers...); status != 401 {
			t.Errorf("%q: status %d, want 401", headers, status)
		}
	}
}

func TestAPIRequestForm(t *testing.T) {
	x := newAPITest(t, func(o *APIOptions) { o.MaxBody = 1000 })
	for name, c := range map[string]struct {
		method, body string
		status, code int
	}{
		"unknown method":    {"nosuch", "{}", 404, 104},
		"rpc":               {"rpc", "{}", 404, 104},
		"not JSON":          {"publish", "{", 400, 107},
		"an array":          {"publish", "[]", 400, 107},
		"two values":        {"publish", "{}{}", 400, 107},
		"wrong type":        {"publish", `{"channel":5}`, 400, 107},
		"not UTF-8":         {"publish", "{\"channel\":\"a\",\"data\":\"\xff\"}", 400, 107},
		"too big":           {"publish", `{"channel":"` + strings.Repeat("a", 1000) + `"}`, 413, 106},
		"batch: not a list": {"batch", `{"commands":{}}`, 400, 107},
		"batch: wrong type": {"batch", `{"commands":[{"publish":{"channel":"a","data":1}},{"publish":{"channel":5}}]}`, 400, 107},
		"batch: two in one": {"batch", `{"commands":[{"info":{},"channels":{}}]}`, 400, 107},
		"batch: a string":   {"batch", `{"commands":["info"]}`, 400, 107},
	} {
		t.Run(name, func(t *testing.T) {
			status, _, body := x.send(c.method, c.body)
			if status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			wantJSON(t, name, body, apiErrorJSON(c.code))
		})
	}
	if p := x.topics.take(); len(p) != 0 {
		t.Errorf("a refused request published %v", p)
	}
	x.takeObserved()
	x.send("nosuch", "{}")
	x.send("publish", "{")
	x.send("publish", "{}")
	if status, _, body := x.send("info", ""); status != 200 {
		t.Errorf("info without a body: %d %s", status, body)
	}
	if got, want := x.takeObserved(), []string{"404", "info 0", "publish 107", "publish 400"}; !slices.Equal(got, want) {
		t.Errorf("observed %q, want %q", got, want)
	}
	resp, err := x.client.Get(x.url + "/api/publish")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 {
		t.Errorf("GET: status %d, want 405", resp.StatusCode)
	}
}

func TestAPIPublish(t *testing.T) {
	x := newAPITest(t)
	b64 := base64.StdEncoding.EncodeToString([]byte{0, 1, 255})
	for name, c := range map[string]struct {
		body string
		data string // empty: fails with code
		code int
	}{
		"object":           {`{"channel":"news:a","data":{"b": 1}}`, `{"b": 1}`, 0},
		"string":           {`{"channel":"news:a","data":"x"}`, `"x"`, 0},
		"false":            {`{"channel":"news:a","data":false}`, `false`, 0},
		"line ends":        {"{\"channel\":\"news:a\",\"data\":{\r\n\t\"b\": \"c\\n d\"\n}}", `{"b":"c\n d"}`, 0},
		"bytes":            {`{"channel":"news:a","b64data":"` + b64 + `"}`, "\x00\x01\xff", 0},
		"bytes go first":   {`{"channel":"news:a","data":1,"b64data":"` + b64 + `"}`, "\x00\x01\xff", 0},
		"skip_history":     {`{"channel":"news:a","data":1,"skip_history":true}`, "1", 0},
		"unknown field":    {`{"channel":"news:a","data":1,"later":{"x":1}}`, "1", 0},
		"zeros":            {`{"channel":"news:a","data":1,"idempotency_key":"","delta":false,"version":0}`, "1", 0},
		"no data":          {`{"channel":"news:a"}`, "", 107},
		"null data":        {`{"channel":"news:a","data":null}`, "", 107},
		"no channel":       {`{"data":1}`, "", 107},
		"bad base64":       {`{"channel":"news:a","b64data":"%"}`, "", 107},
		"unknown topic":    {`{"channel":"nosuch:a","data":1}`, "", 102},
		"long key":         {`{"channel":"news:a","data":1,"idempotency_key":"` + strings.Repeat("k", apiMaxKey+1) + `"}`, "", 107},
		"long epoch":       {`{"channel":"news:a","data":1,"version":1,"version_epoch":"` + strings.Repeat("k", apiMaxKey+1) + `"}`, "", 107},
		"negative version": {`{"channel":"news:a","data":1,"version":-1}`, "", 400},
		"nothing":          {`{}`, "", 107},
		"null":             {`null`, "", 107},
	} {
		t.Run(name, func(t *testing.T) {
			x.t = t
			switch {
			case c.code == 400:
				if status, _, _ := x.send("publish", c.body); status != 400 {
					t.Errorf("status %d", status)
				}
			case c.data == "":
				x.fails("publish", c.body, c.code)
			default:
				x.call("publish", c.body, `{"result":{"offset":6,"epoch":"e"}}`)
			}
			got := x.topics.take()
			switch {
			case c.data == "" && len(got) != 0:
				t.Errorf("published %q", got[0].Data)
			case c.data != "" && (len(got) != 1 || got[0].name != "news:a" || string(got[0].Data) != c.data):
				t.Errorf("published %v, want %q once", got, c.data)
			}
		})
	}
	x.t = t
	x.call("publish", `{"channel":"a","data":1,"tags":{"k":"v"}}`, `{"result":{"offset":1,"epoch":"e"}}`)
	if p := x.topics.take(); len(p) != 1 || p[0].Tags["k"] != "v" || p[0].Info != nil {
		t.Errorf("published %+v", p)
	}
	x.topics.publish = func(_ string, done func(topic.Position, error)) { done(topic.Position{}, nil) }
	x.call("publish", `{"channel":"a","data":1}`, `{"result":{}}`)
	x.topics.take()
	// What a publisher asks for reaches the topic, from both methods.
	long := strings.Repeat("k", apiMaxKey)
	for asked, want := range map[string]topic.PublishRequest{
		``:                       {},
		`,"skip_history":true`:   {SkipHistory: true},
		`,"delta":true`:          {Delta: true},
		`,"idempotency_key":"k"`: {IdempotencyKey: "k"},
		`,"version":3`:           {Version: 3},
		`,"version_epoch":"e"`:   {VersionEpoch: "e"},
		`,"skip_history":false,"idempotency_key":"` + long + `","delta":true,"version":18446744073709551615,"version_epoch":"` + long + `"`: {
			IdempotencyKey: long, Delta: true, Version: 1<<64 - 1, VersionEpoch: long},
	} {
		x.call("publish", `{"channel":"a","data":1`+asked+`}`, `{"result":{}}`)
		x.call("broadcast", `{"channels":["a","b"],"data":1`+asked+`}`, `{"result":{"responses":[{"result":{}},{"result":{}}]}}`)
		got := x.topics.take()
		if len(got) != 3 {
			t.Fatalf("%d publications", len(got))
		}
		for _, p := range got {
			if p.request != want {
				t.Errorf("%s: asked for %+v, want %+v", asked, p.request, want)
			}
		}
	}
}

func TestAPIPublishErrors(t *testing.T) {
	x := newAPITest(t)
	for _, c := range []struct {
		err  error
		code int
	}{
		{topic.ErrFull, 111},
		{fmt.Errorf("broker: %w", topic.ErrFull), 111},
		{topic.ErrUnknownTopic, 102},
		{topic.ErrNotAvailable, 108},
		{errors.New("broker: broken"), 100},
	} {
		x.topics.publish = func(_ string, done func(topic.Position, error)) { go done(topic.Position{}, c.err) }
		x.fails("publish", `{"channel":"a","data":1}`, c.code)
	}
	if !strings.Contains(x.log.String(), "broker: broken") {
		t.Error("the broker's error is not in the log")
	}
	x.topics.publish = func(string, func(topic.Position, error)) { panic("boom") }
	x.fails("publish", `{"channel":"a","data":1}`, 100)
	if !strings.Contains(x.log.String(), "boom") {
		t.Error("the panic is not in the log")
	}
}

// A broker that never answers costs its caller the timeout and nobody else
// anything; an answer that comes afterwards is dropped.
func TestAPITimeout(t *testing.T) {
	x := newAPITest(t, func(o *APIOptions) { o.Timeout = 30 * time.Millisecond })
	late := make(chan func(topic.Position, error), 2)
	x.topics.publish = func(name string, done func(topic.Position, error)) {
		if name == "slow" {
			late <- done
			return
		}
		done(topic.Position{}, nil)
	}
	x.fails("publish", `{"channel":"slow","data":1}`, 100)
	x.call("broadcast", `{"channels":["a","slow"],"data":1}`,
		`{"result":{"responses":[{"result":{}},`+apiErrorJSON(100)+`]}}`)
	for range 2 {
		(<-late)(topic.Position{Offset: 1}, nil)
	}
	// What a batch has not begun when the time is over is not begun any more.
	x.call("batch", `{"commands":[{"publish":{"channel":"slow","data":1}},{"publish":{"channel":"a","data":1}}]}`,
		`{"result":{"replies":[`+apiErrorJSON(100)+`,`+apiErrorJSON(100)+`]}}`)
	(<-late)(topic.Position{}, nil)
}

func TestAPICallerGone(t *testing.T) {
	x := newAPITest(t)
	asked, answered := make(chan struct{}), make(chan struct{})
	x.topics.publish = func(string, func(topic.Position, error)) { close(asked) }
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, x.url+"/api/publish",
		strings.NewReader(`{"channel":"a","data":1}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", apiTestKey)
	go func() {
		defer close(answered)
		if resp, err := x.client.Do(req); err == nil {
			resp.Body.Close()
			t.Error("a request that was taken back was answered")
		}
	}()
	<-asked
	cancel()
	<-answered
	// The server's Close, in the cleanup, waits for the handler: it would hang for
	// the 10 s of the timeout if the handler did not see that its caller went.
	start := time.Now()
	t.Cleanup(func() {
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("the handler ended after %v", d)
		}
	})
}

func TestAPIBroadcast(t *testing.T) {
	x := newAPITest(t)
	x.topics.publish = func(name string, done func(topic.Position, error)) {
		if name == "full" {
			done(topic.Position{}, topic.ErrFull)
			return
		}
		go done(topic.Position{Offset: uint64(len(name))}, nil)
	}
	x.call("broadcast", `{"channels":["a","nosuch:b","","full","news:c"],"data":{"x":1},"tags":{"k":"v"}}`,
		`{"result":{"responses":[{"result":{"offset":1}},`+apiErrorJSON(102)+`,`+apiErrorJSON(107)+`,`+
			apiErrorJSON(111)+`,{"result":{"offset":6}}]}}`)
	var names []string
	for _, p := range x.topics.take() {
		names = append(names, p.name)
		if string(p.Data) != `{"x":1}` || p.Tags["k"] != "v" {
			t.Errorf("published %+v", p)
		}
	}
	if want := []string{"a", "full", "news:c"}; !slices.Equal(names, want) {
		t.Errorf("published to %q, want %q", names, want)
	}
	x.fails("broadcast", `{"channels":[],"data":1}`, 107)
	x.fails("broadcast", `{"data":1}`, 107)
	x.fails("broadcast", `{"channels":["a"]}`, 107)
	x.fails("broadcast", `{"channels":["a"],"data":1,"idempotency_key":"`+strings.Repeat("k", apiMaxKey+1)+`"}`, 107)
	x.fails("broadcast", `{"channels":[`+strings.Repeat(`"a",`, apiMaxItems)+`"a"],"data":1}`, 106)
	if p := x.topics.take(); len(p) != 0 {
		t.Errorf("refused broadcasts published %d times", len(p))
	}
}

func TestAPIBatch(t *testing.T) {
	for _, parallel := range []string{"false", "true"} {
		t.Run("parallel "+parallel, func(t *testing.T) {
			x := newAPITest(t)
			x.call("batch", `{"parallel":`+parallel+`,"commands":[
				{"publish":{"channel":"a","data":1}},
				{"publish":{"channel":"nosuch:a","data":1},"info":null},
				{"broadcast":{"channels":["b"],"data":2}},
				{"nosuch":{}}, {}, {"batch":{"commands":[]}},
				{"presence":{"channel":"a"}},
				{"unsubscribe":{"user":"bob","channel":"a"}},
				{"channels":{"pattern":"*"}}]}`,
				`{"result":{"replies":[
				{"publish":{"offset":1,"epoch":"e"}},`+apiErrorJSON(102)+`,
				{"broadcast":{"responses":[{"result":{"offset":1,"epoch":"e"}}]}},`+
					apiErrorJSON(104)+`,`+apiErrorJSON(104)+`,`+apiErrorJSON(104)+`,`+apiErrorJSON(108)+`,
				{"unsubscribe":{}},
				{"channels":{"channels":{"news:*":{"num_clients":3},"a":{"num_clients":1}}}}]}}`)
			want := []string{"104", "104", "104", "batch 0", "broadcast 0", "channels 0", "presence 108",
				"publish 0", "publish 102", "unsubscribe 0"}
			if got := x.takeObserved(); !slices.Equal(got, want) {
				t.Errorf("observed %q, want %q", got, want)
			}
			x.call("batch", `{"parallel":`+parallel+`,"commands":[]}`, `{"result":{"replies":[]}}`)
			x.fails("batch", `{"parallel":`+parallel+`,"commands":[`+strings.Repeat(`{},`, apiMaxItems)+`{}]}`, 106)
		})
	}
}

func TestAPIBatchOrder(t *testing.T) {
	x := newAPITest(t)
	var commands []string
	for i := range 200 {
		commands = append(commands, fmt.Sprintf(`{"publish":{"channel":"a","data":%d}}`, i))
	}
	if status, _, _ := x.send("batch", `{"commands":[`+strings.Join(commands, ",")+`]}`); status != 200 {
		t.Fatalf("status %d", status)
	}
	for i, p := range x.topics.take() {
		if string(p.Data) != fmt.Sprint(i) {
			t.Fatalf("publication %d is %s", i, p.Data)
		}
	}
}

// A parallel batch runs on goroutines of its own, where a panic would end the
// process.
func TestAPIBatchPanic(t *testing.T) {
	x := newAPITest(t)
	x.topics.publish = func(name string, done func(topic.Position, error)) {
		if name == "bad" {
			panic("boom")
		}
		done(topic.Position{}, nil)
	}
	x.call("batch", `{"parallel":true,"commands":[{"publish":{"channel":"bad","data":1}},{"publish":{"channel":"a","data":1}}]}`,
		`{"result":{"replies":[`+apiErrorJSON(100)+`,{"publish":{}}]}}`)
}

func TestAPIInfo(t *testing.T) {
	x := newAPITest(t)
	_, _, body := x.send("info", "{}")
	for _, want := range []string{
		`"uid":"000123456789abcd"`, `"name":"here"`, `"version":"1.2.3"`, `"num_clients":4`, `"num_users":3`,
		`"num_subs":9`, `"num_channels":7`, `"uptime":3600`, `"process":{"cpu":`, `"rss":`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is not in %s", want, body)
		}
	}
}

func TestAPIUsage(t *testing.T) {
	var u apiUsage
	u.read()
	u.at = u.at.Add(-2 * apiUsageInterval)
	u.cpu -= apiUsageInterval
	if got := u.read().CPU; got < 45 || got > 60 {
		t.Errorf("a second of work in two = %v %%, want 50", got)
	}
	if a, b := u.read().CPU, u.read().CPU; a != b {
		t.Errorf("within the interval: %v and %v", a, b)
	}
}

func TestAPIChannels(t *testing.T) {
	x := newAPITest(t)
	x.call("channels", `{"pattern":"c*"}`, `{"result":{"channels":{"news:c*":{"num_clients":3},"a":{"num_clients":1}}}}`)
	x.call("channels", "", `{"result":{"channels":{"news:":{"num_clients":3},"a":{"num_clients":1}}}}`)
	x.fails("channels", `{"pattern":"["}`, 107)
}

// With the real topics behind it.
func TestAPIOverTopics(t *testing.T) {
	topics, err := topic.New(topic.Options{Namespaces: []topic.NamespaceOptions{{Name: "news"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer topics.Close()
	x := newAPITest(t, func(o *APIOptions) { o.Topics = topics })
	joined := make(chan error, 1)
	if !x.loops[0].Reserve(1) {
		t.Fatal("no room")
	}
	x.loops[0].Post(1, x.id(3), func(s *session.Session) {
		joined <- topics.Subscribe(s, "news:a", topic.SubscribeOptions{Server: true})
	})
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	x.call("channels", `{"pattern":"news:*"}`, `{"result":{"channels":{"news:a":{"num_clients":1}}}}`)
	x.call("publish", `{"channel":"news:nobody","data":1}`, `{"result":{}}`)
	x.fails("publish", `{"channel":"nosuch:a","data":1}`, 102)
	x.fails("publish", `{"channel":"`+strings.Repeat("a", 300)+`","data":1}`, 102)
	for _, method := range []string{"presence", "presence_stats", "history", "history_remove"} {
		x.fails(method, `{"channel":"news:a"}`, 108)
		x.fails(method, `{"channel":"nosuch:a"}`, 102)
		x.fails(method, `{}`, 107)
	}
	x.fails("publish", `{"channel":"news:a","data":1,"version":1}`, 108)
}

func TestAPIManyCallers(t *testing.T) {
	x := newAPITest(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 20 {
				switch i % 4 {
				case 0:
					x.call("publish", `{"channel":"a","data":1}`, `{"result":{"offset":1,"epoch":"e"}}`)
				case 1:
					x.call("subscribe", `{"user":"alice","channel":"a"}`, `{"result":{}}`)
				case 2:
					x.call("batch", `{"parallel":true,"commands":[{"publish":{"channel":"a","data":1}},{"disconnect":{"user":"bob"}}]}`,
						`{"result":{"replies":[{"publish":{"offset":1,"epoch":"e"}},{"disconnect":{}}]}}`)
				case 3:
					x.send("info", "{}")
				}
			}
		})
	}
	wg.Wait()
	if n := len(x.topics.take()); n != 160 {
		t.Errorf("%d publications, want 160", n)
	}
	if n := len(x.sessions.take()); n != 160 {
		t.Errorf("%d subscriptions, want 160", n)
	}
	if n := len(x.loops.takeCloses()); n != 80 {
		t.Errorf("%d closes, want 80", n)
	}
}

// Whatever comes, the answer is JSON with a status of the documented ones, and
// what is published as JSON fits into one line of UTF-8.
func FuzzAPIRequest(f *testing.F) {
	for _, seed := range []struct{ method, body string }{
		{"publish", `{"channel":"a","data":{"x":[1,"\n"]},"tags":{"k":"v"}}`},
		{"publish", "{\"channel\":\"a\",\"data\":{\n\"x\":1\r\n}}"},
		{"broadcast", `{"channels":["a","nosuch:b"],"data":1}`},
		{"batch", `{"commands":[{"publish":{"channel":"a","data":1}},{"info":{}},{}],"parallel":true}`},
		{"subscribe", `{"user":"u","channel":"a","override":{"presence":{"value":true}}}`},
		{"disconnect", `{"user":"u","disconnect":{"code":4000,"reason":"x"}}`},
		{"subscribe", `{"user":"u","channel":"a","recover_since":{"offset":1,"epoch":"e"},"override":{"force_recovery":{"value":true}}}`},
		{"publish", `{"channel":"a","data":1,"idempotency_key":"k","version":3,"version_epoch":"e","delta":true,"skip_history":true}`},
		{"history", `{"channel":"news:a","limit":-1,"reverse":true,"since":{"offset":1,"epoch":"e"}}`},
		{"history_remove", `{"channel":"news:a"}`},
		{"presence", `{"channel":"news:a"}`},
		{"presence_stats", `{"channel":"news:a"}`},
		{"refresh", `{"client":"00000000-0000-8000-8000-000000000000","expire_at":1}`},
		{"channels", `{"pattern":"*"}`},
		{"nosuch", `null`},
	} {
		f.Add(seed.method, []byte(seed.body))
	}
	topics := &apiFakeTopics{publish: func(_ string, done func(topic.Position, error)) { done(topic.Position{}, nil) }}
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	RegisterAPI(e, APIOptions{
		Key: apiTestKey, MaxBody: 1 << 16, Loops: apiFakeLoops{}, Registry: session.NewRegistry(), Topics: topics,
		Sessions: &apiFakeSessions{}, Logger: slog.New(slog.DiscardHandler),
	})
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		req := httptest.NewRequest(http.MethodPost, "/api/x", bytes.NewReader(body))
		req.URL.Path = "/api/" + strings.ReplaceAll(method, "/", "")
		req.Header.Set("X-API-Key", apiTestKey)
		w := httptest.NewRecorder()
		e.ServeHTTP(w, req)
		if req.URL.Path == "/api/" {
			return
		}
		if !slices.Contains([]int{200, 400, 404, 413}, w.Code) || !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %q: status %d, body %q", method, body, w.Code, w.Body)
		}
		if w.Code == 200 && strings.Contains(w.Body.String(), `"code":100,`) {
			t.Fatalf("%s %q: %s", method, body, w.Body)
		}
		for _, p := range topics.take() {
			if json.Valid(p.Data) && !bytes.Contains(body, []byte("b64data")) &&
				(bytes.ContainsAny(p.Data, "\r\n") || !utf8.Valid(p.Data)) {
				t.Fatalf("published %q", p.Data)
			}
		}
	})
}
