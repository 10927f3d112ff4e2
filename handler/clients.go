package handler

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"perch/auth"
)

// ClientsOptions are of the endpoints of the registry of clients.
type ClientsOptions struct {
	// Authority is asked once for each request; nil: there are no such endpoints.
	Authority func() *auth.Authority
	// CheckTopic tells what is wrong with a topic that a client is to be subscribed
	// to; nil: nothing is.
	CheckTopic func(name string) error
}

const (
	clientsBodyMax  = 64 << 10
	clientsPage     = 100
	clientsPageMost = 1000
	// clientsMethod is their label in metrics.
	clientsMethod = "clients"
)

// clientEndpoints serve /api/clients.
type clientEndpoints struct {
	api *api
	ClientsOptions
}

// registerClients adds the endpoints of the registry. The caller's key is checked
// before anything else.
func registerClients(r gin.IRouter, a *api, o ClientsOptions) {
	if o.CheckTopic == nil {
		o.CheckTopic = func(string) error { return nil }
	}
	e := &clientEndpoints{api: a, ClientsOptions: o}
	serve := func(f func(context.Context, *gin.Context) (int, any, error)) gin.HandlerFunc {
		return func(c *gin.Context) { e.serve(c, f) }
	}
	const one = "/api/clients/:id"
	r.POST("/api/clients", serve(e.create))
	r.GET("/api/clients", serve(e.list))
	r.GET(one, serve(e.show))
	r.PATCH(one, serve(e.change))
	r.DELETE(one, serve(e.remove))
}

// clientError is an answer whose code is its HTTP status.
type clientError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	// Field is the one of the request that is wrong.
	Field      string `json:"field,omitempty"`
	retryAfter int
}

func (e *clientError) Error() string { return e.Message }

func badField(field, text string) *clientError {
	return &clientError{Code: http.StatusBadRequest, Message: field + " " + text, Field: field}
}

// clientFault is the answer to an error; nil: it is one of ours.
func clientFault(err error) *clientError {
	var answer *clientError
	var field *auth.FieldError
	switch {
	case errors.As(err, &answer):
		return answer
	case errors.As(err, &field):
		return badField(field.Field, field.Text)
	case errors.Is(err, auth.ErrNoRegistry):
		return &clientError{Code: http.StatusNotImplemented, Message: "clients stand in the configuration alone: a registry needs engine: nats"}
	case errors.Is(err, auth.ErrClientUnknown):
		return &clientError{Code: http.StatusNotFound, Message: "unknown client"}
	case errors.Is(err, auth.ErrClientExists):
		return &clientError{Code: http.StatusConflict, Message: "the id is taken"}
	case errors.Is(err, auth.ErrClientConfigured):
		return &clientError{Code: http.StatusConflict, Message: "the client stands in the configuration (auth.clients), and changes there"}
	case errors.Is(err, auth.ErrClientChanged):
		return &clientError{Code: http.StatusConflict, Message: "the client has changed meanwhile: look at it again"}
	case errors.Is(err, auth.ErrStoreFull):
		return &clientError{Code: http.StatusServiceUnavailable, Message: "disabled, but too many revocations are in force to end its tokens: try again", retryAfter: 60}
	case errors.Is(err, auth.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, auth.ErrStoreClosed):
		return &clientError{Code: http.StatusServiceUnavailable, Message: "the registry can't be reached now: try again", retryAfter: 1}
	}
	return nil
}

func (e *clientEndpoints) serve(c *gin.Context, do func(context.Context, *gin.Context) (int, any, error)) {
	c.Header("Cache-Control", "no-store")
	if !e.api.authorized(c.Request) {
		c.Header("WWW-Authenticate", "apikey")
		e.refuse(c, &clientError{Code: http.StatusUnauthorized, Message: "unauthorized"}, errors.New("wrong or missing key"))
		return
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), e.api.Timeout)
	defer cancel()
	status, result, err := do(ctx, c)
	if err == nil {
		e.api.Observe(clientsMethod, 0)
		if status == http.StatusNoContent {
			c.Status(status)
			return
		}
		e.api.write(c, status, apiReply{Result: result})
		return
	}
	answer := clientFault(err)
	if answer == nil {
		if c.Request.Context().Err() == nil {
			e.api.Logger.Error("request about clients failed", "err", err)
		}
		answer = &clientError{Code: http.StatusInternalServerError, Message: "internal server error"}
	}
	e.refuse(c, answer, err)
}

func (e *clientEndpoints) refuse(c *gin.Context, answer *clientError, err error) {
	e.api.Logger.Debug("request about clients refused", "remote", c.Request.RemoteAddr, "status", answer.Code, "err", err)
	e.api.Observe(clientsMethod, answer.Code)
	if answer.retryAfter > 0 {
		c.Header("Retry-After", strconv.Itoa(answer.retryAfter))
	}
	c.AbortWithStatusJSON(answer.Code, map[string]any{"error": answer})
}

// clientRequest is the body of a request. Fields that are not known are refused:
// one that is misspelt must not leave a client enabled.
type clientRequest struct {
	ID           *string         `json:"id"`
	Secret       *string         `json:"secret"`
	RotateSecret bool            `json:"rotate_secret"`
	User         *string         `json:"user"`
	AnyUser      *bool           `json:"any_user"`
	Channels     *[]string       `json:"channels"`
	TokenTTL     *int64          `json:"token_ttl"`
	RefreshTTL   *int64          `json:"refresh_ttl"`
	Metadata     json.RawMessage `json:"metadata"`
	Disabled     *bool           `json:"disabled"`
}

var unknownField = regexp.MustCompile(`unknown field "(.*)"`)

func (e *clientEndpoints) read(c *gin.Context) (*clientRequest, error) {
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, clientsBodyMax))
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		return nil, &clientError{Code: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the body is over %d bytes", clientsBodyMax)}
	}
	if err != nil {
		return nil, &clientError{Code: http.StatusBadRequest, Message: "the body can't be read"}
	}
	if !utf8.Valid(body) { // encoding/json takes it, and changes it
		return nil, &clientError{Code: http.StatusBadRequest, Message: "the body is not UTF-8"}
	}
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	var r *clientRequest
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	err = dec.Decode(&r)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		return nil, badField(wrong.Field, "is of a wrong type")
	case err != nil:
		if m := unknownField.FindStringSubmatch(err.Error()); m != nil {
			return nil, badField(m[1], "is not known")
		}
		return nil, &clientError{Code: http.StatusBadRequest, Message: "the body is not a JSON object"}
	case r == nil:
		return nil, &clientError{Code: http.StatusBadRequest, Message: "the body is not a JSON object"}
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, &clientError{Code: http.StatusBadRequest, Message: "the body is not a JSON object"}
	}
	if r.Channels != nil {
		for i, name := range *r.Channels {
			if err := e.CheckTopic(name); err != nil {
				field := fmt.Sprintf("channels[%d]", i)
				return nil, &clientError{Code: http.StatusBadRequest, Message: field + ": " + err.Error(), Field: field}
			}
		}
	}
	return r, nil
}

func (r *clientRequest) fields() auth.ClientChange {
	return auth.ClientChange{
		User: r.User, AnyUser: r.AnyUser, Channels: r.Channels, TokenTTL: r.TokenTTL, RefreshTTL: r.RefreshTTL,
		Metadata: r.Metadata, Disabled: r.Disabled, Secret: r.Secret, RotateSecret: r.RotateSecret,
	}
}

// clientView is a client as it is shown: without its secret, but where that was
// just made.
type clientView struct {
	ID         string          `json:"id"`
	Source     string          `json:"source"` // registry, configuration
	User       string          `json:"user"`
	AnyUser    bool            `json:"any_user"`
	Channels   []string        `json:"channels"`
	TokenTTL   int64           `json:"token_ttl,omitempty"`
	RefreshTTL int64           `json:"refresh_ttl,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	Disabled   bool            `json:"disabled"`
	Created    string          `json:"created,omitempty"`
	Updated    string          `json:"updated,omitempty"`
	Revision   uint64          `json:"revision,omitempty"`
	Secret     string          `json:"secret,omitempty"`
}

func viewRecord(r *auth.ClientRecord, secret string) clientView {
	at := func(unix int64) string { return time.Unix(unix, 0).UTC().Format(time.RFC3339) }
	v := clientView{
		ID: r.ID, Source: "registry", User: r.User, AnyUser: r.AnyUser, Channels: r.Channels, TokenTTL: r.TokenTTL, RefreshTTL: r.RefreshTTL,
		Metadata: r.Metadata, Disabled: r.Disabled, Created: at(r.Created), Updated: at(r.Updated), Revision: r.Revision, Secret: secret,
	}
	return v.whole()
}

func viewConfigured(o *auth.ClientOptions) clientView {
	v := clientView{
		ID: o.ID, Source: "configuration", User: o.User, AnyUser: o.AnyUser, Channels: o.Channels,
		TokenTTL: int64(o.TokenTTL / time.Second), RefreshTTL: int64(o.RefreshTTL / time.Second),
	}
	return v.whole()
}

func (v clientView) whole() clientView {
	if v.User == "" {
		v.User = v.ID
	}
	if v.Channels == nil {
		v.Channels = []string{}
	}
	return v
}

// etag is what If-Match may hold.
func etag(c *gin.Context, revision uint64) {
	c.Header("ETag", `"`+strconv.FormatUint(revision, 10)+`"`)
}

// revisionOf is the revision that If-Match wants; 0: any.
func revisionOf(c *gin.Context) (uint64, error) {
	h := c.GetHeader("If-Match")
	if h == "" || h == "*" {
		return 0, nil
	}
	n, err := strconv.ParseUint(strings.Trim(h, `"`), 10, 64)
	if err != nil || n == 0 {
		return 0, badField("If-Match", "is not the ETag of a client")
	}
	return n, nil
}

func (e *clientEndpoints) create(ctx context.Context, c *gin.Context) (int, any, error) {
	req, err := e.read(c)
	if err != nil {
		return 0, nil, err
	}
	id := ""
	if req.ID != nil {
		if id = *req.ID; id == "" {
			return 0, nil, badField("id", "is empty: leave it out and one is made")
		}
	}
	r, secret, err := e.Authority().CreateClient(ctx, id, req.fields())
	if err != nil {
		return 0, nil, err
	}
	e.api.Logger.Info("client created", "client", r.ID)
	etag(c, r.Revision)
	c.Header("Location", "/api/clients/"+r.ID)
	return http.StatusCreated, viewRecord(r, secret), nil
}

func (e *clientEndpoints) show(ctx context.Context, c *gin.Context) (int, any, error) {
	id, a := c.Param("id"), e.Authority()
	r, err := a.Registered(ctx, id)
	if o, ok := a.Configured(id); ok && !errors.Is(err, auth.ErrNoRegistry) {
		return http.StatusOK, viewConfigured(&o), nil
	}
	if err != nil {
		return 0, nil, err
	}
	etag(c, r.Revision)
	return http.StatusOK, viewRecord(r, ""), nil
}

func (e *clientEndpoints) change(ctx context.Context, c *gin.Context) (int, any, error) {
	revision, err := revisionOf(c)
	if err != nil {
		return 0, nil, err
	}
	req, err := e.read(c)
	if err != nil {
		return 0, nil, err
	}
	if req.ID != nil {
		return 0, nil, badField("id", "does not change")
	}
	r, secret, err := e.Authority().ChangeClient(ctx, c.Param("id"), revision, req.fields())
	if err != nil {
		return 0, nil, err
	}
	e.api.Logger.Info("client changed", "client", r.ID, "disabled", r.Disabled)
	etag(c, r.Revision)
	return http.StatusOK, viewRecord(r, secret), nil
}

func (e *clientEndpoints) remove(ctx context.Context, c *gin.Context) (int, any, error) {
	revision, err := revisionOf(c)
	if err != nil {
		return 0, nil, err
	}
	if err := e.Authority().DeleteClient(ctx, c.Param("id"), revision); err != nil {
		return 0, nil, err
	}
	e.api.Logger.Info("client deleted", "client", c.Param("id"))
	return http.StatusNoContent, nil, nil
}

// clientList is a page. Cursor asks for the next one; empty: it is the last.
type clientList struct {
	Clients []clientView `json:"clients"`
	Cursor  string       `json:"cursor,omitempty"`
}

func (e *clientEndpoints) list(ctx context.Context, c *gin.Context) (int, any, error) {
	limit, after := clientsPage, ""
	if s := c.Query("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > clientsPageMost {
			return 0, nil, badField("limit", fmt.Sprintf("must be between 1 and %d", clientsPageMost))
		}
		limit = n
	}
	if s := c.Query("cursor"); s != "" {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return 0, nil, badField("cursor", "is none that a page had")
		}
		after = string(b)
	}
	list, more, err := e.Authority().ListClients(ctx, after, limit)
	if err != nil {
		return 0, nil, err
	}
	page := clientList{Clients: make([]clientView, len(list))}
	for i, l := range list {
		if l.Configured != nil {
			page.Clients[i] = viewConfigured(l.Configured)
		} else {
			page.Clients[i] = viewRecord(l.Registered, "")
		}
	}
	if more && len(list) > 0 {
		page.Cursor = base64.RawURLEncoding.EncodeToString([]byte(list[len(list)-1].ID()))
	}
	return http.StatusOK, page, nil
}
