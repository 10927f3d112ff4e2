package handler

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"io/fs"
	"net/http"
	"path"
	"time"

	"github.com/gin-gonic/gin"
)

// demoFiles are the page and, in vendor, the published JavaScript SDK as its
// package holds it.
//
//go:embed demo
var demoFiles embed.FS

// demoPolicy lets the page load its own files and talk to its own server, and
// nothing else.
const demoPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// registerDemo serves /demo and what it loads. The page's links are relative,
// so it also works behind a proxy that adds a prefix.
func registerDemo(e *gin.Engine, o PublicOptions) {
	if o.DemoTopic == "" {
		o.DemoTopic = "news"
	}
	if o.DemoWebSocketPath == "" && len(o.WebSocketPaths) > 0 {
		o.DemoWebSocketPath = o.WebSocketPaths[0]
	}
	toDemo := func(c *gin.Context) { c.Redirect(http.StatusFound, "/demo") }
	e.GET("/", toDemo)
	e.GET("/demo/", toDemo)
	e.GET("/demo/config.json", func(c *gin.Context) {
		c.Header("Cache-Control", "no-store")
		// null where there is no client: the page asks then.
		c.JSON(http.StatusOK, gin.H{
			"client": o.DemoClient, "topic": o.DemoTopic, "path": o.DemoWebSocketPath,
		})
	})
	err := fs.WalkDir(demoFiles, "demo", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := demoFiles.ReadFile(name)
		if err != nil {
			return err
		}
		if name == "demo/index.html" {
			e.GET("/demo", demoPage(body))
			return nil
		}
		e.GET("/"+name, asset(name, body))
		return nil
	})
	if err != nil {
		panic("handler: embedded files unreadable: " + err.Error()) // they are part of the binary
	}
}

func demoPage(body []byte) gin.HandlerFunc {
	serve := asset("index.html", body)
	return func(c *gin.Context) {
		c.Header("Content-Security-Policy", demoPolicy)
		c.Header("Cross-Origin-Opener-Policy", "same-origin")
		serve(c)
	}
}

// asset serves bytes that never change while the process runs. The names carry
// no version, so a browser asks each time, and its copy is confirmed by the
// entity tag.
func asset(name string, body []byte) gin.HandlerFunc {
	sum := sha256.Sum256(body)
	tag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	kind := contentType(name)
	return func(c *gin.Context) {
		h := c.Writer.Header()
		h.Set("Content-Type", kind)
		h.Set("Cache-Control", "no-cache")
		h.Set("Etag", tag)
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		http.ServeContent(c.Writer, c.Request, "", time.Time{}, bytes.NewReader(body))
	}
}

// contentType does not ask the system's tables for what the page is made of:
// an image without /etc/mime.types must serve the same types.
func contentType(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	case "", ".txt":
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}
