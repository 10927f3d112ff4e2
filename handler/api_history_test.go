package handler

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"perch/session"
	"perch/topic"
)

func TestAPIHistory(t *testing.T) {
	x := newAPITest(t)
	info := &topic.ClientInfo{User: "u", Client: "c", ConnInfo: []byte(`{"a":1}`), ChanInfo: []byte("\xff")}
	pubs := []*topic.Publication{
		{Data: []byte(`{"x":1}`), Offset: 3, Tags: map[string]string{"k": "v"}, Info: info},
		{Data: []byte("\xff"), Offset: 4},
	}
	x.topics.read = func(done func([]*topic.Publication, topic.Position, error)) {
		go done(pubs, topic.Position{Offset: 4, Epoch: "e"}, nil)
	}
	const found = `{"result":{"offset":4,"epoch":"e","publications":[` +
		`{"data":{"x":1},"offset":3,"tags":{"k":"v"},"info":{"user":"u","client":"c","conn_info":{"a":1}}},{"b64data":"/w==","offset":4}]}}`
	for name, c := range map[string]struct {
		body string
		want topic.Filter
		code int
	}{
		"plain":               {`"channel":"a"`, topic.Filter{}, 0},
		"limit":               {`"channel":"news:a","limit":5`, topic.Filter{Limit: 5}, 0},
		"all":                 {`"channel":"a","limit":-1,"reverse":true`, topic.Filter{Limit: -1, Reverse: true}, 0},
		"since":               {`"channel":"a","limit":1,"since":{"offset":7,"epoch":"e"}`, topic.Filter{Limit: 1, Since: &topic.Position{Offset: 7, Epoch: "e"}}, 0},
		"since the beginning": {`"channel":"a","since":{"offset":0,"epoch":"e"}`, topic.Filter{Since: &topic.Position{Epoch: "e"}}, 0},
		"null":                {`"channel":"a","since":null`, topic.Filter{}, 0},
		"back from nothing":   {`"channel":"a","reverse":true,"since":{"epoch":"e"}`, topic.Filter{}, 107},
		"no channel":          {`"limit":1`, topic.Filter{}, 107},
		"unknown topic":       {`"channel":"nosuch:a"`, topic.Filter{}, 102},
	} {
		t.Run(name, func(t *testing.T) {
			x.t, x.topics.filters = t, nil
			if c.code != 0 {
				x.fails("history", `{`+c.body+`}`, c.code)
				if len(x.topics.filters) != 0 {
					t.Errorf("read %+v", x.topics.filters)
				}
				return
			}
			x.call("history", `{`+c.body+`}`, found)
			if len(x.topics.filters) != 1 || !reflect.DeepEqual(x.topics.filters[0], c.want) {
				t.Errorf("read %+v", x.topics.filters)
			}
		})
	}
	x.t = t
	if status, _, _ := x.send("history", `{"channel":"a","limit":2147483648}`); status != 400 {
		t.Errorf("a limit beyond its type: %d", status)
	}
	x.topics.read = func(done func([]*topic.Publication, topic.Position, error)) {
		done(nil, topic.Position{Epoch: "e"}, nil)
	}
	x.call("history", `{"channel":"a"}`, `{"result":{"offset":0,"epoch":"e","publications":[]}}`)
}

// readers are the methods that ask a topic something.
var readers = []string{"history", "history_remove", "presence", "presence_stats"}

func TestAPIReadErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{fmt.Errorf("broker: %w", topic.ErrFull), 111}, {topic.ErrNotAvailable, 108}, {topic.ErrUnrecoverable, 112}, {errors.New("broker: broken"), 100},
	} {
		x := newAPITest(t)
		x.topics.fail = c.err
		x.topics.read = func(done func([]*topic.Publication, topic.Position, error)) { done(nil, topic.Position{}, c.err) }
		for _, method := range readers {
			x.fails(method, `{"channel":"news:a"}`, c.code)
		}
		if logged := strings.Count(x.log.String(), "broker: broken"); c.code == 100 && logged != len(readers) {
			t.Errorf("%d errors in the log", logged)
		}
	}
	x := newAPITest(t)
	x.call("history_remove", `{"channel":"news:a"}`, `{"result":{}}`)
	if !slices.Equal(x.topics.removed, []string{"news:a"}) {
		t.Errorf("removed %q", x.topics.removed)
	}
	for _, method := range readers {
		x.fails(method, `{"channel":"nosuch:a"}`, 102)
		x.fails(method, `{"channel":""}`, 107)
		x.fails(method, `{}`, 107)
	}
	x.fails("presence", `{"channel":"a"}`, 108) // a namespace without it
	x.fails("presence_stats", `{"channel":"a"}`, 108)
}

// A broker that never answers costs the timeout.
func TestAPIReadTimeout(t *testing.T) {
	x := newAPITest(t, func(o *APIOptions) { o.Timeout = 20 * time.Millisecond })
	late := make(chan func([]*topic.Publication, topic.Position, error), 1)
	x.topics.read = func(done func([]*topic.Publication, topic.Position, error)) { late <- done }
	x.fails("history", `{"channel":"a"}`, 100)
	(<-late)(nil, topic.Position{}, nil)
}

func TestAPIPresence(t *testing.T) {
	x := newAPITest(t)
	x.call("presence", `{"channel":"news:a"}`, `{"result":{"presence":{}}}`)
	x.call("presence_stats", `{"channel":"news:a"}`, `{"result":{"num_clients":0,"num_users":0}}`)
	x.topics.present = []topic.ClientInfo{
		{User: "ann", Client: "1", ConnInfo: []byte(`{"a":1}`), ChanInfo: []byte(`[2]`)},
		{User: "ann", Client: "2", ConnInfo: []byte("\xff")},
		{Client: "3"},
		{Client: "4"},
		{Client: "4"}, // one may be seen twice while others go
	}
	x.call("presence", `{"channel":"news:a"}`, `{"result":{"presence":{
		"1":{"user":"ann","client":"1","conn_info":{"a":1},"chan_info":[2]},"2":{"user":"ann","client":"2"},
		"3":{"user":"","client":"3"},"4":{"user":"","client":"4"}}}}`)
	x.call("presence_stats", `{"channel":"news:a"}`, `{"result":{"num_clients":4,"num_users":2}}`)
}

// In the transport mode an error is an HTTP status, with the same body.
func TestAPIErrorMode(t *testing.T) {
	x := newAPITest(t)
	for mode, transport := range map[string]bool{"transport": true, "Transport": true, "reply": false, "": false} {
		for err, want := range map[error]int{
			nil: 200, topic.ErrUnknownTopic: 404, topic.ErrTooMany: 400, topic.ErrNotAvailable: 501, topic.ErrFull: 429,
			topic.ErrUnrecoverable: 416, errors.New("x"): 500,
		} {
			x.topics.publish = func(_ string, done func(topic.Position, error)) { done(topic.Position{}, err) }
			plain, _, body := x.send("publish", `{"channel":"a","data":1}`)
			if plain != 200 {
				t.Errorf("without the header: %d", plain)
			}
			status, _, same := x.send("publish", `{"channel":"a","data":1}`, "X-API-Key", apiTestKey, "X-Centrifugo-Error-Mode", mode)
			if !transport {
				want = 200
			}
			if status != want || same != body {
				t.Errorf("mode %q, %v: status %d, want %d, %s", mode, err, status, want, same)
			}
		}
	}
	headers := []string{"X-API-Key", apiTestKey, apiErrorMode, "transport"}
	for body, want := range map[string]int{
		`{"channel":"nosuch:a","data":1}`: 404, `{"channel":"a"}`: 400, `{`: 400,
	} {
		if status, _, _ := x.send("publish", body, headers...); status != want {
			t.Errorf("%s: %d, want %d", body, status, want)
		}
	}
	if status, _, _ := x.send("subscribe", `{"user":"bob","channel":"a","expire_at":1}`, headers...); status != 400 {
		t.Errorf("expired: %d", status)
	}
	// The replies of a batch have no status of their own.
	x.topics.publish = func(_ string, done func(topic.Position, error)) { done(topic.Position{}, topic.ErrFull) }
	status, _, body := x.send("batch", `{"commands":[{"publish":{"channel":"a","data":1}}]}`, headers...)
	if status != http.StatusOK {
		t.Errorf("batch: %d", status)
	}
	wantJSON(t, "batch", body, `{"result":{"replies":[`+apiErrorJSON(111)+`]}}`)
}

// With the real topics behind it.
func TestAPIStreams(t *testing.T) {
	topics, err := topic.New(topic.Options{
		Node: 0x0123456789abcd,
		Namespaces: []topic.NamespaceOptions{
			{Name: "kept", HistorySize: 3, HistoryTTL: time.Hour, Presence: true}, {Name: "bare"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer topics.Close()
	x := newAPITest(t, func(o *APIOptions) { o.Topics = topics })
	ask := func(method, body string) string {
		t.Helper()
		_, _, got := x.send(method, body)
		return strings.TrimSpace(got)
	}
	first := ask("publish", `{"channel":"kept:a","data":1,"tags":{"k":"v"}}`)
	epochOf := func(got string) string {
		t.Helper()
		_, rest, ok := strings.Cut(got, `"epoch":"`)
		ep, _, _ := strings.Cut(rest, `"`)
		if !ok || len(ep) == 0 {
			t.Fatalf("no epoch in %s", got)
		}
		return ep
	}
	ep := epochOf(first)
	at := func(offset int) string { return fmt.Sprintf(`{"result":{"offset":%d,"epoch":%q}}`, offset, ep) }
	same := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	same("first", first, at(1))
	same("second", ask("publish", `{"channel":"kept:a","data":2}`), at(2))
	// The same key, the same answer; another topic or key is another publication.
	same("key", ask("publish", `{"channel":"kept:a","data":3,"idempotency_key":"k"}`), at(3))
	same("key again", ask("publish", `{"channel":"kept:a","data":4,"idempotency_key":"k"}`), at(3))
	same("another key", ask("publish", `{"channel":"kept:a","data":4,"idempotency_key":"l"}`), at(4))
	b := ask("broadcast", `{"channels":["kept:a","kept:b"],"data":5,"idempotency_key":"k"}`)
	same("broadcast", b, fmt.Sprintf(`{"result":{"responses":[{"result":{"offset":3,"epoch":%q}},{"result":{"offset":1,"epoch":%q}}]}}`, ep, epochOf(b[strings.LastIndex(b, `{"offset"`):])))
	same("skipped", ask("publish", `{"channel":"kept:a","data":6,"skip_history":true}`), `{"result":{}}`)
	same("history", ask("history", `{"channel":"kept:a","limit":-1}`), fmt.Sprintf(
		`{"result":{"publications":[{"data":2,"offset":2},{"data":3,"offset":3},{"data":4,"offset":4}],"epoch":%q,"offset":4}}`, ep))
	same("since", ask("history", fmt.Sprintf(`{"channel":"kept:a","limit":1,"since":{"offset":3,"epoch":%q},"reverse":true}`, ep)), fmt.Sprintf(
		`{"result":{"publications":[{"data":2,"offset":2}],"epoch":%q,"offset":4}}`, ep))
	x.fails("history", `{"channel":"kept:a","since":{"offset":3,"epoch":"xx"}}`, 112)

	// An older state never replaces a newer one.
	same("version 5", ask("publish", `{"channel":"kept:a","data":50,"version":5,"version_epoch":"v"}`), at(5))
	same("version 5 again", ask("publish", `{"channel":"kept:a","data":51,"version":5,"version_epoch":"v"}`), at(5))
	same("version 4", ask("publish", `{"channel":"kept:a","data":52,"version":4}`), at(5))
	same("version 4 of another", ask("publish", `{"channel":"kept:a","data":53,"version":4,"version_epoch":"w"}`), at(6))
	x.fails("publish", `{"channel":"bare:a","data":1,"version":1}`, 108)
	x.fails("publish", `{"channel":"kept:a","data":1,"version":1,"skip_history":true}`, 108)

	x.call("history_remove", `{"channel":"kept:a"}`, `{"result":{}}`)
	same("removed", ask("history", `{"channel":"kept:a","limit":-1}`), fmt.Sprintf(`{"result":{"publications":[],"epoch":%q,"offset":6}}`, ep))
	same("goes on", ask("publish", `{"channel":"kept:a","data":7}`), at(7))
	x.call("publish", `{"channel":"bare:a","data":1,"idempotency_key":"k"}`, `{"result":{}}`)
	x.fails("history", `{"channel":"bare:a"}`, 108)
	x.fails("history_remove", `{"channel":"bare:a"}`, 108)

	// Who is there, on both loops.
	joined := make(chan error, 3)
	for _, slot := range []int{1, 2, 4} {
		for _, l := range x.loops {
			if l.sessions[x.id(slot)] != nil && l.Reserve(1) {
				l.Post(1, x.id(slot), func(s *session.Session) {
					joined <- topics.Subscribe(s, "kept:a", topic.SubscribeOptions{Info: []byte(`{"i":1}`)})
				})
			}
		}
		if err := <-joined; err != nil {
			t.Fatal(err)
		}
	}
	client := func(slot int, user string) string {
		return fmt.Sprintf(`%q:{"user":%q,"client":%q,"chan_info":{"i":1}}`, x.clientOf(slot), user, x.clientOf(slot))
	}
	x.call("presence", `{"channel":"kept:a"}`, `{"result":{"presence":{`+client(1, "alice")+`,`+client(2, "alice")+`,`+client(4, "")+`}}}`)
	x.call("presence_stats", `{"channel":"kept:a"}`, `{"result":{"num_clients":3,"num_users":2}}`)
	x.call("presence", `{"channel":"kept:b"}`, `{"result":{"presence":{}}}`)
	x.fails("presence", `{"channel":"bare:a"}`, 108)
	for _, parallel := range []string{"false", "true"} {
		x.call("batch", `{"parallel":`+parallel+`,"commands":[{"presence_stats":{"channel":"kept:a"}},{"history":{"channel":"bare:a"}},{"history_remove":{"channel":"kept:b"}}]}`,
			`{"result":{"replies":[{"presence_stats":{"num_clients":3,"num_users":2}},`+apiErrorJSON(108)+`,{"history_remove":{}}]}}`)
	}
	x.loops[1].room = 0
	x.fails("presence", `{"channel":"kept:a"}`, 111)
}
