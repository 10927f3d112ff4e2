package handler

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

// slots are the sessions that were acted on, in order.
func slots(acts []apiFakeAct) []int {
	got := []int{}
	for _, a := range acts {
		got = append(got, int(a.id.Slot()))
	}
	return got
}

func TestAPITargets(t *testing.T) {
	x := newAPITest(t)
	alice1, bob, anonymous, carol := x.clientOf(1), x.clientOf(3), x.clientOf(4), x.clientOf(5)
	gone := x.node.ClientID(session.MakeID(0, 1, 1))
	foreign := (x.node + 1).ClientID(x.id(1))
	noLoop := x.node.ClientID(session.MakeID(77, 1, 1))
	for name, c := range map[string]struct {
		target string
		want   []int
	}{
		"user":                     {`"user":"alice"`, []int{1, 2}},
		"another user":             {`"user":"bob"`, []int{3}},
		"nobody":                   {`"user":"nobody"`, []int{}},
		"not connected":            {`"user":"carol"`, []int{}},
		"client":                   {`"client":"` + alice1 + `"`, []int{1}},
		"anonymous client":         {`"client":"` + anonymous + `"`, []int{4}},
		"client not connected":     {`"client":"` + carol + `"`, []int{}},
		"session":                  {`"session":"` + bob + `"`, []int{3}},
		"client is session":        {`"client":"` + bob + `","session":"` + bob + `"`, []int{3}},
		"client is not session":    {`"client":"` + bob + `","session":"` + alice1 + `"`, []int{}},
		"user's client":            {`"user":"alice","client":"` + alice1 + `"`, []int{1}},
		"user's session":           {`"user":"alice","session":"` + alice1 + `"`, []int{1}},
		"another's client":         {`"user":"alice","client":"` + bob + `"`, []int{}},
		"client gone":              {`"client":"` + gone + `"`, []int{}},
		"client of another node":   {`"client":"` + foreign + `"`, []int{}},
		"loop that does not exist": {`"client":"` + noLoop + `"`, []int{}},
		"no client id":             {`"client":"x"`, []int{}},
	} {
		t.Run(name, func(t *testing.T) {
			x.t = t
			for _, method := range []string{"subscribe", "unsubscribe"} {
				x.call(method, `{"channel":"a",`+c.target+`}`, `{"result":{}}`)
				if got := slots(x.sessions.take()); !slices.Equal(got, c.want) {
					t.Errorf("%s of %v, want %v", method, got, c.want)
				}
			}
			x.call("refresh", `{`+c.target+`}`, `{"result":{}}`)
			if got := slots(x.sessions.take()); !slices.Equal(got, c.want) {
				t.Errorf("refresh of %v, want %v", got, c.want)
			}
		})
	}
	x.t = t
	for _, method := range []string{"subscribe", "unsubscribe", "disconnect", "refresh"} {
		x.fails(method, `{"channel":"a"}`, 107)
	}
}

func TestAPISubscribe(t *testing.T) {
	x := newAPITest(t)
	later := time.Now().Add(time.Hour).Unix()
	for name, c := range map[string]struct {
		body string // behind the target
		want APISubscription
		code int
	}{
		"plain":         {`"channel":"news:a"`, APISubscription{Topic: "news:a"}, 0},
		"info and data": {`"channel":"a","info":{"i":1},"data":[1]`, APISubscription{Topic: "a", Info: []byte(`{"i":1}`), Data: []byte(`[1]`)}, 0},
		"base64":        {`"channel":"a","b64info":"e30=","b64data":"MQ=="`, APISubscription{Topic: "a", Info: []byte(`{}`), Data: []byte(`1`)}, 0},
		"nulls":         {`"channel":"a","info":null,"data":null,"recover_since":null,"override":null`, APISubscription{Topic: "a"}, 0},
		"expiry":        {`"channel":"a","expire_at":` + fmt.Sprint(later), APISubscription{Topic: "a", ExpireAt: later}, 0},
		"override": {`"channel":"a","override":{"presence":{"value":false},"join_leave":null,"force_recovery":{"value":true}}`,
			APISubscription{Topic: "a", Override: auth.Override{Presence: new(false), ForceRecovery: new(true)}}, 0},
		"override of all": {`"channel":"a","override":{"presence":{"value":true},"join_leave":{"value":true},"force_push_join_leave":{"value":false},"force_recovery":{},"force_positioning":{"value":true}}`,
			APISubscription{Topic: "a", Override: auth.Override{Presence: new(true), JoinLeave: new(true), ForcePushJoinLeave: new(false), ForceRecovery: new(false), ForcePositioning: new(true)}}, 0},
		"recovery":        {`"channel":"a","recover_since":{"offset":1,"epoch":"e"}`, APISubscription{Topic: "a", Since: &topic.Position{Offset: 1, Epoch: "e"}}, 0},
		"from the start":  {`"channel":"a","recover_since":{}`, APISubscription{Topic: "a", Since: &topic.Position{}}, 0},
		"no channel":      {`"data":1`, APISubscription{}, 107},
		"unknown topic":   {`"channel":"nosuch:a"`, APISubscription{}, 102},
		"bad info":        {`"channel":"a","b64info":"%"`, APISubscription{}, 107},
		"bad data":        {`"channel":"a","b64data":"%"`, APISubscription{}, 107},
		"expired":         {`"channel":"a","expire_at":1000`, APISubscription{}, 110},
		"negative expiry": {`"channel":"a","expire_at":-1`, APISubscription{}, 107},
	} {
		t.Run(name, func(t *testing.T) {
			x.t = t
			if c.code != 0 {
				x.fails("subscribe", `{"user":"bob",`+c.body+`}`, c.code)
				if got := x.sessions.take(); len(got) != 0 {
					t.Errorf("done: %v", got)
				}
				return
			}
			x.call("subscribe", `{"user":"bob",`+c.body+`}`, `{"result":{}}`)
			if got := x.sessions.take(); len(got) != 1 || !reflect.DeepEqual(got[0].what, c.want) {
				t.Errorf("done: %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestAPISessionErrors(t *testing.T) {
	x := newAPITest(t)
	for _, c := range []struct {
		err  error
		code int
	}{
		{topic.ErrTooMany, 106}, {topic.ErrUnknownTopic, 102}, {topic.ErrNotAvailable, 108}, {topic.ErrFull, 111},
		{errors.New("handler: broken"), 100},
	} {
		// One session of several fails: the others are done all the same.
		x.sessions.fail = func(s *session.Session) error {
			if s.ID().Slot() == 1 {
				return fmt.Errorf("subscribe: %w", c.err)
			}
			return nil
		}
		for _, method := range []string{"subscribe", "unsubscribe", "refresh"} {
			x.fails(method, `{"user":"alice","channel":"a"}`, c.code)
			if got := slots(x.sessions.take()); !slices.Equal(got, []int{1, 2}) {
				t.Errorf("%s: sessions %v", method, got)
			}
		}
	}
	x.sessions.fail = func(*session.Session) error { return topic.ErrAlreadySubscribed }
	x.call("subscribe", `{"user":"alice","channel":"a"}`, `{"result":{}}`)

	x.sessions.fail = func(*session.Session) error { panic("boom") }
	start := time.Now()
	x.fails("subscribe", `{"user":"alice","channel":"a"}`, 100)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("a panic on the loop kept the caller waiting for %v", d)
	}
}

// A full inbox refuses the call as a whole: no session of it is touched, and no
// room is kept.
func TestAPIInboxFull(t *testing.T) {
	x := newAPITest(t)
	x.loops[1].room = 0
	for _, method := range []string{"subscribe", "unsubscribe", "refresh"} {
		x.fails(method, `{"user":"alice","channel":"a"}`, 111)
		if got := x.sessions.take(); len(got) != 0 {
			t.Errorf("%s: done %v", method, got)
		}
	}
	for i, l := range x.loops {
		if used := l.inUse(); used != 0 {
			t.Errorf("loop %d keeps %d bytes", i, used)
		}
	}
	x.call("subscribe", `{"user":"bob","channel":"a"}`, `{"result":{}}`)
	// A close needs no room.
	x.call("disconnect", `{"user":"alice"}`, `{"result":{}}`)
	x.call("refresh", `{"user":"alice","expired":true}`, `{"result":{}}`)
	if got := len(x.loops.takeCloses()); got != 4 {
		t.Errorf("%d closes, want 4", got)
	}
}

// What a subscription carries counts in the inbox.
func TestAPIRoomCountsContent(t *testing.T) {
	x := newAPITest(t)
	x.loops[0].room = session.PostOverhead + 1000
	x.call("subscribe", `{"user":"bob","channel":"a","data":"`+strings.Repeat("x", 900)+`"}`, `{"result":{}}`)
	x.fails("subscribe", `{"user":"bob","channel":"a","data":"`+strings.Repeat("x", 1000)+`"}`, 111)
}

// A user may have more sessions than an inbox has room for posts.
func TestAPIWaves(t *testing.T) {
	x := newAPITest(t)
	n := 2*apiWave + 100
	for i := range n {
		x.add(100+i, 0, "many")
	}
	x.loops[0].room = apiWave * (session.PostOverhead + 1)
	x.call("subscribe", `{"user":"many","channel":"a"}`, `{"result":{}}`)
	got := slots(x.sessions.take())
	if len(got) != n || len(slices.Compact(got)) != n {
		t.Errorf("%d sessions, want %d", len(got), n)
	}
}

func TestAPILoopStuck(t *testing.T) {
	x := newAPITest(t, func(o *APIOptions) { o.Timeout = 50 * time.Millisecond })
	stuck := make(chan struct{})
	x.loops[0].queue <- func() { <-stuck }
	defer close(stuck)
	x.fails("subscribe", `{"user":"bob","channel":"a"}`, 100)
	if log := x.log.String(); !strings.Contains(log, errAPIUnanswered.Error()) {
		t.Errorf("nothing of it in the log:\n%s", log)
	}
}

func TestAPIDisconnect(t *testing.T) {
	x := newAPITest(t)
	type end struct {
		slot   int
		reason session.Reason
		code   uint16
		text   string
	}
	forced := func(slots ...int) []end {
		var e []end
		for _, s := range slots {
			e = append(e, end{s, session.ReasonForced, 3503, "force disconnect"})
		}
		return e
	}
	long := strings.Repeat("x", 123)
	for name, c := range map[string]struct {
		body string
		want []end
		code int
	}{
		"user":               {`"user":"alice"`, forced(1, 2), 0},
		"client":             {`"client":"` + x.clientOf(2) + `"`, forced(2), 0},
		"not connected yet":  {`"user":"carol"`, forced(5), 0},
		"nobody":             {`"user":"nobody"`, nil, 0},
		"whitelist":          {`"user":"alice","whitelist":["` + x.clientOf(1) + `","x"]`, forced(2), 0},
		"whitelisted client": {`"client":"` + x.clientOf(1) + `","whitelist":["` + x.clientOf(1) + `"]`, nil, 0},
		"own code":           {`"user":"bob","disconnect":{"code":4501,"reason":"bye"}`, []end{{3, session.ReasonCustom, 4501, "bye"}}, 0},
		"known code":         {`"user":"bob","disconnect":{"code":3500,"reason":"bye"}`, []end{{3, session.ReasonInvalidToken, 3500, "bye"}}, 0},
		"least code":         {`"user":"bob","disconnect":{"code":3000}`, []end{{3, session.ReasonCustom, 3000, ""}}, 0},
		"greatest code":      {`"user":"bob","disconnect":{"code":4999,"reason":"` + long + `"}`, []end{{3, session.ReasonCustom, 4999, long}}, 0},
		"null":               {`"user":"bob","disconnect":null`, forced(3), 0},
		"no code":            {`"user":"bob","disconnect":{"reason":"bye"}`, nil, 107},
		"code too small":     {`"user":"bob","disconnect":{"code":1000}`, nil, 107},
		"code too great":     {`"user":"bob","disconnect":{"code":5000}`, nil, 107},
		"code over 16 bits":  {`"user":"bob","disconnect":{"code":69039}`, nil, 107},
		"reason too long":    {`"user":"bob","disconnect":{"code":4000,"reason":"` + long + `x"}`, nil, 107},
	} {
		t.Run(name, func(t *testing.T) {
			x.t = t
			if c.code != 0 {
				x.fails("disconnect", `{`+c.body+`}`, c.code)
			} else {
				x.call("disconnect", `{`+c.body+`}`, `{"result":{}}`)
			}
			var got []end
			for _, e := range x.loops.takeCloses() {
				got = append(got, end{int(e.id.Slot()), e.reason, e.code, e.text})
			}
			slices.SortFunc(got, func(a, b end) int { return a.slot - b.slot })
			if !slices.Equal(got, c.want) {
				t.Errorf("closed %v, want %v", got, c.want)
			}
		})
	}
}

func TestAPIRefresh(t *testing.T) {
	x := newAPITest(t)
	later := time.Now().Add(time.Hour).Unix()
	x.call("refresh", fmt.Sprintf(`{"user":"bob","expire_at":%d,"info":{"a":1}}`, later), `{"result":{}}`)
	x.call("refresh", `{"user":"bob"}`, `{"result":{}}`)
	want := []any{APIRefresh{later, []byte(`{"a":1}`)}, APIRefresh{}}
	for i, act := range x.sessions.take() {
		if !reflect.DeepEqual(act.what, want[i]) {
			t.Errorf("refresh %+v, want %+v", act.what, want[i])
		}
	}
	x.fails("refresh", `{"user":"bob","expire_at":-1}`, 107)
	for _, body := range []string{`{"user":"bob","expired":true}`, `{"user":"bob","expire_at":1000}`} {
		x.call("refresh", body, `{"result":{}}`)
		want := apiFakeClose{x.id(3), session.ReasonExpired, 3005, "connection expired"}
		if got := x.loops.takeCloses(); len(got) != 1 || got[0] != want {
			t.Errorf("%s: closed %v", body, got)
		}
	}
	if got := x.sessions.take(); len(got) != 0 {
		t.Errorf("expired sessions were refreshed: %v", got)
	}
}
