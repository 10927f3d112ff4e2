package bench

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	const plain, session = "ws://127.0.0.1:1/echo", "ws://127.0.0.1:1/connection/websocket"
	base := func(o Options) Options {
		o.Connections, o.Window, o.Depth, o.Burst, o.Size, o.Processes = 1000, 64, 1, 1, 128, 1
		o.Duration, o.Warmup, o.Settle = 10*time.Second, 2*time.Second, 3*time.Second
		o.Name = o.URL
		return o
	}
	for _, test := range []struct {
		name       string
		give, want Options
	}{
		{"idle", Options{Scenario: Idle, URL: plain},
			base(Options{Scenario: Idle, URL: plain, Protocol: ProtocolEcho, Topic: "bench", Steps: []int{200, 400, 600, 800, 1000}})},
		{"connect", Options{Scenario: Connect, URL: session},
			base(Options{Scenario: Connect, URL: session, Protocol: ProtocolCentrifuge, Topic: "bench"})},
		{"first", Options{Scenario: Connect, URL: session, First: "hi"},
			base(Options{Scenario: Connect, URL: session, First: "hi", Protocol: ProtocolFirst, Topic: "bench"})},
		{"echo", Options{Scenario: Echo, URL: plain}, base(Options{Scenario: Echo, URL: plain, Protocol: ProtocolEcho, Topic: "bench"})},
		{"fanout", Options{Scenario: Fanout, URL: plain},
			base(Options{Scenario: Fanout, URL: plain, Protocol: ProtocolEcho, Topic: "bench", Rate: 2})},
		{"push", Options{Scenario: Push, URL: session, Admin: "a", APIKey: "k"},
			base(Options{Scenario: Push, URL: session, Admin: "a", APIKey: "k", Protocol: ProtocolCentrifuge, Topic: "bench{i}", Rate: 200})},
		{"churn", Options{Scenario: Churn, URL: plain}, base(Options{Scenario: Churn, URL: plain, Protocol: ProtocolEcho, Topic: "bench", Rate: 100})},
		{"reconnect", Options{Scenario: Reconnect, URL: plain}, base(Options{Scenario: Reconnect, URL: plain, Protocol: ProtocolEcho, Topic: "bench"})},
		{"mixed", Options{Scenario: Mixed, URL: session},
			base(Options{Scenario: Mixed, URL: session, Protocol: ProtocolCentrifuge, Topic: "bench{i}", Rate: 500})},
	} {
		got, err := test.give.withDefaults()
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", test.name, err, got, test.want)
		}
		if again, err := got.withDefaults(); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: the defaults of the defaults differ: %v", test.name, err)
		}
	}
	o, err := Options{Scenario: Idle, URL: plain, Connections: 3, Warmup: -1, Name: "n"}.withDefaults()
	if err != nil || !slices.Equal(o.Steps, []int{1, 1, 1, 2, 3}) || o.Warmup != 0 || o.Name != "n" {
		t.Errorf("%v: %+v", err, o)
	}
}

func TestBadOptions(t *testing.T) {
	good := Options{Scenario: Echo, URL: "ws://127.0.0.1:1/echo"}
	with := func(change func(*Options)) Options {
		o := good
		change(&o)
		return o
	}
	session := "ws://127.0.0.1:1/connection/websocket"
	for _, test := range []struct {
		want string
		o    Options
	}{
		{`unknown scenario "nap"; there are idle, connect,`, with(func(o *Options) { o.Scenario = "nap" })},
		{"bench: url: parse", with(func(o *Options) { o.URL = "ws://[" })},
		{"wss:// is not spoken", with(func(o *Options) { o.URL = "wss://h/" })},
		{`"http://h/" is not ws://`, with(func(o *Options) { o.URL = "http://h/" })},
		{`"ws:///echo" is not ws://`, with(func(o *Options) { o.URL = "ws:///echo" })},
		{`"" is not ws://`, with(func(o *Options) { o.URL = "" })},
		{`unknown protocol "mqtt"`, with(func(o *Options) { o.Protocol = "mqtt" })},
		{"connections: must not be below 0", with(func(o *Options) { o.Connections = -1 })},
		{"rate: must not be below 0", with(func(o *Options) { o.Rate = -0.1 })},
		{"rate: must be a number", with(func(o *Options) { o.Rate = math.NaN() })},
		{"rate: must be a number", with(func(o *Options) { o.Rate = math.Inf(1) })},
		{"window: must not be below 0", with(func(o *Options) { o.Window = -1 })},
		{"depth: must not be below 0", with(func(o *Options) { o.Depth = -1 })},
		{"burst: must not be below 0", with(func(o *Options) { o.Burst = -1 })},
		{"size: must not be below 0", with(func(o *Options) { o.Size = -1 })},
		{"duration: must not be below 0", with(func(o *Options) { o.Duration = -1 })},
		{"sources: must not be below 0", with(func(o *Options) { o.Sources = -1 })},
		{"first source: must not be below 0", with(func(o *Options) { o.FirstSource = -1 })},
		{"processes: must not be below 0", with(func(o *Options) { o.Processes = -1 })},
		{"3 processes can't share 2 connections", with(func(o *Options) { o.Processes, o.Connections = 3, 2 })},
		{"3 processes can't share 2 connections", with(func(o *Options) { o.Scenario, o.Processes, o.Steps = Idle, 3, []int{1, 2} })},
		{"steps: must grow", with(func(o *Options) { o.Scenario, o.Steps = Idle, []int{2, 1} })},
		{"steps: must grow", with(func(o *Options) { o.Scenario, o.Steps = Idle, []int{0, 1} })},
		{"echo wants an endpoint that echoes", with(func(o *Options) { o.URL = session })},
		{"does not know how to publish with a first frame", with(func(o *Options) { o.Scenario, o.First = Fanout, "x" })},
		{"fanout wants one topic", with(func(o *Options) { o.Scenario, o.URL, o.Topic = Fanout, session, "t{i}" })},
		{"push publishes by the server API", with(func(o *Options) { o.Scenario = Push })},
		{"push publishes by the server API", with(func(o *Options) { o.Scenario, o.URL, o.Admin = Push, session, "a" })},
		{"push publishes by the server API", with(func(o *Options) { o.Scenario, o.URL, o.APIKey = Push, session, "k" })},
		{"mixed speaks centrifuge only", with(func(o *Options) { o.Scenario = Mixed })},
	} {
		_, err := test.o.withDefaults()
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "bench: ") {
			t.Errorf("want %q, got %v", test.want, err)
		}
	}
	if _, err := newSpeaker(Options{Secret: "s", Token: "t"}); err == nil {
		t.Error("a secret and a token")
	}
}

func TestShare(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		o := Options{Scenario: []string{Echo, Idle, Fanout}[random.IntN(3)], Processes: 1 + random.IntN(40), Window: 1 + random.IntN(300),
			Rate: random.Float64() * 1e5, FirstSource: 2 + random.IntN(100)}
		o.Connections = o.Processes + random.IntN(100000)
		o.Steps = []int{1 + random.IntN(o.Connections), o.Connections}
		o.Sources = random.IntN(2) * (o.Connections/perSource + 1)
		sum, steps, rate, next := 0, make([]int, 2), 0.0, o.FirstSource
		for k := range o.Processes {
			s := o.share(k)
			if s.Connections < 1 || s.Window < 1 || s.Connections != s.Steps[1] || s.Steps[0] > s.Steps[1] {
				t.Fatalf("share %d of %+v is %+v", k, o, s)
			}
			sum += s.Connections
			rate += s.Rate
			for i := range steps {
				steps[i] += s.Steps[i]
			}
			if o.Sources > 0 {
				// None shares an address with another, and each has ports enough.
				if s.FirstSource != next || s.Sources < 1 || s.Connections > s.Sources*perSource {
					t.Fatalf("share %d of %+v: %d connections from %d addresses from %d on", k, o, s.Connections, s.Sources, s.FirstSource)
				}
				next += s.Sources
			} else if s.Sources != 0 {
				t.Fatalf("share %d: %d sources", k, s.Sources)
			}
		}
		want := o.Rate
		if o.Scenario == Fanout {
			want *= float64(o.Processes)
		}
		if sum != o.Connections || !slices.Equal(steps, o.Steps) || math.Abs(rate-want) > 1e-6*want {
			t.Fatalf("%+v: %d connections, steps %v, rate %g", o, sum, steps, rate)
		}
	}
	o := Options{Processes: 2, Steps: []int{7}}
	o.share(0)
	if o.Steps[0] != 7 {
		t.Fatal("the share changes the whole")
	}
}

func TestTarget(t *testing.T) {
	for _, test := range []struct {
		url            string
		connections    int
		sources, first int
		addr           string
		wantSources    int
		wantFirst      int
	}{
		{"ws://127.0.0.1:81/echo", 1000, 0, 0, "127.0.0.1:81", 1, 2},
		{"ws://127.0.0.1:81/echo", 19999, 0, 0, "127.0.0.1:81", 1, 2},
		{"ws://127.0.0.1:81/echo", 20000, 0, 0, "127.0.0.1:81", 2, 2},
		{"ws://127.0.0.9/echo", 100000, 0, 40, "127.0.0.9:80", 6, 40},
		{"ws://127.0.0.1:81/echo", 100000, 3, 0, "127.0.0.1:81", 3, 2},
		{"ws://[::1]:81/echo", 100000, 0, 0, "[::1]:81", 0, 2},
		{"ws://[::ffff:127.0.0.1]:81/echo", 1, 0, 0, "127.0.0.1:81", 1, 2},
		{"ws://192.0.2.1:81/echo", 100000, 0, 0, "192.0.2.1:81", 0, 2},
	} {
		o := Options{URL: test.url, Connections: test.connections, Sources: test.sources, FirstSource: test.first}
		got, err := o.target()
		if err != nil || got.addr.String() != test.addr || got.sources != test.wantSources || got.first != test.wantFirst ||
			o.Sources != got.sources || o.FirstSource != got.first {
			t.Errorf("%+v: %v, %s from %d addresses from %d on", test, err, got.addr, got.sources, got.first)
		}
	}
	for _, url := range []string{"ws://192.0.2.1:81/", "ws://[::1]:81/"} {
		o := Options{URL: url, Sources: 2}
		if _, err := o.target(); err == nil || !strings.Contains(err.Error(), "sources: only towards") {
			t.Errorf("%s: %v", url, err)
		}
	}
	o := Options{URL: "ws://127.0.0.1:99999/"}
	if _, err := o.target(); err == nil {
		t.Error("no such port")
	}
	o = Options{URL: "ws://127.0.0.1:8000/a/b?x=1", Header: []string{"Authorization: Bearer x"}}
	got, err := o.target()
	if err != nil || !strings.HasPrefix(string(got.head), "GET /a/b?x=1 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n") ||
		!strings.HasSuffix(string(got.head), "\r\nAuthorization: Bearer x\r\n\r\n") {
		t.Errorf("%v: %q", err, got.head)
	}
}
