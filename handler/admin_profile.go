package handler

import (
	"fmt"
	"html"
	"log"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
)

const (
	adminProfileDefault = 30 * time.Second
	adminProfileMax     = 10 * time.Minute
	// adminProfileGrace is the time to write a profile once it is taken.
	adminProfileGrace = 30 * time.Second
)

func newHTTPLog(logger *slog.Logger) *log.Logger { return log.New(httpLog{logger}, "", 0) }

// registerProfiles serves what `go tool pprof` asks for. It does not use
// net/http/pprof, whose import alone would put the profiles on the default mux
// of every program that holds a Perch.
func registerProfiles(r gin.IRouter) {
	r.GET("/debug/pprof/", adminProfiles)
	r.GET("/debug/pprof/:name", func(c *gin.Context) {
		switch name := c.Param("name"); name {
		case "cmdline":
			c.String(http.StatusOK, "%s", strings.Join(os.Args, "\x00"))
		case "profile":
			adminTimed(c, "profile", func() error { return pprof.StartCPUProfile(c.Writer) }, pprof.StopCPUProfile)
		case "trace":
			adminTimed(c, "trace", func() error { return trace.Start(c.Writer) }, trace.Stop)
		default:
			adminProfile(c, name)
		}
	})
}

func adminProfiles(c *gin.Context) {
	var b strings.Builder
	b.WriteString("<!doctype html><title>profiles</title><ul>\n")
	for _, p := range pprof.Profiles() {
		name := html.EscapeString(p.Name())
		fmt.Fprintf(&b, "<li><a href=\"%s?debug=1\">%s</a> %d\n", name, name, p.Count())
	}
	b.WriteString("<li><a href=\"profile?seconds=30\">profile</a> of the CPU\n" +
		"<li><a href=\"trace?seconds=1\">trace</a>\n<li><a href=\"cmdline\">cmdline</a>\n</ul>\n")
	c.Data(http.StatusOK, "text/html; charset=utf-8", []byte(b.String()))
}

func adminProfile(c *gin.Context, name string) {
	p := pprof.Lookup(name)
	if p == nil {
		adminError(c, http.StatusNotFound, apiMethodNotFound)
		return
	}
	level, err := strconv.Atoi(c.DefaultQuery("debug", "0"))
	if err != nil || c.Query("seconds") != "" {
		// The difference between two moments is for pprof -base to make.
		adminError(c, http.StatusBadRequest, apiBadRequest)
		return
	}
	if name == "heap" && c.Query("gc") == "1" {
		runtime.GC()
	}
	if level > 0 {
		c.Header("Content-Type", "text/plain; charset=utf-8")
	} else {
		adminDownload(c, name)
	}
	_ = p.WriteTo(c.Writer, level) // only the peer can fail it
}

// adminTimed records from start to stop for ?seconds=, or until the peer goes.
func adminTimed(c *gin.Context, name string, start func() error, stop func()) {
	d := adminProfileDefault
	if name == "trace" {
		d = time.Second
	}
	if s := c.Query("seconds"); s != "" {
		seconds, err := strconv.ParseFloat(s, 64)
		if err != nil || !(seconds > 0 && seconds <= adminProfileMax.Seconds()) {
			adminError(c, http.StatusBadRequest, apiBadRequest)
			return
		}
		d = time.Duration(seconds * float64(time.Second))
	}
	// The server's deadlines are for ordinary requests; past the one for reading,
	// net/http takes the peer for gone. An error here means that there are none.
	end := time.Now().Add(d + adminProfileGrace)
	rc := http.NewResponseController(c.Writer)
	_, _ = rc.SetReadDeadline(end), rc.SetWriteDeadline(end)
	adminDownload(c, name)
	if err := start(); err != nil {
		c.Header("Content-Disposition", "")
		c.Header("Content-Type", "")
		c.Header("Retry-After", "30")
		adminError(c, http.StatusConflict, apiTooManyRequests) // one at a time in a process
		return
	}
	defer stop()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.Request.Context().Done():
	}
}

func adminDownload(c *gin.Context, name string) {
	c.Header("Content-Type", "application/octet-stream")
	c.Header("Content-Disposition", `attachment; filename="`+name+`"`)
}
