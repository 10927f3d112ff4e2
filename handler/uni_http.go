package handler

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// eventsAdopted passes requests for an event stream on that came on a connection
// of net/http's.
func eventsAdopted(adopt func(http.ResponseWriter, *http.Request)) gin.HandlerFunc {
	return func(c *gin.Context) {
		h := c.Writer.Header()
		if adopt == nil {
			h.Set("Connection", "close")
			h.Set("Retry-After", "1")
			problem(c, http.StatusServiceUnavailable, "unavailable", "ask on a new connection")
			return
		}
		// The loop answers, with headers of its own.
		clear(h)
		adopt(c.Writer, c.Request)
	}
}
