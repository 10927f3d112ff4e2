package handler

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/goleak"

	"perch/session"
	"perch/topic"
)

const apiTestKey = "a-key-for-tests"

// apiFakeLoop runs posts on one goroutine, in order, and keeps count of the
// room in its inbox.
type apiFakeLoop struct {
	index int
	queue chan func()

	mu       sync.Mutex
	room     int
	used     int
	sessions map[session.ID]*session.Session
	closes   []apiFakeClose
}

type apiFakeClose struct {
	id     session.ID
	reason session.Reason
	code   uint16
	text   string
}

func (l *apiFakeLoop) Index() int { return l.index }

func (l *apiFakeLoop) Reserve(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used+n > l.room {
		return false
	}
	l.used += n
	return true
}

func (l *apiFakeLoop) Release(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used -= n
}

func (l *apiFakeLoop) Post(n int, id session.ID, f func(*session.Session)) {
	l.queue <- func() {
		l.Release(n)
		l.mu.Lock()
		s := l.sessions[id]
		l.mu.Unlock()
		f(s)
	}
}

func (l *apiFakeLoop) PostTask(n int, t session.Task) {
	l.queue <- func() {
		l.Release(n)
		for t.Run() {
		}
	}
}

func (l *apiFakeLoop) PostClose(id session.ID, r session.Reason, code uint16, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closes = append(l.closes, apiFakeClose{id, r, code, text})
}

func (l *apiFakeLoop) run() {
	for f := range l.queue {
		func() {
			defer func() { _ = recover() }() // as netpoll does
			f()
		}()
	}
}

func (l *apiFakeLoop) inUse() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used
}

type apiFakeLoops []*apiFakeLoop

func (ls apiFakeLoops) Loop(i int) session.Loop {
	if i >= len(ls) || ls[i] == nil {
		return nil
	}
	return ls[i]
}

func (ls apiFakeLoops) Each(f func(session.Loop)) {
	for _, l := range ls {
		f(l)
	}
}

func (ls apiFakeLoops) takeCloses() []apiFakeClose {
	var all []apiFakeClose
	for _, l := range ls {
		l.mu.Lock()
		all = append(all, l.closes...)
		l.closes = nil
		l.mu.Unlock()
	}
	return all
}

// apiFakeTransport has nothing to say.
type apiFakeTransport struct{ session.Transport }

// apiFakeTopics knows the names without a namespace and of "news". What it does
// with a publication stands in publish.
type apiFakeTopics struct {
	mu        sync.Mutex
	published []apiFakePublication
	publish   func(name string, done func(topic.Position, error))
	read      func(done func([]*topic.Publication, topic.Position, error))
	filters   []topic.Filter
	removed   []string
	present   []topic.ClientInfo
	fail      error
}

type apiFakePublication struct {
	name string
	*topic.Publication
	request topic.PublishRequest
}

func (f *apiFakeTopics) Namespace(name string) (*topic.Namespace, error) {
	ns, _, ok := strings.Cut(name, ":")
	if ok && ns != "news" {
		return nil, topic.ErrUnknownTopic
	}
	return &topic.Namespace{NamespaceOptions: topic.NamespaceOptions{Presence: ok}}, nil
}

func (f *apiFakeTopics) Publish(ns *topic.Namespace, name string, p *topic.Publication, r topic.PublishRequest, done func(topic.Position, error)) {
	f.mu.Lock()
	f.published = append(f.published, apiFakePublication{name, p, r})
	f.mu.Unlock()
	f.publish(name, done)
}

func (f *apiFakeTopics) History(_ *topic.Namespace, _ string, filter topic.Filter, done func([]*topic.Publication, topic.Position, error)) {
	f.mu.Lock()
	f.filters = append(f.filters, filter)
	f.mu.Unlock()
	if f.read == nil {
		done(nil, topic.Position{}, topic.ErrNotAvailable)
		return
	}
	f.read(done)
}

func (f *apiFakeTopics) RemoveHistory(_ *topic.Namespace, name string, done func(error)) {
	f.mu.Lock()
	f.removed = append(f.removed, name)
	f.mu.Unlock()
	go done(f.fail)
}

func (f *apiFakeTopics) Presence(_ string, done func([]topic.ClientInfo, error)) {
	go done(f.present, f.fail)
}

func (f *apiFakeTopics) take() []apiFakePublication {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.published
	f.published = nil
	return p
}

func (f *apiFakeTopics) Topics(pattern string) (map[string]int, error) {
	if pattern == "[" {
		return nil, io.ErrUnexpectedEOF
	}
	return map[string]int{"news:" + pattern: 3, "a": 1}, nil
}

func (f *apiFakeTopics) Counts() topic.Counts { return topic.Counts{Topics: 7, Subscriptions: 9} }

// apiFakeSessions notes what is asked of sessions, and answers what fail says.
type apiFakeSessions struct {
	mu   sync.Mutex
	done []apiFakeAct
	fail func(s *session.Session) error
}

type apiFakeAct struct {
	id   session.ID
	what any
}

func (f *apiFakeSessions) act(s *session.Session, what any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, apiFakeAct{s.ID(), what})
	if f.fail != nil {
		return f.fail(s)
	}
	return nil
}

func (f *apiFakeSessions) SubscribeSession(s *session.Session, sub APISubscription) error {
	return f.act(s, sub)
}
func (f *apiFakeSessions) UnsubscribeSession(s *session.Session, name string) error {
	return f.act(s, name)
}
func (f *apiFakeSessions) RefreshSession(s *session.Session, r APIRefresh) error { return f.act(s, r) }

func (f *apiFakeSessions) take() []apiFakeAct {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.done
	f.done = nil
	slices.SortFunc(d, func(a, b apiFakeAct) int { return int(a.id.Slot()) - int(b.id.Slot()) })
	return d
}

// apiTest is a server API over real sockets, with loops and sessions that are
// none.
type apiTest struct {
	t        *testing.T
	url      string
	client   *http.Client
	node     session.Node
	loops    apiFakeLoops
	registry *session.Registry
	topics   *apiFakeTopics
	sessions *apiFakeSessions
	log      *bytes.Buffer // read it after the server has answered

	mu       sync.Mutex
	observed []string
}

// newAPITest has sessions 1 and 2 of alice on loops 0 and 1, 3 of bob on loop
// 0, 4 without a user on loop 1, and 5 of carol, which is not connected yet.
func newAPITest(t *testing.T, change ...func(*APIOptions)) *apiTest {
	t.Helper()
	before := goleak.IgnoreCurrent()
	x := &apiTest{
		t: t, node: 0x0123456789abcd, registry: session.NewRegistry(), topics: &apiFakeTopics{},
		sessions: &apiFakeSessions{}, log: new(bytes.Buffer),
	}
	x.topics.publish = func(name string, done func(topic.Position, error)) {
		go done(topic.Position{Offset: uint64(len(name)), Epoch: "e"}, nil)
	}
	var running sync.WaitGroup
	for i := range 2 {
		l := &apiFakeLoop{
			index: i, queue: make(chan func(), 4096), room: 1 << 20,
			sessions: make(map[session.ID]*session.Session),
		}
		x.loops = append(x.loops, l)
		running.Go(l.run)
	}
	for slot, of := range []struct {
		user string
		loop int
	}{1: {"alice", 0}, 2: {"alice", 1}, 3: {"bob", 0}, 4: {"", 1}, 5: {"carol", 0}} {
		if slot > 0 {
			s := x.add(slot, of.loop, of.user)
			if of.user == "carol" {
				s.State = session.StateVerifying
			}
		}
	}
	o := APIOptions{
		Key: apiTestKey, Node: x.node, Name: "here", Version: "1.2.3", Started: time.Now().Add(-time.Hour),
		Loops: x.loops, Registry: x.registry, Topics: x.topics, Sessions: x.sessions,
		Observe: func(method string, code int) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.observed = append(x.observed, strings.Trim(method+" "+jsonOf(code), " "))
		},
		Logger: slog.New(slog.NewTextHandler(x.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.HandleMethodNotAllowed = true
	RegisterAPI(e, o)
	srv := httptest.NewServer(e)
	x.url, x.client = srv.URL, srv.Client()
	t.Cleanup(func() {
		x.client.CloseIdleConnections()
		srv.Close()
		for _, l := range x.loops {
			close(l.queue)
		}
		running.Wait()
		for i, l := range x.loops {
			if used := l.inUse(); used != 0 {
				t.Errorf("loop %d: %d bytes of its inbox were not given back", i, used)
			}
		}
		goleak.VerifyNone(t, before)
	})
	return x
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (x *apiTest) id(slot int) session.ID {
	for _, l := range x.loops {
		for id := range l.sessions {
			if int(id.Slot()) == slot {
				return id
			}
		}
	}
	x.t.Fatalf("no session %d", slot)
	return 0
}

func (x *apiTest) clientOf(slot int) string { return x.node.ClientID(x.id(slot)) }

func (x *apiTest) add(slot, loop int, user string) *session.Session {
	s := new(session.Session)
	id := session.MakeID(loop, 9, uint32(slot))
	s.Open(apiFakeTransport{}, x.loops[loop], id)
	s.State = session.StateConnected
	if user != "" {
		x.registry.Identify(s, user, 0)
	}
	l := x.loops[loop]
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions[id] = s
	return s
}

// send posts body as it is; headers are name, value, … in the place of the key.
func (x *apiTest) send(method, body string, headers ...string) (int, http.Header, string) {
	x.t.Helper()
	req, err := http.NewRequest(http.MethodPost, x.url+"/api/"+method, strings.NewReader(body))
	if err != nil {
		x.t.Fatal(err)
	}
	if headers == nil {
		headers = []string{"X-API-Key", apiTestKey}
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := x.client.Do(req)
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// call expects status 200 and the JSON want.
func (x *apiTest) call(method, body, want string) {
	x.t.Helper()
	status, header, got := x.send(method, body)
	if status != http.StatusOK {
		x.t.Errorf("%s %s: status %d", method, body, status)
	}
	if ct := header.Get("Content-Type"); ct != "application/json" {
		x.t.Errorf("%s: content type %q", method, ct)
	}
	wantJSON(x.t, method+" "+body, got, want)
}

func wantJSON(t *testing.T, what, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Errorf("%s: answer %q: %v", what, got, err)
		return
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func apiErrorJSON(code int) string {
	return map[int]string{
		100: `{"error":{"code":100,"message":"internal server error"}}`,
		101: `{"error":{"code":101,"message":"unauthorized"}}`,
		102: `{"error":{"code":102,"message":"unknown channel"}}`,
		104: `{"error":{"code":104,"message":"method not found"}}`,
		106: `{"error":{"code":106,"message":"limit exceeded"}}`,
		107: `{"error":{"code":107,"message":"bad request"}}`,
		108: `{"error":{"code":108,"message":"not available"}}`,
		110: `{"error":{"code":110,"message":"expired"}}`,
		111: `{"error":{"code":111,"message":"too many requests"}}`,
		112: `{"error":{"code":112,"message":"unrecoverable position"}}`,
	}[code]
}

func (x *apiTest) fails(method, body string, code int) {
	x.t.Helper()
	x.call(method, body, apiErrorJSON(code))
}

func (x *apiTest) takeObserved() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.observed
	x.observed = nil
	slices.Sort(o)
	return o
}
