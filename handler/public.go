package handler

import (
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"
)

// PublicOptions say what the public port answers over HTTP.
type PublicOptions struct {
	// Routes adds the token endpoints. Their paths are open to other origins as
	// far as AllowOrigin says. nil: none.
	Routes func(gin.IRouter)
	// WebSocketPaths are served by the event loop. A request for one of them that
	// comes this way is no upgrade (426), or came second on a connection that
	// net/http holds already (Adopt).
	WebSocketPaths []string
	// EventPaths are served by the event loop as well, as event streams: what comes
	// this way is no GET (405), or came second, as above.
	EventPaths []string
	// Adopt takes over an upgrade request, or one for an event stream, and with it the connection, which it
	// hijacks from w. It may also answer over w. It runs on the goroutine of the
	// request. nil: such a request gets 503 and the connection is closed, so that
	// the client's next one starts afresh.
	Adopt func(w http.ResponseWriter, r *http.Request)
	// AllowOrigin tells whether a page of origin may read answers of host; the
	// two are the request's headers. nil: no other origin may. Called from many
	// goroutines.
	AllowOrigin func(origin, host string) bool
	// Demo serves the page at /demo.
	Demo bool
	// DemoClient, where set, is handed to whoever opens the page: only for dev
	// mode. nil: the page asks for a token or for credentials.
	DemoClient *DemoClient
	// DemoTopic is what the page subscribes to; empty: news.
	DemoTopic string
	// DemoWebSocketPath is where the page connects to; empty: the first of
	// WebSocketPaths.
	DemoWebSocketPath string
	// Logger takes panics; nil: slog.Default().
	Logger *slog.Logger
	// Panicked is told of each panic of a request; nil: nobody. Called from many
	// goroutines.
	Panicked func()
}

// DemoClient are the example client's credentials.
type DemoClient struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
}

// NewPublic makes the handler of the public port: the token endpoints, the
// demo page, and answers to what is neither. Safe from any goroutine.
func NewPublic(o PublicOptions) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.HandleMethodNotAllowed = true
	// Gin builds the redirect from X-Forwarded-Prefix, which any client can send.
	e.RedirectTrailingSlash = false
	// A forwarded address would be the client's own word: which proxies are believed,
	// TokenOptions.Address knows.
	e.ForwardedByClientIP = false

	cross := &crossOrigin{allow: o.AllowOrigin, methods: make(map[string][]string), streams: o.EventPaths}
	e.Use(defaultHeaders, recovered(o.Logger, o.Panicked, func(c *gin.Context) {
		problem(c, http.StatusInternalServerError, "server_error", "internal error")
	}), cross.handle)
	e.NoRoute(func(c *gin.Context) { problem(c, http.StatusNotFound, "not_found", "no such path") })
	e.NoMethod(func(c *gin.Context) {
		if !slices.Contains(o.EventPaths, c.Request.URL.Path) {
			allowWithHead(c.Writer.Header())
		}
		problem(c, http.StatusMethodNotAllowed, "method_not_allowed", "see the Allow header")
	})

	if o.Routes != nil {
		// A group: middleware that Routes adds stays with its own routes.
		o.Routes(e.Group("/"))
		for _, r := range e.Routes() {
			cross.methods[r.Path] = append(cross.methods[r.Path], r.Method)
		}
	}
	for _, p := range o.WebSocketPaths {
		e.GET(p, upgradeRequired(o.Adopt))
	}
	for _, p := range o.EventPaths {
		e.GET(p, eventsAdopted(o.Adopt))
		cross.methods[p] = []string{http.MethodGet}
	}
	if o.Demo {
		registerDemo(e, o)
	}
	return bounded(headAsGet(e, o.EventPaths))
}

// maxHeaderLines is what the event loops allow the first request of a
// connection.
const maxHeaderLines = 100

// bounded holds later requests of a connection to the bounds of the first,
// which an event loop has read.
//
// A body in chunks is the last of its connection: net/http takes one that has a
// Content-Length as well, without a word about it, and a proxy before us that
// went by the length would see another request behind it than we do (RFC 9112,
// section 6.1 and 11.2).
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lines := 1 // net/http keeps Host elsewhere
		for _, values := range r.Header {
			lines += len(values)
		}
		if lines > maxHeaderLines {
			w.Header().Set("Connection", "close")
			w.Header().Set("Cache-Control", "no-store")
			http.Error(w, "too many header lines", http.StatusRequestHeaderFieldsTooLarge)
			return
		}
		if r.ProtoMajor != 1 {
			// The preface of HTTP/2 (RFC 9113, section 3.4), which net/http lets through.
			w.Header().Set("Connection", "close")
			http.Error(w, "HTTP/1.1 is needed", http.StatusHTTPVersionNotSupported)
			return
		}
		if len(r.TransferEncoding) > 0 {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// problem answers with the shape of RFC 6749's errors, so that a client of the
// token endpoint reads one kind of error whatever went wrong.
func problem(c *gin.Context, status int, code, description string) {
	c.AbortWithStatusJSON(status, gin.H{"error": code, "error_description": description})
}

// defaultPolicy forbids what an answer of ours never needs. Connections to the
// server itself stay allowed: the line for a browser's console that the server
// prints is tried on such an answer.
const defaultPolicy = "default-src 'none'; connect-src 'self'; frame-ancestors 'none'"

// defaultHeaders stand on every answer; pages put their own policy in place of
// the one here.
func defaultHeaders(c *gin.Context) {
	h := c.Writer.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", defaultPolicy)
}

// recovered keeps a panic of a handler in, and has it answered.
func recovered(log *slog.Logger, panicked func(), answer func(*gin.Context)) gin.HandlerFunc {
	return func(c *gin.Context) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler {
				panic(p) // net/http's way to drop a connection; it is not logged there either
			}
			if panicked != nil {
				panicked()
			}
			// The request itself stays out of the log: it may carry a secret.
			log.Error("request panicked", "err", p, "remote", c.Request.RemoteAddr,
				"path", c.FullPath(), "stack", string(debug.Stack()))
			if c.Writer.Written() {
				// Half an answer must not look like a whole one.
				panic(http.ErrAbortHandler)
			}
			answer(c)
		}()
		c.Next()
	}
}

// headAsGet answers HEAD wherever GET is answered with a body that ends; net/http
// drops it.
func headAsGet(e *gin.Engine, streams []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && !isUpgrade(r) && !slices.Contains(streams, r.URL.Path) {
			// A copy: net/http looks at its own request to know that there is no body.
			r = r.WithContext(r.Context())
			r.Method = http.MethodGet
		}
		e.ServeHTTP(w, r)
	})
}

func allowWithHead(h http.Header) {
	if allow := h.Get("Allow"); slices.Contains(strings.Split(allow, ", "), http.MethodGet) {
		h.Set("Allow", allow+", "+http.MethodHead)
	}
}

// upgradeRequired answers plain requests for a WebSocket path (RFC 9110,
// section 15.5.22) and passes upgrades on.
func upgradeRequired(adopt func(http.ResponseWriter, *http.Request)) gin.HandlerFunc {
	return func(c *gin.Context) {
		h := c.Writer.Header()
		if !isUpgrade(c.Request) {
			h.Set("Upgrade", "websocket")
			h.Set("Connection", "Upgrade")
			h.Set("Sec-WebSocket-Version", "13")
			problem(c, http.StatusUpgradeRequired, "upgrade_required", "this path speaks WebSocket")
			return
		}
		if adopt == nil {
			h.Set("Connection", "close")
			h.Set("Retry-After", "1")
			problem(c, http.StatusServiceUnavailable, "unavailable", "upgrade on a new connection")
			return
		}
		// The headers of answers are none of a handshake's.
		for _, k := range []string{"X-Content-Type-Options", "Referrer-Policy", "Content-Security-Policy"} {
			h.Del(k)
		}
		adopt(c.Writer, c.Request)
	}
}

func isUpgrade(r *http.Request) bool {
	return hasToken(r.Header["Connection"], "upgrade") && hasToken(r.Header["Upgrade"], "websocket")
}

// hasToken looks for a token in a comma-separated header, which may stand on
// several lines.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// crossOrigin lets pages of allowed origins use the token endpoints. Cookies
// are never asked for: the endpoints take credentials from the request alone.
type crossOrigin struct {
	allow   func(origin, host string) bool
	methods map[string][]string // by path; fixed once NewPublic returns
	streams []string            // paths that have no HEAD
}

func (x *crossOrigin) handle(c *gin.Context) {
	methods, ok := x.methods[c.Request.URL.Path]
	if !ok {
		return
	}
	h, r := c.Writer.Header(), c.Request
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	allowed := origin != "" && x.allow != nil && x.allow(origin, r.Host)
	if allowed {
		h.Set("Access-Control-Allow-Origin", origin)
	}
	if r.Method != http.MethodOptions || slices.Contains(methods, http.MethodOptions) {
		return
	}
	list := strings.Join(methods, ", ")
	if slices.Contains(methods, http.MethodGet) && !slices.Contains(x.streams, r.URL.Path) {
		list += ", " + http.MethodHead
	}
	h.Set("Allow", list)
	if r.Header.Get("Access-Control-Request-Method") == "" {
		c.AbortWithStatus(http.StatusNoContent)
		return
	}
	if !allowed {
		problem(c, http.StatusForbidden, "origin_not_allowed", "see websocket.allowed_origins")
		return
	}
	h.Set("Access-Control-Allow-Methods", list)
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Last-Event-ID")
	h.Set("Access-Control-Max-Age", "600")
	c.AbortWithStatus(http.StatusNoContent)
}
