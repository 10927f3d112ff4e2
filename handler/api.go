package handler

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"perch/auth"
	"perch/session"
	"perch/topic"
)

const (
	apiDefaultMaxBody = 16 << 20
	apiDefaultTimeout = 10 * time.Second
)

// APITopics is what the server API needs of the topics; *topic.Topics has it.
// All methods are safe from any goroutine.
type APITopics interface {
	Namespace(name string) (*topic.Namespace, error)
	Publish(ns *topic.Namespace, name string, p *topic.Publication, r topic.PublishRequest, done func(topic.Position, error))
	History(ns *topic.Namespace, name string, f topic.Filter, done func([]*topic.Publication, topic.Position, error))
	RemoveHistory(ns *topic.Namespace, name string, done func(error))
	Presence(name string, done func([]topic.ClientInfo, error))
	Topics(pattern string) (map[string]int, error)
	Counts() topic.Counts
}

// APISessions is what the server API does with one session. All methods run on
// the loop of s, which is connected.
type APISessions interface {
	// SubscribeSession subscribes s as the server's own act and tells its peer.
	// The topic is of a known namespace. topic.ErrAlreadySubscribed, ErrTooMany,
	// ErrNotAvailable.
	SubscribeSession(s *session.Session, sub APISubscription) error
	// UnsubscribeSession ends a subscription of s, whoever made it, and tells its
	// peer. It does nothing where there is none.
	UnsubscribeSession(s *session.Session, name string) error
	// RefreshSession gives s a new expiry and tells its peer.
	RefreshSession(s *session.Session, refresh APIRefresh) error
}

// APISubscription is a subscription that a backend asks for. Its slices are
// shared between sessions: nobody changes them.
type APISubscription struct {
	Topic string
	// Info is JSON about the subscriber, shown to others; Data is handed to the
	// peer with the subscription. Both may be nil.
	Info []byte
	Data []byte
	// ExpireAt ends the subscription, in Unix seconds; 0: never.
	ExpireAt int64
	// Since is where the peer stands, whose missed publications follow; nil: none
	// are wanted.
	Since *topic.Position
	// Override takes the place of what the namespace says.
	Override auth.Override
}

// APIRefresh is the new state of a connection that a backend asks for.
type APIRefresh struct {
	// ExpireAt is in Unix seconds, and not over yet; 0: never.
	ExpireAt int64
	// Info takes the place of the JSON about the connection; nil leaves it.
	Info []byte
}

// APIOptions are what the server API works with.
type APIOptions struct {
	// Key is what X-API-Key must hold. With an empty one every call is refused.
	Key string
	// KeyNow, where set, takes the place of Key. It is asked at each call.
	KeyNow func() string
	// MaxBody bounds a request's body, in bytes; 0 means 16 MiB.
	MaxBody int64
	// Timeout bounds how long one request waits for loops and broker; 0 means
	// 10 s.
	Timeout time.Duration

	// Node, Name and Version are what info tells; Started is when the node began.
	Node    session.Node
	Name    string
	Version string
	Started time.Time

	Loops    session.Loops
	Registry *session.Registry
	Topics   APITopics
	Sessions APISessions
	// Peers are the other nodes; nil: there never are any.
	Peers   Peers
	Clients ClientsOptions

	// Observe, where set, is told of each call: the method (empty where there is
	// none of the name), and 0, the code of the error, or from 400 on the HTTP
	// status. Safe from any goroutine.
	Observe func(method string, code int)
	Logger  *slog.Logger // nil: slog.Default()
}

// api is the server API. It does not change after RegisterAPI.
type api struct {
	APIOptions
	methods map[string]apiMethod
	usage   apiUsage
	far     bool // it answers other nodes: their requests have been checked
}

// apiMethod reads a request and gives back what is to be done; err means that
// the request is malformed. So a batch is read as a whole before any of it is
// done.
type apiMethod func(params []byte) (apiCall, error)

// apiCall does what a request asks for. It blocks until the loops and the
// broker have answered, or until ctx ends.
type apiCall func(ctx context.Context) (any, *apiError)

// RegisterAPI adds POST /api/<method>, and /api/clients, to r. The caller's key is checked before
// anything else.
func RegisterAPI(r gin.IRouter, o APIOptions) {
	a := newAPI(o)
	r.POST("/api/:method", a.serve)
	if o.Clients.Authority != nil {
		registerClients(r, a, o.Clients)
	}
}

func newAPI(o APIOptions) *api {
	if o.MaxBody == 0 {
		o.MaxBody = apiDefaultMaxBody
	}
	if o.Timeout == 0 {
		o.Timeout = apiDefaultTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Observe == nil {
		o.Observe = func(string, int) {}
	}
	if o.Peers == nil {
		o.Peers = noPeers{}
	}
	a := &api{APIOptions: o}
	if a.KeyNow == nil {
		a.KeyNow = func() string { return o.Key }
	}
	a.methods = map[string]apiMethod{
		"publish":        apiBind(a.publish),
		"broadcast":      apiBind(a.broadcast),
		"info":           apiBind(a.info),
		"channels":       apiBind(a.list),
		"presence":       apiBind(a.presence),
		"presence_stats": apiBind(a.presenceStats),
		"history":        apiBind(a.history),
		"history_remove": apiBind(a.historyRemove),
	}
	for name, bind := range a.acts() {
		a.methods[name] = a.everywhere(name, bind)
	}
	a.usage.read() // what the first call of info compares with
	return a
}

// apiBind reads parameters as T. Unknown fields pass, as clients of newer
// servers may send them.
func apiBind[T any](do func(context.Context, *T) (any, *apiError)) apiMethod {
	return func(params []byte) (apiCall, error) {
		req := new(T)
		if err := json.Unmarshal(params, req); err != nil {
			return nil, err
		}
		return func(ctx context.Context) (any, *apiError) { return do(ctx, req) }, nil
	}
}

// apiReply is the body of every answer: one of the two is set.
type apiReply struct {
	Error  *apiError `json:"error,omitempty"`
	Result any       `json:"result,omitempty"`
}

func (a *api) serve(c *gin.Context) {
	c.Header("Cache-Control", "no-store")
	name := c.Param("method")
	method, known := a.methods[name]
	if name == "batch" {
		method, known = a.bindBatch, true
	}
	if !known {
		name = "" // what a caller makes up must not become a label
	}
	if !a.authorized(c.Request) {
		c.Header("WWW-Authenticate", "apikey")
		a.refuse(c, name, http.StatusUnauthorized, apiUnauthorized, errors.New("wrong or missing key"))
		return
	}
	if !known {
		a.refuse(c, name, http.StatusNotFound, apiMethodNotFound, errors.New("unknown method"))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, a.MaxBody))
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		a.refuse(c, name, http.StatusRequestEntityTooLarge, apiLimitExceeded, err)
		return
	}
	// Data goes into text frames as it is, and bytes that are not UTF-8 there
	// would end the connection of each subscriber. encoding/json lets them pass.
	if err == nil && !utf8.Valid(body) {
		err = errors.New("body is not utf-8")
	}
	var call apiCall
	if err == nil {
		if len(body) == 0 {
			body = []byte("{}")
		}
		call, err = method(body)
	}
	if err != nil {
		a.refuse(c, name, http.StatusBadRequest, apiBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), a.Timeout)
	defer cancel()
	result, fault := a.run(ctx, name, call)
	status := http.StatusOK
	if fault != nil && strings.EqualFold(c.GetHeader(apiErrorMode), "transport") {
		status = fault.status()
	}
	a.write(c, status, apiReply{Error: fault, Result: result})
}

// run does a call and counts it. A panic stays in the call: run is also used on
// goroutines of a batch, where it would end the process.
func (a *api) run(ctx context.Context, name string, call apiCall) (result any, fault *apiError) {
	defer func() {
		if p := recover(); p != nil {
			a.Logger.Error("api call panicked", "method", name, "err", p, "stack", string(debug.Stack()))
			result, fault = nil, apiInternal
		}
		code := 0
		if fault != nil {
			result, code = nil, int(fault.Code)
		}
		a.Observe(name, code)
	}()
	if ctx.Err() != nil {
		return nil, apiInternal
	}
	return call(ctx)
}

// authorized compares digests, so that neither the content nor the length of
// the key shows in the time that it takes.
func (a *api) authorized(r *http.Request) bool {
	key := r.Header.Get("X-API-Key")
	if key == "" {
		scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, "apikey") {
			key = strings.TrimSpace(rest)
		}
	}
	want := a.KeyNow()
	got, right := sha256.Sum256([]byte(key)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(got[:], right[:]) == 1 && want != ""
}

func (a *api) refuse(c *gin.Context, method string, status int, e *apiError, err error) {
	a.Logger.Debug("api request refused", "remote", c.Request.RemoteAddr, "status", status, "err", err)
	a.Observe(method, status)
	a.write(c, status, apiReply{Error: e})
}

func (a *api) write(c *gin.Context, status int, reply apiReply) {
	b, err := json.Marshal(reply)
	if err != nil {
		a.Logger.Error("api reply not encoded", "err", err)
		status, b = http.StatusInternalServerError, []byte(`{"error":{"code":100,"message":"internal server error"}}`)
	}
	c.Data(status, "application/json", b)
	c.Abort()
}
