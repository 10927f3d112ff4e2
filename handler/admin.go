package handler

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
)

// AdminState is how far the server's life has come, as /readyz tells it.
type AdminState string

// The states.
const (
	AdminStarting AdminState = "starting"
	AdminReady    AdminState = "ready"
	AdminDraining AdminState = "draining"
)

// AdminOptions say what the admin port answers. All of it but /api is open to
// whoever reaches the port: it belongs on loopback or behind a network policy.
type AdminOptions struct {
	// API is served on /api/<method>.
	API APIOptions
	// Metrics is served on /metrics; nil: not at all.
	Metrics http.Handler
	// State is asked by /readyz; nil: always ready. Called from many goroutines.
	State func() AdminState
	// Nodes is how many nodes of the cluster are known, as /readyz tells it; nil or 0:
	// there is none. Called from many goroutines.
	Nodes  func() int
	Logger *slog.Logger // nil: slog.Default()
	// Panicked is told of each panic of a request; nil: nobody. Called from many
	// goroutines.
	Panicked func()
}

// NewAdmin makes the handler of the admin port: the server API, metrics,
// health, readiness and profiles. Safe from any goroutine.
func NewAdmin(o AdminOptions) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.API.Logger == nil {
		o.API.Logger = o.Logger
	}
	if o.Nodes == nil {
		o.Nodes = func() int { return 0 }
	}
	if o.State == nil {
		o.State = func() AdminState { return AdminReady }
	}
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash = false
	e.UseRawPath = true // the id of a client may hold a slash
	e.ForwardedByClientIP = false
	e.Use(adminHeaders, recovered(o.Logger, o.Panicked, func(c *gin.Context) { adminError(c, http.StatusInternalServerError, apiInternal) }))
	e.NoRoute(func(c *gin.Context) { adminError(c, http.StatusNotFound, apiMethodNotFound) })
	e.NoMethod(func(c *gin.Context) { adminError(c, http.StatusMethodNotAllowed, apiBadRequest) })

	RegisterAPI(e, o.API)
	if o.Metrics != nil {
		e.GET("/metrics", gin.WrapH(o.Metrics))
	}
	adminGet(e, "/healthz", func(c *gin.Context) {
		c.JSON(http.StatusOK, gin.H{"status": "ok"})
	})
	adminGet(e, "/readyz", func(c *gin.Context) {
		state, status := o.State(), http.StatusOK
		if state != AdminReady {
			status = http.StatusServiceUnavailable
		}
		body := gin.H{"ready": state == AdminReady, "state": state}
		if n := o.Nodes(); n > 0 {
			body["nodes"] = n
		}
		c.JSON(status, body)
	})
	registerProfiles(e)
	return e
}

// adminGet answers HEAD too: load balancers like it.
func adminGet(r gin.IRouter, path string, h gin.HandlerFunc) {
	r.GET(path, h)
	r.HEAD(path, h)
}

// adminHeaders stand on every answer. A page of elsewhere that is open in the
// browser of somebody who reaches the port may not make it work, nor put its
// answers into itself: the browser says where a request comes from (Fetch
// Metadata), and following a link is all that is left.
func adminHeaders(c *gin.Context) {
	c.Header("X-Content-Type-Options", "nosniff")
	c.Header("Cache-Control", "no-store")
	c.Header("Referrer-Policy", "no-referrer")
	c.Header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	c.Header("Cross-Origin-Resource-Policy", "same-origin")
	h := c.Request.Header
	switch h.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site":
		if c.Request.Method != http.MethodGet || h.Get("Sec-Fetch-Dest") != "document" {
			adminError(c, http.StatusForbidden, apiBadRequest)
		}
	}
}

func adminError(c *gin.Context, status int, e *apiError) {
	c.AbortWithStatusJSON(status, apiReply{Error: e})
}

// Bounds of an http.Server made by NewHTTPServer.
const (
	httpHeaderTimeout = 5 * time.Second
	httpReadTimeout   = time.Minute
	httpWriteTimeout  = time.Minute
	httpIdleTimeout   = 75 * time.Second // longer than load balancers keep a connection
	httpMaxHeader     = 32 << 10
)

// NewHTTPServer makes a server for h that gives no peer time without end: 5 s
// for the head, a minute for the whole request, a minute for the answer, 75 s
// between two. Handlers that take longer set their own deadline with
// http.ResponseController. What net/http has to say goes to logger, at Debug:
// it is about peers.
func NewHTTPServer(h http.Handler, logger *slog.Logger) *http.Server {
	if logger == nil {
		logger = slog.Default()
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: httpHeaderTimeout,
		ReadTimeout:       httpReadTimeout,
		WriteTimeout:      httpWriteTimeout,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    httpMaxHeader,
		ErrorLog:          newHTTPLog(logger),
	}
}

// httpLog takes the lines of net/http.
type httpLog struct{ logger *slog.Logger }

// Write implements io.Writer: each call is a line.
func (l httpLog) Write(line []byte) (int, error) {
	l.logger.Debug("http server", "err", strings.TrimSpace(string(line)))
	return len(line), nil
}
